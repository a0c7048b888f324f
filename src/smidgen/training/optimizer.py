"""What takes the steps: AdamW, of PyTorch or with moments of one byte a number.

AdamW keeps two numbers of float32 for each one that is trained, the averages m of its gradients and
v of their squares: for `full` twice the network. `AdamW8bit` keeps one byte of each, as 8-bit
optimizers do (Dettmers et al., arXiv 2110.02861), in blocks of 256 with a scale of their own. Two
things are otherwise than there. There are eight levels in every octave, so that the error relative
to a number is the same from the largest of a block to one that is four orders of magnitude smaller
(nine, of v). And numbers go to one of the two levels beside them by chance, such that their mean is
right: v changes by a thousandth a step, far less than half of the way to the next level, and would
never change if it went to the nearest. What is smaller than all levels is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.training.randomness import derived_seed

BLOCK = 256  # numbers that share a scale
AT_ONCE = 2**16  # numbers that are in float32 at a time: they stay in a core's cache
SMALLEST = 4096  # a tensor with fewer numbers keeps its moments in float32
MANTISSA = 3  # bits: eight levels an octave
CUT, ONE = 23 - MANTISSA, 127 << 23  # the bits behind those of a level; 1.0 as its bits
BETAS, EPS = (0.9, 0.999), 1e-8  # PyTorch's own


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, eight_bit: bool, weight_decay: float, seed: int
) -> torch.optim.Optimizer:
    """Of a training, at a rate of 0, which the loop sets in each step; `seed` is that of the
    chances, of which PyTorch's AdamW needs none.
    """
    if eight_bit:
        return AdamW8bit(parameters, weight_decay=weight_decay, seed=seed)
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay, fused=True)


def fresh_moments(parameter: Tensor, *, eight_bit: bool) -> dict[str, Tensor]:
    """What an optimizer keeps for a tensor of N numbers, before its first step, on its device: two
    of its own shape, or two of codes (N,) and two of scales (N / 256,); and the number of steps ().
    """
    size, device = parameter.numel(), parameter.device
    if not eight_bit or size < SMALLEST:
        exact = ("exp_avg", "exp_avg_sq")
        moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in exact}
    else:
        blocks = math.ceil(size / BLOCK)
        moments = {name: torch.zeros(size, dtype=torch.uint8, device=device) for name in CODES}
        moments |= {scale_of(name): torch.zeros(blocks, device=device) for name in CODES}
    return moments | {"step": torch.zeros(())}


def bytes_of_moments(parameters: Iterable[Tensor], *, eight_bit: bool) -> int:
    """Of all that an optimizer keeps for these, but for the numbers of its steps."""
    shapes = (torch.empty_like(parameter, device="meta") for parameter in parameters)
    kept = (fresh_moments(shape, eight_bit=eight_bit) for shape in shapes)
    return sum(m.nbytes for moments in kept for name, m in moments.items() if name != "step")


class AdamW8bit(torch.optim.Optimizer):
    """AdamW of Loshchilov and Hutter as PyTorch computes it, on moments in a byte a number. The
    chances are drawn from the seed and the step, so that a resumed training draws the same.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(parameters, {"lr": 0.0, "weight_decay": weight_decay})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step with the gradients that are there."""
        assert closure is None, "a closure is of no use to AdamW"
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= fresh_moments(parameter, eight_bit=True)
                state["step"] += 1
                state["step"] = state["step"].cpu()  # where reading it waits for nothing
                done = int(state["step"])
                generator = torch.Generator(parameter.device)
                generator.manual_seed(derived_seed(self._seed, "rounding", number, done))
                rates = (group["lr"], group["weight_decay"], done)
                if "exp_avg" in state:
                    _update(parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], rates)
                else:
                    _update_in_parts(parameter, state, generator, rates)


def _update(p: Tensor, grad: Tensor, m: Tensor, v: Tensor, rates: tuple[float, float, int]) -> None:
    """A step on tensors of float32 of one shape, in place."""
    lr, weight_decay, done = rates
    first, second = BETAS
    m.lerp_(grad, 1 - first)
    v.mul_(second).addcmul_(grad, grad, value=1 - second)
    p.mul_(1 - lr * weight_decay)
    size = v.sqrt().div_(math.sqrt(1 - second**done)).add_(EPS)
    p.addcdiv_(m, size, value=-lr / (1 - first**done))


def _update_in_parts(
    parameter: Tensor, state: dict[str, Tensor], generator: torch.Generator, rates: Any
) -> None:
    """A step of a tensor whose moments are in 8 bit, a part of it after the other."""
    assert parameter.grad is not None
    whole, grads = parameter.view(-1), parameter.grad.reshape(-1)
    for begin in range(0, len(whole), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        blocks = slice(begin // BLOCK, (begin + AT_ONCE) // BLOCK)
        kept = {name: (state[name][part], state[scale_of(name)][blocks]) for name in CODES}
        m, v = (CODES[name].unpacked(*pair) for name, pair in kept.items())
        _update(whole[part], grads[part], m, v, rates)
        for (name, (codes, scales)), value in zip(kept.items(), (m, v), strict=True):
            CODES[name].pack(value, codes, scales, generator)


class Code:
    """Numbers as bytes: 0, or the sign and the level of a size relative to the block's largest.

    A level is the exponent of a float32 and the first `MANTISSA` bits of its mantissa, so that it
    is read off the bits of a number; a chance in the bits behind it, added before they are cut off,
    rounds it up as often as it is near to the next level.
    """

    def __init__(self, *, signed: bool) -> None:
        self.signed = signed
        self.most = 127 if signed else 255  # the level of the block's largest, 1.0
        self._below = (ONE >> CUT) - self.most  # of level 0

    def unpacked(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The numbers, in float32."""
        level = codes.int()
        if self.signed:
            level.bitwise_and_(self.most)
        sizes = level.add(self._below).bitwise_left_shift_(CUT).view(torch.float32)
        sizes.mul_(level > 0)
        if self.signed:
            sizes = torch.where(codes > self.most, -sizes, sizes)
        return _by_blocks(sizes).mul_(scales[:, None]).view(-1)[: len(codes)]

    def pack(
        self, values: Tensor, codes: Tensor, scales: Tensor, generator: torch.Generator
    ) -> None:
        """Write values of float32 as `codes` and `scales`."""
        sizes = _by_blocks(values.abs())
        scales.copy_(sizes.amax(-1))
        sizes = sizes / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        bits = sizes.view(-1)[: len(values)].view(torch.int32)
        chance = torch.empty_like(bits).random_(0, 1 << CUT, generator=generator)
        level = (bits + chance).bitwise_right_shift_(CUT).sub_(self._below).clamp_(0, self.most)
        if self.signed:
            level.add_((values < 0).int(), alpha=self.most + 1)
        codes.copy_(level)


CODES = {"first": Code(signed=True), "second": Code(signed=False)}  # m and v


def scale_of(name: str) -> str:
    """The name of what the codes of this name are relative to."""
    return f"{name}_scale"


def _by_blocks(values: Tensor) -> Tensor:
    """As rows of blocks, the last filled up with 0."""
    missing = -len(values) % BLOCK
    filled = nn.functional.pad(values, (0, missing)) if missing else values
    return filled.view(-1, BLOCK)
