"""Images that are no squares, through all that is done with a base."""

import tomllib

import pytest
import torch

from smidgen import api
from smidgen.api.planning import plan_run
from smidgen.errors import UsageError
from smidgen.files.run_files import RECIPE
from smidgen.sizes import ImageSize
from smidgen.training.config import RunConfig, TrainingConfig
from tests.tiny.images import write_folder
from tests.tiny.pipelines import TINY_PIPELINES

WIDE = "32x16"
SHORT = {"batch_size": 2, "lr": 0.1, "validation_share": 0.0, "trackers": ()}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["sdxl", "sd3"])
def folder(request, tmp_path_factory):
    return TINY_PIPELINES[request.param].save(tmp_path_factory.mktemp("pipelines") / "base")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "photos", ("a",), per_class=3)


@pytest.mark.slow
def test_a_base_is_trained_drawn_and_measured_at_a_size_that_is_no_square(folder, photos, tmp_path):
    base = api.load_base(folder, image_size=WIDE)
    run = tmp_path / "run"
    whole, parts = ({"output": run}, {"output": tmp_path / "parts"})
    settings = {"method": "lora", "progress": False, "image_size": WIDE, **SHORT}
    delta = api.train(base, photos, steps=2, **whole, **settings)
    assert tomllib.loads((run / RECIPE).read_text())["image_size"] == WIDE
    assert delta.provenance.training["data"]["image_size"] == WIDE
    # on it goes where it stopped, to the same bits
    api.train(base, photos, steps=1, **parts, **settings)
    again = api.train(folder, photos, steps=2, **parts, **settings)
    for one, other in zip(delta.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UsageError, match="image_size"):
        api.train(folder, photos, steps=2, **whole, **settings | {"image_size": 16})

    images = api.sample(base, delta=delta, num_images=2, steps=1)
    assert [image.size for image in images] == [(32, 16)] * 2
    sampling = api.SamplingConfig(num_images=2, steps=1)
    result = api.evaluate(run, photos, features="glyphs", sampling=sampling)
    assert result["protocol"]["sampling"]["base"] == str(folder)


@pytest.mark.slow
def test_memory_is_counted_at_the_size(folder, photos, tmp_path):
    config = RunConfig(
        data=photos, output=tmp_path / "run", method="lora", training=TrainingConfig(batch_size=2)
    )
    found = {
        size: plan_run(str(folder), config, given={}, image_size=ImageSize.of(size))
        for size in (16, WIDE, "16x32")
    }
    step = {size: facts["memory"]["step"] for size, facts in found.items()}
    assert step[16] < step[WIDE]
    assert step[WIDE] == pytest.approx(step["16x32"], rel=0.1)
    with pytest.raises(UsageError, match=r"image size 27x16 .* give 28x16"):
        plan_run(str(folder), config, given={}, image_size=ImageSize.of("27x16"))
