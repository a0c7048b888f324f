"""The smallest base of every host, with random weights throughout: what the laws run on.

A new host is covered by one entry of TINY_HOSTS, a new method by its line in METHODS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    Lumina2Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from smidgen.core.delta import Delta
from smidgen.hosts.host import Host, find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT, DiTConfig
from tests.laws.tiny_host import IN_FLOAT32, TinyHost
from tests.laws.tiny_transformers import TINY_TRANSFORMERS

__all__ = ["TINY_HOSTS", "TinyBase", "TinyHost", "tiny_base", "tiny_delta"]

KNOWN_CLASSES = ("ant", "bee", "cat")
NEW_CLASSES = ("bee", "dog", "elk", "fox")  # more than before, one of them known
TEXT_SIZE = 6  # channels of a text's states


def _make_dit(num_classes: int) -> DiT:
    config = DiTConfig(
        image_size=4, in_channels=2, width=16, depth=2, num_heads=2, num_classes=num_classes
    )
    return DiT(config)


def make_unet(**config: Any) -> nn.Module:
    """Stable Diffusion's shape at its smallest: channels in groups of 32 as in the adapter paper's
    convolutions, a stage with and one without attention, a middle.
    """
    sizes = {
        "sample_size": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_SIZE,
    }
    return UNet2DConditionModel(**(sizes | config)).eval()


def _make_auraflow(num_classes: int) -> nn.Module:
    return AuraFlowTransformer2DModel(
        sample_size=4,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_SIZE,
        caption_projection_dim=16,
        pos_embed_max_size=4,  # all of them used by 2 x 2 patches
    ).eval()


def _make_lumina2(num_classes: int) -> nn.Module:
    return Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(8, 4, 4),
        cap_feat_dim=TEXT_SIZE,
    ).eval()


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
    )


def _dit_inputs(labels: Tensor) -> tuple[Tensor, ...]:
    x = _random(len(labels), 2, 4, 4, seed=7)
    return x, torch.linspace(5, 995, len(labels)).long(), labels


def _text_inputs(labels: Tensor) -> tuple[Tensor, ...]:
    """Latents, timesteps of 1000 and text of 3 tokens."""
    x, text = _random(len(labels), 4, 4, 4, seed=7), _random(len(labels), 3, TEXT_SIZE, seed=8)
    return x, torch.linspace(5, 995, len(labels)).long(), text


def _flow_inputs(labels: Tensor) -> tuple[Tensor, ...]:
    x, _, text = _text_inputs(labels)
    return x, torch.linspace(0.1, 0.9, len(labels), dtype=torch.float64), text


def _call_unet(model: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return model(x, t, text, return_dict=False)[0]


def _call_auraflow(model: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    return model(x, text, t, return_dict=False)[0]


def _call_lumina2(model: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    mask = torch.ones(text.shape[:2], dtype=torch.int64)
    return model(x, t, text, mask, return_dict=False)[0]


def _enable_checkpointing(model: nn.Module) -> None:
    cast(Any, model).enable_gradient_checkpointing()


TINY_HOSTS: dict[str, TinyHost] = {
    "dit": TinyHost(
        make=_make_dit,
        inputs=_dit_inputs,
        checkpoint=lambda model: setattr(model, "gradient_checkpointing", True),
        # a bias of the keys adds the same to all of a query's logits: softmax does not see it
        without_gradient={f"blocks.{n}.attn.qkv.bias": (16, 32) for n in range(2)},
    ),
    "unet": TinyHost(
        make=lambda num_classes: make_unet(),
        inputs=_text_inputs,
        call=_call_unet,
        checkpoint=_enable_checkpointing,
    ),
    # classes without a table of their own: their hosts are derived
    "auraflow": TinyHost(
        make=_make_auraflow,
        inputs=_flow_inputs,
        call=_call_auraflow,
        checkpoint=_enable_checkpointing,
        # of all keys in the block, as above
        without_gradient={"single_transformer_blocks.0.attn.norm_k.bias": (0, 8)},
    ),
    "lumina2": TinyHost(
        make=_make_lumina2,
        inputs=_flow_inputs,
        call=_call_lumina2,
        checkpoint=_enable_checkpointing,
        rounding=IN_FLOAT32,  # rotary embeddings
    ),
} | TINY_TRANSFORMERS


@dataclass(frozen=True, kw_only=True)
class TinyBase:
    """What a method reads of a base."""

    denoiser: nn.Module
    host: Host
    class_names: tuple[str, ...]
    name: str
    fingerprint: str


def randomise(module: nn.Module, std: float, seed: int) -> None:
    """Add N(0, std) to every parameter, so that no gate and no offset is at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))


def tiny_base(host: str, class_names: tuple[str, ...] = KNOWN_CLASSES) -> TinyBase:
    """A frozen float64 base with random weights; without labels it has no class names."""
    torch.manual_seed(0)
    model = TINY_HOSTS[host].make(len(class_names)).double().requires_grad_(False)
    randomise(model, 0.1, seed=1)
    found = find_host(model)
    return TinyBase(
        denoiser=model,
        host=found,
        class_names=class_names if found.has_labels else (),
        name=f"tiny-{host}",
        fingerprint="sketch1:none",
    )


def tiny_delta(
    base: TinyBase, method: str, classes: Sequence[str] = NEW_CLASSES, *, std: float = 0.2, **config
) -> Delta:
    """The float64 delta of `method` with every tensor moved off its start by N(0, std).

    A base without labels is given no classes.
    """
    generator = torch.Generator().manual_seed(2)
    classes = classes if base.host.has_labels else ()
    delta = build_delta(method, base, configure(method, config), classes, generator).double()
    randomise(delta, std, seed=3)
    return delta


def all_labels(classes: Sequence[str]) -> Tensor:
    """Every class once, then the null label."""
    return torch.arange(len(classes) + 1)


def trained_tensors(delta: Delta) -> dict[str, nn.Parameter]:
    """The trained tensors by the names that they have in a delta file."""
    return {
        f"{name}.{key}": parameter
        for name, edit in delta.edits.items()
        for key, parameter in edit.tensors().items()
    }
