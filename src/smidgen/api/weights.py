"""What a delta would weigh, before there is one: counted on the meta device, without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Weight
from smidgen.core.sharding import alone, shard
from smidgen.core.storage import narrow
from smidgen.errors import UsageError
from smidgen.files.checks import check_integer
from smidgen.files.settings import make
from smidgen.hosts.host import Host, find_family, find_host
from smidgen.methods import acts_in_encoders, configure, parts_of
from smidgen.methods.build import build_delta
from smidgen.models.architectures import meta_network
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.dit_shapes import at_size
from smidgen.models.known import known_size, prompt_files, stored_precision
from smidgen.models.pipelines import DEFAULT_PIXELS
from smidgen.models.placing import check_placing, place
from smidgen.models.precision import quantise_as
from smidgen.models.reader import Reader
from smidgen.sizes import ImageSize
from smidgen.training.config import TrainingConfig
from smidgen.training.example import example_of
from smidgen.training.memory import estimate_memory, resident_bytes
from smidgen.training.subject import NEW_WORD

MOST_CLASSES = 1_000_000
SOME_WORD = "<word>"  # is counted, whatever it will be
LATER_BYTES = 100_000_000  # of libraries that only a training imports, such as accelerate
# What glibc's heap holds beyond the bytes of a step, as a share of them: tensors that come and go
# leave holes, more where blocks are recomputed. They differ from run to run by a third and more,
# and so are in none of the parts (bench/memory_estimate.py).
HOLES, HOLES_CHECKPOINTED = 0.5, 1.0


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
    image_size: ImageSize | int | str | None = None,
    base_precision: str | None = None,
    offload: bool = False,
    num_shards: int = 1,
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
    process then (`process`), if the images are encoded already; `image_size`, `base_precision` and
    `offload` are as in `load_base`, `num_shards` the processes that would share its weights with
    `shard`, and `device` what kind of device that would be on, here or not.

    Raises: UsageError for an unknown name or value, SmidgenError if the method cannot work there.
    """
    training = make(TrainingConfig, settings) if settings else None
    asked = training is not None and training.train_text_encoder
    reads = acts_in_encoders(method, asked=asked)
    size = None if image_size is None else ImageSize.of(image_size)
    return count_weights(
        base,
        num_classes=num_classes,
        method=method,
        method_config=configure(method, method_config),
        latent_size=_latent_size(base, size),
        base_precision=base_precision,
        offload=offload,
        num_shards=num_shards,
        device=device,
        training=training,
        reader=reader_without_weights(base, size) if reads else None,
        trains_encoders=reads,
        token=SOME_WORD if NEW_WORD in parts_of(method) else None,
    )


def _latent_size(base: Base | str | Path, size: ImageSize | None) -> tuple[int, int] | None:
    """(h, w) of images of this size; None: of the base's own.

    Raises: UsageError for a size that the base does not take, or cannot be known to take.
    """
    if size is None:
        return None
    known = None if isinstance(base, Base) else known_size(base)
    if known is None:
        raise UsageError(
            f"image_size {size} is for a base by its name whose files are here; leave it out"
        )
    known.sides.check(size, str(base))
    return size.height // known.factor, size.width // known.factor


def reader_without_weights(base: Base | str | Path, image_size: ImageSize | None = None) -> Reader:
    """The text encoders of a base without weights, for images of this size (None: its own).

    Raises: UsageError for one that reads no prompts, or lies on the hub.
    """
    if isinstance(base, Base):
        files = None if base.conditioner is None else base.conditioner.files
        name, network, own_size = base.name, base.denoiser, base.image_size
    else:
        files, network, name = prompt_files(base), meta_network(base), str(base)
        known = known_size(base)
        own_size = None if known is None else known.trained
    encode = find_family(network).encode
    if files is None or encode is None:
        raise UsageError(
            f'base "{name}" has no text encoders here, in which something could be trained: it '
            "reads no prompts, was not fetched from the hub yet, or is an architecture alone"
        )
    size = image_size or own_size or ImageSize(DEFAULT_PIXELS, DEFAULT_PIXELS)
    return files.without_weights(encode, size, network)


def count_weights(
    base: Base | str | Path,
    *,
    num_classes: int | None,
    method: str,
    method_config: Any,
    training: TrainingConfig | None = None,
    latent_size: tuple[int, int] | None = None,
    reader: Reader | None = None,
    trains_encoders: bool = False,
    token: str | None = None,
    train_labels: bool = True,
    base_precision: str | None = None,
    offload: bool = False,
    num_shards: int = 1,
    device: str = "cpu",
) -> dict[str, Any]:
    """`inspect` with the method's own Config; `training` None: without the memory, which is that of
    latents of `latent_size` (h, w), None: of the base's own, on a device of this name. `reader`
    (`reader_without_weights`): what encodes texts in the step, None where nothing does;
    `trains_encoders`: whether something is trained there, `token`: the new word of textual
    inversion.
    """
    shape = _shape_of(base, num_classes, latent_size)
    if not isinstance(base, Base):
        stored = stored_precision(base, base_precision)
        if stored != torch.float32:
            narrow(shape.denoiser, stored)
        quantise_as(shape.denoiser, base_precision)
        check_integer("num_shards", num_shards)
        check_placing(device, offload=offload, shard=num_shards > 1)
        if num_shards > 1:
            shard(shape.denoiser, "meta", alone(num_shards))
        else:
            place(shape.denoiser, "meta", offload=offload)
    else:
        device = base.device.type
        given = {"base_precision": base_precision, "offload": offload, "num_shards": num_shards > 1}
        for name, value in given.items():
            if value:
                raise UsageError(f"{name} is for a base that is not loaded yet; leave it out")
    count = _num_labels(shape)
    train_labels = train_labels and (training is None or training.train_labels)
    classes = [f"class {number}" for number in range(count or 0)] if train_labels else []
    encoders = reader.encoders if reader is not None and trains_encoders else ()
    delta = build_delta(
        method,
        shape,
        method_config,
        classes,
        torch.Generator(),
        encoders=encoders,
        token=token,
        train_labels=train_labels,
    )
    own = shape.denoiser.get_parameter
    found: dict[str, Any] = {"base": shape.name, "host": shape.host.family, "method": method}
    networks = (shape.denoiser, *(one.network for one in encoders))
    found |= {"num_classes": count} | _counts(networks, delta)
    found["tensors"] = tensor_rows(delta)
    found["untouched"] = {name: own(name).numel() for name in shape.host.untouched}
    if training is not None:
        resident = resident_bytes()
        example = example_of(shape.denoiser, base if isinstance(base, Base) else None)
        if latent_size is not None:
            example = replace(example, latent_shape=(example.latent_shape[0], *latent_size))
        memory = estimate_memory(shape.denoiser, delta, training, example, reader, device=device)
        found["memory"] = memory.as_dict()
        if resident is not None and device == "cpu":
            loaded = memory.weights if isinstance(base, Base) else 0
            share = HOLES_CHECKPOINTED if training.gradient_checkpointing else HOLES
            holes = int(share * memory.step)
            found["memory"]["process"] = resident - loaded + LATER_BYTES + memory.total + holes
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
    within = f"{edit.component}: " if edit.component else ""
    for key, tensor in edit.tensors().items():
        place = f"{edit.target}.{key}".strip(".") if isinstance(edit, Weight) else sites
        yield key, tensor, within + place


def _shape_of(
    base: Base | str | Path,
    num_classes: int | None,
    latent_size: tuple[int, int] | None = None,
) -> _Shape:
    """The network without weights, for these classes and latents of this size (None: its own)."""
    if num_classes is not None and not 1 <= num_classes <= MOST_CLASSES:
        raise UsageError(f"num_classes is {num_classes}; expected 1 to {MOST_CLASSES:,}")
    if not isinstance(base, Base):
        denoiser, name = meta_network(base, num_classes), str(base)
        if isinstance(denoiser, DiT) and latent_size is not None:
            with torch.device("meta"):
                denoiser = DiT(at_size(denoiser.config, latent_size, name))
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


def _counts(networks: Sequence[nn.Module], delta: Delta) -> dict[str, Any]:
    trainable = delta.num_parameters()
    total = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return {
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
        "delta_bytes": sum(p.numel() * p.element_size() for p in delta.parameters()),
    }
