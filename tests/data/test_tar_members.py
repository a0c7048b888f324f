"""Our walk over a tar archive against the standard library's."""

import io
import tarfile
from pathlib import Path

import pytest

from smidgen.data.tar_members import tar_members
from smidgen.errors import SmidgenError

NAMES = (
    "a.txt",
    "folder/b.cls",
    "./c.cls",
    "with space/d e.cls",
    "ünï/ço.cls",
    "p" * 90 + "/" + "q" * 90 + ".cls",  # two fields of a POSIX header hold it
    "r" * 120 + ".cls",
    "s/" * 120 + "t.cls",
)


def write_tar(path: Path, names: tuple[str, ...], form: int, mtime: float = 0) -> Path:
    """Files of growing sizes, an empty one first; folders and links between them."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo(f"link{number}.cls")
            link.type, link.linkname = tarfile.SYMTYPE, "x" * 150
            if form != tarfile.USTAR_FORMAT:
                tar.addfile(link)
            member = tarfile.TarInfo(name)
            member.size, member.mtime = number * 300, mtime
            tar.addfile(member, io.BytesIO(bytes([number + 1]) * member.size))
    return path


@pytest.mark.parametrize("mtime", [0, 1.5e9 + 0.25])  # a fraction needs a pax header
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_places_and_contents_are_those_of_tarfile(
    tmp_path: Path, form: int, mtime: float
) -> None:
    names = NAMES[:6] if form == tarfile.USTAR_FORMAT else NAMES
    path = write_tar(tmp_path / "0.tar", names, form, mtime)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    found = tar_members(path, frozenset({"cls"}))
    assert [(m.name, m.offset, m.size) for m, _ in found] == expected
    assert [m.name for m, _ in found] == list(names)
    for number, (member, content) in enumerate(found):
        whole = bytes([number + 1]) * (number * 300)
        assert content == (whole if member.name.endswith(".cls") else None)
        assert path.read_bytes()[member.offset : member.offset + member.size] == whole


def test_sizes_beyond_octal_are_read(tmp_path: Path) -> None:
    """GNU writes 8 GiB and more in base 256; the file is sparse on the disk and never read."""
    size = 8 * 2**30 + 5
    member = tarfile.TarInfo("large.png")
    member.size = size
    path = tmp_path / "0.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + -(-size // 512) * 512 + 1024)
    ((found, _),) = tar_members(path, frozenset())
    assert (found.offset, found.size) == (512, size)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path, form: int) -> None:
    whole = write_tar(tmp_path / "whole.tar", NAMES, form).read_bytes()
    end = len(whole.rstrip(b"\0")) + 511 & ~511  # the last member ends in ones
    for length in [*range(0, end, 256), end, end + 511]:
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(SmidgenError, match=r'0.tar" is no tar file, or damaged or cut off'):
            tar_members(tmp_path / "0.tar", frozenset())
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])
    assert len(tar_members(tmp_path / "0.tar", frozenset())) == len(NAMES)


def test_a_damaged_header_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", NAMES[:4], tarfile.GNU_FORMAT)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar.getmembers()]
    for place in places:
        path.write_bytes(data[: place + 3] + b"\xff" + data[place + 4 :])
        with pytest.raises(SmidgenError, match="wrong checksum"):
            tar_members(path, frozenset())


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    for name, data in {"zip": b"PK\3\4" + bytes(2000), "text": b"hello " * 400}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SmidgenError, match="no tar file"):
            tar_members(tmp_path / name, frozenset())
    with pytest.raises(SmidgenError, match="No such file"):
        tar_members(tmp_path / "nothing", frozenset())
