"""Runs that go on: more steps, settings that change no bit, what was taken away, one at a time."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.lock import held
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos
from tests.training.test_loop import Killed, final_files, latent_set, run, stop_at

SHORT = {
    "steps": 4,
    "batch_size": 4,
    "validation_share": 0.2,
    "checkpoint_every": 2,
    "trackers": (),
    "progress": False,
}


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def train(photos, output, **settings):
    cache = photos.parent / "cache"
    return smidgen.train(
        tiny_base(), photos, output=output, **(SHORT | {"cache_dir": cache} | settings)
    )


def bytes_of(folder):
    return (folder / "delta.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["difffit", "lora", "full"])
def test_more_steps_at_a_constant_rate_end_as_if_asked_for_at_once(tmp_path, photos, method):
    settings = {"method": method, "warmup_steps": 3}
    train(photos, tmp_path / "twice", steps=3, **settings)
    train(photos, tmp_path / "twice", steps=7, **settings)
    train(photos, tmp_path / "once", steps=7, **settings)
    assert bytes_of(tmp_path / "twice") == bytes_of(tmp_path / "once")
    report = json.loads((tmp_path / "twice" / "run.json").read_text())
    assert (report["resumed_at_step"], report["steps"]) == (3, 7)


def test_more_steps_of_a_cosine_are_refused_with_the_reason(tmp_path, photos):
    train(photos, tmp_path / "run", lr_schedule="cosine")
    with pytest.raises(UsageError, match="a cosine that ends at the last step"):
        train(photos, tmp_path / "run", lr_schedule="cosine", steps=8)


def test_what_changes_no_bit_does_not_stop_a_resume(tmp_path, photos):
    train(photos, tmp_path / "whole", steps=6)
    train(photos, tmp_path / "run", steps=2)
    moved = shutil.move(photos, tmp_path / "elsewhere" / "photos")
    others = {"checkpoint_every": 3, "keep_checkpoints": 1, "validate_every": 1, "trackers": ()}
    train(
        tmp_path / "elsewhere" / ".." / "elsewhere" / "photos", tmp_path / "run", steps=6, **others
    )
    assert moved.exists()
    run, whole = (Delta.load(tmp_path / name / "delta.safetensors") for name in ("run", "whole"))
    assert all(map(torch.equal, run.parameters(), whole.parameters()))


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_in_the_way_it_was_begun(tmp_path, photos, begun):
    """The two ways round differently, and a resumed run is bit-equal to one that never stopped."""
    train(photos, tmp_path / "run", steps=2, fast=begun)
    before = bytes_of(tmp_path / "run")
    with pytest.raises(UsageError, match=r"\(fast\) changed since"):
        train(photos, tmp_path / "run", steps=4, fast=not begun)
    assert bytes_of(tmp_path / "run") == before
    train(photos, tmp_path / "run", steps=4, fast=begun)


def test_both_ways_train_alike(tmp_path, photos):
    losses = []
    for fast in (True, False):
        train(photos, tmp_path / str(fast), fast=fast)
        lines = (tmp_path / str(fast) / "log.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_finished_run_whose_images_changed_says_so(tmp_path, photos):
    train(photos, tmp_path / "run")
    shutil.copy(photos / "bee" / "0.png", photos / "bee" / "new.png")
    with pytest.raises(UsageError, match=r"the images changed since .*run was started"):
        train(photos, tmp_path / "run")


def test_a_delta_that_was_taken_away_comes_back_from_the_checkpoint(tmp_path, photos):
    train(photos, tmp_path / "run")
    before = bytes_of(tmp_path / "run")
    (tmp_path / "run" / "delta.safetensors").unlink()
    train(photos, tmp_path / "run")
    assert bytes_of(tmp_path / "run") == before


def test_a_kill_before_the_report_leaves_a_run_that_is_reported_next_time(tmp_path, photos):
    train(photos, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    train(photos, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 4


def test_an_empty_folder_called_like_a_checkpoint_is_none(tmp_path, photos):
    train(photos, tmp_path / "run", steps=2)
    (tmp_path / "run" / "checkpoints" / "step-999").mkdir()
    train(photos, tmp_path / "run", steps=4)
    assert Delta.load(tmp_path / "run" / "delta.safetensors").provenance.training["step"] == 4


def test_a_file_in_the_way_of_a_checkpoint_does_not_block_it(tmp_path, photos):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "recipe.toml").write_text("")  # so that the folder counts as a run
    train(photos, tmp_path / "run", force=True)
    for name in ("step-6.partial", "step-6"):
        (tmp_path / "run" / "checkpoints" / name).write_text("in the way")
    train(photos, tmp_path / "run", steps=6)
    assert (tmp_path / "run" / "checkpoints" / "step-6" / "state.json").is_file()


def test_the_second_training_into_one_folder_is_told_who_holds_it(tmp_path, photos):
    with held(tmp_path / "run"), pytest.raises(UsageError, match=r"run is held by process \d+ on"):
        train(photos, tmp_path / "run")
    train(photos, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_lock_that_a_killed_process_left_holds_nothing(tmp_path, photos):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on somewhere")
    train(photos, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exp_avg", lambda tensor: tensor.reshape(-1)[:1]),
        ("exp_avg_sq", lambda tensor: tensor.double()),
        ("exp_avg", lambda tensor: tensor * float("nan")),
        ("step", lambda tensor: tensor.long()),
        ("delta", lambda tensor: torch.ones(1)),
        ("ema", lambda tensor: tensor.half()),
        ("rng", lambda tensor: tensor[:3]),
        ("rng", lambda tensor: tensor.int()),
    ],
)
def test_a_tensor_of_another_shape_or_type_is_refused_by_name(tmp_path, name, change):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    path = tmp_path / "checkpoints" / "step-4" / "state.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.startswith(f"{name}/"))
    save_file(tensors | {key: change(tensors[key]).contiguous()}, path)
    with pytest.raises(SmidgenError, match=f"step-4 is damaged \\({key} is ") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "4"},
        {"step": 7},
        {"epoch": -1},
        {"identity": 3},
        {"best": []},
        {"scaler": {"scale": "x"}},
        {"format_version": None},
    ],
)
def test_a_record_of_another_form_is_refused_in_one_line(tmp_path, changes):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    path = tmp_path / "checkpoints" / "step-4" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = final_files(tmp_path)
    with pytest.raises(SmidgenError, match="step-4 is damaged") as caught:
        run(tmp_path, latents=latent_set())
    assert "\n" not in str(caught.value)
    assert final_files(tmp_path) == before


@pytest.mark.parametrize("method", ["difffit", "lora", "vpt"])
def test_a_new_run_begins_from_a_delta_of_the_same_method(tmp_path, photos, method):
    train(photos, tmp_path / "first", method=method)
    first = Delta.load(tmp_path / "first" / "delta.safetensors")
    write_photos(tmp_path / "more", classes=("ant", "bee"))
    settings = {"method": method, "init": tmp_path / "first" / "delta.safetensors"}
    begun = train(tmp_path / "more", tmp_path / "second", lr=0.0, **settings)
    for name, edit in begun.edits.items():
        if name != "label_table":
            assert all(map(torch.equal, edit.parameters(), first.edits[name].parameters())), name
    table, known = (delta.edits["label_table"].rows for delta in (begun, first))
    assert torch.equal(table[1:], known[[0, 2]])  # bee, and the null row
    assert begun.provenance.classes == ("ant", "bee")


def test_a_run_that_began_from_a_delta_goes_on_without_it(tmp_path, photos):
    train(photos, tmp_path / "first")
    start = tmp_path / "first" / "delta.safetensors"
    train(photos, tmp_path / "whole", init=start, steps=6)
    train(photos, tmp_path / "run", init=start, steps=2)
    start.unlink()
    train(photos, tmp_path / "run", init=start, steps=6)
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


def test_another_start_is_named_before_the_record_changes(tmp_path, photos):
    for seed in (1, 2):
        train(photos, tmp_path / f"first-{seed}", seed=seed)
    one, other = (tmp_path / f"first-{seed}" / "delta.safetensors" for seed in (1, 2))
    run = tmp_path / "run"
    train(photos, run, init=one, steps=2)
    recipe = (run / "recipe.toml").read_bytes()
    for changed in ({"init": other}, {}):
        with pytest.raises(UsageError, match="the start changed since"):
            train(photos, run, steps=3, **changed)
    assert (run / "recipe.toml").read_bytes() == recipe
    moved = tmp_path / "moved.safetensors"
    one.rename(moved)
    train(photos, run, init=moved, steps=3)


def test_a_start_that_is_not_there_is_told_before_the_images_are_read(tmp_path, photos):
    cache = tmp_path / "fresh"
    with pytest.raises(UsageError, match="no such delta to begin from"):
        train(photos, tmp_path / "run", init=tmp_path / "nope", cache_dir=cache)
    assert not cache.exists()
    assert not (tmp_path / "run").exists()


def test_a_start_of_another_method_or_with_other_options_is_refused(tmp_path, photos):
    train(photos, tmp_path / "first", method="lora", method_config={"rank": 4})
    start = tmp_path / "first" / "delta.safetensors"
    with pytest.raises(UsageError, match="init is a delta of lora and the method is difffit"):
        train(photos, tmp_path / "run", init=start)
    with pytest.raises(UsageError, match="other options \\(rank 4 -> 8\\)"):
        train(photos, tmp_path / "run", init=start, method="lora")
    assert not (tmp_path / "run").exists()


def test_a_new_run_begins_from_another_programs_lora(tmp_path, photos):
    base = tiny_base()
    train(photos, tmp_path / "first", method="lora", method_config={"rank": 4})
    first = Delta.load(tmp_path / "first" / "delta.safetensors")
    path = tmp_path / "theirs.safetensors"
    without_table = Delta(
        {name: edit for name, edit in first.edits.items() if name != "label_table"},
        first.provenance,
    )
    smidgen.export_lora(without_table, base, format="peft", output=path)
    begun = train(photos, tmp_path / "run", init=path, method="lora", lr=0.0)
    for name, edit in without_table.edits.items():
        for mine, theirs in zip(begun.edits[name].parameters(), edit.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_checkpoint_that_lacks_a_part_of_what_adam_keeps_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, on_step=stop_at(5))
    path = tmp_path / "checkpoints" / "step-4" / "state.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.startswith("exp_avg_sq/"))
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(UsageError, match=f"step-4 has or lacks {name}"):
        run(tmp_path)


def test_an_output_that_could_not_be_read_again_is_refused(tmp_path, photos):
    output = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(
        SmidgenError, match=r'the output ".*caf\\udce9" has a name that is not UTF-8'
    ):
        train(photos, output)
    assert not output.exists()
    train(photos, tmp_path / "run").save(output.with_suffix(".safetensors"))
    with pytest.raises(SmidgenError, match="not UTF-8"):
        Delta.load(output.with_suffix(".safetensors"))
