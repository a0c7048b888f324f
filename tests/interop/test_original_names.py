"""Weights under original names, read back by diffusers' own converters, are the ones written."""

import copy

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.hosts import flux, sd3, unet_names
from smidgen.hosts.host import find_family
from smidgen.hosts.original_parts import original_open_clip, original_vae
from smidgen.hosts.renaming import modules_of, rename
from smidgen.interop.single_file import DENOISER
from tests.tiny.codecs import autoencoder
from tests.tiny.networks import network
from tests.tiny.weights import lively


def renamed(model):
    state = model.state_dict()
    renaming = find_family(model).original.names(modules_of(state))
    return {DENOISER + key: t for key, t in rename(state, renaming, "the file").items()}


def same(read, model):
    state = model.state_dict()
    assert set(read) == set(state)
    for key, tensor in state.items():
        assert torch.equal(read[key], tensor), key


UNETS = {
    "sd 1": lambda: network("sd"),
    "sdxl": lambda: network("sdxl"),
    "three levels": lambda: network(
        "sd",
        block_out_channels=(32, 32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ),
}


@pytest.mark.parametrize("make", UNETS.values(), ids=UNETS)
def test_a_unet_comes_back_from_diffusers_reader(make):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = make()
    same(convert_ldm_unet_checkpoint(renamed(model), dict(model.config)), model)


def test_a_released_unet_has_the_released_names():
    """Names of `v1-5-pruned-emaonly.safetensors` at places that are easily got wrong."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768)  # the defaults are those of SD 1.x
    outer = {
        name: inner
        for name, (inner,) in unet_names.original_names(
            modules_of(model.state_dict())
        ).modules.items()
    }
    assert outer["input_blocks.3.0.op"] == "down_blocks.0.downsamplers.0.conv"
    assert outer["input_blocks.11.0.in_layers.2"] == "down_blocks.3.resnets.1.conv1"
    assert outer["output_blocks.2.1.conv"] == "up_blocks.0.upsamplers.0.conv"
    assert outer["output_blocks.5.2.conv"] == "up_blocks.1.upsamplers.0.conv"
    assert outer["output_blocks.11.0.skip_connection"] == "up_blocks.3.resnets.2.conv_shortcut"
    assert (
        outer["middle_block.1.transformer_blocks.0.attn2.to_k"]
        == "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    )
    assert len(outer) == len(modules_of(model.state_dict()))


@pytest.mark.parametrize(
    "more",
    [{}, {"dual_attention_layers": (), "qk_norm": None}, {"num_layers": 12}],
    ids=["3.5 medium", "3", "two digits"],
)
def test_sd3_comes_back_from_diffusers_reader(more):
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    model = network("sd3", **more)
    same(convert_sd3_transformer_checkpoint_to_diffusers(renamed(model)), model)


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_flux_comes_back_from_diffusers_reader(guidance):
    """That reader knows one width, 3072: the weights have its rows and, to be small, one column."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=11, guidance_embeds=guidance)
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(t.shape[:1] + (1,) * (t.ndim - 1), generator=generator)
        for key, t in model.state_dict().items()
    }
    written = rename(state, flux.original_names(modules_of(state)), "the file")
    assert written["single_blocks.10.linear1.weight"].shape == (7 * 3072, 1)
    read = convert_flux_transformer_checkpoint_to_diffusers(dict(written))
    assert set(read) == set(state)
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    "more",
    [{}, {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}],
    ids=["sd", "sd3"],
)
def test_a_codec_comes_back_from_diffusers_reader(more):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    model = autoencoder(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=True,
        **more,
    )
    written = {f"first_stage_model.{k}": t for k, t in original_vae(model.state_dict()).items()}
    assert written["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1)
    same(convert_ldm_vae_checkpoint(written, dict(model.config)), model)


def test_attention_names_of_older_folders_are_known_too():
    codec = autoencoder(mid_block_add_attention=True)
    state = dict(codec.state_dict())
    expected = original_vae(state)
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    for key in list(state):
        module, _, end = key.rpartition(".")
        head, _, leaf = module.rpartition(".")
        if leaf in old:
            state[f"{head}.{old[leaf]}.{end}"] = state.pop(key)
    assert len(state.keys() - codec.state_dict().keys()) == 12
    found = original_vae(state)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_open_clip_stacks_queries_keys_and_values():
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        max_position_embeddings=9,
    )
    model = lively(CLIPTextModelWithProjection(config))
    state = model.state_dict()
    written = {f"x.{key}": tensor for key, tensor in original_open_clip(state).items()}
    assert written["x.transformer.resblocks.1.attn.in_proj_weight"].shape == (48, 16)
    read = convert_open_clip_checkpoint(model, written, prefix="x.")
    assert set(read) == {key for key in state if not key.endswith("position_ids")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in read.items())


def test_what_the_original_code_has_not_is_refused_by_name():
    state = dict(network("sd").state_dict())
    names = modules_of(state)
    foreign = state | {"mid_block.motion.proj.weight": torch.zeros(2, 2)}
    with pytest.raises(SmidgenError, match=r"no place for mid_block\.motion\.proj\.weight"):
        rename(foreign, unet_names.original_names(modules_of(foreign)), "the file")
    transformer = dict(network("sd3").state_dict())
    renaming = sd3.original_names(modules_of(transformer))
    del transformer["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(SmidgenError, match=r"transformer_blocks\.1\.attn\.to_k\.weight lacks"):
        rename(transformer, renaming, "the file")
    uneven = names | {"down_blocks.1.resnets.2.conv1"}
    with pytest.raises(SmidgenError, match="differ in their number of layers"):
        unet_names.original_names(uneven)


def test_renaming_leaves_the_given_weights_alone():
    model = network("sd3")
    before = copy.deepcopy(model.state_dict())
    renamed(model)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
