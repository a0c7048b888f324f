"""Weights kept in fewer bits than their network computes in: a module's own weights are widened
while it runs, and no wide copy outlives that, not even for a backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

HALVES = (torch.float16, torch.bfloat16)
CAST_BY_AUTOCAST = (nn.Linear, _ConvNd)  # whatever precision their weights are in

_WIDENING = "_smidgen_widening"  # an attribute of a network whose weights are widened


def keep(network: nn.Module, compute: torch.dtype) -> None:
    """From now on `network` computes in `compute`, whichever half precision its parameters are in,
    with the numbers that they would give as a copy in that precision.
    """
    widening = Widening(compute)
    network.__dict__[_WIDENING] = widening
    for module in network.modules():
        if module._parameters:
            module.register_forward_pre_hook(widening.widen, prepend=True)
            module.register_forward_hook(widening.narrow, always_call=True)
    network.register_forward_pre_hook(widening.watch, prepend=True)
    network.register_forward_hook(widening.leave, always_call=True)


def narrow(network: nn.Module, stored: torch.dtype) -> None:
    """`network` with its parameters in `stored`, computing in what they are in now."""
    compute = computes_in(network)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(stored)
    keep(network, compute)


def is_kept(network: nn.Module) -> bool:
    """Whether `keep` was called for this network."""
    return _WIDENING in network.__dict__


def computes_in(network: nn.Module) -> torch.dtype:
    """The precision of a network's input and output: that of its weights, or what they are widened
    to.
    """
    widening = network.__dict__.get(_WIDENING)
    return next(network.parameters()).dtype if widening is None else widening.compute


def runs_in(network: nn.Module, own: Tensor) -> torch.dtype:
    """The precision in which one of a network's parameters is while the network runs."""
    return computes_in(network) if is_kept(network) and own.dtype in HALVES else own.dtype


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Weights and computation of `network` in `dtype` from now on."""
    network.to(dtype)
    if is_kept(network):
        network.__dict__[_WIDENING].compute = dtype


class Widening:
    """The hooks of one network. What autograd saves of a wide weight is the base's own, widened
    again in the backward pass.
    """

    def __init__(self, compute: torch.dtype) -> None:
        self.compute = compute
        self._narrow: dict[nn.Module, dict[str, nn.Parameter]] = {}  # of the modules that run now
        self._origins: dict[int, Tensor] = {}  # of their wide weights, by storage
        self._watching: list[Any] = []

    def widen(self, module: nn.Module, arguments: Any) -> None:
        kept = self._narrow[module] = {}
        for name, own in module._parameters.items():
            if own is None or own.dtype not in HALVES or own.dtype == self.compute:
                continue
            by_autocast = isinstance(module, CAST_BY_AUTOCAST)
            if by_autocast and torch.is_autocast_enabled(own.device.type):
                continue
            with torch.no_grad():
                wide: Any = own.to(self.compute)
            kept[name], module._parameters[name] = own, wide
            if not torch.compiler.is_compiling():  # a compiler chooses itself what it keeps
                self._origins[wide.untyped_storage()._cdata] = own

    def narrow(self, module: nn.Module, arguments: Any, output: Any) -> None:
        for name, own in self._narrow.pop(module, {}).items():
            wide = module._parameters[name]
            assert wide is not None, "a module keeps its weights while it runs"
            if not torch.compiler.is_compiling():
                del self._origins[wide.untyped_storage()._cdata]
            module._parameters[name] = own

    def watch(self, network: nn.Module, arguments: Any) -> None:
        if torch.compiler.is_compiling():
            return
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._watching.append(hooks)

    def leave(self, network: nn.Module, arguments: Any, output: Any) -> None:
        if self._watching:
            self._watching.pop().__exit__()

    def _pack(self, saved: Tensor) -> Any:
        if not self._origins:
            return saved
        own = self._origins.get(saved.untyped_storage()._cdata)
        if own is None:
            return saved
        return own, (saved.size(), saved.stride(), saved.storage_offset())

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        own, place = packed
        with torch.no_grad():
            return own.to(self.compute).as_strided(*place)
