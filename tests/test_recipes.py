"""Every published recipe parses, says what it is and how to run it, and trains what it says."""

import dataclasses
import re
from pathlib import Path

import pytest

from smidgen import api
from smidgen.cli.arguments import read_request
from smidgen.cli.train import parse_train
from smidgen.files.settings import read_recipe
from smidgen.study.design import STUDY, read_design
from smidgen.study.runs import runs_of

EVERY = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
STUDIES = [path for path in EVERY if STUDY in read_recipe(path)]
RECIPES = [path for path in EVERY if path not in STUDIES]


def parsed(recipe: Path, tmp_path: Path):
    places = ["--base", str(tmp_path), "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    return parse_train(read_request("train", [str(recipe), *places]))


def test_there_are_recipes():
    published = {"difffit-food101", "bitfit-food101", "personalise-sd14", "personalise-sd14-full"}
    assert {path.stem for path in RECIPES} >= published | {"demo"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_opens_with_what_it_is_its_command_time_and_numbers(recipe, tmp_path):
    settings = parsed(recipe, tmp_path)
    assert settings["run"].training.steps > 0
    assert f"smidgen train recipes/{recipe.name}" in header_of(recipe)


def header_of(recipe: Path) -> str:
    header = recipe.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("Command", "Time", "Numbers"):
        assert f"# {word} " in header
    return header


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_a_study_resolves_every_run_and_opens_as_recipes_do(recipe, tmp_path):
    assert f"smidgen study run recipes/{recipe.name}" in header_of(recipe)
    design = read_design(recipe, tmp_path)
    for run in runs_of(design):
        if run.design.is_tuned(run.cell):
            run = dataclasses.replace(run, tried=design.table.tune.values[0])
        assert run.request.config.training.steps > 0


@pytest.mark.parametrize(
    "recipe",
    [path for path in RECIPES if "# Trains " in path.read_text()],
    ids=lambda path: path.stem,
)
def test_a_recipe_trains_as_many_parameters_as_its_header_says(recipe, tmp_path):
    settings = parsed(recipe, tmp_path)
    stated = re.search(r"# Trains +([\d,]+)", recipe.read_text())
    of_classes = "food101" in recipe.stem
    counted = api.inspect(
        "DiT-XL/2" if of_classes else "sd-1.4",
        num_classes=101 if of_classes else None,
        method=settings["run"].method,
        method_config=dataclasses.asdict(settings["run"].method_config),
    )
    assert counted["trainable"] == int(stated[1].replace(",", ""))
