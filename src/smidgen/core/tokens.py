"""The edit that lengthens a sequence: learned tokens before those of the base (prompt tuning).

B images, N tokens, C channels, P learned tokens.
"""

from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smidgen.core.edit import Edit, Spec
from smidgen.core.sites import Function, Site, SiteSpec
from smidgen.errors import SmidgenError

STD = 0.02  # of the start, as the tokens and tables of the released models


class TokensSpec(Spec, frozen=True, kw_only=True):
    """The schema of tokens."""

    sites: tuple[SiteSpec, SiteSpec]
    companions: tuple[SiteSpec, ...] = ()


@final
class Tokens(Edit):
    """Prepends P learned tokens at `site_in` and drops the first P at `site_out` (visual prompt
    tuning, arXiv 2203.12119), both (B, N, C). Zero until initialised or filled in.

    `companions` are inputs that have an entry for each token, such as a rotary embedding or a mask:
    neutral entries (rotation by nothing, attended) come before theirs for the new tokens. A
    companion's `axis` is that of the tokens, and it may be absent in a call.
    """

    kind = "tokens"
    schema = TokensSpec
    encloses = True  # others see the same sequence wherever they read and add

    def __init__(
        self,
        site_in: Site,
        site_out: Site,
        num: int,
        size: int,
        *,
        companions: tuple[Site, ...] = (),
    ) -> None:
        super().__init__()
        self.sites = (site_in, site_out)
        self.companions = companions
        self.tokens = nn.Parameter(torch.zeros(num, size))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at N(0, 0.02). Draws on the CPU; on the meta device it draws nothing."""
        if not self.tokens.is_meta:
            shape = self.tokens.shape
            self.tokens.copy_(STD * torch.randn(shape, generator=generator, dtype=torch.float32))

    def prepend(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if x.ndim != 3:
            raise SmidgenError(f"{self.sites[0]} carries {tuple(x.shape)}, not (B, tokens, C)")
        return torch.cat([self.tokens.to(x).expand(len(x), -1, -1), x], dim=1)

    def drop(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B M C"]:
        return x[:, len(self.tokens) :]

    def accompany(self, site: Site, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        return with_neutral(value, len(self.tokens), site)

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        others = ((site, partial(self.accompany, site)) for site in self.companions)
        return ((self.sites[0], self.prepend), *others, (self.sites[1], self.drop))

    def sizes(self) -> dict[Site, int]:
        return dict.fromkeys(self.sites, self.tokens.shape[-1])

    def spec(self) -> dict[str, Any]:
        companions = [site.spec() for site in self.companions]
        return super().spec() | ({"companions": companions} if companions else {})

    @classmethod
    def from_spec(cls, spec: TokensSpec) -> "Tokens":
        site_in, site_out = (site.site() for site in spec.sites)
        num, size = spec.shapes["tokens"]
        companions = tuple(site.site() for site in spec.companions)
        return cls(site_in, site_out, num, size, companions=companions)


def with_neutral(value: Shaped[Tensor, "..."], num: int, site: Site) -> Shaped[Tensor, "..."]:
    """`num` entries before those along the site's axis: one of a complex rotation or of a mask of
    ones and zeros, True of a boolean mask.

    Raises: SmidgenError for real numbers, of which nobody can tell what is neutral.
    """
    if value.is_floating_point():
        raise SmidgenError(f"{site} carries {value.dtype}: no entry of it is neutral for a token")
    shape = list(value.shape)
    shape[site.axis] = num
    return torch.cat([value.new_ones(shape), value], dim=site.axis)
