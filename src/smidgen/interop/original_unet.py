"""The UNet of SD 1.x, 2.x and SDXL under the names of the original code (CompVis, Stability AI).

There every layer of the way down is one of `input_blocks`, of the way up one of `output_blocks`,
numbered through; inside, a layer's residual block is 0, its attention 1, its sampler the last.
"""

from __future__ import annotations

from collections.abc import Collection

from smidgen.errors import SmidgenError
from smidgen.interop.renaming import Renaming, count_blocks

ROOT = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_renaming(names: Collection[str]) -> Renaming:
    """Original names of the modules `names` of a UNet2DConditionModel; those that the original code
    has not (class embeddings, other blocks) get none.

    Raises: SmidgenError if the blocks differ in their number of layers, which it could not number.
    """
    modules = {outer: (inner,) for outer, inner in ROOT.items() if inner in names}
    num_layers = _num_layers(names)
    for name in names:
        outer = _outer(name, num_layers, names)
        if outer is not None:
            modules[outer] = (name,)
    return Renaming(modules=modules)


def _num_layers(names: Collection[str]) -> int:
    """Residual blocks in each block of the way down; the way up has one more in each."""
    found = set()
    for way, more in (("down_blocks", 0), ("up_blocks", 1)):
        for block in range(count_blocks(names, way)):
            stem = f"{way}.{block}.resnets."
            inside = [name.removeprefix(stem) for name in names if name.startswith(stem)]
            found.add(len({rest.partition(".")[0] for rest in inside}) - more)
    if len(found) != 1:
        raise SmidgenError(
            "this UNet's blocks differ in their number of layers, which the original names cannot "
            "express; write a diffusers folder instead"
        )
    return found.pop()


def _outer(name: str, num_layers: int, names: Collection[str]) -> str | None:
    """The original name of one module inside a block, or None."""
    match name.split("."):
        case ["down_blocks", block, kind, layer, *rest]:
            number = 1 + int(block) * (num_layers + 1)
            if kind == "downsamplers" and rest == ["conv"]:
                return f"input_blocks.{number + num_layers}.0.op"
            return _inside("input_blocks", number, kind, layer, rest)
        case ["mid_block", "resnets", layer, *rest] if layer in ("0", "1"):
            return _residual(f"middle_block.{2 * int(layer)}", rest)
        case ["mid_block", "attentions", "0", *rest]:
            return ".".join(("middle_block.1", *rest))
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            number = (int(block) + 1) * (num_layers + 1) - 1
            stem = f"up_blocks.{block}.attentions.{num_layers}."
            attends = any(other.startswith(stem) for other in names)
            return f"output_blocks.{number}.{2 if attends else 1}.conv"
        case ["up_blocks", block, kind, layer, *rest]:
            return _inside("output_blocks", int(block) * (num_layers + 1), kind, layer, rest)
    return None


def _inside(way: str, number: int, kind: str, layer: str, rest: list[str]) -> str | None:
    if kind not in ("resnets", "attentions"):
        return None
    outer = f"{way}.{number + int(layer)}"
    return _residual(f"{outer}.0", rest) if kind == "resnets" else ".".join((outer, "1", *rest))


def _residual(outer: str, rest: list[str]) -> str | None:
    known = len(rest) == 1 and rest[0] in RESIDUAL
    return f"{outer}.{RESIDUAL[rest[0]]}" if known else None
