"""The family of Flux.2: `Flux2Transformer2DModel` of diffusers.

As Flux.1, but without a single bias; the modulation is computed once for all blocks of a kind, and
a block of one stream reads text and image as one sequence. B, C, H, W: the codec's latents after
its 2 x 2 squares have become channels and are normalised, so that C is the network's in_channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from smidgen.core.sites import Site
from smidgen.hosts.family import Condition, Config, Family, Pipeline, latent_shape_of, needed
from smidgen.hosts.host import Host
from smidgen.hosts.packing import grid
from smidgen.hosts.transformer import Joint, Sheet, model_taps
from smidgen.sizes import ImageSize

PARTS = Joint(
    norm1="norm1",
    last="linear_out",
    ff_roles={"linear_in": "ff1", "linear_out": "ff2"},
)

SINGLE = {"attn.to_out": "o"}


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    sheet = Sheet(model=model)
    width = sheet.width
    for name in sheet.names("transformer_blocks"):
        sheet.add_joint(name, PARTS, tokens=False)
    for name in sheet.names("single_transformer_blocks"):
        sheet.add_single(name, norm="norm", projection="attn.to_out", leave=Site(name))
        fused: Any = model.get_submodule(f"{name}.attn.to_qkv_mlp_proj")
        sheet.rows[f"{name}.attn.to_qkv_mlp_proj"] = (
            ("q", 0, width),
            ("k", width, 2 * width),
            ("v", 2 * width, 3 * width),
            ("ff1", 3 * width, fused.out_features),
        )
    return sheet.host(
        family="flux2",
        taps=model_taps(
            Site("x_embedder"), "time_guidance_embed.timestep_embedder.linear_2", "norm_out.norm"
        ),
        roles=PARTS.roles() | SINGLE,
        refusals={
            "vpt": "Flux.2's rotary embedding has a fixed length",
            "bitfit": "Flux.2 has no biases",
        },
        shared="Flux.2's modulation has no bias and is shared by all blocks, so it cannot take up "
        "the affine of one",
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The velocity, noise - x_0, of latents (B, C, H, W) at sigmas (B,). `guidance` (B,) is the
    scale that the distilled variant has as an input.
    """
    config: Any = network.config
    height, width = x_t.shape[-2:]
    text = needed(condition, "text", "flux2")
    tokens = network(
        hidden_states=x_t.flatten(2).transpose(1, 2),  # (B, C, H, W) -> (B, H * W, C)
        encoder_hidden_states=text,
        timestep=t,
        img_ids=grid(1, height, width, 1, device=x_t.device),
        txt_ids=grid(1, 1, 1, text.shape[1], device=x_t.device),
        guidance=needed(condition, "guidance", "flux2") if config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's language model sees them."""
    text, _ = pipeline.encode_prompt(list(prompts))
    return {"text": text}


def undistilled(index: Config, config: Config) -> bool:
    """Whether this is the base variant of Klein, which has no guidance as an input."""
    return index.get("is_distilled") is False and not config.get("guidance_embeds")


PIPELINE = Pipeline(even_to_fraction=True, fitted_shift=True, undistilled=undistilled)
FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="flow",
    guidance="embedded",
    latent_shape=partial(latent_shape_of, side=64),
    condition_shapes=lambda config: {"text": (512, config["joint_attention_dim"])},
    pipelines=dict.fromkeys(("Flux2Pipeline", "Flux2KleinPipeline"), PIPELINE),
)
