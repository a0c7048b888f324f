"""The bytes of all tensors that live at once, counted as they come and go, and those that a CPU's
kernels take for themselves while they run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten: Any = torch.ops.aten


class Peak(TorchDispatchMode):
    """Counts what comes to live in the `with`: `now`, and `highest` so far. `own_copies` says what
    an operator takes for itself, None: nothing. Weights of networks that are there before, in
    whatever form, are no part of it.
    """

    def __init__(
        self,
        *counted_already: nn.Module,
        own_copies: Callable[[Any, Any, Any], int] | None = None,
    ) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._own_copies = own_copies
        self._known: set[int] = set()
        for module in counted_already:
            for tensor in (*module.parameters(), *module.buffers()):
                self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._own_copies is not None:
            self.highest = max(self.highest, self.now + self._own_copies(func, args, result))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.highest = max(self.highest, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes()).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def copies_of_a_cpu(func: Any, args: Any, result: Any) -> int:
    """The bytes at the peak within a convolution of oneDNN, its output included; 0 for what takes
    no more than its output.

    It works on copies in a layout of its own. Forwards there are that of the input x and that of
    the output y, then that of y, from half precision in float32, and y itself. Backwards there are
    those of dy and dx, then that of dx and dx itself; for the weight, beside dx, those of x and dy.
    """
    if func is aten.convolution.default:
        x, y = args[0], result
        wide = y.numel() * max(y.element_size(), 4)
        return wide + max(x.nbytes, y.nbytes)
    if func is aten.convolution_backward.default:
        dy, x, mask = args[0], args[1], args[-1]
        dx = x.nbytes if mask[0] else 0
        if mask[1]:
            return dx + x.nbytes + dy.nbytes
        return dx + max(dx, dy.nbytes)
    return 0
