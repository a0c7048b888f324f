"""Batches of captioned pictures: letters of the training fonts and named pictographs, placed and
coloured anew each time.

Dimensions: B pictures of 32 x 32. What is left out of training: every drawing of the style `line`,
those of SUBJECTS, and one in HELD_OUT of all (thing, ink, ground) together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from glyphs.fonts import load_fonts
from glyphs.images import family_weights, to_images
from glyphs.render import DATA, SIZE, load_script
from glyphs.text.captions import (
    GROUND_WORDS,
    INK_WORDS,
    MOST_WORDS,
    RARE,
    Caption,
    letter_noun,
)
from glyphs.text.drawings import SIDE, load_drawings
from glyphs.text.letters import look_of
from smidgen.data.embedded_sets import mix_colours
from smidgen.evaluation.glyph_colours import GROUND_RGB, GROUNDS, INK_RGB, INKS

UNSEEN_STYLE = "line"
# Two subjects a class: their drawings in the unseen style and in ink, each unseen.
SUBJECT_CLASSES = ("owl", "dog", "fish", "castle")
SUBJECT_STYLES = (UNSEEN_STYLE, "ink")
HELD_OUT = 8
LETTERS = 0.25  # share of the pictures
DROPPED = {"look": 0.3, "ink": 0.1, "ground": 0.1}  # how often a part of a caption is left out
RARE_SHARE = 0.01
SMALL, TILTED = 0.15, 0.15
LONGER, LONGER_SMALL = (22.0, 28.0), (13.0, 18.0)  # pixels of a drawing's longer side
TILT, TILT_MORE = (0.0, 8.0), (18.0, 35.0)  # degrees, either way
SHIFT = 1.5
FILL = 26  # pixels of the longer side as it lies in pictographs.npz, at 32 of SIDE


def held_out(noun: str, ink: int, ground: int) -> bool:
    """Whether this thing is never drawn in these colours in training."""
    digest = hashlib.sha256(f"{noun} {ink} {ground}".encode()).digest()
    return digest[0] % HELD_OUT == 0


@dataclass(frozen=True, kw_only=True)
class Things:
    """What may be drawn: nouns, and the masks and looks of each.

    `letters` (L, 32, 32) with `letter_noun` (L,), `letter_look` (L,) and running shares (L,);
    `drawings` (D, SIDE, SIDE) with `noun`, `style`, `weight` and running shares (D,), by which
    every name comes as often, and of a name every style. `allowed` are the (ink, ground) pairs of
    a noun.
    """

    letters: np.ndarray
    letter_noun: np.ndarray
    letter_look: np.ndarray
    letter_share: np.ndarray
    drawings: Tensor
    noun: np.ndarray
    style: np.ndarray
    weight: np.ndarray
    drawing_share: np.ndarray
    allowed: dict[str, np.ndarray]


def load_things() -> Things:
    """The training's letters and drawings."""
    letters, nouns, looks, shares = _letters()
    drawings = load_drawings()
    subject = np.isin(drawings.name, SUBJECT_CLASSES) & np.isin(drawings.style, SUBJECT_STYLES)
    kept = ~(subject | (drawings.style == UNSEEN_STYLE))
    colours = [(ink, ground) for ink in range(len(INKS)) for ground in range(len(GROUNDS))]
    return Things(
        letters=letters,
        letter_noun=nouns,
        letter_look=looks,
        letter_share=np.cumsum(shares),
        drawings=torch.from_numpy(drawings.masks[kept]),
        noun=drawings.name[kept],
        style=drawings.style[kept],
        weight=drawings.weight[kept],
        drawing_share=np.cumsum(_shares(drawings.name[kept], drawings.style[kept])),
        allowed={
            noun: np.array([pair for pair in colours if not held_out(noun, *pair)])
            for noun in {*nouns, *drawings.name}
        },
    )


def _shares(name: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Weights (D,): one for each name, shared by its styles, and a style's by its drawings."""
    both = np.char.add(np.char.add(name, "/"), style)
    _, of_style, alike = np.unique(both, return_inverse=True, return_counts=True)
    styles = np.array([len(set(style[name == one])) for one in name])
    return 1 / (alike[of_style] * styles)


def _letters() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masks (L, 32, 32) of the training families, nouns (L,), looks (L,) and weights (L,)."""
    glyphs, fonts = load_script("latin"), load_fonts(DATA / "fonts.json")
    places = np.flatnonzero(~glyphs.test)
    nouns = np.array([letter_noun(name) for name in glyphs.class_names])
    looks = np.array(["|".join(look_of(fonts[glyphs.font[place]].file)) for place in places])
    return (
        glyphs.masks[places].reshape(-1, SIZE, SIZE),
        np.tile(nouns, len(places)),
        np.repeat(looks, len(nouns)),
        np.repeat(family_weights(glyphs.family[places]), len(nouns)),
    )


def place(
    drawings: Tensor, longer: np.ndarray, degrees: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """Drawings (B, SIDE, SIDE) turned, scaled so that the longer side has that many pixels, and
    moved by `shift` (B, 2) pixels: masks (B, 32, 32) uint8.
    """
    angle, scale = torch.from_numpy(np.deg2rad(degrees)), torch.from_numpy(FILL / longer)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    moved = torch.from_numpy(shift) * (2 / SIZE)
    columns = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    offset = -(columns @ moved[..., None])
    grid = functional.affine_grid(
        torch.cat([columns, offset], 2).float(), [len(drawings), 1, SIDE, SIDE], False
    )
    large = functional.grid_sample(drawings[:, None].float(), grid, align_corners=False)
    small = functional.avg_pool2d(large, SIDE // SIZE)
    return small[:, 0].round().to(torch.uint8).numpy()


def draw_places(share: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Places (count,) drawn by running shares."""
    return np.searchsorted(share, random.random(count) * share[-1])


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a batch shows: letters first, then drawings, by their places in Things."""

    letters: np.ndarray
    drawings: np.ndarray

    @property
    def identity(self) -> Tensor:
        """A number (B,) for each picture's thing as it is drawn: equal for equal drawings only."""
        return torch.from_numpy(np.concatenate([self.letters, -1 - self.drawings]))

    def bare(self, things: Things) -> list[Caption]:
        """A caption of nothing but the noun for each picture."""
        letters, drawings = things.letter_noun[self.letters], things.noun[self.drawings]
        return [Caption(noun=str(noun), picture=False) for noun in letters] + [
            Caption(noun=str(noun), picture=True) for noun in drawings
        ]


def choose(things: Things, size: int, random: np.random.Generator) -> Chosen:
    """Letters of all families, and of each name as many drawings."""
    num_letters = int(random.binomial(size, LETTERS))
    return Chosen(
        letters=draw_places(things.letter_share, num_letters, random),
        drawings=draw_places(things.drawing_share, size - num_letters, random),
    )


def draw_batch(
    things: Things, chosen: Chosen, random: np.random.Generator
) -> tuple[Tensor, list[str]]:
    """Pictures (B, 3, 32, 32) in [-1, 1] of what is chosen, and their captions."""
    captions = [
        Caption(noun=str(things.letter_noun[i]), picture=False, look=_words(things.letter_look[i]))
        for i in chosen.letters
    ]
    masks, of_drawings = _pictographs(things, chosen.drawings, random)
    captions += of_drawings
    colours = np.array([random.choice(things.allowed[one.noun]) for one in captions])
    masks = np.concatenate([things.letters[chosen.letters], masks])
    pixels = mix_colours(masks, INK_RGB[colours[:, 0]], GROUND_RGB[colours[:, 1]])
    said = [_said(*both, random) for both in zip(captions, colours, strict=True)]
    return to_images(pixels), said


def _pictographs(
    things: Things, chosen: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, list[Caption]]:
    """Drawings placed as their captions say: masks (B, 32, 32)."""
    count = len(chosen)
    small, tilted = random.random(count) < SMALL, random.random(count) < TILTED
    longer = np.where(small, random.uniform(*LONGER_SMALL, count), random.uniform(*LONGER, count))
    degrees = np.where(tilted, random.uniform(*TILT_MORE, count), random.uniform(*TILT, count))
    degrees *= random.choice([-1, 1], count)
    shift = random.uniform(-SHIFT, SHIFT, (count, 2))
    captions = [
        Caption(
            noun=str(things.noun[i]),
            picture=True,
            look=(
                *("small",) * int(is_small),
                *("tilted",) * int(is_tilted),
                *_words(f"{things.weight[i]}|{things.style[i]}"),
            ),
        )
        for i, is_small, is_tilted in zip(chosen, small, tilted, strict=True)
    ]
    return place(things.drawings[chosen], longer, degrees, shift), captions


def _words(joined: str) -> tuple[str, ...]:
    return tuple(word for word in str(joined).split("|") if word)


def _said(caption: Caption, colours: np.ndarray, random: np.random.Generator) -> str:
    """The caption as it is written: with its colours, some words dropped, at times a rare one."""
    keep = {part: random.random() >= share for part, share in DROPPED.items()}
    ink = INK_WORDS[colours[0]] if keep["ink"] else ""
    ground = GROUND_WORDS[colours[1]] if keep["ground"] else ""
    rare = str(random.choice(RARE)) if random.random() < RARE_SHARE else ""
    look = caption.look if keep["look"] else ()
    caption = replace(caption, look=look, ink=ink, ground=ground, rare=rare)
    while len(str(caption).split()) > MOST_WORDS:
        caption = replace(caption, look=caption.look[:-1])
    return str(caption)
