"""Fingerprints: a short text by which a delta knows its base again, whatever the file format or
precision (docs/decisions/0003-fingerprint-is-a-sketch.md).
"""

import hashlib
import json
import math
import struct
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from smidgen.errors import SmidgenError

KIND = "sketch1"
NUM_BUCKETS = 64
MAX_ELEMENTS = 2**16  # read of each tensor
FLOOR = 1e-4  # added to a tensor's RMS: below it, float16 has no relative precision to compare
STEPS_PER_UNIT = 1000  # of the int16 values
TOLERANCE = 3e-3  # RMS difference; rounding to bfloat16 gives 1.6e-3, other weights 1.4


def fingerprint(state: Mapping[str, Shaped[Tensor, "..."]], exclude: Collection[str] = ()) -> str:
    """A count sketch (Charikar et al. 2002) of a state dict with a hash of its names and shapes.

    Each tensor gives its direction and the logarithm of its RMS, so the squared distance of two
    sketches is about the mean over tensors of the squared relative change. Against TOLERANCE that
    notices: all tensors changed by 0.4 % or more (of their norm), a tenth of them by 1.3 %, one of
    300 by 7 %, one of 300 replaced. It does not notice rounding to bfloat16 or float16, smaller
    changes, and changes of elements that are not read, which are all but 65,536 of a larger tensor,
    evenly spaced. `exclude` names tensors that are computed and not learned.

    Raises: SmidgenError for a tensor with numbers that are not finite.
    """
    names = sorted(set(state) - set(exclude))
    total = torch.zeros(NUM_BUCKETS, dtype=torch.float64)
    for name in names:
        total += _sketch(name, state[name])
    total *= math.sqrt(NUM_BUCKETS / max(len(names), 1)) * STEPS_PER_UNIT
    shapes = json.dumps([[name, list(state[name].shape)] for name in names])
    values = struct.pack(
        f"<{NUM_BUCKETS}h", *total.round().clamp(-(2**15), 2**15 - 1).int().tolist()
    )
    return f"{KIND}:{hashlib.sha256(shapes.encode()).hexdigest()[:16]}:{b64encode(values).decode()}"


def fingerprints_match(a: str, b: str) -> bool:
    """Whether two fingerprints are of the same weights, up to rounding.

    Raises: SmidgenError if one is not a fingerprint of this version.
    """
    (shapes_a, values_a), (shapes_b, values_b) = _parse(a), _parse(b)
    squares = [(x - y) ** 2 for x, y in zip(values_a, values_b, strict=True)]
    distance = math.sqrt(sum(squares) / NUM_BUCKETS) / STEPS_PER_UNIT
    return shapes_a == shapes_b and distance <= TOLERANCE


def shapes_match(a: str, b: str) -> bool:
    """Whether two fingerprints are of weights of the same names and shapes, whatever their values.

    Raises: SmidgenError if one is not a fingerprint of this version.
    """
    return _parse(a)[0] == _parse(b)[0]


def _parse(text: str) -> tuple[str, tuple[int, ...]]:
    try:
        kind, shapes, values = text.split(":")
        if kind != KIND:
            raise ValueError(kind)
        return shapes, struct.unpack(f"<{NUM_BUCKETS}h", b64decode(values, validate=True))
    except (ValueError, struct.error) as error:
        raise SmidgenError(
            f'fingerprint "{text[:40]}" is not one that this smidgen reads ({KIND}:...); '
            "upgrade smidgen"
        ) from error


def _sketch(name: str, tensor: Shaped[Tensor, "..."]) -> Float64[Tensor, "buckets"]:
    """The tensor's direction and the logarithm of its RMS, in buckets with random signs."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return torch.zeros(NUM_BUCKETS, dtype=torch.float64)
    step = math.ceil(flat.numel() / MAX_ELEMENTS) | 1  # odd: no column of a matrix is left out
    values = flat[::step].to("cpu", torch.float64)
    rms = values.square().mean().sqrt() + FLOOR
    if not rms.isfinite():
        raise SmidgenError(
            f"{name} has numbers that are not finite: the weights are damaged; get them anew"
        )
    values = torch.cat([values / (rms * math.sqrt(values.numel())), (rms / 0.01).log()[None]])
    bits = _hash(name, values.numel())
    signs = 1 - 2 * (bits >> 6 & 1)
    return torch.bincount(bits & NUM_BUCKETS - 1, values * signs, NUM_BUCKETS)


def _hash(name: str, count: int) -> Int64[Tensor, "count"]:
    """24 random bits for each of `count` places, from integer arithmetic that is the same
    everywhere: the finaliser of MurmurHash3 on a Weyl sequence that starts at the hashed name.
    """
    (start,) = struct.unpack("<q", hashlib.sha256(name.encode()).digest()[:8])
    bits = torch.arange(count) * -7046029254386353131 + start
    bits = (bits ^ bits >> 33) * -49064778989728563
    return bits >> 40 & 0xFFFFFF
