"""How long commands take to start, for bench/speed.py: a new process each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from bench.rows import Row, Rows, timed

COMMANDS = {
    "import torch": ("-c", "import torch"),
    "import diffusers": ("-c", "import diffusers"),
    "import smidgen": ("-c", "import smidgen"),
    "smidgen --help": ("-m", "smidgen.cli", "--help"),
    "smidgen train --help": ("-m", "smidgen.cli", "train", "--help"),
    "smidgen inspect glyphs": ("-m", "smidgen.cli", "inspect", "glyphs"),
    'load_base("glyphs")': ("-c", "import smidgen; smidgen.load_base('glyphs')"),
}


def start_ups() -> Rows:
    """Each command, to its end."""
    return {name: _process(command) for name, command in COMMANDS.items()}


def _process(command: Sequence[str]) -> Row:
    def run() -> None:
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    return timed(run)
