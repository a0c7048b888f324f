"""BitFit by shifts is training the biases."""

import copy

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.tiny.bases import KNOWN_CLASSES, base_of, law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS, all_labels

LABEL_TABLE = "y_embedder.embedding_table.weight"


@pytest.mark.parametrize("host", ["dit", "unet"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
def test_shifts_train_step_by_step_like_the_biases_themselves(host, kind):
    base, tiny = law_base(host), TINY_HOSTS[host]
    inputs = tiny.inputs(all_labels(KNOWN_CLASSES))
    target = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(4)).double()
    delta = tiny_delta(base, "bitfit", KNOWN_CLASSES, std=0.0)
    reference = copy.deepcopy(base.denoiser)
    trained = {
        name: parameter.requires_grad_()
        for name, parameter in reference.named_parameters()
        if name.endswith(".bias") or name == LABEL_TABLE
    }
    start = base.denoiser.state_dict()
    ours = kind(delta.parameters(), lr=1e-2, weight_decay=0.0)
    theirs = kind(trained.values(), lr=1e-2, weight_decay=0.0)
    with delta.attach(base.denoiser):
        for _ in range(3):
            for model, optimizer in ((base.denoiser, ours), (reference, theirs)):
                optimizer.zero_grad()
                output = tiny.call(model, *inputs)[:, : target.shape[1]]
                (output - target).square().mean().backward()
                optimizer.step()
            for name, parameter in trained.items():
                if name == LABEL_TABLE:
                    moved, expected = delta.edits["label_table"].rows, parameter
                else:
                    moved, expected = delta.edits[name].offset, parameter - start[name]
                torch.testing.assert_close(moved, expected, atol=1e-9, rtol=0, msg=name)
    moves = [(parameter - start[name]).abs().max() for name, parameter in trained.items()]
    assert min(moves) > (1e-2 if kind is torch.optim.AdamW else 1e-9)


def test_a_base_without_biases_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)).requires_grad_(False)
    base = base_of(model)
    with pytest.raises(SmidgenError, match="trains biases and a derived base has none"):
        build_delta("bitfit", base, configure("bitfit"), (), torch.Generator())
