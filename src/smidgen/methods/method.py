"""What a method is, what it reads of a base, and the checks that options share. No torch here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from smidgen.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

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


class Encoder(Protocol):
    """What a method reads of a text encoder; `models.reader.Encoder` is one."""

    @property
    def component(self) -> str: ...
    @property
    def network(self) -> nn.Module: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class Method:
    """What is known of a method before torch is imported: `config`, the frozen dataclass of its
    options, and `default_lr`, the paper's learning rate for it. `encoders`: whether it has edits in
    the text encoders of a base too, "asked" if it has them with train_text_encoder.
    """

    config: type
    default_lr: float
    encoders: Literal["never", "asked", "always"] = "never"


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
