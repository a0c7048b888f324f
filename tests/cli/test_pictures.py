"""The demo's pictures: every image where its row and column say, curves inside their panel."""

import numpy as np
import pytest
from PIL import Image

from smidgen.cli.pictures import COLOURS, Panel, chart, image_grid, smoothed, ticks


def test_every_image_is_in_the_grid_enlarged_without_smoothing():
    generator = np.random.default_rng(0)
    rows = {
        name: [
            Image.fromarray(generator.integers(0, 255, size=(4, 4, 3), dtype=np.uint8))
            for _ in range(5)
        ]
        for name in ("before", "after")
    }
    picture = image_grid(rows, list("abcde"), title="Letters", scale=3, columns_per_band=3)
    pixels = np.asarray(picture)
    for images in rows.values():
        for image in images:
            enlarged = np.asarray(image).repeat(3, axis=0).repeat(3, axis=1)
            found = [
                (top, left)
                for top, left in np.argwhere((pixels == enlarged[0, 0]).all(axis=2))
                if np.array_equal(pixels[top : top + 12, left : left + 12], enlarged)
            ]
            assert len(found) == 1


def test_a_long_name_stays_over_its_own_column():
    white = Image.new("RGB", (16, 16), "white")
    pixels = np.asarray(image_grid({"": [white] * 2}, ["final-tsadi", ""], title=""))
    inked = np.flatnonzero((pixels < 128).any(axis=(0, 2)))
    assert 0 < inked.max() - inked.min() <= 64


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.13, 0.92), (-3.0, 7.0), (5.0, 5.0), (0.0, 0.0), (1e-6, 3e5)]
)
def test_ticks_are_round_equally_spaced_and_enclose_the_values(low, high):
    marks = ticks(low, high)
    steps = np.diff(marks)
    assert marks[0] <= low <= high <= marks[-1]
    assert 2 <= len(marks) <= 8
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-9


def test_smoothing_keeps_a_constant_and_the_steps():
    steps, values = zip(*smoothed([(step, 3.0) for step in range(5)]), strict=True)
    assert steps == (0, 1, 2, 3, 4)
    assert values == pytest.approx([3.0] * 5)


def test_a_chart_draws_each_curve_in_its_own_colour(tmp_path):
    panel = Panel(title="Loss", curves={"a": [(0, 1.0), (9, 0.2)], "b": [(0, 0.5), (9, 0.5)]})
    point = Panel(title="One point", curves={"c": [(3, 0.4)]})
    chart([panel, point], x_label="step", path=tmp_path / "c.png")
    picture = Image.open(tmp_path / "c.png").convert("RGB")
    drawn = {colour for _, colour in picture.getcolors(1 << 24)}
    assert set(COLOURS[:2]) <= drawn
    assert not set(COLOURS[2:]) & drawn
