"""Our DiT against diffusers' own, through the files, and the folders that diffusers writes."""

import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.models.dit import DiTConfig
from smidgen.models.dit_diffusers import (
    class_names_of_index,
    schedule_from_diffusers,
    schedule_to_diffusers,
)
from smidgen.models.dit_weights import build_dit, read_dit, write_diffusers
from tests.models.conftest import TINY, inputs
from tests.tiny.networks import dit

CONFIGS = {
    "tiny": TINY,
    "patch 4, 3 channels": DiTConfig(
        image_size=8, patch_size=4, in_channels=3, width=48, depth=3, num_heads=2, num_classes=7
    ),
    "no variance": dataclasses.replace(TINY, learn_sigma=False),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def transformer_class():
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel


def outputs(model, theirs, config):
    x, t, y = inputs(config, dtype=torch.float64)
    with torch.no_grad():
        return model(x, t, y), theirs(x, timestep=t, class_labels=y).sample


def set_shift(theirs, shift: float) -> None:
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_written_folder_gives_the_same_outputs_in_diffusers(tmp_path, transformer_class, config):
    """Random weights everywhere, in float64: only the float32 timestep features round."""
    model = dit(config)
    write_diffusers(model, tmp_path)
    theirs, found = transformer_class.from_pretrained(
        tmp_path / "transformer", output_loading_info=True
    )
    assert not any(found.values())
    theirs = theirs.double().eval()
    ours, other = outputs(model.double(), theirs, config)
    assert (ours - other).abs().max() > 1e-3 * ours.abs().max(), "the shift must show"
    set_shift(theirs, 0)
    ours, other = outputs(model, theirs, config)
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6 * float(ours.abs().max()))


def save_theirs(transformer_class, folder, config=TINY, **options):
    """A folder as diffusers itself saves it, random everywhere, embedders equal in all blocks."""
    generator = torch.Generator().manual_seed(4)
    theirs = transformer_class(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.width // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=config.image_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2, generator=generator)
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    theirs.save_pretrained(folder, **options)
    return theirs.double().eval()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_diffusers_gives_the_same_outputs_here(tmp_path, transformer_class, sharded):
    options = {"max_shard_size": "100KB"} if sharded else {}
    theirs = save_theirs(transformer_class, tmp_path / "transformer", **options)
    assert (tmp_path / "transformer" / f"{WEIGHTS}.index.json").exists() == sharded
    for path in (tmp_path, tmp_path / "transformer"):
        config, state = read_dit(path, frequency_shift=1.0)
        assert config == dataclasses.replace(TINY, frequency_shift=1.0)
        ours, other = outputs(build_dit(config, state).double(), theirs, config)
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-6 * float(ours.abs().max()))
    assert read_dit(tmp_path)[0].frequency_shift == 0


def test_embedders_that_differ_between_blocks_are_refused(tmp_path, transformer_class):
    folder = tmp_path / "transformer"
    save_theirs(transformer_class, folder)
    state = load_file(folder / WEIGHTS)
    state["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"][3] += 1e-3
    save_file(state, folder / WEIGHTS)
    with pytest.raises(SmidgenError, match=r"linear_2.bias of block 1 differs"):
        read_dit(tmp_path)


@pytest.mark.parametrize("end", ["attn1.to_k.weight", "norm1.emb.timestep_embedder.linear_1.bias"])
def test_a_tensor_in_8_bit_among_others_is_read(tmp_path, transformer_class, end):
    """As exactly as it is kept; where it differs from its like in other blocks, it is refused."""
    save_theirs(transformer_class, tmp_path)
    (path,) = tmp_path.rglob("*.safetensors")
    whole = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = f"transformer_blocks.1.{end}"
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensors = whole | {name: whole[name].to(dtype)}
        save_file(tensors, path)
        if "embedder" in end:
            with pytest.raises(SmidgenError, match="of block 1 differs"):
                read_dit(tmp_path)
        else:
            rows = slice(TINY.width, 2 * TINY.width)
            found = read_dit(tmp_path)[1]["blocks.1.attn.qkv.weight"][rows]
            assert torch.equal(found, tensors[name].float())


def test_damaged_folders_are_refused_with_the_reason(tmp_path, transformer_class):
    folder = tmp_path / "transformer"
    save_theirs(transformer_class, folder)
    with pytest.raises(SmidgenError, match="give its folder"):
        read_dit(folder / WEIGHTS)
    state, config = load_file(folder / WEIGHTS), json.loads((folder / "config.json").read_text())
    for change, message in [
        ({"num_layers": 3}, "transformer_blocks.2.* is missing"),
        ({"num_layers": 1}, "transformer_blocks.1.* is unknown"),
        ({"num_embeds_ada_norm": 9}, r"expected \(10, 32\)"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine"),
        ({"activation_fn": "geglu"}, "activation_fn"),
        ({"out_channels": 5}, "out_channels is 5"),
        ({"sample_size": 5}, "multiple of patch_size"),
    ]:
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path)
    (folder / "config.json").write_text(json.dumps(config))
    state["pos_embed.pos_embed"] = torch.zeros(1, 4, 32)  # stored by early versions, and computed
    save_file(state, folder / WEIGHTS)
    read_dit(tmp_path)
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(SmidgenError, match=r"pickle \(.bin\), which can run code"):
        read_dit(tmp_path)
    (folder / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(SmidgenError, match="holds no diffusion_pytorch_model"):
        read_dit(tmp_path)
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(SmidgenError, match="its own folder"):
        read_dit(tmp_path)


def test_a_feed_forward_that_diffusers_has_not_is_refused(tmp_path):
    with pytest.raises(SmidgenError, match="4 times"):
        write_diffusers(dit(dataclasses.replace(TINY, mlp_ratio=2.0)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SCHEDULES = {
    "released": Schedule.linear(),
    "short": Schedule.linear(100, 1e-3, 0.05),
    "own": Schedule.from_betas(torch.linspace(0.1, 0.3, 7, dtype=torch.float64) ** 2),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_written_scheduler_has_the_same_noise_in_diffusers(tmp_path, schedule):
    from diffusers import DDIMScheduler

    written = schedule_to_diffusers(schedule)
    theirs = DDIMScheduler.from_config(written)
    # diffusers computes in float32
    torch.testing.assert_close(
        theirs.alphas_cumprod.double(), schedule.alphas_cumprod, rtol=1e-4, atol=0
    )
    assert torch.equal(schedule_from_diffusers(written, tmp_path).betas, schedule.betas)


def test_scaled_linear_betas_are_those_of_diffusers(tmp_path):
    from diffusers import DDIMScheduler

    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = DDIMScheduler.from_config(config)
    ours = schedule_from_diffusers(config, tmp_path)
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_end": 3.0},
        {"num_train_timesteps": "many"},
    ],
)
def test_schedules_that_are_not_known_are_refused(tmp_path, config):
    with pytest.raises(SmidgenError):
        schedule_from_diffusers(config, tmp_path)


def test_class_names_are_unique_first_synonyms_with_numbers_where_needed():
    labels = {"0": "tench, Tinca tinca", "1": "crane", "2": "maillot, tank suit", "3": "crane"}
    names = class_names_of_index({"id2label": labels}, 5)
    assert names == ("tench", "crane (1)", "maillot", "crane (3)", "4")
    assert class_names_of_index({}, 3) == ("0", "1", "2")


def test_a_written_pipeline_runs_in_diffusers(tmp_path, vae_folder):
    """1000 classes, as DiTPipeline's null label demands; names with commas come back whole."""
    from diffusers import DiTPipeline

    from smidgen.models.pretrained import load_base
    from smidgen.models.sources import load_codec

    config = dataclasses.replace(TINY, num_classes=1000)
    names = ["tench, Tinca tinca", *(f"class {i}" for i in range(1, 1000))]
    notes = write_diffusers(dit(config), tmp_path, codec=load_codec(vae_folder), class_names=names)
    assert len(notes) == 1
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = DiTPipeline.from_pretrained(tmp_path)
    assert pipeline.labels["Tinca tinca"] == 0
    pipeline.set_progress_bar_config(disable=True)
    (image,) = pipeline(
        [3], num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).images
    assert image.size == (8, 8)
    assert load_base(tmp_path).class_names == tuple(names)
