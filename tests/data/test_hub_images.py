"""Image sets that the test saves with the Hugging Face library, and what is said without it."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from smidgen.data.captions import read_captions
from smidgen.data.encoded_folder import encode_folder
from smidgen.data.hub_images import TableRow
from smidgen.data.images import UnusableImage
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from smidgen.sizes import ImageSize
from tests.tiny.codecs import BoxCodec
from tests.tiny.images import write_image

datasets = pytest.importorskip("datasets", reason="the layout hf is optional")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Six image files, JPEG in turn with PNG: encoding a JPEG again would change its bytes."""
    folder = tmp_path_factory.mktemp("pictures")
    return [write_image(folder / f"{n}.{('jpg', 'png')[n % 2]}", seed=n) for n in range(6)]


def cells(paths: list[Path]) -> list[dict]:
    return [{"bytes": path.read_bytes(), "path": None} for path in paths]


def table(columns: dict, **features):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def labelled(paths: list[Path], labels: list[int]):
    names = datasets.ClassLabel(names=["cat", "unused", "dog/wolf"])
    return table({"image": cells(paths), "label": labels}, image=datasets.Image(), label=names)


def test_rows_keep_their_bytes_and_classes(tmp_path: Path, pictures: list[Path]) -> None:
    labelled(pictures, [0, 2, 0, 2, -1, 0]).save_to_disk(tmp_path / "set")
    found = open_images(tmp_path / "set", layout="hf")
    assert found.classes == ("cat", "dog-wolf")
    assert found.class_numbers == (0, 1, 0, 1, 0)
    used = [pictures[n] for n in (0, 1, 2, 3, 5)]
    assert [file.read() for file in found.files] == [path.read_bytes() for path in used]
    assert [(found.name(bad.path), bad.kind) for bad in found.bad] == [
        ("rows/00000004", "no class")
    ]


@pytest.mark.parametrize(
    ("cells_of_text", "kind", "expected"),
    [
        (["an owl", " ", None], "string", [("an owl",), (), ()]),
        ([["a", "b"], [], ["", "c"]], ["string"], [("a", "b"), (), ("c",)]),
    ],
)
def test_a_column_of_texts_has_the_captions(
    tmp_path: Path, pictures: list[Path], cells_of_text: list, kind, expected: list
) -> None:
    columns = {"image": cells(pictures[:3]), "caption": cells_of_text}
    value = datasets.Value("string") if kind == "string" else datasets.List(datasets.Value(kind[0]))
    table(columns, image=datasets.Image(), caption=value).save_to_disk(tmp_path / "set")
    found = open_images(tmp_path / "set", layout="hf")
    assert [file.captions for file in found.files] == expected
    captions = read_captions(found)
    assert (captions.source, list(captions.of(found))) == ("hf", expected)


def test_plain_numbers_are_classes_and_minus_one_is_none(
    tmp_path: Path, pictures: list[Path]
) -> None:
    columns = {"image": cells(pictures[:4]), "label": [10, -1, 9, 10]}
    made = table(columns, image=datasets.Image(), label=datasets.Value("int64"))
    made.save_to_disk(tmp_path / "set")
    found = open_images(tmp_path / "set", layout="hf")
    assert (found.classes, found.class_numbers) == (("9", "10"), (1, 0, 1))
    assert [(found.name(bad.path), bad.kind) for bad in found.bad] == [
        ("rows/00000001", "no class")
    ]


def test_latents_are_those_of_the_same_files(tmp_path: Path, pictures: list[Path]) -> None:
    for number, path in enumerate(pictures):
        target = tmp_path / "plain" / f"c{number // 3}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    labelled(pictures, [0, 0, 0, 2, 2, 2]).save_to_disk(tmp_path / "set")
    codec = BoxCodec()
    expected = encode_folder(
        open_images(tmp_path / "plain", decode=False),
        codec,
        sizes=[ImageSize.of(16)],
        cache_dir=tmp_path / "k",
    )
    images = open_images(tmp_path / "set", layout="hf", decode=False)
    latents = encode_folder(images, codec, sizes=[ImageSize.of(16)], cache_dir=tmp_path / "k")
    assert (expected.num_encoded, latents.num_encoded) == (6, 0)
    assert isinstance(latents.mean, torch.Tensor)
    assert isinstance(expected.mean, torch.Tensor)
    torch.testing.assert_close(latents.mean, expected.mean, rtol=0, atol=0)
    assert latents.class_numbers.tolist() == expected.class_numbers.tolist()


def test_splits_are_asked_for_where_there_are_several(tmp_path: Path, pictures: list[Path]) -> None:
    parts = {"train": labelled(pictures[:4], [0, 0, 2, 2]), "test": labelled(pictures[4:], [0, 2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"train": parts["train"]}).save_to_disk(tmp_path / "single")
    found = open_images(tmp_path / "both", layout="hf", split="test")
    assert [file.read() for file in found.files] == [p.read_bytes() for p in pictures[4:]]
    assert found.name(found.files[0].path) == "test/00000000"
    assert len(open_images(tmp_path / "single", layout="hf").files) == 4
    with pytest.raises(SmidgenError, match="several splits; give one of: train, test"):
        open_images(tmp_path / "both", layout="hf")
    with pytest.raises(SmidgenError, match='no split "val"; give one of: train, test'):
        open_images(tmp_path / "both", layout="hf", split="val")
    parts["train"].save_to_disk(tmp_path / "plain")
    with pytest.raises(SmidgenError, match='leave "train" away'):
        open_images(tmp_path / "plain", layout="hf", split="train")


def test_rows_that_were_chosen_or_lie_in_files(tmp_path: Path, pictures: list[Path]) -> None:
    """A selection keeps an index beside its table; images may be paths instead of bytes."""
    rows = {"img": [{"bytes": None, "path": str(p)} for p in pictures], "class": list("babaab")}
    whole = table(rows, img=datasets.Image(decode=False), **{"class": datasets.Value("string")})
    chosen = whole.cast_column("img", datasets.Image()).select([5, 0, 3])
    chosen.save_to_disk(tmp_path / "chosen")
    found = open_images(tmp_path / "chosen", layout="hf")
    assert [found.classes[file.class_number] for file in found.files] == ["b", "b", "a"]
    assert [file.read() for file in found.files] == [pictures[n].read_bytes() for n in (5, 0, 3)]


def test_damaged_and_empty_cells_are_bad_files(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = cells(pictures)
    rows[1] = {"bytes": rows[1]["bytes"][:80], "path": None}
    rows[2] = {"bytes": b"no image", "path": "2.jpg"}
    rows[3] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    whole = table({"image": [*rows, None]}, image=datasets.Image(decode=False))
    # in memory: save_to_disk would refuse the missing file
    loaded = {"owner/set": whole.cast_column("image", datasets.Image())}
    monkeypatch.setattr(datasets, "load_dataset", loaded.__getitem__)
    found = open_images("owner/set", layout="hf")
    assert (found.flat, found.classes) == (True, ("set",))
    assert [int(file.path.name) for file in found.files] == [0, 4, 5]
    assert {int(bad.path.name): bad.kind for bad in found.bad} == {
        1: "truncated",
        2: "unreadable",
        3: "unreadable",
        6: "unreadable",
    }


def test_tables_without_images_or_with_too_many_are_refused(
    tmp_path: Path, pictures: list[Path]
) -> None:
    text = datasets.Value("string")
    table({"text": ["a"]}, text=text).save_to_disk(tmp_path / "text")
    with pytest.raises(SmidgenError, match=r"no column of images; its columns: text \(Value\)"):
        open_images(tmp_path / "text", layout="hf")
    two = {"left": cells(pictures[:1]), "right": cells(pictures[1:2])}
    table(two, left=datasets.Image(), right=datasets.Image()).save_to_disk(tmp_path / "two")
    with pytest.raises(SmidgenError, match=r"several columns of images \(left, right\)"):
        open_images(tmp_path / "two", layout="hf")


def test_a_hub_id_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(SmidgenError) as raised:
        open_images("owner/name", layout="hf", split="train")
    message = 'cannot load the data set "owner/name": Couldn\'t reach'
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_hub_id_is_loaded_by_the_library(
    monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    parts = {"train": labelled(pictures, [0, 2, 0, 2, 0, 2])}
    monkeypatch.setattr(
        datasets, "load_dataset", {"owner/name": datasets.DatasetDict(parts)}.__getitem__
    )
    found = open_images("owner/name", layout="hf", split="train")
    assert len(found.files) == 6
    assert found.name(found.files[3].path) == "train/00000003"


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SmidgenError, match="pip install datasets"):
        open_images("owner/name", layout="hf")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are POSIX")
def test_a_pipe_in_a_saved_set_is_refused_and_never_opened(
    tmp_path: Path, pictures: list[Path]
) -> None:
    labelled(pictures, [0, 2, 0, 2, 0, 0]).save_to_disk(tmp_path / "set")
    (rows,) = (tmp_path / "set").glob("*.arrow")
    rows.unlink()
    os.mkfifo(rows)
    with pytest.raises(SmidgenError, match=r"\.arrow is no ordinary file: remove it"):
        open_images(tmp_path / "set", layout="hf")


def test_a_row_that_the_library_cannot_read_is_a_bad_file() -> None:
    class Damaged:
        def __getitem__(self, row: int) -> None:
            raise OSError("Expected to be able to read 3 bytes, got 2")

    with pytest.raises(UnusableImage, match="unreadable: Expected to be able to read"):
        TableRow(table=Damaged(), column="image", row=0).read()


@pytest.mark.parametrize("names", [["cat"], [], "cat", ["cat", ["x"]], None])
def test_class_names_that_do_not_fit_the_rows_are_one_line(
    tmp_path: Path, pictures: list[Path], names: object
) -> None:
    """A row of a class without a name is a bad file; names that are none are refused."""
    labelled(pictures, [0, 2, 0, 2, 0, 0]).save_to_disk(tmp_path / "set")
    path = tmp_path / "set" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["features"]["label"]["names"] = names
    path.write_text(json.dumps(info))
    if names == ["cat"]:
        found = open_images(tmp_path / "set", layout="hf")
        assert (found.classes, found.class_numbers) == (("cat",), (0, 0, 0, 0))
        assert {bad.kind for bad in found.bad} == {"no class"}
    else:
        with pytest.raises(SmidgenError) as caught:
            open_images(tmp_path / "set", layout="hf")
        assert str(caught.value).isprintable()
