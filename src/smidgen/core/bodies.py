"""What a bypass computes: the bottleneck adapter, LoRA, the adapter of residual blocks, one layer.

B images, C channels that are read, D that are written, W the width in the middle. Weights may be
kept in another precision or on another device than the activations.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from msgspec import Meta, Struct, structs
from torch import Tensor, nn
from torch.nn import functional

from smidgen.errors import SmidgenError
from smidgen.files.reading import fit

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "sigmoid": functional.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "identity": lambda h: h,
}
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


Width = Annotated[int, Meta(ge=1, le=2**31)]
Axes = Annotated[tuple[Annotated[int, Meta(ge=0, le=1024)], ...], Meta(min_length=1, max_length=3)]


class ConvSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of a convolution's geometry in a file."""

    kernel: Axes
    stride: Axes
    padding: Axes | Literal["same", "valid"]
    dilation: Axes
    groups: Width = 1


class BottleneckSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of `Bottleneck.spec` in a file."""

    size_in: Width
    width: Width
    size_out: Width
    activation: str
    bias: bool
    conv: ConvSpec | None = None


class ConvBottleneckSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of `ConvBottleneck.spec` in a file."""

    size_in: Width
    width: Width
    size_out: Width
    groups: Width
    activation: str


class LinearSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of `Linear.spec` in a file."""

    size_in: Width
    size_out: Width


@dataclass(frozen=True, kw_only=True)
class Conv:
    """The geometry of a convolution, one number for each spatial axis, or PyTorch's word for the
    padding.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        padding = self.kernel if isinstance(self.padding, str) else self.padding
        lengths = {len(axes) for axes in (self.kernel, self.stride, padding, self.dilation)}
        if len(lengths) > 1 or not lengths <= CONVOLUTIONS.keys():
            raise ValueError(f"{self}: expected one number for each of 1 to 3 axes")
        if min(*self.kernel, *self.stride, *self.dilation, self.groups) < 1:
            raise ValueError(f"{self}: expected at least 1, but for padding")

    @classmethod
    def of(cls, module: Any) -> "Conv":
        """The geometry of a convolution of PyTorch's, without its groups."""
        kernel, stride, dilation = map(tuple, (module.kernel_size, module.stride, module.dilation))
        return cls(kernel=kernel, stride=stride, padding=module.padding, dilation=dilation)

    def arguments(self) -> dict[str, Any]:
        """The keywords of PyTorch's functional convolutions that this is, without groups."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


class Layer(nn.Module):
    """A weight and a bias (None without), zero until they are initialised or filled in."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None

    def like(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both in the precision of `h` and on its device."""
        return self.weight.to(h), None if self.bias is None else self.bias.to(h)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """PyTorch's default start of linears and convolutions, kaiming uniform with a = sqrt(5):
        U(-b, b), b = 1 / sqrt(fan in), for weight and bias. Draws on the CPU, and nothing at all
        for a layer on the meta device.
        """
        bound = 1 / math.sqrt(self.weight[0].numel())
        for tensor in (self.weight, self.bias):
            if tensor is not None and not tensor.is_meta:
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float32)
                tensor.copy_(bound * (2 * drawn - 1))


class Body(nn.Module, ABC):
    """What a bypass computes."""

    form: ClassVar[str]
    schema: ClassVar[type[Struct]]
    size_in: int
    size_out: int

    @property
    @abstractmethod
    def layers(self) -> dict[str, Layer]:
        """What is drawn at the start, by name; the last gives what is added."""

    @abstractmethod
    def forward(self, h: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """The body of `h`, whose channels are at `axis`, as those of the result are."""

    def spec(self) -> dict[str, Any]:
        """The arguments that make this body and its form, as JSON."""
        return {"form": self.form} | {n: getattr(self, n) for n in self.schema.__struct_fields__}

    def initialise(self, generator: torch.Generator, zero: bool = True) -> None:
        """The start: the last layer zero, so that the body returns zero, the others as PyTorch's
        layers start; or, if not `zero`, the last one too.
        """
        *others, last = self.layers.values()
        for layer in others if zero else self.layers.values():
            layer.draw(generator)
        if zero and not last.weight.is_meta:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)


class Narrowing(Body):
    """`up` of the activation of `down`, W channels in between."""

    width: int
    activation: str
    down: Layer
    up: Layer

    @property
    def layers(self) -> dict[str, Layer]:
        return {"down": self.down, "up": self.up}


@final
class Bottleneck(Narrowing):
    """Linear - activation - Linear over the channels (arXiv 2303.18181, 2106.09685).

    With `conv`, the first is a convolution of that geometry and the second one of kernel 1 with the
    same groups: LoRA beside a convolution, channels at axis 1. `width` must then be a multiple of
    the groups.
    """

    form = "bottleneck"
    schema = BottleneckSpec

    def __init__(
        self,
        size_in: int,
        width: int,
        size_out: int,
        *,
        activation: str,
        bias: bool,
        conv: Conv | None = None,
    ) -> None:
        super().__init__()
        _check_activation(activation)
        self.size_in, self.width, self.size_out = size_in, width, size_out
        self.activation, self.bias, self.conv = activation, bias, conv
        down, up = (width, size_in), (size_out, width)
        if conv is not None:
            if conv.groups < 1 or width % conv.groups:
                raise ValueError(f"width {width} is no multiple of the {conv.groups} groups")
            down = (width, size_in // conv.groups, *conv.kernel)
            up = (size_out, width // conv.groups, *(1 for _ in conv.kernel))
        self.down = Layer(down, bias=bias)
        self.up = Layer(up, bias=bias)

    def forward(self, h: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        act = ACTIVATIONS[self.activation]
        if self.conv is not None:
            convolve, groups = CONVOLUTIONS[len(self.conv.kernel)], self.conv.groups
            z = convolve(h, *self.down.like(h), **self.conv.arguments(), groups=groups)
            return convolve(act(z), *self.up.like(h), groups=groups)
        last = axis % h.ndim == h.ndim - 1
        z = h if last else h.movedim(axis, -1)
        z = functional.linear(act(functional.linear(z, *self.down.like(h))), *self.up.like(h))
        return z if last else z.movedim(-1, axis)

    def spec(self) -> dict[str, Any]:
        facts = super().spec()
        conv = facts.pop("conv")
        return facts if conv is None else facts | {"conv": _plain(asdict(conv))}


@final
class ConvBottleneck(Narrowing):
    """GroupNorm - SiLU - Conv3x3 - activation - Conv3x3, both with bias: the adapter of residual
    blocks (arXiv 2303.18181). Channels at axis 1 of (B, C, H, W).
    """

    form = "conv_bottleneck"
    schema = ConvBottleneckSpec

    def __init__(
        self, size_in: int, width: int, size_out: int, *, groups: int = 32, activation: str
    ) -> None:
        super().__init__()
        _check_activation(activation)
        if size_in % groups:
            raise ValueError(f"{size_in} channels are no multiple of the {groups} groups")
        self.size_in, self.width, self.size_out = size_in, width, size_out
        self.groups, self.activation = groups, activation
        self.norm = Layer((size_in,), bias=True)
        nn.init.ones_(self.norm.weight)
        self.down = Layer((width, size_in, 3, 3), bias=True)
        self.up = Layer((size_out, width, 3, 3), bias=True)

    def forward(self, h: Float[Tensor, "B C H W"], axis: int = 1) -> Float[Tensor, "B D H W"]:
        z = functional.silu(functional.group_norm(h, self.groups, *self.norm.like(h)))
        z = ACTIVATIONS[self.activation](functional.conv2d(z, *self.down.like(h), padding=1))
        return functional.conv2d(z, *self.up.like(h), padding=1)


@final
class Linear(Body):
    """One linear layer with bias over the channels, D x C: the adapter without a bottleneck."""

    form = "linear"
    schema = LinearSpec

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.size_in, self.size_out = size_in, size_out
        self.linear = Layer((size_out, size_in), bias=True)

    @property
    def layers(self) -> dict[str, Layer]:
        return {"linear": self.linear}

    def forward(self, h: Float[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        return functional.linear(h.movedim(axis, -1), *self.linear.like(h)).movedim(-1, axis)


BODIES: Mapping[str, type[Bottleneck] | type[ConvBottleneck] | type[Linear]] = {
    body.form: body for body in (Bottleneck, ConvBottleneck, Linear)
}


def body_from_spec(spec: Mapping[str, Any]) -> Body:
    """The body that `spec` described, with zeros to be filled in.

    Raises: SmidgenError for a form that is unknown here, or if it describes no such body;
        ValueError for sizes that do not go together.
    """
    facts = dict(spec)
    form = str(facts.pop("form", None))
    if form not in BODIES:
        raise SmidgenError(
            f"bypasses of form {json.dumps(form[:40])} are unknown to this smidgen, which has: "
            f"{', '.join(BODIES)}; upgrade smidgen"
        )
    arguments = structs.asdict(fit(facts, BODIES[form].schema))
    if arguments.get("conv") is not None:
        arguments["conv"] = Conv(**structs.asdict(arguments["conv"]))
    return BODIES[form](**arguments)


def _check_activation(name: str) -> None:
    if name not in ACTIVATIONS:
        raise ValueError(f'unknown activation "{name}"; choose from: {", ".join(ACTIVATIONS)}')


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in value.items()}
