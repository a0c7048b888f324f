"""Random weights, so that no zero gate, zero offset or gain of one hides a mistake."""

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def lively(module: M, seed: int = 0) -> M:
    """`module` with random trained parameters, each layer about as loud as its input; around 1
    where they were around 1, as gains are. On the meta device nothing is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and not parameter.is_meta:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(parameter.mean().round() + noise / fan_in**0.5)
    return module


def moved(module: M, std: float, seed: int = 0) -> M:
    """`module` with N(0, std) added to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(std * noise.to(parameter))
    return module


def numbers(network):
    """All tensors of a network that have numbers."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    return {name: tensor for name, tensor in tensors if not tensor.is_meta}
