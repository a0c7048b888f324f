"""load_base on pipelines whose network has no host: what a derived description serves for."""

import pytest
import torch

import smidgen
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.pretrained import load_base
from tests.tiny.codecs import autoencoder
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.images import write_photos
from tests.tiny.networks import network

KINDS = {"auraflow": "AuraFlowPipeline", "lumina2": "Lumina2Pipeline"}
METHODS_THERE = ("bitfit", "lora", "difffit")


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    """As diffusers writes it, without text encoders: they are not read."""
    import diffusers

    folder = tmp_path_factory.mktemp("pipelines") / family
    transformer = network(family)
    parts = {
        "transformer": transformer,
        "vae": autoencoder(latent_channels=transformer.config["in_channels"]),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    }
    kind = getattr(diffusers, KINDS[family])
    kind(**parts, tokenizer=None, text_encoder=None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(folder):
    return load_base(folder)


def fresh(base, method) -> Delta:
    delta = build_delta(method, base, configure(method), (), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return delta


def answer(family, network) -> torch.Tensor:
    tiny = TINY_HOSTS[family]
    inputs = tiny.inputs(torch.tensor([0, 1]))
    return tiny.call(network, *(t.float() if t.is_floating_point() else t for t in inputs))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS_THERE)
def test_a_delta_acts_and_comes_back_from_its_file(base, family, tmp_path, method):
    assert (base.host.family, base.process.name, base.conditioner) == ("derived", "flow", None)
    delta = fresh(base, method)
    delta.save(tmp_path / "delta.safetensors")
    plain = answer(family, base.denoiser)
    with delta.attach(base):
        changed = answer(family, base.denoiser)
    assert (changed - plain).abs().max() > 1e-2
    read = Delta.load(tmp_path / "delta.safetensors")
    read.check_base(base.fingerprint, base.name)
    with read.attach(base):
        assert torch.equal(answer(family, base.denoiser), changed)
    assert torch.equal(answer(family, base.denoiser), plain)


@torch.no_grad()
def test_lora_folds_into_a_folder_that_is_loaded_again(base, family, tmp_path):
    delta = fresh(base, "lora")
    smidgen.fold(base, delta, format="diffusers", output=tmp_path / "folded")
    with delta.attach(base):
        expected = answer(family, base.denoiser)
    found = answer(family, load_base(tmp_path / "folded").denoiser)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_training_and_sampling_say_that_a_host_is_needed(base, tmp_path):
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(SmidgenError, match="no host says how models of class"):
        smidgen.train(base, photos, method="lora", output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SmidgenError, match="no host says how models of class"):
        smidgen.sample(base, prompts="a red fox")
