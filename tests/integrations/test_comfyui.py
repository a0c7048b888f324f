"""ComfyUI's node: a delta does in the original code's network what it does in diffusers'."""

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smidgen.core.arithmetic import scaled
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from smidgen.hosts.renaming import modules_of, rename
from smidgen.hosts.unet_names import diffusers_names, original_names
from smidgen.interop.original_unet import for_original_unet, is_base_of
from smidgen.methods.configs import LEGAL
from smidgen.models.base import Base, base_fingerprint
from tests.tiny.bases import base_of, tiny_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.networks import network
from tests.tiny.original_unet import Model, OriginalUNet, Patcher

FILE = Path(__file__).parents[2] / "integrations" / "comfyui" / "smidgen_node.py"
METHODS = [
    ("lora", {"targets": ("all",)}),
    ("difffit", {}),
    ("bitfit", {}),
    ("full", {}),
    *(
        ("adapter", {"input_position": read, "output_position": write, "width": 4})
        for read, write in (("CA_out", "FFN_in"), ("CA_c", "CA_c"), ("SA_in", "Trans_out"))
    ),
    ("adapter", {"input_position": "Res_in", "output_position": "Res_out", "width": 4}),
    ("adapter", {"input_position": "CA_in", "output_position": "CA_in", "width": 4}),
]


@pytest.fixture(scope="module")
def node():
    spec = importlib.util.spec_from_file_location("smidgen_node", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["ApplySmidgenDelta"]()


@pytest.fixture(scope="module")
def base() -> Base:
    denoiser = network("sd")
    return base_of(denoiser, fingerprint=base_fingerprint(denoiser))


@pytest.fixture
def patcher(base) -> Patcher:
    return Patcher(Model(OriginalUNet(base.denoiser)))


def inputs(base):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    width = base.denoiser.config.cross_attention_dim
    return x, torch.tensor([30, 700]), torch.randn(2, 5, width, generator=generator)


def delta_of(base: Base, method: str, **config) -> Delta:
    delta = tiny_delta(base, method, std=0.05, **config).float()
    delta.provenance = replace(delta.provenance, fingerprint=base.fingerprint)
    return delta


def expected(base: Base, *deltas: Delta):
    attached = [delta.attach(base.denoiser) for delta in deltas]
    x, t, text = inputs(base)
    with torch.no_grad():
        output = base.denoiser(x, t, text, return_dict=False)[0]
    for one in attached:
        one.detach()
    return output


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", ["sd", "three levels"])
def test_the_stand_in_is_the_same_network_under_the_released_names(make):
    more = {
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = network("sd", **({} if make == "sd" else more))
    state, original = unet.state_dict(), OriginalUNet(unet)
    renamed = rename(state, original_names(modules_of(state)), "the file")
    assert set(original.state_dict()) == set(renamed)
    inner = diffusers_names([name for name, _ in original.named_modules()])
    for outer, (name,) in original_names(modules_of(state)).modules.items():
        assert inner[outer] == name
    empty = [name for name, one in original.named_modules() if isinstance(one, torch.nn.Identity)]
    known = {name for outer, name in inner.items() if outer not in empty}
    assert known <= set(dict(unet.named_modules()))
    base = base_of(unet)
    x, t, text = inputs(base)
    with torch.no_grad():
        close(original(x, t, text), unet(x, t, text, return_dict=False)[0])


@pytest.mark.parametrize(("method", "config"), METHODS, ids=str)
def test_a_delta_gives_what_it_gives_in_diffusers(
    node, base, patcher, tmp_path, method, config, caplog
):
    delta = delta_of(base, method, **config)
    delta.save(tmp_path / "delta.safetensors")
    before = {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        (patched,) = node.apply(patcher, str(tmp_path / "delta.safetensors"), 1.0)
    assert not caplog.records  # the base is the delta's
    with torch.no_grad():
        found, plain = patched.sampled(*inputs(base)), patcher.sampled(*inputs(base))
    close(found, expected(base, delta))
    close(plain, expected(base))
    assert float((found - plain).abs().max()) > 1e-2
    after = patcher.model.diffusion_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_every_position_of_an_adapter_has_a_place_there(base):
    original = OriginalUNet(base.denoiser)
    for read, writes in LEGAL.items():
        for write in writes:
            config = {"input_position": read, "output_position": write, "width": 2}
            found = for_original_unet(delta_of(base, "adapter", **config), original)
            found.attach(original).detach()


def test_two_nodes_in_a_row_and_other_strengths(node, base, patcher, tmp_path):
    one, two = delta_of(base, "difffit"), delta_of(base, "lora")
    for name, delta in (("one", one), ("two", two)):
        delta.save(tmp_path / name)
    (first,) = node.apply(patcher, str(tmp_path / "one"), 1.0)
    (both,) = node.apply(first, str(tmp_path / "two"), 0.5)
    with torch.no_grad():
        close(both.sampled(*inputs(base)), expected(base, one, scaled(two, 0.5)))
        close(first.sampled(*inputs(base)), expected(base, one))
        (off,) = node.apply(patcher, str(tmp_path / "one"), 0.0)
        close(off.sampled(*inputs(base)), expected(base))


def test_another_base_is_told_and_what_does_not_fit_is_refused(
    node, base, patcher, tmp_path, caplog
):
    other = network("sd", seed=5)
    assert not is_base_of(delta_of(base, "lora"), OriginalUNet(other))
    delta_of(base, "lora").save(tmp_path / "lora")
    with caplog.at_level(logging.WARNING):
        node.apply(Patcher(Model(OriginalUNet(other))), str(tmp_path / "lora"), 1.0)
    assert "this model has other weights" in caplog.text
    classes = tiny_base()
    tiny_delta(classes, "difffit").float().save(tmp_path / "dit")
    with pytest.raises(SmidgenError, match="the delta is of a dit base; only those of UNets"):
        node.apply(patcher, str(tmp_path / "dit"), 1.0)
    delta_of(base, "full").save(tmp_path / "full")
    with pytest.raises(SmidgenError, match="has no strength and no sum"):
        node.apply(patcher, str(tmp_path / "full"), 0.5)
    with pytest.raises(SmidgenError, match="is no UNet of SD"):
        for_original_unet(delta_of(base, "lora"), classes.denoiser)


def test_a_changed_file_is_a_changed_node(node, base, tmp_path):
    path = tmp_path / "delta"
    delta_of(base, "lora").save(path)
    first = node.IS_CHANGED(None, str(path), 1.0)
    delta_of(base, "bitfit").save(path)
    assert node.IS_CHANGED(None, str(path), 1.0) != first
    inputs_of = node.INPUT_TYPES()["required"]
    assert list(inputs_of) == ["model", "delta", "strength"]
    assert callable(getattr(node, node.FUNCTION))
