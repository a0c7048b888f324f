"""A label table is a matter of taps and fold targets: any host may have one, not DiT's alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from smidgen.core.fold import IntoTable, fold
from smidgen.core.sites import Site
from smidgen.hosts.derived import host as derived
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, base_of
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import all_labels


class Labelled(nn.Module):
    """A latent coloured by its label."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, 8, 1)
        self.labels = nn.Embedding(num_classes + 1, 8)
        self.leave = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.enter(x).permute(0, 2, 3, 1) + self.labels(y)[:, None, None]
        return self.leave(torch.tanh(h)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("method", ["full", "bitfit", "difffit"])
def test_new_classes_are_trained_and_fold_into_a_table_of_their_number(method):
    torch.manual_seed(0)
    model = Labelled(len(KNOWN_CLASSES)).double().requires_grad_(False)
    plain, table = derived(model), IntoTable("labels.weight")
    label_in, label_out = Site("labels", "in"), Site("labels")
    host = replace(
        plain,
        taps={"label.in": label_in, "label.out": label_out, "final.out": Site("leave")},
        sizes={**plain.sizes, label_out: 8},
        folds={**plain.folds, label_in: table, label_out: table},
    )
    base = base_of(model, KNOWN_CLASSES, host=host)
    delta, labels = tiny_delta(base, method), all_labels(NEW_CLASSES)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(len(labels), 4, 2, 2, generator=generator, dtype=torch.float64)
    with delta.attach(model):
        output = model(x, labels)
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())
    folded = Labelled(len(NEW_CLASSES)).double()
    folded.load_state_dict(fold(delta, model.state_dict(), host.folds))
    torch.testing.assert_close(folded(x, labels), output, atol=1e-12, rtol=1e-12)
