"""How a delta becomes part of a base's weights, and how LoRA goes to other programs and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from smidgen.core.delta import Delta
from smidgen.core.edits import Table
from smidgen.core.fold import IntoTable
from smidgen.core.fold import fold as fold_into_state
from smidgen.core.storage import quantised_in
from smidgen.diffusion.process import Diffusion
from smidgen.errors import SmidgenError, UsageError
from smidgen.interop.embeddings import read_embeddings, write_embeddings
from smidgen.interop.lora import LoraFormat, read_lora, write_lora
from smidgen.interop.lora_files import TextEncoder
from smidgen.interop.modelspec import modelspec
from smidgen.interop.pipeline_folder import (
    check_apart,
    fold_into_folder,
    fold_into_single_file,
    open_pipeline,
)
from smidgen.models.base import Base
from smidgen.models.calling import dtype_of
from smidgen.models.dit import DiT
from smidgen.models.dit_weights import build_dit, write_diffusers, write_original_pt
from smidgen.models.positions import check_positions

Format = Literal["dit", "diffusers", "single-file"]


def fold(base: Base, delta: Delta | str | Path, *, format: Format, output: str | Path) -> Path:
    """Write a copy of the base's weights with `delta` folded in; the base stays as it is. Positions
    of a DiT are written as the base was loaded with them.

    "dit": an original `.pt` of a DiT. "diffusers": a pipeline folder. "single-file": one
    `.safetensors` in the original code's names, for SD 1.x, 2.x, SDXL, SD3 and Flux.

    Raises: UsageError for another format, SmidgenError if the base is kept in 8 or 4 bit, the
        delta does not fold or is another base's, the format cannot hold this base, `output` is in
        the base, or the disk refuses.
    """
    if format not in get_args(Format):
        raise UsageError(f'unknown format "{format}"; choose from: {", ".join(get_args(Format))}')
    delta = delta if isinstance(delta, Delta) else Delta.load(delta)
    delta.check_base(base.fingerprint, base.name)
    check_positions(delta, base)
    if precision := quantised_in(base.denoiser):
        raise SmidgenError(
            f'base "{base.name}" is kept in {precision}, where nothing can be folded in; load it '
            f"without base_precision {precision}, which takes the same delta"
        )
    output = Path(output)
    _check_output(base, output)
    is_dit = isinstance(base.denoiser, DiT)
    if is_dit and format != "single-file":
        return _fold_dit(base, delta, format=format, output=output)
    if is_dit or format == "dit":
        kind = type(base.denoiser).__name__
        fitting = "dit, diffusers" if is_dit else "diffusers, single-file"
        raise UsageError(f"a {kind} is not written as {format}; choose from: {fitting}")
    if base.source is None or not base.source.is_dir():
        raise SmidgenError(f'the folder of base "{base.name}" is gone; load the base again')
    pipeline = open_pipeline(base.source)  # read once more, in the files' own precision
    write = fold_into_folder if format == "diffusers" else fold_into_single_file
    return write(delta, pipeline, base.host, output)


def import_lora(path: str | Path, base: Base, *, text_encoder: TextEncoder = "refuse") -> Delta:
    """The delta of a LoRA file of PEFT, diffusers, kohya or ComfyUI on `base`.

    `text_encoder` "leave-out": of a file that has LoRA of text encoders too, what is of the
    denoiser; the delta's `provenance.training["left_out"]` says how many tensors are not read.

    Raises: UsageError for another `text_encoder`; SmidgenError if the file holds anything but plain
        LoRA of the denoiser (all kinds are named) or numbers that are not finite, was trained with
        a setting that is not read, or is for another model.
    """
    if text_encoder not in get_args(TextEncoder):
        choices = ", ".join(get_args(TextEncoder))
        raise UsageError(f'unknown text_encoder "{text_encoder}"; choose from: {choices}')
    return read_lora(path, base, text_encoder)


def export_lora(
    delta: Delta | str | Path, base: Base, *, format: LoraFormat, output: str | Path
) -> Path:
    """Write a LoRA delta for other programs: "peft" for diffusers and PEFT, "kohya" for ComfyUI.

    Raises: UsageError for another format, SmidgenError if the delta is another base's or no LoRA,
        or `output` is in the base.
    """
    delta = delta if isinstance(delta, Delta) else Delta.load(delta)
    delta.check_base(base.fingerprint, base.name)
    _check_output(base, Path(output))
    described = modelspec(delta, base, format)
    return write_lora(delta, Path(output), base.denoiser, format=format, metadata=described)


def export_embeddings(delta: Delta | str | Path, base: Base, *, output: str | Path) -> Path:
    """Write the new word of a textual inversion as the file that other programs read: diffusers
    with `load_textual_inversion`, and ComfyUI.

    Raises: SmidgenError if the delta is another base's or not a word alone, or `output` is in the
        base.
    """
    delta = delta if isinstance(delta, Delta) else Delta.load(delta)
    delta.check_base(base.fingerprint, base.name)
    _check_output(base, Path(output))
    return write_embeddings(delta, base, Path(output))


def import_embeddings(path: str | Path, base: Base) -> Delta:
    """The delta of a new word on `base`, from a file of diffusers, A1111 or ComfyUI with its rows.

    Raises: SmidgenError if the file is damaged or is for other text encoders; UsageError for a word
        that the base knows already.
    """
    return read_embeddings(Path(path), base)


def _check_output(base: Base, output: Path) -> None:
    if base.source is not None:
        check_apart(base.source, output)
    if Path(base.name).is_file():  # which was unpacked
        check_apart(Path(base.name), output)


def _fold_dit(base: Base, delta: Delta, *, format: Format, output: Path) -> Path:
    denoiser, process = base.denoiser, base.process
    assert isinstance(denoiser, DiT)
    assert isinstance(process, Diffusion)
    state = fold_into_state(delta, denoiser.state_dict(), base.host.folds)
    table = base.host.folds[base.host.tap("label.out")]
    assert isinstance(table, IntoTable)
    num_classes = len(state[table.weight]) - 1
    config = replace(denoiser.config, num_classes=num_classes)
    folded = build_dit(config, state, device=base.device, dtype=dtype_of(denoiser))
    if format == "dit":
        write_original_pt(folded, output)
        return output
    trained = any(isinstance(edit, Table) for edit in delta.edits.values())
    classes = delta.provenance.classes if trained else base.class_names
    classes = classes if len(classes) == num_classes else ()
    write_diffusers(
        folded, output, codec=base.codec, class_names=classes, schedule=process.schedule
    )
    return output
