"""Folders of pipelines: what they hold, read before anything loads. Which pipelines there are is
said by their families, in hosts/.

Pure functions of paths and dicts: nothing here imports diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.errors import SmidgenError
from smidgen.hosts.family import Pipeline
from smidgen.hosts.host import HOSTS, families
from smidgen.models.files import WEIGHTS, check_safetensors, read_json, weight_files
from smidgen.models.schemas import Scheduler, check_sizes
from smidgen.sizes import ImageSize, Sides

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
DEFAULT_PIXELS = 1024  # of the pipelines whose network does not say what it was trained at


def is_pipeline(index: Mapping[str, Any]) -> bool:
    """Whether this is the index of a pipeline of diffusers other than our own architecture's."""
    kind = index.get("_class_name")
    return isinstance(kind, str) and kind.endswith("Pipeline") and kind != "DiTPipeline"


def pipeline_of(index: Mapping[str, Any], source: Path) -> tuple[str, Pipeline]:
    """The pipeline that an index describes and the class of its network, all classes checked.

    Of an unknown pipeline of an unknown network, which nobody here can call, prompts are not read.

    Raises: SmidgenError for an unknown pipeline of a known network, a network of another class, or
        a component that is missing or comes with code of its own.
    """
    kind = str(index.get("_class_name"))
    known = {
        name: (network, pipeline)
        for network, family in families().items()
        for name, pipeline in family.pipelines.items()
    }
    described = known.get(kind) or _unknown(index)
    if described is None:
        raise SmidgenError(
            f"{source}/{INDEX}: a {kind} cannot be trained here; known: DiTPipeline, "
            f"{', '.join(known)}"
        )
    network, pipeline = described
    for name in (pipeline.denoiser, "vae", "scheduler", *pipeline.prompts):
        library, component = _entry(index, name)
        if component is None and name in pipeline.optional:
            continue
        if component is None:
            raise SmidgenError(f"{source}/{INDEX}: this {kind} has no {name}; get it again")
        if library not in LIBRARIES and f"{library}.{component}" not in HOSTS:
            raise SmidgenError(
                f"{source}/{INDEX}: {name} is of {library}, code of its own that is not run; "
                f"expected {' or '.join(LIBRARIES)}"
            )
    found = _entry(index, pipeline.denoiser)[1]
    if found != network:
        raise SmidgenError(
            f"{source}/{INDEX}: the {pipeline.denoiser} of a {kind} is a {found}; expected "
            f"{network}"
        )
    return network, pipeline


def a_pipeline_of(config: Mapping[str, Any]) -> Pipeline:
    """Some pipeline of a known network, by the network's configuration."""
    return next(iter(families()[config["_class_name"]].pipelines.values()))


def _unknown(index: Mapping[str, Any]) -> tuple[str, Pipeline] | None:
    """A pipeline and its network by the index alone, if it has one denoiser of no known class."""
    unet, transformer = (_entry(index, part)[1] for part in ("unet", "transformer"))
    network = transformer or unet
    if network is None or network in families() or (unet and transformer):
        return None
    denoiser = "unet" if unet else "transformer"
    return network, Pipeline(denoiser=denoiser, tokenizers=(), encoders=())


def check_files(source: Path, index: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Whether all of a pipeline's files are there, by their headers; weights as safetensors only.

    Raises: SmidgenError naming what is missing, truncated, a pickle or quantised.
    """
    scheduler = source / "scheduler" / "scheduler_config.json"
    _check_config(source / pipeline.denoiser / "config.json")
    read_json(scheduler, Scheduler)
    weights = weight_files(source / pipeline.denoiser)
    for name in pipeline.prompts:
        if _entry(index, name)[1] is None:
            continue
        if not (source / name).is_dir():
            raise SmidgenError(f"{source} has no {name}, which its {INDEX} names; get it again")
        if name in pipeline.encoders:
            weights += weight_files(source / name)
            _check_config(source / name / "config.json")
    for path in weights:
        check_safetensors(path)


def _check_config(path: Path) -> None:
    config = read_json(path)
    check_sizes(config, path)
    if config.get("quantization_config"):
        raise SmidgenError(
            f"{path.parent} was quantised by another program, and smidgen reads weights in 16 or "
            "32 bit: give the folder before that, with base_precision int8 or nf4 to keep it in 8 "
            "or 4 bit"
        )


def beside_prompts(index: Mapping[str, Any], pipeline: Pipeline) -> list[str]:
    """The components that the index names and that do not read prompts, or are not there."""
    names = [name for name, value in index.items() if isinstance(value, list) and len(value) == 2]
    absent = (None, None)
    return [n for n in names if n not in pipeline.prompts or _entry(index, n) == absent]


def wanted(index: Mapping[str, Any], source: Path) -> list[str]:
    """Patterns of the files that a base needs of a pipeline on the hub; never a pickle.

    Raises: SmidgenError as `pipeline_of`.
    """
    _, pipeline = pipeline_of(index, source)
    folders = (pipeline.denoiser, "vae", "scheduler", *pipeline.prompts)
    files = (*(f"{stem}*.safetensors" for stem in WEIGHTS), "*.json", "*.txt", "*.model", "*.jinja")
    return [INDEX, *(f"{folder}/{name}" for folder in folders for name in files)]


def trained_size_of(config: Mapping[str, Any], factor: int) -> ImageSize:
    """Size of the images that a network of this configuration was trained on."""
    size = config.get("sample_size")
    pair = size if isinstance(size, list | tuple) else (size, size)
    sides = [side * factor for side in pair if isinstance(side, int)]
    if len(sides) != 2:
        return ImageSize(DEFAULT_PIXELS, DEFAULT_PIXELS)
    return ImageSize(width=sides[1], height=sides[0])


def sides_of(config: Mapping[str, Any], factor: int, pipeline: Pipeline) -> Sides:
    """Which images the network of a pipeline takes behind a codec that reduces by `factor`."""
    multiple, most = factor * pipeline.patch, pipeline.most_tokens(config)
    return Sides(
        multiple=multiple,
        step=multiple * 2 ** pipeline.halvings(config),
        most=None if most is None else most * multiple,
    )


def _entry(index: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    value = index.get(name)
    if not isinstance(value, list) or [type(part) for part in value] != [str, str]:
        return None, None
    return value[0][:100], value[1][:100]
