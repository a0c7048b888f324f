"""Renders every font that has a whole script into coverage masks.

`python -m glyphs.render` writes data/glyphs/<script>.npz (masks, class names, font, family, split)
and fonts.json; with `--size 64` the same fonts once more, twice as large. Drawn at 4x and
box-averaged; capital height 18 and baseline at row 24, or the script fills the picture; centred.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from glyphs.fonts import Font, find_fonts, load_fonts, save_fonts
from glyphs.scripts import SCRIPTS, Script

SIZE, OVERSAMPLING, CAPITAL_HEIGHT, BASELINE = 32, 4, 18, 24
FILL = 28  # pixels that a script without capitals takes, of its tallest or widest
DATA = Path("data/glyphs")
MIN_DISTINCT = 0.7  # share of different shapes
MAX_BOXES = 0.25  # share of solid boxes: I and l are boxes without serifs
MAX_CUT = 0.1  # share of glyphs that leave the picture
# Share of glyphs nearer to their own class's mean than to another's; symbols score about 0.02.
MIN_LEGIBLE = 0.35
# Greek letters or small capitals at Latin letters' places.
NOT_LETTERS = {
    "latin": {"standard symbols ps", "alfa beta", "aegyptus", "anatolian", "gardiner"}
    | {"cretan hieroglyphs"},
}
SAME_FONT = 0.05  # squared distance over squared length below which two fonts are one design


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """One script. masks (F, C, H, W) uint8 coverage; font (F,) places in fonts.json.

    family (F,) are ids into family_names; test (F,) marks the unseen families.
    """

    masks: np.ndarray
    class_names: list[str]
    font: np.ndarray
    family: np.ndarray
    test: np.ndarray


def draw_script(font: Font, script: Script) -> np.ndarray | str:
    """Masks (C, 32, 32) of one font, or the reason why the font is left out."""
    if font.east_asia and not script.east_asia:
        return "for kana and Hangul only"
    try:
        with TTFont(font.file, lazy=True) as tables:
            known = tables.getBestCmap()
        if any(ord(character) not in known for character in script.characters.values()):
            return "lacks a character"
        drawn = draw_glyphs(font, script, SIZE)
    except (OSError, ValueError, KeyError, TTLibError, AssertionError, TypeError) as error:
        return f"unreadable: {type(error).__name__}"
    if not drawn:
        return "reference capital is empty"
    return check_masks(np.stack([mask for mask, _ in drawn]), [cut for _, cut in drawn])


def draw_glyphs(font: Font, script: Script, size: int) -> list[tuple[np.ndarray, bool]]:
    """What `draw_glyph` gives for every character of the script; empty without a size."""
    pixels, baseline = measure_font(font, script)
    if pixels <= 0:
        return []
    sized = open_font(font, pixels)
    return [draw_glyph(sized, c, baseline, size) for c in script.characters.values()]


def open_font(font: Font, pixels: float) -> ImageFont.FreeTypeFont:
    """The font with that many pixels an em; every character is drawn alone, unshaped."""
    return ImageFont.truetype(font.file, pixels, layout_engine=ImageFont.Layout.BASIC)


def measure_font(font: Font, script: Script) -> tuple[float, float]:
    """Pixels an em and row of the baseline, in the oversampled picture; (0, 0) if empty."""
    em = 400
    large = open_font(font, em)
    if script.reference is not None:
        top = large.getbbox(script.reference, anchor="ls")[1]
        pixels = em * CAPITAL_HEIGHT * OVERSAMPLING / -top if top < 0 else 0.0
        return pixels, BASELINE * OVERSAMPLING
    boxes = np.array([large.getbbox(c, anchor="ls") for c in script.characters.values()])
    left, top, right, bottom = boxes.T
    height, width = float(bottom.max() - top.min()), float((right - left).max())
    if height <= 0 or width <= 0:
        return 0.0, 0.0
    scale = FILL * OVERSAMPLING / max(height, width)
    middle = (top.min() + bottom.max()) / 2
    return em * scale, SIZE * OVERSAMPLING / 2 - float(middle) * scale


def draw_glyph(
    font: ImageFont.FreeTypeFont, character: str, baseline: float, size: int
) -> tuple[np.ndarray, bool]:
    """Mask (size, size) uint8 of one character, and whether it leaves the picture."""
    side = SIZE * OVERSAMPLING
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    picture = Image.new("L", (side, side))
    place = ((side - left - right) / 2, baseline)
    ImageDraw.Draw(picture).text(place, character, fill=255, font=font, anchor="ls")
    mask = picture.resize((size, size), Image.Resampling.BOX)
    slack = OVERSAMPLING
    cut = right - left > side + slack or baseline + top < -slack or baseline + bottom > side + slack
    return np.asarray(mask), cut


def is_box(mask: np.ndarray) -> bool:
    """Whether the ink fills its bounding box."""
    rows, columns = np.nonzero(mask > 127)
    if not len(rows):
        return True
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return float(box.mean()) > 0.97 * 255


def check_masks(masks: np.ndarray, cut: list[bool]) -> np.ndarray | str:
    """The masks, or the reason why the font is left out."""
    if (masks.max((1, 2)) < 64).any():
        return "draws an empty glyph"
    if sum(map(is_box, masks)) > MAX_BOXES * len(masks):
        return "draws solid boxes"
    if len({mask.tobytes() for mask in masks}) < MIN_DISTINCT * len(masks):
        return "too few different shapes"
    if sum(cut) > MAX_CUT * len(masks):
        return "leaves the picture"
    return masks


def flat(masks: np.ndarray) -> np.ndarray:
    """(F, C, 32, 32) -> (F, C * 256) float32 at half size: enough to compare designs."""
    fonts, classes = masks.shape[:2]
    halves = masks.reshape(fonts, classes, SIZE // 2, 2, SIZE // 2, 2).mean((3, 5), np.float32)
    return halves.reshape(fonts, -1) / 255


def legibility(masks: np.ndarray) -> np.ndarray:
    """Share of glyphs nearest to their own class's median shape, for each font (F,)."""
    fonts, classes = masks.shape[:2]
    shapes = flat(masks).reshape(fonts, classes, -1)
    means = shapes.mean(0)
    score = np.einsum("fcp,kp->fck", shapes, means, optimize=True) - (means**2).sum(1) / 2
    return (score.argmax(2) == np.arange(classes)).mean(1)


def squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Squared distances over the squared length of the left row: (L, R)."""
    length = (left**2).sum(1, keepdims=True)
    return (length - 2 * left @ right.T + (right**2).sum(1)) / length


def keep_fonts(
    masks: np.ndarray, family: np.ndarray, test: np.ndarray, reasons: Counter[str]
) -> np.ndarray:
    """Places (F',) of the fonts that stay: legible, drawn once, and new where they are unseen.

    An unseen family goes altogether if one of its fonts is a training font under another name.
    """
    legible = legibility(masks) >= MIN_LEGIBLE
    reasons["not letters"] += int((~legible).sum())
    seen: set[bytes] = set()
    kept = []
    for index in np.argsort(test, kind="stable"):  # training families first
        digest = hashlib.sha256(masks[index].tobytes()).digest()
        if legible[index] and digest not in seen:
            kept.append(index)
        seen.add(digest)
    reasons["drawn twice"] += int(legible.sum()) - len(kept)
    places = np.array(sorted(kept))
    unseen, known = places[test[places]], places[~test[places]]
    nearest = squared_distances(flat(masks[unseen]), flat(masks[known])).min(1)
    new = ~np.isin(family[unseen], family[unseen[nearest < SAME_FONT]])
    reasons["unseen, yet like a training font"] += int((~new).sum())
    return np.sort(np.concatenate([known, unseen[new]]))


def render_script(name: str, fonts: list[Font], pool: ProcessPoolExecutor) -> None:
    """Writes data/glyphs/<name>.npz and prints what was left out and why."""
    script = SCRIPTS[name]
    drawn = list(pool.map(partial(draw_script, script=script), fonts, chunksize=16))
    for index, font in enumerate(fonts):
        if font.family in NOT_LETTERS.get(name, set()):
            drawn[index] = "not letters"
    reasons = Counter(result for result in drawn if isinstance(result, str))
    places = np.array([i for i, result in enumerate(drawn) if not isinstance(result, str)])
    masks = np.stack([result for result in drawn if not isinstance(result, str)])
    test = np.array([fonts[i].test for i in places])
    families = sorted({font.family for font in fonts})
    family = np.array([families.index(fonts[i].family) for i in places])
    kept = keep_fonts(masks, family, test, reasons)
    glyphs = Glyphs(
        masks=masks[kept],
        class_names=script.class_names,
        font=places[kept],
        family=family[kept],
        test=test[kept],
    )
    save_script(glyphs, masks_path(name))
    unseen = len(set(family[kept][test[kept]]))
    print(
        f"{name}: {len(kept)} fonts ({int(test[kept].sum())} unseen), "
        f"{len(set(family[kept]))} families ({unseen} unseen); left out: {dict(reasons)}"
    )


def enlarge_script(name: str, size: int, fonts: list[Font], pool: ProcessPoolExecutor) -> None:
    """Writes data/glyphs/<name>-<size>.npz: the kept fonts of <name>.npz, drawn larger."""
    kept = load_script(name)
    draw = partial(draw_glyphs, script=SCRIPTS[name], size=size)
    drawn = pool.map(draw, [fonts[place] for place in kept.font], chunksize=16)
    masks = np.stack([[mask for mask, _ in glyphs] for glyphs in drawn])
    save_script(replace(kept, masks=masks), masks_path(name, size))


def save_script(glyphs: Glyphs, path: Path) -> None:
    np.savez(
        path,
        masks=glyphs.masks,
        class_names=np.array(glyphs.class_names),
        font=glyphs.font,
        family=glyphs.family,
        test=glyphs.test,
    )


def masks_path(name: str, image_size: int = SIZE) -> Path:
    """data/glyphs/<name>.npz, or <name>-64.npz for masks of another size."""
    return DATA / (f"{name}.npz" if image_size == SIZE else f"{name}-{image_size}.npz")


def load_script(name: str, image_size: int = SIZE) -> Glyphs:
    """Reads what `render_script` wrote."""
    path = masks_path(name, image_size)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run python -m glyphs.render")
    with np.load(path) as arrays:
        return Glyphs(
            masks=arrays["masks"],
            class_names=[str(class_name) for class_name in arrays["class_names"]],
            font=arrays["font"],
            family=arrays["family"],
            test=arrays["test"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scripts", default=",".join(SCRIPTS), help="comma-separated")
    parser.add_argument("--size", type=int, default=SIZE, choices=(32, 64), help="pixels")
    arguments = parser.parse_args()
    names = arguments.scripts.split(",")
    DATA.mkdir(parents=True, exist_ok=True)
    if arguments.size != SIZE:
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            for name in names:
                enlarge_script(name, arguments.size, load_fonts(DATA / "fonts.json"), pool)
        return
    fonts = find_fonts()
    save_fonts(fonts, DATA / "fonts.json")
    print(json.dumps({"files": len(fonts), "families": len({font.family for font in fonts})}))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in names:
            render_script(name, fonts, pool)


if __name__ == "__main__":
    main()
