"""Changed deltas, 400 of them: each is refused in one line, or loads and acts."""

import json

import pytest
from safetensors.torch import load, save_file

from smidgen.core.bypass import Bottleneck, Bypass, Conv, ConvBottleneck
from smidgen.core.delta import Delta, read_header
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from tests.fuzzing import (
    changed_bytes,
    changed_header,
    changed_json,
    changed_tensors,
    each,
    refused,
)
from tests.tiny.deltas import provenance
from tests.tiny.handmade import WIDTH, Network, edits, inputs
from tests.tiny.weights import lively

X, Y = inputs()


def all_kinds(network: Network) -> Delta:
    """A delta with every kind of edit and of body."""
    stem = (Site("stem", "in", axis=1), Site("stem", axis=1))
    first, second = Site("blocks.0.mixer", "in", argument="h"), Site("blocks.0.mixer")
    identity = {"activation": "identity", "bias": False}
    point = Conv(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    more = {
        "stem.lora": Bypass(stem[0], stem[1:], Bottleneck(3, 2, WIDTH, conv=point, **identity)),
        "stem.adapter": Bypass(
            stem[1],
            stem[1:],
            ConvBottleneck(WIDTH, 2, WIDTH, groups=4, activation="silu"),
        ),
        "blocks.0.adapter": Bypass(
            first, (second,), Bottleneck(WIDTH, 3, WIDTH, activation="gelu", bias=True), scale=0.5
        ),
        "head.lora_k": Bypass(
            Site("head", "in"), (Site("head"),), Bottleneck(WIDTH, 2, 2, **identity), rows=(1, 3)
        ),
        "prompt": Tokens(first, second, 2, WIDTH),
    }
    training = {"prompts": {"template": "a {class}", "classes": ["cat"]}, "data": {"images": 3}}
    delta = Delta(edits(network) | more, provenance(training=training))
    return lively(delta, 1)


def use(path):
    """All that is done with a delta: it is looked at, attached, saved and found equal."""
    read_header(path)
    delta = Delta.load(path)
    network = Network()
    with delta.attach(network):
        network(X, Y)
    delta.save(path)
    assert Delta.load(path).specs() == delta.specs()


@pytest.fixture
def path(tmp_path):
    all_kinds(Network()).save(tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def test_the_whole_delta_is_taken(path):
    assert refused(lambda: use(path)) is None


def test_a_changed_header_is_refused_in_one_line_or_harmless(path):
    header, tensors = read_header(path), load(path.read_bytes())

    def check(rng):
        text = json.dumps(changed_json(header, rng))
        save_file(tensors, path, metadata={"smidgen": text})
        return refused(lambda: use(path))

    lines = each(200, check)
    assert {line is None for line in lines} == {True, False}, "some of both"


def test_changed_tensors_are_refused_in_one_line_or_harmless(path):
    text, tensors = json.dumps(read_header(path)), load(path.read_bytes())

    def check(rng):
        save_file(changed_tensors(tensors, rng), path, metadata={"smidgen": text})
        return refused(lambda: use(path))

    lines = each(100, check)
    assert {line is None for line in lines} == {True, False}, "some of both"


@pytest.mark.parametrize("change", [changed_bytes, changed_header])
def test_a_changed_file_is_refused_in_one_line_or_harmless(path, change):
    content = path.read_bytes()

    def check(rng):
        path.write_bytes(change(content, rng))
        return refused(lambda: use(path))

    assert any(each(50, check))


def test_text_that_is_no_header_is_refused_in_one_line(path):
    tensors = load(path.read_bytes())
    for text in ("", "null", "[]", "{}", "5", '"x"', "{" * 10_000, "\x00", '{"a":1e999}', "NaN"):
        save_file(tensors, path, metadata={"smidgen": text})
        assert refused(lambda: use(path)), text
