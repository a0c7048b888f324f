"""BitFit by shifts is training the biases."""

import copy

import torch

from tests.laws.tiny import KNOWN_CLASSES, TINY_HOSTS, all_labels, tiny_base, tiny_delta

LABEL_TABLE = "y_embedder.embedding_table.weight"


def test_shifts_train_step_by_step_like_the_biases_themselves():
    base = tiny_base("dit")
    inputs = TINY_HOSTS["dit"].inputs(all_labels(KNOWN_CLASSES))
    target = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(4)).double()
    delta = tiny_delta(base, "bitfit", KNOWN_CLASSES, std=0.0)
    reference = copy.deepcopy(base.denoiser)
    trained = {
        name: parameter.requires_grad_()
        for name, parameter in reference.named_parameters()
        if name.endswith(".bias") or name == LABEL_TABLE
    }
    start = base.denoiser.state_dict()
    ours = torch.optim.AdamW(delta.parameters(), lr=1e-2, weight_decay=0.0)
    theirs = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    with delta.attach(base.denoiser):
        for _ in range(5):
            for model, optimizer in ((base.denoiser, ours), (reference, theirs)):
                optimizer.zero_grad()
                (model(*inputs) - target).square().mean().backward()
                optimizer.step()
            for name, parameter in trained.items():
                if name == LABEL_TABLE:
                    moved, expected = delta.edits["label_table"].rows, parameter
                else:
                    moved, expected = delta.edits[name].offset, parameter - start[name]
                torch.testing.assert_close(moved, expected, atol=1e-9, rtol=0, msg=name)
    assert all((p - start[name]).abs().max() > 1e-2 for name, p in trained.items())
