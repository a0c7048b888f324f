"""Which files of a folder are candidate images, from their names, kinds and first bytes only.

An image has the suffix or the first bytes of one; whatever has neither is a side file. Nothing is
passed over in silence: it becomes a BadFile, and counts as bad if it was meant as an image. Links
to files and class folders that are links are followed; no link below a class is, so no loop can be.
"""

import dataclasses
import os
import unicodedata
from pathlib import Path

from smidgen.data.formats import SNIFFED_BYTES, has_image_suffix, sniff
from smidgen.errors import SmidgenError, shown
from smidgen.files.names import check_utf8

SIDE_FILE = "side file"
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


def list_images(root: Path) -> tuple[dict[str, list[Path]], list[BadFile], bool]:
    """The candidates of every class in the order of names, what is skipped, and whether the folder
    itself is the one class.

    Raises: SmidgenError if `root` or a folder in it cannot be read, or two classes have one name.
    """
    below, files = _entries(root)
    bad: list[BadFile] = []
    folders = [path for path in below if _is_class(path, root, bad)]
    if not folders:
        name = class_name(root.resolve().name) or "images"
        return {name: _candidates(files, bad)}, bad, True
    reason = "misplaced: beside the class folders"
    bad += [_finding(one) or BadFile(path=Path(one.path), reason=reason) for one in files]
    images: dict[str, list[Path]] = {}
    for name, folder in sorted((class_name(path.name), path) for path in folders):
        if name in images:
            where = shown(str(root))
            raise SmidgenError(f'two folders of "{where}" are named "{shown(name)}": rename one')
        images[name], skipped = list_class(folder)
        bad += skipped
    return images, bad, False


def list_class(folder: Path) -> tuple[list[Path], list[BadFile]]:
    """The candidates directly in one class folder, by name, and what is skipped there.

    Raises: SmidgenError if it cannot be read.
    """
    bad: list[BadFile] = []
    below, files = _entries(folder)
    images = _candidates(files, bad)
    for path in below:
        bad += _below_class(path)
    return images, bad


def class_name(folder_name: str) -> str:
    """A folder's name as a class name: composed Unicode, so that it is equal on every system.

    Raises: SmidgenError if it is not UTF-8.
    """
    check_utf8(folder_name, "the folder")
    return unicodedata.normalize("NFC", folder_name)


def _entries(folder: Path) -> tuple[list[Path], list[os.DirEntry[str]]]:
    """The folders and all else in a folder, by name; entries know their kind without asking."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SmidgenError(
            f'cannot read the folder "{shown(str(folder))}": {error.strerror}'
        ) from error
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
        finding = _finding(entry)
        if finding is None:
            images.append(Path(entry.path))
        else:
            bad.append(finding)
    return images


def _finding(entry: os.DirEntry[str]) -> BadFile | None:
    """Why a file is no candidate, or None if it is one. Opens files without an image's suffix."""
    path, named = Path(entry.path), has_image_suffix(entry.name)
    if entry.name.startswith("."):
        return BadFile(path=path, reason="hidden file" if named else SIDE_FILE, counts=False)
    try:
        if not entry.is_file():
            path.stat()  # says why a link is broken
            # A named pipe would block whoever opens it.
            return BadFile(path=path, reason="not an image: not a regular file", counts=named)
        if named or _begins_as_image(path):
            return None
    except OSError as error:
        reason = "broken link" if path.is_symlink() else error.strerror or str(error)
        return BadFile(path=path, reason=f"unreadable: {reason}", counts=named)
    return BadFile(path=path, reason=SIDE_FILE, counts=False)


def _begins_as_image(path: Path) -> bool:
    with path.open("rb", buffering=0) as file:
        return sniff(file.read(SNIFFED_BYTES)) is not None


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
        found += [BadFile(path=path, reason=reason) for path in paths if _is_image(path)]
    empty = BadFile(path=folder, reason="misplaced: folder below the class level", counts=False)
    return found or [empty]


def _is_image(path: Path) -> bool:
    """Whether a file that is not used was meant as an image."""
    if has_image_suffix(path.name):
        return True
    try:
        return path.is_file() and _begins_as_image(path)
    except OSError:
        return False
