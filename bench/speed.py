"""Speed beside peers and beside the bound of this machine: python -m bench.speed [--only NAME ...]

Each case lets all its rows take turns, round after round, so that what else the machine does hits
all alike. A row is the median of its ratio to the first row of the case, with quartiles. The floor
of a case is what the frozen products, forward and for the input gradient, and attention take alone.
Writes bench/results/speed.json after each case, whose other cases it keeps, and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import (
    gpu_rows,
    optimizer_rows,
    own_process,
    sampling_rows,
    step_profile,
    training_rows,
    unet_rows,
)
from bench.rows import SHAPES, Case, measured
from bench.speed_page import write_page
from bench.start_up import start_ups
from smidgen.files.writing import write_json

RESULTS, PAGE = Path("bench/results/speed.json"), Path("docs/benchmarks.md")
ROUNDS = 5
COUNTS = {1: "one guided image", 4: "four guided images"}

CASES: Mapping[str, Case] = {
    **{
        f"a training step of {name}": Case(
            partial(training_rows.steps_of, name), partial(training_rows.kept, name)
        )
        for name in SHAPES
    },
    **{
        f"where the time of a training step of {name} goes": Case(
            partial(step_profile.steps_of, name), spent=step_profile.spent
        )
        for name in ("DiT-S/2", "DiT-B/2", "glyphs")
    },
    **{
        f"a training step of {name}, each in its own process": Case(
            partial(own_process.apart, name, None), asked=True
        )
        for name in ("DiT-S/2", "glyphs")
    },
    "a compiled training step of DiT-S/2": Case(
        partial(training_rows.compiled_of, "DiT-S/2"), asked=True
    ),
    "a training step of DiT-S/2 by AdamW in 32 and in 8 bit": Case(
        partial(optimizer_rows.steps_of, "DiT-S/2"),
        state=partial(optimizer_rows.state, "DiT-S/2"),
        unit="MB",
    ),
    "a training step of eight domains of DiT-S/2": Case(
        partial(training_rows.domains_of, "DiT-S/2")
    ),
    "a training step of the UNet of glyphs-text": Case(
        partial(unet_rows.steps_of, "glyphs-text"),
        partial(unet_rows.kept, "glyphs-text"),
        partial(unet_rows.held, "glyphs-text"),
        unit="MB",
    ),
    **{
        f"{words} of {name}": Case(partial(sampling_rows.forwards_of, name, images))
        for name in list(SHAPES)[:3]
        for images, words in COUNTS.items()
    },
    **{
        f"{words} of {name}, each in its own process": Case(
            partial(own_process.apart, name, images), asked=True
        )
        for name, images, words in (
            *(("DiT-S/2", *count) for count in COUNTS.items()),
            ("glyphs", 64, "64 guided images"),
        )
    },
    "four guided images with a delta of DiT-S/2": Case(partial(sampling_rows.deltas_of, "DiT-S/2")),
    "sixteen guided images of DiT-S/2": Case(partial(sampling_rows.mixed_of, "DiT-S/2")),
    **{
        f"{sampling_rows.STEPS} steps of {words} of DiT-S/2": Case(
            partial(sampling_rows.samplings_of, "DiT-S/2", images)
        )
        for images, words in COUNTS.items()
    },
    **{
        f"where the time of {words} of DiT-S/2 goes": Case(
            partial(step_profile.forwards_of, "DiT-S/2", images), spent=step_profile.spent
        )
        for images, words in COUNTS.items()
    },
    "start-up": Case(start_ups),
}
ON_A_GPU: Mapping[str, Case] = {
    "a training step of DiT-XL/2 on a GPU": Case(
        gpu_rows.steps_of, peak=gpu_rows.peaks, unit="GiB"
    ),
    f"{gpu_rows.STEPS} steps of {gpu_rows.IMAGES} guided images of DiT-XL/2 on a GPU": Case(
        gpu_rows.samplings_of
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="WORDS",
        help="cases that have one of these in their name; also those that compile or start "
        "processes, which take minutes and are left out otherwise",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gpu", action="store_true", help="the cases of a CUDA device instead")
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    cases = ON_A_GPU if arguments.gpu else CASES
    torch.set_num_threads(arguments.threads)
    document = header() | {"cases": {}}
    if RESULTS.exists():
        document |= json.loads(RESULTS.read_text())
    for case in document["cases"].values():
        case.setdefault("machine", document["machine"])
    for name in () if arguments.page else wanted(cases, arguments.only):
        case = cases[name]
        rows = case.make()
        found = {
            "date": date.today().isoformat(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "machine": torch.cuda.get_device_name() if arguments.gpu else machine(),
            "rows": measured(rows, arguments.rounds),
        }
        amounts = {"kept": case.kept, "held": case.held, "peak": case.peak, "state": case.state}
        found |= {what: count() for what, count in amounts.items() if count is not None}
        found |= {"unit": case.unit}
        found |= {} if case.spent is None else {"spent": case.spent(rows)}
        print(json.dumps({name: found}), flush=True)
        document |= header()
        document["cases"][name] = found
        document["cases"] = in_order(document["cases"])
        write_json(document, RESULTS)
    write_page(document, [*CASES, *ON_A_GPU], RESULTS, PAGE)


def wanted(cases: Mapping[str, Case], words: Sequence[str]) -> list[str]:
    """The names of the cases to be measured."""
    if not words:
        return [name for name, case in cases.items() if not case.asked]
    return [name for name in cases if any(word in name for word in words)]


def in_order(cases: Mapping[str, Any]) -> dict[str, Any]:
    """As they stand above; what is there no more, last."""
    return {name: cases[name] for name in (*CASES, *ON_A_GPU, *cases) if name in cases}


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ", 1)[1] for line in lines if "model name" in line), "")
    return f"{processor}, {os.cpu_count()} cores"


def header() -> dict[str, Any]:
    packages = ("torch", "numpy", "peft", "diffusers")
    return {
        "command": "python -m bench.speed",
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "seed": 0,
    }


if __name__ == "__main__":
    main()
