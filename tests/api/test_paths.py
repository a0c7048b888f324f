"""Every path that a function of the package takes may be text, as case F17."""

import inspect
import types
from pathlib import Path
from typing import Union, get_args, get_origin, get_type_hints

import pytest
import torch
from safetensors.torch import save_file

import smidgen
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

SHORT = {"steps": 2, "batch_size": 4, "trackers": (), "progress": False}
TAKERS = {name: getattr(smidgen, name) for name in smidgen.__all__} | {
    "Delta.load": smidgen.Delta.load,
    "Delta.save": smidgen.Delta.save,
}


def parts(annotation):
    if get_origin(annotation) in (Union, types.UnionType):
        return set(get_args(annotation))
    return {annotation}


@pytest.mark.parametrize("name", TAKERS)
def test_what_may_be_a_path_may_be_text(name):
    taker = TAKERS[name]
    hints = get_type_hints(taker.__init__ if inspect.isclass(taker) else taker)
    paths = [parts(hint) for key, hint in hints.items() if key != "return" and Path in parts(hint)]
    assert all(str in kinds for kinds in paths)


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def test_text_does_what_a_path_does(base, tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    photos, run = str(write_photos(tmp_path / "photos")), str(tmp_path / "run")
    caches = str(tmp_path / "latents"), str(tmp_path / "statistics")
    smidgen.train(base, photos, method="lora", output=run, cache_dir=caches[0], **SHORT)
    delta = f"{run}/delta.safetensors"
    (image,) = smidgen.sample(base, delta=delta, num_images=1, steps=1)
    image.save(tmp_path / "drawn.png")
    sampling = smidgen.SamplingConfig(num_images=2, steps=1)
    given = {"base": base, "sampling": sampling, "cache_dir": caches[1]}
    smidgen.evaluate(run, photos, **given)
    smidgen.evaluate(delta, photos, **given)
    smidgen.Delta.load(delta).save(str(tmp_path / "copy.safetensors"))
    theirs, plain, ours = (str(tmp_path / f"{n}.safetensors") for n in ("theirs", "plain", "ours"))
    key = "lora_unet_blocks_0_attn_qkv"
    width = base.denoiser.config.width
    shapes = {"lora_down": (4, width), "lora_up": (3 * width, 4)}
    save_file({f"{key}.{n}.weight": torch.ones(shape) for n, shape in shapes.items()}, theirs)
    smidgen.import_lora(theirs, base).save(plain)
    smidgen.export_lora(plain, base, format="kohya", output=ours)
    smidgen.fold(base, delta, format="dit", output=str(tmp_path / "folded.pt"))
    assert all(Path(cache).is_dir() for cache in caches)
    for made in ("copy.safetensors", "ours.safetensors", "folded.pt"):
        assert (tmp_path / made).is_file()


def test_text_names_the_weights_of_features(tmp_path):
    with pytest.raises(smidgen.SmidgenError, match=r"no such file: .*nothing\.pt"):
        smidgen.evaluate(
            str(write_photos(tmp_path / "a")),
            str(write_photos(tmp_path / "b")),
            features="inception",
            weights=str(tmp_path / "nothing.pt"),
        )
    with pytest.raises(smidgen.SmidgenError, match=r"no model in .*nothing"):
        smidgen.evaluate(
            str(tmp_path / "a"),
            str(tmp_path / "b"),
            features="dinov2",
            weights=str(tmp_path / "nothing"),
        )
