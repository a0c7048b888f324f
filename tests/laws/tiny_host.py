"""How the laws handle one family: the type of an entry of TINY_HOSTS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

IN_FLOAT32 = 1e-5  # `rounding` of families that compute a part in float32 whatever they are given


def call_with_inputs(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The prediction of a network that takes the inputs as they are and returns one tensor."""
    return model(*inputs)


@dataclass(frozen=True, kw_only=True)
class TinyHost:
    """How the laws handle one family.

    `make(num_classes)` a model on the default device; `inputs(labels)` tensors, the image first, of
    which `call(model, *inputs)` makes the prediction as one tensor; a host without labels ignores
    them. `checkpoint(model)` turns gradient checkpointing on. `without_gradient`: tensors of the
    base, or edits of a delta, whose gradient is zero by mathematics -> the range of their elements.
    `rounding`: how far two ways to compute one thing in float64 may be apart; more where the
    family's own code goes through float32.
    """

    make: Callable[[int], nn.Module]
    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    checkpoint: Callable[[nn.Module], None]
    call: Callable[..., Tensor] = call_with_inputs
    without_gradient: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rounding: float = 1e-12
