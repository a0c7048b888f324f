"""Gradients of compiled code against those without."""

import pytest
import torch
from torch import nn

from smidgen.errors import SmidgenError
from smidgen.training.compiled import check_gradients

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
