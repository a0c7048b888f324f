"""`smidgen train`: a folder of images and a base to RUN/delta.safetensors.

The rule for running again into the same folder (resume, finished, refuse) is in training/recipe.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from smidgen.cli.arguments import Request, parse, read_request
from smidgen.cli.options import (
    LAYOUT_NAMES,
    BaseOnDevice,
    OutputSwitches,
    answer,
    answer_dry_run,
    at_least,
    check_images,
    check_output_folder,
    quiet_stdout,
)
from smidgen.files.settings import flatten
from smidgen.training.config import TrainingConfig

DESCRIPTION = """Fine-tune a base to a folder of images: a sub-folder for each class.

The same command again resumes the run, or says that it is finished. The flags under "method" are
those of the chosen --method.

examples:
  smidgen train --base glyphs --data photos/ --method difffit --steps 400 --output runs/photos
  smidgen train recipes/difffit-food101.toml --data food-101 --layout food-101 --split train"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What to train on, how it is read, and where the result goes."""

    data: Path
    """Folder of images: a sub-folder for each class, or one class without sub-folders; or a data
    set of another --layout."""
    layout: LAYOUT_NAMES = "folder"
    """How the data lies there: a folder of images, a published data set as its archives unpack,
    webdataset (.tar shards) or hf (a Hugging Face image set: saved on disk, or a hub id)."""
    split: str | None = None
    """Which part of it, such as train or test; none: the layout's default."""
    method: str = "difffit"
    """What is trained: full, bitfit, difffit, adaptformer, vpt, lora, adapter; or several at once,
    such as difffit+lora, whose flags then begin with the method: --lora.rank 8."""
    resize: Literal["crop", "resize"] = "crop"
    """crop: the centre square of each image; resize: all of it, squeezed to a square."""
    flip: bool = False
    """Also train on the mirrored images."""
    max_bad_share: float = 0.05
    """Refuse to train if a larger share of the files cannot be used."""
    cache_dir: Path | None = None
    """Where latents are kept; none: the cache folder of this machine."""
    output: Path
    """Folder for the run; its delta.safetensors is the result."""

    def __post_init__(self) -> None:
        at_least("max_bad_share", self.max_bad_share, 0)


GROUPS: Mapping[str, type] = {
    "base": BaseOnDevice,
    "run": TrainOptions,
    "training": TrainingConfig,
}


def run(argv: Sequence[str]) -> None:
    """Parse, check, train, answer."""
    parsed = parse_train(read_request("train", argv))
    options, switches = parsed["run"], parsed["switches"]
    check_paths(options)
    if switches.dry_run:
        configs = [parsed[name] for name in (*GROUPS, "method")]
        with quiet_stdout():
            facts = plan(parsed)
        answer_dry_run(configs, facts, as_json=switches.json)
        return
    with quiet_stdout():
        document = train(parsed)
    summary = (
        f"trained {document['trainable']:,} parameters, {document['share']:.2%} of the base, "
        f"in {document['steps']:,} steps"
    )
    answer(document, [summary], Path(document["delta"]), as_json=switches.json)


def parse_train(request: Request) -> dict[str, Any]:
    """All groups of flags, those of the method chosen by flag or recipe among them.

    Raises: UsageError for an unknown method, and as `parse`.
    """
    from smidgen.methods import resolve

    groups = {**GROUPS, "method": resolve(request.peek("method", "difffit")).config}
    return parse(request, groups, switches=OutputSwitches, description=DESCRIPTION)


def check_paths(options: TrainOptions) -> None:
    """Raise UsageError unless the images are there and the output can be written."""
    check_images(options.data, options.layout, options.split)
    check_output_folder(options.output)


def train(parsed: Mapping[str, Any], *, base: Any = None) -> dict[str, Any]:
    """Load the base, train, and tell what was trained. `base` if it is loaded already."""
    from smidgen import api

    options = parsed["run"]
    base = base or parsed["base"].load()  # in float32, as the delta is trained beside it
    delta = api.train(
        base,
        options.data,
        layout=options.layout,
        split=options.split,
        method=options.method,
        method_config=dataclasses.asdict(parsed["method"]),
        output=options.output,
        resize=options.resize,
        flip=options.flip,
        max_bad_share=options.max_bad_share,
        cache_dir=options.cache_dir,
        force=parsed["switches"].force,
        **dataclasses.asdict(parsed["training"]),
    )
    total = sum(parameter.numel() for parameter in base.denoiser.parameters())
    path = options.output / "delta.safetensors"
    return {
        "delta": str(path),
        "delta_bytes": path.stat().st_size,
        "method": options.method,
        "classes": list(delta.provenance.classes),
        "trainable": delta.num_parameters(),
        "total": total,
        "share": delta.num_parameters() / total,
        "steps": parsed["training"].steps,
        "run": run_report(options.output),
    }


def run_report(folder: Path) -> dict[str, Any]:
    """What the training wrote about itself, {} if it did not."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def plan(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """What the run would train and need, from the names of the images and the shape of the base."""
    from smidgen import api
    from smidgen.data.layouts import open_images
    from smidgen.hosts.host import find_host
    from smidgen.models.architectures import meta_network

    base, options = parsed["base"].base, parsed["run"]
    images = open_images(options.data, layout=options.layout, split=options.split, decode=False)
    has_labels = find_host(meta_network(base)).has_labels  # else classes are prompts
    facts = api.inspect(
        base,
        num_classes=len(images.classes) if has_labels else None,
        method=options.method,
        method_config=dataclasses.asdict(parsed["method"]),
        **dataclasses.asdict(parsed["training"]),
    )
    # tensor by tensor is what `smidgen inspect` shows
    return {name: fact for name, fact in facts.items() if name != "tensors"}


def resolved(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a parsed command line by name."""
    return flatten(*(parsed[name] for name in (*GROUPS, "method")))
