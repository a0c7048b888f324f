"""Captions belong to images by the file that they name, and what is wrong with one is named."""

import json

import pytest
from PIL import Image

from smidgen.data.captions import read_captions
from smidgen.data.folder import scan
from smidgen.errors import SmidgenError, UsageError

NAMES = ("c.png", "a.jpg", "b.png")


@pytest.fixture
def root(tmp_path):
    for number, name in enumerate(NAMES):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def table(root, *rows):
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_name(root, source="auto"):
    folder = scan(root, decode=False)
    captions = read_captions(folder, source)
    found = zip(folder.files, captions.of(folder), strict=True)
    return {file.path.name: texts for file, texts in found}, captions.source


def test_a_text_file_beside_an_image_is_its_caption_a_line_each(root):
    (root / "a.txt").write_text("an owl\n\n an owl at night \n", encoding="utf-8-sig")
    (root / "b.png.caption").write_text("a fox")
    expected = {"a.jpg": ("an owl", "an owl at night"), "b.png": ("a fox",), "c.png": ()}
    assert by_name(root) == (expected, "txt")


def test_a_table_names_its_images_in_any_order(root):
    table(
        root,
        {"file_name": "c.png", "text": "third"},
        {"file_name": "a.jpg", "text": ["one", "other"]},
    )
    expected = {"a.jpg": ("one", "other"), "b.png": (), "c.png": ("third",)}
    assert by_name(root) == (expected, "metadata.jsonl")


def test_a_csv_table_is_read_with_its_header(root):
    (root / "metadata.csv").write_text('file_name,caption\nb.png,"a fox, running"\n')
    assert by_name(root)[0]["b.png"] == ("a fox, running",)


def test_files_of_class_folders_are_named_below_the_root(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "1.png")
    table(tmp_path, {"file_name": "dogs/1.png", "text": "a dog"})
    folder = scan(tmp_path, decode=False)
    assert read_captions(folder).of(folder) == ((), ("a dog",))


def test_a_name_is_a_caption_only_where_it_is_asked_for(root):
    assert by_name(root) == (dict.fromkeys(NAMES, ()), "none")
    (root / "a.jpg").rename(root / "a_red__fox.jpg")
    assert by_name(root, "filename")[0]["a_red__fox.jpg"] == ("a red fox",)


def test_the_report_counts_and_names_images_without_a_caption(root):
    (root / "a.txt").write_text("one\nother")
    folder = scan(root, decode=False)
    found = read_captions(folder).findings(folder, cut={"other"})
    assert (found.images, found.several, found.distinct) == (1, 1, 2)
    assert (found.without, found.cut) == (("b.png", "c.png"), ("a.jpg",))
    assert found.lines() == [
        "1 of 3 image(s) have captions (txt), 2 different ones",
        "1 have several, of which a step draws one",
        "2 have none, and are trained as if theirs was dropped",
        "  b.png",
        "  c.png",
        "1 have one that is cut at the encoder's length",
        "  a.jpg",
    ]


def test_of_many_images_the_first_are_named(tmp_path):
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.txt").write_text("one")
    folder = scan(tmp_path, decode=False)
    lines = read_captions(folder).findings(folder).lines()
    assert lines[1].startswith("7 have none")
    assert lines[2:] == ["  1.png", "  2.png", "  3.png", "  4.png", "  5.png", "  … and 2 more"]


def test_captions_belong_to_the_files_that_are_left_when_others_turn_out_bad(root):
    for name in NAMES:
        (root / name).with_suffix(".txt").write_text(name)
    listed = scan(root, decode=False)
    captions = read_captions(listed)
    (root / "a.jpg").write_bytes(b"no image")
    assert captions.of(scan(root)) == (("b.png",), ("c.png",))


def test_text_files_named_after_no_image_are_told_by_name(root):
    (root / "a.txt").write_text("an owl")
    (root / "d.png").write_bytes(b"no image")
    (root / "d.txt").write_text("of an image that is skipped")
    (root / "A.txt").write_text("in another case")
    folder = scan(root)
    found = read_captions(folder).findings(folder)
    assert found.unmatched == ("A.txt",)
    assert found.lines()[-2:] == [
        "1 text file(s) are named after no image, and left alone",
        "  A.txt",
    ]
    (root / "a.txt").unlink()
    folder = scan(root)
    found = read_captions(folder).findings(folder)
    assert (found.source, found.without, found.unmatched) == ("none", (), ("A.txt",))
    assert found.lines()[0].startswith("no captions")


def test_a_table_of_skipped_images_alone_is_refused(root):
    (root / "d.png").write_bytes(b"no image")
    table(root, {"file_name": "d.png", "text": "x"})
    folder = scan(root)
    with pytest.raises(SmidgenError, match=r"no image .* has a caption \(metadata.jsonl\)"):
        read_captions(folder).findings(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b" \n\n", "a.txt is empty"),
        (b"\xff\xfe", "a.txt is not UTF-8"),
    ],
)
def test_a_caption_file_that_says_nothing_is_refused_by_name(root, text, said):
    (root / "a.txt").write_bytes(text)
    with pytest.raises(SmidgenError, match=said):
        by_name(root)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 of metadata.jsonl is no JSON object"),
        ("[]", "line 2 of metadata.jsonl is no JSON object"),
        ("[" * 100_000, "line 2 of metadata.jsonl is no JSON object"),
        ('{"file_name": "a.jpg"}', "line 2 of metadata.jsonl needs file_name and one of text"),
        ('{"text": "an owl"}', "line 2 of metadata.jsonl needs file_name"),
        ('{"file_name": "a.jpg", "text": ""}', "text is empty"),
        ('{"file_name": "a.jpg", "text": []}', "text is empty"),
        ('{"file_name": "a.jpg", "text": 3}', "text is no text"),
        ('{"file_name": "z.jpg", "text": "x"}', 'names "z.jpg", which is no image'),
        ('{"file_name": "c.png", "text": "x"}', "a second time"),
    ],
)
def test_a_broken_row_is_refused_with_its_place(root, line, said):
    table(root, {"file_name": "c.png", "text": "third"})
    with (root / "metadata.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SmidgenError, match=said):
        by_name(root)


def test_a_row_of_an_image_that_was_skipped_is_no_fault(root):
    (root / "d.png").write_bytes(b"no image")
    table(root, {"file_name": "d.png", "text": "x"}, {"file_name": "a.jpg", "text": "y"})
    folder = scan(root)
    assert read_captions(folder).of(folder)[0] == ("y",)


@pytest.mark.parametrize("source", ["txt", "jsonl"])
def test_captions_that_are_asked_for_and_not_there_are_refused(root, source):
    with pytest.raises(UsageError):
        by_name(root, source)


def test_text_files_that_are_named_after_no_image_are_refused_where_they_are_asked_for(root):
    (root / "x.txt").write_text("an owl")
    with pytest.raises(UsageError, match=r"x.txt is named after none"):
        by_name(root, "txt")


def test_two_kinds_of_captions_must_be_told_apart(root):
    (root / "a.txt").write_text("an owl")
    table(root, {"file_name": "a.jpg", "text": "a fox"})
    with pytest.raises(UsageError, match="say which"):
        by_name(root)
    assert by_name(root, "jsonl")[0]["a.jpg"] == ("a fox",)
