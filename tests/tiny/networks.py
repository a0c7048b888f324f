"""The smallest network of every family.

The sizes are as small as the classes allow and differ where they may, so that no two are mixed up.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smidgen.models.dit import DiT, DiTConfig
from tests.tiny.weights import lively

DIT = DiTConfig(image_size=4, width=16, depth=2, num_heads=2, num_classes=3)
TEXT = 6  # channels of a text's states
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
# Stable Diffusion's shape: channels in groups of 32 as in the adapter paper's convolutions, a stage
# with and one without attention, a middle
UNET = {
    "sample_size": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    "cross_attention_dim": TEXT,
}
SD_3_5 = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}  # what it has besides SD3
# the class of each family in diffusers and its configuration
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "unet": ("UNet2DConditionModel", UNET),
    "sd": (  # with the layers of SD 1.x
        "UNet2DConditionModel",
        UNET | {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": 32},
    ),
    "sdxl": (
        "UNet2DConditionModel",
        UNET
        | {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,  # sizes, pooled text
        },
    ),
    "pixart": (  # Alpha at 1024 pixels: with the image's size and aspect ratio as conditions
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "sample_size": 4,
            "use_additional_conditions": True,
            "in_channels": 2,
            "out_channels": 4,
            "num_layers": 2,
            "caption_channels": 10,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        HEADS
        | {
            "sample_size": 4,
            "in_channels": 2,
            "out_channels": 2,
            "num_layers": 2,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 5,
            "pos_embed_max_size": 4,
        },
    ),
    "flux": (  # the distilled variant, which has the guidance scale as an input
        "FluxTransformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": TEXT,
            "pooled_projection_dim": 5,
            "axes_dims_rope": (2, 2, 4),
            "guidance_embeds": True,
        },
    ),
    "sana": (
        "SanaTransformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": TEXT,
            "mlp_ratio": 2,
            "sample_size": 4,
        },
    ),
    "flux2": (
        "Flux2Transformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 1,
            "joint_attention_dim": TEXT,
            "timestep_guidance_channels": 8,
            "mlp_ratio": 2.0,
            "axes_dims_rope": (2, 2, 2, 2),
        },
    ),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 2,
            "num_layers": 2,
            "joint_attention_dim": TEXT,
            "axes_dims_rope": (2, 2, 4),
        },
    ),
    # classes without a host of their own
    "auraflow": (
        "AuraFlowTransformer2DModel",
        HEADS
        | {
            "sample_size": 4,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": TEXT,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 4,  # all of them used by 2 x 2 patches
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            "sample_size": 4,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (8, 4, 4),
            "cap_feat_dim": TEXT,
        },
    ),
}


def dit(config: DiTConfig = DIT, seed: int = 0) -> DiT:
    """A frozen lively DiT; its positions are the fixed ones."""
    return lively(DiT(config), seed).eval().requires_grad_(False)


def network(family: str, *, seed: int = 0, **config: Any) -> Any:
    """A frozen lively network of this family, "dit" among them, with other values in its
    configuration where they are given.
    """
    if family == "dit":
        return dit(replace(DIT, **config), seed)
    import diffusers

    kind, known = FAMILIES[family]
    made = lively(getattr(diffusers, kind)(**(known | config)), seed)
    if family == "sana":  # tokens that differ more: the linear attention's ReLU is to let something
        made.patch_embed.proj.weight.data.mul_(3)  # of every query and key through
    return made.eval().requires_grad_(False)
