"""Devices by their names, on machines that have them and on those that have not."""

import pytest
import torch

from smidgen.errors import UsageError
from smidgen.models import calling
from smidgen.models.calling import device_of
from smidgen.training.precision import fast_precision
from tests.tiny.networks import network


def machine(monkeypatch, *, cuda: bool, mps: bool, processes: int = 1) -> None:
    """What torch says of a machine with these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(calling, "world_size", lambda: processes)


@pytest.mark.parametrize(
    ("cuda", "mps", "processes", "expected"),
    [
        (False, False, 1, "cpu"),
        (False, True, 1, "mps"),
        (True, False, 1, "cuda"),
        (True, True, 1, "cuda"),
        (False, True, 2, "cpu"),
    ],
)
def test_auto_is_the_accelerator_that_is_there(monkeypatch, cuda, mps, processes, expected):
    machine(monkeypatch, cuda=cuda, mps=mps, processes=processes)
    assert device_of("auto") == expected
    assert device_of("cpu") == "cpu"


def test_an_accelerator_that_is_not_there_is_refused_by_name(monkeypatch):
    machine(monkeypatch, cuda=False, mps=False)
    with pytest.raises(UsageError, match="no cuda device was found"):
        device_of("cuda")
    with pytest.raises(UsageError, match="no mps device was found"):
        device_of("mps")
    machine(monkeypatch, cuda=False, mps=True, processes=2)
    with pytest.raises(UsageError, match="several processes have no mps device"):
        device_of("mps")


def test_a_mac_trains_in_float32_unless_told_otherwise():
    denoiser = network("dit", width=32)
    assert fast_precision(denoiser, 2**30, torch.device("mps")) == "fp32"
