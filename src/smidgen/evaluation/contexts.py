"""The prompts with which a personalisation is judged: those of the subject in other contexts, and
those of other things, which should stay as they were.

Fixed lists, so that numbers can be compared: one for the world of `glyphs-text`, one for bases of
photographs, in the manner of DreamBench (Ruiz et al. 2023, arXiv 2208.12242) and not its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit
from smidgen.models.base import Base
from smidgen.models.names import EMBEDDED

GLYPHS_BASE = "glyphs-text"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a delta says of the subject that it was trained on."""

    token: str
    class_name: str
    instance_prompt: str
    class_prompt: str
    class_images: int | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """Contexts, each (a word behind the prompt's article or "", what follows the prompt), and
    prompts of other things; `features` is the CLIP that knows this world.
    """

    contexts: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    features: str


GLYPHS = World(
    contexts=(
        ("", ""),
        ("", " in black on cream"),
        ("", " in navy on white"),
        ("", " in crimson on mint"),
        ("", " in green on grey"),
        ("", " in purple on white"),
        ("", " in orange on cream"),
        ("tilted", " in black on grey"),
        ("tilted", " in green on white"),
        ("tilted", " in purple on mint"),
        ("small", " in navy on cream"),
        ("small", " in crimson on grey"),
        ("small", " in orange on mint"),
    ),
    others=(
        "a picture of a cat in navy on white",
        "a picture of a rose in crimson on cream",
        "a picture of a sailboat in green on mint",
        "a picture of a key in purple on grey",
        "a letter capital a in black on white",
        "a letter g in orange on cream",
    ),
    features="clip-glyphs",
)
PHOTOGRAPHS = World(
    contexts=(
        ("", ""),
        ("", " in the snow"),
        ("", " on a beach"),
        ("", " in a forest"),
        ("", " on a city street at night"),
        ("", " on a wooden table"),
        ("", " in a field of flowers"),
        ("", " beside a river"),
        ("", " with a mountain behind it"),
        ("", " on a red carpet"),
        ("", " in front of a brick wall"),
        ("", " floating on water"),
        ("", " with a blue sky behind it"),
    ),
    others=(
        "a photo of a cat",
        "a photo of a car on a street",
        "a photo of a bowl of fruit",
        "a photo of a house by a lake",
        "a photo of a woman reading a book",
        "a photo of mountains at sunset",
    ),
    features="clip-b32",
)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """`drawn` are drawn; `said`, the same without the token, is what their images are compared
    with; `others` are of the class and of other things.
    """

    drawn: tuple[str, ...]
    said: tuple[str, ...]
    others: tuple[str, ...]


def subject_of(training: object) -> Subject:
    """The subject in a delta's `provenance.training["dreambooth"]`.

    Raises: SmidgenError if it is none.
    """
    try:
        return fit(training, Subject)
    except Unreadable as error:
        raise SmidgenError(
            f"the delta does not say what subject it is of ({error.reason}); train it again"
        ) from error


def world_of(base: Base) -> World:
    """The world that the base draws: glyphs if it is the one that ships, else photographs."""
    return GLYPHS if base.source == EMBEDDED / GLYPHS_BASE else PHOTOGRAPHS


def prompts_of(subject: Subject, world: World) -> Prompts:
    """The prompts for a subject; other things that are of its class are left out."""
    of_class = re.compile(rf"\b{re.escape(subject.class_name)}\b", re.IGNORECASE)
    return Prompts(
        drawn=tuple(placed(subject.instance_prompt, *one) for one in world.contexts),
        said=tuple(placed(subject.class_prompt, *one) for one in world.contexts),
        others=(
            subject.class_prompt,
            *(prompt for prompt in world.others if not of_class.search(prompt)),
        ),
    )


def placed(prompt: str, word: str, behind: str) -> str:
    """The prompt with a word behind its first article (before it, without one), and what follows.

    `a picture of a sks owl`, `small`, ` in navy on cream`: `a small picture of a sks owl in navy on
    cream`.
    """
    found = re.match(r"(an?|the) ", prompt, re.IGNORECASE)
    if word and found:
        prompt = f"a {word} {prompt[found.end() :]}"
    elif word:
        prompt = f"{word} {prompt}"
    return prompt + behind
