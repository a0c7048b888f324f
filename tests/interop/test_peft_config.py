"""PEFT's configuration: every field is classified, read as PEFT reads it, or refused by name."""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key

from smidgen.errors import SmidgenError
from smidgen.interop.lora import read_lora
from smidgen.interop.peft_config import HARMLESS, READ, REFUSED, UNSET, read_config
from tests.interop.test_lora import unet_output
from tests.tiny.bases import base_of
from tests.tiny.networks import DIT, dit, network

FIELDS = {field.name: field for field in dataclasses.fields(LoraConfig)}


def test_every_field_of_the_installed_peft_is_classified_once():
    assert set(FIELDS) == HARMLESS | READ | REFUSED
    assert len(FIELDS) == len(HARMLESS) + len(READ) + len(REFUSED)


def test_a_configuration_of_defaults_is_read(tmp_path):
    config = LoraConfig().to_dict()
    assert all(config[name] in (*UNSET, "none") for name in REFUSED)
    scaling = read_config(json.loads(json.dumps(config, default=list)), tmp_path)
    assert scaling.scale("any", 4, None) == LoraConfig().lora_alpha / 4
    assert scaling.start is None
    assert read_config({"r": 4}, tmp_path).scale("any", 4, None) == LoraConfig().lora_alpha / 4
    assert read_config({}, tmp_path).scale("any", 4, None) == 1


SET = {
    "fan_in_fan_out": True,
    "bias": "lora_only",
    "modules_to_save": ["proj_out"],
    "megatron_config": {"a": 1},
    "trainable_token_indices": [3],
    "use_dora": True,
    "velora_config": {"num_groups": 64},
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,
    "monteclora_config": {"num_samples": 4},
    "layer_replication": [[0, 4], [2, 5]],
    "lora_bias": True,
    "target_parameters": ["experts.gate_up_proj"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4},
    "ensure_weight_tying": True,
}


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("component", ["", "unet.", "transformer."])
def test_what_changes_the_computation_is_refused_by_name_where_it_is_set(tmp_path, name, component):
    assert set(SET) == REFUSED
    config = {"lora_alpha": 4, name: SET[name]}
    with pytest.raises(SmidgenError, match=f'"{name}" is set') as error:
        read_config({f"{component}{key}": value for key, value in config.items()}, tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_not_known_is_refused_where_it_is_set(tmp_path):
    for unset in (None, False, 0, "", [], {}):
        read_config({"lora_alpha": 4, "use_tomorrow": unset}, tmp_path)
    for value in (True, 3, "yes", [0], {"a": None}):
        with pytest.raises(SmidgenError, match='"use_tomorrow" is set, which is not known here'):
            read_config({"lora_alpha": 4, "use_tomorrow": value}, tmp_path)
    with pytest.raises(SmidgenError, match='is "LOHA"; only plain LoRA is read'):
        read_config({"peft_type": "LOHA", "lora_alpha": 4}, tmp_path)


def test_what_is_said_of_text_encoders_is_no_matter_of_the_denoiser(tmp_path):
    config = {"text_encoder.use_dora": True, "text_encoder_2.lora_alpha": "x"}
    assert read_config(config, tmp_path).scale("any", 4, None) == 1
    assert read_config(config | {"unet.lora_alpha": 2}, tmp_path).scale("any", 4, None) == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": "four"},
        {"lora_alpha": [4]},
        {"lora_alpha": None},
        {"lora_alpha": 10**40},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"to_q": "x"}},
        {"use_rslora": "yes"},
        {"init_lora_weights": {}},
        {"peft_type": 5},
    ],
)
def test_values_of_another_type_are_told_with_their_place(tmp_path, changes):
    with pytest.raises(SmidgenError, match=rf"\$\.{next(iter(changes))}"):
        read_config({"lora_alpha": 4} | changes, tmp_path)


# -- patterns --------------------------------------------------------------------------------------

MODULES = ("to_q", "attn.to_q", "blocks.1.attn.to_q", "blocks.11.attn.to_q", "xto_q", "mid.to-q")
PATTERNS = ("to_q", "attn.to_q", r"attn\.to_q", "^to_q", "^blocks.1.attn.to_q$", "1.attn.to_q")
PATTERNS += ("to_q$", r"to\-q", "to-q", "o_q", "attn", "blocks.1", ".to_q", "")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_fit_the_modules_that_they_fit_in_peft(tmp_path, pattern):
    scaling = read_config({"lora_alpha": 2, "alpha_pattern": {pattern: 8}}, tmp_path)
    for module in MODULES:
        in_peft = get_pattern_key([pattern], module) == pattern
        assert scaling.scale(module, 1, None) == (8 if in_peft else 2), module


def test_the_first_pattern_that_fits_counts(tmp_path):
    patterns = {"attn.to_q": 3, "to_q": 5, "blocks.1.attn.to_q": 7}
    scaling = read_config({"lora_alpha": 2, "alpha_pattern": patterns}, tmp_path)
    for module in MODULES:
        expected = patterns.get(get_pattern_key(patterns, module), 2)
        assert scaling.scale(module, 1, None) == expected


@pytest.mark.parametrize(
    "pattern",
    ["(([a-z_0-9.]+)+)+!", "(a|a)*b", ".*attn.*", "to_[qk]", r"blocks\.\d+", "a{9}", "a?", "x^y"],
)
def test_other_regular_expressions_are_refused_and_never_run(tmp_path, pattern):
    with pytest.raises(SmidgenError, match="alpha_pattern has the regular expression") as error:
        read_config({"lora_alpha": 2, "alpha_pattern": {pattern: 8}}, tmp_path)
    assert json.dumps(pattern) in str(error.value)


# -- starts ----------------------------------------------------------------------------------------


def trained(model, **settings):
    """A PEFT model of `model` whose factors moved as if trained."""
    torch.manual_seed(0)
    theirs = get_peft_model(model, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if {"lora_A", "lora_B"} & set(name.split(".")):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return theirs


CHANGING = {
    "pissa": {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"},
    "pissa, scaled": {"r": 4, "lora_alpha": 7, "init_lora_weights": "pissa", "use_rslora": True},
    "pissa, patterns": {
        "r": 4,
        "lora_alpha": 8,
        "init_lora_weights": "pissa",
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_v": 3},
    },
    "olora": {"r": 3, "lora_alpha": 5, "init_lora_weights": "olora"},
}
KEEPING = {
    "gaussian": {"r": 4, "init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal"},
    "mica": {"r": 4, "init_lora_weights": "mica"},
    "none": {"r": 4, "init_lora_weights": False},
}


@pytest.mark.parametrize(
    "settings", [*CHANGING.values(), *KEEPING.values()], ids=[*CHANGING, *KEEPING]
)
def test_whatever_its_start_a_lora_gives_the_trained_models_output(tmp_path, settings):
    model, targets = network("sd"), ["to_q", "to_v", "to_out.0"]
    before = unet_output(model)
    theirs = trained(network("sd"), target_modules=targets, **settings)
    theirs.save_pretrained(tmp_path)
    expected = unet_output(theirs.base_model.model)
    assert (expected - before).abs().max() > 0.05
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with read_lora(tmp_path, base_of(model)).attach(model):
        torch.testing.assert_close(unet_output(model), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(unet_output(model), before)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_the_start_is_that_of_the_rows_which_the_names_mean(tmp_path, start):
    """In diffusers' DiT queries, keys and values are three linears, each with its own start."""
    model = dit()
    settings = {"r": 2, "lora_alpha": 3, "init_lora_weights": start}
    apart = torch.nn.ModuleDict()
    weight = model.blocks[0].attn.qkv.weight
    for name, rows in zip(("to_q", "to_k", "to_v"), weight.chunk(3), strict=True):
        apart[name] = torch.nn.Linear(DIT.width, DIT.width, bias=False)
        apart[name].weight = torch.nn.Parameter(rows.detach().clone())
    holder = torch.nn.Module()
    holder.transformer_blocks = torch.nn.ModuleList([torch.nn.Module()])
    holder.transformer_blocks[0].attn1 = apart
    theirs = trained(holder, target_modules=["to_q", "to_k", "to_v"], **settings)
    theirs.save_pretrained(tmp_path)
    merged = theirs.merge_and_unload().transformer_blocks[0].attn1
    expected = torch.cat([merged[name].weight for name in ("to_q", "to_k", "to_v")])
    found = weight.detach().clone()
    for edit in read_lora(tmp_path, base_of(model)).edits.values():
        assert edit.sites[0].module == "blocks.0.attn.qkv"
        assert edit.body.width == 4, "of the rank and that of the start"
        first, last = edit.rows
        found[first:last] += (
            edit.scale * edit.body.up.weight.detach() @ edit.body.down.weight.detach()
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_that_peft_converted_is_read_as_any_other(tmp_path, start):
    model = network("sd")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], init_lora_weights=start)
    theirs = get_peft_model(network("sd"), config).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if {"lora_A", "lora_B"} & set(name.split(".")):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    expected = unet_output(theirs.base_model.model)
    theirs.save_pretrained(
        tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    written = json.loads((tmp_path / "end" / "adapter_config.json").read_text())
    assert written["init_lora_weights"] is True
    with read_lora(tmp_path / "end", base_of(model)).attach(model):
        torch.testing.assert_close(unet_output(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa_niter_16", "corda", "loftq", "lora_ga", "tomorrow"])
def test_a_start_that_cannot_be_computed_again_is_refused_by_name(tmp_path, start):
    trained(network("sd"), r=2, target_modules=["to_q"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": start}))
    with pytest.raises(SmidgenError, match=f'init_lora_weights is "{start}".*_weight_conversion'):
        read_lora(tmp_path, base_of(network("sd")))


def test_a_start_at_a_weight_that_is_no_matrix_or_too_small_is_refused(tmp_path):
    trained(network("sd"), r=2, target_modules=["conv1"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(
        SmidgenError, match=r"a pissa of rank 2 started at .* which here is float32 of"
    ):
        read_lora(tmp_path, base_of(network("sd")))


def test_the_reference_is_what_peft_itself_loads(tmp_path):
    """PEFT takes the start out of the base again when it loads such an adapter."""
    theirs = trained(network("sd"), target_modules=["to_q"], **CHANGING["pissa"])
    theirs.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(network("sd"), tmp_path).eval()
    torch.testing.assert_close(
        unet_output(again.base_model.model),
        unet_output(theirs.base_model.model),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_adapters_file_without_its_configuration_is_refused(tmp_path):
    trained(network("sd"), r=2, target_modules=["to_q"]).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(SmidgenError, match=r"adapter_config\.json, which has its alpha, is not"):
        read_lora(tmp_path, base_of(network("sd")))
    (tmp_path / "adapter_config.json").write_text('{"a":' + "[" * 100_000)
    with pytest.raises(SmidgenError, match="nested too deeply"):
        read_lora(tmp_path, base_of(network("sd")))
