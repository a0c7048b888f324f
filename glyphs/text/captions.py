"""The captions of `glyphs-text`: their words, and what stands in them.

`a bold serif letter capital a in crimson on cream`,
`a small tilted outline picture of an owl in navy on white`.
"""

from __future__ import annotations

from dataclasses import dataclass

from glyphs.text.drawings import read_names
from smidgen.evaluation.glyph_colours import GROUNDS, INKS

INK_WORDS, GROUND_WORDS = tuple(INKS), tuple(GROUNDS)
WEIGHTS = ("bold", "light", "italic")
LETTER_STYLES = ("serif", "sans", "mono", "script", "display")
PICTURE_STYLES = ("outline", "solid", "ink", "line")
RARE = ("sks", "zwx", "ohwx")  # of no meaning: what personalisation may use
MOST_WORDS = 14  # 16 tokens with the ends
# Words of prompts that no caption has, so that they are one token too.
OTHERS = ("photo", "drawing", "the", "my", "and", "with", "at", "to", "style", "big", "symbol")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The parts of a caption; "" or () leaves a part out. `noun`: "letter capital a", "owl"."""

    noun: str
    picture: bool
    look: tuple[str, ...] = ()
    ink: str = ""
    ground: str = ""
    rare: str = ""

    def __str__(self) -> str:
        noun = f"{self.rare} {self.noun}".strip()
        thing = f"picture of {with_article(noun)}" if self.picture else noun
        words = with_article(" ".join((*self.look, thing)))
        words += f" in {self.ink}" if self.ink else ""
        return words + (f" on {self.ground}" if self.ground else "")


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def letter_noun(class_name: str) -> str:
    """The words for a class of the Latin set: "letter a", "letter capital a", "digit 7"."""
    kind, character = class_name.split("-")
    return {"lower": "letter ", "upper": "letter capital ", "digit": "digit "}[kind] + character


def every_word() -> list[str]:
    """Every word of captions and of likely prompts, each once."""
    fixed = (
        "a",
        "an",
        "in",
        "on",
        "of",
        "picture",
        "letter",
        "digit",
        "capital",
        "small",
        "tilted",
    )
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    names = [word for name in read_names() for word in name.split()]
    colours = (*INK_WORDS, *GROUND_WORDS)
    looks = (*WEIGHTS, *LETTER_STYLES, *PICTURE_STYLES)
    return list(dict.fromkeys([*fixed, *letters, *colours, *looks, *names, *RARE, *OTHERS]))
