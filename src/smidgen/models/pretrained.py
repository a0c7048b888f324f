"""Bases by name: shipped ones, folders, files, the hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from smidgen.allocator import keep_freed_memory
from smidgen.core.storage import narrow
from smidgen.diffusion.process import Diffusion
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.checks import check_choice
from smidgen.hosts.host import find_host
from smidgen.models.base import Base, base_fingerprint
from smidgen.models.codec import AutoencoderCodec
from smidgen.models.dit import DiTConfig
from smidgen.models.dit_shapes import fit_positions
from smidgen.models.dit_weights import (
    DIFFUSERS_CLASSES,
    build_dit,
    class_names_of,
    read_config,
    read_dit,
    schedule_of,
)
from smidgen.models.known import refuse_dit_settings, size_of_dit
from smidgen.models.names import BasePrecision
from smidgen.models.pipeline_base import load_pipeline
from smidgen.models.pipelines import INDEX, is_pipeline
from smidgen.models.placing import check_placing, check_processes, check_same, place
from smidgen.models.positions import Positions, given_positions, note_on_size, positions_at
from smidgen.models.precision import check_base_precision, kept_in, quantise_as
from smidgen.models.sources import codec_source, describe, load_codec, locate
from smidgen.processes import is_main
from smidgen.sizes import ImageSize

logger = logging.getLogger(__name__)


def load_base(
    name: str | Path,
    *,
    codec: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    base_precision: BasePrecision | None = None,
    num_classes: int | None = None,
    image_size: ImageSize | int | str | None = None,
    positions: Positions | None = None,
    frequency_shift: float | None = None,
    num_heads: int | None = None,
    offload: bool = False,
    shard: bool = False,
) -> Base:
    """A frozen base from a shipped name, a folder (ours or a pipeline of diffusers), a file or a
    hub id.

    `codec` is the folder, pipeline or hub id of an autoencoder: needed with a file, and used
    instead of a folder's own. `image_size` in pixels, one number or "768x512" (wide, high),
    None: what the base was trained at.

    The network computes in `dtype` with frozen weights kept in `base_precision`, None: in half
    precision if all in a pipeline's files are, else in `dtype`; of the same weights that gives the
    same numbers. In int8 are the weights of linears and convolutions, in nf4 (4 bit) those in its
    repeated blocks; all else is as with None. With `offload` the weights of its blocks stay in the
    memory of the machine and come to the device one by one; with `shard` each of the processes that
    torchrun started keeps a part of them, and all must do with the base the same, call by call.

    On a CPU this process keeps the memory that it frees from now on (`smidgen.allocator`).

    The rest is for a DiT: at another `image_size` than its own, `positions` "stretch" cover the
    range of its own, None: they are extended. `frequency_shift` None: what the folder records, else
    0, that of the released weights. `num_classes` is checked against the file. `num_heads` is for a
    file of a width outside the DiT family.

    Raises: UsageError for an architecture's name instead of weights, a file without codec, a size
        or a number of classes that does not fit, `offload` on a CPU, `shard` in one process or
        with other weights in each; SmidgenError if nothing there can be read, or the hub does not
        answer (within ten seconds).
    """
    size = None if image_size is None else ImageSize.of(image_size)
    check_choice("positions", positions, get_args(Positions))
    _check_device(device)
    check_base_precision(base_precision)
    check_placing(device, offload=offload, shard=shard)
    check_processes(shard=shard)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    source = locate(name)
    described = describe(source)
    if is_pipeline(described):
        refuse_dit_settings(
            num_classes=num_classes,
            positions=positions,
            frequency_shift=frequency_shift,
            num_heads=num_heads,
        )
        base = load_pipeline(
            str(name),
            source,
            described,
            lambda: load_codec(codec_source(name, source, codec), device=device),
            device=device,
            dtype=dtype,
            base_precision=base_precision,
            image_size=size,
            offload=offload,
            shard=shard,
        )
        base.given = _given(codec=codec, base_precision=base_precision)
    else:
        base = _load_dit(
            name,
            source,
            described,
            codec=codec,
            device=device,
            dtype=dtype,
            base_precision=base_precision,
            num_classes=num_classes,
            size=size,
            positions=positions,
            frequency_shift=frequency_shift,
            num_heads=num_heads,
            offload=offload,
            shard=shard,
        )
    if shard:
        check_same(base.name, base.fingerprint)
    return base


def _load_dit(
    name: str | Path,
    source: Path,
    described: Mapping[str, Any],
    *,
    codec: str | Path | None,
    device: str | torch.device,
    dtype: torch.dtype,
    base_precision: BasePrecision | None,
    num_classes: int | None,
    size: ImageSize | None,
    positions: Positions | None,
    frequency_shift: float | None,
    num_heads: int | None,
    offload: bool,
    shard: bool,
) -> Base:
    """What `load_base` says of a DiT."""
    _refuse_component(source, described)
    if codec is None and not (source / "vae" / "config.json").is_file():
        read_config(source, num_heads=num_heads)  # which says so if this is no base at all
    autoencoder = load_codec(codec_source(name, source, codec), device=device)
    config, state = read_dit(source, frequency_shift=frequency_shift, num_heads=num_heads)
    _check_fits(config, autoencoder, num_classes, str(name))
    known = size_of_dit(config, autoencoder.factor)
    if size is not None:
        known.sides.check(size, str(name))
        latent_size = (size.height // autoencoder.factor, size.width // autoencoder.factor)
        config, state = fit_positions(config, state, latent_size, source, positions or "extend")
    if (note := note_on_size(name, known.trained, size, positions)) and is_main():
        logger.warning("%s", note)
    positions = positions_at(known.trained, size, positions)
    stored = kept_in(base_precision, dtype)
    denoiser = build_dit(config, state, device="cpu" if offload or shard else device, dtype=dtype)
    if stored != dtype:
        narrow(denoiser, stored)
    base = Base(
        name=str(name),
        denoiser=denoiser,
        codec=autoencoder,
        class_names=class_names_of(described, config, source),
        process=Diffusion(schedule=schedule_of(described, source)),
        host=find_host(denoiser),
        fingerprint=base_fingerprint(denoiser),
        image_size=size or known.trained,
        sides=known.sides,
        positions=positions,
        source=source.absolute(),
        given=_given(codec=codec, base_precision=base_precision, frequency_shift=frequency_shift)
        | given_positions(positions),
    )
    quantise_as(denoiser, base_precision)
    place(denoiser, device, offload=offload, shard=shard)
    return base


def _given(**settings: Any) -> dict[str, Any]:
    """What a recipe says besides the name: settings that are there, in the types of TOML."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
        if value is not None
    }


def _refuse_component(source: Path, described: Mapping[str, Any]) -> None:
    kind = described.get("_class_name", "DiTPipeline")
    if isinstance(kind, str) and kind not in ("DiTPipeline", *DIFFUSERS_CLASSES):
        raise SmidgenError(
            f"{source} is a {kind} alone; give the folder of its whole pipeline, the one with "
            f"{INDEX}"
        )


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        raise UsageError(f'device "{device}" cannot be used here; try cpu') from error


def _check_fits(
    config: DiTConfig, codec: AutoencoderCodec, num_classes: int | None, name: str
) -> None:
    if config.in_channels != codec.latent_channels:
        raise SmidgenError(
            f'base "{name}" works on {config.in_channels} latent channels, the codec gives '
            f"{codec.latent_channels}; give the codec that the base was trained with"
        )
    if num_classes is not None and num_classes != config.num_classes:
        raise UsageError(
            f'base "{name}" has {config.num_classes} classes (and the null row), not {num_classes}'
        )
