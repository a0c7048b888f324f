"""One evaluation of a personalisation: every number against the images drawn again and compared."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cosine

from smidgen import api
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation import features, personalisation
from smidgen.evaluation.compare import compare
from smidgen.evaluation.contexts import GLYPHS, PHOTOGRAPHS, prompts_of, subject_of
from smidgen.evaluation.metric_table import comparison_lines, result_lines
from smidgen.evaluation.samples import colours_right, pixel_rmse
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.sampling.config import SamplingConfig
from tests.evaluation.calls import config_of
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

from .small_clip import clip, read_texts, seen

OWL = {
    "token": "sks",
    "class_name": "owl",
    "instance_prompt": "a photo of sks owl",
    "class_prompt": "a photo of owl",
}
SAMPLING = SamplingConfig(steps=2, sampler="dpm++", guidance=2.0, seed=3, batch_size=8)
EACH = 2


@pytest.fixture(autouse=True)
def _extractors(monkeypatch):
    table = {name: partial(clip, name=name) for name in ("clip-b32", "clip-glyphs", "dinov2")}
    monkeypatch.setattr(features, "EXTRACTORS", table)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return api.load_base(TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("bases") / "sd"))


@pytest.fixture(scope="module")
def delta(base):
    made = build_delta("lora", base, configure("lora"), (), torch.Generator().manual_seed(0))
    training = {"dreambooth": OWL}
    made.provenance = dataclasses.replace(made.provenance, training=training)
    return moved(made, 0.1)


@pytest.fixture
def subject(tmp_path):
    for number in range(4):
        write_image(tmp_path / "owl" / f"{number}.png", seed=number)
    return tmp_path / "owl"


def measure(base, delta, subject, sampling=SAMPLING, **settings):
    return personalisation.measure_personalisation(
        base, delta, subject, config_of(settings), sampling
    )


def drawn(base, prompts, delta, count):
    images = api.sample(
        base,
        delta=delta,
        prompts=prompts,
        num_images=count,
        **{name: getattr(SAMPLING, name) for name in ("steps", "sampler", "guidance", "seed")},
    )
    return np.stack([np.asarray(image) for image in images])


def near(first, second):
    return float(np.mean([1 - cosine(a, b) for a in first for b in second]))


def among(vectors):
    """The mean cosine of two different ones."""
    return float(
        np.mean([1 - cosine(a, b) for i, a in enumerate(vectors) for b in vectors[i + 1 :]])
    )


@pytest.mark.slow
def test_every_number_is_that_of_the_images_drawn_again(base, delta, subject):
    prompts = prompts_of(subject_of(OWL), PHOTOGRAPHS)
    count = EACH * len(prompts.drawn)
    found = measure(base, delta, subject, dataclasses.replace(SAMPLING, num_images=count))
    metrics, beside = found["metrics"], found["baselines"]

    real = seen([np.asarray(Image.open(path)) for path in sorted(subject.iterdir())])
    tuned, plain = (seen(drawn(base, prompts.drawn, one, count)) for one in (delta, None))
    assert metrics["clip_i"] == pytest.approx(near(tuned, real))
    assert beside["clip_i_of_base"] == pytest.approx(near(plain, real))
    assert beside["clip_i_of_reference"] == pytest.approx(among(real))

    texts = read_texts(prompts.said).numpy()
    of_texts = [
        np.mean([1 - cosine(a, texts[i % len(texts)]) for i, a in enumerate(images)])
        for images in (tuned, plain)
    ]
    assert [metrics["clip_t"], beside["clip_t_of_base"]] == pytest.approx(of_texts, abs=1e-6)
    of_class = read_texts([OWL["class_prompt"]]).numpy()
    assert beside["clip_t_of_reference"] == pytest.approx(near(real, of_class), abs=1e-6)

    groups = [tuned[place :: len(prompts.drawn)] for place in range(len(prompts.drawn))]
    assert metrics["diversity"] == pytest.approx(np.mean([1 - among(group) for group in groups]))

    total = EACH * len(prompts.others)
    both = [drawn(base, prompts.others, one, total) for one in (delta, None)]
    pairs = zip(*map(seen, both), strict=True)
    assert metrics["drift"] == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]))
    assert metrics["drift"] > 0
    assert metrics["drift_rmse"] == pytest.approx(np.mean(pixel_rmse(*both)))
    by_prompt = found["by_prompt"][prompts.drawn[3]]
    assert by_prompt["clip_i"] == pytest.approx(near(groups[3], real))
    assert found["protocol"]["num_images"] == count
    assert found["protocol"]["personalisation"]["num_other_images"] == total
    assert not {"ink", "ground", "fd"} & set(metrics)


def test_a_delta_that_does_nothing_is_its_own_floor(base, delta, subject):
    nothing = delta.clone()
    for parameter in nothing.parameters():
        parameter.data.zero_()
    found = measure(base, nothing, subject, dataclasses.replace(SAMPLING, num_images=13))
    metrics, beside = found["metrics"], found["baselines"]
    assert metrics["drift"] == pytest.approx(0, abs=1e-9)
    assert metrics["drift_rmse"] == 0
    for name in ("clip_i", "clip_t"):
        assert metrics[name] == beside[f"{name}_of_base"]
    assert metrics["diversity"] is None  # one sample a prompt
    assert any("diversity unknown" in text for text in found["warnings"])


def test_on_glyphs_inks_and_grounds_are_judged_too(base, delta, subject, monkeypatch):
    monkeypatch.setattr(personalisation, "world_of", lambda base: GLYPHS)
    found = measure(base, delta, subject, dataclasses.replace(SAMPLING, num_images=13))
    assert found["protocol"]["features"] == "clip-glyphs"
    prompts = prompts_of(subject_of(OWL), GLYPHS)
    for one, values in ((delta, found["metrics"]), (None, found["baselines"])):
        right = colours_right(drawn(base, prompts.drawn, one, 13), prompts.said)
        assert len(right) == 12
        end = "" if one is delta else "_of_base"
        assert values[f"ink{end}"] == pytest.approx(float(right[:, 0].double().mean()))
        assert values[f"ground{end}"] == pytest.approx(float(right[:, 1].double().mean()))
        assert values[f"ink_and_ground{end}"] == pytest.approx(
            float(right.all(dim=1).double().mean())
        )


def test_each_features_have_their_own_and_other_metrics_may_be_named(base, delta, subject):
    small = dataclasses.replace(SAMPLING, num_images=13)
    found = measure(base, delta, subject, small, features="clip-b32,dinov2")
    clip_b32, dinov2 = (found["by_features"][name] for name in ("clip-b32", "dinov2"))
    assert {"clip_i", "clip_t", "drift"} <= set(clip_b32["metrics"])
    assert {"dino_i", "drift"} <= set(dinov2["metrics"])
    assert not {"clip_i", "clip_t"} & set(dinov2["metrics"])
    assert "dino_i_of_base" in dinov2["baselines"]
    few = dataclasses.replace(SAMPLING, num_images=5)
    named = measure(base, delta, subject, few, metrics="kid,clip_i")
    assert list(named["metrics"]) == ["kid", "clip_i"]
    assert len(named["by_prompt"]) == 5


def test_what_is_of_no_use_is_refused(base, delta, subject, tmp_path):
    with pytest.raises(UsageError, match="class_agreement is not of a personalisation"):
        measure(base, delta, subject, metrics="class_agreement")
    with pytest.raises(UsageError, match="ink needs a run of --task dreambooth of glyphs-text"):
        measure(base, delta, subject, metrics="ink")
    with pytest.raises(UsageError, match="no such file or folder"):
        measure(base, delta, tmp_path / "gone")
    with pytest.raises(UsageError, match="drift needs a run or a delta of a base"):
        api.evaluate(subject, subject, features="clip-b32", metrics="drift")
    unnamed = delta.clone()
    unnamed.provenance = dataclasses.replace(delta.provenance, training={"dreambooth": {}})
    with pytest.raises(SmidgenError, match="what subject it is of"):
        measure(base, unnamed, subject)


def test_the_pictures_of_the_subject_are_those_of_the_runs_recipe(base, delta, subject, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    delta.save(run / "delta.safetensors")
    small = dataclasses.replace(SAMPLING, num_images=13)
    with pytest.raises(UsageError, match=r"no recipe\.toml beside"):
        api.evaluate(run, base=base, sampling=small)
    (run / "recipe.toml").write_text(f'data = "{subject}"\nlayout = "folder"\nsplit = "none"\n')
    found = api.evaluate(run, base=base, sampling=small)
    given = api.evaluate(run, subject, base=base, sampling=small)
    assert found["metrics"] == given["metrics"]
    assert found["protocol"]["reference"] == str(subject)
    plain = delta.clone()
    plain.provenance = dataclasses.replace(delta.provenance, training={})
    plain.save(tmp_path / "plain.safetensors")
    with pytest.raises(UsageError, match="no personalisation: give a reference"):
        api.evaluate(tmp_path / "plain.safetensors", base=base)
    with pytest.raises(UsageError, match="holds images: give a reference"):
        api.evaluate(subject)


def test_numbers_are_printed_with_ceiling_and_floor_and_compared_by_prompts(base, delta, subject):
    found = measure(base, delta, subject, dataclasses.replace(SAMPLING, num_images=26))
    lines = result_lines(found)
    assert lines[0].startswith("26 images of 13 prompts, dpm++, 2 steps, guidance 2")
    (line,) = [line for line in lines if line.strip().startswith("CLIP-I ")]
    ceiling, floor = (found["baselines"][f"clip_i_of_{what}"] for what in ("reference", "base"))
    assert f"real images {ceiling:.4f}, no delta {floor:.4f}" in line
    other = found | {"protocol": found["protocol"] | {"personalisation": {"prompts": ["x"]}}}
    with pytest.raises(UsageError, match=r"personalisation\.prompts"):
        compare({"a": found, "b": other})
    table = comparison_lines(compare({"a": found, "b": found}))
    assert "CLIP-I" in table[0] or "clip_i" in table[0]
