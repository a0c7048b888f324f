"""The shipped classifier as features, and the shipped statistics of the unseen Greek families."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from smidgen.data.embedded_sets import SETS, load_set
from smidgen.evaluation.features import glyphs
from smidgen.evaluation.metrics import GaussianSum
from smidgen.evaluation.reference import read_statistics


def reference(name: str) -> Path:
    return Path(str(files("smidgen.data") / "embedded" / name / "reference.npz"))


@pytest.fixture(scope="module")
def extractor():
    return glyphs(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_shipped_reference_is_that_of_the_shipped_unseen_families(extractor, name):
    letters = load_set(name)
    chosen = np.flatnonzero(letters.is_test)
    images = torch.from_numpy(letters.images(chosen)).permute(0, 3, 1, 2)
    total, seen = GaussianSum(extractor.dim), []
    for batch in images.split(64):
        features, logits = extractor.read(batch)
        total.update(features)
        seen.append(logits[name].argmax(1))
    expected, known = total.result(), read_statistics(reference(name), extractor)
    assert known.gaussian.count == len(chosen) >= 1000
    torch.testing.assert_close(known.gaussian.mean, expected.mean, rtol=1e-4, atol=1e-5)
    scale = float(expected.covariance.abs().max())
    torch.testing.assert_close(
        known.gaussian.covariance, expected.covariance, rtol=0, atol=1e-4 * scale
    )
    assert known.classes == letters.class_names
    agreement = (torch.cat(seen) == torch.from_numpy(letters.label[chosen]).long()).double().mean()
    assert agreement > 0.95


def test_the_shipped_reference_of_latin_letters_is_of_the_shipped_features(extractor):
    known = read_statistics(reference("latin"), extractor)
    assert known.classes == extractor.heads["latin"]
    assert known.gaussian.count >= 4000


def test_logits_are_there_for_every_class_of_every_head(extractor):
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    features, logits = extractor.read(images)
    assert features.shape == (2, extractor.dim)
    shapes = {head: tuple(values.shape) for head, values in logits.items()}
    assert shapes == {head: (2, len(names)) for head, names in extractor.heads.items()}


def test_a_head_is_chosen_by_class_names(extractor):
    assert extractor.head_for({"alpha", "capital-omega"}) == "greek"
    assert extractor.head_for({"lower-a", "digit-7"}) == "latin"
    assert extractor.head_for({"alpha", "lower-a"}) is None
