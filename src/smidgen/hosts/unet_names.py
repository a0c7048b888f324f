"""What the code of CompVis and Stability AI calls the modules of their UNets, and back.

There the layers of the way down are numbered through, and those of the way up; inside one, the
residual block is 0, its attention 1, its sampler the last. "Outer" names are that code's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from smidgen.errors import SmidgenError
from smidgen.hosts.renaming import Renaming, count_blocks

ORIGINAL_ROOT = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
ORIGINAL_LEAVES = {  # where a part's own modules have other names than here
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}


def original_names(modules: Collection[str]) -> Renaming:
    """What the code of CompVis and Stability AI calls these modules of a network; nothing what it
    has not (class embeddings, other blocks).

    There the layers of the way down are numbered through, and those of the way up; inside one,
    the residual block is 0, its attention 1, its sampler the last.

    Raises: SmidgenError if the blocks differ in their number of layers, which it could not number.
    """
    found = {outer: (inner,) for outer, inner in ORIGINAL_ROOT.items() if inner in modules}
    places = dict(_original_places(modules))
    for name in modules:
        parts = name.split(".")
        depth = 3 if parts[0] == "mid_block" else 4  # mid_block.KIND.0, down_blocks.0.KIND.0
        part, leaf = ".".join(parts[:depth]), ".".join(parts[depth:])
        if part in places:
            leaves = ORIGINAL_LEAVES.get(parts[depth - 2], {leaf: leaf})
            if leaf in leaves:
                found[f"{places[part]}.{leaves[leaf]}"] = (name,)
    return Renaming(modules=found)


def _original_places(modules: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each residual block, attention and sampler with its place in the original code."""
    yield "mid_block.resnets.0", "middle_block.0"
    yield "mid_block.attentions.0", "middle_block.1"
    yield "mid_block.resnets.1", "middle_block.2"
    ways = (("down_blocks", "input_blocks", 1, 0), ("up_blocks", "output_blocks", 0, 1))
    counts = {  # of layers with a residual block; the way up has one more in each block
        count_blocks(modules, f"{way}.{block}.resnets") - more
        for way, _, _, more in ways
        for block in range(count_blocks(modules, way))
    }
    if len(counts) != 1:
        raise SmidgenError(
            "this UNet's blocks differ in their number of layers, which the original names cannot "
            "express; write a diffusers folder instead"
        )
    (num_layers,) = counts
    for way, outer, first, more in ways:
        for block in range(count_blocks(modules, way)):
            start, stem = first + block * (num_layers + 1), f"{way}.{block}"
            for layer in range(num_layers + more):
                yield f"{stem}.resnets.{layer}", f"{outer}.{start + layer}.0"
                yield f"{stem}.attentions.{layer}", f"{outer}.{start + layer}.1"
            last, attends = start + num_layers, count_blocks(modules, f"{stem}.attentions")
            if way == "down_blocks":
                yield f"{stem}.downsamplers.0", f"{outer}.{last}.0"
            else:
                yield f"{stem}.upsamplers.0", f"{outer}.{last}.{2 if attends > num_layers else 1}"


def diffusers_names(modules: Collection[str]) -> dict[str, str]:
    """What diffusers calls these modules of a network of the original code, by their names there;
    blocks and attentions as well as what has weights. What diffusers has not is left out.

    Raises: SmidgenError if they are no such UNet's, all of whose blocks have as many layers.
    """
    known = set(modules)
    found = {outer: inner for outer, inner in ORIGINAL_ROOT.items() if outer in known}
    for inner, outer in _original_places(_layers_of(known)):
        if outer not in known:  # the last blocks have no samplers
            continue
        found[outer] = inner
        leaves = ORIGINAL_LEAVES.get(inner.split(".")[-2])
        names = None if leaves is None else {theirs: ours for ours, theirs in leaves.items()}
        for name in known:
            if name.startswith(f"{outer}."):
                leaf = name.removeprefix(f"{outer}.")
                if names is None:
                    found[name] = f"{inner}.{leaf}"
                elif leaf in names:
                    found[name] = f"{inner}.{names[leaf]}"
    return found


def _layers_of(modules: Collection[str]) -> set[str]:
    """The residual blocks and attentions that diffusers would have, by its names."""
    down, up = (count_blocks(modules, f"{way}put_blocks") for way in ("in", "out"))
    samplers = [number for number in range(down) if f"input_blocks.{number}.0.op" in modules]
    num_layers = (samplers[0] if samplers else down) - 1
    num_blocks = len(samplers) + 1
    if num_layers < 1 or (down, up) != (
        num_blocks * (num_layers + 1),
        num_blocks * (num_layers + 1),
    ):
        raise SmidgenError(
            f"a network of {down} input and {up} output blocks is no UNet of SD 1.x, 2.x or SDXL; "
            "give a model of these"
        )
    found = set[str]()
    for outer, inner, first, count in (
        ("input_blocks", "down_blocks", 1, num_layers),
        ("output_blocks", "up_blocks", 0, num_layers + 1),
    ):
        for block in range(num_blocks):
            for layer in range(count):
                place = f"{outer}.{first + block * (num_layers + 1) + layer}"
                found.add(f"{inner}.{block}.resnets.{layer}")
                if f"{place}.1.transformer_blocks" in modules:
                    found.add(f"{inner}.{block}.attentions.{layer}")
    return found
