"""SD3 and Flux transformers under the names of their original code.

There a block's queries, keys and values are one linear, and the last modulation has shift before
scale.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from smidgen.interop.renaming import Renaming, count_blocks

Entry = tuple[str, tuple[str, ...]]

SD3_ROOT = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FLUX_ROOT = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FINAL_MODULATION = "final_layer.adaLN_modulation.1"


def sd3_renaming(names: Collection[str]) -> Renaming:
    """Original names of the modules `names` of an SD3Transformer2DModel (SD 3 and 3.5)."""
    depth = count_blocks(names, "transformer_blocks")
    modules: dict[str, tuple[str, ...]] = {outer: (inner,) for outer, inner in SD3_ROOT.items()}
    for index in range(depth):
        modules |= dict(_sd3_block(f"joint_blocks.{index}", f"transformer_blocks.{index}"))
    last = (
        f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1"  # its text stream ends there
    )
    return Renaming(
        modules=_present(modules, names),
        swapped=frozenset({last, FINAL_MODULATION}),
        tensors={"pos_embed": "pos_embed.pos_embed"},
    )


def flux_renaming(names: Collection[str]) -> Renaming:
    """Original names of the modules `names` of a FluxTransformer2DModel (FLUX.1)."""
    modules: dict[str, tuple[str, ...]] = {outer: (inner,) for outer, inner in FLUX_ROOT.items()}
    tensors: dict[str, str] = {}
    for index in range(count_blocks(names, "transformer_blocks")):
        outer, inner = f"double_blocks.{index}", f"transformer_blocks.{index}"
        modules |= dict(_flux_double(outer, inner))
        for stream, norm in (("img", "norm"), ("txt", "norm_added")):
            for whole, letter in (("query", "q"), ("key", "k")):
                scale = f"{outer}.{stream}_attn.norm.{whole}_norm.scale"
                tensors[scale] = f"{inner}.attn.{norm}_{letter}.weight"
    for index in range(count_blocks(names, "single_transformer_blocks")):
        outer, inner = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        modules[f"{outer}.linear1"] = (*_qkv(f"{inner}.attn"), f"{inner}.proj_mlp")
        modules[f"{outer}.linear2"] = (f"{inner}.proj_out",)
        modules[f"{outer}.modulation.lin"] = (f"{inner}.norm.linear",)
        for whole, letter in (("query", "q"), ("key", "k")):
            tensors[f"{outer}.norm.{whole}_norm.scale"] = f"{inner}.attn.norm_{letter}.weight"
    return Renaming(
        modules=_present(modules, names), swapped=frozenset({FINAL_MODULATION}), tensors=tensors
    )


def _sd3_block(outer: str, inner: str) -> Iterator[Entry]:
    image, text = f"{outer}.x_block", f"{outer}.context_block"
    for attention in ("attn", "attn2"):  # the second only in the first blocks of SD 3.5 medium
        yield f"{image}.{attention}.qkv", _qkv(f"{inner}.{attention}")
        yield f"{image}.{attention}.proj", (f"{inner}.{attention}.to_out.0",)
        yield f"{image}.{attention}.ln_q", (f"{inner}.{attention}.norm_q",)
        yield f"{image}.{attention}.ln_k", (f"{inner}.{attention}.norm_k",)
    yield f"{text}.attn.qkv", _added_qkv(f"{inner}.attn")
    yield f"{text}.attn.proj", (f"{inner}.attn.to_add_out",)
    yield f"{text}.attn.ln_q", (f"{inner}.attn.norm_added_q",)
    yield f"{text}.attn.ln_k", (f"{inner}.attn.norm_added_k",)
    for stream, norm, feed_forward in (
        (image, "norm1", "ff"),
        (text, "norm1_context", "ff_context"),
    ):
        yield f"{stream}.adaLN_modulation.1", (f"{inner}.{norm}.linear",)
        yield f"{stream}.mlp.fc1", (f"{inner}.{feed_forward}.net.0.proj",)
        yield f"{stream}.mlp.fc2", (f"{inner}.{feed_forward}.net.2",)


def _flux_double(outer: str, inner: str) -> Iterator[Entry]:
    yield f"{outer}.img_attn.qkv", _qkv(f"{inner}.attn")
    yield f"{outer}.txt_attn.qkv", _added_qkv(f"{inner}.attn")
    yield f"{outer}.img_attn.proj", (f"{inner}.attn.to_out.0",)
    yield f"{outer}.txt_attn.proj", (f"{inner}.attn.to_add_out",)
    for stream, norm, feed_forward in (
        ("img", "norm1", "ff"),
        ("txt", "norm1_context", "ff_context"),
    ):
        yield f"{outer}.{stream}_mod.lin", (f"{inner}.{norm}.linear",)
        yield f"{outer}.{stream}_mlp.0", (f"{inner}.{feed_forward}.net.0.proj",)
        yield f"{outer}.{stream}_mlp.2", (f"{inner}.{feed_forward}.net.2",)


def _qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.to_{letter}" for letter in "qkv")


def _added_qkv(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}.add_{letter}_proj" for letter in "qkv")


def _present(
    modules: dict[str, tuple[str, ...]], names: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Without the modules that this model has not (the second attention, guidance)."""
    return {outer: parts for outer, parts in modules.items() if parts[0] in names}
