"""What a delta weighs, before there is one, and how it becomes part of a base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from smidgen.api.training import method_and_config, training_config
from smidgen.core.delta import Delta
from smidgen.core.fold import fold as fold_into_state
from smidgen.errors import UsageError
from smidgen.hosts.host import Host, find_host
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.dit_weights import build_dit, write_diffusers, write_original_pt
from smidgen.models.pretrained import meta_denoiser
from smidgen.training.memory import estimate_memory, resident_bytes

Format = Literal["dit", "diffusers"]

LATER_BYTES = 100_000_000  # of libraries that only a training imports, such as accelerate


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A base without weights: all that methods read of one."""

    denoiser: DiT
    host: Host
    name: str
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""


def inspect(
    base: Base | str | Path,
    *,
    num_classes: int | None = None,
    method: str = "difffit",
    method_config: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Count what `method` would train for `num_classes` classes (None: the base's own), without any
    weights: `base` may be the name of an architecture.

    `trainable` numbers of `total` (the network with a table of these classes, positions included),
    their `share`, and the `delta_bytes` of its tensors in a file. Any `settings`, those of
    TrainingConfig, add `memory`: the bytes of such a training at its peak (`total`) and what for,
    and on Linux those of the whole process then (`process`), if the images are encoded already.

    Raises: UsageError for an unknown name or value.
    """
    config = training_config(settings)
    shape = _shape_of(base, num_classes)
    count = shape.denoiser.config.num_classes
    delta = _meta_delta(shape, count, method, method_config)
    found = {"base": shape.name, "method": method, "num_classes": count}
    found |= _counts(shape.denoiser, delta)
    if settings:
        resident = resident_bytes()
        memory = estimate_memory(shape.denoiser, delta, config)
        found["memory"] = memory.as_dict()
        if resident is not None:
            loaded = memory.weights if isinstance(base, Base) else 0
            found["memory"]["process"] = resident - loaded + LATER_BYTES + memory.total
    return found


def fold(base: Base, delta: Delta | str | Path, *, format: Format, output: str | Path) -> Path:
    """Write a copy of the base's weights with `delta` folded in: "dit", an original `.pt` file, or
    "diffusers", a folder with the codec. The base stays as it is.

    Raises: UsageError for another format, SmidgenError if the delta does not fold or is another
        base's, or the disk refuses.
    """
    if format not in ("dit", "diffusers"):
        raise UsageError(f'unknown format "{format}"; choose from: dit, diffusers')
    delta = delta if isinstance(delta, Delta) else Delta.load(delta)
    delta.check_base(base.fingerprint, base.name)
    state = fold_into_state(delta, base.denoiser.state_dict(), base.host.folds)
    table = base.host.folds[base.host.tap("label.out")]
    num_classes = len(state[table.weight]) - 1
    config = replace(base.denoiser.config, num_classes=num_classes)
    folded = build_dit(config, state, device=base.device, dtype=base.denoiser.pos_embed.dtype)
    if format == "dit":
        write_original_pt(folded, output)
        return Path(output)
    classes = delta.provenance.classes if len(delta.provenance.classes) == num_classes else ()
    write_diffusers(folded, output, codec=base.codec, class_names=classes, schedule=base.schedule)
    return Path(output)


def _shape_of(base: Base | str | Path, num_classes: int | None) -> _Shape:
    """The network on the meta device with a table of `num_classes`, None: of as many as it has."""
    if not isinstance(base, Base):
        denoiser, name = meta_denoiser(base, num_classes), str(base)
    else:
        name, config = base.name, base.denoiser.config
        with torch.device("meta"):
            denoiser = DiT(replace(config, num_classes=num_classes or config.num_classes))
    return _Shape(denoiser=denoiser, host=find_host(denoiser), name=name)


def _meta_delta(
    shape: _Shape, num_classes: int, method: str, method_config: Mapping[str, Any] | None
) -> Delta:
    chosen, config = method_and_config(method, method_config)
    classes = [f"class {number}" for number in range(num_classes)]
    return chosen.build(shape, config, classes, torch.Generator())


def _counts(denoiser: DiT, delta: Delta) -> dict[str, Any]:
    trainable = delta.num_parameters()
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    return {
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
        "delta_bytes": sum(p.numel() * p.element_size() for p in delta.parameters()),
    }
