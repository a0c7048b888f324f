"""Weights kept in fewer bits than their network computes in, or outside its device: a module's own
weights are widened and brought there while it runs, and no such copy outlives that, not even for a
backward pass. Half precision is made here, 8 and 4 bit in quantising.py; the hooks are in
widening.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from smidgen.core.bringing import Bringing, resting
from smidgen.core.normal_float import num_bytes
from smidgen.core.widening import (
    CAST_BY_AUTOCAST,
    FOUR_BIT,
    HALVES,
    OUTSIDE,
    PACKED,
    QUANTISED,
    SCALE,
    VALUES,
    WIDENING,
    Quantised,
    Widening,
)


def keep(network: nn.Module, compute: torch.dtype) -> None:
    """From now on `network` computes in `compute`, in however few bits its parameters are kept,
    with the numbers that they would give as a copy in that precision.
    """
    widening = Widening(compute)
    network.__dict__[WIDENING] = widening
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


def offload(network: nn.Module, device: str | torch.device, *, ahead: bool | None = None) -> None:
    """`network` on `device` but for the weights of linears and convolutions in its repeated blocks
    (all that is in a `nn.ModuleList`): they stay where they are, in the memory of the machine, and
    each comes to the device while its module runs, forwards and backwards. The numbers are the
    same, bit for bit, in whatever the weights are kept. `ahead` is as in `Bringing`.
    """
    for module in repeated_layers(network):
        stored = module._buffers.get(PACKED, module.weight)
        stored.data = resting(stored.data, torch.device(device))
        module.__dict__[OUTSIDE] = module.weight
    if not is_kept(network):
        keep(network, computes_in(network))
    network.__dict__[WIDENING].bringing = Bringing(torch.device(device), ahead=ahead)
    move(network, device)


def repeated_layers(network: nn.Module) -> Iterator[Any]:
    """The linears and convolutions in the repeated blocks of a network, all that is large there."""
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    found = dict.fromkeys(module for one in lists for module in one.modules())
    return (
        module
        for module in found
        if isinstance(module, CAST_BY_AUTOCAST) and module._parameters.get("weight") is not None
    )


def move(network: nn.Module, device: str | torch.device) -> None:
    """`network` on `device`; weights that are outside stay there, and come to this one."""
    left: list[tuple[dict[str, Any], str, Any]] = []
    for module in network.modules():
        packed, is_outside = module._buffers.get(PACKED), OUTSIDE in module.__dict__
        if packed is not None and is_outside:
            left.append((module._buffers, PACKED, packed))
        if packed is not None or is_outside:  # of the first there is a shape to move, no numbers
            left.append((module._parameters, "weight", module.weight))
    for tensors, name, _ in left:
        tensors[name] = None
    network.to(device)
    for tensors, name, tensor in left:
        tensors[name] = tensor
    bring_to(network, device)


def bring_to(network: nn.Module, device: str | torch.device) -> None:
    """Weights of `network` that are kept outside come to this device from now on."""
    if outside(network):
        before: Bringing = network.__dict__[WIDENING].bringing
        network.__dict__[WIDENING].bringing = before.elsewhere(device)


def runs_on(network: nn.Module) -> torch.device:
    """The device on which a network computes."""
    bringing = network.__dict__[WIDENING].bringing if is_kept(network) else None
    if bringing is not None:
        return bringing.device
    tensors = chain(network.parameters(), network.buffers())
    first = next(tensors)
    if not first.is_meta:
        return first.device
    return next((tensor for tensor in tensors if not tensor.is_meta), first).device


def quantised_in(network: nn.Module) -> Quantised | None:
    """In what most weights of this network are, by the name of that precision, if they are
    quantised.
    """
    return next((QUANTISED[p.dtype] for p in network.parameters() if p.dtype in QUANTISED), None)


def stored_bytes(network: nn.Module) -> int:
    """The bytes in which the weights of a network are kept, with what those in 8 or 4 bit mean."""
    found = (module._buffers.get(name) for module in network.modules() for name in (SCALE, VALUES))
    beside = {tensor for tensor in found if tensor is not None}
    return sum(map(kept_bytes, network.parameters())) + bytes_of(beside)


def kept_bytes(weight: Tensor) -> int:
    """The bytes of a weight in what it is kept in, wherever they are."""
    return num_bytes(weight.numel()) if weight.dtype == FOUR_BIT else bytes_of([weight])


def outside(network: nn.Module) -> list[int]:
    """The bytes of each weight that is not on the device as a whole."""
    found = {m.__dict__[OUTSIDE] for m in network.modules() if OUTSIDE in m.__dict__}
    return [kept_bytes(weight) for weight in found]


def is_kept(network: nn.Module) -> bool:
    """Whether `keep` was called for this network, as of one whose weights are in few bits or
    outside the device.
    """
    return WIDENING in network.__dict__


def computes_in(network: nn.Module) -> torch.dtype:
    """The precision of a network's input and output: that of its weights, or what they are widened
    to.
    """
    widening = network.__dict__.get(WIDENING)
    return next(network.parameters()).dtype if widening is None else widening.compute


def runs_in(network: nn.Module, own: Tensor) -> torch.dtype:
    """The precision in which one of a network's parameters is while the network runs."""
    narrow = own.dtype in (*HALVES, *QUANTISED)
    return computes_in(network) if is_kept(network) and narrow else own.dtype


def runs_at(network: nn.Module, own: Tensor) -> torch.device:
    """The device on which one of a network's parameters is while the network runs."""
    return runs_on(network) if is_kept(network) else own.device


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Weights and computation of `network` in `dtype` from now on."""
    scales = {m: m._buffers[SCALE] for m in network.modules() if SCALE in m._buffers}
    network.to(dtype)
    for module, scale in scales.items():
        module._buffers[SCALE] = scale
    if is_kept(network):
        network.__dict__[WIDENING].compute = dtype


@contextmanager
def saving(
    network: nn.Module, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
) -> Iterator[None]:
    """In the `with` autograd keeps what `pack` makes of a tensor, for `unpack` to undo, but for
    weights that are widened or brought in, of which it keeps what they come from.
    """
    widening = network.__dict__.get(WIDENING)
    with saved_tensors_hooks(pack, unpack):
        if widening is not None:  # whose own hooks hide others while the network runs
            widening.others = pack, unpack
        try:
            yield
        finally:
            if widening is not None:
                widening.others = None


def bytes_of(tensors: Iterable[Any]) -> int:
    """The bytes of all numbers of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
