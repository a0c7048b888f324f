"""The scripts of the glyph world: class name -> character, in class order.

Class names are lower-case ASCII, safe as folder names on every file system, and sorted: the class
id is the name's place in the sorted list. A new script is one more entry of SCRIPTS.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Script:
    """Characters by class name, and how they are sized and where the fonts come from.

    `reference` is the capital whose height sets the size; without one all characters together
    fill the picture. `east_asia` adds the fonts of packages-east-asia.txt.
    """

    characters: dict[str, str]
    reference: str | None = None
    east_asia: bool = False

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


def _range(first: int, last: int, prefix: str, leave_out: str = "") -> dict[str, str]:
    """Characters of a Unicode range by what follows `prefix` in their names."""
    names = {}
    for character in map(chr, range(first, last + 1)):
        name = unicodedata.name(character, "")
        if name.startswith(prefix) and character not in leave_out:
            names[name.removeprefix(prefix).lower().replace(" ", "-")] = character
    return _sorted(names)


def _armenian() -> dict[str, str]:
    small = _range(0x561, 0x586, "ARMENIAN SMALL LETTER ")
    capitals = {f"capital-{name}": letter.upper() for name, letter in small.items()}
    return _sorted({f"small-{name}": letter for name, letter in small.items()} | capitals)


def _runic() -> dict[str, str]:
    """The 24 of the elder futhark, by their Germanic names."""
    letters = (unicodedata.name(rune).split()[2].lower() for rune in FUTHARK)
    return _sorted(dict(zip(letters, FUTHARK, strict=True)))


def _hiragana() -> dict[str, str]:
    """The 46 in use: without small letters and without marks."""
    letters = _range(0x3042, 0x3093, "HIRAGANA LETTER ", leave_out="ゐゑ")
    return {
        name: letter
        for name, letter in letters.items()
        if not name.startswith("small") and not unicodedata.decomposition(letter)
    }


def _hangul() -> dict[str, str]:
    """The 14 plain initials with four vowels each; Unicode counts 21 vowels and 28 finals."""
    return _sorted(
        {
            initial + vowel: chr(0xAC00 + 28 * (21 * first + second))
            for initial, first in HANGUL_INITIALS.items()
            for vowel, second in HANGUL_VOWELS.items()
        }
    )


FUTHARK = "ᚠᚢᚦᚨᚱᚲᚷᚹᚺᚾᛁᛃᛇᛈᛉᛊᛏᛒᛖᛗᛚᛜᛞᛟ"
HANGUL_INITIALS = {"g": 0, "n": 2, "d": 3, "r": 5, "m": 6, "b": 7, "s": 9} | {
    "silent-": 11, "j": 12, "ch": 14, "k": 15, "t": 16, "p": 17, "h": 18
}  # fmt: skip
HANGUL_VOWELS = {"a": 0, "o": 8, "u": 13, "i": 20}

SCRIPTS: dict[str, Script] = {
    "latin": Script(characters=_latin(), reference="H"),
    "greek": Script(characters=_greek(), reference="\N{GREEK CAPITAL LETTER ETA}"),
    "cyrillic": Script(characters=_cyrillic(), reference="\N{CYRILLIC CAPITAL LETTER EN}"),
    "hebrew": Script(characters=_range(0x5D0, 0x5EA, "HEBREW LETTER ")),
    "arabic": Script(
        characters=_range(
            0x627, 0x64A, "ARABIC LETTER ", leave_out="\u0629\u063b\u063c\u063d\u063e\u063f"
        )
    ),
    "georgian": Script(characters=_range(0x10D0, 0x10F0, "GEORGIAN LETTER ")),
    "armenian": Script(characters=_armenian()),
    "devanagari": Script(
        characters=_range(0x915, 0x939, "DEVANAGARI LETTER ", leave_out="\u0929\u0931\u0933\u0934")
    ),
    "thai": Script(characters=_range(0xE01, 0xE2E, "THAI CHARACTER ", leave_out="\u0e24\u0e26")),
    "runic": Script(characters=_runic()),
    "hiragana": Script(characters=_hiragana(), east_asia=True),
    "hangul": Script(characters=_hangul(), east_asia=True),
}
