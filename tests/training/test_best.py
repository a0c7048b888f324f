"""Runs that end with the best of the deltas that they judged."""

import dataclasses
import json

import pytest
import torch

import smidgen
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.core.file import read_header
from smidgen.data.split import hold_out
from smidgen.errors import SmidgenError, UsageError
from smidgen.training.best import is_better, judged_by_kid
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.loop import Evaluator
from smidgen.training.rehearsal import rehearse
from smidgen.training.validation import Validation
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos
from tests.training.test_loop import Killed, final_files, latent_set, read_log, run, stop_at

DELTA = "delta.safetensors"
KEEP = {"keep": "best", "validate_every": 2}


def step_of(folder):
    return read_header(folder / DELTA)["training"]["step"]


def kept(folder, step):
    return (folder / "deltas" / f"step-{step}.safetensors").read_bytes()


def losses_of(monkeypatch, losses):
    """The validation losses after so many steps, whatever was trained."""
    steps = iter(losses)
    monkeypatch.setattr(Validation, "loss", lambda *_, **__: losses[next(steps)])


def test_an_overtrained_run_ends_with_the_delta_of_before(tmp_path):
    latents = latent_set(8)
    _, held_out = hold_out(latents.class_numbers, share=0.25, contents=latents.contents)
    # what is trained on is bright and what is held out is dark: the more of the one is learned by
    # heart, the less noise of the other is seen
    mean = torch.full_like(latents.mean, 3.0)
    mean[held_out] = -3.0
    found = run(
        tmp_path,
        "full",
        latents=dataclasses.replace(latents, mean=mean, std=torch.zeros_like(latents.std)),
        steps=32,
        lr=1e-2,
        batch_size=8,
        label_dropout=0.0,
        ema_decay=0.5,
        validation_share=0.25,
        validate_every=4,
        keep="best",
    )
    loss = {
        line["step"]: line["validation_loss"]
        for line in read_log(tmp_path)
        if "validation_loss" in line
    }
    best = min(loss, key=lambda step: loss[step])
    assert 4 < best < 32
    assert loss[best] < 0.98 * loss[32]
    assert (found.best_step, step_of(tmp_path)) == (best, best)
    assert (tmp_path / DELTA).read_bytes() == kept(tmp_path, best)
    for name, value in Delta.load(tmp_path / DELTA).state_dict().items():
        assert torch.equal(found.delta.state_dict()[name], value)


def test_what_is_last_is_kept_unless_told_otherwise(tmp_path, monkeypatch):
    losses_of(monkeypatch, {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0, 10: 5.0, 12: 6.0})
    found = run(tmp_path, validate_every=2)
    assert (found.best_step, step_of(tmp_path)) == (2, 12)


def test_a_killed_run_has_the_best_so_far_and_goes_on_to_the_same_end(tmp_path, monkeypatch):
    losses = {2: 3.0, 4: 2.0, 6: 1.0, 8: 2.5, 10: 4.0, 12: 5.0}
    few = {**KEEP, "checkpoint_every": 4, "keep_deltas": 1}
    losses_of(monkeypatch, losses)
    run(tmp_path / "whole", **few)
    assert step_of(tmp_path / "whole") == 6
    losses_of(monkeypatch, losses)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **few, on_step=stop_at(9))
    assert step_of(tmp_path / "cut") == 6
    losses_of(monkeypatch, {step: loss for step, loss in losses.items() if step > 8})
    assert run(tmp_path / "cut", **few).best_step == 6
    assert final_files(tmp_path / "cut") == final_files(tmp_path / "whole")


def test_the_best_that_a_checkpoint_promises_stays_until_the_next(tmp_path, monkeypatch):
    # after the checkpoint of step 4, whose best is step 2, step 6 is better and the run is killed
    few = {**KEEP, "checkpoint_every": 4, "keep_deltas": 1}
    losses_of(monkeypatch, {2: 2.0, 4: 3.0, 6: 1.0})
    with pytest.raises(Killed):
        run(tmp_path, **few, on_step=stop_at(7))
    assert (tmp_path / "deltas" / "step-2.safetensors").is_file()
    # another machine rounds otherwise, and finds it no better
    losses_of(monkeypatch, {6: 2.5, 8: 3.0, 10: 3.0, 12: 3.0})
    run(tmp_path, **few)
    assert (step_of(tmp_path), (tmp_path / DELTA).read_bytes()) == (2, kept(tmp_path, 2))
    assert not (tmp_path / "deltas" / "step-6.safetensors").exists()


def test_without_its_best_delta_a_run_does_not_go_on(tmp_path, monkeypatch):
    losses_of(monkeypatch, {2: 1.0, 4: 2.0, 6: 3.0})
    with pytest.raises(Killed):
        run(tmp_path, **KEEP, on_step=stop_at(7))
    (tmp_path / "deltas" / "step-2.safetensors").unlink()
    with pytest.raises(SmidgenError, match=r"step-2\.safetensors is gone, the best delta"):
        run(tmp_path, **KEEP)


def test_more_steps_go_on_from_the_last_and_are_measured_against_the_best(tmp_path, monkeypatch):
    losses_of(monkeypatch, {2: 2.0, 4: 3.0, 6: 1.0, 8: 4.0})
    run(tmp_path, **KEEP, steps=4)
    assert step_of(tmp_path) == 2
    run(tmp_path, **KEEP, steps=8)
    assert step_of(tmp_path) == 6
    (tmp_path / DELTA).unlink()  # which is written again
    assert run(tmp_path, **KEEP, steps=8).delta.provenance.training["step"] == 6


def evaluator(values):
    return Evaluator(every=2, run=lambda step: values[step])


def test_kid_must_be_lower_by_more_than_its_intervals(tmp_path, monkeypatch):
    # by validation loss the first would be the best
    losses_of(monkeypatch, {step: float(step) for step in (4, 8, 12)})
    means = {2: 0.9, 4: 0.5, 6: 0.45, 8: 0.1, 10: 0.05, 12: 0.4}
    found = {step: {"fd": 1.0, "kid": mean, "kid_std": 0.04} for step, mean in means.items()}
    grid = Evaluator(every=2, run=lambda step: {})
    result = run(
        tmp_path,
        keep="best",
        metrics_every=2,
        keep_deltas=1,
        evaluators=(grid, evaluator(found)),
    )
    assert (result.best_step, step_of(tmp_path)) == (8, 8)
    assert (tmp_path / DELTA).read_bytes() == kept(tmp_path, 8)
    state = json.loads((tmp_path / "checkpoints" / "step-12" / "state.json").read_text())
    assert state["best"] == {"step": 8, "kid": 0.1, "kid_std": 0.04}


def test_metrics_without_kid_are_refused_at_the_first_time(tmp_path):
    with pytest.raises(SmidgenError, match=r"these have none \(fd\); leave metrics_every out"):
        run(tmp_path, keep="best", metrics_every=2, evaluators=(evaluator({2: {"fd": 1.0}}),))


def test_better_is_lower_or_judged_for_the_first_time():
    assert is_better({"loss": 2.0}, {})
    assert is_better({"loss": 1.0}, {"step": 3, "loss": 2.0})
    assert not is_better({"loss": 2.0}, {"step": 3, "loss": 2.0})
    kid = {"kid": 0.5, "kid_std": 0.1}
    assert is_better(kid, {"step": 3, "loss": 1e-9})
    assert is_better({"loss": 9.0}, {"step": 3, **kid})
    assert is_better({"kid": 0.2, "kid_std": 0.1}, kid)
    assert not is_better({"kid": 0.3, "kid_std": 0.1}, kid)  # the intervals touch
    assert judged_by_kid(TrainingConfig(keep="best", metrics_every=5))
    assert not judged_by_kid(TrainingConfig(keep="best"))
    assert not judged_by_kid(TrainingConfig(metrics_every=5))


def test_with_nothing_to_judge_by_the_best_is_refused(tmp_path):
    with pytest.raises(UsageError, match="keep is best and nothing would judge it"):
        TrainingConfig(keep="best", validation_share=0.0)
    TrainingConfig(keep="best", validation_share=0.0, metrics_every=10)
    with pytest.raises(UsageError, match="none of the 2 images is held out"):
        run(tmp_path, latents=latent_set(2), keep="best")


@pytest.mark.slow
def test_a_run_of_images_is_judged_by_the_kid_of_its_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    photos = write_photos(tmp_path / "photos")
    settings = {"batch_size": 4, "trackers": (), "progress": False, "keep": "best"}
    smidgen.train(
        tiny_base(), photos, steps=4, metrics_every=2, output=tmp_path / "run", **settings
    )
    measured = [line for line in read_log(tmp_path / "run") if "kid" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert all(line["kid_std"] >= 0 for line in measured)
    better = is_better(measured[1], measured[0])
    assert step_of(tmp_path / "run") == (4 if better else 2)
    with pytest.raises(UsageError, match='keep "best" -> "last"'):
        smidgen.train(
            tiny_base(), photos, steps=4, output=tmp_path / "run", **settings | {"keep": "last"}
        )


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"train_labels": False}])
def test_steps_are_rehearsed_whatever_is_kept_and_trained(tmp_path, settings):
    training = TrainingConfig(batch_size=4, **settings)
    config = RunConfig(data=tmp_path, output=tmp_path / "run", training=training)
    assert rehearse(tiny_base(), config, 2, tmp_path, steps=2).steps == 2


PATIENT = {"validate_every": 2, "checkpoint_every": 4, "patience": 2, "steps": 40}


def test_a_run_ends_when_its_patience_does(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    losses_of(monkeypatch, {2: 2.0, 4: 3.0, 6: 1.0, 8: 1.0, 10: 4.0})  # a sixth would be an error
    grids = []
    seen = Evaluator(every=8, run=lambda step: grids.append(step) or {})
    result = run(tmp_path, **PATIENT, keep="best", evaluators=(seen,))
    assert (result.steps, result.best_step, step_of(tmp_path)) == (10, 6, 6)
    assert max(line["step"] for line in read_log(tmp_path)) == 10
    assert grids == [8, 10]  # as at the last step of any run
    assert "ended at step 10 of 40: not better since step 6" in caplog.text


def test_with_the_last_kept_it_ends_with_the_last_one(tmp_path, monkeypatch):
    losses_of(monkeypatch, {2: 1.0, 4: 3.0, 6: 2.0})
    assert (run(tmp_path, **PATIENT).steps, step_of(tmp_path)) == (6, 6)


def test_patience_is_counted_by_kid_where_that_is_measured(tmp_path, monkeypatch):
    losses_of(monkeypatch, {step: float(step) for step in (4, 8, 12)})
    found = {2: 0.5, 4: 0.3, 6: 0.28, 8: 0.31}  # 0.28 is within the interval of 0.3
    values = {step: {"kid": mean, "kid_std": 0.05} for step, mean in found.items()}
    settings = PATIENT | {"validate_every": 4}
    result = run(tmp_path, **settings, metrics_every=2, evaluators=(evaluator(values),))
    assert (result.steps, result.best_step) == (8, 4)


@pytest.mark.parametrize("killed", [5, 9])
def test_a_killed_run_has_the_patience_that_it_had(tmp_path, monkeypatch, killed):
    losses = {2: 2.0, 4: 3.0, 6: 1.0, 8: 1.5, 10: 4.0}
    losses_of(monkeypatch, losses)
    run(tmp_path / "whole", **PATIENT)
    losses_of(monkeypatch, losses)
    with pytest.raises(Killed):
        run(tmp_path / "cut", **PATIENT, on_step=stop_at(killed))
    saved = killed // 4 * 4
    losses_of(monkeypatch, {step: loss for step, loss in losses.items() if step > saved})
    assert run(tmp_path / "cut", **PATIENT).steps == 10
    assert final_files(tmp_path / "cut") == final_files(tmp_path / "whole")
    assert run(tmp_path / "cut", **PATIENT).steps == 10  # and no validation more


def test_a_run_without_anything_to_judge_has_no_patience(tmp_path):
    with pytest.raises(UsageError, match="patience is 3 and nothing would judge it"):
        TrainingConfig(patience=3, validation_share=0.0)
    with pytest.raises(UsageError, match="patience is 2 and none of the 2 images is held out"):
        run(tmp_path, latents=latent_set(2), **PATIENT)
    with pytest.raises(UsageError, match="patience is 0"):
        TrainingConfig(patience=0)


def test_a_run_that_ended_early_is_finished_until_it_gets_more_patience(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    photos = write_photos(tmp_path / "photos")
    settings = {"batch_size": 4, "trackers": (), "progress": False, "validation_share": 0.2}
    settings |= {"steps": 20, "validate_every": 2, "checkpoint_every": 4}
    losses = {2: 2.0, 4: 3.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}

    def train(name, patience):
        smidgen.train(tiny_base(), photos, output=tmp_path / name, patience=patience, **settings)
        report = json.loads((tmp_path / name / "run.json").read_text())
        return report["resumed_at_step"], report["steps"]

    losses_of(monkeypatch, losses)
    assert train("run", 1) == (0, 4)
    assert train("run", 1) == (0, 4)  # finished: nothing is validated
    losses_of(monkeypatch, {step: loss for step, loss in losses.items() if step > 4})
    assert train("run", 3) == (4, 12)
    losses_of(monkeypatch, losses)
    assert train("once", 3) == (0, 12)
    moved, once = (Delta.load(tmp_path / name / DELTA) for name in ("run", "once"))
    assert all(map(torch.equal, moved.parameters(), once.parameters()))
    assert moved.provenance.training["settings"]["patience"] == 3


def test_a_finished_run_stays_where_force_would_be_refused(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", per_class=1)
    places = {"data": photos, "output": tmp_path / "run"}
    settings = {"steps": 2, "batch_size": 2, "trackers": (), "progress": False}
    smidgen.train(tiny_base(), **places, **settings, validation_share=0.0)
    before = {path: path.read_bytes() for path in places["output"].rglob("*") if path.is_file()}
    refused = {"validation_share": 0.1, "keep": "best", "force": True}
    with pytest.raises(UsageError, match="none of the 2 images is held out"):
        smidgen.train(tiny_base(), **places, **settings, **refused)
    assert {path: path.read_bytes() for path in before} == before
    plan = ["--data", str(photos), "--output", str(tmp_path / "new"), "--keep", "best"]
    main(["train", "--base", "glyphs", *plan, "--method", "bitfit", "--dry-run", "--json"])
    assert "none of the 2 images is held out" in json.loads(capsys.readouterr().out)["refusal"]
