"""What a scan finds, names, counts and refuses; listing.py is tested here too, through the scan."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from smidgen.data.folder import ImageFolder, check_bad_share, look_at_all, scan
from smidgen.errors import SmidgenError, shown
from tests.tiny.images import noise, snapshot, write_folder, write_image


def reasons(folder: ImageFolder) -> dict[str, str]:
    return {folder.name(bad.path): bad.reason for bad in folder.bad}


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path, ("zeta", "Alpha", "beta 2", "Ωmega"), per_class=2)
    folder = scan(tmp_path)
    assert folder.classes == ("Alpha", "beta 2", "zeta", "Ωmega")
    assert folder.class_numbers == (0, 0, 1, 1, 2, 2, 3, 3)
    for file in folder.files:
        assert file.path.parent.name == folder.classes[file.class_number]
    assert folder.bad == ()


def test_a_flat_folder_is_one_class_named_like_it(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "ünïcode and space.webp"):
        write_image(tmp_path / "my photos" / name)
    folder = scan(tmp_path / "my photos")
    assert folder.classes == ("my photos",)
    names = [folder.name(file.path) for file in folder.files]
    assert names == ["a.JPG", "b.png", "ünïcode and space.webp"]


def test_decomposed_and_composed_names_are_the_same_class_name(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cafe\u0301",))
    assert scan(tmp_path).classes == ("caf\u00e9",)
    write_folder(tmp_path, ("caf\u00e9",))
    if len(list(tmp_path.iterdir())) == 2:  # some file systems do not tell the two apart
        with pytest.raises(SmidgenError, match=r"two folders .* are named"):
            scan(tmp_path)


def test_every_bad_file_is_named_with_its_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), per_class=2)
    good = (tmp_path / "a" / "0.png").read_bytes()
    jpeg = write_image(tmp_path / "a" / "good.jpg").read_bytes()
    frames = [Image.fromarray(noise(seed)) for seed in range(2)]
    files = {
        "cut.png": good[:200],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "photo.HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
        "phone.txt": b"\0\0\0\x18ftypheic" + bytes(100),
        "camera.png": b"8BPS" + bytes(100),
    }
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    frames[0].save(tmp_path / "a" / "film.gif", save_all=True, append_images=frames[1:])
    write_image(tmp_path / "a" / "tiny.png", width=40, height=7)
    Image.fromarray(noise(3)).save(tmp_path / "a" / "raw.tif")
    (tmp_path / "a" / "raw.tif").rename(tmp_path / "a" / "raw.NEF")
    (tmp_path / "a" / "broken link.png").symlink_to(tmp_path / "nowhere.png")

    folder = scan(tmp_path)
    assert [file.path.name for file in folder.files] == ["0.png", "1.png", "good.jpg"]
    found = {name.removeprefix("a/"): reason for name, reason in reasons(folder).items()}
    start = {
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "empty.png": "unreadable: empty file",
        "page.png": "unreadable: not an image",
        "photo.HEIC": "unsupported: HEIC is not read",
        "phone.txt": "unsupported: HEIC is not read",
        "camera.png": "unsupported: PSD is not read",
        "raw.NEF": "unsupported: .NEF is not read",
        "film.gif": "animated: 2 frames",
        "tiny.png": "tiny: 40 x 7 pixels",
        "broken link.png": "unreadable: broken link",
    }
    assert found.keys() == start.keys()
    for name, beginning in start.items():
        assert found[name].startswith(beginning), (name, found[name])
    assert folder.num_bad == len(start)
    assert folder.bad_share == folder.num_bad / (folder.num_bad + 3)


def test_images_are_known_by_their_bytes_whatever_their_suffix(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), per_class=2)
    for form, names in {
        "PNG": ("really.jpg", "hidden image.txt"),
        "JPEG": ("nameless", "phone.heic", "dot."),
        "WEBP": ("saved.jpg", "saved.jpg_large"),
        "AVIF": ("one.dat",),
        "GIF": ("two.dat",),
        "BMP": ("three.dat",),
        "TIFF": ("four.dat",),
        "PPM": ("five.dat",),
        "JPEG2000": ("six.dat", "other.j2k"),
    }.items():
        for number, name in enumerate(names):
            Image.fromarray(noise(number)).save(tmp_path / "a" / name, form)
    folder = scan(tmp_path)
    assert folder.bad == ()
    assert len(folder.files) == 2 + 14
    assert scan(tmp_path, decode=False).files == folder.files


def test_what_has_neither_suffix_nor_first_bytes_of_an_image_is_a_side_file(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"), per_class=1)
    side = {
        "0.xmp": b"<x:xmpmeta/>",
        "0.pt": b"PK\3\4archive",
        "0.npz": b"PK\3\4archive",
        "0.safetensors": bytes(8),
        "0.caption": b"P1 is a nice car",
        "0.txt": b"BMW builds cars and motorcycles.",
        "0.json": b"{}",
        "film.mp4": b"\0\0\0\x18ftypmp42" + bytes(100),
        "Thumbs.db": b"windows",
        "LICENSE": b"",
        ".DS_Store": b"\0\0\0\1Bud1",
        "cut": b"\x89PN",
    }
    for name, data in side.items():
        for place in (tmp_path, tmp_path / "a"):
            (place / name).write_bytes(data)
    folder = scan(tmp_path)
    assert len(folder.files) == 2
    assert reasons(folder) == {
        f"{place}{name}": "side file" for name in side for place in ("", "a/")
    }
    assert (folder.num_bad, folder.bad_share) == (0, 0)


def test_a_side_file_is_opened_once_and_an_image_never_to_list_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, ("a",), per_class=3)
    (tmp_path / "a" / "0.xmp").write_text("x")
    opened: list[str] = []
    open_file = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *more, **all: (opened.append(path.name), open_file(path, *more, **all))[1],
    )
    scan(tmp_path, decode=False)
    assert opened == ["0.xmp"]


def test_names_only_scan_defers_what_is_inside_files(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), per_class=2)
    (tmp_path / "a" / "cut.png").write_bytes(b"\x89PNG")
    assert len(scan(tmp_path, decode=False).files) == 3
    assert len(scan(tmp_path).files) == 2


def test_min_size_is_the_shortest_side(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", width=30, height=12)
    write_image(tmp_path / "b.png", width=13, height=13)
    folder = scan(tmp_path, min_size=13)
    assert [file.path.name for file in folder.files] == ["b.png"]
    assert reasons(folder) == {"a.png": "tiny: 30 x 12 pixels, at least 13 a side are needed"}


def test_images_on_another_level_are_listed_not_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"))
    write_image(tmp_path / "a" / "more" / "deep" / "x.png")
    write_image(tmp_path / "beside.png")
    shutil.copy(tmp_path / "beside.png", tmp_path / "beside.bak")
    shutil.copy(tmp_path / "beside.png", tmp_path / "a" / "more" / "y.bak")
    (tmp_path / "a" / "more" / "notes.txt").write_text("x")
    (tmp_path / "b" / "nothing").mkdir()
    folder = scan(tmp_path)
    assert len(folder.files) == 6
    assert reasons(folder) == {
        "a/more/deep/x.png": "misplaced: in a folder below the class level",
        "a/more/y.bak": "misplaced: in a folder below the class level",
        "b/nothing": "misplaced: folder below the class level",
        "beside.bak": "misplaced: beside the class folders",
        "beside.png": "misplaced: beside the class folders",
    }
    assert folder.num_bad == 4


def test_links_to_files_are_used_and_loops_are_not_followed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", ("a", "b"), per_class=1)
    elsewhere = write_image(tmp_path / "elsewhere" / "x.png", seed=5)
    (root / "a" / "linked.png").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere.parent)
    (root / "a" / "loop").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "b" / "me.png").symlink_to(root / "b" / "me.png")
    folder = scan(root)
    assert folder.classes == ("a", "b", "c")
    names = [folder.name(file.path) for file in folder.files]
    assert names == ["a/0.png", "a/linked.png", "b/0.png", "c/x.png"]
    assert reasons(folder) == {
        "a/loop": "misplaced: link below the class level",
        "above": "link: leads back to its own folder",
        "b/me.png": "unreadable: broken link",
        "self": "link: leads back to its own folder",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_what_is_no_ordinary_file_is_never_opened(tmp_path: Path) -> None:
    for name in ("a/0.png", "a/below/1.png"):
        write_image(tmp_path / name)
    for place in (tmp_path, tmp_path / "a", tmp_path / "a" / "below"):
        for name in ("pipe.png", "pipe"):
            os.mkfifo(place / name)
    (tmp_path / "a" / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "a" / "folder.png").mkdir()
    folder = scan(tmp_path)
    assert [folder.name(file.path) for file in folder.files] == ["a/0.png"]
    odd = "not an image: not a regular file"
    assert reasons(folder) == {
        "pipe": odd,
        "pipe.png": odd,
        "a/below/1.png": "misplaced: in a folder below the class level",
        "a/below/pipe.png": "misplaced: in a folder below the class level",
        "a/folder.png": "misplaced: folder below the class level",
        "a/pipe": odd,
        "a/pipe.png": odd,
        "a/zero.jpg": odd,
    }
    assert {folder.name(bad.path) for bad in folder.bad if not bad.counts} == {
        "pipe",
        "a/pipe",
        "a/folder.png",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_file_that_turned_into_a_pipe_after_the_scan_is_a_bad_file(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), per_class=2)
    listed = scan(tmp_path, decode=False)
    (tmp_path / "a" / "0.png").unlink()
    os.mkfifo(tmp_path / "a" / "0.png")
    assert reasons(look_at_all(listed)[0]) == {"a/0.png": "unreadable: it is no ordinary file"}


def test_hidden_files_and_system_folders_are_no_data(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", ".git", "__MACOSX"), per_class=1)
    write_image(tmp_path / "a" / "._0.png")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    folder = scan(tmp_path)
    assert folder.classes == ("a",)
    assert [file.path.name for file in folder.files] == ["0.png"]
    assert reasons(folder) == {
        "a/.DS_Store": "side file",
        ".git": "hidden or system folder",
        "__MACOSX": "hidden or system folder",
        "a/._0.png": "hidden file",
    }
    assert folder.num_bad == 0


def test_a_name_of_arbitrary_bytes_can_be_printed(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png")
    raw = os.fsencode(tmp_path) + b"/caf\xe9\n.png"
    try:
        shutil.copy(tmp_path / "good.png", raw)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    folder = scan(tmp_path)
    names = [folder.name(file.path) for file in folder.files]
    assert names == ["caf\\udce9\\n.png", "good.png"]
    "\n".join(names).encode("utf-8")
    Path(os.fsdecode(raw)).write_bytes(b"bad")
    (skipped,) = scan(tmp_path).skipped()
    assert json.dumps(skipped, ensure_ascii=False).encode("utf-8")
    assert skipped["file"] == "caf\\udce9\\n.png"


@pytest.mark.parametrize("name", ["東京\u3000タワー", "two\nlines", "left\u202eright", "a\u00a0b"])
def test_a_class_has_its_folders_own_name_and_messages_have_it_shown(
    tmp_path: Path, name: str
) -> None:
    write_folder(tmp_path, (name,), per_class=1)
    assert scan(tmp_path).classes == (name,)
    (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(SmidgenError) as caught:
        scan(tmp_path)
    assert f'class folder "{shown(name)}"' in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("decode", [True, False])
def test_a_folder_name_that_is_not_utf8_is_refused_in_one_line(
    tmp_path: Path, decode: bool
) -> None:
    raw = Path(os.fsdecode(b"caf\xe9"))
    try:
        write_folder(tmp_path / "as class" / raw, ("",), per_class=1)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    write_folder(tmp_path / "as root" / raw, ("a", "b"), per_class=1)
    refused = r'the folder ".*caf\\udce9" has a name that is not UTF-8.*rename it'
    for place in (tmp_path / "as class", tmp_path / "as class" / raw, tmp_path / "as root" / raw):
        with pytest.raises(SmidgenError, match=refused) as caught:
            scan(place, decode=decode)
        assert len(str(caught.value).splitlines()) == 1
        str(caught.value).encode("utf-8")


@pytest.mark.parametrize("decode", [True, False])
def test_folders_without_images_are_refused_by_name(tmp_path: Path, decode: bool) -> None:
    with pytest.raises(SmidgenError, match=r"no such folder.*missing"):
        scan(tmp_path / "missing", decode=decode)
    file = write_image(tmp_path / "one" / "a.png")
    with pytest.raises(SmidgenError, match="a file, not a folder"):
        scan(file, decode=decode)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SmidgenError, match=r"no usable image in .*empty.*add images"):
        scan(tmp_path / "empty", decode=decode)
    write_folder(tmp_path / "data", ("full", "bare", "blank"))
    for name in ("bare", "blank"):
        shutil.rmtree(tmp_path / "data" / name)
        (tmp_path / "data" / name).mkdir()
    with pytest.raises(SmidgenError, match='class folder "bare", "blank"') as caught:
        scan(tmp_path / "data", decode=decode)
    assert "full" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_class_of_bad_files_only_is_refused_with_their_reasons(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"), per_class=1)
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(SmidgenError, match=r'class folder "b".*b/0\.png: unreadable: empty file'):
        scan(tmp_path)


def test_a_folder_one_level_too_high_points_to_the_right_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"))
    write_folder(tmp_path / "val", ("cat", "dog"))
    with pytest.raises(SmidgenError, match=r'perhaps ".*train" is the folder to give'):
        scan(tmp_path)


def test_more_than_the_stated_share_of_bad_files_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), per_class=19)
    (tmp_path / "a" / "bad 1.png").write_bytes(b"x")
    (tmp_path / "a" / "caption.txt").write_text("captions do not count")
    at_limit = scan(tmp_path)
    assert at_limit.bad_share == 0.05
    check_bad_share(at_limit)
    (tmp_path / "a" / "bad 2.png").write_bytes(b"x")
    with pytest.raises(SmidgenError, match=r"2 of 21 .*9\.5%.*5\.0%.*--max-bad-share") as caught:
        check_bad_share(scan(tmp_path))
    assert "a/bad 1.png: unreadable" in str(caught.value)
    assert "a/bad 2.png: unreadable" in str(caught.value)
    assert "caption" not in str(caught.value)
    check_bad_share(scan(tmp_path), limit=0.1)


def test_a_scan_reports_progress_and_changes_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = snapshot(tmp_path)
    seen: list[tuple[int, int]] = []
    scan(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]
    assert snapshot(tmp_path) == before


def test_a_scan_with_many_threads_keeps_the_order(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"), per_class=70)
    folder = scan(tmp_path)
    assert [file.path for file in folder.files] == sorted(tmp_path.rglob("*.png"))
