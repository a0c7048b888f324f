"""The inks and grounds of the glyph world are read from pixels, and from the words of prompts."""

import itertools

import numpy as np
import pytest

from smidgen.data.embedded_sets import SUBJECTS, load_set, mix_colours
from smidgen.evaluation.glyph_colours import (
    GROUND_RGB,
    GROUNDS,
    INK_RGB,
    INKS,
    asked_colours,
    grounds_of,
    inks_of,
)

PAIRS = np.array(list(itertools.product(range(len(INKS)), range(len(GROUNDS)))))


@pytest.mark.parametrize("noise", [0, 12])
def test_every_ink_on_every_ground_is_read_from_a_picture(noise):
    random = np.random.default_rng(0)
    masks = np.zeros((len(PAIRS), 32, 32), np.uint8)
    masks[:, 8:24, 12:20] = random.integers(120, 256, (len(PAIRS), 16, 8))
    pictures = mix_colours(masks, INK_RGB[PAIRS[:, 0]], GROUND_RGB[PAIRS[:, 1]]).astype(int)
    pictures += random.integers(-noise, noise + 1, pictures.shape)
    pictures = pictures.clip(0, 255).astype(np.uint8)
    grounds = grounds_of(pictures)
    np.testing.assert_array_equal(grounds, PAIRS[:, 1])
    np.testing.assert_array_equal(inks_of(pictures, grounds), PAIRS[:, 0])


def test_the_subjects_that_ship_are_in_the_inks_and_grounds_of_the_tables():
    subjects = load_set(SUBJECTS)
    pictures = subjects.images(np.arange(len(subjects.label)))
    grounds = grounds_of(pictures)
    np.testing.assert_array_equal(subjects.grounds[subjects.ground], GROUND_RGB[grounds])
    inks = INK_RGB[inks_of(pictures, grounds)]
    np.testing.assert_array_equal(subjects.inks[subjects.ink], inks)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a picture of an owl in navy on white", (1, 0)),
        ("a small picture of a sks owl in orange on mint", (5, 3)),
        ("a picture of an owl", None),
        ("a picture of an owl in pink on white", None),
        ("an owl in navy on white paper", None),
    ],
)
def test_a_prompt_names_ink_and_ground_at_its_end_or_not(prompt, expected):
    assert asked_colours(prompt) == expected
