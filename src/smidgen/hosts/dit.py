"""The family of our own Diffusion Transformer (models/dit.py).

A block runs adaLN, norm1, attention, norm2, feed-forward; the six chunks of its adaLN output are
shift, scale and gate of the attention, then of the feed-forward. D is the width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import Tensor, nn

from smidgen.core.fold import IntoLinear, IntoTable, Target, modulation
from smidgen.core.sites import Site
from smidgen.hosts.family import Condition, Family
from smidgen.hosts.host import Block, Host, Position
from smidgen.hosts.modules import Role, read_modules, with_rows
from smidgen.hosts.renaming import Renaming, count_blocks

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
ROLES = {  # of a block's linears, in the order in which they run
    "adaLN_modulation.1": "other",
    "attn.qkv": "qkv",
    "attn.proj": "o",
    "mlp.fc1": "ff1",
    "mlp.fc2": "ff2",
}
DIFFUSERS_ROOT = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
DIFFUSERS_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Epsilon, then the variance channels if the network learned them."""
    return network(x_t, t, condition["labels"])


def diffusers_names(modules: Collection[str]) -> Renaming:
    """What `DiTTransformer2DModel` of diffusers calls these modules; it has no single one for the
    embedders of timestep and label, which it repeats in every block.
    """
    found: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in DIFFUSERS_ROOT.items()}
    for index in range(count_blocks(modules, "blocks")):
        for ours, parts in DIFFUSERS_BLOCK.items():
            stacked = tuple(f"transformer_blocks.{index}.{part}" for part in parts)
            found[f"blocks.{index}.{ours}"] = stacked
    return Renaming(modules=found)


FAMILY = Family(
    predict=predict,
    encode=None,
    parameterisation="scheduler",
    latent_shape=lambda config: (config.in_channels, *config.latent_size),
    diffusers=diffusers_names,
    code="https://github.com/facebookresearch/DiT",
)


def block_taps(block: str) -> dict[str, Site]:
    """The taps of the block with this module name."""
    return {
        "block.in": Site(block, "in"),
        "norm1.out": Site(f"{block}.norm1"),
        "attn.qkv.out": Site(f"{block}.attn.qkv"),
        "attn.proj.out": Site(f"{block}.attn.proj"),
        "attn.out": Site(f"{block}.attn"),
        "norm2.out": Site(f"{block}.norm2"),
        "ff.in": Site(f"{block}.mlp", "in"),
        "ff.out": Site(f"{block}.mlp"),
        "block.out": Site(block),
    }


def block_positions(block: str, width: int) -> dict[str, Position]:
    """The points of the data flow: x = block.in; x = x + gate * attn(norm1(x)) is FFN_in, which is
    read again where the feed-forward's gated output is added to it.
    """
    taps, after_attention = block_taps(block), Site(f"{block}.norm2", "in")
    reads = {
        "SA_in": (taps["block.in"], (taps["block.in"],)),
        "SA_out": (taps["attn.out"], ()),
        "FFN_in": (after_attention, (after_attention, taps["block.out"])),
        "FFN_out": (taps["ff.out"], ()),
        "Trans_out": (taps["block.out"], (taps["block.out"],)),
    }
    return {
        name: Position(read=read, writes=writes, size=width, form="tokens")
        for name, (read, writes) in reads.items()
    }


def host(model: DiT) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its linears."""
    width = model.config.width
    names = tuple(f"blocks.{index}" for index in range(model.config.depth))
    roles = {
        f"{name}.{leaf}": Role(name=role, block=index)
        for index, name in enumerate(names)
        for leaf, role in ROLES.items()
    }
    qkv = tuple((role, i * width, (i + 1) * width) for i, role in enumerate("qkv"))
    parts = read_modules(model, roles)
    biases = [Site("x_embedder.proj", axis=1), Site("t_embedder.mlp.0"), TAPS["time.out"]]
    biases += [Site(f"{name}.{leaf}") for name in names for leaf in ROLES]  # in order of use
    biases += [Site("final_layer.adaLN_modulation.1"), TAPS["final.out"]]
    taps = (*(tap for name in names for tap in block_taps(name).values()), TAPS["label.out"])
    return parts.host(
        family="dit",
        blocks=tuple(_block(name, width) for name in names),
        taps=TAPS,
        biases=tuple(biases),
        linears=tuple(with_rows(parts.linears, {f"{name}.attn.qkv": qkv for name in names})),
        sizes=dict.fromkeys(taps, width) | parts.sizes,
        folds=parts.folds | _folds(names, width),
        fixed=frozenset({"pos_embed"}),
        final="final_layer",
        half=True,
    )


def _block(name: str, width: int) -> Block:
    taps = block_taps(name)
    return Block(
        module=name,
        kind="transformer",
        taps=taps,
        positions=block_positions(name, width),
        tokens=(taps["block.in"], taps["block.out"]),
    )


def _folds(names: tuple[str, ...], width: int) -> dict[Site, Target]:
    folds: dict[Site, Target] = {}
    for name in names:
        # a sub-layer's output is the output of its last linear
        for part, last in (("attn", "attn.proj"), ("mlp", "mlp.fc2")):
            folds[Site(f"{name}.{part}")] = IntoLinear(
                f"{name}.{last}.weight", f"{name}.{last}.bias"
            )
        linear = f"{name}.adaLN_modulation.1"
        folds[Site(f"{name}.norm1")] = modulation(linear, width, shift=0, scale=1)
        folds[Site(f"{name}.norm2")] = modulation(linear, width, shift=3, scale=4)
    folds[TAPS["norm.out"]] = modulation("final_layer.adaLN_modulation.1", width, shift=0, scale=1)
    table = IntoTable("y_embedder.embedding_table.weight")
    return folds | {TAPS["label.in"]: table, TAPS["label.out"]: table}
