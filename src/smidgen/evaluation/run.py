"""One evaluation: images against a reference, as the document of result.json.

The images are read once and not held; with several processes (torchrun) each reads a part. How a
number is computed is in numbers.py, what stands around it in document.py.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from smidgen import processes
from smidgen.data.embedded_sets import locate_reference, name_reference
from smidgen.data.folder import ImageFolder, Progress, scan, with_findings
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.document import Source, make_document, strange_classes
from smidgen.evaluation.estimate import announced
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.names import PROMPT
from smidgen.evaluation.pairs import draw_others
from smidgen.evaluation.plan import Plan, make_plan
from smidgen.evaluation.reference import content_key, reference_statistics
from smidgen.evaluation.sample_batches import SampleBatch, open_sample_batch
from smidgen.evaluation.samples import Others
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.stream import (
    ArrayBatch,
    Measured,
    Prepared,
    accumulate,
    array_batches,
    folder_batches,
)
from smidgen.models.calling import device_of
from smidgen.sampling.draw import Drawing
from smidgen.sampling.folder import SampleRecord, read_record


def evaluate(
    images: Path,
    reference: Path | str,
    config: EvaluationConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The metrics of a folder of images, with protocol, baselines and warnings.

    `images` may also be a .npz with `arr_0`, as guided diffusion's sampling writes it. `reference`
    is a folder of images, or a data set of another layout, whose statistics are cached; or a .npz
    with `mu` and `sigma`, or with `arr_0`. With several features `by_features` holds what belongs
    to each, and the top level what belongs to the first.

    Class agreement needs to know what each image was meant to show: the name of its sub-folder, the
    sampling record beside it, or a file name such as 000123-alpha.png; else it is None.

    Raises: UsageError for unknown features or metrics or a missing path; SmidgenError for unusable
        content, or a reference without a class that was drawn.
    """
    if not images.exists():
        raise UsageError(f"no such file or folder: {images}")
    check_reference(Path(reference), config)
    # before the reference, which may take long to read
    given = _open_file(images) if images.is_file() else _open_folder(images)
    plan = make_plan(config, device_of(config.device))
    known = _reference(plan, Path(reference), config, progress)
    if isinstance(given, SampleBatch):
        measured, source = _measure_file(plan, given, config.batch_size, progress)
    else:
        classes = known[plan.first.name].classes
        strange_classes(given.intended, classes, name_reference(reference), certain=given.certain)
        measured, source = _measure_folder(plan, given, config.batch_size, progress)
    return make_document(plan, measured, known, source, name_reference(reference))


def measure_batches(
    batches: Iterable[ArrayBatch],
    reference: str | Path,
    config: EvaluationConfig,
    *,
    sampling: Mapping[str, Any],
    name: str = "samples",
    classes: Sequence[str] = (),
    captions: bool = False,
    others: Callable[[Sequence[Extractor]], Mapping[str, Others]] | None = None,
    num_images: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`evaluate` of images straight from a sampler; none is held and no file written.

    A batch is (number of its first image, uint8 (B, H, W, 3), class name of each image or None),
    with `captions` its caption in the place of a class. With several processes each gives its own
    part of the batches. `sampling` says how they were drawn, as JSON; `name` is what the protocol
    calls them. A reference without one of `classes` is refused before the first batch. `others`
    draws samples of other prompts, if a metric needs them.

    Raises: as `evaluate`, and what the batches raise.
    """
    check_reference(Path(reference), config)
    plan = make_plan(config, device_of(config.device), others=others is not None)
    if captions:
        if config.prompt != PROMPT:
            raise UsageError(
                f'prompt "{config.prompt}" makes texts of classes, and the images have captions; '
                "leave it out"
            )
        plan = replace(plan, prompt="{}")
    known = _reference(plan, Path(reference), config, progress)
    strange_classes(
        classes, known[plan.first.name].classes, name_reference(reference), certain=True
    )
    if num_images is not None:
        batches = announced(batches, num_images)
    prepared = array_batches(batches, plan.extractors)
    measured = _accumulate(plan, prepared, name, total=num_images, progress=progress)
    identity = array_identity(plan, measured)
    source = Source(
        name=name, identity=identity, sampling=sampling, certain=True, captions=captions
    )
    wanted = any(plan.needs(one, "others") for one in plan.extractors)
    seen = others(plan.extractors) if others is not None and wanted else None
    return make_document(plan, measured, known, source, name_reference(reference), seen)


def measure_drawing(
    drawing: Drawing,
    reference: str | Path,
    config: EvaluationConfig,
    *,
    name: str = "samples",
    facts: Mapping[str, Any] | None = None,
    of_classes: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`measure_batches` of what is drawn, each process drawing its part; `facts` are known of it
    besides its own. `of_classes`: the names of what is drawn are classes, not captions.
    """
    drawn = drawing.batches(part=(processes.rank(), processes.world_size()))
    others = None
    if drawing.base.conditioner is not None:
        acting = replace(drawing.config, edits="all")  # of the delta as it is drawn, a part maybe
        others = partial(draw_others, drawing.base, drawing.delta, acting)
    with closing(drawn):
        return measure_batches(
            (
                (
                    places.start,
                    images,
                    [drawing.name(place) for place in places],
                )
                for places, images in drawn
            ),
            reference,
            config,
            sampling=drawing.facts() | dict(facts or {}),
            name=name,
            classes=drawing.labels.names if of_classes else (),
            captions=not of_classes,
            others=others,
            num_images=drawing.num_images,
            progress=progress,
        )


def check_reference(reference: Path, config: EvaluationConfig) -> None:
    """Raises: UsageError if there is nothing at that path, and it cannot be a hub's name either; or
    for a split of a file.
    """
    reference = locate_reference(reference)
    if config.layout != "hf" and not reference.exists():
        raise UsageError(f"no such file or folder: {reference}")
    if config.split is not None and config.layout == "folder" and reference.is_file():
        raise UsageError(f'{reference} is a file without splits: leave "{config.split}" away')


def _reference(
    plan: Plan, reference: Path, config: EvaluationConfig, progress: Progress | None
) -> dict[str, Statistics]:
    return reference_statistics(
        locate_reference(reference),
        plan.extractors,
        config,
        keep_features={e.name: plan.needs(e, "features") for e in plan.extractors},
        progress=progress,
    )


def _accumulate(plan: Plan, batches: Iterable[Prepared], what: str, **options: Any) -> Measured:
    return accumulate(
        batches,
        plan.extractors,
        plan.metrics,
        what=what,
        prompt=plan.prompt,
        shared=True,
        **options,
    )


@dataclass(frozen=True, kw_only=True)
class _Given:
    """A listed folder, its sampling record, and what each file was meant to show, if known."""

    listed: ImageFolder
    record: SampleRecord | None
    intended: Sequence[str] | None

    @property
    def certain(self) -> bool:
        """Whether the record names what was drawn."""
        return self.record is not None and bool(self.record.images)


def _open_folder(folder: Path) -> _Given:
    listed = scan(folder, decode=False)
    record = read_record(listed.root)
    return _Given(listed=listed, record=record, intended=intended_classes(listed, record))


def _open_file(path: Path) -> SampleBatch:
    batch = open_sample_batch(path) if path.suffix == ".npz" else None
    if batch is None:
        raise UsageError(f"{path} holds no images: give a folder, or a .npz with arr_0")
    return batch


def _measure_folder(
    plan: Plan, given: _Given, batch_size: int, progress: Progress | None
) -> tuple[Measured, Source]:
    listed, record, folder = given.listed, given.record, given.listed.root
    total = len(listed.files)
    starts = processes.shard(range(0, total, batch_size))
    measured = _accumulate(
        plan,
        folder_batches(
            listed,
            plan.extractors,
            [range(start, min(start + batch_size, total)) for start in starts],
            intended=given.intended,
        ),
        f'"{folder}"',
        total=total,
        progress=progress,
    )
    good = [listed.files[place] for place in measured.numbers]
    scanned = with_findings(listed, good, measured.bad)
    warnings = []
    if record is not None and not record.finished:
        warnings.append(f"the sampling into {folder} did not finish; run it again first")
    if scanned.num_bad:
        warnings.append(f"{scanned.num_bad} of the files in {folder} were skipped")
    return measured, Source(
        name=str(folder),
        identity={e.name: content_key(listed, e, measured.hashes) for e in plan.extractors},
        sampling=record.settings if record is not None else None,
        certain=given.certain,
        warnings=tuple(warnings),
        skipped=tuple(scanned.skipped()),
    )


def _measure_file(
    plan: Plan, batch: SampleBatch, batch_size: int, progress: Progress | None
) -> tuple[Measured, Source]:
    path = str(batch.path)
    mine = itertools.islice(
        batch.batches(batch_size), processes.rank(), None, processes.world_size()
    )
    measured = _accumulate(
        plan,
        array_batches(mine, plan.extractors),
        path,
        total=batch.num_images,
        progress=progress,
    )
    identity = array_identity(plan, measured)
    return measured, Source(name=path, identity=identity, sampling=None, certain=False)


def array_identity(plan: Plan, measured: Measured) -> dict[str, str]:
    """What names the content of images that lie in no file, by extractor."""
    total = hashlib.sha256("".join(measured.hashes).encode()).hexdigest()[:32]
    return {extractor.name: f"pixels:{total}" for extractor in plan.extractors}


def intended_classes(folder: ImageFolder, record: SampleRecord | None) -> list[str] | None:
    """The class that each file was meant to show, None if any is unknown."""
    if not folder.flat:
        return [folder.classes[file.class_number] for file in folder.files]
    listed = record.images if record is not None else {}
    found = []
    for file in folder.files:
        match = re.fullmatch(r"\d+-(.+)", file.path.stem)
        name = listed.get(file.path.name) or (match[1] if match else None)
        if name is None:
            return None
        found.append(name)
    return found
