"""Every published recipe parses, says what it is and how to run it, and trains what it says."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from smidgen.api.weights import count_weights
from smidgen.cli.arguments import read_request
from smidgen.cli.train import parse_train
from smidgen.data.embedded_sets import SETS
from smidgen.errors import SmidgenError
from smidgen.files.settings import read_recipe
from smidgen.study.design import STUDY, read_design
from smidgen.study.planning import plan_study
from smidgen.study.runs import runs_of
from smidgen.training.config import RunConfig

EVERY = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
STUDIES = [path for path in EVERY if STUDY in read_recipe(path)]
RECIPES = [path for path in EVERY if path not in STUDIES]
# of those on shipped bases the small ones: the others count the same, cell by cell
PLANNED = [path for path in STUDIES if "glyphs" not in read_recipe(path)["base"]]
PLANNED += [
    path
    for path in STUDIES
    if path.stem in ("study-small", "study-personalise", "study-low-to-high")
]
RELEASED = "DiT-XL-2-256x256.pt"
DIFFFIT_PAPER = [path for path in EVERY if RELEASED in path.read_text()]


def parsed(recipe: Path, tmp_path: Path):
    places = ["--base", str(tmp_path), "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    return parse_train(read_request("train", [str(recipe), *places]))


def test_there_are_recipes():
    published = {"difffit-food101", "bitfit-food101", "personalise-sd14", "personalise-sd14-full"}
    assert {path.stem for path in RECIPES} >= published
    assert {path.stem for path in STUDIES} >= {"demo", "study-domains"}


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


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder in which the file of the released base lies, by its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / RELEASED).touch()


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_a_study_resolves_every_run_and_opens_as_recipes_do(recipe, tmp_path):
    assert f"smidgen study run recipes/{recipe.name}" in header_of(recipe)
    design = read_design(recipe, tmp_path)
    for run in runs_of(design):
        if run.design.is_tuned(run.cell):
            run = dataclasses.replace(run, tried=design.table.tune.values[0])
        assert run.request.config.training.steps > 0


def test_the_study_of_the_nine_sets_has_their_recipe_and_all_of_them(tmp_path):
    folder = Path(__file__).parents[1] / "recipes"
    design = read_design(folder / "study-domains.toml")
    assert design.fixed | {"seed": 0} == read_recipe(folder / "difffit-glyphs.toml")
    assert [run.cell["data"] for run in runs_of(design)] == list(SETS)


def counted(config: RunConfig, base: str) -> int:
    """What it trains, by the architecture of its base: of DiT-XL/2 with the 101 classes of Food, or
    those of ImageNet.
    """
    of_classes = "DiT-XL" in base
    classes = 1000 if config.layout == "imagenet" else 101
    found = count_weights(
        "DiT-XL/2" if of_classes else "sd-1.4",
        num_classes=classes if of_classes else None,
        method=config.method,
        method_config=config.method_config,
        train_labels=config.training.train_labels,
    )
    return found["trainable"]


def stated(recipe: Path) -> list[int]:
    """The numbers of parameters that the header gives in full."""
    (line,) = re.findall(r"^# Trains (.*\n(?:#  +.*\n)*)", recipe.read_text(), re.MULTILINE)
    return [int(number.replace(",", "")) for number in re.findall(r"\d+(?:,\d{3})+", line)]


def trains(paths: list[Path]) -> list[Path]:
    return [path for path in paths if "# Trains " in path.read_text()]


@pytest.mark.parametrize("recipe", trains(RECIPES), ids=lambda path: path.stem)
def test_a_recipe_trains_as_many_parameters_as_its_header_says(recipe, tmp_path):
    config = parsed(recipe, tmp_path)["run"]
    assert counted(config, read_recipe(recipe)["base"]) == stated(recipe)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("recipe", trains(STUDIES), ids=lambda path: path.stem)
def test_the_arms_of_a_study_train_between_what_its_header_says(recipe, tmp_path):
    design = read_design(recipe, tmp_path)
    arms = {tuple(design.arm_of(run.cell).values()): run for run in runs_of(design)}
    found = [counted(run.request.config, design.fixed["base"]) for run in arms.values()]
    of_all = stated(recipe)
    assert (min(found), max(found)) == (min(of_all), max(of_all))
    if len(of_all) == len(found):
        assert sorted(found) == sorted(of_all)


@pytest.mark.parametrize("recipe", PLANNED, ids=lambda path: path.stem)
def test_a_study_is_planned_or_says_in_one_line_what_is_missing(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    design = read_design(recipe, tmp_path / "study")
    base = design.fixed["base"]
    if base.startswith("glyphs"):
        assert plan_study(design)["impossible"] == 0
    else:
        with pytest.raises(SmidgenError, match=rf"^[^\n]*{base}[^\n]*$"):
            plan_study(design)


@pytest.mark.usefixtures("released")
@pytest.mark.parametrize("recipe", DIFFFIT_PAPER, ids=lambda path: path.stem)
def test_the_recipes_of_the_difffit_paper_train_as_it_says(recipe, tmp_path):
    for config in configs_of(recipe, tmp_path):
        training = config.training
        assert training.max_grad_norm is None
        assert training.validation_share == 0
        assert (training.ema_decay, training.ema_warmup) == (0.9999, False)
        assert (training.lr_schedule, training.warmup_steps) == ("constant", 0)
        assert training.lr == (1e-4 if config.method == "full" else 1e-3)
        higher = config.layout == "imagenet"
        batch = training.batch_size * training.gradient_accumulation
        assert (batch, training.steps) == ((1024, 30000) if higher else (256, 24000))
        assert config.flip


def configs_of(recipe: Path, tmp_path: Path) -> Iterator[RunConfig]:
    if recipe in STUDIES:
        yield from (run.request.config for run in runs_of(read_design(recipe, tmp_path)))
    else:
        yield parsed(recipe, tmp_path)["run"]
