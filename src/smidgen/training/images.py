"""The images of a run as latents: read, encoded where the cache lacks them, with what each is told,
and those of a subject's class beside them.
"""

from __future__ import annotations

import dataclasses
import logging

from smidgen.data.encoded_folder import Share, encode_folder
from smidgen.data.folder import ImageFolder, check_bad_share
from smidgen.data.latents import LatentSet
from smidgen.data.layouts import open_images
from smidgen.models.base import Base
from smidgen.models.prompts import DREAMBOOTH
from smidgen.processes import barrier, rank, world_size
from smidgen.progress import counting_bar
from smidgen.training.buckets import sizes_of
from smidgen.training.captions import captioned, captions_for, look_at_subject, with_subject
from smidgen.training.class_images import class_folder
from smidgen.training.config import RunConfig
from smidgen.training.prompt_list import prompts_as_latents
from smidgen.training.subject import class_prompts, subject_prompts

logger = logging.getLogger(__name__)


def read_latents(base: Base, config: RunConfig, *, progress: bool = False) -> LatentSet:
    """The latents of the images, encoded where the cache lacks them, with their captions; of a
    subject with those of its class, which are drawn where the cache lacks them. Of a list of
    prompts without images these alone.
    """
    if config.has_prompts_alone:
        return prompts_as_latents(base, config.data)
    images = open_images(config.data, layout=config.layout, split=config.split, decode=False)
    check_bad_share(images, config.max_bad_share)
    reader = base.conditioner
    captions = captions_for(config, images, base=base.name, reads_prompts=reader is not None)
    files = None if reader is None else reader.files
    if config.task == DREAMBOOTH and (warning := look_at_subject(files, config, images, base.name)):
        logger.warning("%s", warning)
    latents = _encoded(base, config, images, progress=progress)
    latents = captioned(latents, captions, None if files is None else files.cut)
    if config.task != DREAMBOOTH:
        return latents
    latents = with_subject(latents, config)
    if not config.training.prior_weight:
        return latents
    prompts = class_prompts(config, latents.captions or ())
    drawn = class_folder(base, config, prompts, progress=progress)
    others = _encoded(base, config, drawn, progress=progress)
    if config.class_data is not None:  # of which nobody says what else they show
        prompts = (subject_prompts(config).of_class,)
    told = tuple((prompts[place % len(prompts)],) for place in _places(drawn, others))
    return latents.with_class_images(dataclasses.replace(others, captions=told))


def _places(folder: ImageFolder, latents: LatentSet) -> list[int]:
    """Which file of the folder each image is: bad ones have no latents."""
    places = {folder.name(file.path): number for number, file in enumerate(folder.files)}
    return [places[name] for name in latents.names]


def _encoded(
    base: Base, config: RunConfig, images: ImageFolder, *, progress: bool = False
) -> LatentSet:
    with counting_bar("encoding", progress=progress) as report:
        return encode_folder(
            images,
            base.codec,
            sizes=sizes_of(base, config),
            mode=config.resize,
            flip=config.flip,
            precision=config.cache_precision,
            cache_dir=config.cache_dir,
            progress=report,
            bad_limit=config.max_bad_share,
            share=None
            if world_size() == 1
            else Share(files=slice(rank(), None, world_size()), wait=barrier),
        )
