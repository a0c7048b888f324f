"""Copies of training pictures among the images that a delta draws: each image's nearest training
picture, on the scale of how near training pictures are to each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from smidgen.core.delta import Delta
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from smidgen.evaluation.captions import captions_of
from smidgen.evaluation.contexts import world_of
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.names import DEFAULT
from smidgen.evaluation.neighbours import Scale, scale_of
from smidgen.evaluation.reference import reference_statistics
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.stream import array_batches
from smidgen.files.run_files import RECIPE
from smidgen.files.toml import NONE
from smidgen.files.writing import write_png
from smidgen.library.config import CopiesConfig
from smidgen.library.files import COPIES, beside
from smidgen.library.record import Copies
from smidgen.library.sheet import SHOWN, Pair, sheet_of
from smidgen.models.base import Base
from smidgen.models.labels import class_names
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare
from smidgen.training.recipe import read_recipe

Progress = Callable[[int, int], None]


def find_copies(
    base: Base,
    delta: Delta,
    path: Path,
    config: CopiesConfig,
    sampling: SamplingConfig,
    most: float,
    progress: Progress | None = None,
) -> Copies:
    """What `delta`, whose file is `path`, draws that is too near to a picture it was trained on;
    the nearest pairs are shown in copies.png beside it. It passes if no more than the share `most`
    may be copies, by the upper end of its 95 % interval.

    Raises: SmidgenError if the training pictures are not there, are others than it was trained on,
        or so few that real ones would fail too; as `prepare` and `load_extractor`.
    """
    config = with_pictures(config, path)
    assert config.data is not None, "the pictures are known"
    features = config.features or (DEFAULT if base.conditioner is None else world_of(base).features)
    extractor = load_extractor(features, base.device, weights=config.weights, resize=config.resize)
    known = reference_statistics(
        config.data, [extractor], config, keep_features={extractor.name: True}
    )[extractor.name]
    if known.features is None:
        raise SmidgenError(f"{config.data} holds no features; give the training pictures as data")
    check_pictures(delta, known, config.data)
    try:
        scale = scale_of(known.features, extractor.device)
    except ValueError as error:
        raise SmidgenError(f"copies cannot be told in {config.data}: {error}") from error
    if scale.by_chance >= most:
        raise SmidgenError(
            f"with {len(known.features)} training pictures about {scale.by_chance:.1%} of other "
            f"real ones would count as copies, and most_copied is {most:g}; give more"
        )

    asked = _with_captions(base, delta, config, sampling)
    drawing = prepare(base, asked, delta=delta)
    copied, pairs = _search(drawing, extractor, scale, progress)
    pictures = open_images(
        config.data, layout=config.layout, split=config.split, decode=known.num_skipped > 0
    )
    page = beside(path, COPIES)
    write_png(sheet_of(pairs, pictures), page)
    captions = {"prompt": f"{len(asked.prompt):,} captions of the training pictures"}
    told = captions if asked.prompt else {}
    total = drawing.num_images
    low, high = _interval(copied, total)
    reason = (
        f"{copied} of {total} images are as near to a training picture as copies are, up to "
        f"{high:.1%} of all; expected at most {most:.1%} (see {page.name})"
    )
    return Copies(
        num_images=total,
        num_pictures=len(known.features),
        copied=copied,
        share=copied / total,
        share_low=low,
        share_high=high,
        by_chance=scale.by_chance,
        most=most,
        distance=scale.distance,
        passed=high <= most,
        reason=None if high <= most else reason,
        page=page.name,
        protocol={
            "features": extractor.name,
            "features_sha256": extractor.sha256,
            "resize": extractor.resize,
            "pictures_identity": known.identity,
            "sampling": drawing.facts() | told,
        },
    )


def _interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Clopper and Pearson (1934) of a share."""
    from scipy.stats import binomtest  # takes its time, and nothing else here needs it

    found = binomtest(count, total).proportion_ci(method="exact")
    return float(found.low), float(found.high)


def _search(
    drawing: Drawing, extractor: Extractor, scale: Scale, progress: Progress | None
) -> tuple[int, list[Pair]]:
    """How many of the images are copies, and the pairs that are nearest."""
    worst: list[tuple[float, int, Pair]] = []  # a heap, the farthest pair first
    copied = 0
    for numbers, images in drawing.batches(report=progress):
        (prepared,) = array_batches([(numbers.start, images, None)], [extractor])
        found = extractor.read(prepared.pixels[extractor.name])[0].cpu()
        if not torch.isfinite(found).all():
            raise SmidgenError(f"a feature of images {numbers.start} and on is not finite")
        distances, places, near = scale.nearest(found)
        copied += int(near.sum())
        rows = zip(numbers, images, distances.tolist(), places.tolist(), strict=True)
        for number, image, distance, place in rows:
            one = (-distance, number, Pair(drawn=image, picture=place, distance=distance))
            (heapq.heappush if len(worst) < SHOWN else heapq.heappushpop)(worst, one)
    return copied, [pair for _, _, pair in worst]


def with_pictures(config: CopiesConfig, path: Path) -> CopiesConfig:
    """With the training pictures that the recipe beside a delta names, where none are given.

    Raises: SmidgenError if it names none, or they are gone.
    """
    if config.data is None:
        recipe = read_recipe(path.parent) or {}
        if not isinstance(recipe.get("data"), str):
            raise SmidgenError(
                f"no {RECIPE} beside {path.name} says what it was trained on; give data"
            )
        read = {name: recipe.get(name, NONE) for name in ("layout", "split")}
        given = {name: value for name, value in read.items() if value != NONE}
        config = replace(config, data=Path(recipe["data"]), **given)
    if config.layout != "hf" and not Path(str(config.data)).exists():
        raise SmidgenError(f"its training pictures {config.data} are not there; give data")
    return config


def check_pictures(delta: Delta, known: Statistics, place: Path) -> None:
    """Raises: SmidgenError for another number of pictures than the delta was trained on, or a class
    of one picture alone: the nearest other one is then of another class, and tells nothing.
    """
    count = known.gaussian.count
    trained = (delta.provenance.training.get("data") or {}).get("images")
    if isinstance(trained, int) and trained != count:
        raise SmidgenError(
            f"{place} has {count:,} pictures and the delta was trained on {trained:,}; give these "
            "as data"
        )
    for number, name in enumerate(known.classes):
        if int((known.class_numbers == number).sum()) < 2:
            raise SmidgenError(
                f'of class "{name}" there is one training picture, and nothing says how near two '
                "different ones would be; leave most_copied out"
            )


def _with_captions(
    base: Base, delta: Delta, config: CopiesConfig, sampling: SamplingConfig
) -> SamplingConfig:
    """With the captions of the training pictures, where the delta was trained on such: of these
    come copies first (Somepalli et al. 2023, arXiv 2305.20086).
    """
    knows_what = delta.provenance.training.get(DREAMBOOTH) or class_names(base, delta)
    if base.conditioner is None or knows_what or config.data is None:
        return sampling
    assert sampling.num_images is not None, "the gate says how many"
    captions = captions_of(config.data, config, sampling.num_images)
    return replace(sampling, prompt=captions)
