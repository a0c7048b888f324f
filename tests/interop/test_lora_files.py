"""Others' LoRA files: every spelling of a key, every precision, and what is refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from smidgen.errors import SmidgenError
from smidgen.interop.lora import read_lora
from tests.interop.test_lora import unet_output
from tests.tiny.bases import base_of
from tests.tiny.networks import network

GOOD = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
SPELLINGS = {
    "kohya": ("lora_unet_{_}.lora_down.weight", "lora_unet_{_}.lora_up.weight"),
    "diffusers": ("unet.{.}.lora_A.weight", "unet.{.}.lora_B.weight"),
    "peft": ("base_model.model.{.}.lora_A.weight", "base_model.model.{.}.lora_B.weight"),
    "in memory": ("{.}.lora_A.default.weight", "{.}.lora_B.default.weight"),
    "another adapter": ("unet.{.}.lora_A.my_cat.weight", "unet.{.}.lora_B.my_cat.weight"),
    "compiled": ("_orig_mod.{.}.lora_A.weight", "_orig_mod.{.}.lora_B.weight"),
    "compiled inside": ("unet._orig_mod.{.}.lora_A.weight", "unet._orig_mod.{.}.lora_B.weight"),
    "in parallel": ("module.unet.{.}.lora_A.weight", "module.unet.{.}.lora_B.weight"),
    "nested": (
        "unet.base_model.model.{.}.lora_A.weight",
        "unet.base_model.model.{.}.lora_B.weight",
    ),
    "kohya, compiled": (
        "lora_unet__orig_mod_{_}.lora_down.weight",
        "lora_unet__orig_mod_{_}.lora_up.weight",
    ),
    "older": ("unet.{.}.lora.down.weight", "unet.{.}.lora.up.weight"),
    "ComfyUI": ("diffusion_model.{.}.lora_down.weight", "diffusion_model.{.}.lora_up.weight"),
    "original": ("lora_unet_{o}.lora_down.weight", "lora_unet_{o}.lora_up.weight"),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_a_key_finds_the_module(tmp_path, spelling):
    model = network("sd")
    module = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0"
    original = "input_blocks_2_1_transformer_blocks_0_attn2_to_out_0"
    down, up = torch.randn(3, 32), torch.randn(32, 3)
    keys = [
        pattern.replace("{.}", module)
        .replace("{_}", module.replace(".", "_"))
        .replace("{o}", original)
        for pattern in spelling
    ]
    save_file(dict(zip(keys, (down, up), strict=True)), tmp_path / "l.safetensors")
    (edit,) = read_lora(tmp_path / "l.safetensors", base_of(model)).edits.values()
    assert (edit.sites[0].module, edit.scale) == (module, 1.0)
    assert torch.equal(edit.body.down.weight, down)
    assert torch.equal(edit.body.up.weight, up)


@pytest.mark.parametrize("holders", [(), ("state_dict",), ("module", "model"), ("lora_state",)])
def test_a_pickle_of_tensors_is_read_within_its_holders(tmp_path, holders):
    tensors = {
        f"{GOOD}.lora_A.weight": torch.randn(2, 32),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2),
    }
    content = tensors
    for holder in holders:
        content = {holder: content, "step": 3}
    torch.save(content, tmp_path / "l.pt")
    base = base_of(network("sd"))
    if holders == ("lora_state",):
        with pytest.raises(SmidgenError, match="entry 'lora_state' is a dict"):
            read_lora(tmp_path / "l.pt", base)
        return
    (edit,) = read_lora(tmp_path / "l.pt", base).edits.values()
    assert torch.equal(edit.body.down.weight, tensors[f"{GOOD}.lora_A.weight"])


def test_several_adapters_in_one_file_are_named(tmp_path):
    tensors = {
        f"unet.{name}.lora_{part}.{adapter}.weight": torch.randn(2, 2)
        for name in ("a", "b")
        for part in "AB"
        for adapter in ("cat", "dog")
    }
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match="holds the adapters cat, dog; save one of them alone"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_factors_in_few_bits_are_read_in_float32(tmp_path, dtype):
    down, up = torch.randn(2, 32).to(dtype), torch.randn(32, 2).to(dtype)
    tensors = {f"{GOOD}.lora_A.weight": down, f"{GOOD}.lora_B.weight": up}
    save_file(tensors, tmp_path / "l.safetensors")
    model = network("sd")
    delta = read_lora(tmp_path / "l.safetensors", base_of(model))
    (edit,) = delta.edits.values()
    for found, given in ((edit.body.down.weight, down), (edit.body.up.weight, up)):
        assert found.dtype == torch.float32
        assert torch.equal(found, given.float())
    with delta.attach(model):
        assert unet_output(model).isfinite().all()


def test_an_alpha_in_any_type_of_numbers_is_read(tmp_path):
    down, up = torch.randn(4, 32), torch.randn(32, 4)
    pair = {"x.lora_down.weight": down, "x.lora_up.weight": up}
    for alpha in (
        torch.tensor(2),
        torch.tensor(2.0, dtype=torch.bfloat16),
        torch.tensor([2], dtype=torch.int32),
        torch.tensor([[2.0]]),
    ):
        tensors = {key.replace("x.", f"{GOOD}."): value for key, value in pair.items()}
        save_file(tensors | {f"{GOOD}.alpha": alpha}, tmp_path / "l.safetensors")
        (edit,) = read_lora(tmp_path / "l.safetensors", base_of(network("sd"))).edits.values()
        assert edit.scale == 0.5


# -- text encoders ---------------------------------------------------------------------------------

TEXTS = {
    "kohya": "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    "kohya, XL": "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
    "diffusers": "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "diffusers, second": "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
    "peft": "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.default.weight",
    "ComfyUI": "text_encoders.clip_l.transformer.text_model.layers.0.fc1.lora_A.weight",
    "words": "bundle_emb.my_cat.string_to_param.*",
}


@pytest.mark.parametrize("key", TEXTS.values(), ids=TEXTS)
def test_the_text_encoders_part_is_left_out_where_that_is_asked_and_counted(tmp_path, key):
    base, path = base_of(network("sd")), tmp_path / "l.safetensors"
    ours = {
        f"{GOOD}.lora_A.weight": torch.randn(2, 32),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2),
    }
    save_file(ours, path)
    alone = read_lora(path, base, "leave-out")
    assert alone.provenance.training == {"read_from": "l.safetensors"}
    nothing = torch.full((2, 2), float("nan"))  # not even looked at
    save_file(ours | {key: nothing, f"text_encoder.{key}": nothing.clone()}, path)
    with pytest.raises(
        SmidgenError, match=r"LoRA of text encoders \(2 tensors, .*--leave-out-text-e"
    ):
        read_lora(path, base)
    delta = read_lora(path, base, "leave-out")
    assert delta.provenance.training["left_out"] == {"LoRA of text encoders": 2}
    assert delta.state_dict().keys() == alone.state_dict().keys()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, delta.state_dict()[name])


def test_a_file_of_text_encoders_alone_holds_nothing_for_the_denoiser(tmp_path):
    save_file({TEXTS["kohya"]: torch.zeros(2, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match="holds no LoRA of a denoiser"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")), "leave-out")


def test_old_attention_processors_and_convolutions_written_as_matrices_are_read(tmp_path):
    model = network("sd")
    block = "mid_block.attentions.0.transformer_blocks.0"
    tensors = {
        f"{block}.attn1.processor.to_out_lora.down.weight": torch.randn(2, 64),
        f"{block}.attn1.processor.to_out_lora.up.weight": torch.randn(64, 2),
        "mid_block.attentions.0.proj_in.lora_A.weight": torch.randn(2, 64),  # a 1x1 convolution
        "mid_block.attentions.0.proj_in.lora_B.weight": torch.randn(64, 2),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    delta = read_lora(tmp_path / "l.safetensors", base_of(model))
    assert [edit.sites[0].module for edit in delta.edits.values()] == [
        "mid_block.attentions.0.proj_in",
        f"{block}.attn1.to_out.0",
    ]
    with delta.attach(model):
        assert unet_output(model).isfinite().all()


# -- what is refused -------------------------------------------------------------------------------

REFUSED = {
    "DoRA": {f"{GOOD}.lora_magnitude_vector": (32,)},
    "DoRA of kohya": {"lora_unet_mid_block_attentions_0_proj_in.dora_scale": (64, 1)},
    "LoHa": {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (64, 2)},
    "LoKr": {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": (4, 4)},
    "LoRA of text encoders": {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (4, 2)
    },
    "LoRA of text encoders (diffusers)": {"text_encoder.layers.0.mlp.fc1.lora_A.weight": (2, 4)},
    "trained biases": {f"{GOOD}.lora_B.bias": (32,)},
    "keys of an unknown kind": {"unet.something": (2,)},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_plain_lora_of_the_denoiser_is_named_and_refused(tmp_path, kind):
    tensors = {
        f"{GOOD}.lora_A.weight": torch.randn(2, 32),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2),
    }
    base = base_of(network("sd"))
    save_file(tensors, tmp_path / "good.safetensors")
    assert len(read_lora(tmp_path / "good.safetensors", base).edits) == 1
    tensors |= {key: torch.ones(shape) for key, shape in REFUSED[kind].items()}
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError) as refusal:
        read_lora(tmp_path / "l.safetensors", base)
    name = kind.partition(" (")[0].removesuffix(" of kohya")
    assert f"{name} (1 tensors, first {next(iter(REFUSED[kind]))})" in str(refusal.value)


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight"])
def test_factors_that_are_not_finite_are_refused_by_name(tmp_path, value, dtype, part):
    tensors = {
        f"{GOOD}.lora_A.weight": torch.randn(2, 32).to(dtype),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2).to(dtype),
    }
    tensors[f"{GOOD}.{part}"][1, 1] = value
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match=f"not finite .NaN or infinity.: {GOOD}.{part}; the"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        *[(torch.tensor(value), f"scaled by {value}") for value in NOT_FINITE],
        (torch.tensor(0.0), "scaled by 0, so that nothing"),
        (torch.tensor(1e30), "scaled by 5e"),
        (torch.tensor([1.0, 2.0]), r"is no number but \(2,\)"),
        (torch.zeros(0), r"is no number but \(0,\)"),
        (torch.tensor(1j), "is no number"),
    ],
)
def test_an_alpha_that_makes_no_scale_is_refused_by_name(tmp_path, alpha, message):
    tensors = {
        f"{GOOD}.lora_A.weight": torch.randn(2, 32),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2),
        f"{GOOD}.alpha": alpha,
    }
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match=f"of {GOOD} is .*{message.removeprefix('is ')}"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
def test_factors_of_no_floating_point_are_refused_by_name(tmp_path, dtype):
    tensors = {
        f"{GOOD}.lora_A.weight": torch.ones(2, 32).to(dtype),
        f"{GOOD}.lora_B.weight": torch.randn(32, 2),
    }
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match=f"where weights are of .*: {GOOD}.lora_A.weight;"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))


@pytest.mark.parametrize(
    ("down", "up"),
    [((0, 32), (32, 0)), ((32,), (32, 1)), ((2, 32, 3), (32, 2)), ((2, 32), (32, 2, 3)), ((), ())],
)
def test_factors_of_odd_shapes_are_refused(tmp_path, down, up):
    tensors = {f"{GOOD}.lora_A.weight": torch.ones(down), f"{GOOD}.lora_B.weight": torch.ones(up)}
    save_file(tensors, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match=GOOD.removeprefix("unet.")) as error:
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))
    assert len(str(error.value).splitlines()) == 1


def test_every_kind_in_a_file_is_named_at_once(tmp_path):
    mixed = [key for kind in ("DoRA", "LoHa", "LoRA of text encoders") for key in REFUSED[kind]]
    save_file({key: torch.ones(2, 2) for key in mixed}, tmp_path / "l.safetensors")
    with pytest.raises(SmidgenError, match=r"^(?=.* DoRA)(?=.* LoHa)(?=.* LoRA of text)"):
        read_lora(tmp_path / "l.safetensors", base_of(network("sd")))


def test_files_for_other_models_and_damaged_ones_are_refused(tmp_path):
    base, path = base_of(network("sd")), tmp_path / "l.safetensors"
    pair = {"down": torch.randn(2, 32), "up": torch.randn(32, 2)}
    for tensors, message in [
        ({"transformer.x.to_q.lora_A.weight": pair["down"]}, "UNet2DConditionModel has not"),
        ({f"{GOOD}.lora_A.weight": pair["down"]}, "the up of .* is missing"),
        (
            {f"{GOOD}.lora_A.weight": torch.randn(2, 9), f"{GOOD}.lora_B.weight": pair["up"]},
            r"\(2, 9\)",
        ),
        (
            {f"{GOOD}.lora_A.weight": pair["down"], f"{GOOD}.lora_B.weight": torch.randn(40, 2)},
            "has 40 rows, the base's needs 32",
        ),
        (
            {f"{GOOD}.lora_A.weight": torch.randn(3, 32), f"{GOOD}.lora_B.weight": pair["up"]},
            "do not fit",
        ),
        (
            {
                "conv_norm_out.lora_A.weight": pair["down"],
                "conv_norm_out.lora_B.weight": pair["up"],
            },
            "a GroupNorm; only linears",
        ),
    ]:
        save_file(tensors, path)
        with pytest.raises(SmidgenError, match=message):
            read_lora(path, base)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.use_dora": True, "unet.r": 2})}
    both = {f"{GOOD}.lora_A.weight": pair["down"], f"{GOOD}.lora_B.weight": pair["up"]}
    save_file(both, path, metadata=metadata)
    with pytest.raises(SmidgenError, match=r'"use_dora" is set and may .*only plain LoRA'):
        read_lora(path, base)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SmidgenError):
        read_lora(path, base)
