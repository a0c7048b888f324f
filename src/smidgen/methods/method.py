"""What every method shares: the type of a method, what it reads of a base, the assembled delta."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.settings import make
from smidgen.hosts.host import Host

MAX_SIZE = 2**20  # of an option: wider than any network, and no count of parameters overflows


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


def make_config(name: str, method: Method, values: Mapping[str, Any]) -> Any:
    """The config of the method called `name` with these options (lists as tuples).

    Raises: UsageError for an unknown option, with the closest one, or a value that makes no sense.
    """
    return make(method.config, values, source=name, kind="option")


def assemble(
    base: Tunable, method: str, config: Any, classes: Sequence[str], *groups: Mapping[str, Edit]
) -> Delta:
    """The delta of all `groups` of edits, in that order, on the base's device, with a provenance
    that says how it was built.

    Raises: SmidgenError if there is no edit at all.
    """
    edits: dict[str, Edit] = {}
    for group in groups:
        assert not edits.keys() & group.keys(), "two edits of one name"
        edits |= group
    if not edits:
        raise SmidgenError(
            f"{method} finds nothing to train in a {base.host.family} base; choose another method"
        )
    provenance = Provenance(
        method=method,
        config=_plain(asdict(config)),
        host=base.host.family,
        base=base.name,
        fingerprint=base.fingerprint,
        classes=tuple(classes),
        training={},
    )
    device = next(base.denoiser.parameters()).device
    return Delta(edits, provenance).to(device)


def refuse_where_impossible(host: Host, method: str) -> None:
    """Raises: SmidgenError with the host's reason if this method cannot work there."""
    reason = host.refusals.get(method)
    if reason is not None:
        raise SmidgenError(f"{method} does not work on a {host.family} base: {reason}")


def block_range(blocks: str, depth: int) -> range:
    """The blocks, counted from 0, of a range "A-B" (counted from 1, both ends included, in either
    direction) among `depth`.

    Raises: UsageError if the range does not fit.
    """
    first, last = range_ends(blocks)
    if last > depth:
        raise UsageError(f'blocks "{blocks}" do not fit: the base has blocks 1-{depth}')
    return range(first - 1, last)


def range_ends(blocks: str, *words: str) -> tuple[int, int]:
    """The lower and the upper end of "A-B" or "B-A".

    Raises: UsageError if it is no such range; `words` are what else would have been taken.
    """
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", blocks)
    if not match or min(int(match[1]), int(match[2])) < 1:
        choices = "".join(f'"{word}", ' for word in words).removesuffix(", ")
        expected = f"{choices} or a range" if words else "a range"
        raise UsageError(f'blocks is "{blocks}"; expected {expected} such as "1-14"')
    return min(int(match[1]), int(match[2])), max(int(match[1]), int(match[2]))


def check_size(name: str, value: int) -> None:
    """Raises: UsageError for an option that is no number of channels or tokens."""
    if not 1 <= value <= MAX_SIZE:
        expected = "at least 1" if value < 1 else f"at most {MAX_SIZE}"
        raise UsageError(f"{name} is {value}; expected {expected}")


def check_scale(value: float) -> None:
    """Raises: UsageError for a scale with which nothing, or nothing finite, is added."""
    if not math.isfinite(value) or value == 0:
        raise UsageError(f"scale is {value}; expected a finite number other than 0")


def trained_dtype(weight: Tensor) -> torch.dtype:
    """The precision in which a new tensor beside `weight` is trained: half types become float32."""
    return torch.promote_types(weight.dtype, torch.float32)


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back, so that a loaded delta's provenance equals the saved one's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
