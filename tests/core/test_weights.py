"""Files of weights: what is no safetensors file, and no weights, is refused by name."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from smidgen.core.weights import check_finite, check_shapes, checked, read_safetensors
from smidgen.errors import SmidgenError

GOOD = {"a": torch.randn(3, 4), "b": torch.randn(2).half(), "c": torch.randn(2).bfloat16()}


def test_a_file_is_read_with_its_metadata(tmp_path):
    save_file(GOOD, tmp_path / "w", metadata={"format": "pt"})
    tensors, metadata = read_safetensors(tmp_path / "w")
    assert metadata == {"format": "pt"}
    assert tensors.keys() == GOOD.keys()
    for name, tensor in GOOD.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_what_is_no_file_of_tensors_is_refused_in_one_line(tmp_path):
    save_file(GOOD, tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cut").write_bytes(content[:-1])
    (tmp_path / "empty").write_bytes(b"")
    # a header that is longer than any model's, in a file as long as that (sparse on the disk)
    with (tmp_path / "header").open("wb") as file:
        file.write((2**26).to_bytes(8, "little"))
        file.truncate(2**26 + 100)
    save_file({"line\nbreak": torch.zeros(1)}, tmp_path / "name")
    for name, reason in {
        "pipe": "it is no ordinary file",
        "cut": "truncated or damaged",
        "empty": "truncated or damaged",
        "header": "its header has 67,108,864 bytes",
        "name": r"it names a tensor 'line\\nbreak'",
        "absent": "No such file",
        "": "it is a folder",
    }.items():
        with pytest.raises(SmidgenError, match=reason) as error:
            read_safetensors(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1


def test_a_header_of_any_depth_is_refused(tmp_path):
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "deep").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(SmidgenError, match="truncated or damaged"):
        read_safetensors(tmp_path / "deep")


def test_shapes_beyond_the_file_are_refused(tmp_path):
    for shape in ([2**62], [2**40, 2**40], [-1]):
        entry = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
        text = json.dumps(entry).encode()
        (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(SmidgenError, match="truncated or damaged"):
            read_safetensors(tmp_path / "w")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_anywhere(value, dtype):
    for place in (0, 5_000, 9_999):
        tensor = torch.zeros(10_000, dtype=dtype)
        check_finite({"zero": tensor}, "here")
        tensor[place] = value
        with pytest.raises(SmidgenError, match=r"^here: not finite .NaN or infinity.: bad; the w"):
            check_finite({"good": torch.zeros(2), "bad": tensor}, "here")


def test_three_tensors_are_named_and_the_others_counted():
    bad = {f"t{number}": torch.tensor([float("nan")]) for number in range(5)}
    with pytest.raises(SmidgenError, match=r": t0, t1, t2, and 2 more; "):
        checked(bad, "here")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_8_bit_is_read_in_float32_and_must_be_finite_too(dtype):
    tensor = torch.tensor([0.5, -2.0, 240.0]).to(dtype)
    found = checked(GOOD | {"small": tensor}, "here")
    assert torch.equal(found["small"], tensor.float())
    assert found["small"].dtype == torch.float32
    assert all(found[name] is tensor for name, tensor in GOOD.items()), "others are as they were"
    with pytest.raises(SmidgenError, match="not finite"):
        checked({"a": torch.tensor([float("nan")]).to(dtype)}, "here")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_what_is_no_floating_point_is_refused_by_name(dtype):
    with pytest.raises(SmidgenError, match=f"here holds {str(dtype)[6:]} where .* point: bad;"):
        checked(GOOD | {"bad": torch.zeros(2).to(dtype)}, "here")


def test_integers_and_tensors_without_values_are_no_matter_of_finiteness():
    check_finite({"a": torch.ones(2).long(), "b": torch.ones(2, device="meta")}, "here")
    check_finite({"c": torch.ones(0), "d": torch.ones(0, 3)}, "here")


def test_other_shapes_are_named():
    expected = {"a": torch.Size((3, 4)), "b": torch.Size((3,)), "d": torch.Size(())}
    with pytest.raises(SmidgenError) as error:
        check_shapes(expected, GOOD, "here")
    assert str(error.value) == (
        "here does not fit its model: d is missing; c is unknown; b is (2,), expected (3,)"
    )
