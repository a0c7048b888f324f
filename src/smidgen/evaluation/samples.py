"""The metrics of a delta in a base that reads prompts that no two sets of images have: how samples
of one prompt differ, how far other prompts drift, whether colours are those of the prompt.

Letters: N samples of the subject's prompts, M of others, R real pictures, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.evaluation.glyph_colours import asked_colours, grounds_of, inks_of
from smidgen.evaluation.similarity import mean_of_pairs, mean_spread, paired_cosine
from smidgen.evaluation.table import Found

UNPAIRED = "there is one sample of a prompt; give more --num-images"
COLOURLESS = "no prompt names an ink and a ground"


@dataclass(frozen=True, kw_only=True, eq=False)
class Others:
    """Samples of prompts that the delta was not trained for, with it and, of the same noise,
    without it (`base`), as one extractor sees them. `prompt` (M) says of which prompt each is,
    `rmse` (M) is the root mean square of the difference of the pixels of each pair, of 255.
    """

    tuned: Tensor  # (M, D)
    base: Tensor
    prompt: Tensor
    rmse: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Samples of the base with a delta and, of the same prompts and noise, without it (`base`), as
    one extractor sees them.

    `prompt` (N) says of which prompt each is. `colours` (N, 2) and `base_colours` have whether ink
    and ground are those of the prompt; no rows where none is named.
    """

    subject: Tensor  # (N, D)
    base: Tensor
    prompt: Tensor
    reference: Tensor  # (R, D)
    colours: Tensor
    base_colours: Tensor


def diversity(samples: Samples) -> Found:
    """1 - the mean cosine of two samples of one prompt, the mean over prompts; of the real pictures
    and of the base beside it.
    """
    real = mean_of_pairs(samples.reference)
    found = mean_spread(samples.subject, samples.prompt)
    return Found(
        value=found,
        baselines={
            "diversity_of_reference": None if real is None else 1 - real,
            "diversity_of_base": mean_spread(samples.base, samples.prompt),
        },
        notes=() if found is not None else (UNPAIRED,),
    )


def drift(others: Others) -> Found:
    """1 - the mean cosine of each sample of another prompt with the base's own of the same noise;
    beside it the same of two samples of one prompt of the base, which only the noise sets apart.
    """
    return Found(
        value=1 - float(paired_cosine(others.tuned, others.base).mean()),
        baselines={
            "drift_of_base": 0.0,
            "drift_of_other_noise": mean_spread(others.base, others.prompt),
        },
    )


def drift_rmse(others: Others) -> Found:
    """The mean over the pairs of `drift` of the root mean square of the pixels' differences."""
    return Found(value=float(others.rmse.mean()), baselines={"drift_rmse_of_base": 0.0})


def ink(samples: Samples) -> Found:
    """The share of samples in the ink of their prompt, as glyph_colours.py reads it."""
    return _share(samples, "ink", [0])


def ground(samples: Samples) -> Found:
    """The share of samples on the ground of their prompt."""
    return _share(samples, "ground", [1])


def ink_and_ground(samples: Samples) -> Found:
    """The share of samples with both."""
    return _share(samples, "ink_and_ground", [0, 1])


def _share(samples: Samples, name: str, columns: Sequence[int]) -> Found:
    if not len(samples.colours):
        return Found(value=None, notes=(COLOURLESS,))
    right, base = (
        float(seen[:, columns].all(dim=1).double().mean())
        for seen in (samples.colours, samples.base_colours)
    )
    return Found(value=right, baselines={f"{name}_of_base": base})


def pixel_rmse(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> list[float]:
    """The root mean square of the differences of each two pictures (B, H, W, 3), of 255."""
    difference = first.astype(np.float64) - second
    return [float(value) for value in np.sqrt(np.square(difference).mean(axis=(1, 2, 3)))]


def colours_right(images: NDArray[np.uint8], prompts: Sequence[str]) -> Tensor:
    """Whether ink and ground (C, 2) are those of its prompt, of each of the images (B, H, W, 3)
    whose prompt names them.
    """
    asked = [asked_colours(prompt) for prompt in prompts]
    named = [place for place, colours in enumerate(asked) if colours is not None]
    if not named:
        return torch.zeros(0, 2, dtype=torch.bool)
    grounds = grounds_of(images[named])
    seen = np.stack([inks_of(images[named], grounds), grounds], axis=1)
    wanted = np.array([asked[place] for place in named])
    return torch.from_numpy(seen == wanted)
