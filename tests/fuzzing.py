"""Changed files, each by a seed: values of JSON, bytes, and the types, shapes and names of tensors;
and what must hold of reading any of them.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smidgen.errors import SmidgenError

LONGEST = 1000  # characters of a message
DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, -(2**63), 2**64, 10**40, 0.5, -1.5, 1e308, 5e-324),
    *("", "x", "a\nb", "\x1b[2J", "\u2028", "../x", "NaN", "x" * 5000),
    *([], {}, [[]], [None], [0] * 5000, ["a", "b"], {"a": 1}, {"": []}, DEEP),
)
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
    *(torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64),
)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 1e38, 0.0)


def changed_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one place replaced, removed, doubled, wrapped or added to."""
    holder = [copy.deepcopy(value)]
    container, key = rng.choice(list(_places(holder)))
    action = rng.choice(("replace", "replace", "replace", "remove", "double", "wrap", "add"))
    if container is holder and action in ("remove", "double"):
        action = "replace"
    inner = container[key]
    if action == "replace":
        container[key] = rng.choice(ODD)
    elif action == "remove":
        del container[key]
    elif action == "wrap":
        container[key] = rng.choice(([inner], {"a": inner}, str(inner), [inner] * 3))
    elif action == "add" and isinstance(inner, dict):
        inner[rng.choice(("unknown", "", "kind", "a\nb"))] = rng.choice(ODD)
    elif isinstance(container, list):
        container.insert(key, copy.deepcopy(inner))
    else:
        container[f"{key}_"] = copy.deepcopy(inner)
    return holder[0]


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes cut, flipped, blanked, doubled or filled, at one place."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 8, 100)))
    before, part, after = content[:start], content[start:stop], content[stop:]
    action = rng.choice(("cut", "flip", "blank", "double", "random", "remove"))
    match action:
        case "cut":
            return before
        case "flip":
            return before + bytes([part[0] ^ 1 << rng.randrange(8)]) + content[start + 1 :]
        case "blank":
            return before + bytes(len(part)) + after
        case "double":
            return before + part + part + after
        case "random":
            return before + rng.randbytes(len(part)) + after
        case _:
            return before + after


def changed_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file with one place of its header changed, and the rest as it was."""
    length = 8 + int.from_bytes(content[:8], "little")
    text = json.dumps(changed_json(json.loads(content[8:length]), rng)).encode()
    return len(text).to_bytes(8, "little") + text + content[length:]


def changed_tensors(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """The tensors with one of another type, shape, value or name, gone, or there twice."""
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    name = rng.choice(sorted(changed))
    tensor = changed[name]
    match rng.choice(("type", "shape", "value", "name", "gone", "twice")):
        case "type":
            changed[name] = tensor.to(rng.choice(DTYPES))
        case "shape":
            changed[name] = _reshaped(tensor, rng)
        case "value" if tensor.is_floating_point() and tensor.numel():
            tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(NUMBERS)
        case "name":
            changed[_renamed(name, rng)] = changed.pop(name)
        case "gone":
            del changed[name]
        case _:
            changed[_renamed(name, rng)] = tensor.clone()
    return changed or {"nothing": torch.zeros(1)}


def refused(read: Callable[[], object]) -> str | None:
    """The line in which `read` refuses, None if it takes what it reads; nothing else may happen."""
    try:
        read()
    except SmidgenError as error:
        line = str(error)
        assert line.isprintable(), f"not one line: {line!r}"
        assert 0 < len(line) <= LONGEST, line
        return line
    return None


def each(count: int, check: Callable[[random.Random], object]) -> list[Any]:
    """What `check` returns for `count` seeds, the seed in the error where one fails."""
    found = []
    for seed in range(count):
        try:
            found.append(check(random.Random(seed)))
        except BaseException as error:
            error.add_note(f"at seed {seed}")
            raise
    return found


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _reshaped(tensor: Tensor, rng: random.Random) -> Tensor:
    shapes = (
        tensor.reshape(-1),
        tensor[None],
        tensor[..., None],
        tensor.reshape(-1)[:1].reshape(()),
        tensor.reshape(-1)[:0],
        tensor[: len(tensor) // 2] if tensor.ndim else tensor[None],
        torch.cat([tensor.reshape(-1)] * 2),
        tensor.transpose(0, -1) if tensor.ndim else tensor[None],
        tensor.new_zeros(0, 2**40),
    )
    return rng.choice(shapes).contiguous().clone()


def _renamed(name: str, rng: random.Random) -> str:
    head, _, tail = name.rpartition(".")
    names = (f"_orig_mod.{name}", f"module.{name}", f"{name}.x", tail, f"{head}.bias", "")
    return rng.choice((*names, f"base_model.model.{name}", f"text_encoder.{name}", f"a\n{name}"))
