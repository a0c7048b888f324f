"""The edits that keep one tensor each, or a copy of the base's own; and the table of all kinds.

C is the channels at a site, K the classes of a fine-tune. An edit never holds a tensor of the base;
what all edits of a fine-tune do together is in delta.py.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from smidgen.core.bypass import Bypass
from smidgen.core.edit import Edit, Removable, Size, Spec, along, plant
from smidgen.core.sites import Function, Name, Site, SiteSpec, misfit, module_at
from smidgen.core.storage import runs_at, runs_in
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit


class OneSite(Spec, frozen=True, kw_only=True):
    """The schema of a shift or scale."""

    sites: tuple[SiteSpec]


@final
class Shift(Edit):
    """y + offset at a site with C channels (BitFit, arXiv 2106.10199); offset starts at 0."""

    kind = "shift"
    schema = OneSite

    def __init__(self, site: Site, size: int) -> None:
        super().__init__()
        self.sites = (site,)
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y + along(self.offset, y, self.sites[0].axis)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[0]: self.offset.shape[0]}

    @classmethod
    def from_spec(cls, spec: OneSite) -> "Shift":
        return cls(spec.sites[0].site(), spec.shapes["offset"][0])


@final
class Scale(Edit):
    """y * gain at a site with C channels (DiffFit's gamma, arXiv 2304.06648); gain starts at 1."""

    kind = "scale"
    schema = OneSite

    def __init__(self, site: Site, size: int) -> None:
        super().__init__()
        self.sites = (site,)
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y * along(self.gain, y, self.sites[0].axis)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[0]: self.gain.shape[0]}

    @classmethod
    def from_spec(cls, spec: OneSite) -> "Scale":
        return cls(spec.sites[0].site(), spec.shapes["gain"][0])


class TableSpec(Spec, frozen=True, kw_only=True):
    """The schema of a table."""

    sites: tuple[SiteSpec, SiteSpec]
    num_old_rows: Annotated[int, Meta(ge=1, le=2**31)]
    origin: tuple[Size | None, ...] = ()


@final
class Table(Edit):
    """Another embedding table: row `id` instead of what the base returns for it.

    `rows` has a row for each new class and, last, one for the null label. The base still looks up
    its own table of `num_old_rows` rows, so ids are clamped to it on the way in; they are kept from
    `site_in` to `site_out` and no longer. `origin` says for each row which row of the base's table
    it stands for, such as that of the class of equal name; None for a class that the base lacks.
    """

    kind = "table"
    schema = TableSpec

    def __init__(
        self,
        site_in: Site,
        site_out: Site,
        num_old_rows: int,
        rows: Float[Tensor, "rows C"],
        *,
        origin: Sequence[int | None] = (),
    ) -> None:
        super().__init__()
        if origin and len(origin) != len(rows):
            raise ValueError(f"{len(origin)} origins of {len(rows)} rows")
        if (site_in.module, site_in.end) != (site_out.module, "in") or site_out.end != "out":
            raise ValueError(f"{site_in} and {site_out} are not the two ends of one table")
        self.sites = (site_in, site_out)
        self.num_old_rows = num_old_rows
        self.origin = tuple(origin) or (None,) * len(rows)
        self.rows = nn.Parameter(rows.detach().clone())
        self.ids: Tensor | None = None

    def read(self, ids: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        self.ids = ids
        return ids.clamp(max=self.num_old_rows - 1)

    def write(self, output: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        ids, self.ids = self.ids, None
        if ids is None:
            raise SmidgenError(f"{self.sites[1]} came without {self.sites[0]}: the ids are unknown")
        return functional.embedding(ids, self.rows.to(ids.device)).to(output)

    def forget(self) -> None:
        if self.ids is not None:
            self.ids = None

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        return (self.sites[0], self.read), (self.sites[1], self.write)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[1]: self.rows.shape[1]}

    def claims(self) -> frozenset[str]:
        return frozenset({f"{self.sites[1].module}.weight"})

    def check(self, root: nn.Module) -> None:
        super().check(root)
        table = module_at(root, self.sites[1].module)
        if isinstance(table, nn.Embedding) and table.num_embeddings != self.num_old_rows:
            rows = f"{table.num_embeddings} rows where the delta expects {self.num_old_rows}"
            raise misfit(f"{self.sites[1].module} has {rows}")

    def spec(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"num_old_rows": self.num_old_rows}
        if any(row is not None for row in self.origin):
            facts["origin"] = list(self.origin)
        return super().spec() | facts

    @classmethod
    def from_spec(cls, spec: TableSpec) -> "Table":
        site_in, site_out = (site.site() for site in spec.sites)
        rows = torch.empty(spec.shapes["rows"])
        return cls(site_in, site_out, spec.num_old_rows, rows, origin=spec.origin)


class WeightSpec(Spec, frozen=True, kw_only=True):
    """The schema of a copy."""

    sites: tuple[()] = ()
    module: Name


@final
class Weight(Edit):
    """A module runs with a trained copy of some of its parameters.

    While attached the copies stand where the base's own parameters were; detaching puts back the
    very same objects (docs/decisions/0002-weight-swaps-parameters.md). `parameters` have the names
    that the module gives them, dots allowed; the module may be the whole network ("").
    """

    kind = "weight"
    schema = WeightSpec
    sites = ()

    def __init__(self, module: str, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.target = module
        for name, tensor in parameters.items():
            plant(self, name, nn.Parameter(tensor.detach().clone()))

    def claims(self) -> frozenset[str]:
        return frozenset(self.replaced())

    def replaced(self) -> dict[str, nn.Parameter]:
        """The trained copies by the names that the whole network gives the originals."""
        tensors = self.tensors().items()
        return {f"{self.target}.{name}".removeprefix("."): copy for name, copy in tensors}

    def check(self, root: nn.Module) -> None:
        for name, copy in self.replaced().items():
            try:
                own = root.get_parameter(name)
            except AttributeError:
                raise misfit(f'{type(root).__name__} has no parameter "{name}"') from None
            if not own.is_floating_point():
                raise SmidgenError(
                    f"{name} is kept in 4 or 8 bit, where no trained copy can stand; load the "
                    "base in 16 or 32 bit, or use a delta without copies of weights"
                )
            if copy.shape != own.shape:
                shapes = f"shape {tuple(own.shape)}, in the delta {tuple(copy.shape)}"
                raise misfit(f"{name} has {shapes}")
            dtype, device = runs_in(root, own), runs_at(root, own)
            if (copy.dtype, copy.device) != (dtype, device):
                raise SmidgenError(
                    f"{name} is {copy.dtype} on {copy.device} in the delta, {dtype} on "
                    f'{device} in the base; first call delta.to("{device}", {dtype})'
                )

    def attach(self, root: nn.Module) -> Iterator[Removable]:
        for name, copy in self.replaced().items():
            path, _, leaf = name.rpartition(".")
            owner = root.get_submodule(path)
            swap = _Swap(owner, leaf, owner.get_parameter(leaf))
            owner._parameters[leaf] = copy
            yield swap

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"module": self.target}

    @classmethod
    def from_spec(cls, spec: WeightSpec) -> "Weight":
        return cls(spec.module, {name: torch.empty(shape) for name, shape in spec.shapes.items()})


EDITS: Mapping[str, type[Edit]] = {
    edit.kind: edit for edit in (Shift, Scale, Bypass, Tokens, Table, Weight, Word)
}


def edit_from_spec(spec: Mapping[str, Any]) -> Edit:
    """The edit that `Edit.spec` described; its values are to be filled in.

    Raises: SmidgenError for a kind that is unknown here; Unreadable if it describes no such edit,
        with the place that is wrong.
    """
    kind = spec.get("kind")
    if isinstance(kind, str) and kind not in EDITS:
        raise SmidgenError(
            f"edits of kind {json.dumps(kind[:40])} are unknown to this smidgen, which has: "
            f"{', '.join(EDITS)}; upgrade smidgen"
        )
    checked = fit(spec, EDITS[kind].schema if isinstance(kind, str) else Spec)
    try:
        edit = EDITS[checked.kind].from_spec(checked)
        edit.component = checked.component
        return edit
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise Unreadable(f'"{checked.name}" is no {checked.kind}: {error}') from error


@dataclass(frozen=True)
class _Swap:
    """The base's own parameter, to be put back."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter

    def remove(self) -> None:
        self.owner._parameters[self.name] = self.parameter
