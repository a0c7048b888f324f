"""What `import smidgen` offers, end to end on the smallest base."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import smidgen
from smidgen import api
from smidgen.core.edits import Weight
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import METHODS, configure
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT
from smidgen.sampling.config import SamplingConfig
from tests.tiny.bases import KNOWN_CLASSES, tiny_base
from tests.tiny.deltas import DENOISER_METHODS
from tests.tiny.images import write_photos

SHORT = {"steps": 4, "batch_size": 4, "trackers": (), "progress": False}


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def delta_of(base, method="difffit", classes=("bee", "dog")):
    """A delta whose every value is off its start."""
    generator = torch.Generator().manual_seed(1)
    delta = build_delta(method, base, configure(method), classes, generator)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return delta


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("api")
    photos = write_photos(folder / "photos")
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    delta = smidgen.train(base, photos, output=folder / "run", cache_dir=folder / "cache", **SHORT)
    after = base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return folder, delta


def test_importing_smidgen_loads_nothing_heavy():
    program = (
        "import sys, smidgen; heavy = {'torch', 'PIL', 'numpy', 'accelerate', 'diffusers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert set(smidgen.__all__) <= set(dir(smidgen))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_offered_name_is_there():
    assert all(getattr(smidgen, name) is not None for name in smidgen.__all__)
    with pytest.raises(AttributeError, match="trian"):
        smidgen.trian  # noqa: B018


def test_train_returns_what_it_saved(trained):
    folder, delta = trained
    saved = smidgen.Delta.load(folder / "run" / "delta.safetensors")
    assert saved.provenance == delta.provenance
    assert delta.provenance.classes == ("bee", "dog")
    assert delta.provenance.training["step"] == 4
    assert delta.provenance.training["settings"]["lr"] == METHODS["difffit"].default_lr
    assert delta.provenance.training["data"]["images"] == 20
    for a, b in zip(delta.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_call_finds_the_run_finished_and_another_is_refused(trained, base):
    folder, delta = trained
    places = {"output": folder / "run", "cache_dir": folder / "cache"}
    (folder / "run" / "log.jsonl").write_text("untouched")
    again = smidgen.train(base, folder / "photos", **places, **SHORT)
    assert (folder / "run" / "log.jsonl").read_text() == "untouched"
    assert all(map(torch.equal, again.parameters(), delta.parameters()))
    with pytest.raises(UsageError, match="batch_size 4 -> 5"):
        smidgen.train(base, folder / "photos", **places, **(SHORT | {"batch_size": 5}))


def test_force_removes_the_old_run_only_once_the_new_one_can_start(tmp_path, base):
    photos = write_photos(tmp_path / "photos")
    places = {"output": tmp_path / "run", "cache_dir": tmp_path / "cache", "force": True}
    smidgen.train(base, photos, **places, **SHORT)
    old = (tmp_path / "run" / "delta.safetensors").read_bytes()
    with pytest.raises(SmidgenError):
        smidgen.train(base, photos / "bee" / "none", **places, **SHORT)
    (photos / "bee" / "broken.png").write_bytes(b"no image")
    with pytest.raises(SmidgenError, match="cannot be used"):
        smidgen.train(base, photos, **places, max_bad_share=0.01, **SHORT)
    assert (tmp_path / "run" / "delta.safetensors").read_bytes() == old
    smidgen.train(base, photos, **places, max_bad_share=0.5, **(SHORT | {"seed": 1}))
    assert (tmp_path / "run" / "delta.safetensors").read_bytes() != old
    assert "broken.png" in (tmp_path / "run" / "bad_files.json").read_text()


def test_without_an_output_runs_get_folders_of_their_own(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    photos = write_photos(tmp_path / "photos")
    for steps in (2, 3, 2):
        settings = SHORT | {"steps": steps, "cache_dir": tmp_path / "cache"}
        smidgen.train(base, photos, **settings)
    found = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert found == ["photos-difffit", "photos-difffit-2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 4}, 'unknown setting "stepz"; did you mean "steps"'),
        ({"method": "diffit"}, 'unknown method "diffit"; did you mean "difffit"'),
        ({"method_config": {"block": "all"}}, 'difffit: unknown option "block"; .*"blocks"'),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"max_bad_share": 2.0}, "max_bad_share is 2.0"),
        ({"image_size": 16}, "the base was loaded for 8"),
    ],
)
def test_misuse_of_train_is_told_before_any_work(trained, base, tmp_path, settings, message):
    folder, _ = trained
    with pytest.raises(UsageError, match=message):
        smidgen.train(base, folder / "photos", output=tmp_path / "run", **(SHORT | settings))
    assert not (tmp_path / "run").exists()


def test_an_output_among_the_images_is_refused(trained, base):
    folder, _ = trained
    with pytest.raises(UsageError, match="lies in the image folder"):
        smidgen.train(base, folder / "photos", output=folder / "photos" / "run", **SHORT)


def test_grids_and_metrics_come_when_asked_for(tmp_path, base, monkeypatch):
    photos = write_photos(tmp_path / "photos")
    monkeypatch.setattr("smidgen.training.previews.METRIC_IMAGES", 6)
    seen = []

    def measure(drawing, reference, config, of_classes):
        assert of_classes
        seen.append((drawing, reference, config))
        return {"metrics": {"fd": 1.5, "class_agreement": None}}

    monkeypatch.setattr("smidgen.training.previews.measure_drawing", measure)
    smidgen.train(
        base,
        photos,
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        sample_every=2,
        metrics_every=4,
        metrics_features="inception",
        **SHORT,
    )
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert grids == ["step-2.png", "step-4.png"]
    assert Image.open(tmp_path / "run" / "samples" / "step-4.png").size == (64, 64)  # 8 x 8 x 8
    assert '{"step": 4, "fd": 1.5}' in (tmp_path / "run" / "log.jsonl").read_text()
    ((drawing, reference, config),) = seen
    assert (reference, config.features) == (photos, "inception")
    assert (drawing.num_images, drawing.name(1), drawing.config.sampler) == (6, "dog", "dpm++")


@pytest.mark.parametrize(
    ("sampler", "guidance"), [("ddpm", 1.0), ("ddpm", 1.5), ("ddim", 1.5), ("dpm++", 1.0)]
)
def test_images_do_not_depend_on_the_batch_size(base, sampler, guidance):
    settings = {"steps": 4, "sampler": sampler, "guidance": guidance, "seed": 3}
    with delta_of(base, classes=KNOWN_CLASSES).attach(base):
        expected = pixels(smidgen.sample(base, num_images=7, batch_size=32, **settings))
        assert len(np.unique(expected)) > 20
        for batch_size in (1, 3, 8):
            images = pixels(smidgen.sample(base, num_images=7, batch_size=batch_size, **settings))
            assert_equal_but_for_rounding(images, expected)
        fewer = pixels(smidgen.sample(base, num_images=5, batch_size=2, **settings))
        assert_equal_but_for_rounding(fewer, expected[:5])


def assert_equal_but_for_rounding(images, expected):
    # batches of other sizes may run other kernels, whose last bit may turn a level
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_image_i_has_class_i_mod_k_and_its_own_noise(base):
    delta = delta_of(base)
    settings = {"delta": delta, "steps": 4, "guidance": 1.0}
    batches = list(
        api.sample_arrays(base, classes=["dog", "bee"], num_images=5, batch_size=2, **settings)
    )
    assert [list(numbers) for numbers, _, _ in batches] == [[0, 1], [2, 3], [4]]
    assert [label for _, _, labels in batches for label in labels] == [1, 0, 1, 0, 1]
    both = np.concatenate([images for _, images, _ in batches])
    assert both.dtype == np.uint8
    assert both.shape == (5, 8, 8, 3)
    dogs = pixels(smidgen.sample(base, classes="dog", num_images=5, **settings))
    assert np.array_equal(both[0::2], dogs[0::2])
    assert not np.array_equal(both[1], dogs[1])
    other_seed = pixels(smidgen.sample(base, classes="dog", num_images=5, seed=1, **settings))
    assert not np.array_equal(other_seed, dogs)


def test_the_delta_acts_only_while_a_batch_is_drawn(base, tmp_path):
    delta = delta_of(base)
    delta.save(tmp_path / "delta.safetensors")
    plain = pixels(smidgen.sample(base, steps=4))
    assert len(plain) == len(KNOWN_CLASSES)
    batches = api.sample_arrays(base, delta=tmp_path / "delta.safetensors", batch_size=1, steps=4)
    _, image, _ = next(batches)
    assert np.array_equal(pixels(smidgen.sample(base, steps=4)), plain)
    assert_equal_but_for_rounding(image, pixels(smidgen.sample(base, delta=delta, steps=4))[:1])


def test_what_is_attached_by_hand_is_sampled(base):
    delta = delta_of(base, classes=KNOWN_CLASSES)
    with delta.attach(base):
        by_hand = pixels(smidgen.sample(base, steps=4))
    assert_equal_but_for_rounding(by_hand, pixels(smidgen.sample(base, delta=delta, steps=4)))


def test_a_full_delta_samples_on_a_base_in_another_precision():
    full = delta_of(tiny_base(), "full")
    half = tiny_base().to(dtype=torch.bfloat16)
    assert len(smidgen.sample(half, delta=full, steps=2)) == 2
    weights = [edit for edit in full.edits.values() if isinstance(edit, Weight)]
    assert {p.dtype for edit in weights for p in edit.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["bea"]}, 'unknown class "bea"; did you mean "bee"'),
        ({"classes": []}, "no classes given"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1001}, "steps is 1001"),
        ({"sampler": "dppm"}, 'sampler is "dppm"; expected one of: ddpm'),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance_channels": "two"}, 'guidance_channels is "two"'),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_misuse_of_sample_is_told_at_the_call(base, settings, message):
    with pytest.raises(UsageError, match=message):
        api.sample_arrays(base, **settings)


def test_a_delta_of_another_base_is_refused(base):
    with pytest.raises(SmidgenError, match="made for base"):
        smidgen.sample(tiny_base(seed=9), delta=delta_of(base))


def test_a_class_may_be_named_all_or_hold_a_comma():
    def chosen(classes, *known):
        return SamplingConfig(classes=classes).chosen(known)

    assert chosen("all", "a", "b") == ["a", "b"]
    assert chosen("all", "all", "b") == ["all"]
    assert chosen("rice, fried", "rice, fried", "b") == ["rice, fried"]
    assert chosen("b,a", "a", "b") == ["b", "a"]
    assert chosen(("rice, fried",), "rice, fried", "b") == ["rice, fried"]


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_inspect_counts_what_a_trained_file_holds(tmp_path, base, method):
    delta = delta_of(base, method, classes=("x", "y", "z", "w"))
    delta.save(tmp_path / "delta.safetensors")
    counted = smidgen.inspect(base, num_classes=4, method=method)
    assert counted["trainable"] == delta.num_parameters()
    header = int.from_bytes((tmp_path / "delta.safetensors").read_bytes()[:8], "little")
    size = (tmp_path / "delta.safetensors").stat().st_size
    assert counted["delta_bytes"] == size - 8 - header
    rows = base.denoiser.config.width  # one class more than the base's three
    total = sum(p.numel() for p in base.denoiser.parameters()) + rows
    assert (counted["total"], counted["share"]) == (total, counted["trainable"] / total)


def test_the_papers_counts_need_no_weights():
    paper = {"full": 673_799_072, "bitfit": 607_136, "difffit": 835_264}
    for method, count in paper.items():
        found = smidgen.inspect("DiT-XL/2", num_classes=101, method=method)
        assert found["trainable"] == count


def test_with_training_settings_inspect_estimates_the_memory(base):
    assert "memory" not in smidgen.inspect(base)
    memory = smidgen.inspect(base, num_classes=2, batch_size=4)["memory"]
    parts = ("weights", "delta", "optimizer", "average", "step")
    assert memory["total"] == sum(memory[name] for name in parts)
    if sys.platform == "linux":
        assert memory["process"] > memory["total"]
    with pytest.raises(UsageError, match='unknown setting "batchsize"'):
        smidgen.inspect(base, batchsize=4)


def test_folding_writes_a_base_that_samples_as_the_delta_does(tmp_path, base):
    delta = delta_of(base)
    path = smidgen.fold(base, delta, format="dit", output=tmp_path / "folded.pt")
    state = torch.load(path, weights_only=True)
    model = DiT(type(base.denoiser.config)(**(vars(base.denoiser.config) | {"num_classes": 2})))
    model.load_state_dict(state)
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([3, 500, 999]), torch.tensor([0, 1, 2])
    with torch.no_grad(), delta.attach(base):
        expected = base.denoiser(x, t, y)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match='unknown format "onnx"'):
        smidgen.fold(base, delta, format="onnx", output=tmp_path / "x")


@pytest.mark.parametrize("draw", [smidgen.sample, smidgen.sample_arrays])
@pytest.mark.parametrize("prompt", ["a", ("a",), ["a"]])
def test_a_prompt_is_never_dropped_under_either_of_its_names(base, draw, prompt):
    for name in ("prompt", "prompts"):
        with pytest.raises(UsageError, match='base "tiny-0" knows classes and reads no prompts'):
            draw(base, **{name: prompt})
    with pytest.raises(UsageError, match="prompt and prompts are one setting; give one of them"):
        draw(base, prompt=prompt, prompts=prompt)


def test_a_mistyped_keyword_of_train_finds_those_of_the_run_and_of_the_training(base, tmp_path):
    for mistyped, meant in (("layut", "layout"), ("stesp", "steps")):
        with pytest.raises(UsageError, match=f'setting "{mistyped}"; did you mean "{meant}"'):
            smidgen.train(base, write_photos(tmp_path / "photos"), **{mistyped: 1})
