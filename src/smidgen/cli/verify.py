"""`smidgen verify`: whether a base with its released weights is what was published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.errors import SmidgenError, shown
from smidgen.evaluation.metric_table import aligned
from smidgen.files.names import file_part
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.settings import flatten
from smidgen.files.standing import standing
from smidgen.files.writing import write_json, write_text
from smidgen.verification.config import VerifiedBase, VerifyConfig

DOCUMENT, PAGE = "verify.json", "verify.md"
NOT_COMPARED = ("output", "batch_size", "cache_dir", "weights")

DESCRIPTION = """Verify a base with its released weights, and write a report that can be sent.

  files      the SHA-256 of what was read
  forward    the network against stock diffusers with the same weights
  training   two steps twice: the same bits, and the base untouched
  published  the number that its authors measured, of DiT-XL/2 the FID

With fewer images than the authors' the Frechet distance is larger by its bias; what it would be of
as many is worked out, with a standard error. A check that is not possible says why.

examples:
  smidgen verify glyphs
  smidgen verify DiT-XL-2-256x256.pt --codec sd-vae-ft-ema \\
      --reference VIRTUAL_imagenet256_labeled.npz
  smidgen verify stable-diffusion-v1-4/ --checks forward,training --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Where the report goes."""

    output: Path | None = None
    """Folder for verify.json and verify.md; none: runs/verify-<base>."""


def run(argv: Sequence[str]) -> None:
    """Parse, check, verify, answer. Raises: SmidgenError if a check failed."""
    parsed = parse(
        read_request("verify", argv, positional="base"),
        {"base": VerifiedBase, "verification": VerifyConfig, "place": VerifyOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    options, config, place = parsed["base"], parsed["verification"], parsed["place"]
    switches = parsed["switches"]
    output = place.output or Path("runs") / f"verify-{file_part(Path(options.base).stem)}"
    check_output_folder(output)
    settings = flatten(options, config)
    request = json.loads(
        json.dumps({n: v for n, v in settings.items() if n not in NOT_COMPARED}, default=str)
    )
    before = document_of(output)
    found = standing(
        output,
        "a verification",
        None if before is None else before.get("request", {}),
        request,
        finished=True,
        force=switches.force,
    )
    if switches.dry_run:
        answer_dry_run([options, config, place], {}, as_json=switches.json)
        return
    if before is not None and found == "finished" and not switches.force:
        log(f"{output} already holds this verification; --force does it again")
        document = before
    else:
        with quiet_stdout():
            document = verified(options, config) | {"request": request}
        write_json(document, output / DOCUMENT)
        write_text(page(document), output / PAGE)
    answer(document, lines_of(document), output / PAGE, as_json=switches.json)
    failed = [check["name"] for check in document["checks"] if check["status"] == "fail"]
    if failed:
        raise SmidgenError(f"{', '.join(failed)} failed: see {output / PAGE}")


def document_of(output: Path) -> dict[str, Any] | None:
    """The verification in a folder, None without one. Raises: SmidgenError if it is damaged."""
    path = output / DOCUMENT
    if not path.exists():
        return None
    try:
        return read_json(path, dict[str, Any])
    except Unreadable as error:
        raise SmidgenError(f"{error}; give another output, or remove it") from error


def verified(options: VerifiedBase, config: VerifyConfig) -> dict[str, Any]:
    """The document."""
    from smidgen.api import verification

    return verification.run(options, config, tell=log, progress=True)


def page(document: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    from smidgen.verification.report import page_of

    return page_of(document)


def lines_of(document: Mapping[str, Any]) -> list[str]:
    """A line for each check, and the verdict."""
    from smidgen.verification.report import VERDICTS

    rows = [[check["name"], check["status"], shown(check["found"])] for check in document["checks"]]
    return [*aligned(rows), f"{document['base']}: {VERDICTS[document['verdict']]}"]
