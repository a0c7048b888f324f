"""What a host is, and how one is found for a model.

A host describes one family of bases: canonical tap names -> sites, the sites of all biases, the
channels at each site, and where an edit at a site goes when it is folded. It holds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

from torch import nn

from smidgen.core.fold import Target
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError

# Class of the denoiser -> module whose `host(model)` describes it; imported only when needed.
HOSTS: Mapping[str, str] = {
    "smidgen.models.dit.DiT": "smidgen.hosts.dit",
}


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where the sites of one base are.

    `blocks` holds the taps of each block in the order in which the blocks run, `taps` those of the
    whole model. `biases` are the outputs of the modules that have a bias, `sizes` the channels at
    every site where an edit of that many channels fits, `folds` the weights that take up an edit
    there. `fixed` names the parameters that no method trains.
    """

    family: str
    blocks: tuple[Mapping[str, Site], ...]
    taps: Mapping[str, Site]
    biases: tuple[Site, ...]
    sizes: Mapping[Site, int]
    folds: Mapping[Site, Target]
    fixed: frozenset[str]

    def tap(self, name: str) -> Site:
        """The site of a whole-model tap, e.g. `final.out`.

        Raises: SmidgenError if this family has no such tap.
        """
        return _look_up(self.taps, name, f"a {self.family} base")

    def block_tap(self, block: int, name: str) -> Site:
        """The site of a tap of one block (counted from 0), e.g. `attn.qkv.out`.

        Raises: SmidgenError if this family's blocks have no such tap.
        """
        return _look_up(self.blocks[block], name, f"block {block} of a {self.family} base")


def _look_up(taps: Mapping[str, Site], name: str, where: str) -> Site:
    if name not in taps:
        raise SmidgenError(f'{where} has no tap "{name}"; it has: {", ".join(taps)}')
    return taps[name]


def find_host(model: nn.Module) -> Host:
    """The host of `model`, by its exact class: a subclass may run its modules differently.

    Raises: SmidgenError for a class without a host, naming the known ones.
    """
    path = f"{type(model).__module__}.{type(model).__qualname__}"
    if path not in HOSTS:
        raise SmidgenError(
            f"no host describes models of class {path}; known: {', '.join(HOSTS)}. "
            "docs/add-a-host.md says how to add one"
        )
    return import_module(HOSTS[path]).host(model)
