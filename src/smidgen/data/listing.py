"""Which files of a folder are candidate images, from their names, kinds and first bytes only.

Nothing that was meant as an image is passed over in silence: it becomes a BadFile. Links to files
and class folders that are links are followed; no link below a class is, so no loop can be.
"""

import dataclasses
import os
import unicodedata
from pathlib import Path

from smidgen.data.images import FORMATS, UNSUPPORTED, sniff
from smidgen.errors import SmidgenError

# Files that belong beside images: listed when skipped, but no sign of a broken data set.
SIDE_SUFFIXES = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".md", ".html", ".xml", ".yaml", ".yml"),
    *(".toml", ".caption", ".parquet", ".npz"),
)
SIDE_NAMES = ("thumbs.db", "desktop.ini", "license", "licence", "readme", "copying")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadFile:
    """One file that is not used. `counts`: it was meant as an image, so it counts as a bad file."""

    path: Path
    reason: str
    counts: bool = True

    @property
    def kind(self) -> str:
        """The first words of the reason, to count by."""
        return self.reason.split(":")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """Candidate images by class name; `flat` if the folder itself is the one class."""

    flat: bool
    images: dict[str, list[Path]]
    bad: list[BadFile]


def list_images(root: Path) -> Listing:
    """The candidates of every class, in the order of names.

    Raises:
        SmidgenError: `root` or a folder in it cannot be read, or two classes have one name.
    """
    below, files = _entries(root)
    bad: list[BadFile] = []
    folders = [path for path in below if _is_class(path, root, bad)]
    if not folders:
        name = class_name(root.resolve().name) or "images"
        return Listing(flat=True, images={name: _candidates(files, bad)}, bad=bad)
    for entry in files:
        bad += _beside_classes(entry)
    images: dict[str, list[Path]] = {}
    for name, folder in sorted((class_name(path.name), path) for path in folders):
        if name in images:
            raise SmidgenError(f'two folders of "{root}" are named "{name}": rename one')
        images[name], skipped = list_class(folder)
        bad += skipped
    return Listing(flat=False, images=images, bad=bad)


def list_class(folder: Path) -> tuple[list[Path], list[BadFile]]:
    """The candidates directly in one class folder, by name, and what is skipped there.

    Raises:
        SmidgenError: it cannot be read.
    """
    bad: list[BadFile] = []
    below, files = _entries(folder)
    images = _candidates(files, bad)
    for path in below:
        bad += _below_class(path)
    return images, bad


def class_name(folder_name: str) -> str:
    """A folder's name as a class name: composed Unicode, so that it is equal on every system."""
    return unicodedata.normalize("NFC", printable(folder_name))


def printable(text: str) -> str:
    """`text` with what cannot be encoded (file names of arbitrary bytes) or shown as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _entries(folder: Path) -> tuple[list[Path], list[os.DirEntry[str]]]:
    """The folders and all else in a folder, by name; entries know their kind without asking."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SmidgenError(f'cannot read the folder "{folder}": {error.strerror}') from error
    folders = [Path(entry.path) for entry in entries if _is_folder(entry)]
    return folders, [entry for entry in entries if not _is_folder(entry)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where nobody may look
        return False


def _is_class(path: Path, root: Path, bad: list[BadFile]) -> bool:
    if path.name.startswith(".") or path.name in SYSTEM_FOLDERS:
        bad.append(BadFile(path=path, reason="hidden or system folder", counts=False))
        return False
    if path.is_symlink() and root.resolve().is_relative_to(path.resolve()):
        bad.append(BadFile(path=path, reason="link: leads back to its own folder", counts=False))
        return False
    return True


def _candidates(files: list[os.DirEntry[str]], bad: list[BadFile]) -> list[Path]:
    images: list[Path] = []
    for entry in files:
        path = Path(entry.path)
        if path.name.startswith(".") and not _has_image_name(path):
            continue
        finding = _finding(entry, path)
        if finding is None:
            images.append(path)
        else:
            bad.append(finding)
    return images


def _finding(entry: os.DirEntry[str], path: Path) -> BadFile | None:
    """Why a file is no candidate, or None if it is one. Opens files without an image's name."""
    try:
        if not entry.is_file():
            path.stat()  # says why a link is broken
            # A named pipe would block whoever opens it.
            return BadFile(path=path, reason="not an image: not a regular file", counts=False)
        if path.name.startswith("."):
            return BadFile(path=path, reason="hidden file", counts=False)
        if _has_image_name(path):
            return None
        with path.open("rb") as file:
            found = sniff(file.read(32))
    except OSError as error:
        reason = "broken link" if path.is_symlink() else error.strerror or str(error)
        return BadFile(path=path, reason=f"unreadable: {reason}", counts=_has_image_name(path))
    if found is not None:
        reason = f"wrongly named: {found} data in a {path.suffix or 'nameless'} file"
        return BadFile(path=path, reason=reason)
    if path.suffix.lower() in SIDE_SUFFIXES or path.name.lower() in SIDE_NAMES:
        return BadFile(path=path, reason="side file", counts=False)
    return BadFile(path=path, reason="not an image")


def _has_image_name(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in FORMATS or suffix in UNSUPPORTED


def _beside_classes(entry: os.DirEntry[str]) -> list[BadFile]:
    path = Path(entry.path)
    if path.name.startswith("."):
        return []
    if _has_image_name(path):
        return [BadFile(path=path, reason="misplaced: beside the class folders")]
    return [BadFile(path=path, reason="side file", counts=False)]


def _below_class(folder: Path) -> list[BadFile]:
    """The images in a folder inside a class folder; a link there is named and not followed."""
    if folder.name.startswith(".") or folder.name in SYSTEM_FOLDERS:
        return [BadFile(path=folder, reason="hidden or system folder", counts=False)]
    if folder.is_symlink():
        return [BadFile(path=folder, reason="misplaced: link below the class level", counts=False)]
    found: list[BadFile] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        reason = "misplaced: in a folder below the class level"
        paths = (Path(parent, name) for name in sorted(names))
        found += [BadFile(path=path, reason=reason) for path in paths if _has_image_name(path)]
    empty = BadFile(path=folder, reason="misplaced: folder below the class level", counts=False)
    return found or [empty]
