"""Pipelines of diffusers, those that can be trained above all: what their folders hold, read before
anything loads.

Pure functions of paths and dicts: nothing here imports diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from smidgen.errors import SmidgenError
from smidgen.models.files import check_safetensors, read_json, read_shards, refuse_pickles
from smidgen.models.schemas import Scheduler, check_sizes

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")
WEIGHTS = ("diffusion_pytorch_model", "model")  # stems of the files of diffusers and transformers
DEFAULT_PIXELS = 1024  # of the pipelines whose network does not say what it was trained at


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One class of pipelines.

    `network` is the class of its denoiser, in the folder `denoiser`; `tokenizers` and `encoders`
    turn prompts into conditions; `optional` names those of them that a folder may lack. A token of
    the network is `patch` latent pixels wide. `even_to_fraction` and `fitted_shift` are as in
    `schedulers.flow_of`.
    """

    denoiser: Literal["unet", "transformer"]
    network: str
    tokenizers: tuple[str, ...] = ("tokenizer",)
    encoders: tuple[str, ...] = ("text_encoder",)
    optional: tuple[str, ...] = ()
    patch: int = 1
    even_to_fraction: bool = False
    fitted_shift: bool = False

    @property
    def prompts(self) -> tuple[str, ...]:
        """The components that read prompts."""
        return (*self.tokenizers, *self.encoders)


TWO_TOKENIZERS = ("tokenizer", "tokenizer_2")
TWO_ENCODERS = ("text_encoder", "text_encoder_2")
_FLUX2 = Pipeline(
    denoiser="transformer",
    network="Flux2Transformer2DModel",
    even_to_fraction=True,
    fitted_shift=True,
)
_PIXART = Pipeline(denoiser="transformer", network="PixArtTransformer2DModel", patch=2)

PIPELINES: Mapping[str, Pipeline] = {
    "StableDiffusionPipeline": Pipeline(denoiser="unet", network="UNet2DConditionModel"),
    "StableDiffusionXLPipeline": Pipeline(
        denoiser="unet",
        network="UNet2DConditionModel",
        tokenizers=TWO_TOKENIZERS,
        encoders=TWO_ENCODERS,
    ),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": Pipeline(
        denoiser="transformer",
        network="SD3Transformer2DModel",
        tokenizers=(*TWO_TOKENIZERS, "tokenizer_3"),
        encoders=(*TWO_ENCODERS, "text_encoder_3"),
        optional=("tokenizer_3", "text_encoder_3"),
        patch=2,
    ),
    "FluxPipeline": Pipeline(
        denoiser="transformer",
        network="FluxTransformer2DModel",
        tokenizers=TWO_TOKENIZERS,
        encoders=TWO_ENCODERS,
        patch=2,
        even_to_fraction=True,
    ),
    "SanaPipeline": Pipeline(denoiser="transformer", network="SanaTransformer2DModel"),
    "Flux2Pipeline": _FLUX2,
    "Flux2KleinPipeline": _FLUX2,
    "QwenImagePipeline": Pipeline(
        denoiser="transformer",
        network="QwenImageTransformer2DModel",
        patch=2,
        even_to_fraction=True,
    ),
}


def is_pipeline(index: Mapping[str, Any]) -> bool:
    """Whether this is the index of a pipeline of diffusers other than our own architecture's."""
    kind = index.get("_class_name")
    return isinstance(kind, str) and kind.endswith("Pipeline") and kind != "DiTPipeline"


def pipeline_of(index: Mapping[str, Any], source: Path) -> Pipeline:
    """The pipeline that an index describes, its components' classes checked.

    Of an unknown pipeline of an unknown network, which nobody here can call, prompts are not read.

    Raises:
        SmidgenError: an unknown pipeline of a known network, a network of another class, or a
            component that is missing or comes with code of its own.
    """
    kind = str(index.get("_class_name"))
    pipeline = PIPELINES.get(kind) or _unknown(index)
    if pipeline is None:
        raise SmidgenError(
            f"{source}/{INDEX}: a {kind} cannot be trained here; known: DiTPipeline, "
            f"{', '.join(PIPELINES)}"
        )
    for name in (pipeline.denoiser, "vae", "scheduler", *pipeline.prompts):
        library, component = _entry(index, name)
        if component is None and name in pipeline.optional:
            continue
        if component is None:
            raise SmidgenError(f"{source}/{INDEX}: this {kind} has no {name}; get it again")
        if library not in LIBRARIES:
            raise SmidgenError(
                f"{source}/{INDEX}: {name} is of {library}, code of its own that is not run; "
                f"expected {' or '.join(LIBRARIES)}"
            )
    found = _entry(index, pipeline.denoiser)[1]
    if found != pipeline.network:
        raise SmidgenError(
            f"{source}/{INDEX}: the {pipeline.denoiser} of a {kind} is a {found}; expected "
            f"{pipeline.network}"
        )
    return pipeline


def _unknown(index: Mapping[str, Any]) -> Pipeline | None:
    """A pipeline by its index alone, if it has one denoiser and that is of no known class."""
    known = {pipeline.network for pipeline in PIPELINES.values()}
    unet, transformer = (_entry(index, part)[1] for part in ("unet", "transformer"))
    network = transformer or unet
    if network is None or network in known or (unet and transformer):
        return None
    denoiser = "unet" if unet else "transformer"
    return Pipeline(denoiser=denoiser, network=network, tokenizers=(), encoders=())


def check_files(source: Path, index: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Whether all of a pipeline's files are there, by their headers; weights as safetensors only.

    Raises:
        SmidgenError: naming what is missing, truncated or a pickle.
    """
    scheduler = source / "scheduler" / "scheduler_config.json"
    check_sizes(read_json(config := source / pipeline.denoiser / "config.json"), config)
    read_json(scheduler, Scheduler)
    check_weights(source / pipeline.denoiser)
    for name in pipeline.prompts:
        if _entry(index, name)[1] is None:
            continue
        if not (source / name).is_dir():
            raise SmidgenError(f"{source} has no {name}, which its {INDEX} names; get it again")
        if name in pipeline.encoders:
            check_weights(source / name)
            check_sizes(read_json(config := source / name / "config.json"), config)


def check_weights(folder: Path) -> None:
    """Whether a component's weights are whole safetensors files, in one or in several parts.

    Raises:
        SmidgenError: naming what is missing, truncated or a pickle.
    """
    for stem in WEIGHTS:
        parts = folder / f"{stem}.safetensors.index.json"
        if parts.is_file():
            for path in read_shards(parts):
                check_safetensors(path)
            return
        if (folder / f"{stem}.safetensors").is_file():
            check_safetensors(folder / f"{stem}.safetensors")
            return
    refuse_pickles(folder)
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f"; {variants[0]} is a variant: rename it to use it" if variants else ""
    raise SmidgenError(f"{folder} has no {WEIGHTS[0]}.safetensors{hint}")


def beside_prompts(index: Mapping[str, Any], pipeline: Pipeline) -> list[str]:
    """The components that the index names and that do not read prompts, or are not there."""
    names = [name for name, value in index.items() if isinstance(value, list) and len(value) == 2]
    absent = (None, None)
    return [n for n in names if n not in pipeline.prompts or _entry(index, n) == absent]


def wanted(index: Mapping[str, Any], source: Path) -> list[str]:
    """Patterns of the files that a base needs of a pipeline on the hub; never a pickle.

    Raises:
        SmidgenError: as `pipeline_of`.
    """
    pipeline = pipeline_of(index, source)
    folders = (pipeline.denoiser, "vae", "scheduler", *pipeline.prompts)
    files = (*(f"{stem}*.safetensors" for stem in WEIGHTS), "*.json", "*.txt", "*.model", "*.jinja")
    return [INDEX, *(f"{folder}/{name}" for folder in folders for name in files)]


def trained_pixels(config: Mapping[str, Any], factor: int) -> int:
    """Side in pixels of the images that a network of this configuration was trained on."""
    size = config.get("sample_size")
    if isinstance(size, list | tuple):
        size = size[0]
    return size * factor if isinstance(size, int) else DEFAULT_PIXELS


def _entry(index: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    value = index.get(name)
    if not isinstance(value, list) or [type(part) for part in value] != [str, str]:
        return None, None
    return value[0][:100], value[1][:100]
