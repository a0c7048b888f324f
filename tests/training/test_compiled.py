"""Gradients of compiled code against those without, and where that code is kept."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir

from smidgen.errors import SmidgenError
from smidgen.training.compiled import KEPT_AT, check_gradients, compiling

A, B = (nn.Parameter(torch.tensor([value, 2.0])) for value in (1.0, 3.0))


def plain():
    return (A * B).sum()


def test_the_same_gradients_pass_and_so_does_rounding():
    check_gradients(plain, lambda: 1.001 * plain(), [A, B])


def test_a_lost_gradient_is_refused_and_counted():
    with pytest.raises(SmidgenError, match="1 of 2 tensors get none"):
        check_gradients(plain, lambda: (A * B.detach()).sum(), [A, B])


def test_others_are_refused():
    with pytest.raises(SmidgenError, match="they are others"):
        check_gradients(plain, lambda: 1.2 * plain(), [A, B])


def test_nothing_is_asked_of_a_network_in_which_nothing_is_trained():
    check_gradients(plain, plain, [])


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_what_the_compiler_makes_is_kept_where_smidgen_caches_unless_told_otherwise(
    monkeypatch, tmp_path, own
):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path))
    monkeypatch.delenv(KEPT_AT, raising=False)
    if own:
        monkeypatch.setenv(KEPT_AT, str(tmp_path / own))
    with compiling():
        assert Path(cache_dir()) == tmp_path / (own or "compiled")  # as the compiler asks for it
    assert os.environ.get(KEPT_AT) == (str(tmp_path / own) if own else None)
