"""Where a block takes more tokens: what a host says of it against the block written out."""

import pytest
import torch

from smidgen.core.sites import bind
from smidgen.core.tokens import Tokens
from smidgen.hosts.host import find_host
from tests.hosts.transformers.test_hosts import CLOSE, VARIANTS, captured, references
from tests.tiny.networks import network

TAKERS = ("pixart", "sd3", "sd3.5", "qwen_image")
NUM = 2


def prepended(learned, arguments, named):
    """The block's arguments with `learned` before the image's tokens, not rotated at all."""
    x = arguments[0] if arguments else named["hidden_states"]
    x = torch.cat([learned.expand(len(x), -1, -1), x], dim=1)
    if arguments:
        return (x, *arguments[1:]), named
    named = named | {"hidden_states": x}
    if "image_rotary_emb" in named:
        image, text = named["image_rotary_emb"]
        unrotated = torch.ones(NUM, image.shape[1], dtype=image.dtype)
        named["image_rotary_emb"] = (torch.cat([unrotated, image]), text)
    return arguments, named


@pytest.mark.parametrize("family", TAKERS)
@pytest.mark.parametrize("number", [0, 1])
def test_tokens_in_a_block_are_tokens_in_the_block_written_out(family, number):
    name, config = VARIANTS[family]
    model = network(name, **config).double()
    block = find_host(model).blocks[number]
    module, arguments, named = captured(family, model, block)
    plain = module(*arguments, **named)
    assert block.tokens is not None
    enter, leave = block.tokens
    width = 24 if family == "pixart" else 16
    edit = Tokens(enter, leave, NUM, width, companions=block.companions)
    learned = torch.randn(edit.tokens.shape, generator=torch.Generator().manual_seed(6)).double()
    edit.tokens.data = learned
    for site, function in edit.actions():
        bind(model, site, function)
    with torch.no_grad():
        outputs = [plain, module(*arguments, **named)]
        arguments, named = prepended(learned, arguments, named)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
        expected = references(family, block)(module, lambda at, x: x, *arguments, **named)
    plain, output = [y[1] if isinstance(y, tuple) else y for y in outputs]
    torch.testing.assert_close(output, expected[:, NUM:], **CLOSE)
    assert (output - plain).abs().max() > 1e-3


def test_only_qwen_image_has_inputs_that_grow_with_the_tokens():
    for family, (name, config) in VARIANTS.items():
        for block in find_host(network(name, **config)).blocks:
            assert bool(block.companions) == (family == "qwen_image")


def test_an_editing_variant_of_qwen_image_takes_no_tokens():
    host = find_host(network("qwen_image", zero_cond_t=True))
    assert [block.tokens for block in host.blocks] == [None, None]
    assert "reference" in host.refusals["vpt"]
