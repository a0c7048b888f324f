"""`smidgen sample`: one PNG an image, and sample.json, which says how they were made.

Image i has class i mod K and depends on the seed and i alone, not on the batch size or the device's
batch order. What a sampler does is in diffusion/, how a batch is drawn in api.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    PRECISIONS,
    BaseOnDevice,
    OutputSwitches,
    answer,
    answer_dry_run,
    at_least,
    check_file,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.cli.records import RECORD, check_record, read_record, remove_images
from smidgen.errors import UsageError, closest
from smidgen.files.settings import flatten
from smidgen.files.writing import write_json
from smidgen.models.names import EMBEDDED, shipped_names

if TYPE_CHECKING:
    from smidgen.core.delta import Delta
    from smidgen.models.base import Base

NOT_COMPARED = ("output", "batch_size", "device", "delta")  # these do not change the images

DESCRIPTION = """Draw images from a base, with or without a delta.

examples:
  smidgen sample --base glyphs --classes all --num-images 64 --output samples/
  smidgen sample --base glyphs --delta runs/demo/delta.safetensors --classes alpha,beta
      --guidance 4 --sampler dpm++ --steps 20 --output samples/
  smidgen sample --base stabilityai/sdxl --prompt "a red fox" "a blue fox" --output foxes/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to draw."""

    delta: Path | None = None
    """A delta.safetensors; none: the base as it is."""
    classes: str = "all"
    """Class names with commas between them, or all."""
    prompt: tuple[str, ...] = ()
    """For a base that reads prompts: one or several; without any, those of the classes that the
    delta was trained on."""
    num_images: int | None = None
    """Images in total, image i of class (or prompt) i mod K; none: one of each."""
    steps: int = 50
    """Sampling steps."""
    sampler: Literal["ddpm", "ddim", "dpm++", "euler"] | None = None
    """ddpm: ancestral, as in the papers; dpm++: DPM-Solver++(2M), good from 15 steps on; euler: for
    flow-matching bases; none: ddpm, or euler for those."""
    guidance: float = 1.5
    """Scale of classifier-free guidance, 1 is without; or what a base with the scale as an input
    (FLUX) is told."""
    guidance_channels: Literal["all", "first-three"] = "all"
    """first-three: as the code released with DiT does."""
    seed: int = 0
    """Image i depends on this and i only."""
    batch_size: int = 32
    """Images at a time; the images are the same whatever it is."""
    precision: PRECISIONS = "fp32"
    """Number format of the denoiser."""
    output: Path
    """Folder for the images."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            at_least(name, getattr(self, name), 1)
        if self.num_images is not None:
            at_least("num_images", self.num_images, 1)
        at_least("guidance", self.guidance, 0)
        at_least("seed", self.seed, 0)


def run(argv: Sequence[str]) -> None:
    """Parse, check, draw, answer."""
    parsed = parse(
        read_request("sample", argv),
        {"base": BaseOnDevice, "sampling": SampleOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base_options, options, switches = parsed["base"], parsed["sampling"], parsed["switches"]
    if options.delta is not None:
        check_file(options.delta, "delta")
    check_output_folder(options.output)
    check_classes_early(base_options.base, options)
    settings = sampling_settings(base_options, options)
    record = read_record(options.output)
    finished = check_record(options.output, record, settings, force=switches.force)
    if switches.dry_run:
        facts = delta_facts(options.delta) if options.delta is not None else {}
        answer_dry_run([base_options, options], facts, as_json=switches.json)
        return
    if finished:
        log(f"{options.output} already holds these {len(record['images'])} images")
    else:
        with quiet_stdout():
            base, delta = load(base_options, options)
            record = draw(base, delta, options, settings)
    answer({"output": str(options.output), **record}, [], options.output, as_json=switches.json)


def check_classes_early(base: str, options: SampleOptions) -> None:
    """Refuse an unknown class before torch loads, where a small file tells the class names.

    Whatever is odd about that file is for the loading to say.
    """
    if options.prompt:
        return
    try:
        if options.delta is not None:
            with options.delta.open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            described = json.loads(header["__metadata__"]["smidgen"])
            known = described["classes"] or described["training"]["prompts"]["classes"]
        else:
            folder = Path(base) if base not in shipped_names() else EMBEDDED / base
            known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["class_names"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        return
    for name in split_classes(options.classes, known):
        if name not in known:
            raise UsageError(f'unknown class "{name}"{closest(name, known)}')


def sampling_settings(base_options: BaseOnDevice, options: SampleOptions) -> dict[str, Any]:
    """What the images depend on, as JSON: the delta by its content."""
    values = flatten(base_options, options)
    settings = {name: value for name, value in values.items() if name not in NOT_COMPARED}
    settings["prompt"] = list(options.prompt)
    settings["delta_sha256"] = None
    if options.delta is not None:
        settings["delta_sha256"] = hashlib.sha256(options.delta.read_bytes()).hexdigest()
    return settings


def draw(
    base: Base, delta: Delta | None, options: SampleOptions, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Draw and write the images; the record's `finished` turns true with the last one."""
    from PIL import Image

    from smidgen import api
    from smidgen.api.sampling import DEFAULT_SAMPLER, FLOW_SAMPLER, class_names

    known = tuple(dict.fromkeys(options.prompt)) or class_names(base, delta)
    chosen = choose_classes(options.classes, known) if known else []
    total = options.num_images or len(chosen)
    labels = [chosen[number % len(chosen)] for number in range(total)] if chosen else []
    default = FLOW_SAMPLER if base.objective == "flow" else DEFAULT_SAMPLER
    names = [f"{number:06d}-{file_part(label)}.png" for number, label in enumerate(labels)]
    record = {
        "settings": {**settings, "sampler": options.sampler or default},
        "images": dict(zip(names, labels, strict=True)),
        "finished": False,
    }
    batches = api.sample_arrays(
        base,
        delta=delta,
        classes=chosen or "all",
        prompts=options.prompt or None,
        num_images=total or None,
        steps=options.steps,
        sampler=options.sampler,
        guidance=options.guidance,
        guidance_channels=options.guidance_channels,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=True,
    )
    remove_images(options.output)
    write_json(record, options.output / RECORD)
    with contextlib.closing(batches):  # an error must not stand behind a half-drawn progress bar
        for numbers, images, _ in batches:
            for number, image in zip(numbers, images, strict=True):
                Image.fromarray(image).save(options.output / names[number])
    record["finished"] = True
    write_json(record, options.output / RECORD)
    return record


def load(base_options: BaseOnDevice, options: SampleOptions) -> tuple[Base, Delta | None]:
    """The base on its device in the asked precision, and the delta, checked against the base.

    Raises: UsageError for an unknown class; SmidgenError for a delta of another base.
    """
    from smidgen import api
    from smidgen.api.evaluation import DTYPES

    delta = api.Delta.load(options.delta) if options.delta is not None else None
    if delta is not None:  # before the base, which may take long
        prompted = delta.provenance.training.get("prompts", {}).get("classes", ())
        known = options.prompt or delta.provenance.classes or prompted
        choose_classes(options.classes, known)
    base = base_options.load(dtype=DTYPES[options.precision])
    if delta is not None:
        delta.check_base(base.fingerprint, base.name)
    return base, delta


def choose_classes(text: str, known: Sequence[str]) -> list[str]:
    """The class names of `--classes`.

    Raises: UsageError for a name that is not known, with the closest one.
    """
    from smidgen.api.sampling import choose_classes

    return choose_classes(split_classes(text, known), known)


def split_classes(text: str, known: Sequence[str]) -> list[str]:
    """The names in `--classes`, of which one may itself hold commas; all of them for "all"."""
    if text == "all":
        return list(known)
    return [text] if text in known else [part.strip() for part in text.split(",")]


def file_part(name: str) -> str:
    """The class name as part of a file name on any system."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name)[:100] or "_"


def delta_facts(path: Path) -> dict[str, Any]:
    """Size of a delta file."""
    from smidgen.core.delta import Delta

    delta = Delta.load(path)
    return {"delta_parameters": delta.num_parameters(), "delta_bytes": path.stat().st_size}
