"""Fingerprints: equal in every precision, others for other weights, as sensitive as said."""

import hashlib
import math
import struct
from base64 import b64encode

import pytest
import torch

from smidgen.core.fingerprint import _sketch, fingerprint, fingerprints_match
from smidgen.errors import SmidgenError

NUM_TENSORS = 300


def weights(seed=0, scale=0.02):
    """300 tensors as a transformer has them: matrices, vectors, some zero, some all one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for i in range(NUM_TENSORS):
        shape = [(48, 32), (64,), (3, 5, 2, 2)][i % 3]
        state[f"blocks.{i}.weight"] = scale * torch.randn(shape, generator=generator)
    state["blocks.7.weight"].zero_()
    state["blocks.8.weight"].fill_(1.0)
    state["blocks.9.weight"] *= 1e-4  # RMS 2e-6, where float16 has 5 bits left
    return state


def changed(state, share, by, seed=1):
    """`share` of the tensors changed by noise of `by` times their norm."""
    generator = torch.Generator().manual_seed(seed)
    names = list(state)
    chosen = torch.randperm(len(names), generator=generator)[: round(share * len(names))]
    result = dict(state)
    for index in chosen.tolist():
        tensor = state[names[index]]
        noise = torch.randn(tensor.shape, generator=generator)
        result[names[index]] = tensor + by * tensor.norm() * noise / noise.norm()
    return result


def match(one, two):
    return fingerprints_match(fingerprint(one), fingerprint(two))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_the_same_weights_match_in_any_precision_and_order(dtype, scale):
    state = weights(scale=scale)
    other = {name: state[name].to(dtype) for name in reversed(state)}
    assert match(state, other)
    assert match(other, state)


def test_precision_is_far_from_the_tolerance_and_other_weights_too():
    def distance(one, two):
        total = sum(_sketch(name, one[name]) - _sketch(name, two[name]) for name in one)
        return float(total.norm()) / NUM_TENSORS**0.5

    state = weights()
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert 1e-3 < distance(state, half) < 2e-3
    assert distance(state, weights(seed=1)) > 1


@pytest.mark.parametrize(
    ("share", "by", "noticed"),
    [
        (1.0, 0.004, True),
        (0.1, 0.013, True),
        (0.1, 0.05, True),
        (1 / NUM_TENSORS, 0.07, True),
        (1.0, 0.002, False),
        (0.1, 0.006, False),
        (1 / NUM_TENSORS, 0.03, False),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_sensitivity_is_as_documented(share, by, noticed, seed):
    state = weights()
    for name in ("blocks.7.weight", "blocks.9.weight"):  # without scale, a relative change is none
        del state[name]
    assert match(state, changed(state, share, by, seed)) is not noticed


def test_a_tenth_of_the_tensors_scaled_by_five_per_cent_is_noticed():
    state = weights()
    other = {n: t * 1.05 if i % 10 == 0 else t for i, (n, t) in enumerate(state.items())}
    assert not match(state, other)


@pytest.mark.parametrize("index", [0, 1, 299])
def test_one_tensor_replaced_is_noticed(index):
    name = f"blocks.{index}.weight"
    assert not match(weights(), weights() | {name: weights(seed=1)[name]})


def test_exchanged_tensors_are_noticed():
    state = weights()
    a, b = "blocks.0.weight", "blocks.3.weight"
    assert not match(state, state | {a: state[b], b: state[a]})


def test_other_names_and_shapes_never_match():
    state = weights()
    name = "blocks.10.weight"
    renamed = {f"x.{n}" if n == name else n: t for n, t in state.items()}
    reshaped = state | {name: state[name].reshape(-1)[:, None]}
    fewer = {n: t for n, t in state.items() if n != name}
    for other in (renamed, reshaped, fewer):
        assert not match(state, other)


def test_all_columns_of_large_matrices_are_read():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1024, 1024, generator=generator)
    for column in (0, 5, 518, 1023):
        other = matrix.clone()
        other[:, column] = -other[:, column] * 4
        assert not match({"w": matrix}, {"w": other})


def test_excluded_tensors_do_not_count():
    state = weights()
    computed = state | {"pos_embed": torch.ones(3)}
    assert fingerprint(computed, exclude={"pos_embed"}) == fingerprint(state)
    assert not match(computed, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_refused_by_name(value):
    with pytest.raises(SmidgenError, match=r"blocks\.2\.weight has numbers that are not finite"):
        fingerprint(weights() | {"blocks.2.weight": torch.tensor([1.0, value])})


def test_an_empty_tensor_counts_by_its_name():
    state = weights() | {"nothing": torch.empty(0, 3)}
    assert match(state, state)
    assert not match(state, weights())


def test_a_fingerprint_is_a_short_text_that_never_changes():
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -0.5])}
    text = fingerprint(state)
    assert text == fingerprint(state)
    assert len(text) < 200
    kind, shapes, _ = text.split(":")
    assert kind == "sketch1"
    assert len(shapes) == 16


def test_the_sketch_is_the_documented_sum():
    """A reference with Python's integers: files hold fingerprints, so they may never drift."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([0.5, -0.5])}
    buckets = [0.0] * 64
    for name, tensor in state.items():
        values = tensor.double().flatten().tolist()
        rms = math.sqrt(sum(x * x for x in values) / len(values)) + 1e-4
        unit = [x / (rms * math.sqrt(len(values))) for x in values] + [math.log(rms / 0.01)]
        start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        for i, x in enumerate(unit):
            bits = (i * 0x9E3779B97F4A7C15 + start) % 2**64
            bits = (bits ^ _signed(bits) >> 33) % 2**64 * 0xFF51AFD7ED558CCD % 2**64
            bits >>= 40
            buckets[bits % 64] += -x if bits & 64 else x
    scale = math.sqrt(64 / len(state)) * 1000
    expected = struct.pack("<64h", *(round(scale * x) for x in buckets))
    assert fingerprint(state).split(":")[2] == b64encode(expected).decode()


def _signed(bits):
    return bits - 2**64 if bits >= 2**63 else bits


@pytest.mark.parametrize("text", ["", "sketch1:a", "sketch2:00:AAAA", "sketch1:00:****", "x"])
def test_what_is_no_fingerprint_is_refused(text):
    good = fingerprint({"a": torch.ones(1)})
    for pair in ((text, good), (good, text)):
        with pytest.raises(SmidgenError, match="not one that this smidgen reads"):
            fingerprints_match(*pair)
