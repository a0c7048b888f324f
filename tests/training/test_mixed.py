"""Trainings in mixed batches end where each would alone."""

import dataclasses
import json
import os
import signal
from functools import partial

import pytest
import torch

from smidgen.api.training import run, train_many
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.fast.acting import acting
from smidgen.methods import configure
from smidgen.models.calling import calling
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.interrupt import Interrupted
from smidgen.training.mixed import Place, _Mixed, not_mixable
from smidgen.training.validation import Validation
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES

SHORT = {
    "steps": 6,
    "batch_size": 3,
    "lr": 1e-2,
    "checkpoint_every": 3,
    "validation_share": 0.2,
    "validate_every": 2,
    "max_grad_norm": 0.5,
    "trackers": (),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path):
    """Three data sets of other classes, and other numbers of them."""
    folder = tmp_path / "sets"
    for number, classes in enumerate((("ant", "bee"), ("bee", "cow", "dog"), ("elk",))):
        write_photos(folder / f"set{number}", classes, per_class=6 + number)
    return folder


def config_of(data, output, method="difffit", options=None, **settings):
    training = TrainingConfig(**(SHORT | settings))
    return RunConfig(
        data=data,
        output=output,
        method=method,
        method_config=configure(method, options or {}),
        training=training,
    )


def far(one, other, base=None):
    """How far what two deltas make of the base is from each other, relative to what they change.
    Their values alone tell less: a bias of keys changes nothing, so that rounding moves it.
    """
    base = base or tiny_base()
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, *base.latent_shape, generator=generator)
    t = torch.arange(6) % 3
    network = calling(base.family, base.denoiser)
    outputs = []
    for delta in (None, one, other):
        condition = labels_of(base, delta or one).conditions(torch.zeros(6, dtype=torch.long))
        with torch.no_grad(), acting(delta, base.denoiser):
            outputs.append(network(x, t, condition))
    plain, first, second = outputs
    return float((first - second).abs().max() / (first - plain).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("difffit", {"gradient_accumulation": 2}),
        ("difffit", {"fast": False}),
        ("lora", {"gradient_checkpointing": True}),
        ("adaptformer+bitfit", {"optimizer": "adamw-8bit"}),
    ],
)
def test_each_delta_is_the_one_that_it_would_be_alone(tmp_path, data, method, settings):
    base = tiny_base()
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    found = train_many(base, config_of(data, tmp_path / "many", method, **settings), together=3)
    assert list(found) == ["set0", "set1", "set2"]
    for name, delta in found.items():
        assert isinstance(delta, Delta), delta
        alone = run(base, config_of(data / name, tmp_path / "alone" / name, method, **settings))
        assert far(alone, delta) < 1e-4
        assert delta.provenance.classes == alone.provenance.classes
        kept = Delta.load(tmp_path / "many" / name / "delta.safetensors")
        assert far(kept, delta) == 0
    for name, value in base.denoiser.state_dict().items():
        assert torch.equal(value, before[name])
    assert base.denoiser.fast is None


@pytest.mark.slow
def test_a_base_that_reads_prompts_trains_in_mixed_batches_too(tmp_path, data):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    settings = {"method": "lora", "options": {"rank": 2}, "prompt": "art of a {class}", "steps": 3}
    found = train_many(base, config_of(data, tmp_path / "many", **settings), together=2)
    for name, delta in found.items():
        assert isinstance(delta, Delta), delta
        alone = run(base, config_of(data / name, tmp_path / "alone" / name, **settings))
        assert far(alone, delta, base) < 1e-4


@pytest.mark.slow
def test_what_cannot_be_mixed_is_trained_one_after_the_other(tmp_path, data, caplog):
    caplog.set_level("INFO")
    found = train_many(tiny_base(), config_of(data, tmp_path / "many", "full"), together=3)
    assert all(isinstance(delta, Delta) for delta in found.values())
    assert "one after the other: full trains copies" in caplog.text
    assert "vpt" in not_mixable(config_of(data, tmp_path / "many", "vpt"))
    reduced = config_of(data, tmp_path / "many", frozen_precision="8bit-backward")
    assert not_mixable(reduced) == "frozen_precision is 8bit-backward"


@pytest.mark.slow
def test_one_that_fails_leaves_the_others_and_goes_on_later(tmp_path, data):
    for path in (data / "set1").rglob("*.png"):
        path.write_bytes(b"no image")
    config = config_of(data, tmp_path / "many")
    found = train_many(tiny_base(), config, together=3)
    assert isinstance(found["set1"], SmidgenError)
    assert isinstance(found["set0"], Delta)
    again = train_many(tiny_base(), config, together=3)  # what is finished stays
    assert far(found["set2"], again["set2"]) == 0


@pytest.mark.slow
def test_an_interrupted_one_resumes_in_mixed_batches_and_nowhere_else(tmp_path, data, monkeypatch):
    whole = train_many(tiny_base(), config_of(data, tmp_path / "whole"), together=3)
    asked = []
    go_on = Place.go_on

    def counting(self, *given):
        asked.append(self)
        if len(asked) == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        go_on(self, *given)

    config = config_of(data, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Place, "go_on", counting)
        with pytest.raises(Interrupted, match="saved"):
            train_many(tiny_base(), config, together=3)
    with pytest.raises(UsageError, match="whether the delta is folded in"):
        run(
            tiny_base(),
            dataclasses.replace(config, data=data / "set0", output=tmp_path / "cut" / "set0"),
        )
    found = train_many(tiny_base(), config, together=3)
    for name, delta in found.items():
        assert far(whole[name], delta) == 0


def test_one_whose_patience_ends_leaves_the_batch_and_the_others_go_on(tmp_path, data, monkeypatch):
    sizes, known = [], {}
    losses = ([1.0, 2.0], [3.0, 2.0, 1.0, 4.0], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    step = _Mixed._step

    def counted(self, places):
        sizes.append(len(places))
        step(self, places)

    def loss(self, *_, **__):
        """Of the first, second and third run that validates, in turn."""
        return next(known.setdefault(self, iter(losses[len(known) % 3])))

    monkeypatch.setattr(_Mixed, "_step", counted)
    monkeypatch.setattr(Validation, "loss", loss)
    settings = {"validate_every": 1, "patience": 1, "keep": "best"}
    found = train_many(tiny_base(), config_of(data, tmp_path / "many", **settings), together=3)
    assert sizes == [3, 3, 2, 2, 1, 1]
    for (name, delta), steps, best in zip(found.items(), (2, 4, 6), (1, 3, 6), strict=True):
        assert isinstance(delta, Delta), delta
        alone = run(tiny_base(), config_of(data / name, tmp_path / "alone" / name, **settings))
        assert far(alone, delta) < 1e-4
        for way in ("many", "alone"):
            report = json.loads((tmp_path / way / name / "run.json").read_text())
            assert (report["steps"], report["best_step"]) == (steps, best)


def test_folders_that_are_none(tmp_path):
    train = partial(train_many, tiny_base())
    with pytest.raises(UsageError, match="no such folder"):
        train(config_of(tmp_path / "nowhere", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no folders"):
        train(config_of(tmp_path / "empty", tmp_path / "out"))
    with pytest.raises(UsageError, match="together"):
        train(config_of(tmp_path / "empty", tmp_path / "out"), together=0)
