"""The captions that are drawn of a delta that knows no classes: those of the reference's images.

Images are drawn for the captions of real ones and compared with these as a set, and each with its
own caption, as text-to-image models are judged on COCO (Ramesh et al. 2021, arXiv 2102.12092, 4).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smidgen.data.captions import distinct, read_captions
from smidgen.data.embedded_sets import locate_reference
from smidgen.data.layouts import open_images
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig


def captions_of(
    reference: str | Path, config: EvaluationConfig, num_images: int
) -> tuple[str, ...]:
    """As many captions of the reference's images as there are images to draw, or all if there are
    fewer, each once; in an arbitrary order that is always the same, as images may lie by classes.

    Raises: UsageError for a reference without captions; SmidgenError for captions that cannot be
        read.
    """
    place = locate_reference(reference)
    if not place.is_file() or config.layout != "folder":
        folder = open_images(place, layout=config.layout, split=config.split, decode=False)
        captions = read_captions(folder)
        if captions.source != "none":
            found = distinct(captions.of(folder))
            order = np.random.default_rng(0).permutation(len(found))[:num_images]
            return tuple(found[number] for number in order)
    raise UsageError(
        f"the delta names no classes, and {reference} has no captions that could be drawn: give a "
        "reference whose images have some, or draw images (smidgen sample --prompt) and evaluate "
        "their folder"
    )
