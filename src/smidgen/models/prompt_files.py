"""The tokenizers and text encoders in a pipeline's folder: what they are known by, and how many
tokens of a prompt they read.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from smidgen.core.storage import computes_in
from smidgen.errors import SmidgenError
from smidgen.files.names import excerpt
from smidgen.files.reading import in_one_line, sha256_of
from smidgen.hosts.family import Pipeline
from smidgen.models.components import load_encoders, meta_encoder, quiet
from smidgen.models.pipelines import beside_prompts
from smidgen.models.reader import Encode, Reader
from smidgen.sizes import ImageSize

# What personalisation uses because it means nothing; a small vocabulary has them as entries.
MEANINGLESS = ("sks", "zwx", "ohwx")
# Vocabularies begin with what is most frequent. Of the 49,408 entries of CLIP's the words below
# this mean something (owl is 9,899, teapot 40,749); sks is 48,136.
MEANINGFUL = 47_000


@dataclass(frozen=True, kw_only=True)
class PromptFiles:
    """The files with which a pipeline reads prompts; `network` is the class of its denoiser."""

    source: Path
    index: Mapping[str, Any]
    pipeline: Pipeline
    network: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all of them. Raises: SmidgenError if one cannot be read."""
        digest = hashlib.sha256(self.kind.encode())
        for name in self.pipeline.prompts:
            folder = self.source / name
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if path.is_file():
                    digest.update(f"\0{name}/{path.name}\0{sha256_of(path)}".encode())
        return digest.hexdigest()

    @property
    def kind(self) -> str:
        """The class of the pipeline."""
        return str(self.index["_class_name"])

    def cut(
        self, prompts: Iterable[str], words: Mapping[str, int] = MappingProxyType({})
    ) -> dict[str, int]:
        """Those of the prompts whose last tokens no text encoder reads, and how many one does;
        `words` are new ones, each of so many tokens.

        Raises: SmidgenError if a tokenizer cannot be loaded, or fails.
        """
        pipeline, tokenizers = self._tokenizers
        found = dict.fromkeys(prompts, 0)
        with quiet():
            for tokenizer in map(copy.deepcopy, tokenizers) if words else tokenizers:
                if words:
                    tokenizer.add_tokens(list(words))
                most = most_tokens(pipeline, tokenizer)
                found = {
                    text: max(most, read)
                    for text, read in found.items()
                    if _num_tokens(tokenizer, text, words) > most
                }
        return found if tokenizers else {}

    def without_weights(self, encode: Encode, image_size: ImageSize, denoiser: nn.Module) -> Reader:
        """The tokenizers, and the text encoders on the meta device in the precision of `denoiser`,
        beside which they are: to count what they need.

        Raises: SmidgenError if one cannot be loaded.
        """
        dtype = computes_in(denoiser)
        parts: dict[str, Any] = dict.fromkeys(beside_prompts(self.index, self.pipeline))
        for name in self.pipeline.encoders:
            if name not in parts:
                library, kind = self.index[name]
                parts[name] = meta_encoder(self.source / name, library, kind, dtype)
        if self.pipeline.denoiser == "transformer":
            parts["transformer"] = denoiser
        pipeline = load_encoders(self.source, self.kind, self.network, dtype, parts)
        return Reader(pipeline, encode, image_size, self.pipeline)

    def knows(self, word: str) -> bool:
        """Whether a text encoder knows the word: it is one entry of a tokenizer's, and not one of
        its rare last ones.

        Raises: SmidgenError if a tokenizer cannot be loaded, or fails.
        """
        if word.lower() in MEANINGLESS:
            return False
        _, tokenizers = self._tokenizers
        with quiet():
            # behind a space, as words in a text are
            read = [_tokens(one, f" {word}", add_special_tokens=False) for one in tokenizers]
        return any(len(tokens) == 1 and tokens[0] < MEANINGFUL for tokens in read)

    @cached_property
    def _tokenizers(self) -> tuple[Any, list[Any]]:
        """The pipeline without its networks, and its tokenizers."""
        parts = dict.fromkeys((*beside_prompts(self.index, self.pipeline), *self.pipeline.encoders))
        loaded = load_encoders(
            self.source,
            self.kind,
            self.network,
            torch.float32,
            parts | {self.pipeline.denoiser: None},
        )
        found = [getattr(loaded, name, None) for name in self.pipeline.tokenizers]
        # a processor, which reads images as well, has its tokenizer inside
        return loaded, [getattr(one, "tokenizer", one) for one in found if one is not None]


def most_tokens(pipeline: Any, tokenizer: Any) -> int:
    """How many tokens of a prompt the encoder behind this tokenizer reads: as the pipeline says for
    what is no CLIP, else as the tokenizer does.
    """
    encode = getattr(pipeline, "encode_prompt", None)  # which a pipeline of others may lack
    said = encode and inspect.signature(encode).parameters.get("max_sequence_length")
    is_clip = type(tokenizer).__name__.startswith("CLIP")
    return tokenizer.model_max_length if said is None or is_clip else said.default


def _num_tokens(tokenizer: Any, text: str, words: Mapping[str, int]) -> int:
    """With those that stand before and behind a prompt."""
    ids = _tokens(tokenizer, text)
    more = {tokenizer.convert_tokens_to_ids(word): num - 1 for word, num in words.items()}
    return len(ids) + sum(more.get(one, 0) for one in ids)


def _tokens(tokenizer: Any, text: str, **options: Any) -> list[int]:
    try:
        return tokenizer(text, truncation=False, verbose=False, **options)["input_ids"]
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise SmidgenError(
            f'the tokenizer fails on "{excerpt(text)}" ({in_one_line(error)}); get its folder again'
        ) from error
