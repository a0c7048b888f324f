"""The memory estimate of a training against the measured peak: python bench/memory_estimate.py

Each case trains a few steps on random latents in a process of its own, which first trains a tiny
network so that libraries and their buffers are loaded. Measured is what the resident memory then
grows to at its peak, weights included; the whole process is given beside it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

CASES = (
    ("glyphs", 64, "difffit", False),
    ("glyphs", 64, "difffit", True),
    ("glyphs", 64, "bitfit", False),
    ("glyphs", 64, "full", False),
    ("DiT-S/2", 8, "difffit", False),
    ("DiT-S/2", 8, "difffit", True),
    ("DiT-S/2", 8, "full", False),
    ("DiT-S/2", 32, "difffit", False),
    ("DiT-S/2", 8, "difffit", False, "bf16"),
    ("DiT-S/2", 8, "difffit", True, "bf16"),
)
NUM_CLASSES = 48
STEPS = 3
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training."""

    network: str
    batch_size: int
    method: str
    checkpointing: bool
    base_precision: str = "fp32"


def measure(case: Case) -> dict[str, float]:
    """Estimate and measured growth of one case in MB; to be run in a fresh process."""
    from smidgen.models.dit import DiTConfig, preset
    from smidgen.training.config import TrainingConfig
    from smidgen.training.memory import estimate_memory

    tiny = DiTConfig(image_size=4, width=32, depth=2, num_heads=2, num_classes=2)
    train(tiny, TrainingConfig(steps=1, batch_size=4, trackers=(), validation_share=0), "difffit")
    if case.network == "glyphs":
        config = DiTConfig(image_size=8, width=192, depth=8, num_heads=3, num_classes=62)
    else:
        config = preset(case.network)
    settings = TrainingConfig(
        steps=STEPS,
        batch_size=case.batch_size,
        gradient_checkpointing=case.checkpointing,
        trackers=(),
    )
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    base, delta = train(config, settings, case.method, case.base_precision)
    peak = status("VmHWM")
    return {
        "estimate": estimate_memory(base.denoiser, delta, settings).total / MEGABYTE,
        "measured": (peak - before) / MEGABYTE,
        "process": peak / MEGABYTE,
    }


def train(config, settings, method, base_precision="fp32"):
    """A training of a random network on random latents; returns base and delta."""
    import torch

    from smidgen.core.storage import narrow
    from smidgen.data.latents import LatentSet
    from smidgen.diffusion.process import Diffusion
    from smidgen.diffusion.schedule import Schedule
    from smidgen.hosts.host import find_host
    from smidgen.methods import configure
    from smidgen.methods.build import build_delta
    from smidgen.models.base import Base, base_fingerprint
    from smidgen.models.calling import DTYPES
    from smidgen.models.dit import DiT
    from smidgen.sizes import ImageSize, Sides
    from smidgen.training.loop import train_delta

    denoiser = DiT(config).requires_grad_(False).eval()
    if base_precision != "fp32":
        narrow(denoiser, DTYPES[base_precision])
    base = Base(
        name="random",
        denoiser=denoiser,
        codec=SimpleNamespace(fingerprint="none"),  # latents are given
        class_names=tuple(map(str, range(config.num_classes))),
        process=Diffusion(schedule=Schedule.linear()),
        host=find_host(denoiser),
        fingerprint=base_fingerprint(denoiser),
        image_size=ImageSize.of(config.image_size),
        sides=Sides(multiple=config.patch_size, step=config.patch_size, square=True),
    )
    classes = [f"class {number}" for number in range(NUM_CLASSES)]
    generator = torch.Generator().manual_seed(0)
    delta = build_delta(method, base, configure(method), classes, generator)
    shape = (2 * NUM_CLASSES, 1, config.in_channels, config.image_size, config.image_size)
    latents = LatentSet(
        mean=torch.randn(shape),
        std=torch.full(shape, 0.1),
        class_numbers=torch.arange(len(range(shape[0]))) % NUM_CLASSES,
        names=tuple(map(str, range(shape[0]))),
    )
    with tempfile.TemporaryDirectory() as folder:
        train_delta(base, delta, latents, settings, Path(folder))
    return base, delta


def resident() -> int:
    """Bytes of this process in memory now."""
    return status("VmRSS")


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def main() -> None:
    """Print one line a case; --json for a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)))))
        return
    rows = []
    for network, batch_size, method, checkpointing in CASES:
        case = {
            "network": network,
            "batch_size": batch_size,
            "method": method,
            "checkpointing": checkpointing,
        }
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        row = case | json.loads(result.stdout.splitlines()[-1])
        rows.append(row | {"ratio": row["estimate"] / row["measured"]})
        if not arguments.json:
            print(
                f"{network:8} B={batch_size:<3} {method:8} "
                f"{'checkpointed' if checkpointing else '':13}"
                f"estimate {row['estimate']:7.0f} MB   measured {row['measured']:7.0f} MB   "
                f"ratio {rows[-1]['ratio']:.2f}   (whole process {row['process']:.0f} MB)",
                flush=True,
            )
    if arguments.json:
        header = {
            "command": "python bench/memory_estimate.py --json",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "torch": version("torch"),
            "unit": "MB",
        }
        print(json.dumps(header | {"cases": rows}, indent=2))


if __name__ == "__main__":
    main()
