"""Full fine-tuning trains copies of everything but what the host fixes."""

import torch

from tests.laws.tiny import NEW_CLASSES, tiny_base, tiny_delta, trained_tensors

LABEL_TABLE = "y_embedder.embedding_table.weight"


def test_the_copies_are_the_base_s_tensors_under_their_own_names():
    base = tiny_base("dit")
    delta = tiny_delta(base, "full", std=0.0)
    tensors = trained_tensors(delta)
    state = base.denoiser.state_dict()
    assert set(tensors) == set(state) - {"pos_embed", LABEL_TABLE} | {"label_table.rows"}
    for name in set(tensors) - {"label_table.rows"}:
        assert torch.equal(tensors[name], state[name])
        assert tensors[name].data_ptr() != state[name].data_ptr()
    assert tensors["label_table.rows"].shape == (len(NEW_CLASSES) + 1, 16)
