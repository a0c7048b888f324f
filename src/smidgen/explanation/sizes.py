"""How much each edit of a delta does, as one number that is comparable over all kinds of edits.

It is relative: what the edit changes at its site, over what was there,

    r = sqrt( sum |after - before|^2 / sum |before|^2 ),

summed over everything that passes the site in the calls that are looked at: images, tokens and
channels. `before` is the tensor as it reaches the edit in the network where the whole delta acts,
`after` what the edit makes of it. So r = 0 is an edit at its start, and at r = 1 an edit is as
large as what it acts on. For each kind:

    Shift    |offset| against the output            Scale   |(gain - 1) y| against y
    Bypass   what is added at its first site against what is there; with rows, against these rows
    Weight   the output of a module against what the base's own weights make of the same input, for
             each module by itself; of parameters that no call of their module uses (a
             scale_shift_table), the change of the tensor against the base's
    Tokens   the mean square of a learned token against that of a token beside it
    Table    rows against those of the base that they stand for, or the mean of its class rows
             where the base has none, which is where they began
    Word     each row against the nearest one of the base's table
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.core.attachment import attach
from smidgen.core.bypass import Bypass
from smidgen.core.delta import Delta
from smidgen.core.edit import Acting, Edit, Removable
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.sites import Function, Site, module_at
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.hosts.host import Host


@dataclass
class Sums:
    """The two sums of squares of r."""

    changed: float = 0.0
    before: float = 0.0

    def add(self, changed: Tensor, before: Tensor) -> None:
        """Count one tensor."""
        self.changed += float(changed.float().square().sum())
        self.before += float(before.float().square().sum())

    @property
    def relative(self) -> float:
        """r; 0 where nothing changed, infinite where nothing was there before."""
        if self.changed == 0:
            return 0.0
        return (self.changed / self.before) ** 0.5 if self.before else float("inf")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One edit at one site. `block` counts from 0 in the order in which blocks run, None outside
    them, and `place` is the site within the block; in a text encoder, `component`, there are none.
    """

    edit: str
    kind: str
    component: str
    block: int | None
    module: str
    place: str
    relative: float


@dataclass(frozen=True)
class Measured:
    """The edits of a delta in one component, measured while they act."""

    edits: Mapping[str, Acting]


class Watched(Acting):
    """An edit that acts as it does, and is measured where it does so first."""

    def __init__(self, edit: Edit) -> None:
        super().__init__()
        self.edit = edit
        self.sites, self.component, self.encloses = edit.sites, edit.component, edit.encloses
        self.found: dict[Site, Sums] = {}

    def sizes(self) -> dict[Site, int]:
        return self.edit.sizes()

    def claims(self) -> frozenset[str]:
        return self.edit.claims()

    def forget(self) -> None:
        self.edit.forget()

    def check(self, root: nn.Module) -> None:
        self.edit.check(root)

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        edit, actions = self.edit, list(self.edit.actions())
        if isinstance(edit, Shift | Scale | Bypass | Tokens):
            number = 1 if isinstance(edit, Bypass) else 0  # a bypass changes nothing where it reads
            site, function = actions[number]
            actions[number] = (site, self._measuring(site, function))
        return tuple(actions)

    def attach(self, root: nn.Module) -> Iterator[Removable]:
        if isinstance(self.edit, Weight):
            yield from self._attach_copies(root, self.edit)
            return
        if isinstance(self.edit, Table | Word):
            table = module_at(root, self.edit.sites[1].module)
            weight = table.get_parameter("weight").detach().float()
            own = self.edit.rows.detach().to(weight)
            start = _start(self.edit, own, weight)
            self._sums(self.edit.sites[1]).add(own - start, start)
        yield from super().attach(root)

    def _measuring(self, site: Site, function: Function) -> Function:
        sums, edit = self._sums(site), self.edit

        def measured(y: Tensor) -> Tensor:
            z = function(y)
            if isinstance(edit, Tokens):  # z is longer than y by the new tokens
                new = z[:, : z.shape[1] - y.shape[1]]
                sums.changed += float(new.float().square().mean())
                sums.before += float(y.float().square().mean())
                return z
            rows = edit.rows if isinstance(edit, Bypass) else None
            before = y if rows is None else y.narrow(site.axis, rows[0], rows[1] - rows[0])
            sums.add(z - y, before)
            return z

        return measured

    def _attach_copies(self, root: nn.Module, edit: Weight) -> Iterator[Removable]:
        by_owner: dict[str, dict[str, nn.Parameter]] = {}
        for name in edit.replaced():
            path, _, leaf = name.rpartition(".")
            by_owner.setdefault(path, {})[leaf] = root.get_parameter(name)
        yield from edit.attach(root)
        for path, own in by_owner.items():
            module, sums = root.get_submodule(path), self._sums(Site(path))
            for leaf, parameter in own.items():
                copy = module.get_parameter(leaf)
                # until a call tells more; of the parameters themselves
                sums.add(copy.detach() - parameter.detach().to(copy), parameter)
            if not any(True for _ in module.children()):
                yield module.register_forward_hook(
                    _comparing(own, sums), with_kwargs=True, prepend=True
                )

    def _sums(self, site: Site) -> Sums:
        return self.found.setdefault(site, Sums())


def _comparing(own: Mapping[str, nn.Parameter], sums: Sums):
    """A hook that runs a module once more, with the base's own parameters."""
    called = False

    def hook(module: nn.Module, arguments: tuple, named: dict, output: object) -> None:
        nonlocal called
        copies = {leaf: module._parameters[leaf] for leaf in own}
        for leaf, parameter in own.items():
            copy = copies[leaf]
            module._parameters[leaf] = nn.Parameter(parameter.detach().to(copy))
        try:
            plain = module.forward(*arguments, **named)
        finally:
            module._parameters.update(copies)
        if not isinstance(output, Tensor) or not isinstance(plain, Tensor):
            return
        if not called:
            sums.changed, sums.before, called = 0.0, 0.0, True
        sums.add(output - plain, plain)

    return hook


def _start(edit: Table | Word, own: Tensor, weight: Tensor) -> Tensor:
    """The rows (R, C) of the base that those of `edit` are compared with."""
    if isinstance(edit, Word):
        return weight[torch.cdist(own, weight).argmin(dim=1)]
    mean = weight[: edit.num_old_rows - 1].mean(dim=0)
    return torch.stack([mean if row is None else weight[row] for row in edit.origin])


@contextmanager
def measuring(delta: Delta, network: nn.Module, component: str = "") -> Iterator[list[Watched]]:
    """Within, `delta` acts in a component, the denoiser or a text encoder, and its edits there are
    measured in every call; `sizes_of` says what came of it.

    Raises: SmidgenError as `Delta.attach`.
    """
    watched = {
        name: Watched(edit) for name, edit in delta.edits.items() if edit.component == component
    }
    with attach(Measured(watched), network, component):
        yield list(watched.values())


def sizes_of(delta: Delta, watched: list[Watched], host: Host) -> list[Size]:
    """What was measured of the edits of `delta`, in its order; blocks are those of `host`."""
    names = {edit: name for name, edit in delta.edits.items()}
    return [
        Size(
            edit=names[one.edit],
            kind=one.edit.kind,
            component=one.component,
            relative=sums.relative,
            **_place(site, host, one.component),
        )
        for one in watched
        for site, sums in one.found.items()
    ]


def _place(site: Site, host: Host, component: str) -> dict:
    """The block of a site and where it is in there; in a text encoder the site alone."""
    path = site.module.split(".")
    for number, block in enumerate(() if component else host.blocks):
        outer = block.module.split(".")
        if path[: len(outer)] == outer:
            inner = ".".join(path[len(outer) :]) or "block"
            place = str(Site(inner, site.end, site.argument, site.index, site.axis))
            return {"block": number, "module": block.module, "place": place}
    return {"block": None, "module": site.module, "place": str(site)}
