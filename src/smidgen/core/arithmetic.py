"""Arithmetic of deltas: strength, interpolation, weighted sums. None changes a delta.

s is a strength, w the weights of a sum; R rows of a table. At strength 0 a delta does nothing, at 1
it is itself.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.core.bypass import Bottleneck, Bypass, Linear
from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Edit, Scale, Shift, Table, edit_from_spec
from smidgen.core.fingerprint import fingerprints_match
from smidgen.core.sites import module_at
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.errors import SmidgenError

Rows = Float[Tensor, "R C"]
Part = tuple[Edit, float]  # an edit and its weight in a sum


def scaled(delta: Delta, strength: float, base_rows: Rows | None = None) -> Delta:
    """`delta` at this strength s: Shift s * offset, Scale 1 + s * (gain - 1), Bypass s times what
    it adds, Table base row + s * (row - base row). At 1 it is `delta` itself.

    `base_rows`: the base's own table, for a delta that has one (`base_rows_of`).

    Raises: SmidgenError for added tokens, for copies of weights, and for a table with a class that
        the base lacks: none of them has a half; for a strength that is not finite.
    """
    if strength == 1:
        return delta
    _check_finite(strength)
    edits = {
        name: _summed(name, [(edit, strength)], delta, base_rows)
        for name, edit in delta.edits.items()
    }
    training = delta.provenance.training | {"strength": strength}
    return Delta(edits, replace(delta.provenance, training=training))


def interpolate(one: Delta, other: Delta, t: float) -> Delta:
    """The way from `one` at t = 0 to `other` at t = 1: (1 - t) and t times what they do.

    Raises: SmidgenError as `combine`; tables of any classes, if equal, lie on the way.
    """
    return combine([one, other], [1 - t, t])


def combine(
    deltas: Sequence[Delta], weights: Sequence[float], base_rows: Rows | None = None
) -> Delta:
    """The weighted sum of what the deltas do: Shift sum of w * offset, Scale 1 + sum of
    w * (gain - 1), Bypass the sum of w times what each adds (widths side by side), Table base row +
    sum of w * (row - base row), for which `base_rows` is needed unless the weights sum to 1.

    Raises: SmidgenError if the deltas are not of one method, one base, the same edits and classes,
        or hold what has no sum; it says which. Or if a weight is not finite.
    """
    if not deltas or len(deltas) != len(weights):
        raise SmidgenError(f"{len(deltas)} deltas and {len(weights)} weights; give one for each")
    _check_finite(*weights)
    for number, other in enumerate(deltas[1:], start=2):
        _check_alike(deltas[0], other, number)
    kept = [(delta, w) for delta, w in zip(deltas, weights, strict=True) if w != 0]
    if len(kept) < 2:
        return scaled(*(kept[0] if kept else (deltas[0], 0.0)), base_rows)
    edits = {
        name: _summed(name, [(delta.edits[name], w) for delta, w in kept], deltas[0], base_rows)
        for name in deltas[0].edits
    }
    parts = [
        {"weight": w, "config": delta.provenance.config, "training": delta.provenance.training}
        for delta, w in kept
    ]
    return Delta(edits, replace(deltas[0].provenance, training={"sum_of": parts}))


def base_rows_of(delta: Delta, root: nn.Module) -> Rows | None:
    """The table of `root` that `delta` replaces; None if it replaces none."""
    for edit in delta.edits.values():
        if isinstance(edit, Table) and not edit.component:
            weight = getattr(module_at(root, edit.sites[-1].module), "weight", None)
            return weight.detach() if isinstance(weight, Tensor) else None
    return None


def _summed(name: str, parts: list[Part], delta: Delta, base_rows: Rows | None) -> Edit:
    """The weighted sum of edits of one name."""
    match parts[0][0]:
        case Shift() as edit:
            return _rebuilt(edit, {"offset": _sum(parts, lambda shift: shift.offset)})
        case Scale() as edit:
            return _rebuilt(edit, {"gain": 1 + _sum(parts, lambda scale: _exact(scale.gain) - 1)})
        case Bypass() as edit if len(parts) == 1:
            values = {key: value.detach().clone() for key, value in edit.tensors().items()}
            return _rebuilt(edit, values, scale=edit.scale * parts[0][1])
        case Bypass():
            return _side_by_side(name, parts)
        case Table():
            return _summed_table(name, parts, delta, base_rows)
        case Word() as edit if abs(math.fsum(w for _, w in parts) - 1) < 1e-12:
            return _rebuilt(edit, {"rows": _sum(parts, lambda word: word.rows)})
        case Word() as edit:
            why = f'the new word "{edit.token}", of which the base has nothing'
        case Tokens():
            why = "added tokens: the sequence has them or has them not"
        case other:
            why = f"a {other.kind}, a copy that replaces the base's own weights"
    raise SmidgenError(
        f'"{name}" is {why}, so that it has no strength and no sum; attach the delta as it is'
    )


def _side_by_side(name: str, parts: list[Part]) -> Bypass:
    """Widths after one another: act(down h) then holds those of all, as act goes one by one."""
    edits: list[Any] = [edit for edit, _ in parts]
    first = edits[0]
    if isinstance(first.body, Linear):
        weighted: list[Part] = [
            (edit, w * edit.scale) for edit, (_, w) in zip(edits, parts, strict=True)
        ]
        values = {
            name: _sum(weighted, lambda edit, name=name: edit.tensors()[name])
            for name in first.tensors()
        }
        return _rebuilt(first, values, scale=1.0)
    if not isinstance(first.body, Bottleneck):
        raise SmidgenError(
            f'"{name}" has a norm of its own in each delta, so that they have no sum in one; '
            "give one of them the weight 0"
        )
    scale = first.scale if all(edit.scale == first.scale for edit in edits) else 1.0
    factors = [
        w if scale == edit.scale else w * edit.scale
        for edit, (_, w) in zip(edits, parts, strict=True)
    ]
    groups = 1 if first.body.conv is None else first.body.conv.groups

    def downs(tensors: list[Tensor]) -> Tensor:
        each = [tensor.detach().unflatten(0, (groups, -1)) for tensor in tensors]
        return torch.cat(each, dim=1).flatten(0, 1)

    def ups(tensors: list[Tensor]) -> list[Tensor]:
        return [f * _exact(tensor) for f, tensor in zip(factors, tensors, strict=True)]

    values = {"down.weight": downs([edit.body.down.weight for edit in edits])}
    values["up.weight"] = torch.cat(ups([edit.body.up.weight for edit in edits]), dim=1)
    if first.body.down.bias is not None:
        values["down.bias"] = downs([edit.body.down.bias for edit in edits])
        values["up.bias"] = torch.stack(ups([edit.body.up.bias for edit in edits])).sum(0)
    width = sum(edit.body.width for edit in edits)
    return _rebuilt(first, values, scale=scale, body=first.body.spec() | {"width": width})


def _summed_table(name: str, parts: list[Part], delta: Delta, base_rows: Rows | None) -> Table:
    tables: list[Any] = [table for table, _ in parts]
    first, total = tables[0], _sum(parts, lambda table: table.rows)
    rest = 1 - math.fsum(w for _, w in parts)
    if abs(rest) < 1e-12:  # the base's rows drop out
        return _rebuilt(first, {"rows": total})
    origin = next((t.origin for t in tables if None not in t.origin), first.origin)
    if None in origin:
        names = dict(enumerate(delta.provenance.classes))
        unknown = names.get(origin.index(None), f"number {origin.index(None)}")
        raise SmidgenError(
            f'"{name}" has a row for "{unknown}", a class that the base lacks or is not known to '
            "have, so that nothing stands there at strength 0; attach the delta at strength 1"
        )
    if base_rows is None or len(base_rows) != first.num_old_rows:
        given = "none" if base_rows is None else f"{len(base_rows)} rows"
        raise SmidgenError(
            f'"{name}" needs the {first.num_old_rows} rows of the base\'s table and got {given}; '
            "give base_rows, or attach with a strength"
        )
    own = base_rows.detach().to(total)[torch.tensor(origin, device=total.device)]
    return _rebuilt(first, {"rows": rest * own + total})


def _sum(parts: list[Part], value: Callable[[Any], Tensor]) -> Float[Tensor, "..."]:
    """The weighted sum of a tensor of each edit, in float64."""
    return torch.stack([w * _exact(value(edit)) for edit, w in parts]).sum(0)


def _exact(tensor: Tensor) -> Tensor:
    """In float64 on the CPU: not every device has it."""
    return tensor.detach().to("cpu", torch.float64)


def _rebuilt(edit: Any, values: dict[str, Tensor], **changes: Any) -> Any:
    """An edit like this one with other values, in its precision and where it is."""
    like = next(edit.parameters())
    with torch.device("meta"):
        other = edit_from_spec(edit.spec() | changes)
    other.load_state_dict({key: value.to(like) for key, value in values.items()}, assign=True)
    return other


def _check_finite(*weights: float) -> None:
    for weight in weights:
        if not math.isfinite(weight):
            raise SmidgenError(f"strength or weight {weight}; give finite numbers")


def _check_alike(one: Delta, other: Delta, number: int) -> None:
    a, b = one.provenance, other.provenance
    which = f"delta {number}"
    if a.method != b.method:
        raise SmidgenError(f"{which} is of {b.method}, the first of {a.method}; sum one method's")
    if a.classes != b.classes:
        raise SmidgenError(f"{which} has other classes than the first; sum deltas of equal classes")
    shapes = {name: shape_of(edit) for name, edit in one.edits.items()}
    check_same_edits(a, shapes, other, which)


def check_same_edits(
    first: Provenance, shapes: Mapping[str, Any], other: Delta, which: str, *, rows: bool = True
) -> None:
    """Raises: SmidgenError if `other`, called `which`, is of another base than the first or has
    other edits than those of these shapes (`shape_of`).
    """
    own, alike = other.provenance, "take deltas of one base, method and setting"
    same = own.fingerprint == first.fingerprint
    if not same and not fingerprints_match(own.fingerprint, first.fingerprint):
        bases = f'for base "{own.base}", the others for "{first.base}"'
        raise SmidgenError(f"{which} was made {bases}, whose weights are others; {alike}")
    if list(shapes) != list(other.edits):
        names = sorted(set(shapes) ^ set(other.edits)) or list(shapes)
        raise SmidgenError(f'{which} has other edits than the first: "{names[0]}"; {alike}')
    for name, edit in other.edits.items():
        if isinstance(edit, Word) and shapes[name].get("token") not in (None, edit.token):
            raise SmidgenError(
                f'{which} has the new word "{edit.token}", the first "{shapes[name]["token"]}": '
                "two words have no sum; take deltas of one"
            )
        if shapes[name] != shape_of(edit, rows=rows):
            raise SmidgenError(f'{which} differs from the first at edit "{name}"; {alike}')


def shape_of(edit: Edit, *, rows: bool = True) -> dict[str, Any]:
    """The spec without what may differ in a sum or a bank: the width and scale of a bypass, the
    origin of a table and, without `rows`, how many it has.
    """
    spec = edit.spec()
    if isinstance(edit, Bypass):
        grouped = isinstance(edit.body, Bottleneck) and edit.body.conv and edit.body.conv.groups > 1
        spec |= {"scale": None, "shapes": None}
        spec["body"] |= {} if grouped else {"width": None}
    if isinstance(edit, Table):
        spec |= {"origin": None} if rows else {"origin": None, "shapes": spec["shapes"]["rows"][1]}
    return spec
