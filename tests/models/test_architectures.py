"""Networks without weights, by name and from folders of diffusers."""

import json

import pytest
from diffusers import UNet2DConditionModel

from smidgen.errors import SmidgenError, UsageError
from smidgen.models.architectures import architecture_names, build_meta, meta_network
from smidgen.models.dit import DiT
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.networks import network

# parameters of the published UNets
PUBLISHED = {
    "sd-1.4": 859_520_964,
    "sd-1.5": 859_520_964,
    "sd-2.1": 865_910_724,
    "sdxl": 2_567_463_684,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_architecture_has_the_published_size_and_no_weights(name):
    network = meta_network(name)
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]
    assert all(p.is_meta and not p.requires_grad for p in network.parameters())


def test_the_names_are_those_of_the_shipped_configurations():
    assert set(architecture_names()) == set(PUBLISHED)


def test_a_dit_is_our_own():
    assert isinstance(meta_network("DiT-S/8", 7), DiT)
    with pytest.raises(UsageError):
        meta_network("DiT-Q/2")


@pytest.mark.parametrize("family", ["unet", "auraflow", "sana"])
def test_a_folder_of_configurations_alone_gives_the_network(tmp_path, family):
    model = TINY_HOSTS[family].make(3)
    model.save_config(tmp_path / "lone")
    part = "unet" if family == "unet" else "transformer"
    model.save_config(tmp_path / "pipeline" / part)
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "AnyPipeline"}')
    expected = {name: p.shape for name, p in model.named_parameters()}
    for folder in ("lone", "pipeline"):
        network = meta_network(tmp_path / folder)
        assert type(network) is type(model)
        assert {name: p.shape for name, p in network.named_parameters()} == expected


def test_classes_are_refused_where_there_are_no_labels():
    with pytest.raises(SmidgenError, match="no label table for 5 classes"):
        meta_network("sd-1.4", 5)


def test_a_quantised_configuration_is_that_of_the_network_itself():
    config = dict(network("unet").config) | {
        "_class_name": "UNet2DConditionModel",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    assert isinstance(build_meta(config), UNet2DConditionModel)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "NoSuchModel"}, "NoSuchModel"),
        ({"_class_name": "DDIMScheduler"}, "no network"),
        ({"_class_name": "UNet2DConditionModel", "down_block_types": ["Odd"]}, "does not fit"),
    ],
)
def test_a_configuration_of_something_else_is_refused(config, words):
    with pytest.raises(SmidgenError, match=words):
        build_meta(config)


def test_a_folder_without_a_network_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AnyPipeline"}))
    with pytest.raises(SmidgenError, match=r"neither unet/config\.json nor transformer"):
        meta_network(tmp_path)
