from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from smidgen.core.quantising import quantise
from smidgen.core.storage import narrow
from smidgen.fast.acting import acting
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.calling import calling
from smidgen.models.labels import labels_of
from smidgen.training.config import TrainingConfig
from smidgen.training.example import example_of
from smidgen.training.memory import estimate_memory, step_bytes
from smidgen.training.network import training_network
from smidgen.training.objective import Batch, Task, batch_loss
from smidgen.training.peak import Peak, copies_of_a_cpu
from tests.tiny.bases import base_of, tiny_base
from tests.tiny.deltas import DENOISER_METHODS
from tests.tiny.hosts import TINY_HOSTS


def delta_of(base, method):
    return build_delta(
        method, base, configure(method), ("bee", "dog"), torch.Generator().manual_seed(0)
    )


def real_step(base, delta, batch_size):
    """Bytes at the peak of a step on real tensors."""
    base.denoiser.requires_grad_(False)
    config = TrainingConfig(batch_size=batch_size)
    with (
        acting(delta, base.denoiser),
        Peak(base.denoiser, delta, own_copies=copies_of_a_cpu) as peak,
    ):
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
    assert estimate.step == max(counted, 2 * trained)  # it is written from a copy
    # the schedule's tables are made anew in a real step and are not the network's
    assert counted == pytest.approx(real_step(base, delta, 16), rel=0.05)


def allocated(base, delta, config, task):
    """Bytes at the peak of a real step, as the allocator of PyTorch tells its profiler."""
    base.denoiser.requires_grad_(False)
    delta.requires_grad_(True)
    count = config.batch_size
    labels = torch.zeros(count, dtype=torch.long)
    with training_network(base, delta, task, config) as network:
        inputs = torch.randn(2, count, *base.latent_shape)
        batch = Batch(
            images=labels,
            latents=inputs[0],
            noise=inputs[1],
            timesteps=task.process.times(torch.linspace(0.1, 0.9, count, dtype=torch.float64)),
            labels=labels,
        )
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            batch_loss(network, batch, task, config, torch.float32).mean().backward()
    found = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    found.sort(key=lambda event: event.start_ns())
    given = inputs.nbytes  # before the profiler was there
    return given + max(accumulate(event.nbytes() for event in found))


IN_FEW_BITS = [
    ("difffit", {}),
    ("difffit", {"gradient_checkpointing": True}),
    ("bitfit", {"activations": "8bit"}),
    ("adaptformer", {"gradient_checkpointing": True}),
]
WHOLE = [*IN_FEW_BITS, ("full", {}), ("full", {"gradient_checkpointing": True})]


@pytest.mark.parametrize(
    ("kept", "method", "settings"),
    [
        *((kept, *one) for kept in ("fp32", "bf16") for one in WHOLE),
        *((kept, *one) for kept in ("int8", "nf4") for one in IN_FEW_BITS),
    ],
)
def test_the_allocator_says_the_same_of_a_dit(kept, method, settings):
    base = tiny_base(depth=4)
    delta = delta_of(base, method)
    if kept == "bf16":
        narrow(base.denoiser, torch.bfloat16)
    elif kept != "fp32":
        quantise(base.denoiser, kept)
    config = TrainingConfig(batch_size=32, precision="fp32", **settings)
    task = Task(process=base.process, labels=labels_of(base, delta))
    counted = step_bytes(base.denoiser, delta, config)
    assert counted == pytest.approx(allocated(base, delta, config, task), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("method", ["lora", "difffit", "adapter", "full"])
def test_the_allocator_says_the_same_of_a_unet(method, checkpointed):
    base = base_of(TINY_HOSTS["unet"].make(3), name="tiny-unet")
    delta = build_delta(method, base, configure(method), (), torch.Generator().manual_seed(0))
    config = TrainingConfig(batch_size=8, precision="fp32", gradient_checkpointing=checkpointed)
    example = replace(example_of(base.denoiser), latent_shape=base.latent_shape)
    counted = step_bytes(base.denoiser, delta, config, example)
    found = allocated(base, delta, config, example.with_rows(8))
    # what a convolution takes for itself is another thing without AVX-512 than with it
    assert counted == pytest.approx(found, rel=0.15)


def test_a_convolution_takes_copies_in_a_layout_of_its_own():
    x, weight = torch.empty(2, 3, 8, 8), torch.empty(5, 3, 1, 1)
    with Peak(own_copies=copies_of_a_cpu) as peak:
        y = torch.nn.functional.conv2d(x, weight)
    assert (peak.now, peak.highest) == (y.nbytes, 2 * y.nbytes)
    x.requires_grad_()
    weight.requires_grad_()
    y = torch.nn.functional.conv2d(x, weight)
    with Peak(own_copies=copies_of_a_cpu) as peak:
        torch.autograd.grad(y, [x, weight], torch.empty_like(y))
    # the gradient that goes in, that of x, and copies of both x and what goes in
    assert peak.highest == y.nbytes + x.nbytes + x.nbytes + y.nbytes


@pytest.mark.slow
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
