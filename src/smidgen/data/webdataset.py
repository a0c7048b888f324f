"""WebDataset shards: images read in place from .tar files, by the range of their bytes.

Files of a shard that share the name before its first dot are one sample: 000.jpg, 000.cls. Nothing
is unpacked; an image is called shard.tar/000.jpg.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smidgen.data.caption_tables import COLUMNS
from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.data.formats import FORMATS, SNIFFED_BYTES, has_image_suffix, sniff
from smidgen.data.images import MAX_FILE_BYTES, UnusableImage
from smidgen.data.layout import Layout, contents, only_used, read_lines, safe_names
from smidgen.data.listing import SIDE_FILE, SYSTEM_FOLDERS, BadFile
from smidgen.data.tar_members import Member, tar_members
from smidgen.errors import SmidgenError

META = re.compile(r"(.*/)?__[^/]*__")  # names that the format keeps for itself
CLASS_NAMES = "classnames.txt"
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test")

# Where a class may be, the surest first; the whole data set uses one of these.
SOURCES = ("cls", "json", "txt", "folder")
JSON_FIELDS = ("class_name", "label_name", "class", "label", "cls", "category")
MAX_CLASS_BYTES = 2**20  # of a file that says a class
NUMBER = re.compile(r"[0-9]{1,18}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes inside a larger file."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises: UnusableImage if they are none or more than 1 GiB, or not there any more.
        """
        if self.size == 0:
            raise UnusableImage("unreadable", "empty file")
        if self.size > MAX_FILE_BYTES:
            raise UnusableImage("too large", "more than 1 GiB")
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise UnusableImage("unreadable", error.strerror or str(error)) from error
        if len(data) < self.size:
            raise UnusableImage("truncated", f"{self.path.name} ends inside it")
        return data


class Sample(NamedTuple):
    """One image of a shard, the class that each source gives it, if any, and its captions."""

    path: Path
    image: ByteRange
    found: dict[str, str]
    captions: dict[str, tuple[str, ...]]


def read_shards(root: Path, split: str | None) -> ImageFolder:
    """Every sample of every shard. The classes come from .cls, else .json, else .txt, else the
    folder in the sample's name; without any of these all images are one class.

    Texts that say no class, most of which occur once where nothing surer says it, are captions; so
    are those in .json. A class number is a line of classnames.txt, where that is there. Classes
    without an image are left out.

    Raises: SmidgenError for no shards, or a damaged one.
    """
    bad: list[BadFile] = []
    samples = [s for shard in find_shards(root, split) for s in _samples(shard, bad)]
    if not samples:
        raise SmidgenError(f'no shard of "{root}" has an image ({" ".join(FORMATS)})')
    source = _class_source(samples)
    if source is None:
        name = root.resolve().name or "images"
        samples = [s._replace(found={"none": name}) for s in samples]
        return _folder(root, samples, "none", [name], bad)
    if source == "txt":
        samples = [s._replace(captions={**s.captions, "txt": ()}) for s in samples]
    values = {sample.found[source] for sample in samples if source in sample.found}
    return _folder(root, samples, source, sorted(values, key=_order), bad)


def _class_source(samples: Sequence[Sample]) -> str | None:
    """The surest source of classes that a sample has; texts most of which occur once are none."""
    for source in SOURCES:
        counts = Counter(sample.found[source] for sample in samples if source in sample.found)
        single = sum(count == 1 for count in counts.values())
        if counts and not (source == "txt" and len(samples) > 1 and 2 * single > counts.total()):
            return source
    return None


def _order(value: str) -> tuple[bool, int, str]:
    """Numbers as numbers, before names."""
    return (False, int(value), "") if NUMBER.fullmatch(value) else (True, 0, value)


def _folder(
    root: Path, samples: Sequence[Sample], source: str, values: list[str], bad: list[BadFile]
) -> ImageFolder:
    names = values
    if (root / CLASS_NAMES).is_file() and all(map(NUMBER.fullmatch, values)):
        names = read_lines(root / CLASS_NAMES)
        if int(values[-1]) >= len(names):
            raise SmidgenError(
                f"class {values[-1]} is beyond the {len(names)} lines of {root / CLASS_NAMES}"
            )
        values = [str(number) for number in range(len(names))]
        samples = [
            s._replace(found={source: str(int(s.found[source]))} if source in s.found else {})
            for s in samples
        ]
    labels = {value: label for label, value in enumerate(values)}
    files: list[ImageFile] = []
    for sample in samples:
        if source in sample.found:
            label = labels[sample.found[source]]
            captions = sample.captions.get("txt") or sample.captions.get("json") or ()
            files.append(
                ImageFile(
                    path=sample.path, class_number=label, source=sample.image, captions=captions
                )
            )
        else:
            bad.append(BadFile(path=sample.path, reason=f"no class: its sample has no {source}"))
    folder = ImageFolder(
        root=root,
        classes=safe_names(names),
        files=tuple(files),
        bad=tuple(bad),
        flat=source == "none",
    )
    return only_used(folder)


def find_shards(root: Path, split: str | None) -> list[Path]:
    """The .tar files in `root`/`split`, or those in `root` with the split's name in theirs; without
    a split all in `root`.

    Raises: SmidgenError if there are none, or they are of several splits and none was asked for.
    """
    if root.is_file() and root.suffix == ".tar":
        raise SmidgenError(f"{root} is one shard: give its folder, {root.parent}")
    here = _shards(root)
    if split is not None:
        inside = _shards(root / split)
        shards = inside or [shard for shard in here if split in _words(shard)]
    else:
        shards = here
        splits = {word for shard in here for word in _words(shard) if word in SPLIT_WORDS}
        splits |= {path.name for path in _entries(root) if _shards(path)}
        if len(splits) > 1 or (splits and not here):
            raise SmidgenError(
                f'"{root}" holds shards of several splits; give one: {", ".join(sorted(splits))}'
            )
    if shards:
        return shards
    where = f'"{root}"' + (f' for the split "{split}"' if split is not None else "")
    hint = ""
    if any(path.name.endswith(COMPRESSED) for path in _entries(root)):
        hint = "; compressed shards cannot be read in place: unpack them to .tar"
    raise SmidgenError(f"looked for .tar shards in {where}; found: {contents(root)}{hint}")


def _shards(folder: Path) -> list[Path]:
    """The archives in a folder; hidden ones are what a Mac keeps beside them."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def _entries(root: Path) -> list[Path]:
    return list(root.iterdir()) if root.is_dir() else []


def _words(shard: Path) -> list[str]:
    return re.split(r"[-_.]", shard.stem)


def _samples(shard: Path, bad: list[BadFile]) -> list[Sample]:
    """The samples of one shard in the order in which they lie there."""
    images: dict[str, list[tuple[str, ByteRange]]] = {}
    found: dict[str, dict[str, str]] = {}
    captions: dict[str, dict[str, tuple[str, ...]]] = {}
    for member, data in tar_members(shard, _bytes_wanted):
        key, extension = _split_name(member.name)
        if META.fullmatch(member.name):
            continue
        if finding := _finding(shard, member):
            bad.append(finding)
        elif has_image_suffix(member.name) or (extension not in SOURCES and sniff(data)):
            place = ByteRange(path=shard, offset=member.offset, size=member.size)
            images.setdefault(key, []).append((member.name, place))
        elif extension not in SOURCES:
            bad.append(BadFile(path=_place(shard, member.name), reason=SIDE_FILE, counts=False))
        elif len(data) == member.size:
            captions.setdefault(key, {})[extension] = _captions_in(extension, data)
            if (value := _class_in(extension, data)) is not None:
                found.setdefault(key, {})[extension] = value
    samples = []
    for key, places in images.items():
        # 000.jpg before 000.mask.png, which is something about it
        places.sort(key=lambda item: _split_name(item[0])[1].count("."))
        name, image = places[0]
        folder = Path(key).parent.as_posix().removeprefix("./")
        classes = found.get(key, {})
        if folder not in (".", ""):
            classes["folder"] = folder.rpartition("/")[2]
        samples.append(Sample(_place(shard, name), image, classes, captions.get(key, {})))
        reason = "not used: a further file of its sample"
        further = [_place(shard, other) for other, _ in places[1:]]
        bad += [BadFile(path=path, reason=reason, counts=False) for path in further]
    for key in [key for key in found if key not in images]:
        # a class speaks of an image, texts may be of anything
        counts = "cls" in found[key]
        reason = "no image: its sample has none" if counts else SIDE_FILE
        bad.append(BadFile(path=_place(shard, key), reason=reason, counts=counts))
    return samples


def _bytes_wanted(name: str) -> int:
    """How much of a file must be seen to know what it is, or which class it says."""
    if _split_name(name)[1] in SOURCES:
        return MAX_CLASS_BYTES
    return 0 if has_image_suffix(name) else SNIFFED_BYTES


def _finding(shard: Path, member: Member) -> BadFile | None:
    """Why a file is not looked into, whatever it holds."""
    named, parts = has_image_suffix(member.name), member.name.split("/")
    path = _place(shard, member.name)
    if ".." in parts or "\0" in member.name:
        reason = 'unsafe name: it has ".." or a null character'
        return BadFile(path=path, reason=reason, counts=named)
    if any(part in SYSTEM_FOLDERS or part.startswith(".") for part in parts if part != "."):
        return BadFile(path=path, reason="hidden file" if named else SIDE_FILE, counts=False)
    if member.odd is not None:
        return BadFile(path=path, reason=f"not an image: {member.odd}", counts=named)
    return None


def _place(shard: Path, name: str) -> Path:
    """What an image is called: below the shard, even if its name was that of a whole path."""
    return shard / name.lstrip("/")


def _split_name(name: str) -> tuple[str, str]:
    """`a/000.seg.png` as `a/000` and `seg.png`."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def _class_in(extension: str, data: bytes) -> str | None:
    if extension == "json":
        fields = _fields(data)
        values = [fields.get(name) for name in JSON_FIELDS]
        return next((str(v) for v in values if type(v) in (str, int) and v != ""), None)
    return data.decode("utf-8", "replace").strip() or None


def _captions_in(extension: str, data: bytes) -> tuple[str, ...]:
    """Each line of a text, or those of the first field of captions in .json."""
    if extension == "txt":
        return tuple(
            s for line in data.decode("utf-8", "replace").splitlines() if (s := line.strip())
        )
    fields = _fields(data) if extension == "json" else {}
    found = next((fields[name] for name in COLUMNS if fields.get(name)), [])
    texts = found if isinstance(found, list) else [found]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _fields(data: bytes) -> dict[str, Any]:
    """Those of a JSON object, none of anything else."""
    try:
        # which takes NaN too, as other programs write it
        fields: Any = json.loads(data.decode("utf-8", "replace").strip())
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


WEBDATASET = Layout(
    title="a WebDataset",
    read=read_shards,
    looked_for=".tar shards, in a folder for each split or with the split in their names; classes "
    f"in .cls, .json or .txt beside each image, or folders in its name; {CLASS_NAMES} for numbers; "
    "captions in .txt or .json",
)
