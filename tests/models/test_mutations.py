"""Changed model folders: each is refused in one line, or loads and serves."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load, save_file

from smidgen.diffusion.process import Flow
from smidgen.models.architectures import meta_network
from smidgen.models.dit_weights import read_dit, write_diffusers
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec
from tests.fuzzing import changed_bytes, changed_json, changed_tensors, each, refused
from tests.models.conftest import TINY
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors
from tests.tiny.pipelines import TINY_PIPELINES


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vae_folder):
    """A folder of each kind of base."""
    root = tmp_path_factory.mktemp("folders")
    codec, names = load_codec(vae_folder), ["a", "b", "c", "d", "e"]
    write_safetensors(dit(TINY), root / "ours", codec=codec, class_names=names)
    write_diffusers(dit(TINY), root / "dit", codec=codec, class_names=names)
    TINY_PIPELINES["sd"].save(root / "sd")
    TINY_PIPELINES["sd3"].save(root / "sd3", scheduler={"use_dynamic_shifting": True})
    return root


CONFIGS = [
    "ours/config.json",
    "ours/vae/config.json",
    "dit/model_index.json",
    "dit/transformer/config.json",
    "dit/scheduler/scheduler_config.json",
    "sd/model_index.json",
    "sd/unet/config.json",
    "sd/vae/config.json",
    "sd/text_encoder/config.json",
    "sd/scheduler/scheduler_config.json",
    "sd3/scheduler/scheduler_config.json",
    "sd3/transformer/config.json",
]


def use(folder):
    """What is done with a base: counted, loaded, its codec, schedule and prompts tried."""
    meta_network(folder)
    base = load_base(folder)
    size = 2 * base.codec.factor
    mean, _ = base.codec.encode(torch.zeros(1, 3, size, size))
    base.codec.decode(mean)
    if isinstance(base.process, Flow):
        base.process.schedule.sigmas(3, 4)
    else:
        base.process.schedule.respace(min(3, base.process.schedule.num_steps))
    if base.conditioner is not None:
        base.conditioner.encode(["a"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_changed_configuration_is_refused_in_one_line_or_harmless(folders, tmp_path, name):
    kind, _, path = name.partition("/")
    folder = shutil.copytree(folders / kind, tmp_path / kind)
    good = json.loads((folder / path).read_text())
    assert refused(lambda: use(folder)) is None

    def check(rng):
        (folder / path).write_text(json.dumps(changed_json(good, rng)))
        return refused(lambda: use(folder))

    each(12, check)
    (folder / path).write_text('{"a":' * 50_000)
    assert refused(lambda: use(folder))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_changed_weights_are_refused_in_one_line_or_harmless(folders, tmp_path, suffix, vae_folder):
    tensors = load((folders / "ours" / "dit.safetensors").read_bytes())
    path = tmp_path / f"dit.{suffix}"

    def check(rng):
        changed = changed_tensors(tensors, rng)
        save_file(changed, path) if suffix == "safetensors" else torch.save(changed, path)
        if rng.random() < 0.3:
            path.write_bytes(changed_bytes(path.read_bytes(), rng))
        return refused(lambda: load_base(path, codec=vae_folder, num_heads=4))

    assert {line is None for line in each(60, check)} == {True, False}, "some of both"


def test_a_changed_index_of_weights_in_parts_is_refused_in_one_line(tmp_path):
    write_diffusers(dit(TINY), tmp_path / "dit")
    folder = tmp_path / "dit" / "transformer"
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "one.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    good = {"metadata": {"total_size": 3}, "weight_map": {"a": "one.safetensors"}}
    index.write_text(json.dumps(good))
    assert refused(lambda: read_dit(tmp_path / "dit")) is None

    def check(rng):
        index.write_text(json.dumps(changed_json(good, rng)))
        return refused(lambda: read_dit(tmp_path / "dit"))

    assert {line is None for line in each(60, check)} == {True, False}, "some of both"
