"""Guidance away from the base and from a weaker delta, against the equations written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import smidgen
from smidgen.core.delta import Delta
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.sampling.pair import Pair
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, tiny_base
from tests.tiny.deltas import tiny_delta

W, STEPS, SEED = 2.5, 3, 5
METHODS = ["difffit", "lora", "adaptformer", "vpt", "full"]


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def delta_of(base: Base, method: str, std: float = 0.1) -> Delta:
    return tiny_delta(base, method, std=std).to(
        base.denoiser.get_parameter("x_embedder.proj.weight").dtype
    )


def written_out(base: Base, delta: Delta, other, *, low: float = 0.0, high: float = 1.0):
    """The images where `other(x, t, y)` is what guidance leads away from."""
    numbers = range(len(NEW_CLASSES))
    y = torch.arange(len(NEW_CLASSES))

    def denoise(x, t):
        with delta.attach(base.denoiser):
            own = base.denoiser(x, t, y)
        if not low <= float(t[0]) / 1000 <= high:
            return own
        noise, away = own[:, :4], other(x, t, y)[:, :4]
        return torch.cat([away + W * (noise - away), own[:, 4:]], dim=1)

    generators = [sample_generator(SEED, number) for number in numbers]
    noise = draw_noise(base.latent_shape, generators)
    with torch.no_grad():
        latents = base.process.sample(denoise, noise, generators, sampler="ddpm", steps=STEPS)
        pixels = ((base.codec.decode(latents) + 1) * 127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).numpy().astype(int)


def drawn(base: Base, delta: Delta, **settings):
    images = smidgen.sample(base, delta=delta, steps=STEPS, guidance=W, seed=SEED, **settings)
    return np.stack([np.asarray(image) for image in images]).astype(int)


@pytest.mark.parametrize("method", METHODS)
def test_domain_guidance_leads_away_from_the_base_of_no_class(base, method):
    delta = delta_of(base, method)

    def base_of_none(x, t, y):
        return base.denoiser(x, t, torch.full_like(y, len(KNOWN_CLASSES)))

    expected = written_out(base, delta, base_of_none)
    found = drawn(base, delta, guidance_kind="domain")
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - drawn(base, delta)).max() > 1


@pytest.mark.parametrize("method", METHODS)
def test_auto_guidance_leads_away_from_a_weaker_delta_of_the_same_class(base, method, tmp_path):
    delta, weaker = delta_of(base, method), delta_of(base, method, std=0.02)
    weaker.save(tmp_path / "weaker.safetensors")
    weaker = Delta.load(tmp_path / "weaker.safetensors")

    def of_weaker(x, t, y):
        with weaker.attach(base.denoiser):
            return base.denoiser(x, t, y)

    expected = written_out(base, delta, of_weaker)
    given = {"guidance_kind": "auto", "guidance_delta": tmp_path / "weaker.safetensors"}
    assert np.abs(drawn(base, delta, **given) - expected).max() <= 1


def test_outside_its_interval_guidance_does_not_act(base):
    delta = delta_of(base, "difffit")

    def delta_of_none(x, t, y):
        with delta.attach(base.denoiser):
            return base.denoiser(x, t, torch.full_like(y, len(NEW_CLASSES)))

    expected = written_out(base, delta, delta_of_none, low=0.2, high=0.8)
    found = drawn(base, delta, guidance_interval=(0.2, 0.8))
    assert np.abs(found - expected).max() <= 1
    assert np.abs(found - drawn(base, delta)).max() > 1
    whole = drawn(base, delta, guidance_interval=(0.0, 1.0))
    assert (whole == drawn(base, delta)).all()


@pytest.mark.parametrize(("method", "stacked"), [("difffit", True), ("lora", True), ("vpt", False)])
def test_what_can_be_stacked_is_one_batch(base, method, stacked):
    config = SamplingConfig(guidance_kind="domain", guidance=W)
    pair = prepare(base, config, delta=delta_of(base, method)).pair
    assert isinstance(pair, Pair)
    assert (pair.bank is not None) == stacked


def test_the_images_do_not_depend_on_the_batch_and_the_base_is_as_it_was(base):
    delta = delta_of(base, "difffit")
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    whole = drawn(base, delta, guidance_kind="domain")
    single = drawn(base, delta, guidance_kind="domain", batch_size=1)
    assert np.abs(whole - single).max() <= 1
    assert all(torch.equal(before[n], v) for n, v in base.denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_kind": "auto"}, "guidance_delta is the weaker delta"),
        ({"guidance_delta": "x.safetensors"}, "guidance_delta is the weaker delta"),
        ({"guidance_kind": "domain", "guidance": 1.0}, "acts through guidance, which is 1"),
        ({"guidance_interval": (0.5,)}, "expected two shares"),
        ({"guidance_interval": (0.7, 0.2)}, "expected two shares"),
        ({"guidance_kind": "domian"}, "guidance_kind is"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(base, settings, message):
    with pytest.raises(UsageError, match=message):
        smidgen.sample(base, **settings)


def test_domain_guidance_without_a_delta_and_a_weaker_one_of_other_classes_are_refused(
    base, tmp_path
):
    with pytest.raises(UsageError, match="leads from the base to a delta; give one"):
        smidgen.sample(base, guidance_kind="domain", guidance=W)
    other = tiny_delta(base, "difffit", ("x", "y", "z"))
    other.save(tmp_path / "other.safetensors")
    with pytest.raises((UsageError, SmidgenError), match="other classes"):
        drawn(
            base,
            delta_of(base, "difffit"),
            guidance_kind="auto",
            guidance_delta=tmp_path / "other.safetensors",
        )


def test_facts_name_guidance_only_where_it_is_unusual(tmp_path):
    plain = SamplingConfig().facts()
    assert not {"guidance_kind", "guidance_delta", "guidance_interval"} & set(plain)
    unusual = SamplingConfig(guidance_kind="domain", guidance_interval=(0.1, 0.9)).facts()
    assert unusual["guidance_kind"] == "domain"
    assert list(unusual["guidance_interval"]) == [0.1, 0.9]
