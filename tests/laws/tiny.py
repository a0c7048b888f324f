"""The smallest base of every host, with random weights throughout: what the laws run on.

A new host is covered by one entry of TINY_HOSTS, a new method by its line in METHODS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta
from smidgen.hosts.host import Host, find_host
from smidgen.methods import METHODS
from smidgen.models.dit import DiT, DiTConfig

KNOWN_CLASSES = ("ant", "bee", "cat")
NEW_CLASSES = ("bee", "dog", "elk", "fox")  # more than before, one of them known


@dataclass(frozen=True, kw_only=True)
class TinyHost:
    """How the laws handle one family.

    `make(num_classes)` a model on the default device; `inputs(labels)` the arguments of forward;
    `checkpoint(model)` turns gradient checkpointing on. `without_gradient`: tensors of the base
    whose gradient is zero by mathematics -> the range of their elements.
    """

    make: Callable[[int], nn.Module]
    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    checkpoint: Callable[[nn.Module], None]
    without_gradient: Mapping[str, tuple[int, int]]


def _make_dit(num_classes: int) -> DiT:
    config = DiTConfig(
        image_size=4, in_channels=2, width=16, depth=2, num_heads=2, num_classes=num_classes
    )
    return DiT(config)


def _dit_inputs(labels: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(len(labels), 2, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.linspace(5, 995, len(labels)).long(), labels


TINY_HOSTS: dict[str, TinyHost] = {
    "dit": TinyHost(
        make=_make_dit,
        inputs=_dit_inputs,
        checkpoint=lambda model: setattr(model, "gradient_checkpointing", True),
        # a bias of the keys adds the same to all of a query's logits: softmax does not see it
        without_gradient={f"blocks.{n}.attn.qkv.bias": (16, 32) for n in range(2)},
    ),
}


@dataclass(frozen=True, kw_only=True)
class TinyBase:
    """What a method reads of a base."""

    denoiser: nn.Module
    host: Host
    class_names: tuple[str, ...]
    name: str
    fingerprint: str


def randomise(module: nn.Module, std: float, seed: int) -> None:
    """Add N(0, std) to every parameter, so that no gate and no offset is at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))


def tiny_base(host: str, class_names: tuple[str, ...] = KNOWN_CLASSES) -> TinyBase:
    """A frozen float64 base with random weights."""
    torch.manual_seed(0)
    model = TINY_HOSTS[host].make(len(class_names)).double().requires_grad_(False)
    randomise(model, 0.1, seed=1)
    return TinyBase(
        denoiser=model,
        host=find_host(model),
        class_names=class_names,
        name=f"tiny-{host}",
        fingerprint="sketch1:none",
    )


def tiny_delta(
    base: TinyBase, method: str, classes: Sequence[str] = NEW_CLASSES, *, std: float = 0.2, **config
) -> Delta:
    """The float64 delta of `method` with every tensor moved off its start by N(0, std)."""
    entry = METHODS[method]
    generator = torch.Generator().manual_seed(2)
    delta = entry.build(base, entry.config(**config), classes, generator).double()
    randomise(delta, std, seed=3)
    return delta


def all_labels(classes: Sequence[str]) -> Tensor:
    """Every class once, then the null label."""
    return torch.arange(len(classes) + 1)


def trained_tensors(delta: Delta) -> dict[str, nn.Parameter]:
    """The trained tensors by the names that they have in a delta file."""
    return {
        f"{name}.{key}": parameter
        for name, edit in delta.edits.items()
        for key, parameter in edit.tensors().items()
    }
