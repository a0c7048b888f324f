"""`smidgen push`: a run or a delta on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import OutputSwitches, answer, check_input, log, quiet_stdout
from smidgen.hub.config import CARD, PushConfig

DESCRIPTION = """Put a run or a delta on the Hugging Face hub, with a model card.

examples:
  smidgen push runs/photos --repo owner/photos --licence cc-by-4.0
  smidgen push runs/photos/delta.safetensors --repo owner/photos --private --dry-run"""


def run(argv: Sequence[str]) -> None:
    """Parse, check, push, answer."""
    parsed = parse(
        read_request("push", argv, positional="source"),
        {"push": PushConfig},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    config, switches = parsed["push"], parsed["switches"]
    check_input(config.source, "run or delta")
    from smidgen.hub.push import pack, push

    if switches.dry_run:
        with quiet_stdout():
            parcel = pack(config)
        facts = parcel.facts()
        lines = [f"{name}: {size:,} bytes" for name, size in facts["files"].items()]
        card = str(parcel.card)
        for warning in facts["warnings"]:
            log(warning)
        settings = {**dataclasses.asdict(config), "source": str(config.source)}
        document = {"recipe": settings, **facts, "card": card}
        answer(document, [*lines, f"{CARD}:", *card.splitlines()], None, as_json=switches.json)
        return
    with quiet_stdout():
        document = push(config, force=switches.force)
    for warning in document["warnings"]:
        log(warning)
    if document["unchanged"]:
        log(f"{config.repo} held all of this already")
    answer(document, [document["url"]], None, as_json=switches.json)
