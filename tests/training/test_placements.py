"""What SDXL is told of each image beside its prompt: in training how it lies in its picture, in
drawing that it is a whole one.
"""

import pytest

import smidgen
from smidgen.data.images import Facts, placement
from smidgen.models.pretrained import load_base
from smidgen.sizes import ImageSize
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES

SETTINGS = {
    "method": "lora",
    "steps": 4,
    "batch_size": 2,
    "lr": 0.01,
    "validation_share": 0.0,
    "trackers": (),
    "progress": False,
}
# original height and width, top and left of the crop, height and width of the image
TOLD = {
    True: {(30, 50, 0, 0, 12, 20), (50, 30, 0, 0, 20, 12), (16, 16, 0, 0, 16, 16)},
    # 50 of 30 pixels at a height of 16 are 26.7 wide, of which 10.7 are cut off
    False: {(30, 50, 0, 5, 16, 16), (50, 30, 5, 0, 16, 16), (16, 16, 0, 0, 16, 16)},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load_base(TINY_PIPELINES["sdxl"].save(tmp_path_factory.mktemp("pipelines") / "sdxl"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for number, (width, height) in enumerate([(50, 30), (30, 50), (16, 16)]):
        write_image(root / f"{number}.png", number, width, height)
    return root


@pytest.fixture
def told(base):
    """The numbers that the network is told from now on, an image a row."""
    rows: list[tuple[int, ...]] = []

    def note(module, arguments, named):
        rows.extend(map(tuple, named["added_cond_kwargs"]["time_ids"].int().tolist()))

    handle = base.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    handle.remove()


@pytest.mark.parametrize(
    ("picture", "size", "mode", "expected"),
    [
        ((640, 480), "512", "crop", (480, 640, 0, 85, 512, 512)),  # 682.7 wide
        ((480, 640), "512", "crop", (640, 480, 85, 0, 512, 512)),
        ((640, 480), "512x384", "crop", (480, 640, 0, 0, 384, 512)),
        ((640, 480), "512", "resize", (480, 640, 0, 0, 512, 512)),
        ((256, 256), "512", "crop", (256, 256, 0, 0, 512, 512)),
    ],
)
def test_a_placement_is_that_of_the_resized_picture(picture, size, mode, expected):
    facts = Facts(format="PNG", width=picture[0], height=picture[1])
    assert placement(facts, ImageSize.of(size), mode) == expected


@pytest.mark.parametrize("buckets", [True, False])
def test_training_tells_how_each_image_lies_in_its_picture(base, photos, told, tmp_path, buckets):
    smidgen.train(base, photos, output=tmp_path / "run", buckets=buckets, **SETTINGS)
    assert set(told) == TOLD[buckets]


def test_a_validation_tells_it_too(base, photos, told, tmp_path):
    smidgen.train(base, photos, output=tmp_path / "run", **SETTINGS | {"validation_share": 0.5})
    assert len(told) > SETTINGS["steps"] * SETTINGS["batch_size"]
    assert set(told) <= TOLD[True]


def test_what_is_drawn_is_a_whole_picture_of_its_size(base, told):
    smidgen.sample(base, prompts="a dog", steps=1)
    assert set(told) == {(16, 16, 0, 0, 16, 16)}
    wide = load_base(base.source, image_size="24x16")
    condition = wide.conditioner.encode(["a dog", ""])
    assert condition["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
