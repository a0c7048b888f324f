"""What is drawn while a training goes on: by one process of several, in a file that is whole."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from smidgen.models.labels import labels_of
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.objective import Task
from smidgen.training.previews import evaluators_of
from tests.tiny.bases import tiny_base


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_main_one_alone_draws_the_grid(tmp_path, monkeypatch, rank):
    base = tiny_base()
    training = replace(TrainingConfig(), sample_every=1)
    config = RunConfig(data=tmp_path / "photos", output=tmp_path / "run", training=training)
    task = Task(process=base.process, labels=labels_of(base))
    (evaluator,) = evaluators_of(base, config, task)
    monkeypatch.setattr("smidgen.training.previews.STEPS", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    # there is no other process: the grid waits for none
    assert evaluator.run(3) == {}
    written = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert written == ([tmp_path / "run" / "samples" / "step-3.png"] if rank == 0 else [])
    assert all(Image.open(path).size == (64, 64) for path in written)
