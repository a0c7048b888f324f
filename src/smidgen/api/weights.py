"""What a delta would weigh, before there is one: counted on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Weight
from smidgen.core.storage import narrow
from smidgen.errors import UsageError
from smidgen.files.settings import make
from smidgen.hosts.host import Host, find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.architectures import meta_network
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.dit_shapes import at_size
from smidgen.models.pretrained import stored_precision
from smidgen.training.config import TrainingConfig
from smidgen.training.example import example_of
from smidgen.training.memory import estimate_memory, resident_bytes

MOST_CLASSES = 1_000_000
LATER_BYTES = 100_000_000  # of libraries that only a training imports, such as accelerate


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A base without weights: all that methods read of one."""

    denoiser: nn.Module
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
    base_precision: str | None = None,
    device: str = "cpu",
    **settings: Any,
) -> dict[str, Any]:
    """Count what `method` would train for `num_classes` classes (None: the base's own), without any
    weights: `base` may be the name of an architecture, and of a folder of diffusers only the
    configurations are read. A base without labels has no classes: `num_classes` is None there.

    `trainable` numbers of `total` (the network with a table of these classes, positions included),
    their `share`, and the `delta_bytes` of its tensors in a file; `tensors` has the `site`, `edit`,
    `shape` and `count` of each, in the delta's order, and `untouched` the parameters of the network
    that no site reaches, with their counts. Any `settings`, those of TrainingConfig, add `memory`:
    the bytes of such a training at its peak (`total`) and what for, and on Linux those of the whole
    process then (`process`), if the images are encoded already; `base_precision` is as in
    `load_base`, and `device` what kind of device that would be on, here or not.

    Raises: UsageError for an unknown name or value, SmidgenError if the method cannot work there.
    """
    return count_weights(
        base,
        num_classes=num_classes,
        method=method,
        method_config=configure(method, method_config),
        base_precision=base_precision,
        device=device,
        training=make(TrainingConfig, settings) if settings else None,
    )


def count_weights(
    base: Base | str | Path,
    *,
    num_classes: int | None,
    method: str,
    method_config: Any,
    training: TrainingConfig | None = None,
    latent_side: int | None = None,
    base_precision: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """`inspect` with the method's own Config; `training` None: without the memory, which is that of
    latents of `latent_side`, None: of the base's own, on a device of this name.
    """
    shape = _shape_of(base, num_classes, latent_side)
    if not isinstance(base, Base):
        stored = stored_precision(base, base_precision)
        if stored != torch.float32:
            narrow(shape.denoiser, stored)
    else:
        device = base.device.type
        if base_precision is not None:
            raise UsageError("base_precision is for a base that is not loaded yet; leave it out")
    count = _num_labels(shape)
    classes = [f"class {number}" for number in range(count or 0)]
    delta = build_delta(method, shape, method_config, classes, torch.Generator())
    own = shape.denoiser.get_parameter
    found: dict[str, Any] = {"base": shape.name, "host": shape.host.family, "method": method}
    found |= {"num_classes": count} | _counts(shape.denoiser, delta)
    found["tensors"] = tensor_rows(delta)
    found["untouched"] = {name: own(name).numel() for name in shape.host.untouched}
    if training is not None:
        resident = resident_bytes()
        example = example_of(shape.denoiser, base if isinstance(base, Base) else None)
        if latent_side is not None:
            channels = example.latent_shape[0]
            example = replace(example, latent_shape=(channels, latent_side, latent_side))
        memory = estimate_memory(shape.denoiser, delta, training, example, device=device)
        found["memory"] = memory.as_dict()
        if resident is not None and device == "cpu":
            loaded = memory.weights if isinstance(base, Base) else 0
            found["memory"]["process"] = resident - loaded + LATER_BYTES + memory.total
    return found


def tensor_rows(delta: Delta) -> list[dict[str, Any]]:
    """Each trained tensor of `delta`: its name in a file, the site, the kind of edit, its shape."""
    return [
        {
            "name": f"{name}.{key}",
            "site": site,
            "edit": edit.kind,
            "shape": list(tensor.shape),
            "count": tensor.numel(),
        }
        for name, edit in delta.edits.items()
        for key, tensor, site in _placed(edit)
    ]


def _placed(edit: Edit) -> Iterator[tuple[str, torch.Tensor, str]]:
    """The tensors of an edit with where they act: a copy stands for the parameter it is of."""
    sites = " -> ".join(map(str, dict.fromkeys(edit.sites)))
    for key, tensor in edit.tensors().items():
        yield key, tensor, f"{edit.target}.{key}".strip(".") if isinstance(edit, Weight) else sites


def _shape_of(
    base: Base | str | Path, num_classes: int | None, latent_side: int | None = None
) -> _Shape:
    """The network without weights, for these classes and latents of this side (None: its own)."""
    if num_classes is not None and not 1 <= num_classes <= MOST_CLASSES:
        raise UsageError(f"num_classes is {num_classes}; expected 1 to {MOST_CLASSES:,}")
    if not isinstance(base, Base):
        denoiser, name = meta_network(base, num_classes), str(base)
        if isinstance(denoiser, DiT) and latent_side is not None:
            with torch.device("meta"):
                denoiser = DiT(at_size(denoiser.config, latent_side, name))
    elif isinstance(base.denoiser, DiT):
        name, config = base.name, base.denoiser.config
        with torch.device("meta"):
            denoiser = DiT(replace(config, num_classes=num_classes or config.num_classes))
    else:  # nothing of the base is touched: methods read its shapes
        denoiser, name = base.denoiser, base.name
    host = find_host(denoiser)
    if num_classes is not None and not host.has_labels:
        raise UsageError(
            f'base "{name}" has no label table for {num_classes} classes: its conditions are '
            "prompts; leave the number of classes out"
        )
    return _Shape(denoiser=denoiser, host=host, name=name)


def _num_labels(shape: _Shape) -> int | None:
    """The classes of the network's table, the null label not counted; None without labels."""
    if not shape.host.has_labels:
        return None
    table = shape.denoiser.get_submodule(shape.host.tap("label.out").module)
    return table.get_parameter("weight").shape[0] - 1


def _counts(denoiser: nn.Module, delta: Delta) -> dict[str, Any]:
    trainable = delta.num_parameters()
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    return {
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
        "delta_bytes": sum(p.numel() * p.element_size() for p in delta.parameters()),
    }
