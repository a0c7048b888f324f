"""Finds the font files of the Debian packages in packages.txt and packages-east-asia.txt.

Each file gets a family (style words stripped, so that bold and regular never part), a licence
(from the package's copyright file; from the font itself where a package collects many) and its
side of the split, a hash of the family's name.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError

PACKAGES = Path(__file__).with_name("packages.txt")
EAST_ASIA = Path(__file__).with_name("packages-east-asia.txt")  # for kana and Hangul only
FONT_ROOT = Path("/usr/share")
DOC_ROOT = Path("/usr/share/doc")
DPKG_INFO = Path("/var/lib/dpkg/info")
TEST_SHARE = 0.2
COLLECTIONS = "texlive-"  # packages of many fonts, each under its own licence

STYLE_WORDS = frozenset(
    re.split(
        r"\s+",
        """thin hairline extralight ultralight light semilight demilight book regular normal roman
    medium semibold demibold demi bold extrabold ultrabold black heavy fat ultra extra semi
    italic oblique slanted condensed cond compressed narrow semicondensed extracondensed extended
    ext expanded wide semiexpanded compact caps sc smallcaps display text caption subhead deck
    poster halfloose halftight loose tight vf variable hinted unhinted otf ttf std pro lt bd md
    semicond semicon cn bolditalic outline shadow web ui""",
    )
)
# One design under many names: the name that all of them get.
SAME_DESIGN = (
    (re.compile(r"^noto (sans|serif|naskh|kufi|nastaliq)\b.*"), r"noto \1"),
    (re.compile(r"^(lm|latin modern|cmu|new computer modern|new cmuncial|ae m)\b.*"), "cm"),
    (re.compile(r"^(alm fixed|cm[a-z]+)$"), "cm"),
    (re.compile(r"^(libertinus|linux libertine|linux biolinum)\b.*"), "libertine"),
    (re.compile(r"^(averia|tiresias|romande adf|elstob|junicode|mint spirit)\b.*"), r"\1"),
    (re.compile(r"^(lexend|merriweather|montserrat|cormorant|quattrocento|kp)\b.*"), r"\1"),
    (re.compile(r"^(stix|step|xits)\w*\b.*"), "stix"),
    (re.compile(r"^monoid.*"), "monoid"),
    (re.compile(r"^(andika|charis|doulos|gentium|awami)\b.*"), r"\1"),
    (re.compile(r"^(fira ?code|fira ?mono)\b.*"), "fira code"),
    (re.compile(r"^(spleen|roadgeek|samyak|lohit)\b.*"), r"\1"),
    (re.compile(r"^(ipa(ex)?p?|takao p?)(gothic|mincho)$|^ipaex (gothic|mincho)$"), r"ipa \3\4"),
    (re.compile(r"^(biz ud|takao )p?(gothic|mincho)$"), r"\1\2"),
    (re.compile(r"^(mig mix|migu|m plus|ume plus|vl p?gothic)\b.*"), "m plus"),
    (re.compile(r"^ume (p )?(hy )?(gothic|mincho)\b.*"), r"ume \3"),
    (re.compile(r"^(kiloji|misaki|komatuna|konatu|seto font|bm euljiro|bm hanna)\b.*"), r"\1"),
    (re.compile(r"^nanum (gothic|myeongjo|square|barun gothic)\b.*"), r"nanum \1"),
    (re.compile(r"^un (jamo )?(batang|dotum|yetgul)\b.*"), r"un \2"),
    (re.compile(r"^(un pilgi|un pen|eunjin)\w*\b.*"), r"\1"),
    (re.compile(r"^kouzan brush font\b.*"), "kouzan brush"),
)
LICENCE_WORDS = (
    ("Open Font License", "OFL-1.1"),
    ("openfont license", "OFL-1.1"),
    ("OFL", "OFL-1.1"),
    ("Apache License", "Apache-2.0"),
    ("GUST", "GUST-Font-License"),
    ("LaTeX Project Public", "LPPL"),
    ("LPPL", "LPPL"),
    ("GNU Lesser General Public", "LGPL"),
    ("GNU General Public", "GPL"),
    ("GPL", "GPL"),
    ("Creative Commons Attribution", "CC-BY"),
    ("public domain", "public-domain"),
    ("Bitstream Vera", "Bitstream-Vera"),
    ("X11", "MIT"),
    ("Permission is hereby granted", "MIT"),
    ("free for any use", "free-for-any-use"),
)


@dataclass(frozen=True, kw_only=True)
class Font:
    """One font file: `path` below /usr/share; `test` is its side of the split.

    `east_asia`: it serves kana and Hangul only.
    """

    path: str
    family: str
    package: str
    licence: str
    test: bool
    east_asia: bool

    @property
    def file(self) -> Path:
        return FONT_ROOT / self.path


def normalise_family(name: str) -> str:
    """Family of a font's own family name: lower case, without style words and sizes.

    A name of nothing but style words keeps them.
    """
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[^0-9a-z]+", " ", name.lower()).split()
    kept = [word for word in words if word not in STYLE_WORDS and not word.isdigit()]
    family = " ".join(kept or words)
    for pattern, replacement in SAME_DESIGN:
        family = pattern.sub(replacement, family)
    return re.sub(r" ?\d+$", "", family) or family


def is_test_family(family: str) -> bool:
    """Whether the family is kept unseen: a hash of its name, the same for every script."""
    digest = hashlib.sha256(family.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < TEST_SHARE


def read_licence(package: str) -> str:
    """Short licence names of a package, " / " between several.

    Reads the machine-readable `License:` fields, else looks for well-known sentences.
    """
    text = (DOC_ROOT / package / "copyright").read_text(encoding="utf-8", errors="replace")
    stanzas = re.split(r"\n\s*\n", text)
    found: list[str] = []
    for stanza in stanzas:
        files = re.search(r"^Files:(.*)$", stanza, re.M)
        licence = re.search(r"^Licen[sc]e:[ \t]*(\S[^\n]*)$", stanza, re.M)
        if licence and files and "debian" not in files.group(1):
            found.append(licence.group(1).strip())
    return " / ".join(dict.fromkeys(found)) or find_licences(text) or "see copyright file"


def find_licences(text: str) -> str:
    """Licences whose well-known words are in the text, " / " between several."""
    flat = re.sub(r"\s+", " ", text).lower()
    found = [short for words, short in LICENCE_WORDS if words.lower() in flat]
    return " / ".join(dict.fromkeys(found))


def package_files(package: str) -> list[Path]:
    """Font files that an installed package owns, sorted, links left out."""
    listing = DPKG_INFO / f"{package}.list"
    if not listing.exists():
        raise FileNotFoundError(f"package {package} is not installed: sudo apt install {package}")
    paths = [Path(line) for line in listing.read_text().splitlines()]
    fonts = [p for p in paths if p.suffix.lower() in (".ttf", ".otf") and p.is_file()]
    return sorted(p for p in fonts if not p.is_symlink() and p.is_relative_to(FONT_ROOT))


def package_section(package: str) -> str:
    """Debian section, e.g. `fonts` or `non-free/fonts`."""
    command = ["dpkg-query", "-W", "-f", "${Section}", package]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_names(path: Path) -> tuple[str, str] | None:
    """Normalised family, and licences that the font names about itself ("" if none).

    None for a font that is unreadable, variable or without characters.
    """
    try:
        with TTFont(path, lazy=True) as font:
            if "fvar" in font or "cmap" not in font or not font.getBestCmap():
                return None
            names = [font["name"].getDebugName(number) for number in (16, 1, 13, 14, 0, 10)]
    except (TTLibError, AssertionError, ValueError, KeyError, OSError, TypeError):
        return None
    family = names[0] or names[1]
    licence = find_licences(" ".join(filter(None, names[2:])))
    return (normalise_family(family), licence) if family else None


def find_fonts() -> list[Font]:
    """All usable font files of both lists of packages, byte copies once.

    Of a package that collects many fonts, those that do not name a free licence are left out.
    """
    east_asia = set(EAST_ASIA.read_text().split())
    names = {*PACKAGES.read_text().split(), *east_asia}
    fonts: list[Font] = []
    seen: set[bytes] = set()
    for package in sorted(names):
        if "/" in package_section(package):
            raise ValueError(f"package {package} is not in Debian's free section; leave it out")
        shared_licence = None if package.startswith(COLLECTIONS) else read_licence(package)
        for path in package_files(package):
            digest = hashlib.sha256(path.read_bytes()).digest()
            names_read = None if digest in seen else read_names(path)
            seen.add(digest)
            family, own_licence = names_read or ("", "")
            licence = shared_licence or own_licence
            if family and licence:
                place = str(path.relative_to(FONT_ROOT))
                test = is_test_family(family)
                fonts.append(
                    Font(
                        path=place,
                        family=family,
                        package=package,
                        licence=licence,
                        test=test,
                        east_asia=package in east_asia,
                    )
                )
    return fonts


def save_fonts(fonts: list[Font], path: Path) -> None:
    """Writes the fonts as a JSON list, one object a font."""
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(font)) for font in fonts) + "\n]\n")


def load_fonts(path: Path) -> list[Font]:
    """Reads what `save_fonts` wrote."""
    return [Font(**entry) for entry in json.loads(path.read_text())]
