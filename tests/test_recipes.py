"""Every published recipe parses, says what it is and how to run it, and trains what it says."""

import dataclasses
import re
from pathlib import Path

import pytest

from smidgen import api
from smidgen.cli.arguments import read_request
from smidgen.cli.train import parse_train

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


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
    header = recipe.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    for word in ("Command", "Time", "Numbers"):
        assert f"# {word} " in header
    assert f"smidgen train recipes/{recipe.name}" in header


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
