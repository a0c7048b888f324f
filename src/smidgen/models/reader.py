"""The text encoders of a pipeline while they are loaded: prompts in, their condition out, as the
encoders are now, with whatever acts in them.

B prompts. What is kept of conditions is not here: that is conditioner.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprint
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.hosts.family import Condition, Pipeline
from smidgen.sizes import ImageSize

# (pipeline, prompts, image size) -> the condition of these prompts
Encode = Callable[[Any, Sequence[str], ImageSize], Condition]


@dataclass(frozen=True)
class Encoder:
    """One text encoder, the component of the pipeline that it is, and the tokenizer before it."""

    component: str
    network: nn.Module
    tokenizer: Any

    @property
    def fingerprint(self) -> str:
        """Of the weights, "" of those on the meta device."""
        state = self.network.state_dict()
        return "" if any(tensor.is_meta for tensor in state.values()) else fingerprint(state)


class Reader:
    """Tokenizers and text encoders of one pipeline, loaded."""

    def __init__(
        self, pipeline: Any, encode: Encode, image_size: ImageSize, described: Pipeline
    ) -> None:
        """`encode` calls the encoders of `pipeline`, for images of this size; `described` says
        which of its components they are.
        """
        self.pipeline = pipeline
        self._encode = encode
        self._image_size = image_size
        self._described = described
        self._words: dict[str, str] = {}  # a new word -> all that stands for it in a prompt

    @cached_property
    def encoders(self) -> tuple[Encoder, ...]:
        """The text encoders in the order of the pipeline."""
        names = zip(self._described.encoders, self._described.tokenizers, strict=True)
        found = [
            (name, getattr(self.pipeline, name, None), getattr(self.pipeline, tokenizer, None))
            for name, tokenizer in names
        ]
        # a processor, which reads images as well, has its tokenizer inside
        return tuple(
            Encoder(name, network, getattr(tokenizer, "tokenizer", tokenizer))
            for name, network, tokenizer in found
            if network is not None
        )

    def close(self) -> None:
        """Let the encoders go; nothing can be read any more."""
        self.pipeline = None
        self.__dict__.pop("encoders", None)

    def read(self, prompts: Sequence[str]) -> Condition:
        """The conditions of these prompts, a row each, where the encoders are; with gradients where
        something in the encoders wants such.

        Raises: SmidgenError if the encoders fail.
        """
        try:
            return self._encode(self.pipeline, self._spelled(prompts), self._image_size)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise SmidgenError(
                f'the tokenizers and text encoders fail on "{prompts[0]}" ({in_one_line(error)}); '
                "get their folders again"
            ) from error

    def batch(self, prompts: Sequence[str], device: torch.device, dtype: torch.dtype) -> Condition:
        """As `read`, each distinct prompt read once, moved to where a network wants them.

        Raises: SmidgenError as `read`.
        """
        distinct = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=device)
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)[rows]
            for name, value in self.read(tuple(distinct)).items()
        }

    @contextmanager
    def attached(self, delta: Delta) -> Iterator[None]:
        """The edits of `delta` in text encoders act there; its new words are known from now on.

        Raises: SmidgenError if it was made for other text encoders.
        """
        known = {one.component: one for one in self.encoders}
        with ExitStack() as stack:
            for component in delta.components:
                if component not in known:
                    raise SmidgenError(
                        f"the delta has edits in {component}, which this base has not; give the "
                        "base that it was made for"
                    )
                delta.check_component(component, known[component].fingerprint)
                stack.enter_context(delta.attach(known[component].network, component=component))
            self.learn(delta)
            yield

    def learn(self, delta: Delta) -> None:
        """Make the tokenizers know the new words of `delta`. Raises: SmidgenError if one cannot."""
        for one in self.encoders:
            for edit in delta.edits.values():
                if isinstance(edit, Word) and edit.component == one.component:
                    learn_word(one.tokenizer, edit)
                    self._words[edit.token] = " ".join(edit.names)

    def _spelled(self, prompts: Sequence[str]) -> list[str]:
        """With all names of words of several vectors; pipelines that can do so do it themselves."""
        if not self._words or hasattr(self.pipeline, "maybe_convert_prompt"):
            return list(prompts)
        found = list(prompts)
        for token, whole in self._words.items():
            found = [word_in(token).sub(lambda _, whole=whole: whole, text) for text in found]
        return found


def word_in(token: str) -> re.Pattern[str]:
    """Finds this word in a text, not within a longer one."""
    return re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")


def learn_word(tokenizer: Any, word: Word) -> None:
    """Make a tokenizer read the names of the word as its ids; a second time changes nothing.

    Raises: SmidgenError if the tokenizer has other uses for them.
    """
    from tokenizers import AddedToken  # which comes with what reads prompts

    tokenizer.add_tokens([AddedToken(name, single_word=True) for name in word.names])
    ids = tokenizer.convert_tokens_to_ids(list(word.names))
    if ids != list(range(word.first, word.first + len(word.names))):
        raise SmidgenError(
            f'the tokenizer of {word.component} reads "{word.token}" as {ids}, the delta expects '
            f"{word.first} and on; give the base that it was made for, one new word at a time"
        )
