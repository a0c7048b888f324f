"""How a font looks in words, from its own tables: bold, light or italic; serif, sans, mono or
script.

Family names are not asked: OS/2 weight, italic bit, PANOSE and IBM's family class say it, or
nothing does.
"""

from __future__ import annotations

from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError

# IBM's family classes (OS/2 sFamilyClass, high byte) and PANOSE's kinds and serif styles.
SERIF_CLASSES, SANS_CLASS, SCRIPT_CLASS, ORNAMENTAL_CLASS = (1, 2, 3, 4, 5, 7), 8, 10, 9
TEXT_KIND, SCRIPT_KIND, DECORATIVE_KIND = 2, 3, 4
SERIFS, SANS = range(2, 11), range(11, 16)
MONOSPACED = 9


def look_of(path: Path) -> tuple[str, str]:
    """(weight, style): of "bold", "light", "italic" or "", and "serif", "sans", "mono", "script",
    "display" or "".
    """
    try:
        with TTFont(path, lazy=True) as font:
            table, fixed = font["OS/2"], bool(font["post"].isFixedPitch)
    except (TTLibError, KeyError, OSError, AssertionError):
        return "", ""
    if table.fsSelection & 1:
        weight = "italic"
    elif table.usWeightClass >= 600:
        weight = "bold"
    else:
        weight = "light" if 100 <= table.usWeightClass <= 300 else ""
    return weight, _style(table, fixed)


def _style(table, fixed: bool) -> str:
    panose, family = table.panose, table.sFamilyClass >> 8
    text = panose.bFamilyType == TEXT_KIND
    if fixed or (text and panose.bProportion == MONOSPACED):
        return "mono"
    if panose.bFamilyType == SCRIPT_KIND or family == SCRIPT_CLASS:
        return "script"
    if panose.bFamilyType == DECORATIVE_KIND or family == ORNAMENTAL_CLASS:
        return "display"
    if (text and panose.bSerifStyle in SERIFS) or family in SERIF_CLASSES:
        return "serif"
    if (text and panose.bSerifStyle in SANS) or family == SANS_CLASS:
        return "sans"
    return ""
