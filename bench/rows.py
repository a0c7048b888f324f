"""Rows of bench/speed.py and how they are timed: a row is a function that returns the seconds that
it took, of a case whose rows take turns. Networks have random weights, B images a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.plain_dit import PlainDiT
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.fast.acting import acting
from smidgen.fast.names import FrozenPrecision
from smidgen.hosts.host import find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT, DiTConfig

CLASSES = 20
Row = Callable[[], float]
Rows = dict[str, Row]


@dataclass(frozen=True)
class Case:
    """A table: its rows, made when it is measured; what is `kept` for the backward pass, `held`
    together with gradients and the averages of AdamW, at most at any time of a step (`peak`), and
    by the optimizer alone (`state`), in which unit; on what rows spend their time (`spent`).
    `asked`: only measured where it is named, for it takes minutes.
    """

    make: Callable[[], Rows]
    kept: Callable[[], dict[str, float]] | None = None
    held: Callable[[], dict[str, float]] | None = None
    peak: Callable[[], dict[str, float]] | None = None
    state: Callable[[], dict[str, float]] | None = None
    spent: Callable[[Rows], dict[str, dict[str, float]]] | None = None
    unit: str = "units of (B, N, D) a block"
    asked: bool = False


@dataclass(frozen=True)
class Shape:
    """A DiT of 2 x 2 patches, and the images of a step."""

    width: int
    depth: int
    heads: int
    batch: int
    size: int = 32

    @property
    def config(self) -> DiTConfig:
        return DiTConfig(
            image_size=self.size,
            width=self.width,
            depth=self.depth,
            num_heads=self.heads,
            num_classes=CLASSES,
        )

    @property
    def tokens(self) -> int:
        return (self.size // 2) ** 2


SHAPES = {
    "DiT-S/2": Shape(384, 12, 6, 8),
    "DiT-B/2": Shape(768, 12, 12, 4),
    "XL width, 4 blocks": Shape(1152, 4, 16, 4),
    "glyphs": Shape(192, 8, 3, 64, size=8),
    "glyphs-64": Shape(192, 8, 3, 64, size=16),
}


def lively(network: nn.Module, seed: int = 0) -> Any:
    """Random weights, so that no zero gate makes gradients 0, which some kernels are fast at."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def delta_of(network: DiT, method: str, **options: Any) -> Delta:
    """A delta of `method` in `network`, a little off its start."""
    base: Any = SimpleNamespace(
        denoiser=network,
        host=find_host(network),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        name="bench",
        fingerprint="sketch1:none",
    )
    random = torch.Generator().manual_seed(0)
    delta = build_delta(method, base, configure(method, options), base.class_names, random)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=random))
    return delta


def batch_of(shape: Shape, images: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    images = images or shape.batch
    random = torch.Generator().manual_seed(1)
    x = torch.randn(images, 4, shape.size, shape.size, generator=random)
    return x, torch.linspace(0, 999, images), torch.arange(images) % CLASSES


def step(
    call: Callable[..., Tensor],
    parameters: list[nn.Parameter],
    batch: Any,
    *,
    reduced: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
) -> Row:
    """Forward, under autocast to bf16 if `reduced`, backward, and the `optimizer`, None: AdamW as
    PyTorch has it by default.
    """
    optimizer = optimizer or torch.optim.AdamW(parameters, lr=1e-9)

    def run() -> None:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=reduced):
            output = call(*batch)
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(run)


def no_grad(call: Callable[..., Tensor], batch: Any) -> Row:
    @torch.no_grad()
    def run() -> None:
        call(*batch)

    return timed(run)


def plain(shape: Shape, *, difffit: bool) -> PlainDiT:
    sizes = (shape.size, shape.width, shape.depth, shape.heads, CLASSES)
    return lively(PlainDiT(*sizes, difffit=difffit))


def own(shape: Shape) -> DiT:
    return lively(DiT(shape.config)).requires_grad_(False)


def timed(run: Callable[[], object]) -> Row:
    """The seconds that `run` takes."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def row() -> float:
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start

    return row


def with_delta(
    network: nn.Module,
    delta: Delta | Bank | None,
    run: Row,
    *,
    fast: bool,
    frozen_precision: FrozenPrecision = "exact",
) -> Row:
    """`run` while the delta acts in the network: attaching is not timed."""

    def row() -> float:
        with acting(delta, network, fast=fast, frozen_precision=frozen_precision):
            return run()

    return row


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def measured(rows: Rows, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and the ratio to the first row of the same round: median and quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, row in rows.items():
            seconds[name].append(row())
    warm = {name: np.array(values[1:]) for name, values in seconds.items()}
    first = next(iter(warm.values()))
    found = {}
    for name, values in warm.items():
        low, middle, high = np.quantile(values / first, (0.25, 0.5, 0.75))
        found[name] = {
            "seconds": round(float(np.median(values)), 5),
            "ratio": round(float(middle), 3),
            "quartiles": [round(float(low), 3), round(float(high), 3)],
        }
    return found
