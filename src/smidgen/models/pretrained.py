"""Bases by name: shipped ones, folders, files, the hub."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from smidgen.core.storage import narrow
from smidgen.diffusion.process import Diffusion
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.checks import check_choice
from smidgen.hosts.family import Pipeline
from smidgen.hosts.host import find_host
from smidgen.models.base import Base, base_fingerprint
from smidgen.models.calling import DTYPES
from smidgen.models.codec import AutoencoderCodec
from smidgen.models.components import load_autoencoder
from smidgen.models.dit import DiT, DiTConfig, preset
from smidgen.models.dit_shapes import fit_positions
from smidgen.models.dit_weights import (
    DIFFUSERS_CLASSES,
    build_dit,
    class_names_of,
    config_of_folder,
    read_config,
    read_dit,
    schedule_of,
)
from smidgen.models.files import read_json, weight_files
from smidgen.models.hub import download
from smidgen.models.names import (
    ARCHITECTURES,
    EMBEDDED,
    FACTOR,
    BasePrecision,
    is_architecture,
    on_hub,
    shipped_names,
)
from smidgen.models.pipeline_base import load_pipeline
from smidgen.models.pipelines import (
    INDEX,
    a_pipeline_of,
    is_pipeline,
    pipeline_of,
    sides_of,
    trained_size_of,
)
from smidgen.models.placing import check_placing, check_processes, check_same, place
from smidgen.models.positions import (
    Positions,
    given_positions,
    note_on_size,
    positions_at,
)
from smidgen.models.precision import check_base_precision, kept_in, quantise_as
from smidgen.models.prompt_files import PromptFiles
from smidgen.models.schemas import Folder
from smidgen.models.single_files import folder_of, is_single_file
from smidgen.processes import is_main
from smidgen.sizes import ImageSize, Sides

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
    None: what the base was trained at. The
    network computes in `dtype` with frozen weights kept in `base_precision`, None: in half
    precision if all in a pipeline's files are, else in `dtype`; of the same weights that gives the
    same numbers. In int8 are the weights of linears and convolutions, in nf4 (4 bit) those in its
    repeated blocks; all else is as with None.
    With `offload` the weights of its blocks stay in the memory of the machine and come to the
    device one by one; with `shard` each of the processes that torchrun started keeps a part of
    them, and all must do with the base the same, call by call. The rest is for a DiT: at another
    `image_size` than its own, `positions` "stretch" cover the range of its own, None: they are
    extended. `frequency_shift` None: what the folder records, else 0, that of the released weights.
    `num_classes` is checked against the file. `num_heads` is for a file of a width outside the DiT
    family.

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
    source = _locate(name)
    described = _describe(source)
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
            lambda: load_codec(_codec_source(name, source, codec), device=device),
            device=device,
            dtype=dtype,
            base_precision=base_precision,
            image_size=size,
            offload=offload,
            shard=shard,
        )
        if shard:
            check_same(base.name, base.fingerprint)
        base.given = _given(codec=codec, base_precision=base_precision)
        return base
    _refuse_component(source, described)
    if codec is None and not (source / "vae" / "config.json").is_file():
        read_config(source, num_heads=num_heads)  # which says so if this is no base at all
    autoencoder = load_codec(_codec_source(name, source, codec), device=device)
    config, state = read_dit(source, frequency_shift=frequency_shift, num_heads=num_heads)
    _check_fits(config, autoencoder, num_classes, str(name))
    known = _size_of_dit(config, autoencoder.factor)
    if size is not None:
        known.sides.check(size, str(name))
    if size is not None:
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
    if shard:
        check_same(base.name, base.fingerprint)
    return base


def load_codec(source: str | Path, *, device: str | torch.device = "cpu") -> AutoencoderCodec:
    """The codec in a diffusers vae folder, a base's folder, a shipped base or a hub id.

    Raises: UsageError for an unknown name or a missing folder; SmidgenError for no codec there, or
        one that cannot be read.
    """
    folder = _locate(source)
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise SmidgenError(
            f"{folder} is no codec: expected a folder with config.json and "
            "diffusion_pytorch_model.safetensors, or one that holds it as vae/"
        )
    return AutoencoderCodec(folder, load_autoencoder).to(device)


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
        source = _locate(name)
        ours = "dit" in _describe(source)
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
            return _size_of_dit(architecture(name), FACTOR)
        config = read_json(file)
        return _size_of(config, FACTOR, a_pipeline_of(config))
    source = _locate(name)
    described = _describe(source)
    factor = load_codec(_codec_source(name, source, codec)).factor
    if not is_pipeline(described):
        return _size_of_dit(architecture(name), factor)
    pipeline = pipeline_of(described, source)[1]
    return _size_of(read_json(source / pipeline.denoiser / "config.json"), factor, pipeline)


def known_classes(name: str | Path) -> tuple[str, ...] | None:
    """The classes of a base from configurations alone; None of an architecture, one that lies on
    the hub or reads prompts.

    Raises: UsageError, SmidgenError as `load_base`.
    """
    if on_hub(name) or is_architecture(name):
        return None
    source = _locate(name)
    described = _describe(source)
    if is_pipeline(described):
        return None
    return class_names_of(described, architecture(name), source)


def _size_of(config: Mapping[str, Any], factor: int, pipeline: Pipeline) -> KnownSize:
    return KnownSize(
        trained=trained_size_of(config, factor),
        sides=sides_of(config, factor, pipeline),
        factor=factor,
    )


def _size_of_dit(config: DiTConfig, factor: int) -> KnownSize:
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
        source = _locate(name)
        described = _describe(source)
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
    source = _locate(name)
    described = _describe(source)
    if not is_pipeline(described):
        return None
    network, pipeline = pipeline_of(described, source)
    if not pipeline.prompts:
        return None
    return PromptFiles(source=source, index=described, pipeline=pipeline, network=network)


def _locate(name: str | Path) -> Path:
    """The folder or file that `name` means; a shipped name comes before a folder of that name."""
    if isinstance(name, str) and name in shipped_names():
        return EMBEDDED / name
    path = Path(name).expanduser()
    if path.exists():
        return folder_of(path) if is_single_file(path) else path
    if is_architecture(name):
        remedy = "its folder of diffusers, or a hub id as owner/name"
        if str(name).startswith("DiT-"):
            remedy = "the file and its codec: --base DiT-XL-2-256x256.pt --codec FOLDER"
        raise UsageError(f'"{name}" is an architecture without weights; give {remedy}')
    if on_hub(name):
        return download(str(name))
    raise UsageError(
        f'no file or folder "{name}"; shipped bases: {", ".join(shipped_names()) or "none"}; '
        "or give a hub id as owner/name"
    )


def _describe(source: Path) -> Mapping[str, Any]:
    """What a folder says about its base: our config.json, or the model_index.json of diffusers."""
    for name in (INDEX, "config.json"):
        if source.is_dir() and (source / name).is_file():
            return read_json(source / name, Folder)
    return {}


def _given(**settings: Any) -> dict[str, Any]:
    """What a recipe says besides the name: settings that are there, in the types of TOML."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in settings.items()
        if value is not None
    }


def _codec_source(name: str | Path, source: Path, codec: str | Path | None) -> str | Path:
    if codec is not None:
        return codec
    if (source / "vae" / "config.json").is_file():
        return source / "vae"
    raise UsageError(
        f'"{name}" has no codec: add --codec FOLDER (codec=... in Python), a diffusers vae folder '
        "such as that of stabilityai/sd-vae-ft-ema"
    )


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


def refuse_dit_settings(**given: Any) -> None:
    """Raises: UsageError for a setting of a DiT that is given, None: not."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name} is for a DiT, and this base is another pipeline; leave it out"
            )
