"""What a host is, and how one is found for a model.

A host describes one family of bases: canonical tap names -> sites, the blocks with the positions of
their data flow, what can be trained, and where an edit at a site goes when it is folded. It holds
no weights. What a family is besides is in family.py. B images, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from torch import nn

from smidgen.core.fold import Target
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.hosts.family import Family

TRANSFORMERS = "diffusers.models.transformers"

# Class of the denoiser -> module whose `host(model)` describes it and whose FAMILY says all else;
# imported only when needed. Any other class gets a host derived from its modules.
HOSTS: Mapping[str, str] = {
    "smidgen.models.dit.DiT": "smidgen.hosts.dit",
    "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel": "smidgen.hosts.unet",
    f"{TRANSFORMERS}.pixart_transformer_2d.PixArtTransformer2DModel": "smidgen.hosts.pixart",
    f"{TRANSFORMERS}.transformer_sd3.SD3Transformer2DModel": "smidgen.hosts.sd3",
    f"{TRANSFORMERS}.transformer_flux.FluxTransformer2DModel": "smidgen.hosts.flux",
    f"{TRANSFORMERS}.sana_transformer.SanaTransformer2DModel": "smidgen.hosts.sana",
    f"{TRANSFORMERS}.transformer_flux2.Flux2Transformer2DModel": "smidgen.hosts.flux2",
    f"{TRANSFORMERS}.transformer_qwenimage.QwenImageTransformer2DModel": "smidgen.hosts.qwen_image",
}
DERIVED = "smidgen.hosts.derived"


@dataclass(frozen=True, kw_only=True)
class Position:
    """A point of a block's data flow (the adapter paper's SA_in ... Res_out).

    A tensor added at all of `writes` is added at this point; without any, nothing may be added
    here. `form` is that of the tensor: (B, N, C) for "tokens", (B, C, H, W) for "image".
    """

    read: Site
    writes: tuple[Site, ...]
    size: int
    form: Literal["tokens", "image"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of the network. "transformer": attention, then feed-forward; "single": both at once
    on one stream; "residual": a ResNet block.

    `positions` are in the order of the data flow. Tokens prepended at the first site of `tokens`
    are dropped at the second; None where the block cannot take more tokens. `companions` are the
    block's inputs with an entry for each token, which get neutral ones for the prepended.
    """

    module: str
    kind: Literal["transformer", "single", "residual"]
    taps: Mapping[str, Site]
    positions: Mapping[str, Position]
    tokens: tuple[Site, Site] | None
    companions: tuple[Site, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear or convolution; or those of its output channels from `rows[0]` to `rows[1]`, which
    are then listed beside the whole module. `block` counts from 0 and is None outside the blocks;
    `repeats` as in a Site.
    """

    module: str
    role: str
    size_in: int
    size_out: int
    rows: tuple[int, int] | None = None
    conv: bool = False
    block: int | None = None
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where the sites of one base are.

    `blocks` are in the order in which they run, `taps` those of the whole model, `linears` in the
    order of the modules. `biases` are the outputs of the modules that have a bias, `norms` of the
    norms that have a weight and `bare_norms` of those that have none. `sizes` gives the channels at
    every site where an edit of that many channels fits, `folds` the weights that take up an edit
    there. `fixed` names the parameters that no method trains, `final` the module that is the last
    layer, `untouched` the parameters that are no module's weight or bias, which no site reaches.
    `half` says whether the first half of the blocks is what "auto" means. `refusals`: names of
    methods that cannot work here, each with the reason in one line.
    """

    family: str
    blocks: tuple[Block, ...]
    taps: Mapping[str, Site]
    biases: tuple[Site, ...]
    norms: tuple[Site, ...]
    bare_norms: tuple[Site, ...]
    linears: tuple[Linear, ...]
    sizes: Mapping[Site, int]
    folds: Mapping[Site, Target]
    fixed: frozenset[str] = frozenset()
    final: str
    half: bool
    untouched: tuple[str, ...] = ()
    refusals: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_labels(self) -> bool:
        """Whether the base is conditioned on class labels."""
        return "label.out" in self.taps

    def tap(self, name: str) -> Site:
        """The site of a whole-model tap, e.g. `final.out`.

        Raises: SmidgenError if this family has no such tap.
        """
        return _look_up(self.taps, name, f"a {self.family} base")

    def block_tap(self, block: int, name: str) -> Site:
        """The site of a tap of one block (counted from 0), e.g. `attn.qkv.out`.

        Raises: SmidgenError if this block has no such tap.
        """
        return _look_up(self.blocks[block].taps, name, f"block {block} of a {self.family} base")


def find_host(model: nn.Module) -> Host:
    """The host of `model`, by its exact class: a subclass may run its modules differently. A class
    without an entry in HOSTS gets one that is derived from its modules.
    """
    return import_module(HOSTS.get(class_path(model), DERIVED)).host(model)


def find_family(model: nn.Module) -> Family:
    """How `model` is called, by its exact class.

    Raises: SmidgenError for a class without an entry in HOSTS.
    """
    path = class_path(model)
    if path not in HOSTS:
        raise SmidgenError(
            f"no host says how models of class {path} are called: inspect and attaching work, with "
            "bitfit, lora and difffit, but training and sampling by name do not; "
            "docs/add-a-host.md says how to add one"
        )
    return import_module(HOSTS[path]).FAMILY


def families() -> dict[str, Family]:
    """Every family by the name of its class, as configurations have it."""
    return {path.rpartition(".")[2]: import_module(module).FAMILY for path, module in HOSTS.items()}


def families_by_host() -> dict[str, Family]:
    """Every family by the name of its host, as deltas have it."""
    return {path.rpartition(".")[2]: import_module(path).FAMILY for path in HOSTS.values()}


def library_of(class_name: str) -> str:
    """The module from which a network of this class is imported, and so its pipelines: diffusers,
    unless HOSTS says otherwise.
    """
    found = (path.rpartition(".") for path in HOSTS)
    module = next((module for module, _, name in found if name == class_name), "diffusers")
    return "diffusers" if module.startswith("diffusers.") else module


def class_path(model: nn.Module) -> str:
    """The dotted path of the model's class, as HOSTS has it."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _look_up(taps: Mapping[str, Site], name: str, where: str) -> Site:
    if name not in taps:
        raise SmidgenError(f'{where} has no tap "{name}"; it has: {", ".join(taps)}')
    return taps[name]
