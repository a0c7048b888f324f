"""Prompts as conditions: what a base's text encoders make of them, kept so that each is read once.

B images, K prompts, L tokens. The encoders are handed in as a loader, used and let go: they are
often larger than the base itself. A condition is a mapping of tensors, images (or prompts) first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.hosts.family import Condition

# (labels (B,)) -> the condition of so many images
Conditions = Callable[[Tensor], Condition]
# (pipeline, prompts, image size in pixels) -> the condition of these prompts
Encode = Callable[[Any, Sequence[str], int], Condition]

LENGTHS = ("text", "mask")  # their second axis counts tokens, and may differ between prompts


def labels_alone(labels: Tensor) -> Condition:
    """The condition of a base that knows classes by their numbers."""
    return {"labels": labels}


class Conditioner:
    """Encodes prompts; each distinct one once."""

    def __init__(self, load: Callable[[], Any], encode: Encode, image_size: int) -> None:
        """`load` gives the pipeline whose encoders `encode` calls, for images of so many pixels."""
        self._load = load
        self._encode = encode
        self._image_size = image_size
        self._known: dict[str, Condition] = {}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The conditions of K prompts, a row each, on the CPU; "" is the prompt of no class.

        Every prompt is encoded by itself, so that what it becomes does not depend on the others;
        texts of fewer tokens are filled up with zeros that their mask leaves out.

        Raises: SmidgenError for no prompts, encoders that cannot be loaded, that fail or give
            numbers that are not finite, or texts of different lengths that have no mask.
        """
        if not prompts:
            raise SmidgenError("no prompts to encode; give at least one")
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if missing:
            pipeline = self._load()
            for prompt in missing:
                try:
                    found = self._encode(pipeline, [prompt], self._image_size)
                except (
                    TypeError,
                    ValueError,
                    ArithmeticError,
                    LookupError,
                    AttributeError,
                ) as error:
                    reason = in_one_line(error)
                    raise SmidgenError(
                        f'the tokenizers and text encoders fail on "{prompt}" ({reason}); '
                        "get their folders again"
                    ) from error
                condition = {name: value.cpu() for name, value in found.items()}
                remedy = "load the base in a precision of wider range, bf16 or fp32"
                check_finite(condition, f'what the encoders make of "{prompt}"', remedy)
                self._known[prompt] = condition
            del pipeline
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return _rows([self._known[prompt] for prompt in prompts])

    def conditions(
        self, prompts: Sequence[str], device: torch.device, dtype: torch.dtype
    ) -> Conditions:
        """Label i as the condition of prompt i. Raises: SmidgenError as `encode`."""
        rows = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.encode(prompts).items()
        }
        return lambda labels: {name: value[labels] for name, value in rows.items()}


def _rows(conditions: Sequence[Condition]) -> Condition:
    """Conditions of single prompts as one of all of them."""
    longest = {
        name: max(condition[name].shape[1] for condition in conditions)
        for name in LENGTHS
        if name in conditions[0]
    }
    if "mask" not in longest:
        lengths = sorted({condition["text"].shape[1] for condition in conditions if longest})
        if len(lengths) > 1:
            raise SmidgenError(
                f"the text encoder gives texts of {lengths[0]} to {lengths[-1]} tokens without a "
                "mask; expected one length for all prompts"
            )
    filled = [
        {name: _fill(value, longest.get(name)) for name, value in condition.items()}
        for condition in conditions
    ]
    return {name: torch.cat([condition[name] for condition in filled]) for name in filled[0]}


def _fill(value: Tensor, length: int | None) -> Tensor:
    """(1, L, ...) -> (1, length, ...) with zeros."""
    if length is None or value.shape[1] == length:
        return value
    behind = (0, 0) * (value.ndim - 2) + (0, length - value.shape[1])
    return functional.pad(value, behind)
