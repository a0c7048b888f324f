"""The family of PixArt Alpha and Sigma: `PixArtTransformer2DModel` of diffusers.

All blocks share the one adaLN linear `adaln_single.linear`; what they add to it, their
`scale_shift_table`, is no module's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.sites import Site
from smidgen.hosts.family import Condition, Family, Pipeline, needed
from smidgen.hosts.host import Host
from smidgen.hosts.modules import Role
from smidgen.hosts.transformer import FEED_FORWARD, SELF_ATTENTION, Sheet, model_taps, named
from smidgen.sizes import ImageSize

PIXELS_PER_LATENT = 8  # of Stable Diffusion's codec, which PixArt uses
ROLES = (
    named("attn1", SELF_ATTENTION)
    | named("attn2", SELF_ATTENTION, "cross.")
    | named("ff", FEED_FORWARD)
)

# An image's height and width go through these as two entries of a batch; its aspect ratio is one.
RESOLUTION = tuple(f"adaln_single.emb.resolution_embedder.linear_{n}" for n in (1, 2))


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    sheet = Sheet(model=model)
    for name in sheet.names("transformer_blocks"):
        to_k: Any = model.get_submodule(f"{name}.attn2.to_k")
        ff = Site(f"{name}.ff")
        sheet.add_cross(name, ff=ff, last="net.2", context=to_k.in_features, tokens=True)
    return sheet.host(
        family="pixart",
        taps=model_taps(
            Site("pos_embed.proj", axis=1),
            "adaln_single.emb.timestep_embedder.linear_2",
            "norm_out",
        ),
        roles=ROLES,
        shared="PixArt's blocks share one adaLN linear, which cannot take up the affine of one",
        beside=dict.fromkeys(RESOLUTION, Role(repeats=2)),
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Noise, and behind it the variance channels, for latents (B, C, H, W) at timesteps (B,)."""
    sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    model: Any = network
    if model.use_additional_conditions:
        height, width = x_t.shape[-2:]
        pixels = [PIXELS_PER_LATENT * height, PIXELS_PER_LATENT * width]
        sizes = {
            "resolution": torch.tensor(pixels).to(x_t).expand(len(x_t), 2),
            "aspect_ratio": torch.tensor([height / width]).to(x_t).expand(len(x_t), 1),
        }
    return network(
        x_t,
        encoder_hidden_states=needed(condition, "text", "pixart"),
        encoder_attention_mask=condition.get("mask"),
        timestep=t,
        added_cond_kwargs=sizes,
        return_dict=False,
    )[0]


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's T5 sees them; the size comes in with the latents."""
    text, mask, _, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return {"text": text, "mask": mask}


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="scheduler",
    condition_shapes=lambda config: {"text": (300, config["caption_channels"])},
    pipelines=dict.fromkeys(("PixArtAlphaPipeline", "PixArtSigmaPipeline"), Pipeline(patch=2)),
)
