import json
import tomllib

import pytest

from smidgen.errors import UsageError
from smidgen.training.recipe import NOT_COMPARED, begin_run, check_recipe, recipe_text

SETTINGS = {
    "data": 'odd "name" \\ \n é \x7f',
    "method": "difffit",
    "steps": 400,
    "lr": 1e-3,
    "lr_schedule": "constant",
    "min_snr": None,
    "vlb_weight": 1e-3,
    "flip": False,
    "gammas": ("block", "qkv"),
    "num_threads": 2,
}


def test_a_recipe_reads_back():
    assert tomllib.loads(recipe_text(SETTINGS)) == {
        **SETTINGS,
        "min_snr": "none",
        "gammas": ["block", "qkv"],
    }


def test_the_same_settings_may_come_again(tmp_path):
    run = tmp_path / "run"
    check_recipe(run, SETTINGS)
    assert not run.exists()
    begin_run(run, SETTINGS)
    check_recipe(run, SETTINGS)


def test_other_settings_are_refused_by_name(tmp_path):
    begin_run(tmp_path, SETTINGS)
    with pytest.raises(UsageError, match=r'lr 0\.001 -> 0\.1, min_snr "none" -> 5\.0') as error:
        check_recipe(tmp_path, {**SETTINGS, "lr": 0.1, "min_snr": 5.0})
    assert "flip" not in str(error.value)
    with pytest.raises(UsageError, match="vlb_weight"):
        check_recipe(tmp_path, {name: v for name, v in SETTINGS.items() if name != "vlb_weight"})


def test_settings_of_a_group_read_back_and_are_compared_one_by_one(tmp_path):
    settings = {**SETTINGS, "lora": {"rank": 4, "targets": ("q",)}, "bitfit": {}}
    assert tomllib.loads(recipe_text(settings))["lora"] == {"rank": 4, "targets": ["q"]}
    begin_run(tmp_path, settings)
    check_recipe(tmp_path, settings)
    other = {**settings, "lora": {"rank": 8, "targets": ("q",)}}
    with pytest.raises(UsageError, match=r"\(lora\.rank 4 -> 8\)"):
        check_recipe(tmp_path, other)
    with pytest.raises(UsageError, match=r'lora\.rank 4 -> "none"'):
        check_recipe(tmp_path, SETTINGS)


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_what_changes_no_trained_bit_is_not_compared(tmp_path, name):
    begin_run(tmp_path, {**SETTINGS, name: 400})
    assert check_recipe(tmp_path, {**SETTINGS, name: 500}) == "begun"


def test_the_methods_own_rate_may_be_named(tmp_path):
    begin_run(tmp_path, SETTINGS | {"lr": None})  # as an earlier smidgen wrote it
    assert check_recipe(tmp_path, SETTINGS) == "begun"


def made(folder, step):
    """A checkpoint of this step, by its record."""
    place = folder / "checkpoints" / f"step-{step}"
    place.mkdir(parents=True)
    position = {"format_version": 1, "step": step, "epoch": 0, "position": 0, "identity": {}}
    (place / "state.json").write_text(json.dumps(position))


def test_a_run_is_finished_by_its_own_records(tmp_path):
    begin_run(tmp_path, SETTINGS)
    made(tmp_path, 400)
    (tmp_path / "checkpoints" / "step-999").mkdir()  # holds nothing
    for name in ("delta.safetensors", "run.json"):
        assert check_recipe(tmp_path, SETTINGS) == "begun"
        (tmp_path / name).write_text("")
    assert check_recipe(tmp_path, SETTINGS) == "finished"
    assert check_recipe(tmp_path, SETTINGS | {"steps": 500}) == "begun"


def test_steps_may_be_raised_where_the_schedule_allows_and_never_fall_behind(tmp_path):
    cosine = SETTINGS | {"lr_schedule": "cosine"}
    begin_run(tmp_path, cosine)
    assert check_recipe(tmp_path, cosine | {"steps": 500}) == "begun"  # no step is made yet
    made(tmp_path, 100)
    with pytest.raises(UsageError, match=r"cosine .* begin a new run from it with init"):
        check_recipe(tmp_path, cosine | {"steps": 500})
    with pytest.raises(UsageError, match="is at step 100 already and steps is 99; give 100"):
        check_recipe(tmp_path, cosine | {"steps": 99})


def test_force_starts_over_and_removes_nothing_else(tmp_path):
    begin_run(tmp_path, SETTINGS)
    (tmp_path / "delta.safetensors").write_text("old")
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("precious")
    other = {**SETTINGS, "lr": 1.0}
    check_recipe(tmp_path, other, force=True)
    assert (tmp_path / "delta.safetensors").exists()
    begin_run(tmp_path, other, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml", "thesis.txt"]
    check_recipe(tmp_path, other)


@pytest.mark.parametrize("force", [False, True])
def test_what_may_be_somebody_elses_is_never_replaced(tmp_path, force):
    (tmp_path / "samples").mkdir()
    with pytest.raises(UsageError, match=r"holds samples but no recipe\.toml"):
        check_recipe(tmp_path, SETTINGS, force=force)


def test_an_impossible_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        check_recipe(tmp_path / "file" / "run", SETTINGS)
