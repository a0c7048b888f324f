"""What the verbs make of a base that reads prompts: it is measured by the prompts of its classes,
folded from where it was read, and its memory counted, on tiny pipelines of diffusers.
"""

import pytest
import torch

import smidgen
from smidgen import api
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models import architectures
from smidgen.models.calling import calling
from smidgen.models.labels import labels_of
from smidgen.sampling.config import SamplingConfig
from smidgen.training.config import TrainingConfig
from smidgen.training.example import example_of
from smidgen.training.memory import estimate_memory, step_bytes
from smidgen.training.objective import Batch, Task, batch_loss
from smidgen.training.peak import Peak, copies_of_a_cpu
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def base(folder):
    return api.load_base(folder)


def lora(base):
    return build_delta("lora", base, configure("lora"), (), torch.Generator().manual_seed(0))


def test_a_flow_is_measured_by_the_prompts_of_the_classes_that_it_was_trained_on(tmp_path):
    base = api.load_base(TINY_PIPELINES["sd3"].save(tmp_path / "sd3"))
    photos = write_photos(tmp_path / "photos")
    run = tmp_path / "run"
    short = {"steps": 1, "batch_size": 2, "validation_share": 0.0, "trackers": ()}
    smidgen.train(
        base, photos, method="lora", prompt="art of a {class}", output=run, progress=False, **short
    )
    sampling = SamplingConfig(num_images=6, steps=2, seed=4)
    found = smidgen.evaluate(run, photos, base=base, sampling=sampling)
    assert found["protocol"]["sampling"]["sampler"] == "euler"
    prompts = ("art of a bee", "art of a dog")
    images = smidgen.sample(
        base,
        delta=run / "delta.safetensors",
        prompts=prompts,
        num_images=6,
        steps=2,
        seed=4,
        sampler="euler",
    )
    for number, image in enumerate(images):
        place = tmp_path / "drawn" / ("bee", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    from_files = smidgen.evaluate(tmp_path / "drawn", photos)
    assert found["metrics"]["fd"] == pytest.approx(from_files["metrics"]["fd"], rel=1e-6)
    with pytest.raises(UsageError, match="use euler"):
        smidgen.evaluate(run, photos, base=base, sampling=SamplingConfig(sampler="ddim"))


def test_a_delta_without_classes_is_not_measured_by_itself(base, tmp_path):
    path = tmp_path / "delta.safetensors"
    lora(base).save(path)
    with pytest.raises(UsageError, match="names no classes, and"):
        smidgen.evaluate(path, write_photos(tmp_path / "photos"), base=base)


def test_a_base_of_a_relative_name_folds_from_another_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    base = api.load_base(folder.name)
    assert (base.name, base.source) == (folder.name, folder)
    monkeypatch.chdir(tmp_path)
    api.fold(base, lora(base), format="diffusers", output=tmp_path / "folded")
    assert (tmp_path / "folded" / "model_index.json").is_file()
    base.source = tmp_path / "gone"
    with pytest.raises(SmidgenError, match="load the base again"):
        api.fold(base, lora(base), format="diffusers", output=tmp_path / "again")


def test_inspect_fetches_and_reads_configurations_only(folder, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    for name in ("model_index.json", "unet/config.json"):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).write_bytes((folder / name).read_bytes())
    asked = []

    def download(name, patterns):
        asked.append((name, tuple(patterns)))
        return bare

    monkeypatch.setattr(architectures, "download", download)
    there, here = (api.inspect(name, method="lora") for name in ("owner/model", str(folder)))
    assert {**there, "base": ""} == {**here, "base": ""}
    ((name, patterns),) = asked
    assert name == "owner/model"
    assert all(pattern.endswith(".json") for pattern in patterns)


@pytest.mark.slow
def test_the_memory_of_a_base_with_prompts_is_that_of_a_real_step_at_its_image_size(folder):
    base = api.load_base(folder, image_size=32)
    delta, count = lora(base), 4
    config = TrainingConfig(batch_size=count)
    task = Task(process=base.process, labels=labels_of(base, prompts=("a bee",)))
    with (
        delta.attach(base),
        Peak(base.denoiser, delta, own_copies=copies_of_a_cpu) as peak,
    ):
        latents = torch.randn(2, count, *base.latent_shape)
        labels = torch.zeros(count, dtype=torch.long)
        batch = Batch(
            images=labels,
            latents=latents[0],
            noise=latents[1],
            timesteps=torch.zeros(count, dtype=torch.long),
            labels=labels,
        )
        network = calling(base.family, base.denoiser)
        batch_loss(network, batch, task, config, torch.float32).mean().backward()
    found = api.inspect(base, method="lora", batch_size=count)["memory"]
    example = example_of(base.denoiser, base)
    assert found["total"] == estimate_memory(base.denoiser, delta, config, example).total
    assert found["step"] == pytest.approx(peak.highest, rel=0.05)
    assert found["step"] > 2 * step_bytes(
        base.denoiser, delta, config
    )  # of images of half the side
