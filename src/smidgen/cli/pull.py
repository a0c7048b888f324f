"""`smidgen pull`: a delta from the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.hub.config import PullConfig
from smidgen.models.chosen import BaseOptions, check_base_name

DESCRIPTION = """Fetch a delta from the Hugging Face hub, with its card, result and pictures.

examples:
  smidgen pull owner/photos --output photos/
  smidgen pull owner/photos --revision v1 --base glyphs --output photos/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedBase:
    """The base that the delta must be of."""

    base: str | None = None
    """A shipped name, a folder, a file or a hub id: a delta of another base is refused; none: it is
    not compared."""

    def __post_init__(self) -> None:
        if self.base is not None:
            check_base_name(self.base)


def run(argv: Sequence[str]) -> None:
    """Parse, check, fetch, answer."""
    parsed = parse(
        read_request("pull", argv, positional="repo"),
        {"pull": PullConfig, "base": ComparedBase},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    config, compared, switches = parsed["pull"], parsed["base"], parsed["switches"]
    check_output_folder(config.output)
    if switches.dry_run:
        answer_dry_run([config, compared], {}, as_json=switches.json)
        return
    from smidgen.hub.pull import pull

    options = None if compared.base is None else BaseOptions(base=compared.base)
    with quiet_stdout():
        document = pull(
            config,
            None if options is None else lambda delta: options.as_trained(delta).load(),
            force=switches.force,
        )
    if document["unchanged"]:
        log(f"{config.output} holds this already")
    lines = [f"{document['method']} on {document['base']}, {document['trainable']:,} parameters"]
    answer(document, lines, Path(document["output"]), as_json=switches.json)
