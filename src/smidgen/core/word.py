"""The edit that gives an embedding table rows for a word that its vocabulary lacks.

N rows, C channels of an embedding. What tokenizer turns the word into their ids is no matter here.
"""

from typing import Annotated, Any, final

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional

from smidgen.core.edit import Edit, Size, Spec
from smidgen.core.sites import Function, Site, SiteSpec, misfit, module_at
from smidgen.errors import SmidgenError

MOST_CHARACTERS = 200


class WordSpec(Spec, frozen=True, kw_only=True):
    """The schema of a word."""

    sites: tuple[SiteSpec, SiteSpec]
    token: Annotated[str, Meta(min_length=1, max_length=MOST_CHARACTERS, pattern=r"^\S+\Z")]
    first: Size
    num_old_rows: Annotated[int, Meta(ge=1, le=2**31)]


@final
class Word(Edit):
    """Rows of a new token in an embedding table (textual inversion, arXiv 2208.01618): what the
    base returns for the ids `first` to `first` + N - 1 is replaced by them, every other row stays.

    The base looks up its own table of `num_old_rows` rows, so ids are clamped to it on the way in.
    The vectors of `token` are those of the words `names`: itself, and with a number behind it for
    each further one.
    """

    kind = "word"
    schema = WordSpec

    def __init__(
        self,
        site_in: Site,
        site_out: Site,
        token: str,
        first: int,
        num_old_rows: int,
        rows: Float[Tensor, "N C"],
    ) -> None:
        super().__init__()
        if (site_in.module, site_in.end) != (site_out.module, "in") or site_out.end != "out":
            raise ValueError(f"{site_in} and {site_out} are not the two ends of one table")
        self.sites = (site_in, site_out)
        self.token, self.first, self.num_old_rows = token, first, num_old_rows
        self.rows = nn.Parameter(rows.detach().clone())
        self.ids: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The words of the rows, as diffusers calls those of several vectors."""
        return names_of(self.token, len(self.rows))

    @property
    def num_new_rows(self) -> int:
        """Of a table that holds the new rows too."""
        return max(self.num_old_rows, self.first + len(self.rows))

    def read(self, ids: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        self.ids = ids
        return ids.clamp(max=self.num_old_rows - 1)

    def write(self, output: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        ids, self.ids = self.ids, None
        if ids is None:
            raise SmidgenError(f"{self.sites[1]} came without {self.sites[0]}: the ids are unknown")
        row = ids - self.first
        is_new = (row >= 0) & (row < len(self.rows))
        rows = self.rows.to(output)
        own = functional.embedding(row.clamp(0, len(rows) - 1), rows)
        return torch.where(is_new[..., None], own, output)

    def forget(self) -> None:
        if self.ids is not None:
            self.ids = None

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        return (self.sites[0], self.read), (self.sites[1], self.write)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[1]: self.rows.shape[1]}

    def claims(self) -> frozenset[str]:
        return frozenset({f"{self.sites[1].module}.weight[{self.first}:]"})

    def check(self, root: nn.Module) -> None:
        super().check(root)
        table = module_at(root, self.sites[1].module)
        if isinstance(table, nn.Embedding) and table.num_embeddings != self.num_old_rows:
            rows = f"{table.num_embeddings} rows where the delta expects {self.num_old_rows}"
            raise misfit(f"{self.sites[1].module} has {rows}")

    def spec(self) -> dict[str, Any]:
        facts = {"token": self.token, "first": self.first, "num_old_rows": self.num_old_rows}
        return super().spec() | facts

    @classmethod
    def from_spec(cls, spec: WordSpec) -> "Word":
        site_in, site_out = (site.site() for site in spec.sites)
        rows = torch.empty(spec.shapes["rows"])
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"rows of shape {tuple(rows.shape)}")
        return cls(site_in, site_out, spec.token, spec.first, spec.num_old_rows, rows)


def names_of(token: str, num_vectors: int) -> tuple[str, ...]:
    """The words that a tokenizer must know for a token of so many vectors."""
    return (token, *(f"{token}_{number}" for number in range(1, num_vectors)))
