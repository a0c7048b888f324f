"""The metrics of a personalisation, each against its definition written out."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from smidgen.data.embedded_sets import mix_colours
from smidgen.evaluation.glyph_colours import GROUND_RGB, INK_RGB
from smidgen.evaluation.samples import (
    Others,
    Samples,
    colours_right,
    diversity,
    drift,
    drift_rmse,
    ground,
    ink,
    ink_and_ground,
    pixel_rmse,
)

PROMPT = torch.tensor([0, 1, 0, 1, 0])
OTHER = torch.tensor([0, 1, 0, 1])


def made(**changes) -> Samples:
    generator = torch.Generator().manual_seed(0)
    subject, base, reference = (
        torch.randn(count, 6, generator=generator) + 1 for count in (5, 5, 3)
    )
    values = {
        "subject": subject,
        "base": base,
        "prompt": PROMPT,
        "reference": reference,
        "colours": torch.tensor([[True, True], [True, False], [False, False], [True, True]]),
        "base_colours": torch.tensor([[True, True], [False, True]]),
    }
    return Samples(**values | changes)


def others() -> Others:
    generator = torch.Generator().manual_seed(1)
    tuned, base = (torch.randn(4, 6, generator=generator) + 1 for _ in range(2))
    return Others(tuned=tuned, base=base, prompt=OTHER, rmse=torch.tensor([1.0, 2.0, 3.0, 6.0]))


def spread(features: torch.Tensor, prompt: torch.Tensor) -> float:
    """The mean over prompts of the mean cosine distance of their pairs."""
    of_prompts = []
    for group in prompt.unique():
        pairs = itertools.combinations(features[prompt == group].double(), 2)
        of_prompts.append(np.mean([cosine(one, other) for one, other in pairs]))
    return float(np.mean(of_prompts))


def test_diversity_is_the_mean_distance_within_prompts_beside_that_of_base_and_real_pictures():
    samples = made()
    found = diversity(samples)
    assert found.value == pytest.approx(spread(samples.subject, PROMPT))
    assert found.baselines == pytest.approx(
        {
            "diversity_of_reference": spread(samples.reference, torch.zeros(3)),
            "diversity_of_base": spread(samples.base, PROMPT),
        }
    )


def test_diversity_of_one_sample_a_prompt_is_unknown():
    samples = made(prompt=torch.arange(5), reference=torch.ones(1, 6))
    found = diversity(samples)
    assert found.value is None
    assert found.baselines["diversity_of_reference"] is None
    assert "--num-images" in found.notes[0]


def test_drift_is_the_distance_of_pairs_of_the_same_noise_beside_that_of_other_noise():
    seen = others()
    pairs = zip(seen.tuned.double(), seen.base.double(), strict=True)
    found = drift(seen)
    assert found.value == pytest.approx(np.mean([cosine(one, other) for one, other in pairs]))
    assert found.baselines["drift_of_base"] == 0
    assert found.baselines["drift_of_other_noise"] == pytest.approx(spread(seen.base, OTHER))
    assert drift(replace(seen, tuned=seen.base)).value == pytest.approx(0, abs=1e-12)
    assert drift_rmse(seen).value == 3


def test_the_difference_of_pixels_is_the_root_of_the_mean_square_of_each_pair():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    expected = [
        np.sqrt(np.mean([(float(x) - float(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True)]))
        for a, b in zip(first, second, strict=True)
    ]
    assert pixel_rmse(first, second) == pytest.approx(expected)
    assert pixel_rmse(first, first) == [0, 0, 0]


def test_colours_are_shares_of_the_samples_whose_prompt_names_them():
    samples = made()
    assert (ink(samples).value, ground(samples).value) == (0.75, 0.5)
    assert ink_and_ground(samples).value == 0.5
    assert ink(samples).baselines == {"ink_of_base": 0.5}
    assert ground(samples).baselines == {"ground_of_base": 1}
    assert ink_and_ground(samples).baselines == {"ink_and_ground_of_base": 0.5}
    nothing = torch.zeros(0, 2, dtype=torch.bool)
    assert ink(made(colours=nothing)).value is None


def test_ink_and_ground_are_read_from_the_pixels_of_those_that_name_them():
    masks = np.zeros((3, 32, 32), np.uint8)
    masks[:, 10:22, 10:22] = 255
    images = mix_colours(masks, INK_RGB[[1, 1, 2]], GROUND_RGB[[0, 3, 3]])  # navy, navy, crimson
    prompts = ["an owl in navy on white", "an owl", "an owl in orange on mint"]
    assert colours_right(images, prompts).tolist() == [[True, True], [False, True]]
    assert colours_right(images[:1], ["an owl"]).shape == (0, 2)
