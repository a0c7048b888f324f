"""Folding: write a delta into a copy of the base's weights, which then need no smidgen.

D is the channels at a site. Which weights take up an edit at which site is the host's knowledge and
comes in as `targets`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Scale, Shift, Table, Weight
from smidgen.core.sites import Site, misfit
from smidgen.errors import SmidgenError


@dataclass(frozen=True)
class IntoLinear:
    """The site is the output of this linear or convolution; `bias` is None if it has none."""

    weight: str
    bias: str | None


@dataclass(frozen=True)
class IntoModulation:
    """The site is a norm's output z, next used as z * (1 + scale) + shift (adaLN). Both are outputs
    of one linear: `shift` and `scale` are its rows from start to stop.
    """

    weight: str
    bias: str
    shift: tuple[int, int]
    scale: tuple[int, int]


@dataclass(frozen=True)
class IntoTable:
    """The site is what an embedding with this table returns."""

    weight: str


Target = IntoLinear | IntoModulation | IntoTable


def fold(
    delta: Delta, state: Mapping[str, Shaped[Tensor, "..."]], targets: Mapping[Site, Target]
) -> dict[str, Shaped[Tensor, "..."]]:
    """The state dict of a base that does by itself what `state` does with `delta` attached.

    Computed in float64 and rounded once, to the precision of `state`. Tensors that the delta leaves
    alone are the very ones of `state`, not copies. A table may have another number of rows.

    Raises: SmidgenError if there is no target for a site, an edit does not fold into its target, or
        `state` lacks a tensor.
    """
    draft = _Draft(state)
    for name, edit, target in _in_order(delta, targets):
        if not _write(draft, edit, target):
            raise SmidgenError(
                f'"{name}" does not fold: {edit.kind} at {", ".join(map(str, edit.sites))}; '
                "attach the delta instead"
            )
    return {
        key: draft[key].to(tensor.device, tensor.dtype) if key in draft else tensor
        for key, tensor in state.items()
    }


class _Draft(dict[str, Tensor]):
    """float64 copies of the tensors of `state` that folding reads, made when it first does."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def __missing__(self, key: str) -> Tensor:
        if key not in self.state:
            raise misfit(f'the weights have no "{key}"')
        self[key] = _double(self.state[key])
        return self[key]


def _in_order(
    delta: Delta, targets: Mapping[Site, Target]
) -> list[tuple[str, Edit, Target | None]]:
    """The edits in the order in which they can be written.

    First what replaces; then what acts on the outputs of linears, in the order of the network: a
    module returns after those inside it. Then the modulations, which act on what the linear has
    become; of those the last first, as it is next to the z * (1 + scale) + shift that takes it up.
    """
    found: list[tuple[str, Edit, Target | None]] = []
    for name, edit in delta.edits.items():
        site = edit.sites[-1] if edit.sites else None
        if site is not None and site not in targets:
            raise SmidgenError(
                f'"{name}" does not fold: this base has no weights to take up an edit at {site}; '
                "attach the delta instead"
            )
        found.append((name, edit, None if site is None else targets[site]))
    replacing = [entry for entry in found if isinstance(entry[1], Weight | Table)]
    others = [entry for entry in found if not isinstance(entry[1], Weight | Table)]
    others.sort(key=lambda entry: -entry[1].sites[-1].module.count("."))
    modulations = [entry for entry in others if isinstance(entry[2], IntoModulation)]
    linears = [entry for entry in others if not isinstance(entry[2], IntoModulation)]
    return replacing + linears + modulations[::-1]


def _write(draft: _Draft, edit: Edit, target: Target | None) -> bool:
    """Write `edit` into `draft`; False if there is no way to."""
    match edit, target:
        case Weight(), None:
            for name, copy in edit.replaced().items():
                if draft[name].shape != copy.shape:
                    raise misfit(f"{name} has shape {tuple(draft[name].shape)}")
                draft[name] = _double(copy)
        case Table(), IntoTable(weight):
            draft[weight] = _double(edit.rows)
        case Shift(), IntoTable(weight):
            draft[weight] = draft[weight] + _double(edit.offset)
        case Scale(), IntoTable(weight):
            draft[weight] = draft[weight] * _double(edit.gain)
        case Shift(), IntoLinear(_, str(bias)):
            draft[bias] = draft[bias] + _double(edit.offset)
        case Scale(), IntoLinear(weight, bias):
            gain = _double(edit.gain)
            draft[weight] = draft[weight] * _to_rows(gain, draft[weight])
            if bias is not None:
                draft[bias] = draft[bias] * gain
        case Shift(), IntoModulation():
            _shift_modulation(draft, target, _double(edit.offset))
        case Scale(), IntoModulation():
            _scale_modulation(draft, target, _double(edit.gain))
        case _:
            return False
    return True


def _shift_modulation(draft: _Draft, target: IntoModulation, offset: Float64[Tensor, " D"]) -> None:
    """(z + b)(1 + scale) + shift: shift becomes shift + b + b * scale."""
    weight, bias = draft[target.weight].clone(), draft[target.bias].clone()
    shift, scale = slice(*target.shift), slice(*target.scale)
    weight[shift] += offset[:, None] * weight[scale]
    bias[shift] += offset + offset * bias[scale]
    draft[target.weight], draft[target.bias] = weight, bias


def _scale_modulation(draft: _Draft, target: IntoModulation, gain: Float64[Tensor, " D"]) -> None:
    """z * w * (1 + scale) + shift: scale becomes w + w * scale - 1."""
    weight, bias = draft[target.weight].clone(), draft[target.bias].clone()
    scale = slice(*target.scale)
    weight[scale] *= gain[:, None]
    bias[scale] = gain * bias[scale] + gain - 1
    draft[target.weight], draft[target.bias] = weight, bias


def _to_rows(gain: Float64[Tensor, " D"], weight: Float64[Tensor, "D ..."]) -> Tensor:
    return gain.view(-1, *(1,) * (weight.ndim - 1))


def _double(tensor: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    return tensor.detach().to("cpu", torch.float64)
