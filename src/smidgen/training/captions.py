"""What a training on captions is told: the caption of each image in the place of its class.

An image has a class, by which images are held out and reported; a condition, which is the text that
the network is told; and a label, the number by which a condition is looked up. Without captions the
label is the class, with them it is the number of a caption. N images, B of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.data.captions import Captions, distinct, read_captions
from smidgen.data.folder import ImageFolder
from smidgen.data.latents import LatentSet
from smidgen.errors import SmidgenError, UsageError, shown
from smidgen.files.places import default_cache_dir
from smidgen.models.base import Base
from smidgen.models.calling import dtype_of
from smidgen.models.labels import (
    Labels,
    check_lengths,
    class_names,
    class_prompts,
    labels_of,
    new_words,
)
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.prompts import CAPTIONS, CLASS, DREAMBOOTH
from smidgen.models.reader import Reader, word_in
from smidgen.processes import from_main, is_main
from smidgen.progress import counting_bar
from smidgen.training.config import RunConfig
from smidgen.training.objective import Choices, Task
from smidgen.training.subject import TOKEN, has_word, subject_prompts
from smidgen.training.texts import Texts

EXAMPLES = 4  # of a delta's provenance
# (captions) -> those of them that the text encoders cut
Cut = Callable[[Sequence[str]], Collection[str]]


def captions_for(
    config: RunConfig, folder: ImageFolder, *, base: str, reads_prompts: bool
) -> Captions | None:
    """The captions of a folder for a base of this name, None for one that reads none.

    Raises: UsageError for captions that are of no use, or a template of prompts beside them;
        SmidgenError as `read_captions`.
    """
    if not reads_prompts:
        if config.shuffle_tags:
            raise UsageError(
                f'shuffle_tags is of no use to base "{base}", which knows classes and reads no '
                "prompts; leave it out"
            )
        if config.captions not in ("auto", "none"):
            raise UsageError(
                f'captions is of no use to base "{base}", which knows classes and reads no prompts;'
                " leave it out"
            )
        if folder.layout == "webdataset" and folder.flat and any(f.captions for f in folder.files):
            raise SmidgenError(
                f'the texts in the shards of "{shown(str(folder.root))}" are captions, not classes,'
                f' and base "{base}" reads none; expected .cls, .json with a label, or folders in '
                "the names"
            )
        return None
    captions = read_captions(folder, config.captions)
    if captions.source == "none" and config.shuffle_tags:
        raise UsageError(
            "shuffle_tags shuffles those of captions, and there are none; leave it out"
        )
    of_classes = config.task != DREAMBOOTH  # there the prompt is that of other images
    if captions.source != "none" and config.training.prompt is not None and of_classes:
        raise UsageError(
            f"prompt makes those of classes, and the images have captions ({captions.source}): "
            "leave prompt out, or give --captions none"
        )
    return captions


def captioned(latents: LatentSet, captions: Captions | None, cut: Cut | None) -> LatentSet:
    """The latents with the captions of their files, and what is said of these in the findings."""
    if captions is None or latents.folder is None or latents.findings is None:
        return latents
    texts = captions.of(latents.folder)
    short = cut(distinct(texts)) if cut is not None and captions.source != "none" else None
    said = dataclasses.replace(latents.findings, captions=captions.findings(latents.folder, short))
    return dataclasses.replace(
        latents, findings=said, captions=None if captions.source == "none" else texts
    )


def look_at_subject(
    files: PromptFiles | None, config: RunConfig, folder: ImageFolder, base: str
) -> str | None:
    """Whether a subject's token may mean something already, as a line, else None.

    Raises: UsageError for images of several classes, or a prompt that the text encoders cut;
        SmidgenError if a tokenizer fails.
    """
    if len(folder.classes) > 1:
        raise UsageError(
            f'"{shown(str(folder.root))}" has {len(folder.classes)} classes ({folder.classes[0]}, '
            f"{folder.classes[1]} ...); task {config.task} learns one subject: give its folder"
        )
    prompts = subject_prompts(config)
    check_lengths(files, (prompts.instance, prompts.of_class), base)
    token = config.token or ""
    if files is None or not files.knows(token):
        return None
    return (
        f'token "{token}" is a word that base "{base}" knows already, so that it may mean that as '
        "well as the subject; one that means nothing, such as sks, serves better"
    )


def told_of_subject(
    names: Sequence[str], captions: Sequence[Sequence[str]], config: RunConfig
) -> tuple[tuple[str, ...], ...]:
    """The captions of a subject's images, the token where they say {token}, and its prompt where
    one has none.

    Raises: SmidgenError for a caption without the token.
    """
    prompt, token = subject_prompts(config).instance, config.token or ""
    captions = [[text.replace(TOKEN, token) for text in own] for own in captions]
    lacking = [
        name
        for name, own in zip(names, captions, strict=True)
        if not all(has_word(text, token) for text in own)
    ]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise SmidgenError(
            f'the caption of {lacking[0]}{more} is without the token "{token}": write it or '
            "{token} before the name of the class, or give --captions none"
        )
    return tuple(tuple(own) or (prompt,) for own in captions)


def with_subject(latents: LatentSet, config: RunConfig) -> LatentSet:
    """The latents of a subject's images with `told_of_subject`."""
    texts = latents.captions or ((),) * len(latents)
    findings = latents.findings
    if findings is not None and latents.captions is None:
        findings = dataclasses.replace(findings, captions=None)  # they would tell of classes
    captions = told_of_subject(latents.names, texts, config)
    return dataclasses.replace(latents, captions=captions, findings=findings)


def task_of(
    base: Base,
    delta: Delta,
    latents: LatentSet,
    config: RunConfig,
    *,
    reader: Reader | None = None,
    progress: bool = False,
) -> Task:
    """What is trained: the latents' captions, or else the classes that the delta was made for.
    `reader`: what encodes them in the step, None: they are encoded here.

    Raises: UsageError for a new word that stands in none of them.
    """
    if reader is not None:
        task = read_in_the_step(base, delta, config, reader, latents.captions)
        _check_words(delta, task)
        own = None if latents.captions is None else distinct(latents.captions[: latents.num_own])
        return task if own is None else dataclasses.replace(task, shown=len(own))
    if latents.captions is None:
        return Task(process=base.process, labels=labels_of(base, delta))
    assert base.conditioner is not None, "captions are read for bases that read prompts"
    names = distinct(latents.captions)
    prompts, dtype = (*names, ""), dtype_of(base.denoiser)
    place = config.cache_dir or default_cache_dir()
    conditioner = base.conditioner
    with counting_bar("reading captions", progress=progress and is_main()) as report:
        from_main(lambda: conditioner.fill(prompts, place, dtype, report))
    conditions = conditioner.stored(prompts, place, base.device, dtype)
    return Task(
        process=base.process,
        labels=Labels(names=names, conditions=conditions),
        choices=choices_of(latents.captions, names),
        shown=len(distinct(latents.captions[: latents.num_own])),
    )


def read_in_the_step(
    base: Base,
    delta: Delta,
    config: RunConfig,
    reader: Reader,
    captions: Sequence[tuple[str, ...]] | None = None,
) -> Task:
    """The task of captions, None: of the prompts of the delta's classes, that `reader` encodes in
    the step.
    """
    if captions is None:
        names, prompts = class_names(base, delta), class_prompts(base, delta)
    else:
        names = prompts = distinct(captions)
    texts = Texts(
        reader=reader,
        prompts=(*prompts, ""),
        device=base.device,
        dtype=dtype_of(base.denoiser),
        keep=config.keep_tags if config.shuffle_tags else None,
    )
    return Task(
        process=base.process,
        labels=Labels(names=names, conditions=texts.conditions),
        choices=None if captions is None else choices_of(captions, names),
        texts=texts,
    )


def _check_words(delta: Delta, task: Task) -> None:
    """Raises: UsageError if a new word stands in none of the texts that are trained on."""
    prompts = () if task.texts is None else task.texts.prompts
    for word in new_words(delta):
        if not any(word_in(word).search(prompt) for prompt in prompts):
            raise UsageError(
                f'token "{word}" stands in no caption and no prompt, so that nothing would be '
                f'learned of it; put it there, such as --prompt "a photo of a {word} {CLASS}"'
            )


def choices_of(captions: Sequence[Sequence[str]], names: Sequence[str]) -> Choices:
    """Each image's captions as numbers of `names`; the null label of one that has none."""
    numbers = {name: number for number, name in enumerate(names)}
    of_images = [[numbers[text] for text in own] or [len(names)] for own in captions]
    counts = torch.tensor([len(own) for own in of_images])
    return Choices(
        labels=torch.tensor([label for own in of_images for label in own]),
        starts=counts.cumsum(0) - counts,
        counts=counts,
    )


def provenance_of(latents: LatentSet) -> dict[str, Any]:
    """What a delta says of the captions that it was trained on: a few of them, evenly taken."""
    if latents.captions is None or latents.findings is None or latents.findings.captions is None:
        return {}
    names, found = distinct(latents.captions[: latents.num_own]), latents.findings.captions
    facts = {"source": found.source, "images": found.images, "distinct": found.distinct}
    return {CAPTIONS: {**facts, "examples": [names[i] for i in evenly(len(names), EXAMPLES)]}}


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of so many numbers, from the first one on."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def a_few(labels: Labels, count: int, among: int | None = None) -> Labels:
    """The labels of at most `count` of the names, and that of none; `among`: of the first so many
    names, None: of all.
    """
    known = len(labels.names) if among is None else among
    kept = torch.tensor([*evenly(known, count), labels.null])

    def conditions(chosen: Tensor) -> Any:
        return labels.conditions(kept.to(chosen.device)[chosen])

    return Labels(names=tuple(labels.names[i] for i in kept[:-1].tolist()), conditions=conditions)
