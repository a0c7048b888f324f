"""The hooks by which a module runs with its weights widened and brought to the device: no such copy
outlives its call, not even for a backward pass. What is kept, and where, is set in storage.py,
quantising.py and sharding.py; how weights travel is in bringing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.conv import _ConvNd

from smidgen.core.bringing import Bringing
from smidgen.core.normal_float import unpacked

HALVES = (torch.float16, torch.bfloat16)
CAST_BY_AUTOCAST = (nn.Linear, _ConvNd)  # whatever precision their weights are in
EIGHT_BIT, FOUR_BIT = torch.int8, torch.uint8  # the second of bytes in which numbers are packed
Quantised = Literal["int8", "nf4"]  # as settings call them
QUANTISED: Mapping[torch.dtype, Quantised] = {EIGHT_BIT: "int8", FOUR_BIT: "nf4"}

SCALE = "_smidgen_scale"  # a buffer of a module whose weight is in 8 bit
PACKED = "_smidgen_packed"  # of one whose weight is in 4 bit: its numbers
VALUES = "_smidgen_values"  # and what each byte of these stands for
MEANING = {EIGHT_BIT: SCALE, FOUR_BIT: VALUES}
WIDENING = "_smidgen_widening"  # an attribute of a network whose weights are widened
OUTSIDE = "_smidgen_outside"  # of a module: its weight, where that is not on the device as a whole
PART = "_smidgen_part"  # a buffer of a module of whose weight other processes have the rest


class Origin(NamedTuple):
    """From what a wide weight comes: the base's own, whose numbers are in `stored`, by this way if
    they are outside the device; in 8 or 4 bit with what they mean.
    """

    own: Tensor
    stored: Tensor  # itself, its bytes, or a part of either if other processes have the rest
    meaning: Tensor | None
    dtype: torch.dtype
    bringing: Bringing | None

    @torch.no_grad()
    def wide(self, *, again: bool = False) -> Tensor:
        """The weight as it computes; `again` for the backward pass."""
        found = self.stored if self.bringing is None else self.bringing(self.stored, again=again)
        if self.own.dtype == FOUR_BIT:
            assert self.meaning is not None, "bytes are kept with what they stand for"
            return unpacked(found, self.own.shape, self.meaning).to(self.dtype)
        if self.stored is not self.own:  # parts are equally long, the last one filled up
            found = found[: self.own.numel()].view(self.own.shape)
        return (found if self.meaning is None else found * self.meaning).to(self.dtype)


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
        is_narrow = own.dtype in (*HALVES, *QUANTISED) and own.dtype != self.compute
        bringing = self.bringing if module.__dict__.get(OUTSIDE) is own else None
        if not (is_narrow or bringing):
            return None
        stored: Any = own
        if bringing is not None and PART in module._buffers:
            stored = module._buffers[PART]
        elif own.dtype == FOUR_BIT:
            stored = module._buffers[PACKED]
        meaning = module._buffers[MEANING[own.dtype]] if own.dtype in MEANING else None
        dtype = self.compute if is_narrow else own.dtype
        kind = (stored if bringing is None else bringing).device.type
        by_autocast = isinstance(module, CAST_BY_AUTOCAST) and torch.is_autocast_enabled(kind)
        if by_autocast and own.dtype != torch.float64:
            if meaning is None and bringing is None:
                return None
            dtype = torch.get_autocast_dtype(kind)
        return Origin(own, stored, meaning, dtype, bringing)

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
