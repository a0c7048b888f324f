"""`smidgen serve`: one base and a folder of deltas behind OpenAI's image API."""

from __future__ import annotations

import os
from collections.abc import Sequence

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer_dry_run, log, quiet_stdout
from smidgen.errors import UsageError
from smidgen.models.chosen import BaseOnDevice
from smidgen.serving.config import API_KEY, ServeConfig

DESCRIPTION = """Serve images of a base and of all deltas in a folder, several of them in one batch.

examples:
  smidgen serve --base glyphs --deltas runs/
  smidgen serve --base glyphs-text --deltas runs/ --studies docs/studies --port 9000
  smidgen serve --base glyphs --deltas runs/ --ray local --replicas 2
  curl http://127.0.0.1:8000/v1/images/generations -H "Content-Type: application/json" \\
      -d '{"model": "demo", "prompt": "alpha", "steps": 20, "sampler": "dpm++"}'"""


def run(argv: Sequence[str]) -> None:
    """Parse, check, load, and answer until told to stop."""
    parsed = parse(
        read_request("serve", argv),
        {"base": BaseOnDevice, "serving": ServeConfig},
        switches=Switches,
        description=DESCRIPTION,
    )
    base_options, config, switches = parsed["base"], parsed["serving"], parsed["switches"]
    key = os.environ.get(API_KEY)
    config.check_key(key)
    if not config.deltas.is_dir():
        raise UsageError(f"deltas is {config.deltas}; expected a folder of deltas")
    if switches.dry_run:
        answer_dry_run([base_options, config], {}, as_json=switches.json)
        return
    from smidgen.serving.run import serve

    with quiet_stdout():
        serve(base_options, config, key, log)
