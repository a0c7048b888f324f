"""Sizes of edits, against what a network carries without an edit and with it."""

import pytest
import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Table, Weight
from smidgen.core.sites import Site, bind
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.explanation.sizes import measuring, sizes_of
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES, Base, tiny_base
from tests.tiny.deltas import provenance, tiny_delta
from tests.tiny.weights import lively


@pytest.fixture(scope="module")
def base() -> Base:
    base = tiny_base()
    base.denoiser.double()
    return base


def inputs():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.tensor([10, 500, 900]), torch.tensor([0, 1, 2])


@torch.no_grad()
def carried(base: Base, site: Site) -> torch.Tensor:
    """What is at a site in one call, with whatever is attached."""
    found = []
    handle = bind(base.denoiser, site, lambda y: found.append(y.clone()) or y)
    base.denoiser(*inputs())
    handle.remove()
    return found[0]


@torch.no_grad()
def measured(base: Base, delta: Delta):
    with measuring(delta, base.denoiser) as watched:
        output = base.denoiser(*inputs())
    return sizes_of(delta, watched, base.host), output


def alone(delta: Delta, name: str) -> Delta:
    return Delta({name: delta.edits[name]}, delta.provenance)


@pytest.mark.parametrize(
    ("method", "config", "name", "block", "place"),
    [
        ("bitfit", {}, "blocks.1.attn.proj.bias", 1, "attn.proj.out"),
        ("difffit", {"blocks": "all"}, "blocks.1.norm2.weight", 1, "norm2.out"),
        ("lora", {}, "blocks.0.attn.qkv.lora_q", 0, "attn.qkv.out"),
        ("adapter", {}, "blocks.0.adapter", 0, "norm2.in"),
        ("full", {}, "blocks.1.mlp.fc1", 1, "mlp.fc1.out"),
        ("full", {}, "final_layer.linear", None, "final_layer.linear.out"),
    ],
)
def test_an_edit_is_as_large_as_its_change_of_what_is_there(
    base, method, config, name, block, place
):
    delta = tiny_delta(base, method, **config)
    assert name in delta.edits, list(delta.edits)
    delta = alone(delta, name)
    edit = delta.edits[name]
    site = Site(edit.target) if isinstance(edit, Weight) else edit.sites[-1]
    if method == "adapter":
        site = edit.sites[1]
    before = carried(base, site)
    with delta.attach(base.denoiser):
        after = carried(base, site)
    rows = getattr(edit, "rows", None)
    kept = before if rows is None else before.narrow(site.axis, rows[0], rows[1] - rows[0])
    (size,), _ = measured(base, delta)
    assert size.relative == pytest.approx(float((after - before).norm() / kept.norm()), rel=1e-5)
    assert size.relative > 0.01
    assert (size.block, size.place, size.edit) == (block, place, name)


def test_tokens_are_compared_with_the_tokens_beside_them(base):
    delta = tiny_delta(base, "vpt")
    name = next(name for name, edit in delta.edits.items() if isinstance(edit, Tokens))
    delta = alone(delta, name)
    edit = delta.edits[name]
    beside = carried(base, edit.sites[0])
    (size,), _ = measured(base, delta)
    expected = (edit.tokens.detach().square().mean() / beside.square().mean()).sqrt()
    assert size.relative == pytest.approx(float(expected), rel=1e-5)


def test_rows_of_a_table_are_compared_with_those_that_they_began_at(base):
    delta = tiny_delta(base, "bitfit")
    (name,) = (name for name, edit in delta.edits.items() if isinstance(edit, Table))
    delta = alone(delta, name)
    old = base.denoiser.get_parameter("y_embedder.embedding_table.weight").detach()
    known = [KNOWN_CLASSES.index(one) if one in KNOWN_CLASSES else None for one in NEW_CLASSES]
    mean = old[: len(KNOWN_CLASSES)].mean(0)
    start = torch.stack([mean if row is None else old[row] for row in (*known, len(old) - 1)])
    rows = delta.edits[name].rows.detach()
    (size,), _ = measured(base, delta)
    assert size.relative == pytest.approx(float((rows - start).norm() / start.norm()), rel=1e-5)


def test_a_word_is_compared_with_the_nearest_row():
    table = lively(torch.nn.Embedding(9, 5), seed=1)
    root = torch.nn.Sequential(table)
    old = table.weight.detach()
    rows = torch.stack([old[3] + 0.01, 1.5 * old[7]])
    word = Word(Site("0", "in"), Site("0"), "<owl>", 9, 9, rows)
    delta = Delta({"word": word}, provenance())
    with measuring(delta, root) as watched, torch.no_grad():
        root(torch.tensor([[1, 9]]))
    (sums,) = watched[0].found.values()
    near = torch.stack([min(old, key=lambda one: float((row - one).norm())) for row in rows])
    assert sums.relative == pytest.approx(float((rows - near).norm() / near.norm()), rel=1e-4)


@pytest.mark.parametrize("method", ["difffit", "lora", "adapter", "full", "vpt"])
def test_a_measured_delta_acts_as_an_attached_one_and_leaves_nothing(base, method):
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    delta = tiny_delta(base, method)
    with delta.attach(base.denoiser), torch.no_grad():
        expected = base.denoiser(*inputs())
    sizes, output = measured(base, delta)
    assert torch.equal(output, expected)
    assert {size.edit for size in sizes} == set(delta.edits)
    after = base.denoiser.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.denoiser.modules())


@pytest.mark.parametrize("method", ["difffit", "lora", "full"])
def test_edits_at_their_start_have_no_size(base, method):
    generator = torch.Generator().manual_seed(2)
    delta = build_delta(method, base, configure(method, {}), KNOWN_CLASSES, generator).double()
    sizes, _ = measured(base, delta)
    assert {size.relative for size in sizes} == {0.0}
