"""Tokens: they lengthen a sequence and what goes with it between two sites, and only there."""

import json

import pytest
import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta
from smidgen.core.edits import edit_from_spec
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.weights import lively


class Attention(nn.Module):
    """Every token becomes the sum of all that are not masked, turned by its own rotation."""

    def forward(self, x: Tensor, turns: tuple | None = None, mask: Tensor | None = None) -> Tensor:
        weights = torch.ones(x.shape[:2], dtype=x.dtype) if mask is None else mask.to(x.dtype)
        mixed = x + (weights[:, :, None] * x).sum(1, keepdim=True)
        if turns is None:
            return mixed
        turned = torch.view_as_complex(mixed.unflatten(-1, (-1, 2)).contiguous()) * turns[0]
        return torch.view_as_real(turned).flatten(-2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Attention()

    def forward(self, x: Tensor, turns: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return 2 * self.block(x, (turns, "text") if turns is not None else None, mask=mask)


SITES = Site("block", "in"), Site("block")
TURNS = Site("block", "in", "turns", index=0, axis=0)
MASK = Site("block", "in", "mask", axis=1)


def tokens(**arguments):
    return lively(Tokens(*SITES, 3, 4, **arguments), seed=1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def attach(edit, network):
    return Delta({"prompt": edit}, provenance()).attach(network)


def test_the_block_sees_the_tokens_first_and_nothing_after_it_does():
    model, x, edit = Model(), normal(2, 5, 4), tokens()
    seen = []
    model.block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with attach(edit, model), torch.no_grad():
        output = model(x)
    ((longer, _),) = seen
    assert torch.equal(longer, torch.cat([edit.tokens.expand(2, 3, 4), x], dim=1))
    torch.testing.assert_close(output, 2 * (x + x.sum(1, keepdim=True) + edit.tokens.sum(0)))


def test_companions_get_a_neutral_entry_for_each_token_and_may_be_absent():
    model, x, edit = Model(), normal(2, 5, 4), tokens(companions=(TURNS, MASK))
    turns = torch.polar(torch.ones(5, 2), normal(5, 2))
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    with torch.no_grad():
        total = (mask[:, :, None] * x).sum(1, keepdim=True) + edit.tokens.sum(0)
        turned = torch.view_as_complex((x + total).unflatten(-1, (-1, 2))) * turns
        with attach(edit, model):
            output = model(x, turns, mask)
            boolean = model(x, turns, mask.bool())
            plain = model(x)
    torch.testing.assert_close(output, 2 * torch.view_as_real(turned).flatten(-2))
    torch.testing.assert_close(boolean, output)
    torch.testing.assert_close(plain, 2 * (x + x.sum(1, keepdim=True) + edit.tokens.sum(0)))


def test_a_companion_of_real_numbers_is_refused():
    model = Model()
    with attach(tokens(companions=(MASK,)), model), pytest.raises(SmidgenError, match="neutral"):
        model(normal(2, 5, 4), mask=torch.ones(2, 5))


def test_the_start_is_small_noise_of_the_generator():
    edit, other = Tokens(*SITES, 64, 64), Tokens(*SITES, 64, 64)
    edit.initialise(torch.Generator().manual_seed(0))
    other.initialise(torch.Generator().manual_seed(0))
    assert torch.equal(edit.tokens, other.tokens)
    assert abs(edit.tokens.std() - 0.02) < 0.001  # 4,096 values: 1 % of 0.02
    with torch.device("meta"):
        Tokens(*SITES, 2, 4).initialise(torch.Generator())


def test_tokens_get_gradients_and_keep_the_precision_of_the_base():
    model, edit = Model(), tokens()
    with attach(edit, model):
        output = model(normal(2, 5, 4).bfloat16())
        output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert output.shape == (2, 5, 4)
    assert edit.tokens.grad.dtype == torch.float32
    assert edit.tokens.grad.abs().min() > 0


def test_tokens_are_rebuilt_from_their_spec_through_json():
    for edit in (tokens(), tokens(companions=(TURNS, MASK))):
        rebuilt = edit_from_spec(json.loads(json.dumps(edit.spec())))
        assert rebuilt.spec() == edit.spec()
        assert rebuilt.companions == edit.companions
        assert rebuilt.tokens.shape == (3, 4)


def test_what_is_no_sequence_is_refused():
    model = Model()
    with attach(tokens(), model), pytest.raises(SmidgenError, match=r"not \(B, tokens, C\)"):
        model(normal(2, 3, 5, 4))
