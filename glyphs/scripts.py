"""The scripts of the glyph world: class name -> character, in class order.

Class names are lower-case ASCII, safe as folder names on every file system, and sorted: the class
id is the name's place in the sorted list. A new script is one more entry of SCRIPTS.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Script:
    """Characters by class name, and the capital whose height sets the size."""

    characters: dict[str, str]
    reference: str

    @property
    def class_names(self) -> list[str]:
        return list(self.characters)


def _sorted(characters: dict[str, str]) -> dict[str, str]:
    return dict(sorted(characters.items()))


def _latin() -> dict[str, str]:
    names = {f"digit-{digit}": digit for digit in "0123456789"}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        names[f"lower-{letter}"] = letter
        names[f"upper-{letter}"] = letter.upper()
    return _sorted(names)


def _greek() -> dict[str, str]:
    names = {}
    for code in range(0x3B1, 0x3CA):
        small = chr(code)
        if small == "ς":
            continue
        name = unicodedata.name(small).rsplit(" ", 1)[1].lower().replace("lamda", "lambda")
        names[name] = small
        names[f"capital-{name}"] = small.upper()
    return _sorted(names)


def _cyrillic() -> dict[str, str]:
    names = {}
    for code in range(0x430, 0x450):
        small = chr(code)
        if small == "й":  # и with a breve
            continue
        name = unicodedata.name(small).removeprefix("CYRILLIC SMALL LETTER ")
        slug = name.lower().replace(" ", "-")
        names[f"small-{slug}"] = small
        names[f"capital-{slug}"] = small.upper()
    return _sorted(names)


SCRIPTS: dict[str, Script] = {
    "latin": Script(characters=_latin(), reference="H"),
    "greek": Script(characters=_greek(), reference="\N{GREEK CAPITAL LETTER ETA}"),
    "cyrillic": Script(characters=_cyrillic(), reference="\N{CYRILLIC CAPITAL LETTER EN}"),
}
