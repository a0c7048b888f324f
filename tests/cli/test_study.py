"""`smidgen study` end to end on a tiny base: what is run, left alone, tuned, told and reported."""

from __future__ import annotations

import csv
import json
import re

import pytest

from smidgen.api.training import run as train
from smidgen.core.delta import Delta
from smidgen.files.lock import held
from smidgen.files.reading import sha256_of
from smidgen.models.pretrained import load_base
from smidgen.study import execute
from smidgen.study.design import read_design
from smidgen.study.queue import run_all
from smidgen.study.runs import runs_of, states, tuning_of
from smidgen.training.interrupt import Interrupted

SETTINGS = """
base = "{base}"
data = "{photos}"
reference = "{photos}"
output = "{output}"
steps = 2
batch_size = 4
trackers = []
num_threads = 1
validation_share = 0.3
validate_every = 1
{more}
[study]
seeds = {seeds}
against = "bitfit"
curve = true
{study}
[study.factors]
method = ["difffit", "bitfit"]

[study.sampling]
num_images = 6
steps = 2
"""


def write_study(base, photos, tmp_path, *, seeds="[0, 1]", study="", more="", tail=""):
    path = tmp_path / "study.toml"
    places = {"base": base, "photos": photos, "output": tmp_path / "study"}
    path.write_text(SETTINGS.format(**places, seeds=seeds, study=study, more=more) + tail)
    return path


@pytest.fixture
def recipe(base, photos, tmp_path):
    return write_study(base, photos, tmp_path)


@pytest.fixture(scope="module")
def done(base, photos, tmp_path_factory):
    """A recipe whose runs are finished."""
    path = write_study(base, photos, tmp_path_factory.mktemp("studies"))
    assert run_all(read_design(path)) == {"finished": 4}
    return path


def results(recipe):
    return {run.name: run.folder / "result.json" for run in runs_of(read_design(recipe))}


def test_a_plan_counts_and_writes_nothing(smidgen, recipe):
    outcome = smidgen("study", "plan", recipe, "--json")
    assert outcome.code == 0, outcome.err
    plan = outcome.document
    assert (plan["runs"], plan["states"]) == (4, {"missing": 4})
    design = read_design(recipe)
    assert not design.output.exists()
    for row in plan["cells"]:
        base, photos = design.fixed["base"], design.fixed["data"]
        method = ("--base", base, "--data", photos, "--method", row["cell"]["method"])
        counted = smidgen("train", *method, "--output", design.output, "--dry-run", "--json")
        assert row["parameters"] == counted.document["trainable"]


def test_a_plan_says_in_the_librarys_words_what_cannot_be(smidgen, base, photos, tmp_path):
    path = write_study(base, photos, tmp_path)
    path.write_text(
        path.read_text()
        .replace('against = "bitfit"', "")
        .replace('method = ["difffit", "bitfit"]', "")
        .replace("[study.factors]", '[study.factors]\nblocks = ["all", "9-10"]')
    )
    plan = smidgen("study", "plan", path, "--json").document
    reasons = {row["cell"]["blocks"]: row.get("reason") for row in plan["cells"]}
    assert reasons["all"] is None
    assert "9-10" in reasons["9-10"]
    assert plan["impossible"] == 1
    assert smidgen("study", "run", path).code == 0
    status = smidgen("study", "status", path, "--json").document["runs"]
    found = {(row["run"], row["state"]) for row in status}
    assert ("runs/all-0", "finished") in found
    assert ("runs/9-10-0", "failed") in found


def test_a_finished_study_is_left_as_it_is(smidgen, done):
    before = {path: path.stat().st_mtime_ns for path in results(done).values()}
    outcome = smidgen("study", "run", done)
    assert outcome.code == 0
    assert "4 finished" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_numbers_of_a_run_are_those_of_train_and_evaluate(smidgen, done, tmp_path):
    design = read_design(done)
    run = runs_of(design)[0]
    kept = json.loads((run.folder / "result.json").read_text())
    folder, fixed = tmp_path / "run", design.fixed
    given = ("--base", fixed["base"], "--data", fixed["data"], "--output", folder)
    settings = ("--steps", 2, "--batch-size", 4, "--trackers", "--validation-share", 0.3)
    more = ("--validate-every", 1, "--num-threads", 1, "--method", "difffit", "--seed", 0)
    assert smidgen("train", *given, *settings, *more).code == 0
    drawn = ("--num-images", 6, "--steps", 2, "--seed", 0, "--reference", fixed["data"])
    alone = smidgen("evaluate", folder, *drawn, "--json").document
    assert (folder / "delta.safetensors").read_bytes() == (
        run.folder / "delta.safetensors"
    ).read_bytes()
    for name, value in alone["metrics"].items():
        mean = value["mean"] if isinstance(value, dict) else value
        assert kept["metrics"][name] == mean
    assert set(kept["curve"]) == {"1", "2"}
    assert kept["curve"]["2"] == kept["metrics"]


@pytest.mark.slow
def test_a_result_of_other_settings_is_shown_and_never_averaged_in(smidgen, recipe):
    assert smidgen("study", "run", recipe).code == 0
    text = recipe.read_text()
    recipe.write_text(text.replace("num_images = 6", "num_images = 8"))
    status = smidgen("study", "status", recipe, "--json").document["runs"]
    assert {row["state"] for row in status} == {"other settings"}
    assert "sampling.num_images 6 -> 8" in status[0]["why"]
    analysed = smidgen("study", "analyse", recipe)
    assert (analysed.code, "no run is finished" in analysed.err) == (1, True)
    refused = smidgen("study", "run", recipe)
    assert refused.code == 2
    assert "--force" in refused.err
    assert smidgen("study", "run", recipe, "--force").code == 0
    status = smidgen("study", "status", recipe, "--json").document["runs"]
    assert {row["state"] for row in status} == {"finished"}


def test_a_committed_result_counts_without_its_delta(smidgen, recipe):
    assert smidgen("study", "run", recipe).code == 0
    for path in results(recipe).values():
        (path.parent / "delta.safetensors").unlink()
    outcome = smidgen("study", "run", recipe, "--json")
    assert outcome.document["states"] == {"finished": 4}
    assert not any(
        (path.parent / "delta.safetensors").exists() for path in results(recipe).values()
    )


@pytest.mark.slow
def test_parts_together_do_everything_once(smidgen, recipe):
    assert smidgen("study", "run", recipe, "--part", "1/2").code == 0
    assert sum(path.exists() for path in results(recipe).values()) == 2
    first = {path: path.read_bytes() for path in results(recipe).values() if path.exists()}
    assert smidgen("study", "run", recipe, "--part", "2/2").code == 0
    assert all(path.exists() for path in results(recipe).values())
    assert {path: path.read_bytes() for path in first} == first


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_in_no_number(smidgen, base, photos, tmp_path):
    levels = '[study.factors.method]\nfine = { method = "difffit" }\n'
    levels += 'wild = { method = "difffit", lr = 1e30, max_grad_norm = "none" }\n'
    path = write_study(base, photos, tmp_path, more="")
    path.write_text(
        path.read_text()
        .replace('against = "bitfit"', "")
        .replace('[study.factors]\nmethod = ["difffit", "bitfit"]\n', levels)
        .replace("steps = 2\nbatch", "steps = 6\nbatch")
    )
    outcome = smidgen("study", "run", path, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["states"] == {"finished": 2, "failed": 2}
    again = smidgen("study", "run", path)
    assert "wild" not in again.err  # it would fail in the same way
    found = smidgen("study", "analyse", path, "--json").document
    assert (found["finished"], found["runs"]) == (2, 4)
    assert "2 of 4 runs have no result" in " ".join(found["notes"])
    report = smidgen("study", "report", path)
    page = (tmp_path / "study" / "report.html").read_text()
    assert report.code == 0
    assert "not finite" in page
    assert "None" not in (tmp_path / "study" / "report.md").read_text()


@pytest.mark.slow
def test_every_arm_is_tuned_on_the_same_grid_and_runs_with_what_was_best(
    smidgen, base, photos, tmp_path
):
    path = write_study(
        base, photos, tmp_path, seeds="[3]", tail="\n[study.tune]\nvalues = [1e-6, 3e-2]\n"
    )
    outcome = smidgen("study", "run", path, "--json")
    assert outcome.code == 0, outcome.err
    design = read_design(path)
    for method in ("difffit", "bitfit"):
        losses = {}
        for run in tuning_of(design, {"method": method}):
            losses[run.tried] = run.result.training["validation_loss"]
        assert set(losses) == {1e-6, 3e-2}
        (run,) = [one for one in runs_of(design) if one.cell["method"] == method]
        assert run.settings["lr"] == min(losses, key=losses.get)
        kept = json.loads((run.folder / "result.json").read_text())
        assert kept["settings"]["lr"] == run.settings["lr"]


def test_the_table_is_one_that_anova_reads(smidgen, done):
    outcome = smidgen("study", "analyse", done, "--json")
    assert outcome.code == 0, outcome.err
    found, table = outcome.document, read_design(done).output / "table.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "0", "1", "1"]
    asked = ("--metric", "fd", "--factors", "method", "--json")
    alone = smidgen("anova", table, *asked).document
    assert alone["terms"] == found["anova"]["terms"]
    for arm in found["arms"]:
        own = [float(row["fd"]) for row in rows if row["method"] == arm["arm"]]
        assert arm["mean"] == pytest.approx(sum(own) / 2)
    (compared,) = found["comparisons"]
    assert compared["methods"] == ["difffit", "bitfit"]


def test_the_report_is_one_page_that_needs_nothing_else(smidgen, done):
    outcome = smidgen("study", "report", done)
    folder = read_design(done).output
    assert outcome.out.splitlines()[-1] == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<svg") == len(list((folder / "figures").glob("*.png")))
    for text in ("difffit", "bitfit", "Analysis of variance", "data:image/png;base64"):
        assert text in page
    words = (folder / "report.md").read_text()
    assert "| difffit |" in words
    for picture in re.findall(r"\]\(([^)]+\.png)\)", words):
        assert (folder / picture).is_file()
    before = page
    assert smidgen("study", "report", done).code == 0
    assert (folder / "report.html").read_text() == before


def test_levels_that_differ_in_how_is_drawn_share_a_training(smidgen, base, photos, tmp_path):
    factor = '"sampling.guidance" = [1.0, 3.0]\n'
    path = write_study(base, photos, tmp_path, seeds="[0]")
    text = path.read_text().replace('against = "bitfit"\n', "")
    path.write_text(text.replace("[study.factors]\n", f"[study.factors]\n{factor}"))
    assert smidgen("study", "run", path, "--json").document["states"] == {"finished": 4}
    design = read_design(path)
    assert design.drawn == ("sampling.guidance",)
    runs = runs_of(design)
    assert len({run.trained for run in runs}) == 2
    assert all((run.trained / "delta.safetensors").is_file() for run in runs)
    found = {tuple(run.cell.values()): run.result for run in runs}
    for method in ("difffit", "bitfit"):
        one, three = (found[guidance, method] for guidance in ("1.0", "3.0"))
        assert one.training["seconds"] == three.training["seconds"]
        assert one.metrics["fd"] != three.metrics["fd"]
        assert (one.settings["sampling.guidance"], three.settings["sampling.guidance"]) == (1, 3)


@pytest.mark.slow
def test_what_another_process_trains_is_left_to_it_and_no_failure(smidgen, base, photos, tmp_path):
    factor = '"sampling.guidance" = [1.0, 3.0]\n'
    path = write_study(base, photos, tmp_path, seeds="[0]")
    text = path.read_text().replace('against = "bitfit"\n', "")
    path.write_text(text.replace("[study.factors]\n", f"[study.factors]\n{factor}"))
    first = next(iter(runs_of(read_design(path))))
    with held(first.trained):
        states = smidgen("study", "run", path, "--json").document["states"]
    assert states == {"begun": 2, "finished": 2}
    assert not list((tmp_path / "study").rglob("failure.json"))
    assert smidgen("study", "run", path, "--json").document["states"] == {"finished": 4}


FIRST = """
[study.factors.method]
fresh = { method = "difffit" }
begun = { method = "difffit", init_from = { steps = 1, lr = 0.01 } }
"""


@pytest.fixture
def with_first(base, photos, tmp_path):
    """A recipe with an arm that begins from the delta of another training."""
    path = write_study(base, photos, tmp_path, seeds="[0]", study="before = true")
    text = path.read_text().replace('against = "bitfit"', "")
    path.write_text(text.replace('[study.factors]\nmethod = ["difffit", "bitfit"]\n', FIRST))
    return path


@pytest.mark.slow
def test_an_arm_begins_from_a_delta_that_is_trained_first(smidgen, with_first, tmp_path):
    plan = smidgen("study", "plan", with_first, "--json").document
    told = {row["cell"]["method"]: row.get("begins_from") for row in plan["cells"]}
    assert told == {"fresh": None, "begun": {"steps": 1, "lr": 0.01}}
    assert smidgen("study", "run", with_first, "--json").document["states"] == {"finished": 2}
    design = read_design(with_first)
    (run,) = [one for one in runs_of(design) if one.cell["method"] == "begun"]
    first = design.output / "begun-from" / "runs" / "begun-0"
    assert not (first / "checkpoints").exists()
    assert (run.result.settings["init_from.steps"], run.result.settings["steps"]) == (1, 2)
    assert run.result.training["first_seconds"] > 0
    # what is measured as the delta before is that one
    start, made = (
        Delta.load(one / file).state_dict()
        for one, file in ((run.folder, "start.safetensors"), (first, "delta.safetensors"))
    )
    assert all(start[name].equal(made[name]) for name in made)
    # as train does it
    fixed, settings = design.fixed, ("--batch-size", 4, "--trackers", "--validation-share", 0.3)
    given = ("--base", fixed["base"], "--data", fixed["data"], *settings, "--validate-every", 1)
    given = ("train", *given, "--num-threads", 1)
    one, two = tmp_path / "one", tmp_path / "two"
    assert smidgen(*given, "--output", one, "--steps", 1, "--lr", 0.01).code == 0
    begun = ("--init", one / "delta.safetensors")
    assert smidgen(*given, "--output", two, "--steps", 2, "--seed", 0, *begun).code == 0
    delta = (two / "delta.safetensors").read_bytes()
    assert delta == (run.folder / "delta.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_at_twice_the_size_begins_from_a_delta_at_the_bases_own(
    smidgen, base, photos, tmp_path
):
    own = load_base(base).image_size.width
    levels = f"[study.factors.start]\nplain = {{ image_size = {2 * own}, positions = 'extend' }}\n"
    levels += f"begun = {{ image_size = {2 * own}, positions = 'stretch', "
    levels += f"init_from = {{ image_size = {own} }} }}\n"
    path = write_study(base, photos, tmp_path, seeds="[0]")
    text = path.read_text().replace('against = "bitfit"', "").replace("method =", "resize =")
    path.write_text(text.replace('[study.factors]\nresize = ["difffit", "bitfit"]\n', levels))
    assert smidgen("study", "run", path, "--json").document["states"] == {"finished": 2}
    found = {run.cell["start"]: run for run in runs_of(read_design(path))}
    deltas = {name: Delta.load(run.folder / "delta.safetensors") for name, run in found.items()}
    data = {name: delta.provenance.training["data"] for name, delta in deltas.items()}
    assert data["plain"]["image_size"] == data["begun"]["image_size"] == 2 * own
    assert (data["plain"]["positions"], data["begun"]["positions"]) == ("extend", "stretch")
    first = found["begun"].request.trainings[0].output / "delta.safetensors"
    assert deltas["begun"].provenance.training["init"] == sha256_of(first)


@pytest.mark.slow
def test_a_report_has_the_step_in_place_of_the_seconds_once_it_was_timed(smidgen, recipe):
    assert smidgen("study", "run", recipe).code == 0
    assert smidgen("study", "report", recipe).code == 0
    words = read_design(recipe).output / "report.md"
    assert "training, s" in words.read_text()
    assert smidgen("study", "time", recipe).code == 0
    assert smidgen("study", "report", recipe).code == 0
    assert "training, s" not in words.read_text()
    assert "of bitfit's" in words.read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_delta_that_was_trained_first(
    smidgen, with_first, monkeypatch
):
    (run,) = [r for r in runs_of(read_design(with_first)) if r.cell["method"] == "begun"]
    first, second = run.request.trainings

    def killed(base, config, **more):
        if config.output == second.output:
            raise Interrupted("stopped", 15)
        return train(base, config, **more)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "train", killed)
        with pytest.raises(Interrupted):
            execute.perform(run)
    made = first.output / "delta.safetensors"
    before = made.stat().st_mtime_ns
    assert [state for _, state, _ in states([run])] == ["begun"]
    assert smidgen("study", "run", with_first, "--json").document["states"] == {"finished": 2}
    assert made.stat().st_mtime_ns == before  # it was done and is not done again


@pytest.mark.slow
def test_a_result_with_another_first_training_is_of_other_settings(smidgen, with_first):
    assert smidgen("study", "run", with_first).code == 0
    with_first.write_text(with_first.read_text().replace("steps = 1, lr", "steps = 2, lr"))
    status = smidgen("study", "status", with_first, "--json").document["runs"]
    why = {row["run"]: row["why"] for row in status}
    assert why["runs/fresh-0"] == ""
    assert 'init_from.steps 1 -> "none"' in why["runs/begun-0"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("lr = 0.01 }", 'method = "bitfit" }'), 'method "bitfit" -> "difffit"'),
        (("begun = {", 'begun = { init = "x",'), "give one"),
        (("lr = 0.01 }", "seed = 5 }"), "give seeds"),
    ],
)
def test_a_first_training_that_cannot_be_begun_from_is_told(smidgen, with_first, change, complaint):
    assert change[0] in with_first.read_text()
    with_first.write_text(with_first.read_text().replace(*change))
    plan = smidgen("study", "plan", with_first, "--json").document
    reasons = [row["reason"] for row in plan["cells"] if "reason" in row]
    assert [complaint in reason for reason in reasons] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--workers", "2"), ("--ray", "local")])
def test_several_processes_leave_what_one_leaves(smidgen, base, photos, tmp_path, how, done):
    path = write_study(base, photos, tmp_path, seeds="[0]")
    if how[0] == "--ray":
        pytest.importorskip("ray")
    outcome = smidgen("study", "run", path, *how, "--json")
    assert outcome.document["states"] == {"finished": 2}
    for name, result in results(path).items():
        kept, alone = (json.loads(one.read_text()) for one in (result, results(done)[name]))
        assert kept["metrics"] == alone["metrics"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('against = "bitfit"', 'against = "bitfitt"'), 'did you mean "bitfit"?'),
        (("seeds = [0, 1]", "seeds = []"), "seeds are empty"),
        (("[study.sampling]", "[study.sampels]"), "sampels"),
        (('["difffit", "bitfit"]', '["difffit"]'), "has 1 level"),
        (("num_images = 6", "num_imagess = 6"), "num_imagess"),
        (("steps = 2\nbatch", "stepps = 2\nbatch"), "stepps"),
        (("curve = true", 'blocks = ["dat"]'), 'unknown block "dat"'),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_that_names_it(smidgen, recipe, change, complaint):
    text = recipe.read_text()
    assert change[0] in text
    recipe.write_text(text.replace(*change))
    outcome = smidgen("study", "plan", recipe)
    assert outcome.code == 2
    assert len(outcome.complaint) == 1
    assert complaint in outcome.complaint[0]
