"""What looks at a word: the cross-attention of image tokens to the tokens of one word of a prompt,
as in DAAM (Tang et al. 2022, arXiv 2210.04885).

B pictures, N image tokens, L text tokens, H heads of d channels, T times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.core.delta import Delta
from smidgen.core.sites import Site, bind
from smidgen.core.word import Word
from smidgen.errors import UsageError
from smidgen.hosts.host import Host
from smidgen.models.base import Base
from smidgen.models.reader import Reader, word_in

Q, K = "cross.q", "cross.k"  # roles of the linears that make queries and keys


@dataclass(frozen=True, kw_only=True)
class Cross:
    """One cross-attention: the module, the outputs that are its queries and its keys, its block."""

    block: int
    module: str
    queries: Site
    keys: Site


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """`maps` (T, B, h, w), of latent pixels: the share of its attention that a place gives to the
    word, the mean over heads and blocks, each brought to this size. `shares` (T, M): the mean of
    all places and pictures in each of M blocks, which `blocks` numbers.
    """

    maps: Tensor
    shares: Tensor
    blocks: tuple[int, ...]


def cross_attentions(host: Host) -> list[Cross]:
    """The cross-attentions of a base whose keys are of the text alone; none of other bases."""
    roles: dict[int, dict[str, str]] = {}
    for linear in host.linears:
        if linear.role in (Q, K) and linear.block is not None:
            roles.setdefault(linear.block, {})[linear.role] = linear.module
    return [
        Cross(
            block=block,
            module=host.block_tap(block, "cross.out").module,
            queries=Site(found[Q]),
            keys=Site(found[K]),
        )
        for block, found in roles.items()
    ]


@contextmanager
def watching(base: Base, places: list[Cross]) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Within, each call leaves the queries (B, N, H d), the keys (B, L, H d) and the mask, if there
    is one, of each module by its name.

    Deltas must act already: what they add to queries and keys comes first.
    """
    seen: dict[str, dict[str, Tensor]] = {place.module: {} for place in places}

    def keep(module: str, name: str):
        def function(value: Tensor) -> Tensor:
            seen[module][name] = value
            return value

        return function

    handles = []
    try:
        for place in places:
            mask = Site(place.module, "in", "attention_mask")
            for name, site in (("q", place.queries), ("k", place.keys), ("mask", mask)):
                handles.append(bind(base.denoiser, site, keep(place.module, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def probabilities(module: Any, seen: dict[str, Tensor]) -> Tensor:
    """softmax(q k / sqrt(d) + mask) of every head, (B, H, N, L), of what `watching` has seen of an
    attention module of diffusers; a mask is (B, 1, L) and added.
    """
    q, k = (seen[name].unflatten(-1, (module.heads, -1)).transpose(1, 2) for name in ("q", "k"))
    norms = (getattr(module, name, None) for name in ("norm_q", "norm_k"))
    q, k = (x if norm is None else norm(x) for x, norm in zip((q, k), norms, strict=True))
    scores = q.float() @ k.float().transpose(-1, -2) * module.scale
    if "mask" in seen:
        scores = scores + seen["mask"].float()[:, None]
    return scores.softmax(dim=-1)


def to_word(
    base: Base, places: list[Cross], seen: dict[str, dict[str, Tensor]], tokens: list[int]
) -> tuple[Tensor, Tensor]:
    """One call's map (B, h, w) and shares (M,) of these tokens of the prompt, as in `Attention`."""
    _, height, width = base.latent_shape
    maps = []
    for place in places:
        module = base.denoiser.get_submodule(place.module)
        given = probabilities(module, seen[place.module])[..., tokens].sum(dim=-1).mean(dim=1)
        rows = round((given.shape[1] * height / width) ** 0.5)
        image = given.unflatten(1, (rows, -1))[:, None]
        maps.append(functional.interpolate(image, (height, width), mode="bilinear")[:, 0])
    stacked = torch.stack(maps)
    return stacked.mean(dim=0), stacked.mean(dim=(1, 2, 3))


def tokens_of(reader: Reader, prompt: str, word: str, delta: Delta | None = None) -> list[int]:
    """The places of a word's tokens among those of a prompt, as the first text encoder counts them;
    the reader has learned the new words of `delta`.

    Raises: UsageError if the prompt does not hold the word.
    """
    tokenizer, whole, part = reader.encoders[0].tokenizer, prompt, word
    for edit in () if delta is None else delta.edits.values():
        if isinstance(edit, Word):  # of several vectors: the names of all
            whole, part = (_spelled(text, edit) for text in (whole, part))
    ids = tokenizer(whole)["input_ids"]
    own = tokenizer(part, add_special_tokens=False)["input_ids"]
    for start in range(len(ids) - len(own) + 1):
        if own and ids[start : start + len(own)] == own:
            return list(range(start, start + len(own)))
    raise UsageError(
        f'"{word}" is no word of the prompt "{prompt}"; give one that is (--word), or none'
    )


def _spelled(text: str, word: Word) -> str:
    return word_in(word.token).sub(lambda _: " ".join(word.names), text)
