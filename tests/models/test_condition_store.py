"""Conditions on the disk: what is put in comes out, whoever opens them, and damage is noticed."""

import pytest
import torch

from smidgen.models.condition_store import ConditionStore


def condition(tokens: int) -> dict[str, torch.Tensor]:
    text = torch.randn(1, tokens, 3, generator=torch.Generator().manual_seed(tokens))
    return {"text": text.bfloat16(), "mask": torch.ones(1, tokens, dtype=torch.long)}


def test_each_text_keeps_its_condition_and_its_length(tmp_path):
    texts = {"an owl": condition(2), "": condition(1), "\u00e9\ud800": condition(4)}
    ConditionStore(tmp_path / "new").add(texts)
    ConditionStore(tmp_path / "new").add({"a fox": condition(3)})
    store = ConditionStore(tmp_path / "new")
    assert "an ow" not in store
    for text, expected in (texts | {"a fox": condition(3)}).items():
        assert text in store
        assert store[text].keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(store[text][name], value)
            assert store[text][name].dtype == value.dtype


@pytest.mark.parametrize("damage", ["a bit", "an end", "all"])
def test_a_damaged_file_is_removed_and_its_texts_are_missing(tmp_path, caplog, damage):
    store = ConditionStore(tmp_path)
    store.add({"an owl": condition(2)})
    (path,) = tmp_path.glob("*.safetensors")
    store.add({"a fox": condition(3)})
    data = bytearray(path.read_bytes())
    if damage == "a bit":
        data[-1] ^= 1
    path.unlink()
    path.write_bytes({"a bit": data, "an end": data[:-1], "all": b""}[damage])
    again = ConditionStore(tmp_path)
    assert "an owl" not in again
    assert "a fox" in again
    assert not path.exists()
    assert "is damaged" in caplog.text
