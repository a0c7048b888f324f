"""What a result must be, as far as anything reads it: checked with msgspec before use, whoever
wrote it. Fields that are not named here are left alone.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from smidgen.sampling.config import SamplingFacts

MOST_RESULT_BYTES = 2**24
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A number with the standard deviation of what it is the mean of."""

    mean: float
    std: float


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """How many images there are of each class."""

    kind: str = "unknown"
    num_classes: Whole | None = None
    min_per_class: Whole | None = None
    max_per_class: Whole | None = None


class Personalisation(msgspec.Struct, frozen=True, kw_only=True):
    """With which prompts a subject was judged."""

    prompts: list[str]
    other_prompts: list[str] = []
    token: str | None = None
    class_name: str | None = None


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers depend on."""

    features: str
    num_images: Whole | None = None
    num_reference: Whole | None = None
    reference: str | None = None
    class_balance: Balance = Balance()
    sampling: SamplingFacts | None = None
    metric_settings: dict[str, Any] | None = None
    personalisation: Personalisation | msgspec.UnsetType = msgspec.UNSET


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to the features of one kind."""

    metrics: dict[str, float | Spread | None]
    protocol: Protocol
    baselines: dict[str, float | None] = {}
    notes: dict[str, list[str]] = {}
    warnings: list[str] = []


class Result(Block, frozen=True, kw_only=True):
    """A whole result; the blocks of several features are in `by_features`."""

    by_features: dict[str, Block] = {}
    request: dict[str, Any] | None = None
