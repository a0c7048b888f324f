"""`smidgen train-many`: a delta for each folder of a folder, several at once in mixed batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import read_request
from smidgen.cli.options import (
    answer,
    answer_dry_run,
    check_output_folder,
    quiet_stdout,
)
from smidgen.cli.train import configs_of, parse_train
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.checks import check_integer
from smidgen.files.run_files import DELTA
from smidgen.models.chosen import check_base_name

DESCRIPTION = """Train a delta for each folder in --data, a data set each, in --output by its name.

Several are trained at once: their images share the calls of the network, each with the delta that
it trains. Every delta has its own optimizer, validation, checkpoints and end; the flags are those
of train. The same command again goes on with what is not finished.

examples:
  smidgen train-many --base glyphs --data scripts/ --steps 400 --output library
  smidgen train-many recipes/difffit-glyphs.toml --data scripts/ --together 4 --output library"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyOptions:
    """How many deltas are trained at once."""

    together: int = 8
    """Deltas in one batch, of --batch-size images each; 1: one after the other."""

    def __post_init__(self) -> None:
        check_integer("together", self.together)


def run(argv: Sequence[str]) -> None:
    """Parse, check, train, answer.

    Raises: SmidgenError if one of them failed, when the others are done.
    """
    parsed = parse_train(read_request("train-many", argv), DESCRIPTION, many=ManyOptions)
    config, switches = parsed["run"], parsed["switches"]
    check_base_name(parsed["base"].base)
    if not config.data.is_dir():
        raise UsageError(f"data is {config.data}; expected a folder of data sets, a folder each")
    check_output_folder(config.output)
    if switches.time:
        raise UsageError("--time is for the dry run of one training (smidgen train)")
    if switches.dry_run:
        sets = sorted(path.name for path in config.data.iterdir() if path.is_dir())
        answer_dry_run([*configs_of(parsed), parsed["many"]], {"sets": sets}, as_json=switches.json)
        return
    from smidgen.api.training import train_many

    with quiet_stdout():
        found = train_many(
            parsed["base"].load(), config, together=parsed["many"].together, force=switches.force
        )
    document = {name: _told(config.output / name, one) for name, one in found.items()}
    failed = [name for name, one in document.items() if "error" in one]
    lines = [f"{name}: {one.get('error', one.get('delta'))}" for name, one in document.items()]
    answer(document, lines, config.output, as_json=switches.json)
    if failed:
        raise SmidgenError(
            f"{len(failed)} of {len(found)} deltas were not trained, first {failed[0]}: "
            f"{document[failed[0]]['error']}; run the same command again to go on with them"
        )


def _told(folder: Path, result: Any) -> dict[str, Any]:
    if isinstance(result, SmidgenError):
        return {"error": str(result)}
    if isinstance(result, Exception):
        return {"error": f"{type(result).__name__}: {result}"}
    return {
        "delta": str(folder / DELTA),
        "trainable": result.num_parameters(),
        "step": result.provenance.training["step"],
        "classes": list(result.provenance.classes),
    }
