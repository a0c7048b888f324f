"""`evaluate` and `compare`: a run, a delta or a folder of images against a reference.

Of a run and a delta the samples go straight from the sampler to the metrics: none is held and none
written. With several processes (torchrun) each draws and measures its part.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from smidgen import processes
from smidgen.core.delta import Delta
from smidgen.data.folder import Progress
from smidgen.errors import UsageError
from smidgen.evaluation import run
from smidgen.evaluation.plan import check_names
from smidgen.files.settings import make
from smidgen.models.base import Base
from smidgen.models.calling import DTYPES
from smidgen.models.labels import class_names
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.sampling.folder import sha256_of
from smidgen.training.recipe import RECIPE, read_recipe

DELTA = "delta.safetensors"
NUM_IMAGES = 10_000  # of a run or a delta, as published numbers are

Kind = Literal["run", "delta", "images"]


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
    settings["device"] = processes.own_device(str(settings.get("device", "cpu")))
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
    count = sampling.num_images or NUM_IMAGES
    sampling = replace(sampling, num_images=count, batch_size=config.batch_size)
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
    if not class_names(base, delta):
        raise UsageError(
            f'base "{base.name}" reads prompts and this delta was trained on none: draw images '
            "(smidgen sample --prompt) and evaluate their folder"
        )
    return run.measure_drawing(
        prepare(base, sampling, delta=delta),
        reference,
        name=str(source),
        facts={"delta_sha256": sha256_of(path)},
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
