"""The edit that reads at one site and adds at others, around the base: adapters and LoRA.

What it computes in between is in bodies.py.
"""

from abc import abstractmethod
from functools import partial
from typing import Annotated, Any, final

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from smidgen.core.bodies import Body, Bottleneck, Conv, ConvBottleneck, Linear, body_from_spec
from smidgen.core.edit import Acting, Edit, Size, Spec
from smidgen.core.sites import Function, Site, SiteSpec, misfit, module_at, num_channels
from smidgen.errors import SmidgenError

__all__ = ["Adding", "Bottleneck", "Bypass", "Conv", "ConvBottleneck", "Linear"]


class Adding(Acting):
    """Reads at its first site and adds at each of the others, in the order in which the network
    reaches them; what is to be added is kept from the read to the last write and no longer.
    """

    rows: tuple[int, int] | None
    kept: Tensor | None = None

    @abstractmethod
    def read(self, h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Keep what is to be added; `h` itself is returned."""

    def write(self, number: int, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Add at the site of this number (the first write is 1); the last write forgets."""
        kept, first, site = self.kept, self.sites[0], self.sites[number]
        if kept is None:
            raise SmidgenError(
                f"{site} came without {first} before it: nothing was read to be added; "
                "what lies between the two must run in one call of the network"
            )
        if number == len(self.sites) - 1:
            self.kept = None
        if self.rows is not None and self.rows[1] > y.shape[site.axis]:
            raise misfit(f"{site} carries {tuple(y.shape)}, the delta adds to {self.rows}")
        term = aligned(kept, first.axis, y, site.axis)
        start, stop = self.rows or (0, y.shape[site.axis])
        part = y if self.rows is None else y.narrow(site.axis, start, stop - start)
        if term.shape != part.shape:  # broadcasting would mix images or tokens
            raise SmidgenError(
                f"what was read at {first} gives {tuple(term.shape)} and cannot be added to "
                f"{tuple(part.shape)} at {site}; switch off what splits the batch or the tokens "
                "between the two, such as a chunked feed-forward, and attach a delta that adds "
                "tokens behind the others"
            )
        if self.rows is None:
            return y + term
        return torch.slice_scatter(y, part + term, site.axis, start, stop)

    def forget(self) -> None:
        if self.kept is not None:
            self.kept = None

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        writes = enumerate(self.sites[1:], start=1)
        return (
            (self.sites[0], self.read),
            *((site, partial(self.write, number)) for number, site in writes),
        )


class BypassSpec(Spec, frozen=True, kw_only=True):
    """The schema of a bypass; that of its body is in bodies.py."""

    sites: Annotated[tuple[SiteSpec, ...], Meta(min_length=2)]
    body: dict[str, Any]
    scale: Annotated[float, Meta(ge=-1e30, le=1e30)] = 1.0
    rows: tuple[Size, Size] | None = None


@final
class Bypass(Adding, Edit):
    """Reads h at `read` and adds scale * body(h) at each of `writes`; with `rows`, to the channels
    from `rows[0]` to `rows[1]` there.

    `scale` is a fixed number. The tensors of the body are those of the edit: `down.weight`,
    `down.bias`, `up.weight`, ...
    """

    kind = "bypass"
    schema = BypassSpec

    def __init__(
        self,
        read: Site,
        writes: tuple[Site, ...],
        body: Body,
        *,
        scale: float = 1.0,
        rows: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not writes:
            raise ValueError(f"a bypass that reads at {read} writes nowhere")
        if rows is not None and rows[1] - rows[0] != body.size_out:
            raise ValueError(f"rows {rows} for a body of {body.size_out} channels")
        self.sites = (read, *writes)
        self.scale = float(scale)
        self.rows = None if rows is None else (rows[0], rows[1])
        # its layers are registered here, so that no "body." comes before the names of the tensors
        self._body = (body,)
        for name, layer in body.named_children():
            self.add_module(name, layer)

    @property
    def body(self) -> Body:
        return self._body[0]

    def initialise(self, generator: torch.Generator, zero: bool = True) -> None:
        """Start the body (`Body.initialise`)."""
        self.body.initialise(generator, zero)

    def read(self, h: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        output = self.body(h, self.sites[0].axis)
        self.kept = output if self.scale == 1 else self.scale * output
        return h

    def sizes(self) -> dict[Site, int]:
        written = {} if self.rows else dict.fromkeys(self.sites[1:], self.body.size_out)
        return written | {self.sites[0]: self.body.size_in}

    def check(self, root: nn.Module) -> None:
        super().check(root)
        own = module_at(root, self.sites[0].module)
        conv = self.body.conv if isinstance(self.body, Bottleneck) else None
        if conv is not None and isinstance(own, _ConvNd):
            expected = (own.kernel_size, own.stride, own.padding, own.dilation)
            if (conv.kernel, conv.stride, conv.padding, conv.dilation) != expected:
                raise misfit(f"{self.sites[0]} is a convolution of another geometry than {conv}")
        if self.rows is None:
            return
        for site in self.sites[1:]:
            found = num_channels(module_at(root, site.module), site.end)
            if found is not None and self.rows[1] > found:
                raise misfit(f"{site} has {found} channels, the delta adds to {self.rows}")

    def spec(self) -> dict[str, Any]:
        facts = {"body": self.body.spec(), "scale": self.scale}
        return super().spec() | facts | ({} if self.rows is None else {"rows": list(self.rows)})

    @classmethod
    def from_spec(cls, spec: BypassSpec) -> "Bypass":
        read, *writes = (site.site() for site in spec.sites)
        body = body_from_spec(spec.body)
        return cls(read, tuple(writes), body, scale=spec.scale, rows=spec.rows)


def aligned(
    term: Float[Tensor, "..."], term_axis: int, y: Float[Tensor, "..."], axis: int
) -> Float[Tensor, "..."]:
    """`term`, whose channels are at `term_axis`, as `y` has its own at `axis`, in its precision.

    Beside tokens, (B, N, C), an image (B, C, H, W) is the tokens of its rows one by one, and the
    other way round.
    """
    if term.ndim == 4 and y.ndim == 3:
        term, term_axis = term.movedim(term_axis, -1).flatten(1, 2), -1
    elif term.ndim == 3 and y.ndim == 4:
        tokens, rows = term.movedim(term_axis, -1), y.movedim(axis, -1).shape[1:3]
        if tokens.shape[1] == rows.numel():  # another number is for the caller to refuse
            term, term_axis = tokens.unflatten(1, rows), -1
    axis, term_axis = axis % y.ndim, term_axis % term.ndim
    return term.to(y) if axis == term_axis else term.to(y).movedim(term_axis, axis)
