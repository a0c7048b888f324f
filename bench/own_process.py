"""Rows of bench/speed.py that have a process of their own, as a user's program has: what one does
with its memory is not the other's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

from bench.rows import Rows
from bench.step_profile import forwards_of, steps_of
from smidgen.allocator import keep_freed_memory

WARM, TIMES = 1, 3
KEEPING = ", freed memory kept"
STEPS = ("full, plain PyTorch", "DiffFit, plain PyTorch")
FORWARDS = ("plain PyTorch",)
OWN: Mapping[str, str] = {  # of smidgen, whose `load_base` keeps what is freed
    "difffit, fast, AdamW as trained": "smidgen, DiffFit",
    "base": "smidgen, base",
    "DiffFit, fast": "smidgen, DiffFit",
}


def apart(shape: str, images: int | None) -> Rows:
    """A training step, or a forward pass of so many guided images: plain PyTorch as it is and with
    freed memory kept, and smidgen.
    """
    plain = FORWARDS if images else STEPS
    own = ("base", "DiffFit, fast") if images else ("difffit, fast, AdamW as trained",)
    rows: Rows = {}
    for name in plain:
        rows[name] = partial(seconds, shape, images, name, keep=False)
        rows[name + KEEPING] = partial(seconds, shape, images, name, keep=True)
    return rows | {OWN[name]: partial(seconds, shape, images, name, keep=True) for name in own}


def seconds(shape: str, images: int | None, row: str, *, keep: bool) -> float:
    """The median of some, after some that are not counted."""
    command = [sys.executable, "-m", "bench.own_process", shape, row]
    command += [] if images is None else ["--images", str(images)]
    command += ["--keep"] if keep else []
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("row")
    parser.add_argument("--images", type=int)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    if arguments.keep:
        keep_freed_memory()
    shape, images = arguments.shape, arguments.images
    row = (forwards_of(shape, images) if images else steps_of(shape))[arguments.row]
    print(statistics.median([row() for _ in range(WARM + TIMES)][WARM:]))


if __name__ == "__main__":
    main()
