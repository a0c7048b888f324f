"""torch.compile, and whether what it made has the gradients of what it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.places import default_cache_dir

KEPT_AT = "TORCHINDUCTOR_CACHE_DIR"  # PyTorch's own name of the folder
MOST = 0.1  # of the length of the gradient: bfloat16 rounds by less, and what is wrong is far off


def check_compiler() -> None:
    """Raises: UsageError if torch.compile has no C++ compiler for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise UsageError(
            "compile needs a C++ compiler on a CPU and none was found: install g++, or train "
            "without compile"
        ) from error


@contextmanager
def compiling() -> Iterator[None]:
    """The compiler works in the first forward and in the first backward pass, and fails there. What
    it makes is kept among what smidgen caches, unless the environment says where, and serves all
    deltas of one method and shape, in any process.

    Raises: SmidgenError with its reason.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    before = os.environ.get(KEPT_AT)
    os.environ[KEPT_AT] = before or str(default_cache_dir() / "compiled")
    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise SmidgenError(f"torch.compile failed ({reason}): train without compile") from error
    finally:
        if before is None:
            del os.environ[KEPT_AT]
        else:
            os.environ[KEPT_AT] = before


def check_gradients(
    plain: Callable[[], Tensor], compiled: Callable[[], Tensor], parameters: Sequence[nn.Parameter]
) -> None:
    """That both, called once each, return scalars with the same gradients. With PyTorch 2.13 on a
    CPU what lies below an upsampling of a UNet gets none, without a word, and is not trained.

    Raises: SmidgenError if a gradient is lost, or they differ by more than rounding.
    """
    if not parameters:  # all that is trained is elsewhere, such as in a text encoder
        return
    expected, found = (
        torch.autograd.grad(call(), parameters, allow_unused=True) for call in (plain, compiled)
    )
    lost, missed, length = 0, 0.0, 0.0
    for one, other in zip(expected, found, strict=True):
        if one is None:
            continue
        given = torch.zeros_like(one) if other is None else other
        lost += bool(one.any()) and not bool(given.any())
        missed += float((one - given).cpu().double().square().sum())
        length += float(one.cpu().double().square().sum())
    if lost or missed > MOST**2 * length:
        what = f"{lost} of {len(expected)} tensors get none" if lost else "they are others"
        raise SmidgenError(
            f"torch.compile of PyTorch {torch.__version__} computes wrong gradients of this "
            f"network ({what}): train without compile"
        )
