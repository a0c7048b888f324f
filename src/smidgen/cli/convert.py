"""`smidgen convert`: LoRA and new words to and from other programs; the formats are in
interop/lora.py and interop/embeddings.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_file,
    check_input,
    check_output_file,
    log,
    quiet_stdout,
)
from smidgen.errors import UsageError
from smidgen.files.standing import START_OVER
from smidgen.models.chosen import BaseOptions

DESCRIPTION = """Write a LoRA delta or a new word for other programs, or read theirs as a delta.

examples:
  smidgen convert --base sd-folder --file runs/cat/delta.safetensors --format peft --output cat.safetensors
  smidgen convert --base sd-folder --file runs/word/delta.safetensors --format embeddings --output owl.safetensors
  smidgen convert --base sd-folder --file theirs.safetensors --format delta --output delta.safetensors"""  # noqa: E501


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to read and write."""

    file: Path
    """A delta.safetensors, or for --format delta a LoRA file, a PEFT folder or the file of a word
    of others."""
    format: Literal["peft", "kohya", "embeddings", "delta"]
    """peft: for diffusers and PEFT; kohya: for ComfyUI; embeddings: the word of textual-inversion,
    for both; delta: from a LoRA or a word of others to ours."""
    output: Path
    """The .safetensors to write."""
    leave_out_text_encoder: bool = False
    """For --format delta: of a file that has LoRA of text encoders too, read the denoiser's."""

    def __post_init__(self) -> None:
        if self.leave_out_text_encoder and self.format != "delta":
            raise UsageError("--leave-out-text-encoder is for --format delta, which reads files")
        if self.output.suffix != ".safetensors":
            raise UsageError(f"{self.output} must end in .safetensors; give such an output")


def run(argv: Sequence[str]) -> None:
    """Parse, check, convert, answer."""
    parsed = parse(
        read_request("convert", argv),
        {"base": BaseOptions, "convert": ConvertOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base_options, options, switches = parsed["base"], parsed["convert"], parsed["switches"]
    check = check_input if options.format == "delta" else check_file  # PEFT writes a folder
    check(options.file, "LoRA or word" if options.format == "delta" else "delta")
    check_output_file(options.output)
    if options.output.exists() and options.file.resolve() == options.output.resolve():
        raise UsageError(f"{options.output} is the file to convert; give another output")
    if options.output.exists() and not switches.force:
        raise UsageError(f"{options.output} exists; give another output, or {START_OVER}")
    if switches.dry_run:
        answer_dry_run([base_options, options], {}, as_json=switches.json)
        return
    with quiet_stdout():
        document = convert(base_options, options)
    for kind, count in document["left_out"].items():
        log(f"left out: {kind}, {count} tensors")
    answer(document, [], Path(document["output"]), as_json=switches.json)


def convert(base_options: BaseOptions, options: ConvertOptions) -> dict[str, Any]:
    """Load the base, read one format and write the other."""
    from smidgen import api
    from smidgen.core.delta import Delta
    from smidgen.core.file import is_delta
    from smidgen.interop.embeddings import is_embeddings
    from smidgen.interop.lora_files import read_lora_file
    from smidgen.interop.pipeline_folder import check_apart

    text_encoder = "leave-out" if options.leave_out_text_encoder else "refuse"
    # a file that cannot be read should not wait for the base
    delta = None if options.format == "delta" else Delta.load(options.file)
    if delta is None:
        if is_delta(options.file):
            raise UsageError(f"{options.file} is a delta already; choose --format peft or kohya")
        if not is_embeddings(options.file):
            read_lora_file(options.file, text_encoder)
    base = base_options.load()
    if delta is None:
        check_apart(base.source or options.file, options.output)
        if is_embeddings(options.file):
            delta = api.import_embeddings(options.file, base)
        else:
            delta = api.import_lora(options.file, base, text_encoder=text_encoder)
        delta.save(options.output)
    else:
        assert options.format != "delta"
        if options.format == "embeddings":
            api.export_embeddings(delta, base, output=options.output)
        else:
            api.export_lora(delta, base, format=options.format, output=options.output)
    read = delta.provenance.training if options.format == "delta" else {}
    return {
        "output": str(options.output),
        "format": options.format,
        "base": base.name,
        "trainable": delta.num_parameters(),
        "edits": len(delta.edits),
        "left_out": read.get("left_out", {}),
    }
