import pytest
import torch

from smidgen.fast.acting import acting
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.calling import calling
from smidgen.models.labels import labels_of
from smidgen.training.config import TrainingConfig
from smidgen.training.memory import (
    Peak,
    estimate_memory,
    step_bytes,
)
from smidgen.training.objective import Batch, Task, batch_loss
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import DENOISER_METHODS


def delta_of(base, method):
    return build_delta(
        method, base, configure(method), ("bee", "dog"), torch.Generator().manual_seed(0)
    )


def real_step(base, delta, batch_size):
    """Bytes at the peak of a step on real tensors."""
    base.denoiser.requires_grad_(False)
    config = TrainingConfig(batch_size=batch_size)
    with acting(delta, base.denoiser), Peak() as peak:
        labels = torch.zeros(batch_size, dtype=torch.long)
        batch = Batch(
            images=labels,
            latents=torch.randn(batch_size, 4, 4, 4),
            noise=torch.randn(batch_size, 4, 4, 4),
            timesteps=torch.zeros(batch_size, dtype=torch.long),
            labels=labels,
        )
        network = calling(base.family, base.denoiser)
        batch_loss(
            network,
            batch,
            Task(process=base.process, labels=labels_of(base)),
            config,
            torch.float32,
        ).mean().backward()
    return peak.highest


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_the_estimate_counts_what_a_real_step_allocates(method):
    base = tiny_base()
    delta = delta_of(base, method)
    estimate = estimate_memory(base.denoiser, delta, TrainingConfig(batch_size=16))
    trained = 4 * delta.num_parameters()
    assert (estimate.delta, estimate.optimizer) == (trained, 2 * trained)
    assert estimate.weights == 4 * sum(p.numel() for p in base.denoiser.parameters())
    counted = step_bytes(base.denoiser, delta, TrainingConfig(batch_size=16))
    assert estimate.step > counted
    # the schedule's tables are made anew in a real step and are not the network's
    assert counted == pytest.approx(real_step(base, delta, 16), rel=0.05)


def test_checkpointing_and_bf16_take_less_and_twice_the_batch_about_twice():
    base = tiny_base(depth=6)
    delta = delta_of(base, "difffit")

    def step(**settings):
        config = TrainingConfig(**({"batch_size": 32} | settings))
        return step_bytes(base.denoiser, delta, config)

    plain = step()
    assert step(gradient_checkpointing=True) < 0.6 * plain
    assert step(precision="bf16") < 0.8 * plain
    assert step(batch_size=64) == pytest.approx(2 * plain, rel=0.1)


def test_nothing_is_left_in_the_base_and_no_weights_are_needed():
    base = tiny_base()
    delta = delta_of(base, "difffit")
    config = TrainingConfig(batch_size=4)
    total = estimate_memory(base.denoiser, delta, config).total
    assert not any(module._forward_hooks for module in base.denoiser.modules())
    meta, meta_delta = base.denoiser.to("meta"), delta.to("meta")
    assert estimate_memory(meta, meta_delta, config).total == total
