"""Shards that the test writes with tarfile: what is read, from where, and what is refused."""

import io
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from smidgen.data.captions import read_captions
from smidgen.data.encoded_folder import encode_folder
from smidgen.data.findings import findings_of
from smidgen.data.folder import ImageFolder, look_at_all
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError, UsageError
from smidgen.sizes import ImageSize
from tests.tiny.codecs import BoxCodec
from tests.tiny.images import write_folder, write_image

Files = Mapping[str, bytes | str]


def write_shard(path: Path, files: Files, form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[bytes]:
    """The bytes of six different PNG files."""
    folder = tmp_path_factory.mktemp("pictures")
    return [write_image(folder / f"{seed}.png", seed=seed).read_bytes() for seed in range(6)]


def shown(folder: ImageFolder) -> dict[str, str]:
    return {folder.name(file.path): folder.classes[file.class_number] for file in folder.files}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_images_are_read_in_place_byte_for_byte(
    tmp_path: Path, pictures: list[bytes], form: int
) -> None:
    long = "a-very-long-folder-name/" * 3 + "x" * 60  # beyond the 100 bytes of a plain header
    first: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures[:4]):
        first |= {f"{number:04d}.cls": str(number % 2), f"{number:04d}.png": data}
    write_shard(tmp_path / "000000.tar", first, form)
    write_shard(tmp_path / "000001.tar", {f"{long}.png": pictures[4], f"{long}.cls": "1"}, form)
    found = open_images(tmp_path, layout="webdataset")
    assert found.classes == ("0", "1")
    assert found.class_numbers == (0, 1, 0, 1, 1)
    assert [file.read() for file in found.files] == pictures[:5]
    assert found.name(found.files[0].path) == "000000.tar/0000.png"
    assert found.bad == ()


def test_latents_are_those_of_the_same_files_in_a_folder(tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", ("a", "b"), per_class=3)
    files = {}
    for path in sorted(plain.rglob("*.png")):
        files[f"{path.parent.name}/{path.stem}.png"] = path.read_bytes()
    write_shard(tmp_path / "shards" / "0.tar", files)
    codec, progress = BoxCodec(), []
    kept = tmp_path / "cache"
    expected = encode_folder(
        open_images(plain, decode=False), codec, sizes=[ImageSize.of(16)], cache_dir=kept
    )
    latents = encode_folder(
        open_images(tmp_path / "shards", layout="webdataset", decode=False),
        codec,
        sizes=[ImageSize.of(16)],
        cache_dir=kept,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert expected.num_encoded == 6
    assert latents.num_encoded == 0  # the same bytes have the same key, wherever they lie
    assert isinstance(latents.mean, torch.Tensor)
    assert isinstance(expected.mean, torch.Tensor)
    torch.testing.assert_close(latents.mean, expected.mean, rtol=0, atol=0)
    assert latents.names == tuple(f"0.tar/{name}" for name in expected.names)
    assert progress[-1] == (6, 6)


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ({"cls": "cat", "json": '{"label": "no"}', "txt": "no"}, ("cat", "cat2")),
        ({"json": '{"caption": "x", "label": "cat"}', "txt": "no"}, ("cat", "cat2")),
        ({"txt": "cat\n"}, ("cat", "cat2")),
    ],
)
def test_the_surest_source_gives_the_class(
    tmp_path: Path, pictures: list[bytes], files: Files, classes: tuple[str, ...]
) -> None:
    content: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures[:4]):
        content[f"folder/{number}.png"] = data
        for extension, text in files.items():
            assert isinstance(text, str)
            content[f"folder/{number}.{extension}"] = (
                text.replace("cat", "cat2") if number == 3 else text
            )
    write_shard(tmp_path / "0.tar", content)
    found = open_images(tmp_path, layout="webdataset")
    assert found.classes == classes
    assert found.class_numbers == (0, 0, 0, 1)


def test_folders_in_the_names_are_classes_else_there_is_one(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    write_shard(
        tmp_path / "sorted" / "0.tar",
        {f"./x/{name}/1.png": data for name, data in zip(("emu", "bat"), pictures, strict=False)},
    )
    assert open_images(tmp_path / "sorted", layout="webdataset").classes == ("bat", "emu")
    write_shard(tmp_path / "plain" / "0.tar", {"1.png": pictures[0], "2.png": pictures[1]})
    found = open_images(tmp_path / "plain", layout="webdataset")
    assert (found.classes, found.flat, len(found.files)) == (("plain",), True, 2)


def test_numbers_are_named_by_classnames_and_unused_names_left_out(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    files: dict[str, bytes | str] = {}
    for number, data in zip(("2", "010", "2"), pictures, strict=False):
        files |= {f"{len(files)}.png": data, f"{len(files)}.cls": number}
    write_shard(tmp_path / "test" / "0.tar", files)
    names = "\n".join(f"name {n}" for n in range(12))
    (tmp_path / "classnames.txt").write_text(names, encoding="utf-8")
    found = open_images(tmp_path, layout="webdataset", split="test")
    assert found.classes == ("name 2", "name 10")
    assert found.class_numbers == (0, 1, 0)
    (tmp_path / "classnames.txt").write_text("only one", encoding="utf-8")
    with pytest.raises(SmidgenError, match="beyond the 1 lines"):
        open_images(tmp_path, layout="webdataset", split="test")


@pytest.mark.parametrize("alike", [1, 2])
def test_captions_are_no_classes(tmp_path: Path, pictures: list[bytes], alike: int) -> None:
    """Some captions occur twice: it counts what most are."""
    files: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures):
        files |= {f"{number}.png": data, f"{number}.txt": f"photo of {max(number, alike - 1)}"}
        files[f"{number}.json"] = json.dumps({"url": "x", "width": 16})
    write_shard(tmp_path / "0.tar", files)
    found = open_images(tmp_path, layout="webdataset")
    assert (len(found.classes), found.flat) == (1, True)
    texts = [file.captions for file in found.files]
    assert texts == [(f"photo of {max(n, alike - 1)}",) for n in range(len(pictures))]
    captions = read_captions(found)
    assert (captions.source, captions.of(found)) == ("webdataset", tuple(texts))
    assert not any(read_captions(found, "none").of(found))
    with pytest.raises(UsageError, match="captions is txt, and images of layout webdataset"):
        read_captions(found, "txt")


def test_captions_stand_beside_classes_and_may_be_several(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    """Where .cls says the class, all texts are captions, also one that two images share."""
    files: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures[:4]):
        files |= {f"{number}.png": data, f"{number}.cls": "a"}
    files |= {"0.txt": "an owl\n\nan owl at night", "1.txt": "an owl"}
    files["1.json"] = json.dumps({"caption": "not this one"})
    files["2.json"] = json.dumps({"text": None, "caption": [" a fox ", "", 3]})
    write_shard(tmp_path / "0.tar", files)
    found = open_images(tmp_path, layout="webdataset")
    assert found.classes == ("a",)
    expected = [("an owl", "an owl at night"), ("an owl",), ("a fox",), ()]
    assert [file.captions for file in found.files] == expected


def test_few_texts_are_classes_though_one_occurs_once(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    files: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures[:3]):
        files |= {f"{number}.png": data, f"{number}.txt": "dog" if number else "cat"}
    write_shard(tmp_path / "0.tar", files)
    found = open_images(tmp_path, layout="webdataset")
    assert found.classes == ("cat", "dog")
    assert not any(file.captions for file in found.files)


def test_splits_are_folders_or_words_in_the_names(tmp_path: Path, pictures: list[bytes]) -> None:
    for split, data in zip(("train", "val"), pictures, strict=False):
        write_shard(tmp_path / "words" / f"imagenet-{split}-000000.tar", {"a/1.png": data})
        write_shard(tmp_path / "folders" / split / "0.tar", {"a/1.png": data})
    for kind in ("words", "folders"):
        root = tmp_path / kind
        for split, data in zip(("train", "val"), pictures, strict=False):
            (file,) = open_images(root, layout="webdataset", split=split).files
            assert file.read() == data
        with pytest.raises(SmidgenError, match="several splits; give one: train, val"):
            open_images(root, layout="webdataset")
        with pytest.raises(SmidgenError, match=r'looked for .tar shards .* split "test"'):
            open_images(root, layout="webdataset", split="test")


def test_what_is_not_used_is_listed(tmp_path: Path, pictures: list[bytes]) -> None:
    files: dict[str, bytes | str] = {
        "1.mask.png": pictures[5],
        "1.png": pictures[0],
        "1.cls": "a",
        "2.png": pictures[1],
        "3.png": pictures[2][:90],
        "3.cls": "a",
        "4.png": b"",
        "4.cls": "a",
        "5.jpg": pictures[3],
        "5.cls": "a",
        "6.npy": "an array",
        "6.cls": "a",
        "/data/7.png": pictures[4],
        "/data/7.cls": "b",
        "__meta__": "nothing",
    }
    write_shard(tmp_path / "0.tar", files)
    found = open_images(tmp_path, layout="webdataset")
    assert shown(found) == {"0.tar/1.png": "a", "0.tar/5.jpg": "a", "0.tar/data/7.png": "b"}
    assert {found.name(bad.path): (bad.kind, bad.counts) for bad in found.bad} == {
        "0.tar/1.mask.png": ("not used", False),
        "0.tar/2.png": ("no class", True),
        "0.tar/3.png": ("truncated", True),
        "0.tar/4.png": ("unreadable", True),
        "0.tar/6": ("no image", True),
        "0.tar/6.npy": ("side file", False),
    }


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    files = {f"a/{number}.png": data for number, data in enumerate(pictures)}
    shard = write_shard(tmp_path / "0.tar", files)
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    for length in (0, 100, 512, 700, 1024, end // 2, end // 1024 * 512, end - 512, end):
        shard.write_bytes(data[:length])
        with pytest.raises(SmidgenError, match=r"0.tar.* damaged or cut off"):
            open_images(tmp_path, layout="webdataset")
    shard.write_bytes(data[: last.offset] + b"\x01" + data[last.offset + 1 :])  # a bad checksum
    with pytest.raises(SmidgenError, match="damaged or cut off"):
        open_images(tmp_path, layout="webdataset")


def test_a_shard_that_shrinks_after_the_listing_gives_bad_files(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    files = {f"a/{number}.png": data for number, data in enumerate(pictures)}
    shard = write_shard(tmp_path / "0.tar", files)
    found = open_images(tmp_path, layout="webdataset", decode=False)
    shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(SmidgenError, match=r"truncated: 0.tar ends inside it"):
        found.files[-1].read()


def test_compressed_and_single_shards_are_explained(tmp_path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz"):
        pass
    with pytest.raises(SmidgenError, match="compressed shards cannot be read in place"):
        open_images(tmp_path, layout="webdataset")
    shard = write_shard(tmp_path / "one" / "0.tar", {"a/1.png": pictures[0]})
    with pytest.raises(SmidgenError, match="one shard: give its folder"):
        open_images(shard, layout="webdataset")
    (tmp_path / "0.tar.gz").rename(tmp_path / "1.tar")
    with pytest.raises(SmidgenError, match="no tar file"):
        open_images(tmp_path, layout="webdataset", split="1")


def test_images_in_shards_are_known_by_their_bytes(tmp_path: Path, pictures: list[bytes]) -> None:
    write_shard(
        tmp_path / "0.tar",
        {"a/0.jpg": pictures[0], "a/1.img": pictures[1], "a/2": pictures[2], "b/3.png": b"broken"}
        | {"b/4.png": pictures[3]},
    )
    folder, looks = look_at_all(open_images(tmp_path, layout="webdataset", decode=False))
    findings = findings_of(folder, looks)
    assert shown(folder) == {
        "0.tar/a/0.jpg": "a",
        "0.tar/a/1.img": "a",
        "0.tar/a/2": "a",
        "0.tar/b/4.png": "b",
    }
    assert (findings.other_suffix, findings.bad, findings.side_files) == (2, 1, 0)


def test_side_files_in_shards_are_not_bad(tmp_path: Path, pictures: list[bytes]) -> None:
    files: dict[str, bytes | str] = {}
    for number, data in enumerate(pictures):
        files |= {f"a/{number}.png": data, f"a/{number}.xmp": "x", f"a/{number}.pt": "PK"}
        files |= {f"a/._{number}.png": "a Mac's", f"a/{number}.json": "{}"}
    files |= {"README.txt": "about it", "a/meta.json": '{"label": "x"}', ".DS_Store": "x"}
    files |= {"__MACOSX/a/._0.png": "x", "thumbs.db": "x"}
    write_shard(tmp_path / "0.tar", files)
    (tmp_path / "._0.tar").write_bytes(b"a Mac's")
    found = open_images(tmp_path, layout="webdataset")
    assert found.classes == ("a",)
    assert len(found.files) == 6
    assert found.num_bad == 0
    kinds = Counter(bad.kind for bad in found.bad)
    assert kinds == {"side file": 2 * 6 + 4, "hidden file": 6 + 1}


def test_links_and_unsafe_names_are_skipped_and_counted(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a/0.png", "../1.png", "a/../2.png", "a/null\0.png", "../notes.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(pictures[0])
            if "\0" in name:
                member.name, member.pax_headers = "a/null.png", {"path": name}
            tar.addfile(member, io.BytesIO(pictures[0]))
        kinds = {tarfile.LNKTYPE: "hard", tarfile.SYMTYPE: "soft", tarfile.FIFOTYPE: "pipe"}
        for kind, name in (kinds | {tarfile.CHRTYPE: "zero"}).items():
            member = tarfile.TarInfo(f"a/{name}.png")
            member.type, member.linkname = kind, f"a/{name}.png"  # links to themselves
            tar.addfile(member)
    found = open_images(tmp_path, layout="webdataset")
    assert list(shown(found)) == ["0.tar/a/0.png"]
    assert {found.name(bad.path): (bad.kind, bad.counts) for bad in found.bad} == {
        "0.tar/../1.png": ("unsafe name", True),
        "0.tar/a/../2.png": ("unsafe name", True),
        "0.tar/a/null\\x00.png": ("unsafe name", True),
        "0.tar/../notes.txt": ("unsafe name", False),
        "0.tar/a/hard.png": ("not an image", True),
        "0.tar/a/soft.png": ("not an image", True),
        "0.tar/a/pipe.png": ("not an image", True),
        "0.tar/a/zero.png": ("not an image", True),
    }


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"label": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '["label"]',
        '{"label": {"label": 1}}',
        '{"label": 1.5}',
        '{"label": null}',
        '{"label": ' + "9" * 10_000 + "}",
        "",
        b"\xff\xfe",
        '{"label": "' + "x" * 2**21 + '"}',
    ],
)
def test_a_class_that_cannot_be_read_is_a_bad_file(
    tmp_path: Path, pictures: list[bytes], text: str | bytes
) -> None:
    write_shard(
        tmp_path / "0.tar",
        {"0.png": pictures[0], "0.json": '{"label": "cat", "score": NaN}', "1.png": pictures[1]}
        | {"1.json": text},
    )
    found = open_images(tmp_path, layout="webdataset")
    assert shown(found) == {"0.tar/0.png": "cat"}
    assert [bad.reason for bad in found.bad] == ["no class: its sample has no json"]


def test_numbers_beyond_all_bounds_are_names(tmp_path: Path, pictures: list[bytes]) -> None:
    many, other = "1" * 5000, "²"
    write_shard(
        tmp_path / "0.tar",
        {"0.png": pictures[0], "0.cls": many, "1.png": pictures[1], "1.cls": other}
        | {"2.png": pictures[2], "2.cls": "7"},
    )
    assert open_images(tmp_path, layout="webdataset").classes == ("7", many, other)
    (tmp_path / "classnames.txt").write_text("a")
    assert open_images(tmp_path, layout="webdataset").classes == ("7", many, other)


def test_names_of_classes_in_shards_are_their_own_and_must_be_utf8(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    write_shard(tmp_path / "wide" / "0.tar", {"東京\u3000タワー/0.png": pictures[0]})
    assert open_images(tmp_path / "wide", layout="webdataset").classes == ("東京\u3000タワー",)
    write_shard(tmp_path / "raw" / "0.tar", {"caf\udce9/0.png": pictures[0]})
    with pytest.raises(SmidgenError, match=r'"caf\\udce9" has a name that is not UTF-8'):
        open_images(tmp_path / "raw", layout="webdataset")
    # an image's own name is only ever shown
    write_shard(tmp_path / "files" / "0.tar", {"a/caf\udce9.png": pictures[0]})
    assert shown(open_images(tmp_path / "files", layout="webdataset")) == {
        "0.tar/a/caf\\udce9.png": "a"
    }


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_pipe_among_the_shards_is_refused_in_one_line(
    tmp_path: Path, pictures: list[bytes]
) -> None:
    write_shard(tmp_path / "0.tar", {"a/0.png": pictures[0]})
    os.mkfifo(tmp_path / "1.tar")
    with pytest.raises(SmidgenError, match=r'1.tar" is no tar file.*no ordinary file') as caught:
        open_images(tmp_path, layout="webdataset")
    assert len(str(caught.value).splitlines()) == 1
