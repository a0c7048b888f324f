"""Samples of some of a delta's edits: of the base's own classes, with and without the rest."""

from dataclasses import replace

import numpy as np
import pytest

import smidgen
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, Base, tiny_base
from tests.tiny.deltas import tiny_delta

HOW = {"steps": 3, "guidance": 2.0, "num_images": 3}


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def delta_of(base: Base, method: str) -> Delta:
    delta = tiny_delta(base, method, std=0.1).float()
    delta.provenance = replace(delta.provenance, fingerprint=base.fingerprint)
    return delta


def drawn(base: Base, **settings) -> np.ndarray:
    return np.stack([np.asarray(image) for image in smidgen.sample(base, **HOW, **settings)])


@pytest.mark.parametrize("method", ["difffit", "bitfit", "lora", "full"])
def test_without_its_table_a_delta_draws_the_bases_classes(base, method):
    delta = delta_of(base, method)
    rest = {name: edit for name, edit in delta.edits.items() if edit.kind != "table"}
    reference = Delta(rest, replace(delta.provenance, classes=KNOWN_CLASSES))
    found = drawn(base, delta=delta, edits="-table", classes="ant,cat")
    assert np.array_equal(found, drawn(base, delta=reference, classes="ant,cat"))
    before = drawn(base, classes="ant,cat")
    assert not np.array_equal(found, before)
    assert np.array_equal(drawn(base, delta=delta, edits="base", classes="ant,cat"), before)


def test_classes_are_those_of_the_table_that_acts(base):
    delta = delta_of(base, "difffit")
    assert len(smidgen.sample(base, delta=delta, steps=1)) == len(NEW_CLASSES)
    assert len(smidgen.sample(base, delta=delta, steps=1, edits="-table")) == len(KNOWN_CLASSES)
    with pytest.raises(UsageError, match='unknown class "dog"'):
        smidgen.sample(base, delta=delta, steps=1, edits="-table", classes="dog")
    with pytest.raises(UsageError, match="expected words such as"):
        smidgen.sample(base, delta=delta, steps=1, edits="")


def test_images_of_all_edits_have_the_record_that_they_had(base):
    whole, part = (smidgen.SamplingConfig(edits=edits).facts() for edits in ("all", "-table"))
    assert "edits" not in whole
    assert part["edits"] == "-table"
