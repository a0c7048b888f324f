"""A base from the folder of a diffusers pipeline that reads prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from smidgen.diffusion.process import Flow, Process
from smidgen.errors import SmidgenError
from smidgen.hosts.family import Family, Pipeline
from smidgen.hosts.host import find_family, find_host
from smidgen.models.base import Base, base_fingerprint
from smidgen.models.calling import dtype_of
from smidgen.models.codec import AutoencoderCodec
from smidgen.models.components import load_encoders, load_network
from smidgen.models.conditioner import Conditioner
from smidgen.models.files import read_json, weight_files
from smidgen.models.pipelines import (
    beside_prompts,
    check_files,
    pipeline_of,
    sides_of,
    trained_size_of,
)
from smidgen.models.placing import place
from smidgen.models.precision import kept_in, quantise_as
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.schedulers import diffusion_of, flow_of, is_of_flow
from smidgen.models.schemas import Scheduler
from smidgen.sizes import ImageSize


def load_pipeline(
    name: str,
    source: Path,
    index: Mapping[str, Any],
    codec: Callable[[], AutoencoderCodec],
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    base_precision: str | None,
    image_size: ImageSize | None,
    offload: bool = False,
    shard: bool = False,
) -> Base:
    """The base in a folder of diffusers' `save_pretrained`; its text encoders wait for a prompt.

    Everything is checked before the network is loaded. A base of a class that no host calls has no
    conditioner, and asking for its family is an error.

    Raises: UsageError for an image size that does not fit; SmidgenError for a pipeline that is not
        known, or files that are missing, damaged or pickles.
    """
    network, pipeline = pipeline_of(index, source)
    check_files(source, index, pipeline)
    autoencoder = codec()
    config = read_json(source / pipeline.denoiser / "config.json")
    size = image_size or trained_size_of(config, autoencoder.factor)
    sides = sides_of(config, autoencoder.factor, pipeline)
    sides.check(size, name)
    _check_channels(config, autoencoder, name)
    stored = kept_in(base_precision, dtype, weight_files(source / pipeline.denoiser))
    denoiser = load_network(source / pipeline.denoiser, network, dtype, stored)
    of_files = base_fingerprint(denoiser)
    quantise_as(denoiser, base_precision)
    denoiser.requires_grad_(False).eval()
    place(denoiser, device, offload=offload, shard=shard)
    family = _family(denoiser, index, pipeline) if pipeline.prompts else None
    num_tokens = size.area // sides.multiple**2
    base = Base(
        name=name,
        denoiser=denoiser,
        codec=autoencoder,
        class_names=(),
        process=_process(source, pipeline, family, num_tokens),
        host=find_host(denoiser),
        fingerprint=of_files,
        image_size=size,
        sides=sides,
        source=source.absolute(),
    )
    if family is None:
        return base
    base.family = family
    assert family.encode is not None, "the family of such a pipeline reads prompts"
    load = partial(_encoders, source, index, pipeline, base)
    files = PromptFiles(source=source, index=index, pipeline=pipeline, network=network)
    base.conditioner = Conditioner(load, family.encode, size, files)
    return base


def _family(denoiser: nn.Module, index: Mapping[str, Any], pipeline: Pipeline) -> Family:
    """As its class says; but this one may be guided by the empty prompt."""
    family = find_family(denoiser)
    if pipeline.undistilled(index, cast(Any, denoiser.config)):
        return replace(family, guidance="classifier-free")
    return family


def _process(source: Path, pipeline: Pipeline, family: Family | None, num_tokens: int) -> Process:
    path = source / "scheduler" / "scheduler_config.json"
    config = read_json(path, Scheduler)
    is_flow = is_of_flow(config) if family is None else family.parameterisation == "flow"
    try:
        if not is_flow:
            return diffusion_of(config, path)
        schedule = flow_of(
            config,
            path,
            even_to_fraction=pipeline.even_to_fraction,
            fitted_shift=pipeline.fitted_shift,
        )
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SmidgenError(f"{path}: {error}; get the folder again") from error
    return Flow(schedule=schedule, num_tokens=num_tokens)


def _encoders(source: Path, index: Mapping[str, Any], pipeline: Pipeline, base: Base) -> Any:
    """The pipeline with what reads prompts and the transformer, of which some ask for sizes."""
    parts: dict[str, Any] = dict.fromkeys(beside_prompts(index, pipeline))
    if pipeline.denoiser == "transformer":
        parts["transformer"] = base.denoiser
    dtype = dtype_of(base.denoiser)
    kind, network = str(index["_class_name"]), type(base.denoiser).__name__
    found: Any = load_encoders(source, kind, network, dtype, parts)
    for name, part in found.components.items():
        if isinstance(part, nn.Module) and name not in parts:  # the denoiser is where it should be
            part.to(base.device)
    return found


def _check_channels(config: Mapping[str, Any], codec: AutoencoderCodec, name: str) -> None:
    """Latent channels, or those of packed squares of latents."""
    channels = config.get("in_channels")
    if isinstance(channels, int) and channels % codec.latent_channels:
        raise SmidgenError(
            f'base "{name}" works on {channels} latent channels, the codec gives '
            f"{codec.latent_channels}; give the codec that the base was trained with"
        )
