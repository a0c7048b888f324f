"""A delta that was trained on captions is measured by those of the reference's images."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from smidgen import api
from smidgen.errors import UsageError
from smidgen.evaluation import features, pairs
from smidgen.evaluation.captions import captions_of
from smidgen.evaluation.contexts import PHOTOGRAPHS
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.sampling.config import SamplingConfig
from tests.evaluation.calls import config_of
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

from .small_clip import clip, read_texts, seen

SAMPLING = SamplingConfig(
    steps=2, sampler="dpm++", guidance=2.0, seed=3, num_images=6, batch_size=4
)
SAID = ("an owl", "a red fox", "an owl", "two notes", "a tin")


@pytest.fixture(autouse=True)
def _extractors(monkeypatch):
    monkeypatch.setattr(features, "EXTRACTORS", {"clip-b32": partial(clip, name="clip-b32")})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return api.load_base(TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("bases") / "sd"))


@pytest.fixture
def delta(base, tmp_path):
    """A file of one that was trained on captions."""
    made = build_delta("lora", base, configure("lora"), (), torch.Generator().manual_seed(0))
    training = {"captions": {"examples": ["an owl"]}}
    made.provenance = dataclasses.replace(made.provenance, training=training)
    made = moved(made, 0.1)
    made.save(tmp_path / "delta.safetensors")
    return made


@pytest.fixture
def reference(tmp_path):
    """Two folders of images, whose names are no prompts."""
    for number, text in enumerate(SAID):
        path = tmp_path / "real" / f"part-{number % 2}" / f"{number}.png"
        write_image(path, seed=number)
        path.with_suffix(".txt").write_text(f"{text}\n")
    return tmp_path / "real"


def drawn(base, delta, prompts, count):
    given = {name: getattr(SAMPLING, name) for name in ("steps", "sampler", "guidance", "seed")}
    images = api.sample(base, delta=delta, prompts=prompts, num_images=count, **given)
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.slow
def test_each_image_is_of_a_caption_and_compared_with_it(base, delta, reference, tmp_path):
    captions = captions_of(reference, config_of({}), SAMPLING.num_images)
    assert sorted(captions) == sorted(set(SAID))
    assert captions_of(reference, config_of({}), 2) == captions[:2]

    source = tmp_path / "delta.safetensors"
    asked = {"features": "clip-b32", "metrics": "fd,clip_t,drift,drift_rmse"}
    found = api.evaluate(source, reference, base=base, sampling=SAMPLING, **asked)
    vectors, texts = seen(drawn(base, delta, captions, 6)), read_texts(captions).numpy()
    near = [1 - cosine(one, texts[i % len(texts)]) for i, one in enumerate(vectors)]
    assert found["metrics"]["clip_t"] == pytest.approx(np.mean(near), abs=1e-6)
    assert found["protocol"]["metric_settings"]["clip_t"]["prompt"] == "{}"
    assert found["protocol"]["sampling"]["prompt"] == "4 captions of the reference"
    assert found["protocol"]["num_images"] == 6
    assert found["protocol"]["class_balance"] == {"kind": "unknown"}

    total = pairs.PER_OTHER * len(PHOTOGRAPHS.others)
    both = [seen(drawn(base, one, PHOTOGRAPHS.others, total)) for one in (delta, None)]
    apart = [cosine(one, other) for one, other in zip(*both, strict=True)]
    assert found["metrics"]["drift"] == pytest.approx(np.mean(apart), rel=1e-3)  # other batches
    assert found["metrics"]["drift_rmse"] > 0

    alone = dataclasses.replace(SAMPLING, edits="base")
    of_base = api.evaluate(source, reference, base=base, sampling=alone, **asked)
    assert (of_base["metrics"]["drift"], of_base["metrics"]["drift_rmse"]) == (0, 0)
    assert of_base["metrics"]["clip_t"] != found["metrics"]["clip_t"]


def test_a_reference_without_captions_is_refused_and_so_is_a_text_for_classes(
    base, delta, reference, tmp_path
):
    source = tmp_path / "delta.safetensors"
    asked = {"features": "clip-b32", "metrics": "clip_t", "base": base, "sampling": SAMPLING}
    with pytest.raises(UsageError, match="leave it out"):
        api.evaluate(source, reference, prompt="a drawing of a {}", **asked)
    for text in reference.rglob("*.txt"):
        text.unlink()
    with pytest.raises(UsageError, match=r"names no classes, and .* has no captions"):
        api.evaluate(source, reference, **asked)
