"""The images of a subject's class, on which a personalisation is trained beside those of the
subject: of a folder or, drawn by the base of the prompt of the class, once, in the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from PIL import Image

from smidgen.data.folder import ImageFolder, check_bad_share
from smidgen.data.images import UnusableImage, decode, read_bytes
from smidgen.data.layouts import open_images
from smidgen.diffusion.process import Diffusion
from smidgen.files.places import default_cache_dir
from smidgen.files.writing import write_png
from smidgen.models.base import Base
from smidgen.processes import barrier, gather_objects, is_main, rank, world_size
from smidgen.progress import counting_bar
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare
from smidgen.training.config import RunConfig
from smidgen.training.randomness import derived_seed

# As the adapter paper samples; a base with the scale as an input is told what its makers use.
STEPS, GUIDANCE, EMBEDDED_GUIDANCE = 25, 7.0, 3.5
PIXELS = 2**20  # drawn at once
SEED = derived_seed(0, "class images")  # of no run's samples, and the same in all runs
REMEDY = "make room, or give another --cache-dir"


def class_folder(
    base: Base, config: RunConfig, prompts: tuple[str, ...], *, progress: bool = False
) -> ImageFolder:
    """The images of the class, of `config.class_data` or drawn where the cache lacks them, image i
    of prompt i mod K.

    Raises: SmidgenError for a folder without usable images or with too many bad files, or a disk
        that refuses.
    """
    if config.class_data is not None:
        given = open_images(config.class_data, decode=False)
        check_bad_share(given, config.max_bad_share)
        return given
    drawing = drawing_of(base, config, prompts)
    place = (config.cache_dir or default_cache_dir()) / "class-images" / key_of(drawing)
    files = [place / f"{number:06d}.png" for number in range(drawing.num_images)]
    fill(drawing, files, progress=progress)
    barrier()
    found = open_images(place, decode=False)
    # more may lie there, of a run that asked for more
    listed = tuple(file for file in found.files if file.path in set(files))
    return dataclasses.replace(found, files=listed, bad=())


def drawing_of(base: Base, config: RunConfig, prompts: tuple[str, ...]) -> Drawing:
    """What the base draws of its class, whatever the run's own seed: one set serves all runs."""
    process = base.process
    most = process.most_steps(process.preview_sampler)
    usual = EMBEDDED_GUIDANCE if base.family.guidance == "embedded" else GUIDANCE
    sampling = SamplingConfig(
        prompt=prompts,
        num_images=config.class_images,
        steps=STEPS if most is None else min(STEPS, most),
        sampler=process.preview_sampler,
        guidance=usual if config.class_guidance is None else config.class_guidance,
        seed=SEED,
        batch_size=max(1, min(64, PIXELS // base.image_size.area)),
    )
    return prepare(base, sampling)


def key_of(drawing: Drawing) -> str:
    """By all that an image depends on besides its number: not on how many there are."""
    base, process = drawing.base, drawing.base.process
    files = None if base.conditioner is None else base.conditioner.files
    if isinstance(process, Diffusion):
        noise = hashlib.sha256(process.schedule.alphas_cumprod.numpy().tobytes()).hexdigest()
        how = [process.name, process.prediction, noise]
    else:
        sigmas = process.schedule.sigmas(drawing.config.steps, process.num_tokens)
        how = [process.name, sigmas.tolist()]
    facts = {name: v for name, v in drawing.facts().items() if name not in ("base", "num_images")}
    encoders = None if files is None else files.fingerprint
    spec = [facts, base.codec.fingerprint, encoders, how]
    return hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:32]


def fill(drawing: Drawing, files: list[Path], *, progress: bool = False) -> None:
    """Draw those of the files, image by image, that are not there or damaged. Of several processes
    each draws its share of the batches; a killed one keeps what it wrote.

    Raises: SmidgenError if the disk refuses.
    """
    size = drawing.config.batch_size
    own = range(0, len(files), size)[rank() :: world_size()]
    batches = [range(start, min(start + size, len(files))) for start in own]
    missing = [[number for number in batch if not _is_whole(files[number])] for batch in batches]
    done, total = 0, sum(map(len, missing))
    drawn = sum(map(bool, missing))
    idle = max(gather_objects(drawn)) - drawn
    with counting_bar("drawing class images", progress=progress and is_main()) as report:
        for numbers in filter(None, missing):
            for number, image in zip(numbers, drawing.images(numbers), strict=True):
                write_png(Image.fromarray(image), files[number], REMEDY)
            done += len(numbers)
            report(done, total)
    drawing.go_along(idle)


def _is_whole(path: Path) -> bool:
    try:
        decode(read_bytes(path), path)
    except UnusableImage:
        return False
    return True
