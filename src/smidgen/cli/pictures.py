"""The demo's two pictures, drawn with Pillow: a labelled grid of images and a chart of curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from smidgen.files.writing import write_png

PAPER = (255, 255, 255)
TEXT = (34, 38, 46)
FAINT = (214, 218, 224)
COLOURS = ((31, 98, 184), (204, 82, 36), (38, 138, 92), (128, 72, 160))
MARGIN = 24


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitting(text: str, size: int, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The largest font up to `size` in which the text is no wider than `width` pixels, or 8."""
    sizes = (s for s in range(size, 8, -1) if _font(s).getlength(text) <= width)
    return _font(next(sizes, 8))


def image_grid(
    rows: Mapping[str, Sequence[Image.Image]],
    columns: Sequence[str],
    *,
    title: str,
    scale: int = 4,
    columns_per_band: int = 12,
) -> Image.Image:
    """Rows of equal images with their names at the left and the columns' names above.

    More columns than `columns_per_band` continue in a band below. Images are enlarged `scale`
    times without smoothing.
    """
    cell = next(iter(rows.values()))[0].width * scale
    gap, label_width, header, title_height = 6, 190, 34, 56
    num_bands = -(-len(columns) // columns_per_band)
    width = 2 * MARGIN + label_width + min(len(columns), columns_per_band) * (cell + gap)
    band_height = header + len(rows) * (cell + gap) + MARGIN
    picture = Image.new("RGB", (width, MARGIN + title_height + num_bands * band_height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN), title, TEXT, _font(26))
    for number, name in enumerate(columns):
        band, column = divmod(number, columns_per_band)
        left = MARGIN + label_width + column * (cell + gap)
        top = MARGIN + title_height + band * band_height
        font = _fitting(name, 17, cell)
        draw.text((left + cell / 2, top + header / 2), name, TEXT, font, anchor="mm")
        for row, (label, images) in enumerate(rows.items()):
            y = top + header + row * (cell + gap)
            enlarged = images[number].resize((cell, cell), Image.Resampling.NEAREST)
            picture.paste(enlarged, (left, y))
            if column == 0:
                draw.multiline_text(
                    (MARGIN, y + cell / 2), label, TEXT, _font(20), anchor="lm", spacing=6
                )
    return picture


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: named curves of (x, y) points over the same x axis. `percent` scales y by 100."""

    title: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    percent: bool = False
    from_zero: bool = False


def chart(panels: Sequence[Panel], *, x_label: str, path: Path) -> None:
    """Draw the panels side by side and write the picture."""
    width, height = 620, 440
    picture = Image.new("RGB", (width * len(panels), height), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, panel in enumerate(panels):
        _draw_panel(draw, panel, (number * width, 0, (number + 1) * width, height), x_label)
    write_png(picture, path)


def _draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, box: tuple[int, int, int, int], x_label: str
) -> None:
    left, top, right, bottom = box[0] + 78, box[1] + 84, box[2] - 28, box[3] - 62
    points = [point for curve in panel.curves.values() for point in curve]
    x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points))
    low = 0.0 if panel.from_zero else min(p[1] for p in points)
    y_ticks = ticks(low, max(p[1] for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    draw.text((left, box[1] + 22), panel.title, TEXT, _font(20))
    for y in y_ticks:
        height = place(x_ticks[0], y)[1]
        draw.line((left, height, right, height), FAINT)
        draw.text((left - 10, height), tick_text(y, panel.percent), TEXT, _font(14), anchor="rm")
    for x in x_ticks:
        draw.text(
            (place(x, y_ticks[0])[0], bottom + 16), tick_text(x), TEXT, _font(14), anchor="mm"
        )
    draw.text(((left + right) / 2, bottom + 42), x_label, TEXT, _font(15), anchor="mm")
    legend = left
    for colour, (name, curve) in zip(COLOURS, panel.curves.items(), strict=False):
        line = [place(*point) for point in curve]
        draw.line(line, colour, 3, joint="curve")
        if len(line) <= 20:
            for x, y in line:
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), colour)
        draw.line((legend, top - 18, legend + 22, top - 18), colour, 4)
        draw.text((legend + 30, top - 18), name, TEXT, _font(14), anchor="lm")
        legend += 54 + int(draw.textlength(name, _font(14)))


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round numbers, equally spaced, that enclose low and high: about `number` of them."""
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = (high - low) / number
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, percent: bool = False) -> str:
    """A tick's number as short as it can be read."""
    return f"{100 * value:g} %" if percent else f"{value:.6g}"


def smoothed(
    points: Sequence[tuple[float, float]], weight: float = 0.9
) -> list[tuple[float, float]]:
    """Exponential moving average of y, with the start's bias removed."""
    result, average = [], 0.0
    for number, (x, y) in enumerate(points, start=1):
        average = weight * average + (1 - weight) * y
        result.append((x, average / (1 - weight**number)))
    return result
