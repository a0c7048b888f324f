"""Folding into a diffusers pipeline: a copy of its folder, or one file in the original names.

Everything happens on files and state dicts, one component at a time and in the files' precision.
What folds at all is core/fold.py's matter, the names of the original code are in hosts/.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.fold import fold
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.files.writing import write_json, writing
from smidgen.hosts.host import Host
from smidgen.interop.encoder_folder import fold_encoder
from smidgen.interop.single_file import original_of, single_file
from smidgen.models.files import (
    WEIGHT_FILE,
    read_json,
    read_tensors,
    second_copies,
    variant_of,
    weight_files,
    write_safetensors_file,
)

INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SKIPPED = frozenset({".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".pb", ".h5"})


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A diffusers pipeline on disk: its index and the component that is the denoiser."""

    folder: Path
    index: Mapping[str, Any]
    denoiser: str

    def components(self) -> tuple[str, ...]:
        """The components that the index names and the folder has."""
        named = [key for key, value in self.index.items() if _is_class(value)]
        return tuple(name for name in named if (self.folder / name).is_dir())


def open_pipeline(folder: Path) -> Pipeline:
    """The pipeline in a folder; only its index is read.

    Raises: SmidgenError if there is none, or it has no single denoiser.
    """
    if not (folder / INDEX).is_file():
        raise SmidgenError(f"{folder} is no diffusers pipeline: it has no {INDEX}")
    index = read_json(folder / INDEX)
    found = [name for name in DENOISERS if (folder / name / "config.json").is_file()]
    if len(found) != 1:
        raise SmidgenError(
            f"{folder} has {len(found)} of {', '.join(DENOISERS)}; a pipeline to fold into has one"
        )
    return Pipeline(folder=folder, index=index, denoiser=found[0])


def fold_into_folder(delta: Delta, pipeline: Pipeline, host: Host, output: Path) -> Path:
    """Write a copy of the pipeline with `delta` folded into its denoiser, for stock diffusers; and
    into text encoders and their tokenizers, if it has edits there.

    Second copies of weights are not copied, and those that are there as a variant only become plain
    files, as stock programs look for them. Optional components that the folder lacks are switched
    off in the index. Weights that `output` holds already are replaced.

    Raises: SmidgenError if the delta does not fold, `output` is in the base, or the disk refuses.
    """
    check_apart(pipeline.folder, output)
    folded = fold(delta, component_state(pipeline.folder / pipeline.denoiser), host.folds)
    present = pipeline.components()
    changed = {pipeline.denoiser, *delta.components}
    for name in present:
        _remove_weights(output / name)
        _copy_component(pipeline.folder / name, output / name)
        if name not in changed:
            _copy_weights(pipeline.folder / name, output / name)
    for name in delta.components:
        fold_encoder(delta, pipeline.folder, name, output)
    write_safetensors_file(folded, output / pipeline.denoiser / WEIGHTS)
    index = {
        key: [None, None] if _is_class(value) and key not in present else value
        for key, value in pipeline.index.items()
    }
    write_json(index, output / INDEX)
    return output


def fold_into_single_file(delta: Delta, pipeline: Pipeline, host: Host, output: Path) -> Path:
    """Write the pipeline with `delta` folded in as one `.safetensors` in the original names.

    Raises: SmidgenError if the delta does not fold, the family has no such file or it has no place
        for a tensor, such as a new word's, `output` is in the base, or the disk refuses.
    """
    check_apart(pipeline.folder, output)
    if any(isinstance(edit, Word) for edit in delta.edits.values()):
        raise SmidgenError(
            "a single file has no tokenizer to know a new word: write a diffusers folder, or the "
            "word alone (smidgen convert --format embeddings)"
        )
    configs = {
        name: read_json(pipeline.folder / name / "config.json")
        for name in pipeline.components()
        if (pipeline.folder / name / "config.json").is_file()
    }
    original = original_of(configs, pipeline.denoiser)
    folded = fold(delta, component_state(pipeline.folder / pipeline.denoiser), host.folds)
    texts: dict[str, tuple[Mapping[str, Tensor], str]] = {}
    if original.text_encoders:
        for name in ("text_encoder", "text_encoder_2"):
            if name in configs:
                activation = str(configs[name].get("hidden_act", "quick_gelu"))
                texts[name] = (_encoder_state(delta, pipeline, name), activation)
    codec = component_state(pipeline.folder / "vae")
    tensors = single_file(original, folded, codec, texts)
    write_safetensors_file(tensors, output)
    return output


def _encoder_state(delta: Delta, pipeline: Pipeline, name: str) -> dict[str, Tensor]:
    if name not in delta.components:
        return component_state(pipeline.folder / name)
    with TemporaryDirectory(prefix="smidgen-") as folder:
        fold_encoder(delta, pipeline.folder, name, Path(folder))
        found = component_state(Path(folder) / name)
        return {key: tensor.clone() for key, tensor in found.items()}  # the file goes


def component_state(folder: Path) -> dict[str, Tensor]:
    """The weights of one component. Raises: SmidgenError as `weight_files`."""
    return {k: t for file in weight_files(folder) for k, t in read_tensors(file).items()}


def _copy_component(source: Path, target: Path) -> None:
    """All files of a component but its weights."""
    for path in sorted(source.rglob("*")):
        is_weights = path.suffix in SKIPPED | {".safetensors"} or WEIGHT_FILE.fullmatch(path.name)
        if path.is_file() and not is_weights:
            _copy(path, target / path.relative_to(source))


def _copy_weights(source: Path, target: Path) -> None:
    """The weights of a component, if it has any, under the names of plain files."""
    if variant_of(source) is not None:
        stem = re.split(r"[.-]", weight_files(source)[0].name)[0]
        write_safetensors_file(component_state(source), target / f"{stem}.safetensors")
        return
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    for name in sorted(set(names) - set(second_copies(names))):
        if name.endswith((".safetensors", ".safetensors.index.json")):
            _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _remove_weights(folder: Path) -> None:
    """An index of shards that is left there would be read in the place of the new weights."""
    for path in sorted(folder.glob("*")):
        if path.suffix in SKIPPED | {".safetensors"} or path.name.endswith(".index.json"):
            with writing(path):
                path.unlink()


def check_apart(source: Path, output: Path) -> None:
    """Raises: SmidgenError if the output is the base at `source` itself, or in its folder."""
    source, output = source.resolve(), output.resolve()
    if output == source or source in output.parents:
        raise SmidgenError(f"{output} is in the base, which stays as it is; give another output")


def _is_class(value: Any) -> bool:
    """An entry of the index that names a component's library and class."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(part is None or isinstance(part, str) for part in value)
    )
