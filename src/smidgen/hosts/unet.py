"""The family of Stable Diffusion 1, 2 and XL: `UNet2DConditionModel` of diffusers.

Its blocks are the transformer blocks inside its attention modules and its residual blocks, not the
samplers. B images, N tokens of the image, C channels of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from smidgen.core.fold import IntoLinear, Target
from smidgen.core.sites import Site
from smidgen.hosts.family import (
    TWO_ENCODERS,
    TWO_TOKENIZERS,
    Condition,
    Config,
    Family,
    Original,
    Pipeline,
    needed,
)
from smidgen.hosts.host import Block, Host, Position, class_path
from smidgen.hosts.modules import Role, read_modules
from smidgen.hosts.unet_names import original_names
from smidgen.sizes import ImageSize

TRANSFORMER = "diffusers.models.attention.BasicTransformerBlock"
RESIDUAL = "diffusers.models.resnet.ResnetBlock2D"

TAPS = {
    "patch.out": Site("conv_in", axis=1),
    "time.out": Site("time_embedding.linear_2"),
    "norm.out": Site("conv_norm_out", axis=1),
    "final.out": Site("conv_out", axis=1),
}
ROLES = {  # linears and convolutions by their name in a block
    "attn1.to_q": "q",
    "attn1.to_k": "k",
    "attn1.to_v": "v",
    "attn1.to_out.0": "o",
    "attn2.to_q": "cross.q",
    "attn2.to_k": "cross.k",
    "attn2.to_v": "cross.v",
    "attn2.to_out.0": "cross.o",
    "ff.net.0.proj": "ff1",
    "ff.net.2": "ff2",
    "conv1": "conv1",
    "conv2": "conv2",
    "conv_shortcut": "shortcut",
}
LAST_LINEARS = {"attn1": "attn1.to_out.0", "attn2": "attn2.to_out.0", "ff": "ff.net.2"}


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its modules and their shapes only."""
    named = tuple(_blocks(model))
    blocks = tuple(block for block, _ in named)
    roles = {
        f"{block.module}.{leaf}": Role(name=role, block=index)
        for index, block in enumerate(blocks)
        for leaf, role in ROLES.items()
    }
    parts = read_modules(model, roles)
    sizes, folds = dict(parts.sizes), dict(parts.folds)
    for block, module in named:
        sizes |= _sizes(block)
        folds |= _folds(block, module, folds)
    return parts.host(
        family="unet",
        blocks=blocks,
        taps={name: site for name, site in TAPS.items() if site in parts.sizes},
        sizes=sizes,
        folds=folds,
        final="conv_out",
        half=False,
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Epsilon or v; SDXL's pooled text and `time_ids` go into its added conditions."""
    added = None
    if cast(Any, network).config.addition_embed_type == "text_time":
        added = {
            "text_embeds": needed(condition, "pooled", "unet"),
            "time_ids": needed(condition, "time_ids", "unet"),
        }
    text = needed(condition, "text", "unet")
    return network(x_t, t, text, added_cond_kwargs=added, return_dict=False)[0]


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """What the pipeline's text encoders make of the prompts; for SDXL an image of `size`
    that was neither scaled nor cropped, and zeros for an empty prompt where its pipeline uses them.
    """
    options: dict[str, Any] = {
        "device": pipeline.text_encoder.device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    if "text_encoder_2" not in pipeline.components:
        return {"text": pipeline.encode_prompt(list(prompts), **options)[0]}
    text, _, pooled, _ = pipeline.encode_prompt(prompt=list(prompts), **options)
    if pipeline.config.force_zeros_for_empty_prompt:
        empty = torch.tensor([prompt == "" for prompt in prompts], device=text.device)
        text = text.masked_fill(empty[:, None, None], 0)
        pooled = pooled.masked_fill(empty[:, None], 0)
    # original height and width, top and left of the crop, target height and width
    sizes = torch.tensor([size.height, size.width, 0, 0, size.height, size.width])
    time_ids = sizes.to(text).expand(len(text), 6)
    return {"text": text, "pooled": pooled, "time_ids": time_ids}


def transformer_block(name: str, module: nn.Module) -> Block:
    """Self-attention, cross-attention, feed-forward, each behind its norm and added to the stream.

    The stream is no module's output between them; it is what the next norm reads, and what is
    added there has to be added at every later read and at the block's output.
    """
    parts: Any = module
    enter, leave = Site(name, "in"), Site(name)
    attention, cross, feed = Site(f"{name}.attn1"), Site(f"{name}.attn2"), Site(f"{name}.ff")
    before_feed = Site(f"{name}.norm3", "in")
    at = partial(_position, form="tokens", size=parts.attn1.to_q.in_features)
    taps = {"block.in": enter, "norm1.out": Site(f"{name}.norm1")}
    taps |= {f"attn.{part}.out": Site(f"{name}.attn1.to_{part}") for part in "qkv"}
    taps |= {"attn.proj.out": Site(f"{name}.attn1.to_out.0"), "attn.out": attention}
    positions = {"SA_in": at(enter, enter), "SA_out": at(attention)}
    if parts.attn2 is not None:
        before_cross = Site(f"{name}.norm2", "in")
        text = Site(cross.module, "in", "encoder_hidden_states")
        taps |= {"norm2.out": Site(f"{name}.norm2"), "cross.out": cross}
        positions |= {
            "CA_in": at(before_cross, before_cross, before_feed, leave),
            "CA_c": at(text, text, size=parts.attn2.to_k.in_features),
            "CA_out": at(cross),
        }
    taps |= {"norm3.out": Site(f"{name}.norm3"), "ff.in": Site(feed.module, "in"), "ff.out": feed}
    taps["block.out"] = leave
    positions |= {
        "FFN_in": at(before_feed, before_feed, leave),
        "FFN_out": at(feed),
        "Trans_out": at(leave, leave),
    }
    return Block(
        module=name, kind="transformer", taps=taps, positions=positions, tokens=(enter, leave)
    )


def residual_block(name: str, module: nn.Module) -> Block:
    """A ResNet block. What is added at its input goes into the skip path too."""
    parts: Any = module
    enter, leave = Site(name, "in", axis=1), Site(name, axis=1)
    inner = {f"{part}.out": Site(f"{name}.{part}", axis=1) for part in ("norm1", "norm2", "conv2")}
    return Block(
        module=name,
        kind="residual",
        taps={"block.in": enter, **inner, "block.out": leave},
        positions={
            "Res_in": _position(enter, enter, size=parts.conv1.in_channels, form="image"),
            "Res_out": _position(leave, leave, size=parts.conv2.out_channels, form="image"),
        },
        tokens=None,
    )


def _position(read: Site, *writes: Site, size: int, form: Literal["tokens", "image"]) -> Position:
    return Position(read=read, writes=writes, size=size, form=form)


def _blocks(model: nn.Module) -> Iterator[tuple[Block, nn.Module]]:
    """The blocks with their modules in the order in which they run: in each stage a residual block,
    then the transformer blocks of the attention module behind it.
    """
    unet: Any = model
    stages = [(f"down_blocks.{index}", stage) for index, stage in enumerate(unet.down_blocks)]
    stages += [] if unet.mid_block is None else [("mid_block", unet.mid_block)]
    stages += [(f"up_blocks.{index}", stage) for index, stage in enumerate(unet.up_blocks)]
    for name, stage in stages:
        resnets, attentions = _children(stage, "resnets"), _children(stage, "attentions")
        for index, resnet in enumerate(resnets):
            if class_path(resnet) == RESIDUAL:
                yield residual_block(f"{name}.resnets.{index}", resnet), resnet
            if index >= len(attentions):  # the middle ends with a residual block
                continue
            for number, inner in enumerate(_children(attentions[index], "transformer_blocks")):
                if class_path(inner) == TRANSFORMER:
                    path = f"{name}.attentions.{index}.transformer_blocks.{number}"
                    yield transformer_block(path, inner), inner


def _children(module: nn.Module, name: str) -> Sequence[nn.Module]:
    return tuple(getattr(module, name, None) or ())


def _sizes(block: Block) -> dict[Site, int]:
    """The channels where whole parts of a block begin and end."""
    sizes: dict[Site, int] = {}
    for position in block.positions.values():
        sizes |= dict.fromkeys((position.read, *position.writes), position.size)
    if block.kind == "transformer":
        sizes[block.taps["ff.in"]] = block.positions["FFN_in"].size
    return sizes


def _folds(block: Block, module: nn.Module, folds: dict[Site, Target]) -> dict[Site, Target]:
    """A sub-layer's output is the output of its last linear, unless the sub-layer rescales it."""
    if block.kind != "transformer":
        return {}
    parts: Any = module
    found: dict[Site, Target] = {}
    for part, last in LAST_LINEARS.items():
        attention = getattr(parts, part)
        if attention is None:
            continue
        target = folds[Site(f"{block.module}.{last}")]
        rescaled = getattr(attention, "rescale_output_factor", 1.0) != 1.0
        residual = getattr(attention, "residual_connection", False)
        if isinstance(target, IntoLinear) and not rescaled and not residual:
            found[Site(f"{block.module}.{part}")] = target
    return found


def refusal(config: Config) -> str | None:
    """Why the original code has no UNet of this configuration, None if it has."""
    embedding = config.get("class_embed_type") or config.get("num_class_embeds")
    if embedding or config.get("addition_embed_type") not in (None, "text_time"):
        return "a single file holds UNets of SD 1.x, 2.x and SDXL; this one has other embeddings"
    return None


def condition_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Text of 77 tokens; SDXL's pooled text and sizes."""
    shapes: dict[str, tuple[int, ...]] = {"text": (77, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        times = 6 * config["addition_time_embed_dim"]
        shapes["pooled"] = (config["projection_class_embeddings_input_dim"] - times,)
        shapes["time_ids"] = (6,)
    return shapes


def halvings(config: Config) -> int:
    """How often the way down halves the latents."""
    blocks = config.get("block_out_channels")
    return len(blocks) - 1 if isinstance(blocks, list | tuple) and blocks else 0


def architecture(config: Any, predicts_v: bool) -> str | None:
    """The name in ModelSpec, by the width of the text that is read."""
    found = {
        768: "stable-diffusion-v1",
        1024: "stable-diffusion-v2-768-v" if predicts_v else "stable-diffusion-v2-512",
        1280: "stable-diffusion-xl-v1-refiner",
        2048: "stable-diffusion-xl-v1-base",
    }
    return found.get(config.cross_attention_dim)


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="scheduler",
    condition_shapes=condition_shapes,
    pipelines={
        "StableDiffusionPipeline": Pipeline(denoiser="unet", halvings=halvings),
        "StableDiffusionXLPipeline": Pipeline(
            denoiser="unet",
            tokenizers=TWO_TOKENIZERS,
            encoders=TWO_ENCODERS,
            halvings=halvings,
        ),
    },
    original=Original(
        models="SD 1.x, 2.x, SDXL",
        names=original_names,
        codec="first_stage_model.",
        text_encoders={
            1: ("cond_stage_model.transformer.", "cond_stage_model.model."),
            2: ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
        },
        refusal=refusal,
        kohya=lambda config: config.get("addition_embed_type") is not None,
    ),
    code="https://github.com/Stability-AI/generative-models",
    architecture=architecture,
)
