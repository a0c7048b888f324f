"""What a .npz of statistics holds passes one check before anything uses it."""

import json

import numpy as np
import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.evaluation.statistics import read_statistics

from .conftest import colour_extractor

NAN, HUGE = np.full(6, np.nan), np.full((6, 6), 1e39)
OURS = {
    "mu": np.zeros(6),
    "sigma": np.eye(6),
    "labels": np.zeros(9, np.int32),
    "predicted/colours": np.zeros(9, np.int32),
    "mean_direction": np.zeros(6),
    "features": np.zeros((9, 6), np.float32),
}
META = {"format_version": 2, "count": 9, "classes": ["red"]}


def save_ours(path, meta=None, **changes):
    text = changes.pop("text", json.dumps(META | (meta or {})))
    np.savez(path, **(OURS | changes), meta=np.array(text))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": NAN}, "finite numbers"),  # case F5, and its kind
        ({"sigma": HUGE}, "finite numbers"),
        ({"mean_direction": NAN}, '"mean_direction" in .* is not made of finite numbers'),
        ({"features": np.full((9, 6), np.inf)}, '"features" in .* is not made of finite numbers'),
        ({"mean_direction": np.zeros(5)}, r"float64 \(5,\); expected numbers \(6\)"),
        ({"features": np.zeros((8, 6))}, r"float64 \(8, 6\); expected numbers \(9, 6\)"),
        ({"labels": np.zeros(8, int)}, r"int64 \(8,\); expected whole numbers \(9\)"),
        ({"labels": np.zeros(9)}, "expected whole numbers"),
        ({"labels": np.ones(9, int)}, '"labels" in .* holds 1 to 1; expected 0 to 0'),
        ({"predicted/colours": np.full(9, -1)}, "holds -1 to -1; expected 0 to 2"),
        ({"predicted/colours": np.full(9, 3)}, "expected 0 to 2"),
        (
            {"text": '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"},
            '"meta": .* too deeply',
        ),  # case A12
        ({"text": '{"count": 9'}, '"meta": '),
        ({"meta": {"classes": 5}}, '"meta": Expected `array`, got `int`'),  # case A13
        ({"meta": {"classes": [1]}}, r"at `\$\.classes"),
        ({"meta": {"count": -1}}, "count"),
        ({"meta": {"count": 1e9}}, "count"),
        ({"meta": {"extractor": 3}}, "extractor"),
        ({"meta": {"resize": []}}, "resize"),
        ({"meta": {"identity": {}}}, "identity"),
        ({"meta": {"num_skipped": "none"}}, "num_skipped"),
        ({"meta": {"format_version": "2"}}, "format_version"),
        ({"meta": {"format_version": 3, "classes": 5}}, "reads up to 2"),
    ],
)
def test_statistics_with_one_thing_wrong_are_refused_in_one_line(changes, message, tmp_path):
    path = save_ours(tmp_path / "statistics.npz")
    assert len(read_statistics(path, colour_extractor()).class_numbers) == 9
    with pytest.raises(SmidgenError, match=message) as caught:
        read_statistics(save_ours(path, **changes), colour_extractor())
    assert "\n" not in str(caught.value)


def test_predictions_of_a_head_that_the_features_lack_are_left_alone(tmp_path):
    path = save_ours(tmp_path / "s.npz", **{"predicted/other": np.array(["a"])})
    assert set(read_statistics(path, colour_extractor()).predictions) == {"colours"}


def test_numbers_of_another_type_and_byte_order_are_taken(tmp_path):
    expected = np.random.default_rng(0).normal(size=(9, 6))
    for dtype in (">f4", ">f8", "f2"):
        path = save_ours(tmp_path / "s.npz", features=np.asfortranarray(expected.astype(dtype)))
        found = read_statistics(path, colour_extractor()).features
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected.astype(dtype).astype("f4"))


def test_no_change_of_a_byte_ends_in_more_than_a_line(tmp_path):
    path = save_ours(tmp_path / "s.npz")
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    refusals = []
    for _ in range(150):
        content = bytearray(whole)
        for place in generator.integers(len(content), size=generator.integers(1, 6)):
            content[place] = generator.integers(256)
        path.write_bytes(content[: generator.choice([len(content), len(content) // 2])])
        try:
            read_statistics(path, colour_extractor())
        except SmidgenError as error:
            refusals.append(str(error))
    assert len(refusals) > 75
    assert not any("\n" in refusal for refusal in refusals)
