"""Vision transformers from folders: whole, safetensors only, positions as the released DINOv2."""

import hashlib
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from smidgen.errors import SmidgenError
from smidgen.models.vision import (
    hash_weights,
    interpolate_positions,
    load_clip,
    load_clip_tokenizer,
    load_dinov2,
)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=4
    )
    Dinov2Model(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, as PyTorch's bicubic without antialiasing has it."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def sampling_matrix(side: int, grid: int, offset: float) -> torch.Tensor:
    """Row i: the weights of the old positions in new position i, edges repeated."""
    matrix = torch.zeros(grid, side, dtype=torch.float64)
    for i in range(grid):
        place = (i + 0.5) * side / (grid + offset) - 0.5
        for j in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(j, 0), side - 1)] += cubic(place - j)
    return matrix


@pytest.mark.parametrize(("side", "grid"), [(37, 16), (5, 3), (4, 7)])
def test_positions_are_interpolated_with_the_released_offset(side, grid):
    positions = torch.randn(1, 1 + side * side, 3, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(positions, grid)
    patches = positions[0, 1:].reshape(side, side, 3).double()

    def expected(offset: float) -> torch.Tensor:
        matrix = sampling_matrix(side, grid, offset)
        return torch.einsum("iy,jx,yxd->ijd", matrix, matrix, patches).reshape(-1, 3).float()

    assert torch.equal(found[0, 0], positions[0, 0])
    torch.testing.assert_close(found[0, 1:], expected(0.1), rtol=1e-3, atol=1e-4)
    assert (found[0, 1:] - expected(0.0)).abs().max() > 1e-2


def test_a_network_at_its_own_size_keeps_its_positions_and_is_frozen(folder):
    network = load_dinov2(folder, 28)
    expected = Dinov2Model.from_pretrained(folder).state_dict()
    state = network.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_another_size_changes_the_positions_only_and_runs(folder):
    network = load_dinov2(folder, 12)
    assert network.embeddings.position_embeddings.shape == (1, 1 + 3 * 3, 8)
    assert network(pixel_values=torch.zeros(1, 3, 12, 12)).pooler_output.shape == (1, 8)


def test_half_precision_files_are_read_as_float32(folder):
    path = folder / "model.safetensors"
    tensors = {name: value.half() for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    assert {p.dtype for p in load_dinov2(folder, 28).parameters()} == {torch.float32}


def test_the_hash_is_the_files_and_covers_every_part_with_its_name(folder):
    path = folder / "model.safetensors"
    assert hash_weights(folder) == hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "more.safetensors").write_bytes(b"more")
    both = hash_weights(folder)
    (folder / "more.safetensors").rename(folder / "n.safetensors")
    assert len({both, hash_weights(folder), hashlib.sha256(path.read_bytes()).hexdigest()}) == 3


@pytest.mark.parametrize("damage", ["missing", "shape", "truncated", "pickle", "config"])
def test_a_folder_that_is_not_the_whole_model_is_refused(damage, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        del tensors["layernorm.weight"]
        save_file(tensors, path, metadata={"format": "pt"})
    elif damage == "shape":
        tensors["layernorm.weight"] = torch.zeros(9)
        save_file(tensors, path, metadata={"format": "pt"})
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
        path.unlink()
    else:
        (folder / "config.json").write_text("{")
    expected = (
        r"cannot read .*config\.json: Input data was truncated"
        if damage == "config"
        else "Dinov2Model"
    )
    with pytest.raises(SmidgenError, match=expected) as caught:
        load_dinov2(folder, 28)
    assert str(folder) in str(caught.value)


def test_a_model_of_another_kind_is_refused(folder):
    with pytest.raises(SmidgenError, match='"dinov2"; expected "clip"'):
        load_clip(folder)


def test_pickled_weights_have_no_hash(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SmidgenError, match="pickled"):
        hash_weights(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_missing_or_damaged_tokenizer_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SmidgenError, match="tokenizer"):
        load_clip_tokenizer(tmp_path, 77)
