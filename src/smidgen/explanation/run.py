"""Several deltas of one base looked at in the same way, as one document: differences, attention and
the sizes of edits, all on the same noised pictures.

B pictures of H x W pixels, T times; h, w rows and columns of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smidgen.core.delta import Delta
from smidgen.core.word import Word
from smidgen.errors import UsageError
from smidgen.explanation.attention import (
    Attention,
    cross_attentions,
    to_word,
    tokens_of,
    watching,
)
from smidgen.explanation.config import ExplanationConfig
from smidgen.explanation.differences import Differences, Noised, differences, predict
from smidgen.explanation.sizes import Size, measuring, sizes_of
from smidgen.fast.acting import acting
from smidgen.models.base import Base
from smidgen.models.labels import Labels, class_names, new_words, trained_prompt
from smidgen.models.prompts import DREAMBOOTH
from smidgen.models.reader import word_in
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare

BASE = "base"  # the name of the row without a delta
DIGITS = 5  # of the numbers of maps in the document

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a network is told (`shown`), what that is compared with (`other`, "" for nothing), and
    the word of it whose attention is wanted. `labelled`: both are classes, not prompts.
    """

    shown: str
    other: str
    word: str | None
    labelled: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """What was found of one delta, or of the base alone, without edits."""

    name: str
    method: str | None
    num_parameters: int
    question: Question
    differences: Differences
    attention: Attention | None
    sizes: Sequence[Size]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Everything that was found; `picture` (H, W, 3) uint8 is the first of those that were noised,
    which shows `drawn`.
    """

    base: Base
    config: ExplanationConfig
    drawn: str
    picture: NDArray[np.uint8]
    noised: Noised
    looks: Sequence[Look]

    def document(self) -> dict[str, Any]:
        """All numbers, as JSON (docs/file-formats.md)."""
        levels = [float(self.base.process.level(t)) for t in self.noised.times]
        return {
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "image_size": self.base.image_size.plain,
            "settings": asdict(self.config),
            "pictures_of": self.drawn,
            "times": self.noised.times.tolist(),
            "noise_levels": levels,
            "deltas": [_document_of(look) for look in self.looks],
        }


def explain(
    base: Base,
    deltas: Sequence[tuple[str, Delta]],
    config: ExplanationConfig,
    report: Report | None = None,
) -> Explanation:
    """Look at these deltas of `base`, by name, and at the base alone where it knows what is asked;
    `report(done, in all)` is called behind each.

    A base that reads prompts draws the pictures itself, of the prompt that others are compared with
    (or of the other one, where that is nothing); the pictures of a class are drawn with the first
    delta.

    Raises: UsageError for a class, prompt or word that makes no sense; SmidgenError for a delta of
        another base.
    """
    if base.conditioner is None:  # all are asked for one class, the first delta's unless told
        config = replace(config, class_name=question_of(base, deltas[0][1], config).shown)
    questions = [question_of(base, delta, config) for _, delta in deltas]
    several = len({question.shown for question in questions}) > 1
    looked: list[tuple[str, Delta | None, Question]] = [
        (f'{name}: "{question.shown}"' if several else name, delta, question)
        for (name, delta), question in zip(deltas, questions, strict=True)
    ]
    if _base_knows(base, deltas[0][1], questions[0]):
        looked.insert(0, (BASE, None, questions[0]))
    drawing = _pictures(base, deltas[0][1], questions[0], config)
    pixels = drawing.images(range(config.num_images))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    noised = Noised.of(base, base.codec.encode(images)[0].cpu(), config.times, config.seed)
    looks = []
    for number, (name, delta, question) in enumerate(looked, start=1):
        looks.append(_look(base, name, delta, question, noised))
        if report is not None:
            report(number, len(looked))
    return Explanation(
        base=base,
        config=config,
        drawn=drawing.name(0),
        picture=pixels[0],
        noised=noised,
        looks=looks,
    )


def question_of(base: Base, delta: Delta, config: ExplanationConfig) -> Question:
    """What is asked of a delta. Raises: UsageError if nothing says what it was trained on."""
    if base.conditioner is None:
        given = [name for name in ("prompt", "without", "word") if getattr(config, name)]
        if given:
            raise UsageError(
                f'{given[0]} is of no use to base "{base.name}", which reads no prompts; give '
                "class_name, or nothing"
            )
        name = config.class_name or class_names(base, delta)[0]
        return Question(shown=name, other="", word=None, labelled=True)
    if config.class_name is not None:
        raise UsageError(f'base "{base.name}" reads prompts: give prompt in place of class_name')
    subject = delta.provenance.training.get(DREAMBOOTH, {})
    words = [edit.token for edit in delta.edits.values() if isinstance(edit, Word)]
    prompt, without = config.prompt, config.without
    if prompt is None and subject:
        prompt, without = subject["instance_prompt"], without or subject["class_prompt"]
    prompt = prompt or trained_prompt(delta)
    if prompt is None:
        raise UsageError(
            "nothing says which prompt this delta was trained on; give prompt and without "
            '(--prompt "a photo of a sks dog" --without "a photo of a dog")'
        )
    token = next(iter(words), subject.get("token"))
    word = config.word or (token if token and word_in(token).search(prompt) else None)
    return Question(shown=prompt, other=without or "", word=word, labelled=False)


def _base_knows(base: Base, delta: Delta, question: Question) -> bool:
    if question.labelled:
        return question.shown in base.class_names
    return not any(word_in(word).search(question.shown) for word in new_words(delta))


def _pictures(base: Base, delta: Delta, question: Question, config: ExplanationConfig) -> Drawing:
    """The drawing of the pictures that are noised."""
    sampler = base.process.preview_sampler
    how = SamplingConfig(
        num_images=config.num_images,
        steps=config.steps,
        sampler=sampler,
        guidance=config.guidance,
        seed=config.seed,
        batch_size=config.num_images,
    )
    if question.labelled:
        return prepare(base, replace(how, classes=(question.shown,)), delta=delta)
    return prepare(base, replace(how, prompt=(question.other or question.shown,)))


def _look(base: Base, name: str, delta: Delta | None, question: Question, noised: Noised) -> Look:
    prompts = () if question.labelled else tuple(p for p in (question.shown, question.other) if p)
    placed = prepare(base, SamplingConfig(prompt=prompts, steps=1), delta=delta)  # not drawn
    delta, labels = placed.delta, placed.labels
    if question.shown not in labels.names:
        raise UsageError(f'{name} knows no class "{question.shown}"; give one of all deltas')
    shown = labels.names.index(question.shown)
    other = labels.names.index(question.other) if question.other else labels.null
    with acting(delta, base.denoiser):
        found = differences(base, labels, shown, other, noised)
    return Look(
        name=name,
        method=None if delta is None else delta.provenance.method,
        num_parameters=0 if delta is None else delta.num_parameters(),
        question=question,
        differences=found,
        attention=_attention(base, delta, labels, shown, question, noised),
        sizes=() if delta is None else _sizes(base, delta, labels, shown, prompts, noised),
    )


@torch.no_grad()
def _attention(
    base: Base,
    delta: Delta | None,
    labels: Labels,
    shown: int,
    question: Question,
    noised: Noised,
) -> Attention | None:
    """To the word of the question; None without one, or where no attention is to text alone."""
    places = cross_attentions(base.host)
    if question.word is None or base.conditioner is None or not places:
        return None
    with base.conditioner.open() as reader:
        if delta is not None:
            reader.learn(delta)
        tokens = tokens_of(reader, question.shown, question.word, delta)
    maps, shares = [], []
    # by hooks, as the delta's part of queries and keys must be there before they are watched
    with acting(delta, base.denoiser, fast=False), watching(base, places) as seen:
        for number in range(len(noised.times)):
            predict(base, labels, shown, noised, number)
            one, share = to_word(base, places, seen, tokens)
            maps.append(one.cpu())
            shares.append(share.cpu())
    return Attention(
        maps=torch.stack(maps),
        shares=torch.stack(shares),
        blocks=tuple(place.block for place in places),
    )


@torch.no_grad()
def _sizes(
    base: Base,
    delta: Delta,
    labels: Labels,
    shown: int,
    prompts: Sequence[str],
    noised: Noised,
) -> list[Size]:
    """Of every edit: in the denoiser over all pictures and times, in text encoders over what is
    shown.
    """
    with measuring(delta, base.denoiser) as watched:
        for number in range(len(noised.times)):
            predict(base, labels, shown, noised, number)
    found = sizes_of(delta, watched, base.host)
    with _encoders(base, delta) as networks:
        for component, (network, read) in networks.items():
            with measuring(delta, network, component) as watched:
                read(prompts[:1])
            found += sizes_of(delta, watched, base.host)
    return found


@contextmanager
def _encoders(base: Base, delta: Delta) -> Iterator[dict[str, tuple[Any, Callable[..., Any]]]]:
    """The text encoders in which edits of `delta` act, each with what makes it read prompts."""
    if base.conditioner is None or not delta.components:
        yield {}
        return
    with base.conditioner.open() as reader:
        known = {one.component: one.network for one in reader.encoders}
        with reader.attached(delta):  # which checks that it is of these encoders, and learns words
            pass
        yield {name: (known[name], reader.read) for name in delta.components}


def _document_of(look: Look) -> dict[str, Any]:
    attention, question = look.attention, look.question
    sizes = [
        asdict(size) | {"relative": size.relative if isfinite(size.relative) else None}
        for size in look.sizes
    ]
    document: dict[str, Any] = {
        "name": look.name,
        "method": look.method,
        "trainable": look.num_parameters,
        "shown": question.shown,
        "without": question.other,
        "difference": {
            "relative": look.differences.relative.tolist(),
            "maps": _rounded(look.differences.maps[:, 0]),
        },
        "attention": None,
        "edits": sizes,
    }
    if attention is not None:
        document["attention"] = {
            "word": question.word,
            "blocks": list(attention.blocks),
            "shares": attention.shares.tolist(),
            "maps": _rounded(attention.maps[:, 0]),
        }
    return document


def _rounded(maps: torch.Tensor) -> list[Any]:
    return np.round(maps.double().numpy(), DIGITS).tolist()
