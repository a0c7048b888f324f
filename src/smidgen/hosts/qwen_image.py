"""The family of Qwen-Image: `QwenImageTransformer2DModel` of diffusers.

Blocks of two streams, each with its own adaLN linears, six chunks as in DiT. The text's stream is
computed to the end, though nothing reads what the last block makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.fold import modulation
from smidgen.core.sites import Site
from smidgen.hosts.family import Condition, Family, Pipeline, latent_shape_of, needed
from smidgen.hosts.host import Host
from smidgen.hosts.packing import pack, unpack
from smidgen.hosts.transformer import Joint, Sheet, model_taps
from smidgen.sizes import ImageSize

PARTS = Joint(
    norm1="img_norm1",
    norm2="img_norm2",
    ff="img_mlp",
    text_ff="txt_mlp",
)

EDITING = "an editing variant of Qwen-Image tells image from reference token by token"


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    config: Any = model.config
    sheet, edits = Sheet(model=model), config.zero_cond_t
    width = sheet.width
    for name in sheet.names("transformer_blocks"):
        # the complex rotations of the image's tokens; a rotation by nothing is neutral
        rotations = Site(name, "in", "image_rotary_emb", index=0, axis=0)
        sheet.add_joint(name, PARTS, tokens=not edits, companions=(rotations,))
        for stream in ("img", "txt"):
            linear = f"{name}.{stream}_mod.1"
            sheet.modulations |= {
                f"{name}.{stream}_norm1": modulation(linear, width, shift=0, scale=1),
                f"{name}.{stream}_norm2": modulation(linear, width, shift=3, scale=4),
            }
    sheet.modulations["norm_out.norm"] = modulation("norm_out.linear", width, shift=1, scale=0)
    return sheet.host(
        family="qwen_image",
        taps=model_taps(
            Site("img_in"), "time_text_embed.timestep_embedder.linear_2", "norm_out.norm"
        ),
        roles=PARTS.roles(),
        refusals={"vpt": EDITING} if edits else {},
        shared="no linear of Qwen-Image modulates this norm",
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The velocity, noise - x_0, of latents (B, C, H, W) at sigmas (B,)."""
    height, width = x_t.shape[-2:]
    tokens = network(
        hidden_states=pack(x_t),
        encoder_hidden_states=needed(condition, "text", "qwen_image"),
        encoder_hidden_states_mask=condition.get("mask"),
        timestep=t,
        img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's language model sees them, padded to the longest."""
    text, mask = pipeline.encode_prompt(list(prompts))
    if mask is None:  # the pipeline's way to say that no prompt is padded
        mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
    return {"text": text, "mask": mask}


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="flow",
    latent_shape=partial(latent_shape_of, packed=4),
    condition_shapes=lambda config: {"text": (512, config["joint_attention_dim"])},
    pipelines={"QwenImagePipeline": Pipeline(patch=2, even_to_fraction=True)},
)
