"""`smidgen sample`: one PNG an image, and sample.json, which says how they were made.

What is drawn and how is in sampling/: config.py, draw.py and folder.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from smidgen.cli.arguments import Request, parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_file,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import Unreadable, in_one_line, read_bytes, read_json, sha256_of
from smidgen.files.settings import SWITCH, flatten, settings_of
from smidgen.models.chosen import BaseOnDevice
from smidgen.models.names import EMBEDDED, shipped_names
from smidgen.sampling.config import FILES, LoadedSampling
from smidgen.sampling.folder import (
    SampleRecord,
    fill_folder,
    read_record,
    standing_of,
)
from smidgen.sampling.own_settings import OwnSettings, read_own_settings

MOST_PROMPTS_BYTES = 2**20

# these do not change the images, or are known by what they hold
NOT_COMPARED = (
    *("output", "batch_size", "device", "offload", "delta", "page", "like", "prompt_file"),
)

DESCRIPTION = """Draw images from a base, with or without a delta.

examples:
  smidgen sample --base glyphs --classes all --num-images 64 --output samples/
  smidgen sample --base glyphs --delta runs/demo/delta.safetensors --classes alpha,beta
      --guidance 4 --sampler dpm++ --steps 20 --output samples/
  smidgen sample --base stabilityai/sdxl --prompt "a red fox" "a blue fox" --output foxes/
  smidgen sample --base glyphs-text --prompt "a cat in navy on white" --image cat.png
      --mask half.png --output cats/
  smidgen sample --like cats/000000-cat.png --output again/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """With what, and where to."""

    delta: Path | None = None
    """A delta.safetensors; none: the base as it is."""
    output: Path
    """Folder for the images."""
    prompt_file: Path | None = None
    """A text file with a prompt a line, behind those of --prompt."""
    page: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Write page.html too: all images on one page, a row for each class or prompt."""
    like: Path | None = None
    """A picture that smidgen sample drew: its settings are the defaults, and it alone is drawn
    again. The files that it was drawn with (--delta, --image, ...) must be given again."""


def run(argv: Sequence[str]) -> None:
    """Parse, check, draw, answer."""
    request, own = like_of(read_request("sample", argv))
    parsed = parse(
        request,
        {"base": BaseOnDevice, "sampling": LoadedSampling, "place": SampleOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base_options, options, switches = parsed["base"], parsed["place"], parsed["switches"]
    config = with_prompts(parsed["sampling"], options.prompt_file)
    options = dataclasses.replace(options, prompt_file=None)  # they are the configuration's now
    if options.delta is not None:
        check_file(options.delta, "delta")
    if config.image is not None:
        from smidgen.sampling.pictures import read_pictures

        read_pictures(config)
    check_output_folder(options.output)
    whole = config.edits == "all"  # a part of a delta may have other classes
    if whole and not config.prompt and (known := known_early(base_options.base, options.delta)):
        config.chosen(known)
    settings = settings_of_samples(base_options, config, options)
    standing = standing_of(options.output, settings, force=switches.force)
    if switches.dry_run:
        facts = delta_facts(options.delta) if options.delta is not None else {}
        answer_dry_run([base_options, config, options], facts, as_json=switches.json)
        return
    if standing == "finished":
        record = read_record(options.output)
        assert record is not None, "a finished folder has its record"
        log(f"{options.output} already holds these {len(record.images)} images")
    else:
        with quiet_stdout():
            record = draw(base_options, config, options, settings, own)
    document = {"output": str(options.output), **msgspec.to_builtins(record)}
    result = options.output
    if options.page:
        from smidgen.sampling.page import write_page

        result = write_page(record, options.output)
        document["page"] = str(result)
    answer(document, [], result, as_json=switches.json)


def like_of(request: Request) -> tuple[Request, OwnSettings | None]:
    """With the settings of the picture that --like names, if it is there, as those of a recipe.

    Raises: UsageError for a picture that has none, or whose files are not given again.
    """
    like = request.peek("like")
    if not isinstance(like, str) or {"-h", "--help"} & set(request.arguments):
        return request, None
    own = read_own_settings(Path(like))
    for name in (*settings_of(SampleOptions), *FILES, "device"):
        if name in own.settings:
            raise UsageError(f"{like} names {name}, which no picture may; leave it alone")
    peeked = {name: request.peek(name) for name in ("delta", *FILES)}  # nothing is parsed yet
    own.check_files({n: v if isinstance(v, str) else None for n, v in peeked.items()}, Path(like))
    values = {**own.settings, "numbers": [own.number], **request.values}
    recipe = request.recipe or Path(like)
    return dataclasses.replace(request, recipe=recipe, values=values), own


def with_prompts(config: LoadedSampling, file: Path | None) -> LoadedSampling:
    """With the prompts of the file, a line each, behind its own.

    Raises: UsageError if it cannot be read as such, or has none.
    """
    if file is None:
        return config
    check_file(file, "prompts")
    try:
        lines = read_bytes(file, MOST_PROMPTS_BYTES).decode("utf-8").splitlines()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompts in {file}: {in_one_line(error)}") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UsageError(f"{file} has no prompts; give a text file with one a line")
    return dataclasses.replace(config, prompt=(*config.prompt, *prompts))


def known_early(base: str, delta: Path | None) -> list[str]:
    """The classes that can be drawn, where a small file tells them before torch loads, else none.

    Whatever is odd about that file is for the loading to say.
    """
    try:
        if delta is not None:
            with delta.open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            described = json.loads(header["__metadata__"]["smidgen"])
            found = described["classes"] or described["training"]["prompts"]["classes"]
        else:
            folder = Path(base) if base not in shipped_names() else EMBEDDED / base
            found = read_json(folder / "config.json", dict[str, Any])["class_names"]
    except (
        SmidgenError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return []
    good = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return found if good else []


def settings_of_samples(
    base_options: BaseOnDevice, config: LoadedSampling, options: SampleOptions
) -> dict[str, Any]:
    """What the images depend on, as JSON: the delta by its content."""
    values = flatten(base_options, options) | config.facts()
    settings = {name: value for name, value in values.items() if name not in NOT_COMPARED}
    settings["delta_sha256"] = None if options.delta is None else sha256_of(options.delta)
    return settings


def draw(
    base_options: BaseOnDevice,
    config: LoadedSampling,
    options: SampleOptions,
    settings: dict[str, Any],
    own: OwnSettings | None = None,
) -> SampleRecord:
    """Load the base in the asked precision and the delta, and fill the folder. `own`: those of the
    picture that is drawn again.

    Raises: UsageError for an unknown class, or another base than the picture's; SmidgenError for a
        delta of another base.
    """
    from smidgen import api
    from smidgen.models.calling import DTYPES
    from smidgen.progress import counting_bar
    from smidgen.sampling.draw import prepare

    # before the base, which may take long
    delta = api.Delta.load(options.delta) if options.delta is not None else None
    base = base_options.as_trained(delta).load(dtype=DTYPES[config.precision])
    if own is not None and options.like is not None:
        own.check_base(base, options.like)
    drawing = prepare(base, config, delta=delta)
    with counting_bar("sampling", progress=True) as report:
        return fill_folder(drawing, options.output, settings, report, own=True)


def delta_facts(path: Path) -> dict[str, Any]:
    """Size of a delta file."""
    from smidgen.core.delta import Delta

    delta = Delta.load(path)
    return {"delta_parameters": delta.num_parameters(), "delta_bytes": path.stat().st_size}
