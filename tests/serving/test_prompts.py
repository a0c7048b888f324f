"""A base that reads prompts, served: a tiny pipeline of diffusers."""

import base64
import io

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import smidgen
from smidgen import api
from smidgen.core.arithmetic import scaled
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.serving.app import create_app
from smidgen.serving.config import ServeConfig
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

URL = "/v1/images/generations"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return api.load_base(TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd"))


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    made = tmp_path_factory.mktemp("deltas")
    with base.conditioner.open() as reader:
        for name, method, options in (
            ("fox", "lora", {}),
            ("owl", "adapter", {"share": 0.05}),
            ("word", "textual-inversion", {"init_word": "owl"}),
        ):
            delta = build_delta(
                method,
                base,
                configure(method, options),
                (),
                torch.Generator().manual_seed(0),
                encoders=reader.encoders if name == "word" else (),
                token="<owl>" if name == "word" else None,
            )
            moved(delta, 0.05, seed=1).save(made / f"{name}.safetensors")
    return made


ASKED = (
    {"model": "fox", "prompt": "a red fox", "guidance": 3.0},
    {"model": "fox:0.5", "prompt": "a red fox", "guidance": 3.0, "negative_prompt": "blue"},
    {"model": "owl", "prompt": "an owl", "guidance": 2.0, "guidance_kind": "domain"},
    {"model": "word", "prompt": "a picture of <owl>", "guidance": 2.0, "n": 2},
    {"model": "sd", "prompt": "an owl", "guidance": 1.0},
)


@pytest.mark.slow
def test_prompts_words_and_negative_prompts_are_those_of_sample(base, folder):
    app = create_app(base, ServeConfig(deltas=folder, slots=2))
    with TestClient(app, base_url="http://localhost") as client:
        about = client.get("/v1/about").json()
        assert about["prompts"] is True
        found = [
            client.post(URL, json={"steps": 3, "seed": 4, "sampler": "ddim"} | body)
            for body in ASKED
        ]
    for body, answer in zip(ASKED, found, strict=True):
        assert answer.status_code == 200, answer.text
        name, _, strength = body["model"].partition(":")
        delta = None if name == "sd" else smidgen.Delta.load(folder / f"{name}.safetensors")
        if strength:
            delta = scaled(delta, float(strength))
        settings = {k: v for k, v in body.items() if k not in ("model", "prompt", "n")}
        expected = smidgen.sample(
            base,
            delta=delta,
            prompts=body["prompt"],
            num_images=body.get("n", 1),
            steps=3,
            seed=4,
            sampler="ddim",
            **settings,
        )
        for picture, image in zip(answer.json()["data"], expected, strict=True):
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))))
            assert np.abs(shown.astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_a_prompt_that_is_cut_is_refused(base, folder):
    app = create_app(base, ServeConfig(deltas=folder))
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post(URL, json={"model": "fox", "prompt": "owl " * 200, "steps": 2})
    assert answer.status_code == 400
    assert "too long" in answer.json()["error"]["message"]
