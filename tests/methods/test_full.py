"""Full fine-tuning trains copies of everything but what the host fixes."""

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.methods.full import by_owner
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors

LABEL_TABLE = "y_embedder.embedding_table.weight"


def test_the_copies_are_the_base_s_tensors_under_their_own_names():
    base = law_base("dit")
    delta = tiny_delta(base, "full", std=0.0)
    tensors = trained_tensors(delta)
    state = base.denoiser.state_dict()
    assert set(tensors) == set(state) - {"pos_embed", LABEL_TABLE} | {"label_table.rows"}
    for name in set(tensors) - {"label_table.rows"}:
        assert torch.equal(tensors[name], state[name])
        assert tensors[name].data_ptr() != state[name].data_ptr()
    assert tensors["label_table.rows"].shape == (len(NEW_CLASSES) + 1, 16)


@pytest.mark.parametrize("host", ["unet", "lumina2", "auraflow"])
def test_without_labels_every_parameter_has_a_copy(host):
    base = law_base(host)
    tensors = trained_tensors(tiny_delta(base, "full", (), std=0.0))
    state = dict(base.denoiser.named_parameters())
    assert {name.removeprefix("root.") for name in tensors} == set(state)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, state[name.removeprefix("root.")])


def test_one_parameter_in_two_places_is_refused():
    base = law_base("unet")
    base.denoiser.conv_out.bias = base.denoiser.conv_in.bias
    with pytest.raises(SmidgenError, match=r"conv_in\.bias and conv_out\.bias are one parameter"):
        tiny_delta(base, "full", ())


def test_a_module_with_raw_parameters_keeps_those_within_it():
    names = ("a.0.table", "a.0.fc.weight", "a.0.fc.bias", "a.1.fc.weight", "b.weight")
    tensors = {name: torch.empty(0) for name in names}
    owners = {owner: list(inner) for owner, inner in by_owner(tensors).items()}
    assert owners == {
        "a.0": ["table", "fc.weight", "fc.bias"],
        "a.1.fc": ["weight"],
        "b": ["weight"],
    }
