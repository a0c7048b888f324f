"""`smidgen sample` from pictures, of several prompts, on one page, and a picture drawn again."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from smidgen import api
from smidgen.files.writing import write_png
from smidgen.models.pretrained import load_base
from smidgen.sampling.own_settings import KEYWORD, read_own_settings
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES

FEW = ("--steps", 3, "--guidance", 1.5)


def drawn(smidgen, folder, *arguments):
    outcome = smidgen("sample", *arguments, "--output", folder)
    assert outcome.code == 0, outcome.err
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """A UNet, whose images depend on the batch in their last bits."""
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    TINY_PIPELINES["sd"].save(folder)
    return folder


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "given.png", width=8, height=8)


def test_every_picture_is_drawn_again_from_its_file_bit_for_bit(smidgen, base, trained, tmp_path):
    given = ("--base", base, "--delta", trained, "--num-images", 5, "--batch-size", 2, *FEW)
    files = drawn(smidgen, tmp_path / "first", *given)
    for number in (0, 3):
        again = tmp_path / str(number)
        (file,) = drawn(smidgen, again, "--like", files[number], "--delta", trained)
        assert file.name == files[number].name
        assert file.read_bytes() == files[number].read_bytes()
        assert json.loads((again / "sample.json").read_text())["images"].keys() == {file.name}
    assert (
        "already"
        in smidgen("sample", "--like", files[3], "--delta", trained, "--output", tmp_path / "3").err
    )


def test_a_picture_of_prompts_is_drawn_again_within_its_batch(smidgen, sd, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("an owl\n\n  a blue fox\n", encoding="utf-8")
    given = ("--base", sd, "--prompt", "a red fox", "--prompt-file", prompts, "--seed", 3)
    files = drawn(smidgen, tmp_path / "first", *given, "--negative-prompt", "grey", *FEW)
    assert [file.name[7:-4] for file in files] == ["a red fox", "an owl", "a blue fox"]
    (file,) = drawn(smidgen, tmp_path / "again", "--like", files[1])
    assert file.read_bytes() == files[1].read_bytes()
    (image,) = api.sample(load_base(sd), like=files[1])
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(file)))


def test_flags_go_before_the_settings_of_the_picture(smidgen, sd, tmp_path):
    given = ("--base", sd, "--prompt", "a red fox", "--prompt", "an owl")
    files = drawn(smidgen, tmp_path / "first", *given, *FEW)
    assert len(files) == 2
    (file,) = drawn(smidgen, tmp_path / "other", "--like", files[1], "--seed", 5)
    assert file.read_bytes() != files[1].read_bytes()
    assert read_own_settings(file).settings == read_own_settings(files[1]).settings | {"seed": 5}


def test_a_changed_picture_needs_its_own_files_again(smidgen, base, image, tmp_path):
    given = ("--base", base, "--classes", "ant", "--image", image, "--image-strength", 0.7)
    (first,) = drawn(smidgen, tmp_path / "first", *given, *FEW)
    again = ("sample", "--like", first, "--output", tmp_path / "again")
    other = write_image(tmp_path / "other.png", seed=1, width=8, height=8)
    for more, message in (
        ((), "was drawn with a file for --image; give that of SHA-256"),
        (("--image", other), "other.png is not the file with which"),
        (("--image", tmp_path), "no such file"),
        (("--image", image, "--delta", other), "was drawn without a file for --delta"),
    ):
        outcome = smidgen(*again, *more)
        assert outcome.code == 2
        assert message in outcome.err
    (file,) = drawn(smidgen, tmp_path / "again", "--like", first, "--image", image)
    assert file.read_bytes() == first.read_bytes()
    record = json.loads((tmp_path / "first" / "sample.json").read_text())["settings"]
    assert record["image_strength"] == 0.7
    assert record["image"] == read_own_settings(first).files["image"]
    assert str(tmp_path / "given.png") not in first.read_bytes().decode("latin-1")


def test_another_base_does_not_draw_it_again(smidgen, base, other_base, tmp_path):
    (first,) = drawn(smidgen, tmp_path / "first", "--base", base, "--classes", "ant", *FEW)
    outcome = smidgen(
        "sample", "--like", first, "--base", other_base, "--output", tmp_path / "again"
    )
    assert outcome.code == 2
    assert "was drawn by another base" in outcome.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no settings of smidgen in it"),
        ("{", "cannot draw"),
        ("[1]", "cannot draw"),
        ('{"number": 1}', "missing required field"),
        ('{"a":' * 50 + "1" + "}" * 50, "nested too deeply"),
        ('{"number":-1,"shows":"","base_fingerprint":"","settings":{}}', "its number is -1"),
        (
            '{"number":0,"shows":"","base_fingerprint":"","settings":{"steps":"x"}}',
            "steps is .*expected an integer",
        ),
        (
            '{"number":0,"shows":"","base_fingerprint":"","settings":{"thoughts":1}}',
            'unknown key "thoughts"',
        ),
        (
            '{"number":0,"shows":"","base_fingerprint":"","settings":{"output":"/home"}}',
            "names output, which no picture may",
        ),
    ],
)
def test_what_a_picture_says_is_checked(smidgen, base, tmp_path, text, message):
    path = tmp_path / "theirs.png"
    write_png(Image.new("RGB", (8, 8)), path, text=None if text is None else (KEYWORD, text))
    outcome = smidgen("sample", "--base", base, "--like", path, "--output", tmp_path / "out")
    assert (outcome.code, len(outcome.complaint)) == (2, 1)
    assert re.search(message, outcome.err)


def test_a_page_shows_what_is_in_the_folder_also_later(smidgen, base, tmp_path):
    given = ("--base", base, "--num-images", 4, *FEW)
    files = drawn(smidgen, tmp_path / "out", *given)
    assert not (tmp_path / "out" / "page.html").exists()
    outcome = smidgen("sample", *given, "--output", tmp_path / "out", "--page")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == str(tmp_path / "out" / "page.html")
    found = smidgen("sample", *given, "--output", tmp_path / "out", "--page", "--json").document
    assert found["page"] == str(tmp_path / "out" / "page.html")
    assert found["output"] == str(tmp_path / "out")
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(files)


def test_some_of_the_images_are_those_of_all(smidgen, base, tmp_path):
    given = ("--base", base, "--num-images", 7, "--batch-size", 3, *FEW)
    files = drawn(smidgen, tmp_path / "all", *given)
    some = drawn(smidgen, tmp_path / "some", *given, "--numbers", 6, 1)
    assert [file.read_bytes() for file in some] == [files[n].read_bytes() for n in (1, 6)]
    outcome = smidgen("sample", *given, "--numbers", 7, "--output", tmp_path / "none")
    assert outcome.code == 2
    assert "of 7 images the last is 6" in outcome.err


def test_images_of_one_round_can_share_their_noise(smidgen, base):
    loaded = load_base(base)
    settings = {"classes": ("ant", "bee"), "steps": 3, "num_images": 4, "seed": 2}
    shared = api.sample(loaded, same_noise=True, **settings)
    alone = api.sample(loaded, **(settings | {"classes": "bee", "num_images": 2}))
    for number, image in enumerate(alone):  # bee of noise 0 and 1
        found = np.asarray(shared[2 * number + 1], int)
        assert np.abs(found - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "has no prompts"), (b"\xff\xfe", "cannot read the prompts")]
)
def test_a_file_of_prompts_that_is_none_is_told(smidgen, sd, tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    outcome = smidgen("sample", "--base", sd, "--prompt-file", file, "--output", tmp_path / "out")
    assert (outcome.code, len(outcome.complaint)) == (2, 1)
    assert message in outcome.err
