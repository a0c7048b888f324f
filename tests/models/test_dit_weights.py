"""Every file format of DiT weights: what is written is read back, and what is wrong is said."""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.core.fingerprint import fingerprints_match
from smidgen.errors import SmidgenError
from smidgen.models.base import base_fingerprint
from smidgen.models.dit import DiT, DiTConfig, position_table, preset
from smidgen.models.dit_shapes import fit_positions, infer_config
from smidgen.models.dit_weights import (
    build_dit,
    read_config,
    read_dit,
    write_diffusers,
    write_original_pt,
)
from tests.models.conftest import TINY
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors

SMALL = DiTConfig(image_size=4, width=384, depth=1, num_heads=6, num_classes=3)  # as wide as DiT-S


def write(kind: str, model, folder):
    """The path that `read_dit` is given afterwards."""
    if kind == "pt":
        write_original_pt(model, folder / "model.pt")
        return folder / "model.pt"
    if kind == "smidgen":
        write_safetensors(model, folder / "ours")
        return folder / "ours"
    write_diffusers(model, folder / "theirs")
    return folder / "theirs"


def assert_same_state(state, model):
    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
def test_every_format_gives_back_configuration_and_weights(tmp_path, kind):
    model = dit(SMALL)
    config, state = read_dit(write(kind, model, tmp_path))
    assert config == SMALL
    assert_same_state(state, model)
    assert (
        read_config(tmp_path / {"pt": "model.pt", "smidgen": "ours"}.get(kind, "theirs")) == SMALL
    )


VARIANTS = {
    "patch 1, no variance": DiTConfig(
        image_size=3,
        patch_size=1,
        in_channels=2,
        width=384,
        depth=1,
        num_heads=6,
        learn_sigma=False,
    ),
    "odd feed-forward": DiTConfig(
        image_size=8, patch_size=4, width=384, depth=2, num_heads=6, mlp_ratio=101 / 384
    ),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_lone_file_shows_its_whole_configuration(tmp_path, config):
    model = dit(config)
    read, state = read_dit(write("pt", model, tmp_path))
    assert (read.image_size, read.patch_size, read.in_channels) == (
        config.image_size,
        config.patch_size,
        config.in_channels,
    )
    assert (read.depth, read.num_classes, read.learn_sigma) == (
        config.depth,
        config.num_classes,
        config.learn_sigma,
    )
    assert_same_state(build_dit(read, state).state_dict(), model)


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_shapes_of_every_member_of_the_family_tell_its_configuration(size, patch):
    config = preset(f"DiT-{size}/{patch}", image_size=64, num_classes=11)
    with torch.device("meta"):
        state = DiT(config).state_dict()
    assert infer_config(state, Path("lone.pt")) == config


def test_heads_of_another_width_come_from_the_argument_the_file_or_a_config_beside(tmp_path):
    """A file of other programs says nothing of heads; ours records them without a foreign key."""
    model = dit(TINY)
    assert read_dit(write("pt", model, tmp_path))[0] == TINY
    foreign = tmp_path / "foreign.pt"
    torch.save(dict(model.state_dict()), foreign)
    with pytest.raises(SmidgenError, match="give num_heads"):
        read_dit(foreign)
    assert read_dit(foreign, num_heads=2)[0] == dataclasses.replace(TINY, num_heads=2)
    write_safetensors(model, tmp_path)
    assert read_dit(foreign)[0] == TINY


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_on_reading_and_matches_the_fingerprint(tmp_path, kind, dtype):
    model = dit(SMALL)
    whole = base_fingerprint(model)
    config, state = read_dit(
        write(kind, build_dit(SMALL, model.state_dict(), dtype=dtype), tmp_path)
    )
    assert {t.dtype for name, t in state.items() if name != "pos_embed"} == {dtype}
    again = build_dit(config, state)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    # the table is computed, not rounded and stretched
    assert torch.equal(again.pos_embed, model.pos_embed)
    assert fingerprints_match(base_fingerprint(again), whole)
    assert not fingerprints_match(base_fingerprint(dit(SMALL, seed=9)), whole)


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
def test_all_formats_have_exactly_the_same_fingerprint(tmp_path, kind):
    model = dit(SMALL)
    assert base_fingerprint(build_dit(*read_dit(write(kind, model, tmp_path)))) == base_fingerprint(
        model
    )


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
def test_another_image_size_computes_the_positions_and_keeps_the_fingerprint(tmp_path, kind):
    model = dit(SMALL)
    path = write(kind, model, tmp_path)
    config, state = fit_positions(*read_dit(path), (8, 8), path)
    assert config == dataclasses.replace(SMALL, image_size=8)
    assert torch.equal(state["pos_embed"], position_table(384, (4, 4)))
    assert base_fingerprint(build_dit(config, state)) == base_fingerprint(model)
    with pytest.raises(SmidgenError, match="multiple of patch_size"):
        fit_positions(*read_dit(path), (7, 7), path)


def test_learned_positions_are_kept_but_never_resized(tmp_path):
    model = dit(SMALL)
    model.pos_embed += 0.1
    path = write("pt", model, tmp_path)
    assert_same_state(read_dit(path)[1], model)
    with pytest.raises(SmidgenError, match="not the fixed table"):
        fit_positions(*read_dit(path), (8, 8), path)
    with pytest.raises(SmidgenError, match="position table"):
        write_diffusers(model, tmp_path / "theirs")


def test_frequency_shift_is_zero_unless_recorded_or_told(tmp_path, caplog):
    shifted = dit(dataclasses.replace(SMALL, frequency_shift=1.0))
    for kind, recorded in [("pt", 1.0), ("smidgen", 1.0), ("diffusers", 1.0)]:
        path = write(kind, shifted, tmp_path / kind)
        assert read_dit(path)[0].frequency_shift == recorded
        assert read_dit(path, frequency_shift=0.5)[0].frequency_shift == 0.5
    foreign = tmp_path / "diffusers" / "theirs" / "transformer" / "config.json"
    config = json.loads(foreign.read_text())
    del config["_frequency_shift"]
    foreign.write_text(json.dumps(config))
    assert read_dit(tmp_path / "diffusers" / "theirs")[0].frequency_shift == 0


def test_writing_warns_where_the_readers_shift_is_another(tmp_path, caplog):
    plain = dit(SMALL)
    shifted = dit(dataclasses.replace(SMALL, frequency_shift=1.0))
    assert write_original_pt(plain, tmp_path / "a.pt") == []
    assert write_diffusers(shifted, tmp_path / "b") == []
    assert caplog.messages == []
    notes = write_diffusers(plain, tmp_path / "c") + write_original_pt(shifted, tmp_path / "d.pt")
    assert len(notes) == 2
    assert all("shift" in note for note in notes)
    assert caplog.messages == notes


@pytest.mark.parametrize("key", ["ema", "model"])
def test_a_training_checkpoint_gives_its_weights(tmp_path, key):
    """The released training code also keeps its optimiser and an argparse.Namespace."""
    model = dit(SMALL)
    others = {"model": dit(SMALL, seed=5).state_dict(), "opt": {"state": {}, "lr": 1e-4}}
    checkpoint = {**others, key: model.state_dict(), "args": argparse.Namespace(model="DiT-S/2")}
    torch.save(checkpoint, tmp_path / "0050000.pt")
    assert_same_state(read_dit(tmp_path / "0050000.pt")[1], model)


def test_files_of_before_torch_1_6_are_read(tmp_path):
    model = dit(SMALL)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_state(read_dit(tmp_path / "old.pt")[1], model)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SmidgenError, match="can run any code"):
        read_dit("bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_missing_unknown_and_misshapen_tensors_are_named_three_at_most(tmp_path):
    state = dit(SMALL).state_dict()
    cases = {
        "blocks.0.attn.proj.bias is missing": {"blocks.0.attn.proj.bias": None},
        "extra is unknown": {"extra": torch.zeros(1)},
        r"blocks.0.mlp.fc2.bias is \(7,\), expected \(384,\)": {
            "blocks.0.mlp.fc2.bias": torch.zeros(7)
        },
        "holds torch.int64, expected floating": {"blocks.0.mlp.fc2.bias": torch.zeros(384).long()},
        "x_embedder.proj.weight": {"x_embedder.proj.weight": None},
        "and 2 more": {f"extra.{index}": torch.zeros(1) for index in range(5)},
    }
    for message, change in cases.items():
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save(changed, tmp_path / "wrong.pt")
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path / "wrong.pt")


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "in parallel": lambda name: f"module.{name}",
    "compiled, in parallel": lambda name: f"module._orig_mod.{name}",
    "compiled blocks": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    "sharded and checkpointed": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        ".attn.", "._checkpoint_wrapped_module.attn."
    ),
    "part of something": lambda name: f"net.denoiser.{name}",
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_names_of_wrapped_modules_are_those_of_the_module(tmp_path, wrapped, suffix):
    model = dit(SMALL)
    state = {wrapped(name): tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / f"model.{suffix}"
    torch.save(state, path) if suffix == "pt" else save_file(state, path)
    config, found = read_dit(path)
    assert config == SMALL
    assert_same_state(found, model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer_states": [{}]},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: {"module": {"model": state}},
        lambda state: {"model": {"a": torch.zeros(1)}, "ema": state},
    ],
)
def test_a_state_dict_within_a_checkpoint_is_found(tmp_path, wrap):
    model = dit(SMALL)
    torch.save(wrap(dict(model.state_dict())), tmp_path / "model.pt")
    assert_same_state(read_dit(tmp_path / "model.pt")[1], model)


def test_two_models_in_one_file_are_named(tmp_path):
    state = dit(SMALL).state_dict()
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    for mixed, message in [
        (state | compiled, "has both pos_embed and _orig_mod.pos_embed: two models"),
        (parallel | {"step": torch.zeros(1)}, r'mixes names with "module\." .*module\..*\(step\)'),
        (
            {f"net.{name}": t for name, t in state.items()} | {"step": torch.zeros(1)},
            r'begin with "net\.", and other tensors \(step\)',
        ),
    ]:
        torch.save(dict(mixed), tmp_path / "mixed.pt")
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path / "mixed.pt")


def test_a_dict_within_itself_and_tensors_larger_than_the_file_are_refused(tmp_path):
    loop = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    huge = {"a": torch.zeros(1).expand(2**40)}
    torch.save(huge, tmp_path / "huge.pt")
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"a": torch.zeros(2, device="meta")}, tmp_path / "meta.pt")
    for name, message in {
        "loop.pt": "entry 'model' is a dict",
        "huge.pt": "claims 4,398,046,511,104 bytes",
        "sparse.pt": "sparse",
        "meta.pt": "without values",
    }.items():
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path / name)


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, kind):
    """Also where the fingerprint, which reads a part of a large tensor, would not see them."""
    model = dit(SMALL)
    with torch.no_grad():
        weight = model.blocks[0].mlp.fc1.weight
        assert weight.numel() > 2**16
        weight.view(-1)[1] = float("nan")
    base_fingerprint(model)
    config, state = read_dit(write(kind, model, tmp_path))
    with pytest.raises(SmidgenError, match=r"not finite .*: blocks\.0\.mlp\.fc1\.weight; "):
        build_dit(config, state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_8_bit_are_read(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in dit(SMALL).state_dict().items()}
    state["pos_embed"] = position_table(SMALL.width, SMALL.grid)
    save_file(state, tmp_path / "small.safetensors")
    config, found = read_dit(tmp_path / "small.safetensors")
    built = build_dit(config, found).state_dict()
    for name, tensor in state.items():
        assert torch.equal(built[name], tensor.float()), name


@pytest.mark.parametrize("kind", ["pt", "smidgen", "diffusers"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, kind, share):
    write(kind, dit(SMALL), tmp_path)
    (file,) = [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".safetensors")]
    os.truncate(file, int(file.stat().st_size * share))
    path = tmp_path / {"pt": "model.pt", "smidgen": "ours"}.get(kind, "theirs")
    with pytest.raises(SmidgenError, match="get the file again"):
        read_dit(path)


def test_what_is_no_dit_is_refused_with_the_reason(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    expected = {
        "text.pt": "not a whole PyTorch file",
        "list.pt": "no dict of tensors",
        "numbers.pt": "entry 'a' is a int",
        "other.safetensors": "tensors of a DiT",
        "pytorch_model.bin": 'not ".bin"',
        "absent.pt": "No such file",
        "empty": "holds no base",
    }
    for name, message in expected.items():
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path / name)


def test_our_folder_with_a_foreign_or_broken_configuration_is_refused(tmp_path):
    write_safetensors(dit(SMALL), tmp_path)
    config = tmp_path / "config.json"
    good = json.loads(config.read_text())
    for text, message in [
        ("{", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        (json.dumps({**good, "format": "smidgen-base-9"}), "this version can read"),
        (json.dumps({**good, "dit": {**good["dit"], "colour": 1}}), "this version can read"),
        (json.dumps({**good, "dit": {**good["dit"], "depth": 0}}), "at least 1"),
        (json.dumps({**good, "dit": {**good["dit"], "depth": 2}}), "blocks.1.* is missing"),
        (json.dumps({**good, "dit": {**good["dit"], "depth": 10**9}}), "at most 1,024"),
        (json.dumps({**good, "dit": {**good["dit"], "width": []}}), "got `array`.*width"),
        (json.dumps({**good, "dit": {**good["dit"], "image_size": 8192}}), "too large"),
        (json.dumps({**good, "class_names": 5}), "class_names"),
        (json.dumps({**good, "class_names": ["a", 2, "c"]}), "class_names"),
        (json.dumps({**good, "schedule": {"kind": "linear", "num_steps": "many"}}), "num_steps"),
    ]:
        config.write_text(text)
        with pytest.raises(SmidgenError, match=message):
            read_dit(tmp_path)


def test_writing_leaves_nothing_half_done_and_says_why(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = dit(SMALL)
    for attempt in (
        lambda: write_original_pt(model, tmp_path / "file" / "model.pt"),
        lambda: write_safetensors(model, tmp_path / "file"),
        lambda: write_diffusers(model, tmp_path / "file"),
    ):
        with pytest.raises(SmidgenError, match="cannot write"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_reported_and_leaves_no_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SmidgenError, match="No space left"):
        write_original_pt(dit(SMALL), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_original_file_holds_tensors_only_and_each_once(tmp_path):
    model = dit(SMALL)
    path = write("pt", model, tmp_path)
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == list(model.state_dict())
    DiT(SMALL).load_state_dict(loaded)  # as the original code does
    num_bytes = sum(t.numel() * t.element_size() for t in loaded.values())
    assert path.stat().st_size < num_bytes * 1.02 + 20_000


def test_reading_maps_the_file_and_building_copies_nothing(tmp_path):
    """The model's parameters are the file's pages: a large base costs no second copy."""
    path = write("smidgen", dit(SMALL), tmp_path)
    config, state = read_dit(path)
    model = build_dit(config, state)
    weight = "blocks.0.mlp.fc1.weight"
    assert model.get_parameter(weight).data_ptr() == state[weight].data_ptr()
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_changing_a_loaded_model_does_not_change_its_file(tmp_path):
    for kind in ("pt", "smidgen"):
        path = write(kind, dit(SMALL), tmp_path)
        model = build_dit(*read_dit(path))
        model.final_layer.linear.weight.add_(1)
        assert not torch.equal(
            build_dit(*read_dit(path)).final_layer.linear.weight, model.final_layer.linear.weight
        )
    assert load_file(tmp_path / "ours" / "dit.safetensors").keys() == model.state_dict().keys()
