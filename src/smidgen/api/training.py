"""`train`: a base, images and settings in, a delta out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from smidgen.core.delta import Delta
from smidgen.core.file import is_delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.checks import check_integer
from smidgen.files.names import file_part
from smidgen.files.settings import check_values, fill
from smidgen.interop.embeddings import is_embeddings, read_embeddings
from smidgen.interop.lora import read_lora
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.models.positions import Positions
from smidgen.models.pretrained import load_base
from smidgen.sizes import ImageSize
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.described import defaults_of, recipe_of, settled
from smidgen.training.interrupt import Interrupted
from smidgen.training.mixed import Place, not_mixable, train_mixed
from smidgen.training.randomness import generator_for
from smidgen.training.recipe import check_recipe, read_recipe
from smidgen.training.run import fine_tune
from smidgen.training.start import begun_with, read_start

RUNS = Path("runs")

logger = logging.getLogger(__name__)


def train(
    base: Base | str | Path,
    data: str | Path,
    *,
    method: str = "difffit",
    method_config: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    image_size: ImageSize | int | str | None = None,
    positions: Positions | None = None,
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Delta:
    """Fine-tune `base` to a folder of images and return the delta, which also lies in
    `output`/delta.safetensors.

    `data`: a sub-folder for each class, or images of one class; or what `layout` says (food-101,
    webdataset, hf and others: data/layouts), of which `split` is read, None its default.
    `method`: one, or several as "difffit+lora". `method_config`: its own options, those of several
    by method: {"lora": {"rank": 4}}. `output`: the run's folder, None `runs/<data>-<method>` (with
    a number if that holds another run). A run that was interrupted goes on, a finished one is not
    repeated; with other settings in the same folder `force` starts over.
    `settings`: those of RunConfig, such as resize and flip, and of TrainingConfig, such as steps,
    lr, batch_size, seed; for a base that reads prompts, `prompt` makes those of the classes.

    Raises: UsageError for a setting that makes no sense or a folder of another run; SmidgenError
        for images that cannot be used, a loss that is not finite, a disk that refuses; Interrupted
        after Ctrl-C.
    """
    given = {**settings, "data": data, "output": output or RUNS, "method": method}
    values = check_values(given, RunConfig, TrainingConfig, source="", kind="setting")
    config = replace(
        fill(RunConfig, values),
        method_config=configure(method, method_config),
        training=fill(TrainingConfig, values),
    ).resolved()
    # a data set of the hub has no folder here
    if not (config.layout == "hf" or config.data.is_dir() or config.has_prompts_alone):
        raise UsageError(f"no such folder of images: {data}")
    if not isinstance(base, Base):
        base = load_base(base, image_size=image_size, positions=positions)
    elif image_size is not None and ImageSize.of(image_size) != base.image_size:
        raise UsageError(
            f"image size {image_size}: the base was loaded for {base.image_size}; give load_base "
            "the size"
        )
    elif positions not in (None, base.positions):
        raise UsageError(
            f'positions "{positions}": the base was loaded with {base.positions or "its own"}; '
            "give load_base the positions"
        )
    if output is None:
        config = _with_free_folder(base, config)
    return run(base, config, force=force, progress=progress)


def train_many(
    base: Base, config: RunConfig, *, together: int = 8, force: bool = False
) -> dict[str, Delta | Exception]:
    """A delta for each folder in the folder `config.data`, a data set each, below `config.output`
    under its name: `together` of them at once, in mixed batches of the one base, each with its own
    optimizer, average, validation and checkpoints. What cannot be mixed is trained one after the
    other. The error of one is its result, and the others go on.

    Raises: UsageError for a folder without folders, or fewer than one at once; Interrupted after
        Ctrl-C, when all that were under way are saved.
    """
    check_integer("together", together)
    if not config.data.is_dir():
        raise UsageError(f"no such folder of data sets: {config.data}")
    found = sorted(path for path in config.data.iterdir() if path.is_dir())
    if not found:
        raise UsageError(f"{config.data} has no folders; expected one for each delta")
    each = [replace(config, data=path, output=config.output / path.name) for path in found]
    why = "together is 1" if together == 1 else not_mixable(config.resolved())
    if why is not None:
        logger.info("one after the other: %s", why)
    results: dict[str, Delta | Exception] = {}
    size = together if why is None else 1
    for start in range(0, len(each), size):
        part = each[start : start + size]
        if why is None:
            shared = replace(config, training=settled(base, part[0].resolved()).training)
            runs = [partial(run, base, one, force=force) for one in part]
            trained = train_mixed(
                base, shared, [lambda place, go=go: go(place=place) for go in runs]
            )
        else:
            trained = [_tried(base, one, force) for one in part]
        results |= {one.data.name: result for one, result in zip(part, trained, strict=True)}
        for result in trained:
            if isinstance(result, Interrupted):
                raise result
    return results


def _tried(base: Base, config: RunConfig, force: bool) -> Delta | Exception:
    try:
        return run(base, config, force=force)
    except Exception as error:
        if not isinstance(error, SmidgenError):
            logger.exception("a training failed")
        return error


def run(
    base: Base,
    config: RunConfig,
    *,
    force: bool = False,
    progress: bool = False,
    place: Place | None = None,
) -> Delta:
    """`fine_tune`, which may begin from a LoRA or a word of other programs too."""
    return fine_tune(
        base, config, read_init=_read_init, force=force, progress=progress, place=place
    )


def start_of(base: Base, config: RunConfig, trained: Delta) -> Delta:
    """The delta with which the run that left the `trained` one began: nothing is learned in it but
    what `init` had. For runs that train nothing in text encoders.

    Raises: UsageError, SmidgenError as for a run that begins.
    """
    config = config.resolved()
    delta = build_delta(
        config.method,
        base,
        config.method_config,
        trained.provenance.classes,
        generator_for(config.training.seed, "delta"),
        training={**trained.provenance.training, "step": 0},
        train_labels=config.training.train_labels,
    )
    return delta if config.init is None else begun_with(delta, _read_init(config, base))


def _read_init(config: RunConfig, base: Base) -> Delta:
    path = config.init
    assert path is not None, "it is read where it is given"
    if is_delta(path):
        return read_start(path, base, other_base=config.init_other_base)
    return read_embeddings(path, base) if is_embeddings(path) else read_lora(path, base)


def _with_free_folder(base: Base, config: RunConfig) -> RunConfig:
    """With the first of runs/<data>-<method>, -2, -3 ... that is free or holds this run."""
    name = file_part(f"{config.data.resolve().name}-{config.method}")
    for number in itertools.count(1):
        found = replace(config, output=RUNS / (name if number == 1 else f"{name}-{number}"))
        if not found.output.exists():
            return found
        found = settled(base, found)
        try:
            standing = check_recipe(found.output, recipe_of(base, found), defaults_of(found))
        except UsageError:
            continue
        before = read_recipe(found.output) or {}
        if standing == "new" or before.get("data") == str(found.data):
            return found
    raise AssertionError("unreachable")
