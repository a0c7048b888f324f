"""The memory estimate of a training against the measured peak: python -m bench.memory_estimate

Each case trains a few steps on random latents in a process of its own. Measured is the peak of what
PyTorch's allocator has given out, as its profiler hears of each piece: the same in every run.
`beyond` is how much more the resident memory of the process grows to at its peak, where glibc's
heap gets holes between tensors, oneDNN keeps the kernels that it makes, and a UNet brings the code
of diffusers: other bytes from run to run. The whole process is given beside it. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.memory_cases import CASES, Case, tiny, training_of

MEGABYTE = 1e6


def measure(case: Case) -> dict[str, float]:
    """Estimate and measured bytes of one case in MB; to be run in a fresh process."""
    training_of(tiny(case)).run()  # so that libraries and their buffers are there
    resident, process = growth(case)
    gc.collect()
    with allocations() as built:
        training = training_of(case)
    with allocations() as trained:
        training.run()
    measured = sum(built) + max(accumulate(trained))
    estimate = training.estimate()
    return {
        "estimate": (estimate.total + estimate.offloaded) / MEGABYTE,
        "measured": measured / MEGABYTE,
        "beyond": (resident - measured) / MEGABYTE,
        "process": process / MEGABYTE,
    }


def growth(case: Case) -> tuple[int, int]:
    """By how many bytes this process grows for the training, at its peak, and to how many."""
    gc.collect()
    before = status("VmRSS")
    training = training_of(case)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    training.run()
    peak = status("VmHWM")
    return peak - before, peak


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Afterwards: the bytes of each piece of memory that PyTorch took in the `with`, and, negative,
    of each that it gave back, in their order.
    """
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    found += [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measured_apart(case: Case) -> dict[str, float]:
    """`measure` in a process of its own, of one thread."""
    command = [sys.executable, "-m", "bench.memory_estimate", "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Print one line a case; --json for a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", metavar="WORD", help="cases with this in their line")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return
    rows, cases = [], [case for case in CASES if arguments.only in str(case)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each measures a process of its own
        for case, found in zip(cases, pool.map(measured_apart, cases), strict=True):
            found = {name: round(value, 1) for name, value in found.items()}
            ratio = round(found["estimate"] / found["measured"], 3)
            rows.append({"case": str(case)} | asdict(case) | found | {"ratio": ratio})
            print(
                f"{case!s:55} estimate {found['estimate']:6.0f} MB   measured "
                f"{found['measured']:6.0f} MB   ratio {ratio:.2f}   "
                f"beyond {found['beyond']:5.0f} MB   (whole process {found['process']:.0f} MB)",
                file=sys.stderr if arguments.json else sys.stdout,
                flush=True,
            )
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(platform.libc_ver())}"
        header = {
            "command": "python -m bench.memory_estimate --json",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": machine,
            "torch": version("torch"),
            "measured": "peak of what PyTorch's CPU allocator gave out, by torch.profiler",
            "unit": "MB",
        }
        print(json.dumps(header | {"cases": rows}, indent=2))


if __name__ == "__main__":
    main()
