"""Attention of a DiT on a CPU, PyTorch's fused kernel against the written-out form, forward and
backward: python bench/attention.py

Median of rounds in which the two take turns, on one thread; writes bench/results/attention.json.
The ratio is fused / written out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from smidgen.models.dit import attend

SHAPES = ((64, 3, 16, 64), (32, 3, 64, 64), (8, 6, 64, 64))  # images, heads, tokens, channels
ROUNDS = 30


def seconds(
    attention: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: tuple[Tensor, ...], gradient: Tensor
) -> float:
    start = time.perf_counter()
    attention(*qkv).backward(gradient)
    return time.perf_counter() - start


def measure(shape: tuple[int, ...]) -> dict[str, object]:
    """Milliseconds of both forms in bfloat16, and their ratio."""
    *qkv, gradient = torch.randn(4, *shape, dtype=torch.bfloat16)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in qkv)
    forms = {"fused": scaled_dot_product_attention, "written_out": attend}
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            found[name].append(seconds(form, inputs, gradient))
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {
        "shape": shape,
        **{f"{name}_ms": round(1000 * value, 2) for name, value in medians.items()},
        "ratio": round(medians["fused"] / medians["written_out"], 2),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    document = {
        "command": "python bench/attention.py",
        "date": date.today().isoformat(),
        "machine": next(line.split(": ", 1)[1] for line in lines if "model name" in line),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": 0,
        "cases": [measure(shape) for shape in SHAPES],
    }
    Path("bench/results/attention.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document["cases"], indent=2))


if __name__ == "__main__":
    main()
