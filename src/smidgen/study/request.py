"""All that a run of a study does, as the objects of the other verbs: what its values of the recipe
mean. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smidgen.data.embedded_sets import EMBEDDED, LINE_DRAWINGS, NAMES, SETS, locate_reference
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.files.places import default_cache_dir
from smidgen.files.settings import check_values, fill, flatten, make, settings_of
from smidgen.files.standing import changed
from smidgen.methods import resolve
from smidgen.models.chosen import TrainedBase
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import MEASURED_IMAGES, MeasuredSampling
from smidgen.study.design import DRAWN, FIRST, Design, Settings
from smidgen.training.config import RunConfig, TrainingConfig

REFERENCE = "reference"  # the one setting of a level that is the evaluation's
BEGUN_FROM = "begun-from"  # the folder of first trainings, in a study's

# settings that change no number, or that say where something lies on this machine
NOT_COMPARED = (
    *("output", "data", "cache_dir", "device", "batch_size_of_evaluation", "num_threads"),
    *("checkpoint_every", "keep_checkpoints", "trackers", "sample_every", "max_bad_share"),
    *("offload", "shard"),
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that a run does, as the objects of the other verbs; `data` is its name in the recipe and
    `reference` None that of a personalisation, the pictures themselves. `first` is the training
    from whose delta this one begins, of which nothing is measured.
    """

    base: TrainedBase
    config: RunConfig
    sampling: MeasuredSampling
    evaluation: EvaluationConfig
    data: str
    reference: Path | None
    first: Request | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON, by names that say whose it is; of the
        first training what it has otherwise.
        """
        values = flatten(self.base, self.config, self.config.training, self.config.method_config)
        values = {name: one for name, one in values.items() if name not in NOT_COMPARED}
        sampling = {f"sampling.{name}": one for name, one in self.sampling.facts().items()}
        measured = {
            f"evaluation.{name}": one
            for name, one in flatten(self.evaluation).items()
            if name not in (*NOT_COMPARED, "batch_size")
        }
        given = {"data": self.data, REFERENCE: None if self.reference is None else self.shown}
        facts = json.loads(json.dumps(given | values | sampling | measured, default=str))
        if self.first is not None:
            first = self.first.facts
            facts |= {FIRST + name: first[name] for name in first if first[name] != facts.get(name)}
        return facts

    @property
    def num_images(self) -> int:
        """Samples that are measured of a set, which is no subject's."""
        return self.sampling.num_images or MEASURED_IMAGES

    @property
    def trainings(self) -> tuple[RunConfig, ...]:
        """What is trained, the first one first."""
        return (*(() if self.first is None else self.first.trainings), self.config)

    @property
    def shown(self) -> str:
        """What the reference is called: the same on every machine for a shipped one."""
        assert self.reference is not None, "a personalisation has no reference of its own"
        if self.reference.is_relative_to(str(EMBEDDED)):
            return self.reference.parent.name
        shipped = self.reference.is_relative_to(sets_place())
        return str(self.reference.relative_to(sets_place()) if shipped else self.reference)


def defaults_of(request: Request) -> dict[str, Any]:
    """The facts of a request with only what must be given, as far as they have defaults."""
    found = settings_of(TrainedBase, RunConfig, TrainingConfig, type(request.config.method_config))
    found |= settings_of(EvaluationConfig, prefix="evaluation.")
    found |= settings_of(MeasuredSampling, prefix="sampling.")
    known = request.facts
    return json.loads(
        json.dumps({n: one.default for n, one in found.items() if n in known}, default=str)
    )


def request_of(
    design: Design, values: Mapping[str, Any], *, seed: int, output: Path, where: str
) -> Request:
    """The objects that these values of the recipe mean, trained in `output`. `where` begins what is
    said of a mistake. Raises: UsageError.
    """
    first = {key.removeprefix(FIRST): one for key, one in values.items() if key.startswith(FIRST)}
    values = {key: one for key, one in values.items() if not key.startswith(FIRST)}
    begun = None
    if first:
        place = design.output / BEGUN_FROM / output.relative_to(design.output)
        begun = request_of(design, values | first, seed=seed, output=place, where=where)
    if "seed" in values:
        raise UsageError(
            f"{where}: a seed is set, and those of a study are its replicates; give seeds"
        )
    reference, data = values.pop(REFERENCE, None), values.get("data")
    if not isinstance(data, str):
        raise UsageError(f"{where}: nothing says what to train on; give data")
    values |= {"data": str(place_of(data)), "output": str(output), "seed": seed}
    drawn = {key.removeprefix(DRAWN): values.pop(key) for key in [*values] if key.startswith(DRAWN)}
    method = resolve(str(values.get("method", "difffit")))
    groups = (TrainedBase, RunConfig, TrainingConfig, method.config)
    try:
        checked = check_values(values, *groups, source="")
        config = replace(
            fill(RunConfig, checked),
            method_config=fill(method.config, checked),
            training=fill(TrainingConfig, checked),
        ).resolved()
        sampling = make(MeasuredSampling, {"seed": seed, **design.table.sampling, **drawn})
        evaluation = make(EvaluationConfig, _as_data(design, config, reference))
        base = fill(TrainedBase, checked)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    for name in ("keep_samples", "of_data"):
        if getattr(design.table, name) and config.task == DREAMBOOTH:
            raise UsageError(f"{where}: {name} is for images of classes; leave it out")
    if design.table.before and (config.task == DREAMBOOTH or config.encodes_in_step):
        raise UsageError(
            f"{where}: before is of no use to a subject, which has the numbers of the base beside "
            "its own, nor where text encoders are trained; leave it out"
        )
    if reference is None and config.task != DREAMBOOTH:
        tested = {**{name: name for name in SETS}, LINE_DRAWINGS: f"{LINE_DRAWINGS}/test"}
        reference = tested.get(data)
        if reference is None:
            raise UsageError(
                f"{where}: nothing says what samples are compared with; give reference"
            )
    request = Request(
        base=base,
        config=config,
        sampling=sampling,
        evaluation=evaluation,
        data=data,
        reference=None if reference is None else _reference_place(str(reference)),
        first=begun,
    )
    _check_first(request, where)
    return request


def _check_first(request: Request, where: str) -> None:
    """Raises: UsageError for a first training from whose delta the other one cannot begin."""
    first = request.first
    if first is None:
        return
    if request.config.init is not None:
        raise UsageError(f"{where}: init and init_from both say what it begins from; give one")
    ours, theirs = (
        {"base": one.base.base, "method": one.config.method, **flatten(one.config.method_config)}
        for one in (request, first)
    )
    if different := changed(theirs, ours):
        raise UsageError(
            f"{where}: init_from has another base, method or options ({', '.join(different)}); a "
            "delta begins from one with the same"
        )


def _as_data(design: Design, config: RunConfig, reference: Any) -> Settings:
    """The settings of the evaluation; a reference that is the data's own folder is read as that is,
    in its layout and split.
    """
    own = reference is not None and Path(str(reference)) == config.data
    read = {"layout": config.layout, "split": config.split} if own else {}
    return {name: one for name, one in read.items() if one is not None} | design.table.evaluation


def place_of(data: str) -> Path:
    """The folder of images that a recipe means: a path, or a shipped set in the cache folder, its
    train/ unless another part is named (`hebrew/test`, `subjects/owl-ink`).
    """
    name, _, part = data.partition("/")
    if Path(data).exists() or name not in NAMES:
        return Path(data)
    return sets_place() / name / (part or "train")


def sets_place() -> Path:
    """Where shipped sets lie as folders of images."""
    return default_cache_dir() / "sets"


def _reference_place(reference: str) -> Path:
    """The images or statistics that a recipe means: a part of a shipped set, a shipped set's own
    statistics, or a path.
    """
    return place_of(reference) if "/" in reference else locate_reference(reference)
