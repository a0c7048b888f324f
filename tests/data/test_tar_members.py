"""Our walk over a tar archive against the standard library's."""

import io
import os
import sys
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


def nothing(name: str) -> int:
    """How much of a file is wanted."""
    return 0


@pytest.mark.parametrize("mtime", [0, 1.5e9 + 0.25])  # a fraction needs a pax header
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_places_and_contents_are_those_of_tarfile(
    tmp_path: Path, form: int, mtime: float
) -> None:
    names = NAMES[:6] if form == tarfile.USTAR_FORMAT else NAMES
    path = write_tar(tmp_path / "0.tar", names, form, mtime)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    found = tar_members(path, lambda name: 700 if name.endswith(".cls") else 0)
    links = [m for m, _ in found if m.odd is not None]
    assert {(m.odd, m.size) for m in links} <= {("a link", 0)}
    assert len(links) == (0 if form == tarfile.USTAR_FORMAT else len(names))
    found = [(m, content) for m, content in found if m.odd is None]
    assert [(m.name, m.offset, m.size) for m, _ in found] == expected
    assert [m.name for m, _ in found] == list(names)
    for number, (member, content) in enumerate(found):
        whole = bytes([number + 1]) * (number * 300)
        assert content == (whole[:700] if member.name.endswith(".cls") else b"")
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
    ((found, _),) = tar_members(path, nothing)
    assert (found.offset, found.size) == (512, size)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path, form: int) -> None:
    whole = write_tar(tmp_path / "whole.tar", NAMES, form).read_bytes()
    end = len(whole.rstrip(b"\0")) + 511 & ~511  # the last member ends in ones
    for length in [*range(0, end, 256), end, end + 511]:
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(SmidgenError, match=r'0.tar" is no tar file, or damaged or cut off'):
            tar_members(tmp_path / "0.tar", nothing)
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])
    found = tar_members(tmp_path / "0.tar", nothing)
    assert [member.name for member, _ in found if member.odd is None] == list(NAMES)


def test_a_damaged_header_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", NAMES[:4], tarfile.GNU_FORMAT)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar.getmembers()]
    for place in places:
        path.write_bytes(data[: place + 3] + b"\xff" + data[place + 4 :])
        with pytest.raises(SmidgenError, match="wrong checksum"):
            tar_members(path, nothing)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    for name, data in {"zip": b"PK\3\4" + bytes(2000), "text": b"hello " * 400}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SmidgenError, match="no tar file"):
            tar_members(tmp_path / name, nothing)
    with pytest.raises(SmidgenError, match="No such file"):
        tar_members(tmp_path / "nothing", nothing)


def header(kind: bytes = b"0", size: bytes = b"00000000000\0", name: bytes = b"000.png") -> bytes:
    """A header with these fields as they are, and the right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes) -> bytes:
    """A pax header of these records as they are."""
    data = b"".join(records)
    padded = data + bytes(-len(data) % 512)
    return header(b"x", b"%011o\0" % len(data)) + padded


@pytest.mark.parametrize(
    "damaged",
    [
        header(size=b"-0000001000\0"),  # leads back for ever
        header(size=b"0_0000001000"),
        header(size=b"00000000009\0"),
        header(size=b"\xff" * 11 + b"\0"),  # a negative number in base 256
        header(size=b"\x80" + b"\x7f" * 11),
        header(size=b"77777777777\0"),
        header(b"x", b"-0000001000\0"),
        header(b"L", b"-0000001000\0"),
        header(b"L", b"00010000000\0") + bytes(2**21),  # a name of 2 MiB
        pax(b"14 size=-1000\n") + header(),
        pax(b"14 size=1_000\n") + header(),
        pax(b"18 size=99999999999\n") + header(),
        pax(b"-9 path=a\n") + header(),
        pax(b"99 path=a\n") + header(),
        pax(b"0 path=a\n") + header(),
        pax(b"no record at all\n") + header(),
        pax(b"path=a") + header(),
        pax(b"9" * 5000 + b" path=a\n") + header(),
        header(b"S") + bytes(512),
        pax(b"22 GNU.sparse.major=1\n") + header(),
    ],
)
def test_odd_sizes_and_headers_are_refused_in_one_line(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(header(name=b"first.png") + damaged + bytes(1024))
    with pytest.raises(SmidgenError, match=r'0.tar" is no tar file, or damaged') as caught:
        tar_members(path, nothing)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_a_header_of_many_records_takes_no_longer_than_its_length(tmp_path: Path) -> None:
    """A million bytes of records: were the rest copied for each, it would take minutes."""
    path = tmp_path / "0.tar"
    path.write_bytes(pax(b"6 a=b\n" * 170_000) + header() + bytes(1024))
    ((member, _),) = tar_members(path, nothing)
    assert member.name == "000.png"


def test_links_devices_and_pipes_have_no_content_and_folders_are_left_out(tmp_path: Path) -> None:
    size = b"00000001000\0"  # of what a link leads to: nothing of it follows
    kinds = {b"1": "a link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe"}
    blocks = [header(kind, size, b"%s.png" % kind) for kind in kinds]
    blocks += [header(b"5", size, b"folder"), header(b"\0", name=b"old folder/")]
    blocks += [header(b"V", name=b"label"), header(b"7", name=b"plain.png")]
    (tmp_path / "0.tar").write_bytes(b"".join(blocks) + bytes(1024))
    found = [(m.name, m.odd, m.size) for m, _ in tar_members(tmp_path / "0.tar", nothing)]
    assert found == [
        *((f"{kind.decode()}.png", odd, 0) for kind, odd in kinds.items()),
        ("label", "of an unknown kind", 0),
        ("plain.png", None, 0),
    ]


def test_a_long_name_and_a_long_link_may_stand_in_any_order(tmp_path: Path) -> None:
    name = b"n" * 120 + b".png"
    long_name = header(b"L", b"%011o\0" % len(name)) + name + bytes(-len(name) % 512)
    long_link = header(b"K", b"%011o\0" % 3) + b"xyz" + bytes(509)
    for number, blocks in enumerate((long_name + long_link, long_link + long_name)):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(blocks + header(b"2") + bytes(1024))
        assert [m.name for m, _ in tar_members(path, nothing)] == [name.decode()]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_pipe_a_device_or_a_folder_is_refused_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "zero"):
        with pytest.raises(SmidgenError, match=r"it is (a folder|no ordinary file)"):
            tar_members(tmp_path / f"{name}.tar", nothing)
