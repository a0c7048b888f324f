import tomllib

import pytest

from smidgen.errors import UsageError
from smidgen.training.recipe import begin_run, check_recipe, is_finished, recipe_text

SETTINGS = {
    "data": 'odd "name" \\ \n é \x7f',
    "steps": 400,
    "lr": None,
    "vlb_weight": 1e-3,
    "flip": False,
    "gammas": ("block", "qkv"),
    "num_threads": 2,
}


def test_a_recipe_reads_back():
    assert tomllib.loads(recipe_text(SETTINGS)) == {
        **SETTINGS,
        "lr": "none",
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
    with pytest.raises(UsageError, match=r'steps 400 -> 500, lr "none" -> 0\.001') as error:
        check_recipe(tmp_path, {**SETTINGS, "lr": 1e-3, "steps": 500})
    assert "flip" not in str(error.value)
    with pytest.raises(UsageError, match="flip"):
        check_recipe(tmp_path, {name: v for name, v in SETTINGS.items() if name != "flip"})


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


def test_where_a_run_happens_is_not_compared(tmp_path):
    begin_run(tmp_path, SETTINGS)
    check_recipe(tmp_path, {**SETTINGS, "num_threads": 8})


def test_force_starts_over_and_removes_nothing_else(tmp_path):
    begin_run(tmp_path, SETTINGS)
    (tmp_path / "delta.safetensors").write_text("old")
    (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("precious")
    other = {**SETTINGS, "steps": 500}
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


def test_a_run_is_finished_by_its_last_checkpoint_and_its_delta(tmp_path):
    (tmp_path / "checkpoints" / "step-10").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-20.partial").mkdir()
    assert not is_finished(tmp_path, 10)
    (tmp_path / "delta.safetensors").write_text("")
    assert is_finished(tmp_path, 10)
    assert not is_finished(tmp_path, 20)
