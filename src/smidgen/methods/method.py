"""What every method shares: the type of a method, what it reads of a base, the assembled delta."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit
from smidgen.hosts.host import Host


class Tunable(Protocol):
    """What a method reads of a base; `models.base.Base` is one."""

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def host(self) -> Host: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning: `build(base, config, classes, generator)` lists its edits as a delta.

    `config` is the frozen dataclass of its options; `default_lr` the paper's learning rate for it.
    """

    config: type
    build: Callable[[Tunable, Any, Sequence[str], torch.Generator], Delta]
    default_lr: float


def assemble(
    base: Tunable, method: str, config: Any, classes: Sequence[str], *groups: Mapping[str, Edit]
) -> Delta:
    """The delta of all `groups` of edits, in that order, on the base's device, with a provenance
    that says how it was built.
    """
    edits: dict[str, Edit] = {}
    for group in groups:
        assert not edits.keys() & group.keys(), "two edits of one name"
        edits |= group
    provenance = Provenance(
        method=method,
        config={key: _plain(value) for key, value in asdict(config).items()},
        host=base.host.family,
        base=base.name,
        fingerprint=base.fingerprint,
        classes=tuple(classes),
        training={},
    )
    device = next(base.denoiser.parameters()).device
    return Delta(edits, provenance).to(device)


def trained_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which a new tensor beside `weight` is trained: half types become float32."""
    return torch.promote_types(weight.dtype, torch.float32)


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back, so that a loaded delta's provenance equals the saved one's."""
    return list(value) if isinstance(value, tuple) else value
