"""`evaluate` and `compare`: a run, a delta or a folder of images against a reference.

Of a run and a delta the samples go straight from the sampler to the metrics: none is held and none
written. With several processes (torchrun) each draws and measures its part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from smidgen.api.sampling import DEFAULT_SAMPLER, FLOW_SAMPLER, sample_arrays
from smidgen.core.delta import Delta
from smidgen.data.folder import Progress
from smidgen.diffusion.guidance import Channels
from smidgen.errors import UsageError
from smidgen.evaluation import processes, run
from smidgen.evaluation.plan import check_names
from smidgen.evaluation.stream import ArrayBatch
from smidgen.files.settings import make
from smidgen.models.base import Base
from smidgen.models.pretrained import load_base
from smidgen.training.network import class_names
from smidgen.training.recipe import RECIPE, read_recipe

DELTA = "delta.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Kind = Literal["run", "delta", "images"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the samples of a run or a delta are drawn.

    `num_images` in all, image i of class i mod K. `sampler` None: the base's own, "euler" for a
    flow and else "ddpm". `precision` is the denoiser's.
    """

    num_images: int = 10_000
    steps: int = 50
    sampler: str | None = None
    guidance: float = 1.5
    guidance_channels: Channels = "all"
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


def evaluate(
    source: str | Path,
    reference: str | Path,
    *,
    base: Base | str | Path | None = None,
    codec: str | Path | None = None,
    image_size: int | None = None,
    frequency_shift: float | None = None,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The metrics of a run's folder, a delta's file or a folder of images, as result.json has them.

    Of a run and a delta, samples are drawn as `sampling` says (None: as its defaults do), of the
    classes that it was trained on, in their prompts if the base reads such. `base` None: the one
    that the run's recipe or the delta's header names; `codec`, `image_size` and `frequency_shift`
    are as in `load_base`, None: as the recipe has them. `reference`, `settings` (features, metrics,
    batch_size, device, cache_dir, weights, resize, layout, split, prompt) and the result are as in
    `smidgen.evaluation.run.evaluate`; progress(done, total) is called as images are read or drawn.

    Raises: UsageError for a setting that makes no sense, or sampling asked of images that are drawn
        already; SmidgenError for content that cannot be used, a delta of another base, or a
        reference without a class that is drawn.
    """
    source = Path(source)
    settings["device"] = own_device(settings.get("device", "cpu"))
    if source_kind(source) == "images":
        if sampling is not None or base is not None:
            raise UsageError(f"{source} holds images: base and sampling are for a run or a delta")
        return run.evaluate(source, reference, progress=progress, **settings)
    config = make(run.EvaluationConfig, settings)
    run.check_reference(Path(reference), config)
    check_names(config.features, config.metrics, config.prompt)
    path = source / DELTA if source.is_dir() else source
    delta = Delta.load(path)  # before the base, which may take long
    sampling = sampling or SamplingConfig()
    if not isinstance(base, Base):
        recipe = recipe_of(source)
        given = {"codec": codec, "frequency_shift": frequency_shift}
        if base is None:  # then all that goes with it is the recipe's too
            given = {name: recipe.get(name) if v is None else v for name, v in given.items()}
        base = load_base(
            base or recipe.get("base") or delta.provenance.base,
            device=config.device,
            dtype=DTYPES[sampling.precision],
            image_size=image_size or recipe.get("image_size"),
            **given,
        )
    sampling = _resolved(base, delta, sampling)
    batches = _batches(base, delta, sampling, config.batch_size)
    with closing(batches):
        return run.measure_batches(
            batches,
            reference,
            sampling=_facts(base, delta, path, sampling),
            name=str(source),
            classes=class_names(base, delta),
            num_images=sampling.num_images,
            progress=progress,
            **settings,
        )


def source_kind(source: Path) -> Kind:
    """What there is to evaluate: a run (a folder with a recipe), a delta's file, or images.

    Raises: UsageError if it is nothing of these, or the run has not left its delta.
    """
    if source.is_dir():
        if (source / DELTA).is_file():
            return "run"
        if (source / RECIPE).is_file():
            raise UsageError(f"{source} is a run without {DELTA}: train it to its end first")
        return "images"
    if not source.exists():
        raise UsageError(f"no such file or folder: {source}")
    if source.suffix == ".npz":
        return "images"
    if source.suffix == ".safetensors":
        return "delta"
    raise UsageError(f"{source} is no run, no delta ({DELTA}), no folder of images and no .npz")


def recipe_of(source: Path) -> dict[str, Any]:
    """The recipe of the run that the source is or lies in; empty without one."""
    return read_recipe(source if source.is_dir() else source.parent) or {}


def own_device(device: torch.device | str) -> torch.device | str:
    """The device of this process: each of several on one machine takes its own accelerator."""
    if str(device) == "cuda" and processes.world_size() > 1:
        return f"cuda:{processes.local_rank()}"
    return device


def _resolved(base: Base, delta: Delta, sampling: SamplingConfig) -> SamplingConfig:
    """With the sampler named. Raises: UsageError if there is nothing to draw by itself."""
    if not class_names(base, delta):
        raise UsageError(
            f'base "{base.name}" reads prompts and this delta was trained on none: draw images '
            "(smidgen sample --prompt) and evaluate their folder"
        )
    default = FLOW_SAMPLER if base.objective == "flow" else DEFAULT_SAMPLER
    return replace(sampling, sampler=sampling.sampler or default)


def _batches(
    base: Base, delta: Delta, sampling: SamplingConfig, batch_size: int
) -> Generator[ArrayBatch, None, None]:
    """This process's part of the samples with the names of their classes."""
    names = class_names(base, delta)
    drawn = sample_arrays(
        base,
        delta=delta,
        num_images=sampling.num_images,
        steps=sampling.steps,
        sampler=sampling.sampler,
        guidance=sampling.guidance,
        guidance_channels=sampling.guidance_channels,
        seed=sampling.seed,
        batch_size=batch_size,
        part=(processes.rank(), processes.world_size()),
    )
    # a generator of its own, so that sample_arrays checks everything at this call
    return (
        (places.start, images, [names[label] for label in labels])
        for places, images, labels in drawn
    )


def _facts(base: Base, delta: Delta, path: Path, sampling: SamplingConfig) -> Mapping[str, Any]:
    """What the samples depend on, under the names that sample.json has."""
    return {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "delta_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "method": delta.provenance.method,
        "classes": "all",
        "image_size": base.image_size,
        **asdict(sampling),
    }
