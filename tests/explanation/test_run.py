"""Whole explanations: of subjects, classes and prompts, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import smidgen
from smidgen.errors import SmidgenError, UsageError
from smidgen.explanation.config import ExplanationConfig
from smidgen.explanation.differences import Noised, differences
from smidgen.explanation.run import explain, question_of
from smidgen.files.writing import write_json
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, Base, tiny_base
from tests.tiny.deltas import lora, tiny_delta
from tests.tiny.pipelines import TINY_PIPELINES

SUBJECT = {
    "token": "sks",
    "class_name": "owl",
    "instance_prompt": "a photo of a sks owl",
    "class_prompt": "a photo of an owl",
}
SHORT = {"num_images": 2, "times": 2, "steps": 2}


@pytest.fixture(scope="module")
def text_base(tmp_path_factory) -> Base:
    return load_base(str(TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd")))


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


def subject_delta(base: Base):
    delta = lora(base.denoiser, fingerprint=base.fingerprint)
    delta.provenance = replace(delta.provenance, training={"dreambooth": SUBJECT})
    return delta


def class_delta(base: Base, method: str):
    delta = tiny_delta(base, method).float()
    delta.provenance = replace(delta.provenance, fingerprint=base.fingerprint)
    return delta


def test_differences_are_those_of_two_calls_with_the_same_noise(base):
    latents = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    noised = Noised.of(base, latents, 3, seed=7)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    assert noised.times.tolist() == [166, 500, 833]  # the middles of thirds of 1000 steps
    delta = class_delta(base, "difffit")
    labels = labels_of(base, delta)
    with delta.attach(base.denoiser):
        found = differences(base, labels, 1, labels.null, noised)
        for place, time in enumerate(noised.times):
            t = time.expand(2)
            share = base.process.schedule.alphas_cumprod[time].float()
            x_t = share.sqrt() * latents + (1 - share).sqrt() * noise
            with torch.no_grad():
                one, other = (
                    base.denoiser(x_t, t, torch.full((2,), label))[:, :4]
                    for label in (1, len(NEW_CLASSES))
                )
            expected = (one - other).square().mean(1).sqrt()
            torch.testing.assert_close(found.maps[place], expected, rtol=1e-3, atol=1e-5)
            relative = (one - other).norm() / other.norm()
            torch.testing.assert_close(found.relative[place], relative, rtol=1e-3, atol=1e-5)
    same = differences(base, labels_of(base), 0, 0, noised)
    assert float(same.maps.max()) == 0


@pytest.mark.slow
def test_deltas_of_a_subject_are_shown_beside_the_base(text_base, tmp_path):
    runs = []
    for name, strength in (("one", 1.0), ("none", 0.0)):
        delta = subject_delta(text_base)
        with torch.no_grad():
            for edit in delta.edits.values():
                edit.body.up.weight.mul_(strength)
        delta.save(tmp_path / name / "delta.safetensors")
        write_json({}, tmp_path / name / "run.json")
        runs.append(tmp_path / name)
    document = smidgen.explain(runs, tmp_path / "out", base=text_base, **SHORT)
    alone, one, none = document["deltas"]
    assert [alone["name"], one["name"], none["name"]] == ["base", "one", "none"]
    assert document["pictures_of"] == SUBJECT["class_prompt"]
    assert (one["shown"], one["without"]) == (SUBJECT["instance_prompt"], SUBJECT["class_prompt"])
    # a delta that does nothing is the base; one that does something is not
    np.testing.assert_allclose(none["difference"]["maps"], alone["difference"]["maps"], atol=1e-4)
    assert not np.allclose(one["difference"]["maps"], alone["difference"]["maps"], atol=1e-3)
    assert {edit["relative"] for edit in none["edits"]} == {0.0}
    assert min(edit["relative"] for edit in one["edits"]) > 0
    assert one["attention"]["word"] == "sks"
    assert np.shape(one["attention"]["maps"]) == (2, *text_base.latent_shape[1:])
    assert 0 < np.mean(one["attention"]["shares"]) < 1
    for name in ("differences", "attention", "edits"):
        assert Image.open(tmp_path / "out" / f"{name}.png").width > 300
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "out" / "explain.json").read_text()) == document
    again = smidgen.explain(runs, tmp_path / "again", base=text_base, **SHORT)
    assert again == document
    for name in ("differences.svg", "edits.png"):
        one_file, other = (tmp_path / place / name for place in ("out", "again"))
        assert one_file.read_bytes() == other.read_bytes()


def test_a_class_is_compared_with_none_and_the_base_is_there_where_it_knows_it(base):
    delta = class_delta(base, "difffit")
    found = explain(base, [("run", delta)], ExplanationConfig(class_name="fox", **SHORT))
    assert [look.name for look in found.looks] == ["run"]  # the base knows no fox
    assert found.looks[0].attention is None
    known = explain(base, [("run", delta)], ExplanationConfig(class_name="bee", **SHORT))
    assert [look.name for look in known.looks] == ["base", "run"]
    assert known.drawn == "bee"
    document = known.document()
    json.dumps(document, allow_nan=False)
    assert len(document["deltas"][1]["edits"]) == len(delta.edits)


def test_prompts_of_classes_are_compared_with_no_prompt(text_base):
    delta = lora(text_base.denoiser, fingerprint=text_base.fingerprint)
    training = {"prompts": {"classes": ["owl"], "template": "a drawing of a {class}"}}
    delta.provenance = replace(delta.provenance, training=training)
    question = question_of(text_base, delta, ExplanationConfig())
    assert (question.shown, question.other, question.word) == ("a drawing of a owl", "", None)


def test_the_subjects_token_is_the_word_where_the_prompt_has_it(text_base):
    delta = subject_delta(text_base)
    for prompt, word in (("sks, an owl", "sks"), ("a picture of sksy", None)):
        config = ExplanationConfig(prompt=prompt)
        assert question_of(text_base, delta, config).word == word


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a cat"}, 'prompt is of no use to base "tiny-0", which reads no prompts'),
        ({"class_name": "gnu"}, 'unknown class "gnu"'),
        ({"times": 0}, "times is 0; expected an integer of at least 1"),
        ({"prompt": "a", "without": "a"}, 'prompt and without are both "a"'),
        ({"prompt": "a", "class_name": "b"}, "give one of them"),
    ],
)
def test_what_makes_no_sense_is_one_line(base, settings, message):
    with pytest.raises(UsageError, match=message):
        explain(base, [("run", class_delta(base, "difffit"))], ExplanationConfig(**settings))


def test_what_says_nothing_about_prompts_and_other_words_are_refused(text_base):
    delta = lora(text_base.denoiser, fingerprint=text_base.fingerprint)
    with pytest.raises(UsageError, match="nothing says which prompt this delta was trained on"):
        question_of(text_base, delta, ExplanationConfig())
    with pytest.raises(UsageError, match="give prompt in place of class_name"):
        question_of(text_base, delta, ExplanationConfig(class_name="owl"))
    config = ExplanationConfig(prompt="an owl", word="cat", **SHORT)
    with pytest.raises(UsageError, match='"cat" is no word of the prompt "an owl"'):
        explain(text_base, [("run", delta)], config)


def test_a_delta_of_another_base_is_refused(base):
    other = class_delta(tiny_base(seed=1), "difffit")
    with pytest.raises(SmidgenError, match="give the base that it was made for"):
        explain(base, [("run", other)], ExplanationConfig(**SHORT))


def test_what_is_no_run_is_refused_by_name(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="holds images; give a run's folder or a delta's file"):
        smidgen.explain(tmp_path / "photos")
    with pytest.raises(UsageError, match="no runs given"):
        smidgen.explain([])


def test_classes_are_those_of_the_first_delta(base):
    assert set(KNOWN_CLASSES) & set(NEW_CLASSES) == {"bee"}
    delta = class_delta(base, "bitfit")
    question = question_of(base, delta, ExplanationConfig())
    assert question.shown == NEW_CLASSES[0]


def test_all_deltas_are_asked_for_one_class(base):
    one = class_delta(base, "bitfit")
    other = tiny_delta(base, "lora", NEW_CLASSES[::-1], std=0.05).float()
    other.provenance = replace(other.provenance, fingerprint=base.fingerprint)
    config = ExplanationConfig(num_images=1, times=1)
    found = explain(base, [("one", one), ("other", other)], config)
    assert {look.question.shown for look in found.looks} == {NEW_CLASSES[0]}
