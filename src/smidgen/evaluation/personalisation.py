"""One evaluation of a personalisation: samples of the subject's prompts and of others, with the
delta and, from the same noise, without it, against the subject's own pictures.

Beside each number stand its ceiling, real pictures against each other, and its floor, the base
without the delta. Which prompts is in contexts.py, what is computed in samples.py and numbers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import locate_reference, name_reference
from smidgen.data.folder import Progress
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.contexts import GLYPHS, Prompts, Subject, prompts_of, subject_of, world_of
from smidgen.evaluation.document import Source, make_block, whole_document
from smidgen.evaluation.estimate import announced
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.numbers import Sets, compute
from smidgen.evaluation.pairs import Pair, all_batches, draw_pairs
from smidgen.evaluation.plan import Plan, make_plan
from smidgen.evaluation.reference import reference_statistics
from smidgen.evaluation.run import array_identity, check_reference
from smidgen.evaluation.samples import Samples
from smidgen.evaluation.similarity import directions, mean_cosine, mean_of_pairs, paired_cosine
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.stream import Measured, accumulate, array_batches
from smidgen.evaluation.table import METRICS, OF_SUBJECT
from smidgen.models.base import Base
from smidgen.models.calling import device_of
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import SamplingConfig

KEEPS = frozenset({"diversity"})  # accumulating for it keeps the features
NOT_OF_SUBJECTS = ("classes", "probabilities")  # needs that samples of one subject do not meet
COLOURS = ("ink", "ground", "ink_and_ground")
NEARNESS = ("clip_i", "dino_i")


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What was drawn of a subject and others, and how extractors saw it."""

    plan: Plan
    subject: Subject
    prompts: Prompts
    pairs: tuple[Pair, Pair]
    measured: Measured
    reference: str

    def sets(self, extractor: Extractor, known: Statistics) -> tuple[Sets, Sets]:
        """The subject's samples and the pictures `known`, with the delta and without."""
        whole, (own, others) = self.measured.accumulated[extractor.name], self.pairs
        count, both = own.num_images, 2 * own.num_images
        tuned, plain = whole.part(slice(count)), whole.part(slice(count, both))
        assert tuned.features is not None, "features are kept for the diversity"
        assert plain.features is not None, "they are of the same set"
        assert whole.features is not None, "and of the whole"
        if known.features is None:
            raise SmidgenError(
                f"{self.reference} has no pictures of the subject; give their folder"
            )
        colours, base_colours = own.all_colours()
        samples = Samples(
            subject=tuned.features,
            base=plain.features,
            prompt=own.prompt,
            reference=known.features,
            colours=colours,
            base_colours=base_colours,
        )
        sets = Sets(
            made=tuned,
            known=known,
            extractor=extractor,
            intended=tuned.intended,
            prompt="{}",
            samples=samples,
            others=others.seen(whole.features[both:]),
        )
        return sets, replace(sets, made=plain)


def measure_personalisation(
    base: Base,
    delta: Delta,
    reference: str | Path,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    *,
    name: str = "samples",
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document of a delta that was trained on a subject, whose pictures are the `reference`.

    `sampling` says how samples are drawn and how many of the subject (None: four of each prompt);
    as many of a prompt are drawn of others. `facts` are known of the drawing besides its own. With
    several processes each draws a part.

    Raises: UsageError for features or metrics that there are not, or that are of no use here;
        SmidgenError for a reference that is no pictures, or a delta that names no subject.
    """
    check_reference(Path(reference), config)
    subject, world = subject_of(delta.provenance.training[DREAMBOOTH]), world_of(base)
    plan = _plan(config, world.features, colours=world is GLYPHS)
    known = reference_statistics(
        locate_reference(reference),
        plan.extractors,
        config,
        keep_features={extractor.name: True for extractor in plan.extractors},
        progress=progress,
    )
    prompts = prompts_of(subject, world)
    pairs = draw_pairs(base, delta, prompts, sampling)
    study = Study(
        plan=plan,
        subject=subject,
        prompts=prompts,
        pairs=pairs,
        measured=_accumulate(plan, pairs, name, progress),
        reference=name_reference(reference),
    )
    facts = pairs[0].tuned.facts() | dict(facts or {})
    return _document(study, known, name, facts)


def _plan(config: EvaluationConfig, features: str, *, colours: bool) -> Plan:
    """The features and metrics of a personalisation. Raises: UsageError."""
    for name in config.metric_names or ():
        if METRICS[name].needs in NOT_OF_SUBJECTS:
            raise UsageError(
                f"{name} is not of a personalisation: draw images (smidgen sample) and evaluate "
                "their folder, or leave it out"
            )
    chosen = config if config.features is not None else replace(config, features=features)
    available = [name for name in OF_SUBJECT if colours or name not in COLOURS]
    return make_plan(chosen, device_of(config.device), available, others=True)


def _accumulate(
    plan: Plan, pairs: tuple[Pair, Pair], name: str, progress: Progress | None
) -> Measured:
    """All images: of each pair those with the delta, then those without."""
    total = sum(2 * pair.num_images for pair in pairs)
    return accumulate(
        array_batches(announced(all_batches(pairs), total), plan.extractors),
        plan.extractors,
        {features: metrics | KEEPS for features, metrics in plan.metrics.items()},
        what=name,
        shared=True,
        total=total,
        progress=progress,
    )


def _document(
    study: Study, known: Mapping[str, Statistics], name: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    identity = array_identity(study.plan, study.measured)
    blocks = {
        extractor.name: _block(study, extractor, known[extractor.name], identity[extractor.name])
        for extractor in study.plan.extractors
    }
    source = Source(name=name, identity=identity, sampling=facts, certain=True)
    own, others = study.pairs
    document = whole_document(study.plan, blocks, source, None, own.num_images, [])
    document["protocol"]["personalisation"] = {
        "token": study.subject.token,
        "class_name": study.subject.class_name,
        "prompts": list(study.prompts.said),
        "other_prompts": list(study.prompts.others),
        "num_other_images": others.num_images,
    }
    return document


def _block(study: Study, extractor: Extractor, known: Statistics, identity: str) -> dict[str, Any]:
    """What belongs to one extractor, with ceilings, floors and the numbers of each prompt."""
    tuned, plain = study.sets(extractor, known)
    block = make_block(tuned, study.plan, identity, study.reference)
    metrics = block["metrics"]
    of_sets = [name for name in metrics if METRICS[name].needs not in ("samples", "others")]
    floors, _ = compute(of_sets, plain)
    baselines = {
        f"{name}_of_base": found.value
        for name, found in floors.items()
        if f"{name}_of_base" in METRICS[name].baselines
    }
    baselines |= _ceilings(tuned, of_sets, study.subject)
    block["baselines"] = baselines | block.get("baselines", {})
    for name in (name for name in NEARNESS if metrics.get(name) is not None):
        way = share_of_way(
            metrics[name], baselines[f"{name}_of_base"], baselines[f"{name}_of_reference"]
        )
        if way is not None:
            block["notes"].setdefault(name, []).append(f"{way:.0%} of the way")
    return block | {"by_prompt": _by_prompt(tuned, study.prompts, of_sets)}


def _ceilings(sets: Sets, names: list[str], subject: Subject) -> dict[str, float | None]:
    """The same of real pictures: each against the others, or against the class's own prompt."""
    real, text = sets.known.features, sets.extractor.text
    assert real is not None, "the reference of a study has features"
    found: dict[str, float | None] = {
        f"{name}_of_reference": mean_of_pairs(real) for name in NEARNESS if name in names
    }
    if "clip_t" in names and text is not None:
        of_class = text([subject.class_prompt]).cpu().expand(len(real), -1)
        found["clip_t_of_reference"] = float(paired_cosine(real, of_class).mean())
    return found


def share_of_way(value: float | None, floor: float | None, ceiling: float | None) -> float | None:
    """(value - floor) / (ceiling - floor); None if one is unknown, or the ceiling is no higher."""
    if value is None or floor is None or ceiling is None or ceiling <= floor:
        return None
    return (value - floor) / (ceiling - floor)


def _by_prompt(sets: Sets, prompts: Prompts, names: list[str]) -> dict[str, dict[str, float]]:
    """For each prompt that was drawn, the nearness of its samples to the subject and to its text,
    as far as these are among `names`.
    """
    samples, known, texts = sets.samples, sets.known.mean_direction, sets.made.text_cosines
    assert samples is not None, "a study has samples"
    found: dict[str, dict[str, float]] = {}
    for place, prompt in enumerate(prompts.drawn):
        rows = samples.prompt == place
        if not rows.any():
            continue  # fewer samples than prompts
        numbers: dict[str, float] = {}
        if known is not None:
            near = mean_cosine(directions(samples.subject[rows]).mean(dim=0), known)
            numbers |= {name: near for name in NEARNESS if name in names}
        if "clip_t" in names and texts is not None:
            numbers["clip_t"] = float(texts[rows].mean())
        found[prompt] = numbers
    return found
