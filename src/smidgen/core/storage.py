"""Weights kept in fewer bits than their network computes in, or outside its device: a module's own
weights are widened and brought there while it runs, and no such copy outlives that, not even for a
backward pass. Half precision, or 8 bit with a scale for each output channel
(docs/decisions/0014-eight-bit-without-a-library.md); how weights travel is in bringing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.conv import _ConvNd

from smidgen.core.bringing import Bringing, resting

HALVES = (torch.float16, torch.bfloat16)
CAST_BY_AUTOCAST = (nn.Linear, _ConvNd)  # whatever precision their weights are in
EIGHT_BIT = torch.int8
MOST = 127  # of the numbers of 8 bit

_SCALE = "_smidgen_scale"  # a buffer of a module whose weight is in 8 bit
_WIDENING = "_smidgen_widening"  # an attribute of a network whose weights are widened
_OUTSIDE = "_smidgen_outside"  # of a module: its weight, where that is outside the device


def keep(network: nn.Module, compute: torch.dtype) -> None:
    """From now on `network` computes in `compute`, in however few bits its parameters are kept,
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


@torch.no_grad()
def quantise(network: nn.Module) -> None:
    """`network` with the weights of its linears and convolutions in 8 bit, as round(weight / scale)
    with a float32 scale for each of their output channels, its largest weight / 127; computing in
    what it does now. Everything else stays as it is.
    """
    compute = computes_in(network)
    done: dict[Tensor, tuple[nn.Parameter, Tensor]] = {}  # of what modules share
    for module in network.modules():
        if not isinstance(module, CAST_BY_AUTOCAST):
            continue
        own = module.weight
        if own not in done:
            wide = own.float()
            scale = wide.abs().amax(dim=tuple(range(1, wide.ndim)), keepdim=True) / MOST
            scale.clamp_(min=torch.finfo(torch.float32).tiny)  # of a channel that is all 0
            whole = (wide / scale).round_().to(EIGHT_BIT)
            done[own] = nn.Parameter(whole, requires_grad=False), scale
        module.weight, scale = done[own]
        module.register_buffer(_SCALE, scale, persistent=False)
    if not is_kept(network):
        keep(network, compute)


def offload(network: nn.Module, device: str | torch.device, *, ahead: bool | None = None) -> None:
    """`network` on `device` but for the weights of linears and convolutions in its repeated blocks
    (all that is in a `nn.ModuleList`): they stay where they are, in the memory of the machine, and
    each comes to the device while its module runs, forwards and backwards. The numbers are the
    same, bit for bit, in whatever the weights are kept. `ahead` is as in `Bringing`.
    """
    for module in repeated_layers(network):
        module.weight.data = resting(module.weight.data, torch.device(device))
        module.__dict__[_OUTSIDE] = module.weight
    if not is_kept(network):
        keep(network, computes_in(network))
    network.__dict__[_WIDENING].bringing = Bringing(torch.device(device), ahead=ahead)
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
    """`network` on `device`; weights that are kept outside stay there, and come to this one."""
    without = [module for module in network.modules() if _OUTSIDE in module.__dict__]
    for module in without:
        module._parameters["weight"] = None
    network.to(device)
    for module in without:
        module._parameters["weight"] = module.__dict__[_OUTSIDE]
    bring_to(network, device)


def bring_to(network: nn.Module, device: str | torch.device) -> None:
    """Weights of `network` that are kept outside come to this device from now on."""
    if outside(network):
        before: Bringing = network.__dict__[_WIDENING].bringing
        network.__dict__[_WIDENING].bringing = before.elsewhere(device)


def runs_on(network: nn.Module) -> torch.device:
    """The device on which a network computes."""
    bringing = network.__dict__[_WIDENING].bringing if is_kept(network) else None
    return next(network.parameters()).device if bringing is None else bringing.device


def is_quantised(network: nn.Module) -> bool:
    """Whether weights of this network are in 8 bit."""
    return any(own.dtype == EIGHT_BIT for own in network.parameters())


def stored_bytes(network: nn.Module) -> int:
    """The bytes in which the weights of a network are kept, the scales of those in 8 bit too."""
    scales = {module._buffers[_SCALE] for module in network.modules() if _SCALE in module._buffers}
    tensors = (*network.parameters(), *(scale for scale in scales if scale is not None))
    return _bytes(*tensors)


def outside(network: nn.Module) -> list[int]:
    """The bytes of each weight that is kept outside the device."""
    found = {m.__dict__[_OUTSIDE] for m in network.modules() if _OUTSIDE in m.__dict__}
    return [_bytes(weight) for weight in found]


def is_kept(network: nn.Module) -> bool:
    """Whether `keep` was called for this network, as of one whose weights are in few bits or
    outside the device.
    """
    return _WIDENING in network.__dict__


def computes_in(network: nn.Module) -> torch.dtype:
    """The precision of a network's input and output: that of its weights, or what they are widened
    to.
    """
    widening = network.__dict__.get(_WIDENING)
    return next(network.parameters()).dtype if widening is None else widening.compute


def runs_in(network: nn.Module, own: Tensor) -> torch.dtype:
    """The precision in which one of a network's parameters is while the network runs."""
    narrow = own.dtype in (*HALVES, EIGHT_BIT)
    return computes_in(network) if is_kept(network) and narrow else own.dtype


def runs_at(network: nn.Module, own: Tensor) -> torch.device:
    """The device on which one of a network's parameters is while the network runs."""
    return runs_on(network) if is_kept(network) else own.device


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Weights and computation of `network` in `dtype` from now on."""
    scales = {m: m._buffers[_SCALE] for m in network.modules() if _SCALE in m._buffers}
    network.to(dtype)
    for module, scale in scales.items():
        module._buffers[_SCALE] = scale
    if is_kept(network):
        network.__dict__[_WIDENING].compute = dtype


@contextmanager
def saving(
    network: nn.Module, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]
) -> Iterator[None]:
    """In the `with` autograd keeps what `pack` makes of a tensor, for `unpack` to undo, but for
    weights that are widened or brought in, of which it keeps what they come from.
    """
    widening = network.__dict__.get(_WIDENING)
    with saved_tensors_hooks(pack, unpack):
        if widening is not None:  # whose own hooks hide others while the network runs
            widening.others = pack, unpack
        try:
            yield
        finally:
            if widening is not None:
                widening.others = None


class Origin(NamedTuple):
    """From what a wide weight comes: the base's own, with its scale in 8 bit, by this way if it is
    outside the device.
    """

    own: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    bringing: Bringing | None

    @torch.no_grad()
    def wide(self, *, again: bool = False) -> Tensor:
        """The weight as it computes; `again` for the backward pass."""
        own = self.own if self.bringing is None else self.bringing(self.own, again=again)
        return own.to(self.dtype) if self.scale is None else (own * self.scale).to(self.dtype)


class Widening:
    """The hooks of one network. What autograd saves of a wide weight is the base's own, widened
    again in the backward pass.
    """

    def __init__(self, compute: torch.dtype) -> None:
        self.compute = compute
        self.bringing: Bringing | None = None
        self.others: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None = None
        self._narrow: dict[nn.Module, dict[str, nn.Parameter]] = {}  # of the modules that run now
        self._origins: dict[int, Origin] = {}  # of wide weights, by their storage
        self._watching: list[Any] = []

    def widen(self, module: nn.Module, arguments: Any) -> None:
        kept = self._narrow[module] = {}
        for name, own in module._parameters.items():
            origin = None if own is None else self._origin(module, own)
            if own is None or origin is None:
                continue
            wide: Any = origin.wide()
            kept[name], module._parameters[name] = own, wide
            if not torch.compiler.is_compiling():  # a compiler chooses itself what it keeps
                self._origins[wide.untyped_storage()._cdata] = origin

    def _origin(self, module: nn.Module, own: nn.Parameter) -> Origin | None:
        """None where the module runs with `own` as it is."""
        is_narrow = own.dtype in (*HALVES, EIGHT_BIT) and own.dtype != self.compute
        bringing = self.bringing if module.__dict__.get(_OUTSIDE) is own else None
        if not (is_narrow or bringing):
            return None
        scale = module._buffers.get(_SCALE) if own.dtype == EIGHT_BIT else None
        dtype = self.compute if is_narrow else own.dtype
        kind = (own if bringing is None else bringing).device.type
        by_autocast = isinstance(module, CAST_BY_AUTOCAST) and torch.is_autocast_enabled(kind)
        if by_autocast and own.dtype != torch.float64:
            if scale is None and bringing is None:
                return None
            dtype = torch.get_autocast_dtype(kind)
        return Origin(own, scale, dtype, bringing)

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
        hooks = saved_tensors_hooks(self._pack, self._unpack)
        hooks.__enter__()
        self._watching.append(hooks)

    def leave(self, network: nn.Module, arguments: Any, output: Any) -> None:
        if self._watching:
            self._watching.pop().__exit__()

    def _pack(self, saved: Tensor) -> Tensor | Callable[[], Tensor]:
        origin = self._origins.get(saved.untyped_storage()._cdata) if self._origins else None
        if origin is not None:
            place = saved.size(), saved.stride(), saved.storage_offset()
            return lambda: origin.wide(again=True).as_strided(*place)
        if self.others is None:
            return saved
        pack, unpack = self.others
        kept = pack(saved)
        return lambda: unpack(kept)

    def _unpack(self, packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
