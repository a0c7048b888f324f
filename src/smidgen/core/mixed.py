"""Edits of a bank: the tensors of K deltas stacked, each image with those that it chose.

B images, C channels at a site, W the width in the middle of a bypass, P tokens. Slot K of a stack,
its last, changes nothing. What a bank is and how it is filled is in bank.py.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from smidgen.core.bodies import ACTIVATIONS, CONVOLUTIONS, Bottleneck, Linear
from smidgen.core.bypass import Adding, Bypass
from smidgen.core.edit import Acting, Edit, behind
from smidgen.core.edits import Scale, Shift, Table
from smidgen.core.sites import Function, Site
from smidgen.core.tokens import Tokens, with_neutral
from smidgen.errors import SmidgenError


class Choice(nn.Module):
    """The slots that the images of the next calls use; shared by all edits of a bank."""

    slots: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slots", None, persistent=False)

    def set(self, slots: Int[Tensor, " B"]) -> None:
        """Take these slots: into the same tensor when there are as many as before, so that
        compiled code sees them without being compiled again.
        """
        if self.slots is not None and self.slots.shape == slots.shape:
            self.slots.copy_(slots)
        else:
            with torch.inference_mode(False):
                self.slots = slots.clone()

    def of(self, tensor: Shaped[Tensor, "..."], site: Site) -> Int[Tensor, " B"]:
        """A slot for each leading entry of the tensor at `site`: the chosen ones, over and over
        where guidance has stacked several batches.
        """
        if self.slots is None:
            raise SmidgenError("no slots are chosen; call bank.choose before the network")
        times, rest = divmod(tensor.shape[0], self.slots.shape[0] * site.repeats)
        if rest or not times:
            raise SmidgenError(
                f"{self.slots.shape[0]} slots are chosen and {site} carries {tensor.shape[0]} "
                "images; choose a slot for each image (guidance may repeat the whole batch)"
            )
        slots = self.slots if site.repeats == 1 else self.slots.repeat_interleave(site.repeats)
        return slots if times == 1 else slots.repeat(times)


class Mixed(Acting):
    """The edits of one name in K deltas. `template` is such an edit of the largest sizes; smaller
    ones are filled up with `padding`. `idle` is what slot K holds: the value that changes nothing.
    """

    padding: ClassVar[float] = 0.0
    idle: ClassVar[float] = 0.0

    def __init__(self, template: Any, num: int, choice: Choice, like: Tensor) -> None:
        super().__init__()
        # neither is a module of this one: the template has no values, the choice is the bank's
        self._template, self._choice = (template,), (choice,)
        self.sites = template.sites
        self.num = num
        for name, tensor in template.tensors().items():
            stack = like.new_full((num + 1, *tensor.shape), self.padding)
            stack[num] = self.idle
            self.register_parameter(_key(name), nn.Parameter(stack, requires_grad=False))

    @property
    def template(self) -> Any:
        return self._template[0]

    def values(self, edit: Any) -> Mapping[str, Tensor]:
        """The tensors of an edit as they are stacked."""
        return edit.tensors()

    @torch.no_grad()
    def fill(self, slot: int, edit: Edit) -> None:
        """Put an edit into a slot, in place."""
        for name, value in self.values(edit).items():
            place = self.get_parameter(_key(name))[slot]
            place.fill_(self.padding)
            place[tuple(slice(length) for length in value.shape)] = value.to(place)

    def give_gradients(self, edits: Sequence[Edit]) -> None:
        """What gradients have come to the stacks go on to the tensors of the edits that slots 0, 1,
        ... were filled with, as though these had acted themselves.
        """
        tensors, gradients = [], []
        for slot, edit in enumerate(edits):
            for name, value in self.values(edit).items():
                found = self.get_parameter(_key(name)).grad
                if found is not None:
                    tensors.append(value)
                    gradients.append(found[slot][tuple(map(slice, value.shape))].to(value))
        if tensors:
            torch.autograd.backward(tensors, gradients)
        for parameter in self.parameters():
            parameter.grad = None

    def train_slots(self) -> None:
        """Let gradients flow to the stacks, except to slot K."""

        def keep_idle(gradient: Tensor) -> Tensor:
            return torch.cat([gradient[:-1], torch.zeros_like(gradient[-1:])])

        for parameter in self.parameters():
            parameter.requires_grad_(True).register_hook(keep_idle)

    def picked(self, name: str, slots: Int[Tensor, " B"], like: Tensor) -> Float[Tensor, "B ..."]:
        """Each image's own tensor of this name, in the precision of `like` and on its device."""
        return self.get_parameter(_key(name))[slots].to(like)

    def slots(self, tensor: Shaped[Tensor, "..."], site: Site) -> Int[Tensor, " B"]:
        return self._choice[0].of(tensor, site)

    def sizes(self) -> dict[Site, int]:
        return self.template.sizes()

    def claims(self) -> frozenset[str]:
        return self.template.claims()

    def check(self, root: nn.Module) -> None:
        self.template.check(root)


@final
class MixedShift(Mixed):
    def forward(self, y: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        site = self.sites[0]
        return y + _along(self.picked("offset", self.slots(y, site), y), y, site.axis)


@final
class MixedScale(Mixed):
    idle = 1.0

    def forward(self, y: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        site = self.sites[0]
        return y * _along(self.picked("gain", self.slots(y, site), y), y, site.axis)


@final
class MixedTable(Mixed):
    """Rows that a delta has not are NaN, so that a label that it does not know cannot pass as one
    of another delta. Slot K returns what the base's own table returns.
    """

    padding = float("nan")

    def __init__(self, template: Table, num: int, choice: Choice, like: Tensor) -> None:
        super().__init__(template, num, choice, like)
        self.ids: Tensor | None = None

    def read(self, ids: Int[Tensor, "B ..."]) -> Int[Tensor, "B ..."]:
        self.ids = ids
        return ids.clamp(max=self.template.num_old_rows - 1)

    def write(self, output: Float[Tensor, "B ... C"]) -> Float[Tensor, "B ... C"]:
        ids, self.ids = self.ids, None
        if ids is None:
            raise SmidgenError(f"{self.sites[1]} came without {self.sites[0]}: the ids are unknown")
        slots = self.slots(ids, self.sites[0]).to(ids.device).view(-1, *(1,) * (ids.ndim - 1))
        idle = slots == self.num
        rows = self.get_parameter("rows").to(ids.device)[slots, ids.masked_fill(idle, 0)]
        return torch.where(idle[..., None], output, rows.to(output))

    def forget(self) -> None:
        if self.ids is not None:
            self.ids = None

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        return (self.sites[0], self.read), (self.sites[1], self.write)


@final
class MixedTokens(Mixed):
    encloses = Tokens.encloses

    def prepend(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        return torch.cat([self.picked("tokens", self.slots(x, self.sites[0]), x), x], dim=1)

    def drop(self, x: Float[Tensor, "B M C"]) -> Float[Tensor, "B N C"]:
        return x[:, len(self.template.tokens) :]

    def accompany(self, site: Site, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return with_neutral(value, len(self.template.tokens), site)

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        companions = self.template.companions
        others = ((site, partial(self.accompany, site)) for site in companions)
        return ((self.sites[0], self.prepend), *others, (self.sites[1], self.drop))


@final
class MixedBypass(Adding, Mixed):
    """Bypasses of any scale and, beside each other, any width: what is missing is zero, and so is
    what it adds.
    """

    @property
    def rows(self) -> tuple[int, int] | None:
        return self.template.rows

    def values(self, edit: Bypass) -> Mapping[str, Tensor]:
        last = [*edit.body.layers][-1]
        scaled = {f"{last}.weight", f"{last}.bias"}
        return {n: edit.scale * t if n in scaled else t for n, t in edit.tensors().items()}

    def read(self, h: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        site, body = self.sites[0], self.template.body
        slots = self.slots(h, site)
        own = {name: self.picked(name, slots, h) for name in self.template.tensors()}
        if isinstance(body, Linear):
            self.kept = _linear(h, own, site.axis)
        elif not isinstance(body, Bottleneck):
            self.kept = _conv_bottleneck(h, own, body.groups, body.activation)
        elif body.conv is not None:
            self.kept = _conv(h, own, body)
        else:
            self.kept = _bottleneck(h, own, site.axis, body.activation)
        return h


MIXED: Mapping[type[Edit], type[Mixed]] = {
    Shift: MixedShift,
    Scale: MixedScale,
    Table: MixedTable,
    Tokens: MixedTokens,
    Bypass: MixedBypass,
}


def _bottleneck(
    h: Float[Tensor, "B ..."], own: Mapping[str, Tensor], axis: int, activation: str
) -> Float[Tensor, "B ..."]:
    z = ACTIVATIONS[activation](_linear(h, own, axis, "down"))
    return _linear(z, own, axis, "up")


def _linear(
    h: Float[Tensor, "B ..."], own: Mapping[str, Tensor], axis: int, layer: str = "linear"
) -> Float[Tensor, "B ..."]:
    last = h.movedim(axis, -1)
    z = last.flatten(1, -2) if last.ndim > 2 else last[:, None]  # (B, ..., C) -> (B, N, C)
    z = _product(z, own[f"{layer}.weight"], own.get(f"{layer}.bias"))
    return z.reshape(*last.shape[:-1], z.shape[-1]).movedim(-1, axis)


def _product(
    z: Float[Tensor, "B N C"], weight: Float[Tensor, "B D C"], bias: Float[Tensor, "B D"] | None
) -> Float[Tensor, "B N D"]:
    if bias is None:
        return torch.bmm(z, weight.mT)
    return torch.baddbmm(bias[:, None], z, weight.mT)


def _conv(
    h: Float[Tensor, "B ..."], own: Mapping[str, Tensor], body: Bottleneck
) -> Float[Tensor, "B ..."]:
    assert body.conv is not None
    arguments = body.conv.arguments()
    z = _convolve(h, own["down.weight"], own.get("down.bias"), body.conv.groups, **arguments)
    z = ACTIVATIONS[body.activation](z)
    return _convolve(z, own["up.weight"], own.get("up.bias"), body.conv.groups)


def _conv_bottleneck(
    h: Float[Tensor, "B C H W"], own: Mapping[str, Tensor], groups: int, activation: str
) -> Float[Tensor, "B D H W"]:
    z = functional.group_norm(h, groups)
    z = z * own["norm.weight"][..., None, None] + own["norm.bias"][..., None, None]
    z = _convolve(functional.silu(z), own["down.weight"], own["down.bias"], 1, padding=1)
    return _convolve(ACTIVATIONS[activation](z), own["up.weight"], own["up.bias"], 1, padding=1)


def _convolve(
    h: Float[Tensor, "B ..."],
    weight: Float[Tensor, "B D ..."],
    bias: Float[Tensor, "B D"] | None,
    groups: int,
    **arguments: Any,
) -> Float[Tensor, "B D ..."]:
    """Each image with its own kernels: the images' channels side by side, as groups."""
    batch = h.shape[0]
    z = CONVOLUTIONS[h.ndim - 2](
        h.flatten(0, 1)[None],
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        groups=batch * groups,
        **arguments,
    )
    return z[0].unflatten(0, (batch, -1))


def _along(
    vectors: Float[Tensor, "B C"], tensor: Float[Tensor, "B ..."], axis: int
) -> Float[Tensor, "B ..."]:
    """The vector of each image so that it lies along `axis` of `tensor`."""
    before = axis % tensor.ndim - 1
    return vectors.view(len(vectors), *(1,) * before, -1, *(1,) * behind(tensor, axis))


def _key(name: str) -> str:
    """The name of a stack: names of parameters have no dots."""
    return name.replace(".", "_")
