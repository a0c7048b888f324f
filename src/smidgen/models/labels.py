"""What labels mean: the names that they count, classes or prompts, and the condition of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Table
from smidgen.core.word import Word
from smidgen.errors import UsageError
from smidgen.files.names import excerpt
from smidgen.models.base import Base
from smidgen.models.conditioner import Conditions, labels_alone
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.prompts import CAPTIONS, DEFAULT_PROMPT, DREAMBOOTH, PROMPTS, prompt_of


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Label i is that of `names[i]`, the one behind the last that of no class; `conditions` turns
    labels (B,) into what the network is told.
    """

    names: tuple[str, ...]
    conditions: Conditions = labels_alone

    @property
    def null(self) -> int:
        """The label of no class, for classifier-free guidance."""
        return len(self.names)


def labels_of(
    base: Base, delta: Delta | None = None, prompts: Sequence[str] = (), negative: str = ""
) -> Labels:
    """The labels of these prompts, each once; without any, the prompt of the subject or those of
    the classes that `delta` was trained on, or of those that the base knows. `negative` is the
    prompt of no class.

    Raises: UsageError for prompts where the base reads none, or none where it reads such, or one
        that its text encoders cut; SmidgenError as `Conditioner.encode`.
    """
    subject = {} if delta is None else delta.provenance.training.get(DREAMBOOTH, {})
    if not prompts and base.conditioner is not None and subject.get("instance_prompt"):
        prompts = (subject["instance_prompt"],)
    if prompts:
        names = tuple(dict.fromkeys(prompts))
        files = None if base.conditioner is None else base.conditioner.files
        check_lengths(files, (*names, negative), base.name, new_words(delta))
        return Labels(names=names, conditions=base.conditions(names, negative, delta))
    names = class_names(base, delta)
    if base.conditioner is not None and not names:
        captions = {} if delta is None else delta.provenance.training.get(CAPTIONS, {})
        if captions:
            raise UsageError(
                "this delta was trained on captions: give prompts (prompts=..., --prompt), such as "
                f'"{captions["examples"][0]}"'
            )
        raise UsageError(
            f'base "{base.name}" reads prompts: give some (prompts=..., --prompt), or a delta that '
            "was trained on classes"
        )
    prompts = class_prompts(base, delta)
    conditions = base.conditions(prompts, negative, delta)
    if base.conditioner is None and delta is not None and not _has_table(delta):
        conditions = _conditions_of(rows_of(names, base.class_names, base.name), base.null_label)
    return Labels(names=names, conditions=conditions)


def trained_prompt(delta: Delta) -> str | None:
    """A prompt that the delta was trained on: that of its subject, of its first caption or of its
    first class; None where it was trained on classes of a label table.
    """
    training = delta.provenance.training
    if subject := training.get(DREAMBOOTH):
        return subject["instance_prompt"]
    if captions := training.get(CAPTIONS):
        return next(iter(captions["examples"]), None)
    prompts = training.get(PROMPTS) or {}
    template = prompts.get("template") or DEFAULT_PROMPT
    return next((prompt_of(name, template) for name in prompts.get("classes", ())), None)


def rows_of(names: Sequence[str], known: Sequence[str], base: str) -> list[int]:
    """The rows of these classes in the label table of the base of this name, whose classes are the
    `known` ones. A base that knows its classes by number alone, as a released `.pt` of DiT does,
    has those of as many classes in their order: that of the ids of synsets for ImageNet.

    Raises: UsageError for a class that it has none for.
    """
    rows = {name: row for row, name in enumerate(known)}
    unnamed = len(names) == len(known) and list(known) == list(map(str, range(len(known))))
    if tuple(names) == tuple(known) or (unnamed and not rows.keys() & set(names)):
        return list(range(len(names)))  # by name, of ImageNet's two called crane one would be both
    for name in names:
        if known.count(name) > 1:
            raise UsageError(
                f'base "{base}" has several classes called "{excerpt(name)}", and its label table '
                "is not trained (train_labels); give images of all of its classes, or train labels"
            )
    missing = [name for name in names if name not in rows]
    if missing:
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UsageError(
            f'"{excerpt(missing[0])}" is no class of base "{base}"{more}, and its label table is '
            f"not trained (train_labels); give images of its own classes ("
            f"{excerpt(', '.join(known[:3]) or 'it has no names of them')}, ...), or train labels"
        )
    return [rows[name] for name in names]


def _conditions_of(rows: Sequence[int], null: int) -> Conditions:
    """What a base is told of classes that have these rows in its own table, the label behind the
    last meaning the `null` row.
    """
    table = torch.tensor([*rows, null])
    return lambda labels: labels_alone(table.to(labels.device)[labels])


def check_lengths(
    files: PromptFiles | None,
    prompts: Sequence[str],
    base: str,
    words: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Raises: UsageError for a prompt that the text encoders of the base of this name cut; `words`
    are new ones, each of so many tokens.
    """
    for prompt, most in ({} if files is None else files.cut(prompts, words)).items():
        raise UsageError(
            f'prompt "{excerpt(prompt)}" is too long: base "{base}" reads {most} tokens of a '
            "text; shorten it"
        )


def new_words(delta: Delta | None) -> dict[str, int]:
    """The words of `delta` that the base lacks, each with its number of tokens."""
    edits = () if delta is None else delta.edits.values()
    return {edit.token: len(edit.rows) for edit in edits if isinstance(edit, Word)}


def class_names(base: Base, delta: Delta | None) -> tuple[str, ...]:
    """The classes that labels count: the delta's if it brings its own label table, or was trained
    on some of the base's or on prompts made of their names; else the base's.
    """
    if delta is not None and _has_table(delta):
        return delta.provenance.classes
    if delta is not None and base.conditioner is not None:
        return tuple(delta.provenance.training.get(PROMPTS, {}).get("classes", ()))
    return base.class_names if delta is None else delta.provenance.classes or base.class_names


def _has_table(delta: Delta) -> bool:
    return any(isinstance(edit, Table) for edit in delta.edits.values())


def class_prompts(base: Base, delta: Delta | None) -> tuple[str, ...]:
    """The prompts of `class_names`, in that order; none of a base that knows classes."""
    if delta is None or base.conditioner is None:
        return ()
    template = delta.provenance.training.get(PROMPTS, {}).get("template", DEFAULT_PROMPT)
    return tuple(prompt_of(name, template) for name in class_names(base, delta))
