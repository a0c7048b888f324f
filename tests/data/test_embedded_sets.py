"""The shipped image sets: what they hold, and that unpacking is faithful, whole and repeatable."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smidgen.data import embedded_sets
from smidgen.data.embedded_sets import (
    EMBEDDED,
    LINE_DRAWINGS,
    MARKER,
    SETS,
    SUBJECTS,
    EmbeddedSet,
    load_set,
    locate_reference,
    mix_colours,
    name_reference,
    save_set,
    unpack,
)
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.glyph_colours import asked_colours, grounds_of, inks_of
from tests.tiny.images import write_image


def make_set(num_images: int = 12) -> EmbeddedSet:
    draw = np.random.default_rng(0)
    return EmbeddedSet(
        levels=draw.integers(16, size=(num_images, 32, 32), dtype=np.uint8),
        label=np.arange(num_images) % 3,
        ink=draw.integers(2, size=num_images),
        ground=draw.integers(2, size=num_images),
        is_test=np.arange(num_images) % 4 == 3,
        font=np.arange(num_images),
        inks=np.array([[0, 0, 0], [200, 10, 30]], dtype=np.uint8),
        grounds=np.array([[255, 255, 255], [220, 230, 240]], dtype=np.uint8),
        class_names=("alpha", "beta", "gamma"),
    )


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """A set of 12 random pictures in the place of the shipped one."""
    folder = tmp_path / "embedded" / "greek"
    folder.mkdir(parents=True)
    embedded = make_set()
    save_set(embedded, folder / "glyphs.npz")
    monkeypatch.setattr(embedded_sets, "EMBEDDED", tmp_path / "embedded")
    return embedded


def test_mixing_is_the_rounded_linear_mix():
    draw = np.random.default_rng(1)
    masks = draw.integers(256, size=(3, 4, 5), dtype=np.uint8)
    ink = draw.integers(256, size=(3, 3), dtype=np.uint8)
    ground = draw.integers(256, size=(3, 3), dtype=np.uint8)
    share = masks[..., None] / 255
    expected = share * ink[:, None, None, :] + (1 - share) * ground[:, None, None, :]
    mixed = mix_colours(masks, ink, ground)
    assert mixed.dtype == np.uint8
    assert np.abs(mixed - expected).max() <= 0.5  # rounding


def test_saving_and_loading_keeps_everything(small_set):
    loaded = load_set("greek")
    assert loaded.class_names == small_set.class_names
    for key in ("levels", "label", "ink", "ground", "is_test", "font", "inks", "grounds"):
        np.testing.assert_array_equal(getattr(loaded, key), getattr(small_set, key))


def test_unpacked_pictures_are_the_coloured_masks_of_their_class_and_split(small_set, tmp_path):
    folder = unpack("greek", tmp_path / "greek")
    for split, is_test in (("train", False), ("test", True)):
        places = np.flatnonzero(small_set.is_test == is_test)
        written = sorted((folder / split).rglob("*.png"), key=lambda path: path.name)
        assert len(written) == len(places)
        for path, place in zip(written, places, strict=True):
            assert path.parent.name == small_set.class_names[small_set.label[place]]
            share = small_set.levels[place][..., None] / 15
            ink = small_set.inks[small_set.ink[place]]
            ground = small_set.grounds[small_set.ground[place]]
            expected = share * ink + (1 - share) * ground
            with Image.open(path) as picture:
                assert picture.mode == "RGB"
                assert np.abs(np.asarray(picture) - expected).max() <= 0.5


def test_class_order_is_the_order_of_sorted_folders(small_set, tmp_path):
    folder = unpack("greek", tmp_path / "greek")
    for split in ("train", "test"):
        names = sorted(path.name for path in (folder / split).iterdir())
        assert tuple(names) == small_set.class_names


def test_unpacking_again_changes_nothing(small_set, tmp_path):
    folder = unpack("greek", tmp_path / "greek")
    picture = next((folder / "train").rglob("*.png"))
    picture.write_bytes(b"kept")
    assert unpack("greek", folder) == folder
    assert picture.read_bytes() == b"kept"


def test_a_folder_that_lost_pictures_is_refused(small_set, tmp_path):
    folder = unpack("greek", tmp_path / "greek")
    count = len(small_set.label)
    next((folder / "train").rglob("*.png")).unlink()
    with pytest.raises(SmidgenError, match=f"has {count - 1} of the {count} pictures of greek"):
        unpack("greek", folder)


def test_an_interrupted_unpacking_leaves_nothing_and_can_be_repeated(
    small_set, tmp_path, monkeypatch
):
    def fail(*arguments, **keywords):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            unpack("greek", tmp_path / "out" / "greek")
    assert list((tmp_path / "out").iterdir()) == []
    unpack("greek", tmp_path / "out" / "greek")
    assert len(list((tmp_path / "out").rglob("*.png"))) == len(small_set.label)


def test_a_folder_with_other_contents_is_refused_and_kept(small_set, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    with pytest.raises(SmidgenError, match="other contents"):
        unpack("greek", mine)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_an_empty_folder_is_filled(small_set, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (unpack("greek", tmp_path / "empty") / "train" / "alpha").is_dir()


def test_an_unknown_set_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="greek"):
        unpack("klingon", tmp_path / "klingon")
    assert not (tmp_path / "klingon").exists()


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_is_as_promised(name):
    embedded = load_set(name)
    num_classes = len(embedded.class_names)
    assert 20 <= num_classes <= 100
    assert list(embedded.class_names) == sorted(embedded.class_names)
    for is_test, least in ((False, 250), (True, 1000)):
        chosen = embedded.is_test == is_test
        counts = np.bincount(embedded.label[chosen], minlength=num_classes)
        assert chosen.sum() >= least
        assert counts.min() == counts.max()  # every class alike
    ink = embedded.levels.max(axis=(1, 2))
    assert ink.min() >= 4  # no empty picture


@pytest.mark.parametrize("name", SETS)
def test_no_picture_comes_twice(name):
    embedded = load_set(name)
    rows = np.stack([embedded.font, embedded.label, embedded.ink, embedded.ground], axis=1)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize("name", SETS)
def test_no_family_is_on_both_sides_and_every_font_has_a_licence(name):
    embedded = load_set(name)
    fonts = json.loads((EMBEDDED / name / "LICENSES.json").read_text(encoding="utf-8"))
    assert set(embedded.font) == set(range(len(fonts)))
    family = np.array([font["family"] for font in fonts])[embedded.font]
    assert not set(family[embedded.is_test]) & set(family[~embedded.is_test])
    assert all(font["licence"] and font["package"] and font["file"] for font in fonts)


def test_a_shipped_reference_has_a_short_name_unless_a_path_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = locate_reference("greek")
    assert found.is_file()
    assert name_reference(found) == "greek"
    (tmp_path / "greek").mkdir()
    assert locate_reference("greek") == Path("greek")
    assert locate_reference("klingon") == Path("klingon")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"set": 5}', "[]", '"greek"', "", "\xff"])
def test_a_marker_that_is_none_marks_nothing(tmp_path, text):
    write_image(tmp_path / "mine.png")
    (tmp_path / MARKER).write_text(text, encoding="latin-1")
    with pytest.raises(SmidgenError, match="has other contents"):
        unpack("greek", tmp_path)


def test_the_subjects_are_five_pictures_each_that_differ_in_ink_ground_tilt_and_size():
    subjects = load_set(SUBJECTS)
    names = np.array(subjects.class_names)
    assert list(names) == sorted(names)
    classes = {name.rsplit("-", 1)[0] for name in names}
    assert classes >= {"owl", "dog", "fish", "castle"}
    assert len(names) == 2 * len(classes)  # two of each
    for number in range(len(names)):
        own = np.flatnonzero(subjects.label == number)
        assert len(own) == 5
        assert len(set(subjects.ink[own])) == 5
        assert len(set(subjects.ground[own])) == 4
        rows, columns = (np.any(subjects.levels[own] > 3, axis=axis).sum(1) for axis in (2, 1))
        longer = np.maximum(rows, columns)
        assert longer.max() - longer.min() >= 5
        assert len(np.unique(subjects.levels[own].reshape(5, -1), axis=0)) == 5
    assert (EMBEDDED / SUBJECTS / "glyphs.npz").stat().st_size < 16_000


def test_subjects_unpack_to_a_folder_each_with_their_licences_beside_them(tmp_path):
    folder = unpack(SUBJECTS, tmp_path / "subjects")
    subjects = load_set(SUBJECTS)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == list(
        subjects.class_names
    )
    for number, name in enumerate(subjects.class_names):
        written, told = (sorted((folder / name).glob(f"*.{kind}")) for kind in ("png", "txt"))
        assert len(written) + len(told) == sum(1 for _ in (folder / name).iterdir())
        expected = subjects.images(np.flatnonzero(subjects.label == number))
        assert [path.suffix for path in written] == [".png"] * 5
        np.testing.assert_array_equal(np.stack([Image.open(path) for path in written]), expected)
        # what each is said to show is what its pixels show
        for path, text, image in zip(written, told, expected, strict=True):
            assert text.stem == path.stem
            plain, coloured = text.read_text().splitlines()
            colours = asked_colours(coloured)
            grounds = grounds_of(image[None])
            assert colours == (inks_of(image[None], grounds)[0], grounds[0])
            assert coloured.startswith(f"{plain} in ")
            assert plain.endswith(f"{{token}} {name.rpartition('-')[0]}")
    licences = (folder / "LICENSES.txt").read_text()
    assert "CC BY 4.0" in licences
    assert "Symbola" in licences
    assert unpack(SUBJECTS, folder) == folder
    next((folder / "owl-ink").glob("*.png")).unlink()
    with pytest.raises(SmidgenError, match="39 of the 40 pictures of subjects"):
        unpack(SUBJECTS, folder)


def test_the_line_drawings_are_of_other_things_in_test_and_say_what_they_show(tmp_path):
    folder = unpack(LINE_DRAWINGS, tmp_path / "lines")
    shown = {part: {path.name for path in (folder / part).iterdir()} for part in ("train", "test")}
    assert (len(shown["train"]), len(shown["test"])) == (100, 56)
    assert not shown["train"] & shown["test"]
    assert not {"owl", "dog", "fish", "castle"} & (shown["train"] | shown["test"])  # the subjects
    pictures = {part: sorted((folder / part).glob("*/*.png")) for part in shown}
    assert (len(pictures["train"]), len(pictures["test"])) == (200, 560)
    for path in pictures["train"][::9]:
        (caption,) = path.with_suffix(".txt").read_text().splitlines()
        image = np.asarray(Image.open(path))[None]
        grounds = grounds_of(image)
        assert asked_colours(caption) == (inks_of(image, grounds)[0], grounds[0])
        noun = path.parent.name
        assert caption.startswith(
            f"a line picture of {'an' if noun[0] in 'aeiou' else 'a'} {noun} "
        )
    assert "CC BY 4.0" in (folder / "LICENSES.txt").read_text()
