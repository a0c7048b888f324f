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
from tests.core.networks import Network, delta_of, provenance


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
        {"edits": []},
        {"edits": 3},
        {"edits": [{"kind": "shift"}]},
        {"classes": 5},
        {"method": None},
        {"tensors": {"a": torch.zeros(2)}},
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, changes):
    rewrite(path, **changes)
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        Delta.load(path)


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
