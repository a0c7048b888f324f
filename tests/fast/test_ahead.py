"""Modulations computed ahead against those of each step, in whole samplings."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.diffusion.guidance import guide
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.fast import ahead
from smidgen.fast.acting import acting, scheduled
from smidgen.models.base import Base
from smidgen.models.calling import dtype_of
from tests.fast.test_acting import METHODS
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta

STEPS = 6
LABELS = (0, 2, 2, 1, 2)


def latents_of(
    base: Base,
    acts: Delta | Bank | None,
    *,
    ahead: bool,
    sampler: str = "ddim",
    guided_from: int = 0,
) -> Tensor:
    """Five images of three labels, led away from the null label at timesteps from `guided_from`."""

    def call(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return base.denoiser(x, t, y)

    labels = torch.tensor(LABELS)
    denoise = guide(call, labels, 3, 2.0, acts=lambda t: int(t[0]) >= guided_from)
    generators = [sample_generator(0, number) for number in range(len(labels))]
    noise = draw_noise(base.latent_shape, generators, dtype=dtype_of(base.denoiser))
    process = base.process
    times = process.sampled_times(sampler, STEPS) if ahead else torch.empty(0)
    with acting(acts, base.denoiser), scheduled(base.denoiser, times):
        return process.sample(denoise, noise, generators, sampler=sampler, steps=STEPS)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """The rows of each call of `module`."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda *given: rows.append(len(given[2])))
    yield rows
    handle.remove()


@pytest.mark.parametrize("pairs", [128, 8, 4])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_latents_are_those_of_step_by_step(method, pairs, monkeypatch):
    """All steps at once, two at a time, and where there are too many labels for two."""
    monkeypatch.setattr(ahead, "PAIRS", pairs)
    base = law_base("dit")
    delta = None if method is None else tiny_delta(base, method, **METHODS[method])
    steps, at_once = (latents_of(base, delta, ahead=wanted) for wanted in (False, True))
    assert torch.allclose(steps, at_once, rtol=1e-11, atol=1e-11)


def test_float32_latents_are_within_rounding():
    base = law_base("dit")
    base.denoiser.float()
    delta = tiny_delta(base, "difffit").float()
    steps, at_once = (latents_of(base, delta, ahead=wanted) for wanted in (False, True))
    assert float((steps - at_once).abs().max()) < 1e-5 * float(steps.abs().max())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_each_label_is_embedded_once_for_all_times(sampler):
    base = law_base("dit")
    with counted(base.denoiser.t_embedder) as rows:
        latents_of(base, None, ahead=True, sampler=sampler)
    assert rows == [STEPS * (len(set(LABELS)) + 1)]


def test_where_guidance_begins_late_its_label_comes_late():
    base = law_base("dit")
    delta = tiny_delta(base, "difffit")
    with counted(base.denoiser.t_embedder) as rows:
        latents = latents_of(base, delta, ahead=True, guided_from=500)
    assert len(rows) == 1  # what is not guided needs a part of what is computed
    assert torch.allclose(latents, latents_of(base, delta, ahead=False, guided_from=500))


@pytest.mark.parametrize("method", ["bitfit", "difffit", "lora", "adaptformer"])
def test_a_bank_gives_each_image_its_own_delta(method):
    base = law_base("dit")
    bank = Bank([tiny_delta(base, method, std=std) for std in (0.1, 0.2)])
    found = []
    for slots in ([0, 1, 1, 0, 1], [1, 1, 0, -1, 0]):
        bank.choose(torch.tensor(slots))
        steps, at_once = (latents_of(base, bank, ahead=wanted) for wanted in (False, True))
        assert torch.allclose(steps, at_once, rtol=1e-11, atol=1e-11)
        found.append(at_once)
    assert not torch.allclose(*found)


def test_slots_may_change_between_steps():
    base = law_base("dit")
    bank = Bank([tiny_delta(base, "difffit", std=std) for std in (0.1, 0.2)])
    x = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    y, times = torch.tensor([0, 1]), torch.tensor([900, 500, 100])

    def outputs() -> list[Tensor]:
        found = []
        for time, slots in zip(times, ([0, 1], [1, 0], [1, 1]), strict=True):
            bank.choose(torch.tensor(slots))
            found.append(base.denoiser(x, time.repeat(2), y))
        return found

    with torch.no_grad(), acting(bank, base.denoiser):
        expected = outputs()
        with scheduled(base.denoiser, times):
            found = outputs()
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_other_times_and_images_at_several_times_are_computed_as_ever():
    base = law_base("dit")
    delta = tiny_delta(base, "difffit")
    x = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([0, 1])
    with torch.no_grad(), acting(delta, base.denoiser):
        for given in ([100, 900], [3, 3]):
            t = torch.tensor(given)
            expected = base.denoiser(x, t, y)
            with scheduled(base.denoiser, torch.tensor([900, 100])):
                assert torch.equal(base.denoiser(x, t, y), expected)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_images_of_a_bank_are_not_cut_apart(rows):
    """Conditions are filled up to a few rows, each image's slot with its own."""
    base = law_base("dit")
    bank = Bank([tiny_delta(base, "difffit", std=std) for std in (0.1, 0.2)])
    bank.choose(torch.arange(rows) % 2)
    x, t = torch.zeros(rows, *base.latent_shape).double(), torch.full((rows,), 5)
    found = []
    for fast in (False, True):
        with torch.no_grad(), acting(bank, base.denoiser, fast=fast):
            found.append(base.denoiser(x, t, torch.arange(rows)))
    assert torch.allclose(*found, atol=1e-12)
