"""Folding: write a delta into a copy of the base's weights, which then need no smidgen.

D is the channels at a site. Which weights take up an edit at which site is the host's knowledge and
comes in as `targets`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from smidgen.core.bypass import Bottleneck, Bypass, Linear
from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Scale, Shift, Table, Weight
from smidgen.core.sites import Site, misfit
from smidgen.core.tokens import Tokens
from smidgen.core.weights import check_finite
from smidgen.core.word import Word
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


@dataclass(frozen=True)
class Refused:
    """No weights of the base can take up an edit at this site; `reason` says why, in one line."""

    reason: str


def modulation(linear: str, width: int, *, shift: int, scale: int) -> IntoModulation:
    """Chunks number `shift` and `scale` of this linear's output, each of `width` rows."""
    return IntoModulation(
        f"{linear}.weight",
        f"{linear}.bias",
        shift=(shift * width, (shift + 1) * width),
        scale=(scale * width, (scale + 1) * width),
    )


# How a state dict shows a quantised tensor: parts of it under names of their own (quanto), another
# type of numbers (bitsandbytes) or another class of tensor (torchao).
QUANTISED_PARTS = ("_data", "_scale", "quant_state")
PLAIN = (Tensor, nn.Parameter)

Target = IntoLinear | IntoModulation | IntoTable | Refused


def fold(
    delta: Delta,
    state: Mapping[str, Shaped[Tensor, "..."]],
    targets: Mapping[Site, Target],
    component: str = "",
) -> dict[str, Shaped[Tensor, "..."]]:
    """The state dict of a base that does by itself what `state` does with `delta` attached; of this
    component of the base, "" being the denoiser.

    Computed in float64 and rounded once, to the precision of `state`. Tensors that the delta leaves
    alone are the very ones of `state`, not copies. A table may have another number of rows.

    Raises: SmidgenError if there is no target for a site, an edit does not fold into its target, or
        `state` lacks a tensor, or a weight would not be finite.
    """
    draft = _Draft(state)
    for name, edit, target in _in_order(delta, targets, component):
        if isinstance(target, Refused):
            raise _refusal(name, target.reason)
        if isinstance(edit, Bypass):
            _write_bypass(draft, name, edit, target)
        elif not _write(draft, edit, target):
            raise _refusal(name, f"{edit.kind} at {', '.join(map(str, edit.sites))}")
    folded = {
        key: draft[key].to(tensor.device, tensor.dtype)
        for key, tensor in state.items()
        if key in draft
    }
    remedy = "fold into a base in 32 bit, or attach the delta at a lower strength"
    check_finite(folded, "folding leaves the range of the base's precision", remedy)
    return {key: folded.get(key, tensor) for key, tensor in state.items()}


class _Draft(dict[str, Tensor]):
    """float64 copies of the tensors of `state` that folding reads, made when it first does."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.state = state

    def __missing__(self, key: str) -> Tensor:
        tensor = self.state.get(key)
        if tensor is None and not any(f"{key}.{part}" in self.state for part in QUANTISED_PARTS):
            raise misfit(f'the weights have no "{key}"')
        if tensor is None or not tensor.is_floating_point() or type(tensor) not in PLAIN:
            raise SmidgenError(
                f'"{key}" is kept in 4 or 8 bit, where nothing can be folded in; fold into the '
                "base in 16 or 32 bit, or attach the delta to this one"
            )
        self[key] = _double(tensor)
        return self[key]


def _in_order(
    delta: Delta, targets: Mapping[Site, Target], component: str
) -> list[tuple[str, Edit, Target | None]]:
    """The edits in the order in which they can be written.

    First what replaces; then what acts on the outputs of linears, in the order of the network: a
    module returns after those inside it. Then the modulations, which act on what the linear has
    become; of those the last first, as it is next to the z * (1 + scale) + shift that takes it up.
    """
    found: list[tuple[str, Edit, Target | None]] = []
    for name, edit in delta.edits.items():
        if edit.component != component:
            continue
        if isinstance(edit, Tokens):
            raise _refusal(name, "no weights do what added tokens do")
        site = edit.sites[-1] if edit.sites else None
        if site is not None and site not in targets:
            raise _refusal(name, f"this base has no weights to take up an edit at {site}")
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
        case Word(), IntoTable(weight):
            table = draft[weight]
            more = table.new_zeros(edit.num_new_rows - len(table), table.shape[1])
            table = torch.cat([table, more])
            table[edit.first : edit.first + len(edit.rows)] = _double(edit.rows)
            draft[weight] = table
        case Shift(), IntoTable(weight):
            draft[weight] = draft[weight] + _double(edit.offset)
        case Scale(), IntoTable(weight):
            draft[weight] = draft[weight] * _double(edit.gain)
        case Shift(), IntoLinear(_, str(bias)):
            draft[bias] = draft[bias] + _double(edit.offset)
        case Scale(), IntoLinear(weight, bias):
            gain = _double(edit.gain)
            draft[weight] = draft[weight] * gain.view(-1, *(1,) * (draft[weight].ndim - 1))
            if bias is not None:
                draft[bias] = draft[bias] * gain
        case Shift(), IntoModulation():
            _shift_modulation(draft, target, _double(edit.offset))
        case Scale(), IntoModulation():
            _scale_modulation(draft, target, _double(edit.gain))
        case _:
            return False
    return True


def _write_bypass(draft: _Draft, name: str, edit: Bypass, target: Target | None) -> None:
    """W x + b + s (A x + c): W becomes W + s A, b takes the rest."""
    body, read, writes = edit.body, edit.sites[0], edit.sites[1:]
    if not isinstance(body, Bottleneck | Linear) or (
        isinstance(body, Bottleneck) and body.activation != "identity"
    ):
        raise _refusal(name, "what it adds is not linear")
    ends = f"reads at {read} and adds at {', '.join(map(str, writes))}"
    if len(writes) > 1 or not isinstance(target, IntoLinear):
        raise _refusal(name, f"it {ends}, which are not the ends of one linear")
    owner, _, _ = target.weight.rpartition(".")
    if (read.module, read.end) != (owner, "in"):
        raise _refusal(name, f"it {ends}, which are not the ends of one linear")
    product, offset = _product(body)
    if offset is not None and target.bias is None:
        raise _refusal(name, f"it has a bias and {owner or 'the linear'} has none")
    rows = slice(*edit.rows) if edit.rows else slice(None)
    weight = draft[target.weight].clone()
    part = weight[rows]
    if part.numel() != product.numel() or part.shape[:2] != product.shape[:2]:
        shapes = f"{tuple(part.shape)}, the delta {tuple(product.shape)}"
        raise misfit(f"{target.weight} has shape {shapes}")
    weight[rows] += edit.scale * product.view_as(part)
    draft[target.weight] = weight
    if offset is not None and target.bias is not None:
        bias = draft[target.bias].clone()
        bias[rows] += edit.scale * offset
        draft[target.bias] = bias


def _product(body: Bottleneck | Linear) -> tuple[Tensor, Tensor | None]:
    """A and c of a body that is A x + c: up down, and up b_down + b_up, group by group where it is
    a convolution.
    """
    if isinstance(body, Linear):
        assert body.linear.bias is not None
        return _double(body.linear.weight), _double(body.linear.bias)
    groups = 1 if body.conv is None else body.conv.groups
    down, up = _double(body.down.weight), _double(body.up.weight)
    down, up = down.unflatten(0, (groups, -1)), up.unflatten(0, (groups, -1)).flatten(2)
    product = torch.einsum("gow,gw...->go...", up, down).flatten(0, 1)
    if body.up.bias is None or body.down.bias is None:
        return product, None
    through = torch.einsum("gow,gw->go", up, _double(body.down.bias).view(groups, -1)).flatten()
    return product, through + _double(body.up.bias)


def _refusal(name: str, why: str) -> SmidgenError:
    return SmidgenError(f'"{name}" does not fold: {why}; attach the delta instead')


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


def _double(tensor: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    return tensor.detach().to("cpu", torch.float64)
