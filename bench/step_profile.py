"""On what a training step and a sampling step of a DiT spend their time, for bench/speed.py: what
bounds them on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.profiler import ProfilerActivity, profile

from bench.rows import (
    SHAPES,
    Row,
    Rows,
    batch_of,
    delta_of,
    no_grad,
    own,
    plain,
    step,
    trained,
    with_delta,
)
from bench.training_rows import floor
from smidgen.training.optimizer import make_optimizer

KINDS: Mapping[str, tuple[str, ...]] = {
    "products": ("mm", "addmm", "bmm", "mkldnn_convolution", "convolution_backward"),
    "attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "GELU": ("gelu", "gelu_backward"),
    "norms": ("native_layer_norm", "native_layer_norm_backward"),
    "copies": ("copy_", "cat", "fill_"),  # also of a bias into the output of its product
}
OTHER, BETWEEN = "other numbers", "Python"
STEPS = 3


def steps_of(name: str) -> Rows:
    """A step of full fine-tuning and of DiffFit, plainly and as `smidgen train` does it."""
    shape = SHAPES[name]
    batch, network = batch_of(shape), own(shape)
    full, naive = plain(shape, difffit=False), plain(shape, difffit=True)
    delta = delta_of(network, "difffit")
    parameters = list(delta.parameters())
    optimizer = make_optimizer(parameters, eight_bit=False, weight_decay=0.0, seed=0)
    fast = step(network, parameters, batch, optimizer=optimizer)
    return {
        "full, plain PyTorch": step(full, trained(full), batch),
        "the floor": floor(shape),
        "DiffFit, plain PyTorch": step(naive, trained(naive), batch),
        "difffit, fast, AdamW as trained": with_delta(network, delta, fast, fast=True),
    }


def forwards_of(name: str, images: int) -> Rows:
    """A forward pass of so many guided images."""
    shape = SHAPES[name]
    network, batch = own(shape), batch_of(shape, 2 * images)
    delta, run = delta_of(network, "difffit"), no_grad(network, batch)
    return {
        "plain PyTorch": no_grad(plain(shape, difffit=False), batch),
        "the floor": floor(shape, images=2 * images, backward=False),
        "base": with_delta(network, None, run, fast=True),
        "DiffFit, fast": with_delta(network, delta, run, fast=True),
    }


def spent(rows: Rows) -> dict[str, dict[str, float]]:
    """Seconds of each row by kind, of its fastest of some profiled steps."""
    found = {}
    for name, row in rows.items():
        row()
        found[name] = min((_profiled(row) for _ in range(STEPS)), key=lambda each: each["all"])
    return found


def _profiled(row: Row) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        seconds = row()
    kinds = {f"aten::{operator}": kind for kind, names in KINDS.items() for operator in names}
    times = dict.fromkeys((*KINDS, OTHER), 0.0)
    for event in found.key_averages():
        # what encloses operators is Python's: the optimizer's step, a function of ours, the engine
        if event.key.startswith("aten::"):
            times[kinds.get(event.key, OTHER)] += event.self_cpu_time_total / 1e6
    times[BETWEEN] = max(0.0, seconds - sum(times.values()))
    return {kind: round(time, 4) for kind, time in (times | {"all": seconds}).items()}
