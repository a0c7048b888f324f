"""A personalisation by the command line: what it says before it begins, and how it is refused."""

import json

import pytest

from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES

from .conftest import train_arguments

OWL = ["--task", "dreambooth", "--token", "sks", "--class-name", "owl", "--class-images", "3"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture
def subject(tmp_path):
    for number in range(3):
        write_image(tmp_path / "subject" / f"{number}.png", seed=number)
    return tmp_path / "subject"


@pytest.mark.slow
def test_it_is_planned_trained_and_drawn(smidgen, pipeline, subject, tmp_path):
    arguments = train_arguments(pipeline, subject, tmp_path / "run", "--method", "lora", *OWL)
    planned = smidgen(*arguments, "--dry-run")
    assert planned.code == 0, planned.err
    assert "# subject prompt: a photo of sks owl" in planned.out
    assert "# subject class images: 3, drawn by the base where the cache lacks them" in planned.out
    trained = smidgen(*arguments, "--json")
    assert trained.code == 0, trained.err
    assert len(list((tmp_path / "cache" / "class-images").rglob("*.png"))) == 3
    assert smidgen(*arguments, "--dry-run", "--json").document["run"] == "finished"
    draw = ["--delta", trained.document["delta"], "--steps", "2", "--output", tmp_path / "drawn"]
    drawn = smidgen("sample", "--base", pipeline, *draw, "--json")
    assert list(drawn.document["images"].values()) == ["a photo of sks owl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "dreambooth"], "token is None; task dreambooth expects one word"),
        (["--token", "sks"], 'token is of no use to task "fine-tune"'),
        ([*OWL[:-2], "--class-data", "nowhere"], "no such folder of images: nowhere"),
        ([*OWL, "--prior-weight", "0"], "class_images is of no use where prior_weight is 0"),
    ],
)
def test_misuse_is_one_line_before_anything_is_loaded(smidgen, subject, tmp_path, flags, message):
    outcome = smidgen(*train_arguments(tmp_path, subject, tmp_path / "run", *flags))
    assert outcome.code == 2
    assert len(outcome.complaint) == 1
    assert message in outcome.err


@pytest.mark.slow
def test_a_study_of_subjects_says_how_far_each_method_came(smidgen, pipeline, subject, tmp_path):
    recipe = tmp_path / "study.toml"
    recipe.write_text(
        f'base = "{pipeline}"\ndata = "{subject}"\noutput = "{tmp_path / "study"}"\n'
        'task = "dreambooth"\ntoken = "sks"\nclass_name = "owl"\nclass_images = 2\nsteps = 1\n'
        "batch_size = 1\ntrackers = []\n[study]\nmetric = 'clip_i_way'\nbetter = 'high'\n"
        "also = ['clip_i', 'clip_i_of_base', 'drift']\n[study.factors]\n"
        "method = ['lora', 'bitfit']\n[study.sampling]\nsteps = 1\nnum_images = 13\n"
        "[study.evaluation]\nfeatures = 'clip-glyphs'\n"
    )
    assert smidgen("study", "run", recipe, "--json").document["states"] == {"finished": 2}
    found = smidgen("study", "analyse", recipe, "--json").document
    assert "no analysis of variance" in " ".join(found["notes"])  # of one seed
    for arm in found["arms"]:
        run = tmp_path / "study" / "runs" / f"{arm['arm']}-0"
        kept = json.loads((run / "result.json").read_text())
        numbers, beside = kept["metrics"], kept["baselines"]
        floor, ceiling = beside["clip_i_of_base"], beside["clip_i_of_reference"]
        if ceiling > floor:
            assert arm["mean"] == pytest.approx((numbers["clip_i"] - floor) / (ceiling - floor))
        assert arm["also"]["drift"][0] == pytest.approx(numbers["drift"])
        assert (run / "samples.png").is_file()
    assert smidgen("study", "report", recipe).code == 0
