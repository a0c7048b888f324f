"""What a study measures beside its runs' ends: what they began with, and what they kept on the way;
and the report of a study of one arm.
"""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import smidgen as package
from smidgen.core.delta import Delta
from smidgen.sampling.config import SamplingConfig
from smidgen.study.design import read_design
from smidgen.study.measuring import _in_turn
from smidgen.study.queue import run_all
from smidgen.study.runs import runs_of
from smidgen.training.state import step_of

STUDY = """
base = "{base}"
output = "{output}"
method = "difffit"
steps = {steps}
lr = {lr}
batch_size = 4
trackers = []
num_threads = 1
validation_share = 0.3
validate_every = 1
{more}
[study]
blocks = ["data"]
metric = "kid"
also = ["kid_before", "fd"]
{study}
[study.factors.data]
photos = {{ data = "{photos}", reference = "{photos}" }}

[study.sampling]
num_images = 6
steps = 2
"""
ALL = "before = true\nof_data = true\ncurve = true\ncurve_images = 4\nkeep_samples = true\n"


def write_study(base, photos, folder, *, steps=2, lr=1e-2, more="", study=ALL):
    path = folder / "study.toml"
    given = {"base": base, "photos": photos, "output": folder / "study", "steps": steps, "lr": lr}
    path.write_text(STUDY.format(**given, more=more, study=study))
    return path


@pytest.fixture(scope="module")
def done(base, photos, tmp_path_factory):
    """A study of one run that is finished."""
    path = write_study(base, photos, tmp_path_factory.mktemp("one"))
    assert run_all(read_design(path)) == {"finished": 1}
    return path


def run_in(path):
    (run,) = runs_of(read_design(path))
    return run


def run_result(run):
    return (run.folder / "result.json").read_text()


def evaluated(source, photos, num_images=6, **settings):
    """The metrics that `smidgen.evaluate` gives."""
    drawn = SamplingConfig(num_images=num_images, steps=2)
    metrics = package.evaluate(source, photos, sampling=drawn, **settings)["metrics"]
    return {name: v["mean"] if isinstance(v, dict) else v for name, v in metrics.items()}


def test_before_and_after_are_what_evaluate_says_of_the_two_deltas(done, photos):
    folder = run_in(done).folder
    kept = json.loads((folder / "result.json").read_text())
    before = evaluated(folder / "start.safetensors", photos)
    after = evaluated(folder / "delta.safetensors", photos)
    assert {f"{name}_before": one for name, one in before.items()}.items() <= (
        kept["baselines"].items()
    )
    assert kept["metrics"] == after
    assert before["kid"] != after["kid"]
    assert (kept["curve"]["0"], kept["curve"]["2"]) == (before, after)


def test_images_of_the_data_are_measured_as_the_training_sees_them(done, photos, tmp_path):
    """Where there are fewer images than samples, of all, in the size that the training sees."""
    many = write_study(
        run_in(done).design.fixed["base"], photos, tmp_path, study="of_data = true\n"
    )
    count = len(list(photos.glob("*/*")))
    many.write_text(many.read_text().replace("num_images = 6", f"num_images = {count + 5}"))
    assert run_all(read_design(many)) == {"finished": 1}
    for path in photos.glob("*/*"):
        fitted = Image.open(path).convert("RGB")
        side = min(fitted.size)
        left, top = ((length - side) // 2 for length in fitted.size)
        fitted = fitted.crop((left, top, left + side, top + side)).resize((8, 8), Image.BICUBIC)
        (tmp_path / "fitted" / path.parent.name).mkdir(parents=True, exist_ok=True)
        fitted.save(tmp_path / "fitted" / path.parent.name / f"{path.stem}.png")
    alone = package.evaluate(tmp_path / "fitted", photos)["metrics"]
    found = json.loads(run_result(run_in(many)))["baselines"]
    assert found["fd_of_data"] == pytest.approx(alone["fd"], rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_in_turn_no_class_is_ahead_by_more_than_one_while_all_have_some(count):
    classes = [0] * 5 + [1] * 2 + [2] * 3
    places = _in_turn(classes)
    assert sorted(places) == list(range(10))
    seen = [classes[place] for place in places]
    assert seen[:6].count(0) == seen[:6].count(1) == seen[:6].count(2) == 2
    assert max(seen[:count].count(k) for k in range(3)) == -(-count // 3)


def test_on_the_way_the_studys_metric_is_measured_by_fewer_images(done, photos):
    folder = run_in(done).folder
    kept = json.loads((folder / "result.json").read_text())
    (path,) = [path for path in (folder / "deltas").iterdir() if step_of(path) == 1]
    alone = evaluated(path, photos, num_images=4, metrics="kid")
    assert kept["curve"]["1"] == {"kid": alone["kid"]}


def test_kept_samples_are_not_drawn_again(done):
    run = run_in(done)
    first = {path: path.stat().st_mtime_ns for path in run.folder.glob("*/*.png")}
    assert {path.parent.name for path in first} == {"before", "after"}
    assert len(first) == 12
    before = (run.folder / "result.json").read_text()
    (run.folder / "result.json").unlink()
    assert run_all(read_design(done)) == {"finished": 1}
    assert {path: path.stat().st_mtime_ns for path in first} == first
    metrics, again = (json.loads(text)["metrics"] for text in (before, run_result(run)))
    assert metrics == again


@pytest.mark.parametrize("method", ["difffit", "lora"])
def test_a_run_that_learns_nothing_ends_with_the_delta_that_it_began_with(
    base, photos, tmp_path, method
):
    """A rate at which no number of float32 but zero can change."""
    path = write_study(base, photos, tmp_path, steps=1, lr=1e-30, study="before = true\n")
    path.write_text(path.read_text().replace("difffit", method))
    assert run_all(read_design(path)) == {"finished": 1}
    folder = run_in(path).trained
    began, ended = (Delta.load(folder / f"{name}.safetensors") for name in ("start", "delta"))
    assert began.provenance.classes == ended.provenance.classes
    for name, value in ended.state_dict().items():
        torch.testing.assert_close(began.state_dict()[name], value, rtol=1e-6, atol=1e-28)


def test_a_run_that_begins_from_a_delta_has_that_one_before(base, photos, tmp_path, done):
    init = run_in(done).folder / "delta.safetensors"
    more = f'init = "{init}"'
    path = write_study(base, photos, tmp_path, more=more, study="before = true\n")
    assert run_all(read_design(path)) == {"finished": 1}
    began = Delta.load(run_in(path).trained / "start.safetensors").state_dict()
    for name, value in Delta.load(init).state_dict().items():
        torch.testing.assert_close(began[name], value, rtol=0, atol=0)


def test_a_study_of_one_arm_is_reported_by_its_sets(smidgen, done):
    outcome = smidgen("study", "report", done)
    assert outcome.code == 0, outcome.err
    folder = read_design(done).output
    kept = json.loads(run_result(run_in(done)))
    words = (folder / "report.md").read_text()
    numbers = (kept["metrics"]["kid"], kept["baselines"]["kid_before"], kept["metrics"]["fd"])
    shown = " | ".join(f"{one:.4g}" for one in numbers)
    assert f"| photos | {shown} | " in words
    assert "| difffit | " in words
    assert "nothing to compare" in words
    assert "curves" in words


@pytest.mark.parametrize(
    ("study", "metric", "complaint"),
    [
        ("curve_images = 4\n", "kid", "without a curve"),
        ("curve = true\ncurve_images = 4\n", "fd", "higher or lower for few"),
        ("curve = true\ncurve_images = 0\n", "kid", "curve_images"),
    ],
)
def test_a_curve_of_fewer_images_is_refused_where_they_do_not_compare(
    smidgen, base, photos, tmp_path, study, metric, complaint
):
    path = write_study(base, photos, tmp_path, study=study)
    path.write_text(path.read_text().replace('metric = "kid"', f'metric = "{metric}"'))
    outcome = smidgen("study", "plan", path)
    assert outcome.code == 2
    assert complaint in outcome.complaint[0]


@pytest.mark.parametrize(
    ("study", "complaint"),
    [("before = true\n", "before is of no use"), ("keep_samples = true\n", "images of classes")],
)
def test_a_subject_has_neither_a_before_nor_samples_of_classes(smidgen, tmp_path, study, complaint):
    path = tmp_path / "study.toml"
    path.write_text(
        f'output = "{tmp_path / "study"}"\nbase = "glyphs-text"\ntask = "dreambooth"\n'
        'token = "sks"\nclass_name = "owl"\nmethod = "bitfit"\n'
        f'[study]\nblocks = ["data"]\n{study}[study.factors]\ndata = ["subjects/owl-ink"]\n'
    )
    outcome = smidgen("study", "status", path)
    assert complaint in outcome.out
