"""Delta files: what is saved is loaded, whole or not at all, and nothing else is."""

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from smidgen.core.delta import Delta, read_header
from smidgen.core.file import write_file
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import Network, delta_of


@pytest.fixture
def delta():
    return delta_of(Network())


@pytest.fixture
def path(delta, tmp_path):
    delta.save(tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def test_a_loaded_delta_equals_the_saved_one(delta, path):
    loaded = Delta.load(path)
    assert loaded.specs() == delta.specs()
    assert loaded.provenance == delta.provenance
    assert list(loaded.edits) == list(delta.edits)
    assert loaded.state_dict().keys() == delta.state_dict().keys()
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, delta.get_parameter(name))
        assert parameter.requires_grad
        assert parameter.is_leaf


def test_a_loaded_delta_acts_as_the_saved_one(delta, path):
    x, y = torch.ones(1, 3, 4, 4), torch.tensor([7])
    network = Network()
    with delta.attach(network):
        expected = network(x, y)
    with Delta.load(path).attach(network):
        assert torch.equal(network(x, y), expected)


def test_equal_deltas_are_equal_bytes_and_loading_keeps_them(delta, path, tmp_path):
    delta.clone().save(tmp_path / "clone")
    Delta.load(path).save(tmp_path / "loaded")
    assert (tmp_path / "clone").read_bytes() == path.read_bytes()
    assert (tmp_path / "loaded").read_bytes() == path.read_bytes()


def test_the_file_is_safetensors_with_the_names_of_the_state_dict_and_one_header(delta, path):
    tensors = load_file(path)
    assert tensors.keys() == delta.state_dict().keys()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["smidgen"]
    header = json.loads(metadata["smidgen"])
    assert header == read_header(path)
    assert header["format_version"] == 1
    assert [edit["name"] for edit in header["edits"]] == list(delta.edits)
    assert header["classes"] == list("abcdefgh")
    assert header["config"] == {"rank": 3}


def test_a_delta_is_saved_in_another_precision(delta, tmp_path):
    delta.save(tmp_path / "half", dtype=torch.float16)
    loaded = Delta.load(tmp_path / "half")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, delta.get_parameter(name).half())
    assert (tmp_path / "half").stat().st_size < 2 * delta.num_parameters() + 10_000


def test_any_truncation_is_refused_in_one_line(path):
    content = path.read_bytes()
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for read in (Delta.load, read_header):
            with pytest.raises(SmidgenError, match="truncated or damaged") as error:
                read(path)
            assert "\n" not in str(error.value)


def test_other_files_are_refused_with_what_to_do(tmp_path):
    random = tmp_path / "random"
    random.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        Delta.load(random)
    lora = tmp_path / "lora"
    save_file({"unet.down.lora_A.weight": torch.zeros(2, 2)}, lora, metadata={"format": "pt"})
    with pytest.raises(SmidgenError, match=r"no smidgen delta.*LoRA of another program"):
        Delta.load(lora)
    with pytest.raises(SmidgenError, match=r"is a folder; give the delta.safetensors in it"):
        Delta.load(tmp_path)
    with pytest.raises(SmidgenError, match=r"cannot read .*absent: No such file"):
        Delta.load(tmp_path / "absent")


def header_of(path, **changes):
    return {key: value for key, value in (read_header(path) | changes).items() if value is not None}


def rewrite(path, tensors=None, **changes):
    header = header_of(path, **changes)
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata={"smidgen": json.dumps(header)})


def test_a_newer_format_and_an_unknown_edit_ask_for_an_upgrade(path):
    edits = read_header(path)["edits"]
    rewrite(path, edits=[*edits, {"name": "x", "kind": "wavelet", "sites": [], "shapes": {}}])
    with pytest.raises(SmidgenError, match=r'kind "wavelet" are unknown.*upgrade smidgen'):
        Delta.load(path)
    rewrite(path, format_version=2)
    for read in (Delta.load, read_header):
        with pytest.raises(SmidgenError, match=r"format 2, newer than this smidgen's 1; upgrade"):
            read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format_version": None},
        {"format_version": "one"},
        {"edits": None},
        {"edits": 3},
        {"edits": [{"kind": "shift"}]},
        {"classes": 5},
        {"classes": [1, 2]},
        {"fingerprint": 3},
        {"training": {"prompts": 5}},
        {"training": {"prompts": None}},
        {"training": {"prompts": {"classes": "cat"}}},
        {"method": None},
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, changes):
    rewrite(path, **changes)
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        Delta.load(path)


SHIFT = {
    "kind": "shift",
    "name": "a",
    "shapes": {"offset": [2]},
    "sites": [{"module": "stem"}],
}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"sites": [{"module": "stem", "axis": []}]}, r"Expected `int`, got `array`.*sites"),
        ({"sites": [{"module": "stem", "end": "middle"}]}, "Invalid enum value 'middle'"),
        ({"sites": [{"module": "stem", "offset": 1}]}, "unknown field `offset`"),
        ({"sites": [{"module": "stem", "end": "in", "index": 0}]}, "needs the argument's name"),
        ({"sites": [{"module": "stem", "repeats": 10**9}]}, "repeats"),
        ({"sites": []}, "`array` of length 1"),
        ({"shapes": {"offset": "2"}}, r"shapes"),
        ({"shapes": {"offset": [2**40]}}, r"shapes"),
        ({"shapes": {}}, "offset"),
        ({"shapes": {"offset": [2], "gain": [2]}}, '"a" has other shapes than its shift'),
        ({"kind": "weight", "module": 5, "sites": []}, "Expected `str`, got `int`.*module"),
        ({"kind": ["shift"]}, "kind"),
        ({"name": None}, "name"),
        ({"name": "x" * 1000}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": ""}, "names"),
        ({"rank": 3}, "unknown field `rank`"),
    ],
)
def test_an_edit_is_checked_against_the_schema_of_its_kind(path, changes, place):
    rewrite(path, {"a.offset": torch.zeros(2)}, edits=[SHIFT])
    assert list(Delta.load(path).edits) == ["a"]
    rewrite(path, {"a.offset": torch.zeros(2)}, edits=[SHIFT | changes])
    with pytest.raises(SmidgenError, match=f"truncated or damaged .its header: .*{place}") as error:
        Delta.load(path)
    assert "\n" not in str(error.value)


def test_the_deepest_name_is_read(path):
    name = ".".join("a" * 250)
    rewrite(path, {f"{name}.offset": torch.zeros(2)}, edits=[SHIFT | {"name": name}])
    assert list(Delta.load(path).edits) == [name]


def test_a_table_and_the_names_of_its_classes_must_agree(path):
    rewrite(path, classes=["a", "b"])
    with pytest.raises(SmidgenError, match="its table has 8 classes, named 2"):
        Delta.load(path)


def test_two_edits_of_one_name_are_refused(path):
    rewrite(path, {"a.offset": torch.zeros(2)}, edits=[SHIFT, SHIFT])
    with pytest.raises(SmidgenError, match='"a" is there twice'):
        Delta.load(path)


def test_a_header_of_any_depth_is_refused(path):
    save_file(load_file(path), path, metadata={"smidgen": "[" * 100_000 + "]" * 100_000})
    for read in (Delta.load, read_header):
        with pytest.raises(SmidgenError, match="truncated or damaged"):
            read(path)


def test_a_tensor_that_disagrees_with_its_edit_is_named(path):
    tensors = {"a.offset": torch.zeros(3), "b.gain": torch.zeros(2)}
    rewrite(path, tensors, edits=[SHIFT, SHIFT | {"name": "c"}])
    with pytest.raises(SmidgenError) as error:
        Delta.load(path)
    for part in ("c.offset is missing", "b.gain is unknown", "a.offset is (3,), expected (2,)"):
        assert part in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_never_written(delta, path, value):
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = value
    rewrite(path, tensors)
    with pytest.raises(SmidgenError, match=f"not finite .NaN or infinity.: {name}; the weights"):
        Delta.load(path)
    with torch.no_grad():
        delta.get_parameter(name).view(-1)[0] = value
    before = path.read_bytes()
    with pytest.raises(SmidgenError, match=f"not finite .*: {name}; train anew"):
        delta.save(path)
    assert path.read_bytes() == before


def test_values_beyond_the_range_of_a_precision_are_not_saved_in_it(delta, tmp_path):
    with torch.no_grad():
        delta.get_parameter("stem.gamma.gain").fill_(70_000)
    with pytest.raises(SmidgenError, match=r"not finite .*: stem\.gamma\.gain"):
        delta.save(tmp_path / "half", dtype=torch.float16)
    delta.save(tmp_path / "bf16", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_values_in_8_bit_are_read_in_float32(delta, path, dtype):
    delta.save(path, dtype=dtype)
    for name, parameter in Delta.load(path).named_parameters():
        assert torch.equal(parameter, delta.get_parameter(name).to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64])
def test_values_of_no_floating_point_are_refused_by_name(path, dtype):
    tensors = load_file(path)
    tensors["stem.gamma.gain"] = tensors["stem.gamma.gain"].to(dtype)
    rewrite(path, tensors)
    with pytest.raises(SmidgenError, match=r"stem\.gamma\.gain"):
        Delta.load(path)


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (Delta.load, read_header):
        with pytest.raises(SmidgenError, match="it is no ordinary file"):
            read(tmp_path / "pipe")


def test_a_convolution_in_no_groups_is_refused(path):
    conv = {"kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 0}
    sizes = {"form": "bottleneck", "size_in": 2, "width": 2, "size_out": 2}
    body = sizes | {"activation": "relu", "bias": True, "conv": conv}
    edit = {"name": "a", "kind": "bypass", "sites": [{"module": ""}] * 2, "shapes": {}}
    rewrite(path, edits=[edit | {"body": body}])
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        Delta.load(path)


def test_a_header_that_is_no_json_is_refused(path):
    save_file(load_file(path), path, metadata={"smidgen": "{"})
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        Delta.load(path)


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_a_full_disk_is_an_error_that_leaves_the_old_file(delta, path, monkeypatch, step):
    before = path.read_bytes()

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "replace":
        monkeypatch.setattr(type(path), "replace", full)
    else:
        monkeypatch.setattr(type(path), "open", full)
    delta.provenance = provenance(base="new")
    with pytest.raises(SmidgenError, match=r"cannot write .*: No space left on device; make room"):
        delta.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_an_impossible_folder_is_an_error(delta, path, tmp_path):
    for impossible in (path / "below_a_file", tmp_path):
        with pytest.raises(SmidgenError, match="cannot write"):
            delta.save(impossible)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_an_error_that_leaves_the_old_file(delta, path):
    before = path.read_bytes()
    path.parent.chmod(0o500)
    try:
        with pytest.raises(SmidgenError, match=r"cannot write .*: Permission denied"):
            delta.save(path)
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == before


def test_missing_folders_are_made_and_the_file_is_as_readable_as_any(delta, tmp_path):
    delta.save(tmp_path / "runs" / "one" / "delta.safetensors")
    (tmp_path / "plain").write_bytes(b"")
    written = tmp_path / "runs" / "one" / "delta.safetensors"
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_of_equal_tensors_do_not_depend_on_the_order_of_a_mapping(tmp_path):
    a, b = torch.zeros(2), torch.ones(3)
    write_file(tmp_path / "1", {"a": a, "b": b}, {"x": 1, "y": 2})
    write_file(tmp_path / "2", {"b": b, "a": a}, {"y": 2, "x": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
