"""load_base: every kind of name, what it gives, and what it says when it cannot."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError, UsageError
from smidgen.models import architectures, names, sources
from smidgen.models.dit import DiTConfig
from smidgen.models.dit_weights import write_diffusers, write_original_pt
from smidgen.models.files import write_safetensors_file
from smidgen.models.known import architecture, meta_denoiser
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec
from tests.models.conftest import TINY, inputs
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors
from tests.tiny.pipelines import TINY_PIPELINES

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def no_hub(monkeypatch):
    """Any attempt to reach the hub fails the test."""

    def refuse(name):
        raise AssertionError(f"asked the hub for {name}")

    monkeypatch.setattr(sources, "download", refuse)


@pytest.fixture(scope="module")
def places(tmp_path_factory, vae_folder):
    """The same base as our folder, as a diffusers pipeline and as an original file."""
    root = tmp_path_factory.mktemp("bases")
    model = dit(TINY)
    about = {"codec": load_codec(vae_folder), "class_names": NAMES}
    schedule = Schedule.linear(100, 1e-3, 0.1)
    write_safetensors(model, root / "ours", **about, schedule=schedule, dtype=torch.float16)
    write_diffusers(model, root / "theirs", **about, schedule=schedule)
    write_original_pt(model, root / "model.pt")
    return root


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_folder_gives_the_whole_base(places, kind):
    base = load_base(places / kind)
    assert base.denoiser.config == TINY
    assert base.class_names == NAMES
    assert (base.num_classes, base.null_label) == (5, 5)
    assert (base.image_size.plain, base.codec.factor) == (8, 2)
    assert torch.equal(base.process.schedule.betas, Schedule.linear(100, 1e-3, 0.1).betas)
    assert base.host.family == "dit"
    assert len(base.host.blocks) == TINY.depth
    assert base.device == torch.device("cpu")
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in base.denoiser.parameters())
    x, t, y = inputs()
    # the file in float16 keeps 11 bits of every weight
    torch.testing.assert_close(base.denoiser(x, t, y), dit(TINY)(x, t, y), rtol=0.05, atol=0.05)


def test_a_file_takes_its_codec_and_numbers_its_classes(places, vae_folder):
    base = load_base(places / "model.pt", codec=vae_folder, num_heads=4)
    assert base.denoiser.config == TINY
    assert base.class_names == ("0", "1", "2", "3", "4")
    assert torch.equal(base.process.schedule.betas, Schedule.linear().betas)
    assert base.name == str(places / "model.pt")
    assert base.fingerprint == load_base(places / "theirs").fingerprint


def test_a_file_without_codec_says_how_to_give_one(places):
    with pytest.raises(UsageError, match="add --codec FOLDER"):
        load_base(places / "model.pt", num_heads=4)


def diffusers_component(path):
    path.mkdir()
    (path / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "holds no base: expected a pipeline"),
        (diffusers_component, "is a SD3Transformer2DModel alone; give the folder of its whole"),
        (lambda path: path.write_text("note"), "weights are read from .safetensors"),
        (lambda path: write_safetensors_file({"a": torch.ones(1)}, path), "no.* tensors of a DiT"),
    ],
)
@pytest.mark.parametrize("with_codec", [False, True])
def test_what_is_no_base_is_called_so_with_and_without_a_codec(
    vae_folder, tmp_path, make, message, with_codec
):
    path = tmp_path / ("base.safetensors" if "tensors of" in message else "base")
    make(path)
    with pytest.raises(SmidgenError, match=message):
        load_base(path, codec=vae_folder if with_codec else None)


def test_a_given_codec_replaces_that_of_the_folder(places, vae_folder, tmp_path):
    shutil.copytree(vae_folder, tmp_path / "vae")
    base = load_base(places / "ours", codec=tmp_path)
    assert base.codec.folder == tmp_path / "vae"


def test_image_size_is_in_pixels(places):
    base = load_base(str(places / "ours"), image_size=16)
    assert (base.image_size.plain, base.denoiser.config.image_size) == (16, 8)
    assert base.fingerprint == load_base(places / "ours").fingerprint
    for wrong in (15, 0, -8):
        with pytest.raises(UsageError, match=f"image.size.*{wrong}"):
            load_base(places / "ours", image_size=wrong)
    with pytest.raises(UsageError, match="a multiple of 4; give 8"):
        load_base(places / "ours", image_size=6)


@pytest.mark.parametrize("kind", ["ours", "theirs", "model.pt"])
def test_a_dit_at_another_size_says_once_what_becomes_of_its_positions(
    places, vae_folder, caplog, kind
):
    given = {"codec": vae_folder, "num_heads": 4} if kind == "model.pt" else {}
    for same in (None, 8):
        load_base(places / kind, image_size=same, **given)
    assert caplog.records == []
    own = load_base(places / kind, **given).denoiser.pos_embed.unflatten(1, (2, 2))
    for size, words in ((16, "at 8 pixels and is used at 16: positions are extended"), (4, "cut")):
        caplog.clear()
        table = load_base(places / kind, image_size=size, **given).denoiser.pos_embed
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert words in record.message
        # as the words have it: neither stretched nor squeezed
        side = math.isqrt(table.shape[1])
        common = min(side, 2)
        assert torch.equal(
            table.unflatten(1, (side, side))[:, :common, :common], own[:, :common, :common]
        )


def test_precision_and_shift_are_as_asked(places):
    base = load_base(places / "theirs", dtype=torch.bfloat16, frequency_shift=1.0)
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.bfloat16}
    assert base.denoiser.config.frequency_shift == 1
    assert base.to(dtype=torch.float32) is base
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.float32}


def test_a_device_that_is_not_there_is_refused(places):
    with pytest.raises(UsageError, match='device "nowhere"'):
        load_base(places / "ours", device="nowhere")


def test_the_number_of_classes_is_checked(places):
    assert load_base(places / "ours", num_classes=5).num_classes == 5
    with pytest.raises(UsageError, match="has 5 classes"):
        load_base(places / "ours", num_classes=6)


def test_a_codec_of_other_channels_is_refused(places, vae_folder, tmp_path):
    model = dit(dataclasses.replace(TINY, in_channels=3))
    write_safetensors(model, tmp_path)
    with pytest.raises(SmidgenError, match="3 latent channels, the codec gives 4"):
        load_base(tmp_path, codec=vae_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ["a", "b"]}, "2 different class names for 5"),
        ({"class_names": ["a"] * 5}, "1 different class names for 5"),
        ({"schedule": {"kind": "cosine"}}, "expected linear"),
        ({"schedule": {"kind": "linear", "beta_end": 2.0}}, "schedule"),
        ({"schedule": {"kind": "linear", "gamma": 2.0}}, "schedule"),
    ],
)
def test_a_folder_that_contradicts_itself_is_refused(places, tmp_path, change, message):
    shutil.copytree(places / "ours", tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(SmidgenError, match=message):
        load_base(tmp_path / "base")


def test_an_architectures_name_is_never_asked_of_the_hub(no_hub):
    for name in ("DiT-XL/2", "DiT-S/8", "DiT-XL/2-512", "DiT-Other/model"):
        with pytest.raises(UsageError, match="--codec FOLDER"):
            load_base(name)
    for name in ("sd-1.4", "sdxl"):
        with pytest.raises(UsageError, match="without weights; give its folder of diffusers"):
            load_base(name)
        with pytest.raises(UsageError):
            architecture(name)


def test_paths_that_do_not_exist_are_never_asked_of_the_hub(no_hub, tmp_path):
    for name in (
        "nothing",
        "./a/b",
        "a/b/c",
        "runs/model.pt",
        "x.safetensors",
        tmp_path / "no",
        "",
        "../x",
    ):
        with pytest.raises(SmidgenError):
            load_base(name, codec=tmp_path)


def test_owner_and_name_is_a_hub_id_unless_it_is_a_folder(monkeypatch, places, tmp_path):
    asked = []

    def download(name):
        asked.append(name)
        return places / "theirs"

    monkeypatch.setattr(sources, "download", download)
    assert load_base("owner/some-model_1.0").name == "owner/some-model_1.0"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(places / "ours", tmp_path / "owner" / "name")
    load_base("owner/name")
    assert asked == ["owner/some-model_1.0"]


def test_a_shipped_name_comes_before_a_folder_of_that_name(monkeypatch, places, tmp_path):
    shutil.copytree(places / "ours", tmp_path / "embedded" / "small")
    for module in (names, sources):
        monkeypatch.setattr(module, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert load_base("small").class_names == NAMES
    assert load_codec("small").factor == 2
    assert architecture("small") == TINY
    with pytest.raises(SmidgenError):
        load_base(tmp_path / "small")
    with pytest.raises(UsageError, match="shipped bases: small"):
        load_base("smal")


def test_architectures_need_no_weights(no_hub, places):
    assert architecture("DiT-B/4", 10) == DiTConfig(
        image_size=32, patch_size=4, width=768, depth=12, num_heads=12, num_classes=10
    )
    assert architecture("DiT-XL/2").num_classes == 1000
    assert architecture(places / "ours", 7) == dataclasses.replace(TINY, num_classes=7)
    model = meta_denoiser("DiT-XL/2", 101)
    assert all(p.is_meta for p in model.parameters())
    # the published count of full fine-tuning: everything but the fixed positions
    assert sum(p.numel() for p in model.parameters()) - model.pos_embed.numel() == 673_799_072
    for name, num_classes in [("DiT-XL/3", None), ("DiT-XL/2", 0)]:
        with pytest.raises(UsageError):
            architecture(name, num_classes)


def test_loading_a_base_does_not_import_diffusers(places):
    code = (
        "import sys; from smidgen.models.pretrained import load_base; "
        f"load_base({str(places / 'ours')!r}).codec.fingerprint; "
        "assert 'diffusers' not in sys.modules; assert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_pipeline_ships_as_a_base_and_another_model_s_folder_does_not(tmp_path, monkeypatch):
    for module in (names, sources, architectures):
        monkeypatch.setattr(module, "EMBEDDED", tmp_path)
    TINY_PIPELINES["sd"].save(tmp_path / "reads-prompts")
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"model_type": "clip"}')
    assert names.shipped_names() == ("reads-prompts",)
    base = load_base("reads-prompts")
    assert base.name == "reads-prompts"
    assert base.source == tmp_path / "reads-prompts"
    assert base.conditioner is not None
    assert type(architectures.meta_network("reads-prompts")) is type(base.denoiser)
    assert torch.isfinite(base.conditions(["a cat"])(torch.tensor([0]))["text"]).all()


def test_the_bases_that_ship_are_listed():
    assert {"glyphs", "glyphs-64"} <= set(names.shipped_names())
    assert "clip-glyphs" not in names.shipped_names()
