"""The options of every method: one frozen dataclass each, whose fields are flags and recipe keys.

The text below a field is its help. No torch here: the command line reads options, and refuses wrong
ones, before torch is imported. What a method does with them is in the file of its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from smidgen.errors import UsageError
from smidgen.files.settings import check_choices
from smidgen.methods.method import check_scale, check_size, range_ends

# DiffFit
Gamma = Literal["block", "qkv", "proj", "final", "patch", "time", "auto"]
DIFFFIT_BLOCKS = ("auto", "half", "all")
# AdaptFormer
Form = Literal["parallel", "sequential"]
Read = Literal["normed", "stream"]
# VPT
Depth = Literal["deep", "shallow"]
VPT_BLOCKS = ("auto", "all")
# Textual inversion
MOST_VECTORS = 75  # the longest prompt of a CLIP
# Adapters
Place = Literal[
    "SA_in", "SA_out", "CA_in", "CA_c", "CA_out", "FFN_in", "FFN_out", "Trans_out",
    "Res_in", "Res_out",
]  # fmt: skip
Output = Literal["SA_in", "CA_in", "CA_c", "FFN_in", "Trans_out", "Res_in", "Res_out"]
Activation = Literal["relu", "sigmoid", "silu", "identity"]
AdapterForm = Literal["bottleneck", "linear"]
Init = Literal["zero", "pytorch"]
Auto = Literal["auto"]

# What flows through a block, in order. What is read on one line may be added there, not before it,
# and never on another line.
FLOWS = (
    ("SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out"),
    ("CA_c",),
    ("Res_in", "Res_out"),
)
LEGAL: Mapping[str, tuple[str, ...]] = {  # input -> its outputs, the nearest first: 20 pairs
    place: tuple(later for later in flow[number:] if later in get_args(Output))
    for flow in FLOWS
    for number, place in enumerate(flow)
}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The method has no options."""


@dataclass(frozen=True, kw_only=True)
class DiffFitConfig:
    """The paper's final setting (Table 4c, row 8) by default. Biases and norms are those of the
    whole network.
    """

    gammas: tuple[Gamma, ...] = ("auto",)
    """Where scale vectors multiply; "auto": block, qkv, proj and final on a transformer, on any
    other network block alone (the outputs of attention, feed-forward and residual branches)."""
    blocks: str = "auto"
    """The blocks that get "block", "qkv" and "proj": "half" (the first half, 1-14 of 28), "all", a
    range such as "15-28" or "28-15" (from 1, both ends included), or "auto": half of a transformer,
    all of any other network."""
    biases: bool = True
    """Train every bias."""
    layer_norm: bool = True
    """Train the affines of all norms, created where a norm has none."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.gammas if name not in get_args(Gamma)]
        if unknown:
            raise UsageError(
                f'unknown gamma "{unknown[0]}"; choose from: {", ".join(get_args(Gamma))}'
            )
        if len(set(self.gammas)) < len(self.gammas):
            raise UsageError(f"gammas names a location twice: {', '.join(self.gammas)}")
        if "auto" in self.gammas and len(self.gammas) > 1:
            others = ", ".join(name for name in self.gammas if name != "auto")
            raise UsageError(f'gammas "auto" stands alone, not with {others}')
        if self.blocks not in DIFFFIT_BLOCKS:
            range_ends(self.blocks, *DIFFFIT_BLOCKS)


@dataclass(frozen=True, kw_only=True)
class AdaptFormerConfig:
    """The bottleneck beside or behind every feed-forward."""

    form: Form = "parallel"
    """parallel reads what the feed-forward reads, sequential what it returns; both add to what it
    returns."""
    read: Read = "normed"
    """Of the parallel form: normed reads behind the norm of the feed-forward, as in the paper's
    equation 5, stream before it, as in the authors' code."""
    width: int = 64
    """Width of the bottleneck."""
    scale: float = 0.1
    """What the bottleneck adds is multiplied by this fixed number."""

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.form, self.read) == ("sequential", "stream"):
            raise UsageError(
                'read is "stream", but the sequential form reads what the feed-forward returns; '
                'leave read out, or use form "parallel"'
            )
        check_size("width", self.width)
        check_scale(self.scale)


@dataclass(frozen=True, kw_only=True)
class VPTConfig:
    """The paper's VPT-Deep by default: one token in each of blocks 1-5 and the final layer."""

    depth: Depth = "deep"
    """deep: new tokens in each block of `blocks`, dropped behind it; shallow: the same ones from
    before the first block to behind the last."""
    tokens: int = 1
    """How many tokens at a time."""
    blocks: str = "auto"
    """Which of the blocks that can take tokens: "auto" (1-5, or all where there are fewer), "all",
    or a range such as "1-5" (from 1, both ends included)."""
    final_layer: bool = True
    """Train the final layer as well."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_size("tokens", self.tokens)
        if self.blocks not in VPT_BLOCKS:
            range_ends(self.blocks, *VPT_BLOCKS)
        if self.depth == "shallow" and self.blocks != "auto":
            raise UsageError(
                f'blocks is "{self.blocks}", but shallow tokens pass through all blocks'
            )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """A pair of matrices beside each target; what they add is scaled by alpha / rank."""

    rank: int = 8
    """Rank of each pair."""
    alpha: float | None = None
    """Numerator of the scale; none: the rank, so a scale of 1."""
    targets: tuple[str, ...] = ("q", "v")
    """Roles of linears (q, k, v, o, ff1, ff2 and others of the base, of every attention and stream;
    self.q, cross.q, text.q of one kind only), qkv (queries, keys and values, fused where the base
    has them so), linear (all linears), conv (all convolutions but grouped ones), all, or exact
    module names."""

    def __post_init__(self) -> None:
        check_size("rank", self.rank)
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"alpha is {self.alpha}; expected a number above 0")
        if not words(self.targets):
            raise UsageError("targets is empty; expected roles such as q v, linear, conv or all")


@dataclass(frozen=True, kw_only=True)
class TextualInversionConfig:
    """The rows of a new word in the text encoders' tables; the word itself is the run's `token`."""

    init_word: str | None = None
    """The new rows start as this word's, or as the mean of its tokens."""
    num_vectors: int = 1
    """How many tokens stand for the word in a prompt."""

    def __post_init__(self) -> None:
        check_size("num_vectors", self.num_vectors)
        if self.num_vectors > MOST_VECTORS:
            raise UsageError(f"num_vectors is {self.num_vectors}; expected at most {MOST_VECTORS}")
        if self.init_word is not None and not self.init_word.strip():
            raise UsageError("init_word is empty; give a word, such as the name of what is shown")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The paper's recipe by default: from behind the cross-attention to before the feed-forward."""

    input_position: Place | Auto = "auto"
    """Where adapters read; auto: CA_out, without cross-attention SA_out."""
    output_position: Output | Auto = "auto"
    """Where they add; auto: the next place behind the input where something can be added (FFN_in
    behind CA_out)."""
    form: AdapterForm = "bottleneck"
    """linear: one layer of full width with a bias instead of two with a bottleneck between."""
    activation: Activation = "relu"
    """The function between the two layers of the bottleneck."""
    width: int | None = None
    """Width of the bottleneck; none: 64, or as `share` says."""
    share: float | None = None
    """Instead of a width: the part of the base's parameters that the adapters should have, which
    the nearest width gives."""
    scale: float = 1.0
    """What adapters add is multiplied by this fixed number."""
    up_init: Init = "zero"
    """zero starts without effect; pytorch with PyTorch's default for all weights, as the paper's
    authors do."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.form == "linear" and (self.width or self.share):
            raise UsageError(
                "a linear adapter has no width to choose; leave out width and share, or use the "
                "form bottleneck"
            )
        if self.width is not None and self.share is not None:
            raise UsageError("width and share both say how wide the adapters are; give one")
        if self.width is not None:
            check_size("width", self.width)
        if self.share is not None and not 0 < self.share < 1:
            raise UsageError(f"share is {self.share}; expected a number between 0 and 1")
        check_scale(self.scale)
        if "auto" not in (self.input_position, self.output_position):
            check_pair(self.input_position, self.output_position)


def words(targets: Iterable[str]) -> list[str]:
    """LoRA's targets one by one, also those written with commas: "q,v"."""
    return [word.strip() for target in targets for word in target.split(",") if word.strip()]


def check_pair(read: str, write: str) -> None:
    """Raises: UsageError unless what an adapter reads at `read` can be added at `write`."""
    if write in LEGAL[read]:
        return
    if any(read in flow and write in flow for flow in FLOWS):
        problem = f'input "{read}" comes after output "{write}" in this block'
    else:
        problem = f'what is read at input "{read}" cannot be added at output "{write}"'
    raise UsageError(f"{problem}; choose the output from: {', '.join(LEGAL[read])}")
