"""Where the names in LoRA files point in a model: its own modules, and those of the original code.

A name is looked up among the model's real ones, with dots or, as kohya writes them, underscores;
it is never taken apart by guessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.hosts.host import families
from smidgen.hosts.renaming import Renaming, modules_of, swap_halves
from smidgen.interop.factors import Factors, Rows, merge, split, stack, whole
from smidgen.interop.lora_keys import bare_names

KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
KOHYA_COMPILED = "_orig_mod_"  # then, where it trained a compiled network
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Part(NamedTuple):
    """Output rows of one module of the model (None: all) and their number."""

    module: str
    rows: Rows | None
    size: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a name in a file means: parts whose rows it stacks, halves swapped or not."""

    parts: tuple[Part, ...]
    swapped: bool = False

    def split(self, factors: Factors) -> list[Factors]:
        """The LoRA of this name as those of the model's modules."""
        targets = [(part.module, part.rows) for part in self.parts]
        return split(factors, targets, [part.size for part in self.parts], swapped=self.swapped)

    def weight(self, modules: Mapping[str, nn.Module]) -> Tensor:
        """The weight of the model that this name stands for."""
        parts = [
            modules[part.module].get_parameter("weight")[slice(*(part.rows or (None,)))]
            for part in self.parts
        ]
        stacked = torch.cat(parts) if len(parts) > 1 else parts[0]
        return swap_halves(stacked) if self.swapped else stacked


class Names:
    """All names by which the linears and convolutions of `model` go.

    `prefix` is the component of a diffusers pipeline that this model is. `original` has the modules
    of the original code with their parts; `ours`, for our own DiT, our modules with theirs in
    diffusers. `kohya_is_original`: whether kohya's trainer runs this model in its original code,
    and names it so.
    """

    def __init__(self, model: nn.Module) -> None:
        self.class_name = type(model).__name__
        self.modules = dict(model.named_modules())
        self.sizes = {name: size for name, m in self.modules.items() if (size := size_out(m))}
        family, names = families().get(self.class_name), modules_of(model.state_dict())
        original = family.original if family else None
        self.prefix = family.component if family else "transformer"
        self.original = original.names(names) if original else Renaming(modules={})
        self.kohya_is_original = original is not None and original.kohya(cast(Any, model).config)
        self.ours = family.diffusers(names) if family and family.diffusers else None
        self.dotted = self._dotted()
        self.underscored = _underscored(self.dotted)

    def _dotted(self) -> dict[str, Place]:
        places = {n: Place(parts=(Part(n, None, size),)) for n, size in self.sizes.items()}
        if self.ours is not None:
            for outer, inner in self.ours.modules.items():
                size = self.sizes[outer] // len(inner)
                for index, name in enumerate(inner):
                    rows = None if len(inner) == 1 else (index * size, (index + 1) * size)
                    places[name] = Place(parts=(Part(outer, rows, size),))
        for outer, inner in self.original.modules.items():
            if all(name in self.sizes for name in inner):
                parts = tuple(Part(name, None, self.sizes[name]) for name in inner)
                place = Place(parts=parts, swapped=outer in self.original.swapped)
                places.setdefault(outer, place)
        return places

    def place(self, name: str, path: Path) -> Place:
        """What `name` in the file at `path` points to, with any prefix that programs put before it.

        Raises: SmidgenError for no linear or convolution of this model, or for two.
        """
        candidates = bare_names(name)
        for candidate in candidates:
            if candidate in self.dotted:
                return self.dotted[candidate]
        for prefix in KOHYA_PREFIXES:
            joined = name.removeprefix(prefix).removeprefix(KOHYA_COMPILED)
            if not name.startswith(prefix) or joined not in self.underscored:
                continue
            place = self.underscored[joined]
            if place is None:
                raise SmidgenError(f'{path}: "{name}" fits two modules of this {self.class_name}')
            return place
        other = [candidate for candidate in candidates if candidate in self.modules]
        if other:
            kind = type(self.modules[other[0]]).__name__
            raise SmidgenError(
                f"{path} has a LoRA of {other[0]}, a {kind}; only linears and convolutions"
            )
        raise SmidgenError(
            f'{path} has a LoRA of "{name}", which this {self.class_name} has not; '
            "give the base that it was trained on"
        )

    def merged(self, several: Sequence[Factors]) -> dict[str, Factors]:
        """One LoRA for each of the model's own modules, all rows."""
        return _one_each(several, self.sizes)

    def to_diffusers(self, several: Sequence[Factors]) -> dict[str, Factors]:
        """One LoRA for each module of diffusers' model, all rows.

        Raises: SmidgenError for a module that diffusers' model has not, or has many times.
        """
        if self.ours is None:
            return _one_each(several, self.sizes)
        parts: list[Factors] = []
        for factors in several:
            inner = self.ours.modules.get(factors.module)
            if inner is None:
                raise SmidgenError(
                    f"diffusers' DiT has no single module for {factors.module}, which it repeats "
                    "in every block; choose other targets"
                )
            size = self.sizes[factors.module] // len(inner)
            targets: list[tuple[str, Rows | None]] = [(name, None) for name in inner]
            parts += split(factors, targets, [size] * len(inner), swapped=False)
        return _one_each(parts, {})

    def to_original(self, several: Sequence[Factors]) -> dict[str, Factors]:
        """One LoRA for each module of the original code.

        Raises: SmidgenError for a module that the original code has not.
        """
        own = _one_each(several, self.sizes)
        stacked: dict[str, Factors] = {}
        for outer, inner in self.original.modules.items():
            parts = [[own.pop(name)] if name in own else [] for name in inner]
            if any(parts):
                sizes = [self.sizes[name] for name in inner]
                swapped = outer in self.original.swapped
                stacked[outer] = stack(parts, sizes, outer, swapped=swapped)
        if own:
            raise SmidgenError(f"the original code has no module for {next(iter(own))}")
        return stacked


def size_out(module: nn.Module) -> int | None:
    """Output channels of a module that LoRA may act on: a linear, quantised too, or convolution."""
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels
    size = getattr(module, "out_features", None)
    return size if isinstance(size, int) and hasattr(module, "in_features") else None


def _one_each(several: Sequence[Factors], sizes: Mapping[str, int]) -> dict[str, Factors]:
    """The LoRAs by module, those of one module merged."""
    grouped: dict[str, list[Factors]] = {}
    for factors in several:
        full = factors if factors.rows is None else whole(factors, sizes[factors.module])
        grouped.setdefault(factors.module, []).append(full)
    return {module: merge(group) for module, group in grouped.items()}


def _underscored(dotted: Mapping[str, Place]) -> dict[str, Place | None]:
    """The names with underscores for dots; None where two different modules share one."""
    found: dict[str, Place | None] = {}
    for name, place in dotted.items():
        joined = name.replace(".", "_")
        found[joined] = place if found.setdefault(joined, place) == place else None
    return found
