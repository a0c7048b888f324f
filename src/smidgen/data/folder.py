"""An image folder: its classes, the files that can be used, and by name those that cannot.

Sub-folders are classes in the order of their names; a folder without sub-folders is one class.
Which names are looked at is decided in listing.py, what is inside a file in images.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

from smidgen.data.formats import FORMATS
from smidgen.data.images import (
    Facts,
    UnusableImage,
    content_key,
    decode,
    read_bytes,
    strict_pillow,
)
from smidgen.data.listing import BadFile, class_name, list_images
from smidgen.data.reading import ordered_map
from smidgen.errors import SmidgenError, shown
from smidgen.files.names import check_utf8, excerpt

Progress = Callable[[int, int], None]


class Source(Protocol):
    """Where the bytes of an image are that has no file of its own."""

    def read(self) -> bytes:
        """The bytes as they are stored, from any thread.

        Raises: UnusableImage if they cannot be read.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One image and the index of its class. Its bytes come from `read` alone.

    With a `source` the path only names the image (shard.tar/key.jpg): there is no such file.
    `captions` are those that its data set has beside it there.
    """

    path: Path
    class_number: int
    source: Source | None = None
    captions: tuple[str, ...] = ()

    def read(self) -> bytes:
        """The bytes, read once so that what is hashed is what is decoded.

        Raises: UnusableImage if they cannot be read, are empty or more than 1 GiB.
        """
        return read_bytes(self.path) if self.source is None else self.source.read()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Files of a folder with their classes; `bad` is everything that was seen and skipped.

    `layout` and `split` say how it was read (data/layouts); every path begins with `root`.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    bad: tuple[BadFile, ...] = ()
    flat: bool = False
    min_size: int = 8
    layout: str = "folder"
    split: str | None = None

    @property
    def class_numbers(self) -> tuple[int, ...]:
        return tuple(file.class_number for file in self.files)

    @property
    def num_bad(self) -> int:
        """Skipped files that were meant as images."""
        return sum(file.counts for file in self.bad)

    @property
    def bad_share(self) -> float:
        """Bad files as a share of all files that were meant as images."""
        return self.num_bad / max(1, self.num_bad + len(self.files))

    def name(self, path: Path) -> str:
        """The path below the root with forward slashes, as it is shown."""
        return shown(path.relative_to(self.root).as_posix())

    def skipped(self) -> list[dict[str, str | bool]]:
        """Every skipped file as JSON: `file`, `reason`, and whether it `counts` as a bad file."""
        return [
            {"file": self.name(bad.path), "reason": bad.reason, "counts": bad.counts}
            for bad in self.bad
        ]

    def listed(self, bad: Sequence[BadFile], show: int = 10) -> list[str]:
        """`name: reason` of the first `show` files, then how many more; files that count first."""
        ordered = sorted(bad, key=lambda file: not file.counts)
        lines = [f"{self.name(file.path)}: {file.reason}" for file in ordered[:show]]
        return lines + ([f"… and {len(bad) - show:,} more"] if len(bad) > show else [])


def scan(
    folder: str | Path,
    *,
    min_size: int = 8,
    decode: bool = True,
    progress: Progress | None = None,
) -> ImageFolder:
    """Lists a folder and decodes every file once, in threads, to find those that cannot be used.

    `decode=False` looks at names only: for `LatentCache.build`, which decodes and finds the same.
    `min_size`: the shortest usable side in pixels. `progress(done, total)` is called for each file.

    Raises: SmidgenError for no such folder, no images in it, a class folder without a usable image,
        or a folder whose name is not UTF-8.
    """
    root = Path(folder)
    check_root(root)
    if not root.is_dir():
        problem = "this is a file, not a folder" if root.exists() else "no such folder"
        raise SmidgenError(
            f'{problem}: "{shown(str(root))}"; give a folder of images, or of one sub-folder for '
            "each class"
        )
    images, bad, flat = list_images(root)
    paths = enumerate(images.values())
    listed = ImageFolder(
        root=root,
        classes=tuple(images),
        files=tuple(ImageFile(path=path, class_number=label) for label, ps in paths for path in ps),
        bad=tuple(bad),
        flat=flat,
        min_size=min_size,
    )
    check_classes(listed)
    return look_at_all(listed, progress)[0] if decode else listed


def check_root(root: Path) -> None:
    """Refuses a place that the records of a run could not name.

    Raises: SmidgenError if it is not UTF-8, or the folder that a relative path means is not.
    """
    check_utf8(str(root), "the folder")
    check_utf8(root.resolve().name, "the folder")


class Look(NamedTuple):
    """What was seen of a usable file: the SHA-256 of its bytes, and its facts."""

    content: str
    facts: Facts


def look_at_all(
    listed: ImageFolder, progress: Progress | None = None
) -> tuple[ImageFolder, list[Look]]:
    """The folder without the files that cannot be used, and what was seen of each of its files,
    which are decoded once, in threads.

    Raises: SmidgenError if a class has no usable image.
    """

    def look(file: ImageFile) -> Look | str:
        try:
            data = file.read()
            return Look(content_key(data), decode(data, file.path, listed.min_size)[1])
        except UnusableImage as error:
            return str(error)

    good: list[ImageFile] = []
    looks: list[Look] = []
    bad: list[BadFile] = []
    with strict_pillow(), closing(ordered_map(look, listed.files)) as found:
        for file, seen in zip(listed.files, found, strict=True):
            if isinstance(seen, Look):
                good.append(file)
                looks.append(seen)
            else:
                bad.append(BadFile(path=file.path, reason=seen))
            if progress is not None:
                progress(len(good) + len(bad), len(listed.files))
    return with_findings(listed, good, bad), looks


def with_findings(
    folder: ImageFolder, good: Sequence[ImageFile], bad: Sequence[BadFile]
) -> ImageFolder:
    """The folder with `good` as its files and `bad` added to what was skipped, in path order.

    Raises: SmidgenError if a class has no usable image left.
    """
    skipped = sorted([*folder.bad, *bad], key=lambda file: file.path)
    found = dataclasses.replace(folder, files=tuple(good), bad=tuple(skipped))
    check_classes(found)
    return found


def check_bad_share(folder: ImageFolder, limit: float = 0.05) -> None:
    """Refuses a folder of which more than the share `limit` are bad files, listing them.

    Raises: SmidgenError.
    """
    if folder.bad_share <= limit:
        return
    total = folder.num_bad + len(folder.files)
    listed = folder.listed([bad for bad in folder.bad if bad.counts])
    raise SmidgenError(
        f'{folder.num_bad:,} of {total:,} image files in "{shown(str(folder.root))}" cannot be '
        f"used ({folder.bad_share:.1%}; allowed are {limit:.1%}): repair or remove them, or raise "
        f"the limit with --max-bad-share (max_bad_share in Python): {'; '.join(listed)}"
    )


def check_classes(folder: ImageFolder) -> None:
    """Refuses a folder without images and a class without any, saying what was found instead.

    Raises: SmidgenError.
    """
    found = set(folder.class_numbers)
    empty = [name for label, name in enumerate(folder.classes) if label not in found]
    if folder.files and not empty:
        return
    names = ", ".join(f'"{excerpt(name)}"' for name in empty[:10])
    more = f" and {len(empty) - 10:,} more" if len(empty) > 10 else ""
    what = f'no usable image in "{shown(str(folder.root))}"'
    if not folder.classes:
        raise SmidgenError(f"{what}: its lists name no class")
    if folder.layout != "folder":
        split = f" of its split {folder.split}" if folder.split else ""
        what += f" for class {names}{more}{split}"
        listed = folder.listed([bad for bad in folder.bad if bad.counts])
        raise SmidgenError(what + (f"; skipped: {'; '.join(listed)}" if listed else ""))
    if not folder.flat:
        what += f" for class folder {names}{more}"
    bad = [b for b in folder.bad if folder.flat or _class_of(folder, b) in empty]
    nested = sorted({b.path.parent for b in bad if b.kind == "misplaced" and b.counts})
    if nested:
        inside = shown(str(folder.root / nested[0].relative_to(folder.root).parts[0]))
        what += f': its images lie in folders inside it; perhaps "{inside}" is the folder to give'
    elif bad:
        what += f"; skipped: {'; '.join(folder.listed(bad))}"
    else:
        what += f"; add images ({' '.join(FORMATS)})" + ("" if folder.flat else " or remove it")
    raise SmidgenError(what)


def _class_of(folder: ImageFolder, bad: BadFile) -> str:
    parts = bad.path.relative_to(folder.root).parts
    return class_name(parts[0]) if len(parts) > 1 else ""
