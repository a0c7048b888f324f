"""What is known of a base from its configurations and the headers of its files, without weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smidgen.errors import UsageError
from smidgen.hosts.family import Pipeline
from smidgen.models.calling import DTYPES
from smidgen.models.dit import DiT, DiTConfig, preset
from smidgen.models.dit_weights import class_names_of, config_of_folder, read_config
from smidgen.models.files import read_json, weight_files
from smidgen.models.names import ARCHITECTURES, FACTOR, is_architecture, on_hub
from smidgen.models.pipelines import (
    a_pipeline_of,
    is_pipeline,
    pipeline_of,
    sides_of,
    trained_size_of,
)
from smidgen.models.precision import check_base_precision, kept_in
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.sources import codec_source, describe, load_codec, locate
from smidgen.sizes import ImageSize, Sides


def architecture(name: str | Path, num_classes: int | None = None) -> DiTConfig:
    """The configuration of `DiT-XL/2` and its like (32 latent pixels) or of what `load_base` takes.

    `num_classes` None: those of the base, 1000 for an architecture's name.

    Raises: UsageError for an unknown name, or fewer than one class; SmidgenError as `load_base`.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"{num_classes} classes; expected at least 1")
    if is_architecture(name):
        try:
            config = preset(str(name))
        except ValueError as error:
            raise UsageError(str(error)) from error
    else:
        source = locate(name)
        ours = "dit" in describe(source)
        config = config_of_folder(source) if ours else read_config(source)
    if num_classes is None:
        return config
    return dataclasses.replace(config, num_classes=num_classes)


def meta_denoiser(name: str | Path, num_classes: int | None = None) -> DiT:
    """The denoiser of `architecture(name, num_classes)` on the meta device, without weights."""
    with torch.device("meta"):
        return DiT(architecture(name, num_classes)).requires_grad_(False).eval()


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownSize:
    """What a base was trained at, which sizes it takes, and by how much its codec reduces them."""

    trained: ImageSize
    sides: Sides
    factor: int


def known_size(name: str | Path, codec: str | Path | None = None) -> KnownSize | None:
    """The sizes of a base from configurations alone; None of one that lies on the hub.

    Raises: UsageError, SmidgenError as `load_base`.
    """
    if on_hub(name):
        return None
    if is_architecture(name):
        file = ARCHITECTURES / f"{name}.json"
        if not file.is_file():
            return size_of_dit(architecture(name), FACTOR)
        config = read_json(file)
        return _size_of(config, FACTOR, a_pipeline_of(config))
    source = locate(name)
    described = describe(source)
    factor = load_codec(codec_source(name, source, codec)).factor
    if not is_pipeline(described):
        return size_of_dit(architecture(name), factor)
    pipeline = pipeline_of(described, source)[1]
    return _size_of(read_json(source / pipeline.denoiser / "config.json"), factor, pipeline)


def known_classes(name: str | Path) -> tuple[str, ...] | None:
    """The classes of a base from configurations alone; None of an architecture, one that lies on
    the hub or reads prompts.

    Raises: UsageError, SmidgenError as `load_base`.
    """
    if on_hub(name) or is_architecture(name):
        return None
    source = locate(name)
    described = describe(source)
    if is_pipeline(described):
        return None
    return class_names_of(described, architecture(name), source)


def _size_of(config: Mapping[str, Any], factor: int, pipeline: Pipeline) -> KnownSize:
    return KnownSize(
        trained=trained_size_of(config, factor),
        sides=sides_of(config, factor, pipeline),
        factor=factor,
    )


def size_of_dit(config: DiTConfig, factor: int) -> KnownSize:
    """Of a DiT whose codec reduces images by `factor`."""
    (height, width), multiple = config.latent_size, config.patch_size * factor
    return KnownSize(
        trained=ImageSize(width * factor, height * factor),
        sides=Sides(multiple=multiple, step=multiple),
        factor=factor,
    )


def stored_precision(name: str | Path, base_precision: str | None = None) -> torch.dtype:
    """In what the weights of a base that computes in float32 are kept (with int8 and nf4: the
    others), from the headers of its files; of one on the hub, as if they were in float32.

    Raises: UsageError, SmidgenError as `load_base`.
    """
    check_base_precision(base_precision)
    files: list[Path] = []
    if base_precision not in DTYPES and not (on_hub(name) or is_architecture(name)):
        source = locate(name)
        described = describe(source)
        if is_pipeline(described):
            folder = source / pipeline_of(described, source)[1].denoiser
            # of a folder without weights, which is counted all the same, nothing is known
            files = weight_files(folder) if any(folder.glob("*.safetensors")) else []
    return kept_in(base_precision, torch.float32, files)


def prompt_files(name: str | Path) -> PromptFiles | None:
    """The files with which a base reads prompts; None of one that reads none, lies on the hub or is
    an architecture.

    Raises: UsageError, SmidgenError as `load_base`.
    """
    if on_hub(name) or is_architecture(name):
        return None
    source = locate(name)
    described = describe(source)
    if not is_pipeline(described):
        return None
    network, pipeline = pipeline_of(described, source)
    if not pipeline.prompts:
        return None
    return PromptFiles(source=source, index=described, pipeline=pipeline, network=network)


def refuse_dit_settings(**given: Any) -> None:
    """Raises: UsageError for a setting of a DiT that is given, None: not."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} is for a DiT, and this base is another pipeline; leave it out"
            )
