"""Images of a subject's class that the base draws: once, whatever is run, and whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smidgen
from smidgen.models.pretrained import load_base
from smidgen.sampling.draw import Drawing
from smidgen.training import class_images
from smidgen.training.config import RunConfig
from smidgen.training.subject import class_prompts
from tests.tiny.pipelines import TINY_PIPELINES


def config(cache, count=5, **settings) -> RunConfig:
    subject = {"task": "dreambooth", "token": "sks", "class_name": "owl"}
    places = {"data": Path("photos"), "output": Path("run"), "cache_dir": Path(cache)}
    return RunConfig(**places, **subject | {"class_images": count} | settings).resolved()


def class_folder(base, run: RunConfig):
    """Of a subject whose pictures have no captions."""
    return class_images.class_folder(base, run, class_prompts(run, ()))


def drawing_of(base, run: RunConfig) -> Drawing:
    return class_images.drawing_of(base, run, class_prompts(run, ()))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd"))


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of all images that are drawn, two at a time, killed at `stop_after` so many."""
    numbers, images = [], Drawing.images
    monkeypatch.setattr(class_images, "PIXELS", 2 * 16**2)

    def counted(drawing, some):
        if len(numbers) >= counted.stop_after:
            raise KeyboardInterrupt
        numbers.extend(some)
        return images(drawing, some)

    counted.stop_after = 1000
    monkeypatch.setattr(Drawing, "images", counted)
    return numbers, counted


def pixels(folder):
    return [np.asarray(Image.open(file.path)).tobytes() for file in folder.files]


def test_they_are_what_the_base_draws_of_the_prompt_of_the_class(base, tmp_path):
    found = class_folder(base, config(tmp_path, class_guidance=2.0))
    expected = smidgen.sample(
        base,
        prompts="a photo of a owl",
        num_images=5,
        steps=3,  # of the four of the tiny base
        sampler="dpm++",
        guidance=2.0,
        seed=class_images.SEED,
    )
    assert pixels(found) == [image.tobytes() for image in expected]
    assert len({*pixels(found)}) == 5


def test_they_are_drawn_once_and_only_more_where_more_are_asked_for(base, tmp_path, drawn):
    numbers, _ = drawn
    first = class_folder(base, config(tmp_path, count=3))
    assert numbers == [0, 1, 2]
    class_folder(base, config(tmp_path, count=3, token="zwx"))
    assert numbers == [0, 1, 2]
    more = class_folder(base, config(tmp_path, count=5))
    assert numbers == [0, 1, 2, 3, 4]
    assert pixels(more)[:3] == pixels(first)
    assert pixels(class_folder(base, config(tmp_path, count=2))) == pixels(first)[:2]
    assert len(numbers) == 5
    class_folder(base, config(tmp_path, count=2, class_guidance=3.0))
    class_folder(base, config(tmp_path, count=2, class_name="cat"))
    assert numbers[5:] == [0, 1, 0, 1]


def test_a_killed_drawing_goes_on_and_a_damaged_image_is_drawn_again(base, tmp_path, drawn):
    numbers, counted = drawn
    whole = class_folder(base, config(tmp_path / "whole"))
    numbers.clear()
    counted.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        class_folder(base, config(tmp_path / "cut"))
    counted.stop_after = 1000
    assert numbers == [0, 1]
    (kept,) = (tmp_path / "cut").rglob("000001.png")
    kept.write_bytes(kept.read_bytes()[:-20])
    numbers.clear()
    found = class_folder(base, config(tmp_path / "cut"))
    assert numbers == [1, 2, 3, 4]
    assert pixels(found) == pixels(whole)


def test_all_that_they_depend_on_is_in_their_key(base, tmp_path):
    keys = {
        class_images.key_of(drawing_of(base, config(tmp_path, **settings)))
        for settings in (
            {},
            {"class_name": "cat"},
            {"class_guidance": 3.0},
            {"instance_prompt": "my {token} {class}"},
        )
    }
    assert len(keys) == 4
    other = load_base(base.source, image_size=32)
    keys.add(class_images.key_of(drawing_of(other, config(tmp_path))))
    assert len(keys) == 5
    assert class_images.key_of(drawing_of(base, config(tmp_path, count=7, token="zwx"))) in keys
