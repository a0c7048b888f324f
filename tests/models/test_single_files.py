"""Checkpoints of Stable Diffusion in one file as bases: what they become, and what is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.errors import SmidgenError
from smidgen.hosts.original_parts import clip_shapes, original_clip, original_open_clip
from smidgen.interop.pipeline_folder import component_state
from smidgen.interop.single_file import original_of, single_file
from smidgen.models import single_files
from smidgen.models.pretrained import load_base
from smidgen.models.single_files import (
    Blueprint,
    blueprint_by,
    components,
    network_shapes,
    unpack,
)
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.text import clip_text, clip_tokenizer

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def sd2(folder):
    """Stable Diffusion 2: v, and OpenCLIP."""
    text = clip_text(clip_tokenizer(folder.parent / "words"), hidden_act="gelu")
    scheduler = {"prediction_type": "v_prediction"}
    return TINY_PIPELINES["sd"].save(folder, scheduler=scheduler, text_encoder=text)


MODELS = {
    "sd1": lambda folder: TINY_PIPELINES["sd"].save(folder),
    "sd2": sd2,
    "sdxl": lambda folder: TINY_PIPELINES["sdxl"].save(folder),
}


def document(path):
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()


def described(folder):
    """All of a pipeline but its weights."""
    files = [path for path in folder.rglob("*") if path.suffix in (".json", ".txt")]
    return Blueprint(documents={p.relative_to(folder).as_posix(): document(p) for p in files})


def written(folder, path, more=None):
    """The pipeline as one file in the original names, with what released files have besides."""
    present = [part for part in PARTS if (folder / part).is_dir()]
    states = {part: component_state(folder / part) for part in present}
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in present}
    texts = {
        part: (states[part], configs[part].get("hidden_act", "quick_gelu")) for part in present[2:]
    }
    tensors = single_file(original_of(configs, "unet"), states["unet"], states["vae"], texts)
    tensors |= {"alphas_cumprod": torch.ones(4), "model_ema.decay": torch.ones(())}
    save_file(tensors | (more or {}), path)
    return path


@pytest.fixture(params=MODELS)
def made(request, tmp_path, monkeypatch):
    """A pipeline and its single file, which is found to be described as the pipeline is."""
    folder = MODELS[request.param](tmp_path / "pipeline")
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(single_files, "blueprint_of", lambda path: described(folder))
    return folder, written(folder, tmp_path / "model.safetensors")


def test_a_file_is_the_base_that_its_pipeline_is(made, monkeypatch):
    folder, path = made
    base, expected = load_base(path), load_base(folder)
    assert base.name == str(path)
    ours, theirs = base.denoiser.state_dict(), expected.denoiser.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert base.fingerprint == expected.fingerprint
    assert base.process.prediction == expected.process.prediction
    images = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    assert torch.equal(base.codec.encode(images)[0], expected.codec.encode(images)[0])
    texts = [one.conditioner.encode(["a red fox"]) for one in (base, expected)]
    assert set(texts[0]) == set(texts[1])
    assert all(torch.equal(texts[0][name], texts[1][name]) for name in texts[0])
    monkeypatch.setattr(single_files, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert load_base(path).source == base.source


def test_the_precision_of_a_file_is_kept(tmp_path, monkeypatch):
    folder = MODELS["sd1"](tmp_path / "pipeline")
    path = written(folder, tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    unpack(path, tmp_path / "out", described(folder))
    for part in ("unet", "vae", "text_encoder"):
        assert {t.dtype for t in component_state(tmp_path / "out" / part).values()} == {
            torch.float16
        }


def test_what_is_missing_unknown_or_of_another_shape_is_named(tmp_path):
    folder = MODELS["sdxl"](tmp_path / "pipeline")
    whole = load_file(written(folder, tmp_path / "whole.safetensors"))
    unet, text = "model.diffusion_model.", "conditioner.embedders.1.model."
    block = f"{text}transformer.resblocks.0.attn.in_proj_weight"
    cases = {
        "out.2.bias": {f"{unet}out.2.bias": None},
        "lacks transformer.resblocks.0.attn": {block: None},
        "expected": {block: torch.zeros(3, 3)},
        "has input_blocks.99.0.bias": {f"{unet}input_blocks.99.0.bias": torch.zeros(1)},
        "of a part that is not known": {"control_model.zero": torch.zeros(1)},
        "no tensors under first_stage_model.": {
            name: None for name in whole if name.startswith("first_stage_model.")
        },
        "not finite": {f"{unet}out.2.bias": torch.full((4,), float("nan"))},
    }
    for number, (message, changes) in enumerate(cases.items()):
        tensors = {name: t for name, t in (whole | changes).items() if t is not None}
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(SmidgenError, match=message) as error:
            unpack(path, tmp_path / "out", described(folder))
        assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.glob("out*")) + list(tmp_path.glob(".partial*"))


def test_a_ckpt_is_refused_with_how_to_convert_it(tmp_path):
    (tmp_path / "v1-5.ckpt").write_bytes(b"x")
    with pytest.raises(SmidgenError, match=r"is a pickle.*save_file"):
        load_base(tmp_path / "v1-5.ckpt")


def meta_file(blueprint):
    """The tensors of a released file, by the writer, without values."""

    def empty(shapes):
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    networks = {part: empty(network_shapes(blueprint.config(part))) for part in ("unet", "vae")}
    texts = {}
    for name in blueprint.text_encoders:
        config = blueprint.config(name)
        shapes = clip_shapes(config, projected=name == "text_encoder_2")
        texts[name] = (empty(shapes), config["hidden_act"])
    tensors = single_file(blueprint.original, networks["unet"], networks["vae"], texts)
    return networks | {name: state for name, (state, _) in texts.items()}, tensors


# numbers of parameters of the released networks, as their pages and papers have them
RELEASED = {
    768: {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    1024: {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    2048: {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
# and of tensors in files that hold them, without position numbers and scales of logits
NUM_TENSORS = {768: 686 + 248 + 196, 2048: 1680 + 248 + 196 + 389}


@pytest.mark.parametrize("width", RELEASED)
def test_every_tensor_of_a_released_model_has_its_place(width, tmp_path):
    number = 4 if width == 2048 else 1
    header = {
        f"model.diffusion_model.input_blocks.{number}.1.transformer_blocks.0.attn2.to_k.weight": (
            320,
            width,
        ),
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    }
    blueprint = blueprint_by(header, "v" if width == 1024 else None, tmp_path / "x.safetensors")
    states, tensors = meta_file(blueprint)
    if width in NUM_TENSORS:
        assert len(tensors) == NUM_TENSORS[width]

    def part(prefix):
        return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

    found = dict(components(part, blueprint, "the file"))
    for name, count in RELEASED[width].items():
        shapes = {key: tensor.shape for key, tensor in found[name].items()}
        assert shapes == {key: tensor.shape for key, tensor in states[name].items()}
        assert sum(map(math.prod, shapes.values())) == count
    predicted = blueprint.documents["scheduler/scheduler_config.json"]["prediction_type"]
    assert predicted == ("v_prediction" if width == 1024 else "epsilon")


def test_what_sd_2_predicts_is_read_beside_the_file_or_asked_for(tmp_path):
    header = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 1024),
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    }
    path = tmp_path / "v2.safetensors"
    with pytest.raises(SmidgenError, match=r'put v2.yaml beside.*"parameterization: v"'):
        blueprint_by(header, None, path)
    assert single_files.beside(path) is None
    path.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert single_files.beside(path) == "v"
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    assert single_files.beside(path) == "epsilon"
    sizes = {
        said: blueprint_by(header, said, path).config("unet")["sample_size"]
        for said in ("v", "epsilon")
    }
    assert sizes == {"v": 96, "epsilon": 64}


def test_the_vocabulary_is_that_of_clip(tmp_path):
    from transformers import CLIPTokenizer

    header = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768),
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    }
    documents = blueprint_by(header, None, tmp_path / "x").documents
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        value = documents[f"tokenizer/{name}"]
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    # the numbers that CLIP's own code gives
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77
    assert len(tokenizer) == 49408


def test_clip_and_openclip_come_back_from_their_names():
    for projected, forward in ((False, original_clip), (True, original_open_clip)):
        config = {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 2,
            "vocab_size": 5,
            "max_position_embeddings": 7,
            "projection_dim": 6,
        }
        generator = torch.Generator().manual_seed(0)
        shapes = clip_shapes(config, projected=projected)
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        read = single_files.read_open_clip if projected else single_files.read_clip
        found = read(forward(state), shapes)
        assert set(found) == set(state)
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("width", "first", "message"),
    [
        (1280, (320, 4, 3, 3), "texts of 1280 channels"),  # SDXL's refiner
        (768, (320, 9, 3, 3), "inpainting"),
        (768, (), "first layer"),
        (None, (320, 4, 3, 3), "texts of None"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path, width, first, message):
    block = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0"
    header = {
        f"{block}.attn2.to_k.weight": () if width is None else (320, width),
        "model.diffusion_model.input_blocks.0.0.weight": first,
    }
    with pytest.raises(SmidgenError, match=message):
        blueprint_by(header, None, tmp_path / "x.safetensors")
