"""Small trees with the lists of Food-101, SUN397, DF-20M mini and CUB-200-2011."""

import csv
import shutil
from pathlib import Path

import pytest

from smidgen.data.folder import ImageFolder, check_bad_share
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from tests.tiny.images import write_image


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def shown(folder: ImageFolder) -> dict[str, str]:
    """Class by image, as the folder has them."""
    return {folder.name(file.path): folder.classes[file.class_number] for file in folder.files}


def make_food(root: Path) -> Path:
    for number in (1, 2, 3):
        write_image(root / "images" / "apple_pie" / f"{number}.jpg", seed=number)
        write_image(root / "images" / "sushi" / f"{number}9.jpg", seed=10 + number)
    write_lines(root / "meta" / "classes.txt", "apple_pie", "sushi")
    write_lines(root / "meta" / "labels.txt", "Apple pie", "Sushi")
    write_lines(root / "meta" / "train.txt", "apple_pie/3", "apple_pie/1", "sushi/19", "sushi/29")
    write_lines(root / "meta" / "test.txt", "apple_pie/2", "sushi/39")
    return root


def test_food_101_follows_its_lists(tmp_path: Path) -> None:
    make_food(tmp_path / "food-101")
    expected = {
        "images/apple_pie/3.jpg": "Apple pie",
        "images/apple_pie/1.jpg": "Apple pie",
        "images/sushi/19.jpg": "Sushi",
        "images/sushi/29.jpg": "Sushi",
    }
    train = open_images(tmp_path / "food-101", layout="food-101")
    assert shown(train) == expected
    assert (train.layout, train.split) == ("food-101", "train")
    assert train.bad == ()
    # the folder into which the archive was unpacked does as well
    assert open_images(tmp_path, layout="food-101") == train
    test = open_images(tmp_path, layout="food-101", split="test")
    assert shown(test) == {"images/apple_pie/2.jpg": "Apple pie", "images/sushi/39.jpg": "Sushi"}


def test_an_image_of_the_list_that_is_gone_is_a_bad_file(tmp_path: Path) -> None:
    make_food(tmp_path)
    (tmp_path / "images" / "apple_pie" / "1.jpg").unlink()
    (tmp_path / "images" / "sushi" / "19.jpg").write_bytes(b"cut")
    found = open_images(tmp_path, layout="food-101")
    assert found.num_bad == 2
    assert {found.name(bad.path): bad.kind for bad in found.bad} == {
        "images/apple_pie/1.jpg": "missing",
        "images/sushi/19.jpg": "unreadable",
    }
    with pytest.raises(SmidgenError, match="2 of 4 image files"):
        check_bad_share(found)


def test_a_class_without_any_image_is_named(tmp_path: Path) -> None:
    make_food(tmp_path)
    shutil.rmtree(tmp_path / "images" / "sushi")
    with pytest.raises(SmidgenError, match=r'no usable image .* class "Sushi" of its split train'):
        open_images(tmp_path, layout="food-101", decode=False)


def test_lists_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    make_food(tmp_path)
    write_lines(tmp_path / "meta" / "train.txt", "apple_pie/1", "waffles/2")
    with pytest.raises(SmidgenError, match=r'train.txt names the class "waffles"'):
        open_images(tmp_path, layout="food-101")
    for outside in ("apple_pie/../../../1", "apple_pie/../../1"):
        write_lines(tmp_path / "meta" / "train.txt", outside)
        with pytest.raises(SmidgenError, match="lies elsewhere"):
            open_images(tmp_path, layout="food-101")
    write_lines(tmp_path / "meta" / "labels.txt", "Apple pie")
    with pytest.raises(SmidgenError, match=r"1 names in labels.txt for 2"):
        open_images(tmp_path, layout="food-101")


def make_sun(root: Path, lists: str) -> Path:
    images = {
        "/a/abbey": ("sun_aa", "sun_ab"),
        "/a/apartment_building/outdoor": ("sun_ba", "sun_bb"),
        "/t/theater/indoor_seats": ("sun_ca", "sun_cb"),
    }
    for place, names in images.items():
        for seed, name in enumerate(names):
            write_image(root / place.strip("/") / f"{name}.jpg", seed=seed)
    write_lines(root / "ClassName.txt", *images)
    first = [f"{place}/{names[0]}.jpg" for place, names in images.items()]
    write_lines(root / lists / "Training_07.txt", *first)
    write_lines(
        root / lists / "Testing_07.txt", *(line.replace("a.jpg", "b.jpg") for line in first)
    )
    return root


@pytest.mark.parametrize("lists", [".", "Partitions", ".."])
def test_sun397_is_all_or_one_half_of_a_partition(tmp_path: Path, lists: str) -> None:
    make_sun(tmp_path / "SUN397", lists)
    found = open_images(tmp_path, layout="sun397")
    assert found.classes == ("abbey", "apartment building (outdoor)", "theater (indoor seats)")
    assert found.split == "all"
    assert found.class_numbers == (0, 0, 1, 1, 2, 2)
    train = open_images(tmp_path, layout="sun397", split="train-07")
    test = open_images(tmp_path, layout="sun397", split="test-07")
    assert shown(train)["a/apartment_building/outdoor/sun_ba.jpg"] == "apartment building (outdoor)"
    assert len(train.files) == len(test.files) == 3
    assert shown(train).keys() | shown(test).keys() == shown(found).keys()
    with pytest.raises(SmidgenError, match=r"looked for Training_03.txt"):
        open_images(tmp_path, layout="sun397", split="train-03")


def make_df20m(root: Path) -> Path:
    header = ("gbifID", "scientificName", "species", "image_path", "ImageUniqueID", "class_id")
    species = ("Boletus edulis Bull.", 'Mycena "rosea", Quél.')
    for split, file in (("train", "train"), ("test", "public_test")):
        rows = []
        for label, name in enumerate(species):
            image = f"22378-{split}{label}"
            write_image(root / "DF20M" / f"{image}.JPG", seed=label)
            rows.append((1, name, name.split(" ")[0], f"{image}.jpg", image, label))
        path = root / "DF20M-metadata" / f"DF20M-{file}_metadata_PROD.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as table:
            csv.writer(table).writerows([header, *rows])
    return root


def test_df20m_reads_its_tables_and_finds_the_capital_suffix(tmp_path: Path) -> None:
    make_df20m(tmp_path)
    train = open_images(tmp_path, layout="df20m")
    assert train.classes == ("Boletus edulis Bull.", 'Mycena "rosea", Quél.')
    assert shown(train) == {
        "DF20M/22378-train0.JPG": "Boletus edulis Bull.",
        "DF20M/22378-train1.JPG": 'Mycena "rosea", Quél.',
    }
    test = open_images(tmp_path, layout="df20m", split="test")
    assert test.classes == train.classes
    assert len(test.files) == 2
    table = tmp_path / "DF20M-metadata" / "DF20M-train_metadata_PROD.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("image_path", "file", 1), "utf-8")
    with pytest.raises(SmidgenError, match="no column image_path"):
        open_images(tmp_path, layout="df20m")


def test_df20m_names_rows_without_a_class_and_refuses_those_without_an_image(
    tmp_path: Path,
) -> None:
    make_df20m(tmp_path)
    table = tmp_path / "DF20M-metadata" / "DF20M-train_metadata_PROD.csv"
    lines = table.read_text(encoding="utf-8")
    table.write_text(lines + "1, ,,22378-lost.jpg,x,0\n", encoding="utf-8")
    found = open_images(tmp_path, layout="df20m")
    assert len(found.files) == 2
    assert [(bad.path.name, bad.kind, bad.counts) for bad in found.bad] == [
        ("22378-lost.jpg", "no class", True)
    ]
    for short in ("1,Boletus edulis Bull.\n", "1,Boletus edulis Bull.,Boletus,,x,0\n"):
        table.write_text(lines + short, encoding="utf-8")
        with pytest.raises(SmidgenError, match=r"line 4 of .*train_metadata.* names no image"):
            open_images(tmp_path, layout="df20m")


def make_cub(root: Path) -> Path:
    images = {
        "1": ("001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg", "1", "0"),
        "2": ("001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg", "1", "1"),
        "3": ("002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg", "2", "1"),
        "4": ("002.Laysan_Albatross/Laysan_Albatross_0003_1033.jpg", "2", "0"),
    }
    for seed, (path, _, _) in enumerate(images.values()):
        write_image(root / "images" / path, seed=seed)
    write_lines(root / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    for number, name in enumerate(("images", "image_class_labels", "train_test_split")):
        write_lines(root / f"{name}.txt", *(f"{key} {row[number]}" for key, row in images.items()))
    return root


def test_cub_joins_its_four_lists(tmp_path: Path) -> None:
    make_cub(tmp_path / "CUB_200_2011")
    train = open_images(tmp_path, layout="cub-200-2011")
    assert shown(train) == {
        "images/001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg": (
            "Black footed Albatross"
        ),
        "images/002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg": "Laysan Albatross",
    }
    test = open_images(tmp_path, layout="cub-200-2011", split="test")
    everything = open_images(tmp_path, layout="cub-200-2011", split="all")
    assert shown(everything) == shown(train) | shown(test)
    assert len(everything.files) == len(train.files) + len(test.files)
    write_lines(tmp_path / "CUB_200_2011" / "image_class_labels.txt", "1 1", "2 1", "3 2")
    with pytest.raises(SmidgenError, match=r"image 4 .* has no class"):
        open_images(tmp_path, layout="cub-200-2011")
