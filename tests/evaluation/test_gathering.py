"""Two real processes over gloo give what one gives; one process needs nothing."""

from pathlib import Path

import pytest
import torch

from smidgen import processes
from smidgen.errors import UsageError
from smidgen.evaluation.accumulate import Accumulator
from smidgen.evaluation.gathering import gather
from tests.launch import finish, start

COUNT, DIM, BATCH = 41, 5, 4
HEADS = ("letters",)
ENVIRONMENT = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

WORKER = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from smidgen import processes
from smidgen.evaluation.gathering import gather
from tests.evaluation.test_gathering import KEPT, STREAMED, accumulate

folder, rank = Path(sys.argv[1]), processes.rank()
try:
    gather(accumulate(KEPT if rank else STREAMED))
except ValueError as error:
    refused = str(error)
with processes.main_first():
    if rank == 0:
        time.sleep(0.3)
        (folder / "cache").write_text("ready")
    seen = (folder / "cache").read_text()
found = {
    "seen": seen,
    "refused": refused,
    "kept": vars(gather(accumulate(KEPT)).result()),
    "streamed": vars(gather(accumulate(STREAMED)).result()),
    "list": processes.gather_list([(rank, number) for number in range(rank + 1)]),
}
dist.get_backend_config = lambda group=None: "cuda:nccl"  # a caller's group for GPUs alone
found["own group"] = vars(gather(accumulate(KEPT)).result())
for key in ("kept", "streamed", "own group"):
    found[key]["gaussian"] = vars(found[key]["gaussian"])
    found[key]["probabilities"] = None
torch.save(found, folder / f"{rank}.pt")
dist.destroy_process_group()
"""
STREAMED = frozenset({"fd", "clip_i", "class_agreement"})
KEPT = STREAMED | {"kid"}


def accumulate(metrics: frozenset[str]) -> Accumulator:
    """This process's share of a fixed set of 41 images."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(COUNT, DIM, generator=generator) + 1
    logits = torch.randn(COUNT, 3, generator=generator)
    accumulator = Accumulator(DIM, HEADS, metrics)
    for first in processes.shard(range(0, COUNT, BATCH)):
        rows = slice(first, min(first + BATCH, COUNT))
        names = [f"class {number % 3}" for number in range(rows.start, rows.stop)]
        accumulator.update(
            features[rows], {"letters": logits[rows]}, first_index=first, intended=names
        )
    return accumulator


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def run_two(folder: Path) -> list[dict]:
    """What each of two processes found."""
    for code, _, error in finish(start(["-c", WORKER, str(folder)], 2)):
        assert code == 0, error
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    kept, streamed = (accumulate(metrics).result() for metrics in (KEPT, STREAMED))
    assert kept.features is not None
    for found in run_two(tmp_path):
        for both in (found["kept"], found["own group"]):
            assert torch.equal(both["features"], kept.features)
            assert torch.equal(both["gaussian"]["mean"], kept.gaussian.mean)
            assert torch.equal(both["gaussian"]["covariance"], kept.gaussian.covariance)
            assert torch.equal(both["mean_direction"], kept.mean_direction)
            assert torch.equal(both["predictions"]["letters"], kept.predictions["letters"])
            assert both["intended"] == kept.intended
        both = found["streamed"]
        assert both["features"] is None
        assert both["gaussian"]["count"] == COUNT
        close = {"rtol": 1e-12, "atol": 1e-14}
        torch.testing.assert_close(both["gaussian"]["mean"], streamed.gaussian.mean, **close)
        torch.testing.assert_close(
            both["gaussian"]["covariance"], streamed.gaussian.covariance, **close
        )
        torch.testing.assert_close(both["mean_direction"], streamed.mean_direction, **close)
        assert torch.equal(both["predictions"]["letters"], streamed.predictions["letters"])
        assert found["seen"] == "ready"  # the main process went first
        assert "the processes collect different things" in found["refused"]
        assert found["list"] == [(0, 0), (1, 0), (1, 1)]


def test_shares_are_whole_batches_and_together_all_of_them(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(list(processes.shard(range(0, COUNT, BATCH))))
    assert shares[1] == [4, 16, 28, 40]
    assert sorted(start for share in shares for start in share) == list(range(0, COUNT, BATCH))


def test_one_process_needs_no_environment_and_connects_to_nobody():
    accumulator = accumulate(STREAMED)
    assert gather(accumulator) is accumulator
    assert processes.gather_list(["a"]) == ["a"]
    assert accumulator.count == COUNT
    assert (processes.rank(), processes.world_size(), processes.local_rank()) == (0, 1, 0)
    with processes.main_first():
        assert processes.is_main()
    assert not torch.distributed.is_initialized()


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK is not set; start the processes with torchrun"):
        gather(accumulate(STREAMED))
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match='WORLD_SIZE is "two", not a number'):
        processes.world_size()
