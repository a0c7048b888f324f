"""A training step of a UNet for bench/speed.py: all of it, as DreamBooth trains it, by diffusers
alone, beside deltas by hooks; and the bytes that each keeps and holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.rows import Rows, step, trained
from bench.training_rows import saved_bytes
from smidgen.core.delta import Delta
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.models.pretrained import load_base

IMAGES = 8
PROMPT = "an outline picture of an owl in navy on white"
LORA = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Training:
    """A UNet, what acts in it, and which parameters are trained."""

    network: nn.Module
    parameters: list[nn.Parameter]
    delta: Delta | None = None

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.network(x, t, encoder_hidden_states=text).sample


def steps_of(name: str) -> Rows:
    """A step of each."""
    base = load_base(name, base_precision="fp32")
    batch = _batch(base)
    return {words: step(each, each.parameters, batch) for words, each in _trainings(base).items()}


def kept(name: str) -> dict[str, float]:
    """Megabytes that a forward pass keeps for the backward pass."""
    return {words: round(saved / 1e6, 1) for words, (saved, _) in _bytes(name).items()}


def held(name: str) -> dict[str, float]:
    """These together with gradients and AdamW's two averages of all that is trained."""
    return {words: round(sum(both) / 1e6, 1) for words, both in _bytes(name).items()}


def _bytes(name: str) -> dict[str, tuple[int, int]]:
    base = load_base(name, base_precision="fp32")
    found = {}
    for words, each in _trainings(base).items():
        known = [each.network] if each.delta is None else [each.network, each.delta]
        trained_bytes = sum(p.numel() * p.element_size() for p in each.parameters)
        found[words] = saved_bytes(each, _batch(base), *known), 3 * trained_bytes
    return found


def _trainings(base: Base) -> Mapping[str, Training]:
    whole = deepcopy(base.denoiser).requires_grad_(True)
    found = {"full, diffusers": Training(whole, trained(whole))}
    methods: dict[str, dict[str, Any]] = {
        "adapter": {},
        "difffit": {},
        "bitfit": {},
        "lora": {"targets": ("qkv", "o")},
        "full": {},
    }
    for method, options in methods.items():
        random = torch.Generator().manual_seed(0)
        given = configure(method, options)
        delta = build_delta(method, base, given, base.class_names, random)
        network = deepcopy(base.denoiser).requires_grad_(False)
        delta.attach(network)
        found[method] = Training(network, list(delta.parameters()), delta)
    if (peft := _peft_lora(base)) is not None:
        found["LoRA, PEFT"] = Training(peft, trained(peft))
    return found


def _peft_lora(base: Base) -> nn.Module | None:
    """PEFT's LoRA of rank 8 on the same linears, None where PEFT is not installed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        return None
    wanted = LoraConfig(r=8, target_modules=list(LORA))
    network = deepcopy(base.denoiser).requires_grad_(False)
    return inject_adapter_in_model(wanted, network)


def _batch(base: Base) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    assert base.conditioner is not None, "the UNet reads prompts"
    text = base.conditioner.encode([PROMPT] * IMAGES)["text"]
    x = torch.randn(IMAGES, *base.latent_shape, generator=random)
    return x, torch.linspace(0, 999, IMAGES), text
