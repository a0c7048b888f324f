"""The smallest model of every transformer of diffusers that has a host, for the laws and its tests.

The sizes are as small as the classes allow and differ where they may, so that no two are mixed up.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor, nn

from tests.laws.tiny_host import IN_FLOAT32, TinyHost

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def make_pixart(**config) -> nn.Module:
    """Alpha at 1024 pixels: with the image's size and aspect ratio as conditions."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "cross_attention_dim": 24}
    config = {"sample_size": 4, "use_additional_conditions": True} | config
    return PixArtTransformer2DModel(
        **sizes, in_channels=2, out_channels=4, num_layers=2, caption_channels=10, **config
    )


def make_sd3(**config) -> nn.Module:
    return SD3Transformer2DModel(
        **HEADS,
        sample_size=4,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
        pos_embed_max_size=4,
        **config,
    )


def make_flux(**config) -> nn.Module:
    """The distilled variant, which has the guidance scale as an input."""
    return FluxTransformer2DModel(
        **HEADS,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=6,
        pooled_projection_dim=5,
        axes_dims_rope=(2, 2, 4),
        **({"guidance_embeds": True} | config),
    )


def make_sana(**config) -> nn.Module:
    """More channels than the others, and tokens that differ more: the linear attention's ReLU is to
    let something of every query and key through.
    """
    model = SanaTransformer2DModel(
        **HEADS,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=6,
        mlp_ratio=2,
        sample_size=4,
        **config,
    )
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(2)
    return model


def make_flux2(**config) -> nn.Module:
    return Flux2Transformer2DModel(
        **HEADS,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=6,
        timestep_guidance_channels=8,
        mlp_ratio=2.0,
        axes_dims_rope=(2, 2, 2, 2),
        **config,
    )


def make_qwen_image(**config) -> nn.Module:
    return QwenImageTransformer2DModel(
        **HEADS,
        in_channels=8,
        out_channels=2,
        num_layers=2,
        joint_attention_dim=6,
        axes_dims_rope=(2, 2, 4),
        **config,
    )


MAKERS = {
    "pixart": make_pixart,
    "sd3": make_sd3,
    "flux": make_flux,
    "sana": make_sana,
    "flux2": make_flux2,
    "qwen_image": make_qwen_image,
}


def random_model(family: str, seed: int = 0, **config) -> nn.Module:
    """A model of this family whose every tensor is random and whose every layer matters."""
    model = MAKERS[family](**config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(parameter.mean() + noise / fan_in**0.5)
    return model


def conditions(family: str, labels: Tensor) -> dict[str, Tensor]:
    """What `predict` of this family needs besides latents and time: random, one text per label."""
    generator = torch.Generator().manual_seed(5)
    number = int(labels.max()) + 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(number, *shape, generator=generator, dtype=torch.float64)[labels]

    condition = {"text": draw(3, 10 if family == "pixart" else 6)}
    if family in ("pixart", "sana", "qwen_image"):  # the last word of every second text is padding
        condition["mask"] = torch.ones(len(labels), 3, dtype=torch.long)
        condition["mask"][::2, 2] = 0
    if family in ("sd3", "flux"):
        condition["pooled"] = draw(5)
    if family in ("flux", "flux2"):
        condition["guidance"] = torch.full((len(labels),), 2.5, dtype=torch.float64)
    return condition


def latents(family: str, number: int) -> Tensor:
    """(number, C, 4, 4): what the laws' models of this family denoise."""
    generator = torch.Generator().manual_seed(7)
    channels = 8 if family in ("flux2", "sana") else 2
    return torch.randn(number, channels, 4, 4, generator=generator, dtype=torch.float64)


def times(family: str, number: int) -> Tensor:
    """Steps for PixArt, sigmas for the others."""
    if family == "pixart":
        return torch.linspace(5, 995, number).long()
    return torch.linspace(0.1, 0.95, number, dtype=torch.float64)


def _tiny(family: str, dead: Mapping[str, tuple[int, int]]) -> TinyHost:
    names = tuple(conditions(family, torch.arange(1)))
    predict = import_module(f"smidgen.hosts.{family}").FAMILY.predict

    def inputs(labels: Tensor) -> tuple[Tensor, ...]:
        condition = conditions(family, torch.arange(len(labels)))
        number = len(labels)
        return latents(family, number), times(family, number), *condition.values()

    def call(model: nn.Module, x_t: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        return predict(model, x_t, t, dict(zip(names, condition, strict=True)))

    def checkpoint(model: Any) -> None:
        model.enable_gradient_checkpointing()

    return TinyHost(
        make=lambda num_classes: MAKERS[family]().eval(),
        inputs=inputs,
        call=call,
        checkpoint=checkpoint,
        without_gradient=dead,
        rounding=IN_FLOAT32 if family in FLOAT32 else TinyHost.rounding,
    )


FLOAT32 = ("flux", "flux2", "qwen_image", "sana")  # rotary embeddings; Sana's linear attention
LAST = "transformer_blocks.1"  # of those with two blocks
UNREAD = {  # queries of text whose attention nothing reads: SD3's and Qwen-Image's last block
    f"{LAST}.attn.add_q_proj.weight": (0, 256),
    f"{LAST}.attn.add_q_proj.bias": (0, 16),
    f"{LAST}.attn.add_q_proj.lora.down.weight": (0, 128),
    f"{LAST}.attn.add_q_proj.lora.up.weight": (0, 128),
}
WITHOUT_GRADIENT: Mapping[str, Mapping[str, tuple[int, int]]] = {
    # a bias of the keys adds the same to all of a query's logits: softmax does not see it
    "pixart": {
        f"transformer_blocks.{block}.{attention}.to_k.bias": (0, 24)
        for block in range(2)
        for attention in ("attn1", "attn2")
    },
    "sana": {f"transformer_blocks.{block}.attn2.to_k.bias": (0, 16) for block in range(2)},
    "sd3": UNREAD,
    # all that the last block makes of the text behind the keys and values for the image
    "qwen_image": UNREAD
    | {
        f"{LAST}.attn.norm_added_q.weight": (0, 8),
        f"{LAST}.attn.to_add_out.weight": (0, 256),
        f"{LAST}.attn.to_add_out.bias": (0, 16),
        f"{LAST}.txt_mod.1.weight": (2 * 256, 6 * 256),  # but shift and scale of the first norm
        f"{LAST}.txt_mod.1.bias": (2 * 16, 6 * 16),
        f"{LAST}.txt_norm2.weight": (0, 16),  # created, as is the next
        f"{LAST}.txt_norm2.bias": (0, 16),
        f"{LAST}.txt_mlp.net.0.proj.weight": (0, 1024),
        f"{LAST}.txt_mlp.net.0.proj.bias": (0, 64),
        f"{LAST}.txt_mlp.net.2.weight": (0, 1024),
        f"{LAST}.txt_mlp.net.2.bias": (0, 16),
    },
}
TINY_TRANSFORMERS: dict[str, TinyHost] = {
    family: _tiny(family, WITHOUT_GRADIENT.get(family, {})) for family in MAKERS
}
