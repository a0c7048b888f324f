"""What a scan finds, names, counts and refuses; listing.py is tested here too, through the scan."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from smidgen.data.folder import ImageFolder, check_bad_share, scan
from smidgen.errors import SmidgenError
from tests.data.making import noise, snapshot, write_folder, write_image


def reasons(folder: ImageFolder) -> dict[str, str]:
    return {folder.name(bad.path): bad.reason for bad in folder.bad}


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_folder(tmp_path, ("zeta", "Alpha", "beta 2", "Ωmega"), num_images=2)
    folder = scan(tmp_path)
    assert folder.classes == ("Alpha", "beta 2", "zeta", "Ωmega")
    assert folder.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    for file in folder.files:
        assert file.path.parent.name == folder.classes[file.label]
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
    write_folder(tmp_path, ("a",), num_images=2)
    good = (tmp_path / "a" / "0.png").read_bytes()
    jpeg = write_image(tmp_path / "a" / "good.jpg").read_bytes()
    frames = [Image.fromarray(noise(seed)) for seed in range(2)]
    files = {
        "cut.png": good[:200],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "really.jpg": good,
        "hidden image.txt": good,
        "nameless": jpeg,
        "film.mp4": b"\0\0\0\x18ftypmp42" + bytes(100),
        "caption.txt": b"a letter",
        "Thumbs.db": b"windows",
        "photo.HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
    }
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    frames[0].save(tmp_path / "a" / "film.gif", save_all=True, append_images=frames[1:])
    write_image(tmp_path / "a" / "tiny.png", width=40, height=7)
    (tmp_path / "a" / "broken link.png").symlink_to(tmp_path / "nowhere.png")

    folder = scan(tmp_path)
    assert [file.path.name for file in folder.files] == ["0.png", "1.png", "good.jpg"]
    found = {name.removeprefix("a/"): reason for name, reason in reasons(folder).items()}
    start = {
        "cut.png": "truncated",
        "cut.jpg": "truncated",
        "empty.png": "unreadable: empty file",
        "page.png": "unreadable: not an image",
        "really.jpg": "wrongly named: PNG data in a .jpg file",
        "hidden image.txt": "wrongly named: PNG data in a .txt file",
        "nameless": "wrongly named: JPEG data in a nameless file",
        "film.mp4": "not an image",
        "caption.txt": "side file",
        "Thumbs.db": "side file",
        "photo.HEIC": "unsupported",
        "film.gif": "animated: 2 frames",
        "tiny.png": "tiny: 40 x 7 pixels",
        "broken link.png": "unreadable: broken link",
    }
    assert found.keys() == start.keys()
    for name, beginning in start.items():
        assert found[name].startswith(beginning), (name, found[name])
    assert folder.num_bad == len(start) - 2
    assert folder.bad_share == folder.num_bad / (folder.num_bad + 3)
    assert {entry["file"] for entry in folder.skipped() if not entry["counts"]} == {
        "a/caption.txt",
        "a/Thumbs.db",
    }


def test_names_only_scan_defers_what_is_inside_files(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), num_images=2)
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
    (tmp_path / "a" / "more" / "notes.txt").write_text("x")
    (tmp_path / "b" / "nothing").mkdir()
    folder = scan(tmp_path)
    assert len(folder.files) == 6
    assert reasons(folder) == {
        "a/more/deep/x.png": "misplaced: in a folder below the class level",
        "b/nothing": "misplaced: folder below the class level",
        "beside.png": "misplaced: beside the class folders",
    }
    assert folder.num_bad == 2


def test_links_to_files_are_used_and_loops_are_not_followed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", ("a", "b"), num_images=1)
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


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert reasons(scan(tmp_path)) == {"pipe.png": "not an image: not a regular file"}


def test_hidden_files_and_system_folders_are_no_data(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", ".git", "__MACOSX"), num_images=1)
    write_image(tmp_path / "a" / "._0.png")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"x")
    folder = scan(tmp_path)
    assert folder.classes == ("a",)
    assert [file.path.name for file in folder.files] == ["0.png"]
    assert reasons(folder) == {
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
    write_folder(tmp_path, ("a", "b"), num_images=1)
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(SmidgenError, match=r'class folder "b".*b/0\.png: unreadable: empty file'):
        scan(tmp_path)


def test_a_folder_one_level_too_high_points_to_the_right_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"))
    write_folder(tmp_path / "val", ("cat", "dog"))
    with pytest.raises(SmidgenError, match=r'perhaps ".*train" is the folder to give'):
        scan(tmp_path)


def test_more_than_the_stated_share_of_bad_files_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), num_images=19)
    (tmp_path / "a" / "bad 1.png").write_bytes(b"x")
    (tmp_path / "a" / "caption.txt").write_text("captions do not count")
    at_limit = scan(tmp_path)
    assert at_limit.bad_share == 0.05
    check_bad_share(at_limit)
    (tmp_path / "a" / "bad 2.png").write_bytes(b"x")
    with pytest.raises(SmidgenError, match=r"2 of 21 .*9\.5%.*5\.0%") as caught:
        check_bad_share(scan(tmp_path))
    assert "a/bad 1.png: unreadable" in str(caught.value)
    assert "a/bad 2.png: unreadable" in str(caught.value)
    assert "caption" not in str(caught.value)
    check_bad_share(scan(tmp_path), limit=0.1)


def test_the_report_counts_all_and_lists_some(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",), num_images=2)
    for number in range(14):
        (tmp_path / "a" / f"bad {number:02}.png").write_bytes(b"x")
    (tmp_path / "a" / "a caption.txt").write_text("x")
    folder = scan(tmp_path)
    lines = folder.report(num_enlarged=2).splitlines()
    assert lines[0] == f"2 image(s) in 1 class(es) from {tmp_path}"
    assert lines[1] == "2 smaller than the training size, enlarged"
    assert lines[2] == "15 file(s) skipped: 14 unreadable, 1 side file"
    assert lines[3].startswith("  a/bad 00.png: unreadable")
    assert lines[-1] == "  … and 5 more"
    assert len(lines) == 3 + 10 + 1
    assert len(folder.skipped()) == 15


def test_a_scan_reports_progress_and_changes_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = snapshot(tmp_path)
    seen: list[tuple[int, int]] = []
    scan(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]
    assert snapshot(tmp_path) == before


def test_a_scan_with_many_threads_keeps_the_order(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a", "b"), num_images=70)
    folder = scan(tmp_path)
    assert [file.path for file in folder.files] == sorted(tmp_path.rglob("*.png"))
