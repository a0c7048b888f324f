"""A folder to follow pages in, with the recipes as the repository's root has them."""

from dataclasses import replace

import numpy as np
import pytest

from smidgen.data import embedded_sets
from tests.documentation.pages import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder; its cache is its own."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def small_sets(monkeypatch):
    """Of the sets of letters that ship, two pictures of each letter, and two to test."""
    load_whole = embedded_sets.load_set

    def load(name):
        whole = load_whole(name)
        if name == embedded_sets.SUBJECTS:
            return whole
        places = [
            np.flatnonzero((whole.label == label) & (whole.is_test == is_test))[:2]
            for label in range(len(whole.class_names))
            for is_test in (False, True)
        ]
        kept = np.concatenate(places)
        parts = ("levels", "label", "ink", "ground", "is_test", "font")
        return replace(whole, **{part: getattr(whole, part)[kept] for part in parts})

    monkeypatch.setattr(embedded_sets, "load_set", load)
