"""The memory estimate of a training against the measured peak: python bench/memory_estimate.py

Each case trains a few steps on random latents in a process of its own, which first trains a tiny
network so that libraries and their buffers are loaded. Measured is what the resident memory then
grows to at its peak, weights included; the whole process is given beside it. glibc's heap gets
holes between tensors, other ones from run to run; MALLOC_MMAP_THRESHOLD_=1048576 in the environment
takes larger tensors out of it, at about half more processor time. Linux only.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NUM_CLASSES = 48
STEPS = 3
MEGABYTE = 1e6
SMALL_UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 4,
    "block_out_channels": [64, 128, 192],
    "cross_attention_dim": 128,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "sample_size": 16,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training; `latent_side` None: of the latents that the network was trained on."""

    network: str
    batch_size: int
    method: str
    checkpointing: bool = False
    base_precision: str = "fp32"
    latent_side: int | None = None

    def __str__(self) -> str:
        side = "" if self.latent_side is None else f" {self.latent_side}x{self.latent_side}"
        how = f"{self.base_precision}{' checkpointed' if self.checkpointing else ''}"
        return f"{self.network + side:13} B={self.batch_size:<3} {self.method:8} {how:18}"


CASES = (
    Case(network="glyphs", batch_size=64, method="difffit"),
    Case(network="glyphs", batch_size=64, method="difffit", checkpointing=True),
    Case(network="glyphs", batch_size=64, method="bitfit"),
    Case(network="glyphs", batch_size=64, method="full"),
    Case(network="DiT-S/2", batch_size=8, method="difffit"),
    Case(network="DiT-S/2", batch_size=8, method="difffit", checkpointing=True),
    Case(network="DiT-S/2", batch_size=8, method="full"),
    Case(network="DiT-S/2", batch_size=32, method="difffit"),
    Case(network="DiT-S/2", batch_size=8, method="difffit", base_precision="bf16"),
    Case(
        network="DiT-S/2",
        batch_size=8,
        method="difffit",
        checkpointing=True,
        base_precision="bf16",
    ),
    Case(network="DiT-S/2", batch_size=8, method="lora", base_precision="int8"),
    Case(network="small UNet", batch_size=64, method="lora", latent_side=16),
    Case(network="small UNet", batch_size=64, method="full", latent_side=16),
    Case(network="small UNet", batch_size=64, method="lora", latent_side=16, checkpointing=True),
    Case(network="sd-1.5", batch_size=1, method="lora", latent_side=32),
    Case(network="sd-1.5", batch_size=1, method="lora", latent_side=32, base_precision="bf16"),
    Case(
        network="sd-1.5",
        batch_size=1,
        method="adapter",
        latent_side=32,
        checkpointing=True,
        base_precision="bf16",
    ),
)


def measure(case: Case) -> dict[str, float]:
    """Estimate and measured growth of one case in MB; to be run in a fresh process."""
    from smidgen.models.architectures import build_meta
    from smidgen.training.memory import estimate_memory

    if case.network in ("small UNet", "sd-1.5"):  # diffusers has their blocks
        build_meta(SMALL_UNET)
    train(Case(network="tiny", batch_size=4, method="difffit"), steps=1)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    base, delta, settings, example = train(case, steps=STEPS)
    peak = status("VmHWM")
    estimate = estimate_memory(base.denoiser, delta, settings, example)
    return {
        "estimate": estimate.total / MEGABYTE,
        "measured": (peak - before) / MEGABYTE,
        "process": peak / MEGABYTE,
    }


def measured_apart(case: Case) -> dict[str, float]:
    """`measure` in a process of its own, of one thread."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def network_of(case: Case) -> Any:
    """The network of a case with random weights, in the precision in which they are kept."""
    import torch

    from smidgen.core.storage import keep, quantise
    from smidgen.models.architectures import build_meta, meta_network
    from smidgen.models.calling import DTYPES
    from smidgen.models.dit import DiT, DiTConfig

    stored = DTYPES.get(case.base_precision, torch.float32)
    if case.network == "tiny":
        config = DiTConfig(image_size=4, width=32, depth=2, num_heads=2, num_classes=2)
        with torch.device("meta"):
            network = DiT(config)
    elif case.network == "small UNet":
        network = build_meta(SMALL_UNET)
    else:
        network = meta_network(case.network)
    # no wide copy is ever there, as where files are read
    network = network.to(stored).to_empty(device="cpu").requires_grad_(False).eval()
    for tensor in (*network.parameters(), *network.buffers()):
        torch.nn.init.normal_(tensor, std=0.02)
    if stored != torch.float32:
        for buffer in network.buffers():
            buffer.data = buffer.data.float()
        keep(network, torch.float32)
    if case.base_precision == "int8":
        quantise(network)
    return network


def train(case: Case, steps: int) -> tuple[Any, Any, Any, Any]:
    """A training of a random network on random latents: base, delta, settings and example."""
    import torch

    from smidgen.data.latents import LatentSet
    from smidgen.hosts.host import find_host
    from smidgen.methods import configure
    from smidgen.methods.build import build_delta
    from smidgen.models.base import Base, base_fingerprint
    from smidgen.models.labels import Labels, labels_of
    from smidgen.sizes import ImageSize, Sides
    from smidgen.training.config import TrainingConfig
    from smidgen.training.example import example_of
    from smidgen.training.loop import train_delta
    from smidgen.training.objective import Task

    network = network_of(case)
    example = example_of(network)
    channels, side, _ = example.latent_shape
    side = case.latent_side or side
    example = replace(example, latent_shape=(channels, side, side))
    host = find_host(network)
    names = [f"class {number}" for number in range(NUM_CLASSES)] if host.has_labels else []
    base = Base(
        name="random",
        denoiser=network,
        codec=SimpleNamespace(fingerprint="none"),  # latents are given
        class_names=tuple(map(str, range(network.config.num_classes))) if names else (),
        process=example.task.process,
        host=host,
        fingerprint=base_fingerprint(network),
        image_size=ImageSize.of(side),
        sides=Sides(multiple=1, step=1),
    )
    generator = torch.Generator().manual_seed(0)
    delta = build_delta(case.method, base, configure(case.method), names, generator)
    if names:
        labels = labels_of(base, delta)
    else:  # a random text, whatever is asked for
        texts = {name: torch.randn(1, *shape) for name, shape in example.condition.items()}

        def conditions(labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: text.repeat_interleave(len(labels), 0) for name, text in texts.items()}

        labels = Labels(names=("something",), conditions=conditions)
    shape = (2 * NUM_CLASSES, 1, channels, side, side)
    latents = LatentSet(
        mean=torch.randn(shape),
        std=torch.full(shape, 0.1),
        class_numbers=torch.arange(shape[0]) % (NUM_CLASSES if names else 1),
        names=tuple(map(str, range(shape[0]))),
    )
    settings = TrainingConfig(
        steps=steps,
        batch_size=case.batch_size,
        lr=1e-4,
        gradient_checkpointing=case.checkpointing,
        trackers=(),
        # a base of this size has few images, and validation is no part of what is estimated
        validation_share=0.1 if names else 0.0,
    )
    task = Task(process=base.process, labels=labels)
    with tempfile.TemporaryDirectory() as folder:
        train_delta(base, delta, latents, settings, Path(folder), task=task)
    return base, delta, settings, example


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
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each measures a process of its own
        for case, found in zip(CASES, pool.map(measured_apart, CASES), strict=True):
            rows.append(asdict(case) | found | {"ratio": found["estimate"] / found["measured"]})
            print(
                f"{case} estimate {found['estimate']:7.0f} MB   measured "
                f"{found['measured']:7.0f} MB   ratio {rows[-1]['ratio']:.2f}   "
                f"(whole process {found['process']:.0f} MB)",
                file=sys.stderr if arguments.json else sys.stdout,
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
