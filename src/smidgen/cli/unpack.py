"""`smidgen unpack`: an image set that ships with the package, as an ordinary folder of PNGs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer, answer_dry_run, check_output_folder, quiet_stdout
from smidgen.data.embedded_sets import (
    LINE_DRAWINGS,
    NAMES,
    SETS,
    SPLITS,
    SUBJECTS,
    is_whole,
    unpack,
)
from smidgen.errors import UsageError, closest

DESCRIPTION = f"""Write a shipped set of letters as train/ and test/, each with a folder a class.

The letters in test/ come from font families that none in train/ shows.
Sets: {", ".join(SETS)}
The set {SUBJECTS} has a folder each of a few drawings, five pictures in it, to personalise
glyphs-text with; they are of the classes and styles that the folders' names say.
The set {LINE_DRAWINGS} has captioned pictures in a style that glyphs-text has never seen, of
other things in test/ than in train/.

examples:
  smidgen unpack hebrew --output data/hebrew
  smidgen unpack georgian --output data/georgian --json
  smidgen train recipes/difffit-glyphs.toml --data data/hebrew/train --output runs/hebrew"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnpackOptions:
    """What to write."""

    set: str
    """Name of the set."""
    output: Path
    """New or empty folder."""

    def __post_init__(self) -> None:
        if self.set not in NAMES:
            raise UsageError(f'no image set "{self.set}" ships{closest(self.set, NAMES)}')


def run(argv: Sequence[str]) -> None:
    """Parse, check, write, answer."""
    parsed = parse(
        read_request("unpack", argv, positional="set"),
        {"unpack": UnpackOptions},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, switches = parsed["unpack"], parsed["switches"]
    check_output_folder(options.output)
    is_whole(options.set, options.output)
    if switches.dry_run:
        answer_dry_run([options], {}, as_json=switches.json)
        return
    with quiet_stdout():
        folder = unpack(options.set, options.output)
    document = {"output": str(options.output), "set": options.set}
    splits = {"images": ""} if options.set == SUBJECTS else dict(zip(SPLITS, SPLITS, strict=True))
    counts = {
        name: sum(1 for _ in (folder / split).glob("*/*.png")) for name, split in splits.items()
    }
    answer(document | counts, [], options.output, as_json=switches.json)
