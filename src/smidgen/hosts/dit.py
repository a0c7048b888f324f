"""The host of our own Diffusion Transformer (models/dit.py).

A block runs adaLN, norm1, attention, norm2, feed-forward; the six chunks of its adaLN output are
shift, scale and gate of the attention, then of the feed-forward. D is the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smidgen.core.fold import IntoLinear, IntoModulation, IntoTable, Target
from smidgen.core.sites import Site
from smidgen.hosts.host import Host

if TYPE_CHECKING:
    from smidgen.models.dit import DiT

TAPS = {  # the patch embedding is a convolution: its channels are axis 1 of (B, D, H, W)
    "patch.out": Site("x_embedder.proj", axis=1),
    "time.out": Site("t_embedder.mlp.2"),
    "label.in": Site("y_embedder.embedding_table", "in"),
    "label.out": Site("y_embedder.embedding_table"),
    "norm.out": Site("final_layer.norm_final"),
    "final.out": Site("final_layer.linear"),
}


def block_taps(block: str) -> dict[str, Site]:
    """The taps of the block with this module name."""
    return {
        "norm1.out": Site(f"{block}.norm1"),
        "attn.qkv.out": Site(f"{block}.attn.qkv"),
        "attn.proj.out": Site(f"{block}.attn.proj"),
        "attn.out": Site(f"{block}.attn"),
        "norm2.out": Site(f"{block}.norm2"),
        "ff.out": Site(f"{block}.mlp"),
    }


def host(model: DiT) -> Host:
    """The sites of `model`; reads its configuration only."""
    config = model.config
    width, hidden = config.width, int(config.width * config.mlp_ratio)
    names = tuple(f"blocks.{index}" for index in range(config.depth))

    linears: dict[Site, int] = {  # every module with a bias -> its channels, in order of use
        Site("x_embedder.proj", axis=1): width,
        Site("t_embedder.mlp.0"): width,
        Site("t_embedder.mlp.2"): width,
    }
    for name in names:
        linears |= {
            Site(f"{name}.adaLN_modulation.1"): 6 * width,
            Site(f"{name}.attn.qkv"): 3 * width,
            Site(f"{name}.attn.proj"): width,
            Site(f"{name}.mlp.fc1"): hidden,
            Site(f"{name}.mlp.fc2"): width,
        }
    linears |= {
        Site("final_layer.adaLN_modulation.1"): 2 * width,
        Site("final_layer.linear"): config.patch_size**2 * config.out_channels,
    }
    others = [
        Site(f"{name}.{part}") for name in names for part in ("norm1", "attn", "norm2", "mlp")
    ]
    others += [TAPS["label.out"], TAPS["norm.out"]]
    return Host(
        family="dit",
        blocks=tuple(block_taps(name) for name in names),
        taps=TAPS,
        biases=tuple(linears),
        sizes=linears | dict.fromkeys(others, width),
        folds=_folds(names, linears, width),
        fixed=frozenset({"pos_embed"}),
    )


def _folds(names: tuple[str, ...], linears: Mapping[Site, int], width: int) -> dict[Site, Target]:
    folds: dict[Site, Target] = {site: _into_linear(site.module) for site in linears}
    for name in names:
        # a sub-layer's output is the output of its last linear
        folds[Site(f"{name}.attn")] = _into_linear(f"{name}.attn.proj")
        folds[Site(f"{name}.mlp")] = _into_linear(f"{name}.mlp.fc2")
        modulation = f"{name}.adaLN_modulation.1"
        folds[Site(f"{name}.norm1")] = _into_modulation(modulation, 0, 1, width)
        folds[Site(f"{name}.norm2")] = _into_modulation(modulation, 3, 4, width)
    folds[TAPS["norm.out"]] = _into_modulation("final_layer.adaLN_modulation.1", 0, 1, width)
    table = IntoTable("y_embedder.embedding_table.weight")
    return folds | {TAPS["label.in"]: table, TAPS["label.out"]: table}


def _into_linear(module: str) -> IntoLinear:
    return IntoLinear(f"{module}.weight", f"{module}.bias")


def _into_modulation(module: str, shift: int, scale: int, width: int) -> IntoModulation:
    """Chunks `shift` and `scale`, each `width` rows, of the linear that modulates a norm."""
    return IntoModulation(
        f"{module}.weight",
        f"{module}.bias",
        shift=(shift * width, (shift + 1) * width),
        scale=(scale * width, (scale + 1) * width),
    )
