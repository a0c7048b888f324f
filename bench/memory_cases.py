"""The trainings of bench/memory_estimate.py: random networks on random latents."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from smidgen.core.storage import keep, offload
from smidgen.data.latents import LatentSet
from smidgen.hosts.host import find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.architectures import build_meta, meta_network
from smidgen.models.base import Base, base_fingerprint
from smidgen.models.calling import DTYPES
from smidgen.models.dit import DiT, DiTConfig
from smidgen.models.labels import Labels, labels_of
from smidgen.models.precision import quantise_as
from smidgen.sizes import ImageSize, Sides
from smidgen.training.config import ADAMW_8BIT, Optimizer, TrainingConfig, TrainingPrecision
from smidgen.training.example import Example, example_of
from smidgen.training.loop import train_delta
from smidgen.training.memory import MemoryEstimate, estimate_memory
from smidgen.training.objective import Task

NUM_CLASSES = 16
STEPS = 2  # the moments of AdamW come in the first
TINY_DIT = DiTConfig(image_size=4, width=32, depth=2, num_heads=2, num_classes=2)
SMALL_DIT = DiTConfig(image_size=32, width=384, depth=4, num_heads=6, num_classes=NUM_CLASSES)
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
    """One training; `side` None: of the latents that the network was trained on."""

    network: str
    batch_size: int
    method: str
    side: int | None = None
    base_precision: str = "fp32"
    offload: bool = False
    precision: TrainingPrecision = "fp32"
    checkpointing: bool = False
    activations: Literal["exact", "8bit"] = "exact"
    optimizer: Optimizer = "adamw"

    def __str__(self) -> str:
        side = "" if self.side is None else f" {self.side}x{self.side}"
        ways = {
            f"base {self.base_precision}": self.base_precision != "fp32",
            "offloaded": self.offload,
            self.precision: self.precision != "fp32",
            "checkpointed": self.checkpointing,
            "activations 8bit": self.activations != "exact",
            self.optimizer: self.optimizer != "adamw",
        }
        how = ", ".join(words for words, said in ways.items() if said)
        return f"{self.network + side} B={self.batch_size} {self.method}{how and f' ({how})'}"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `train_delta` is given for a case, made anew."""

    base: Base
    delta: Any
    latents: LatentSet
    config: TrainingConfig
    task: Task
    example: Example

    def run(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_delta(
                self.base, self.delta, self.latents, self.config, Path(folder), task=self.task
            )

    def estimate(self) -> MemoryEstimate:
        return estimate_memory(self.base.denoiser, self.delta, self.config, self.example)


DIT, UNET = {"network": "small DiT", "batch_size": 8}, {"network": "small UNet", "batch_size": 16}
GLYPHS, SD = {"network": "glyphs", "batch_size": 64}, {"network": "sd-1.5", "batch_size": 1}
CASES = (
    Case(**GLYPHS, method="difffit"),
    Case(**GLYPHS, method="full", checkpointing=True),
    Case(**DIT, method="difffit"),
    Case(**DIT, method="difffit", checkpointing=True),
    Case(**DIT, method="difffit", base_precision="bf16"),
    Case(**DIT, method="difffit", base_precision="bf16", checkpointing=True),
    Case(**DIT, method="difffit", precision="bf16"),
    Case(**DIT, method="difffit", activations="8bit"),
    Case(**DIT, method="bitfit", activations="8bit", precision="bf16"),
    Case(**DIT, method="lora", base_precision="int8"),
    Case(**DIT, method="lora", offload=True, checkpointing=True),
    Case(**DIT, method="adaptformer", checkpointing=True),
    Case(**DIT, method="adapter", base_precision="int8", offload=True),
    Case(**DIT, method="vpt"),
    Case(**DIT, method="full"),
    Case(**DIT, method="full", optimizer=ADAMW_8BIT, checkpointing=True),
    Case(**UNET, method="lora"),
    Case(**UNET, method="lora", checkpointing=True),
    Case(**UNET, method="difffit", base_precision="bf16", checkpointing=True),
    Case(**UNET, method="bitfit", precision="bf16"),
    Case(**UNET, method="adapter", base_precision="int8"),
    Case(**UNET, method="full"),
    Case(**UNET, method="full", optimizer=ADAMW_8BIT),
    Case(network="DiT-S/2", batch_size=8, method="difffit"),
    Case(network="DiT-S/2", batch_size=8, method="difffit", checkpointing=True),
    Case(network="DiT-S/2", batch_size=8, method="full"),
    Case(**SD, side=16, method="lora"),
    Case(**SD, side=32, method="adapter", base_precision="bf16", checkpointing=True),
)


def tiny(case: Case) -> Case:
    """A case so small that it takes nothing, with the libraries that this one needs."""
    return replace(
        case, network="tiny DiT", batch_size=4, side=None, method="difffit", offload=False
    )


def network_of(case: Case) -> Any:
    """The network with random weights, in the precision and at the place where they are kept."""
    stored = DTYPES.get(case.base_precision, torch.float32)
    if case.network in ("tiny DiT", "small DiT"):
        with torch.device("meta"):
            network = DiT(TINY_DIT if case.network == "tiny DiT" else SMALL_DIT)
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
    quantise_as(network, case.base_precision)
    if case.offload:
        offload(network, "cpu")
    return network


def training_of(case: Case) -> Training:
    """Everything but the steps."""
    network = network_of(case)
    example = example_of(network)
    channels, side, _ = example.latent_shape
    side = case.side or side
    example = replace(example, latent_shape=(channels, side, side))
    host = find_host(network)
    names = [f"class {number}" for number in range(NUM_CLASSES)] if host.has_labels else []
    base = Base(
        name="random",
        denoiser=network,
        # latents are given: pixels of nothing
        codec=SimpleNamespace(fingerprint="none", factor=1, latent_channels=channels),
        class_names=tuple(map(str, range(network.config.num_classes))) if names else (),
        process=example.task.process,
        host=host,
        fingerprint=base_fingerprint(network),
        image_size=ImageSize.of(side),
        sides=Sides(multiple=1, step=1),
    )
    generator = torch.Generator().manual_seed(0)
    delta = build_delta(case.method, base, configure(case.method), names, generator)
    shape = (max(NUM_CLASSES, case.batch_size), 1, channels, side, side)
    return Training(
        base=base,
        delta=delta,
        example=example,
        task=Task(process=base.process, labels=labels_of(base, delta) if names else texts(example)),
        latents=LatentSet(
            mean=torch.randn(shape),
            std=torch.full(shape, 0.1),
            class_numbers=torch.arange(shape[0]) % (NUM_CLASSES if names else 1),
            names=tuple(map(str, range(shape[0]))),
        ),
        config=TrainingConfig(
            steps=STEPS,
            batch_size=case.batch_size,
            lr=1e-4,
            precision=case.precision,
            gradient_checkpointing=case.checkpointing,
            activations=case.activations,
            optimizer=case.optimizer,
            trackers=(),
            validation_share=0.0,  # no part of what is estimated
        ),
    )


def texts(example: Example) -> Labels:
    """A random text, whatever is asked for."""
    random = {name: torch.randn(1, *shape) for name, shape in example.condition.items()}

    def conditions(labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: text.repeat_interleave(len(labels), 0) for name, text in random.items()}

    return Labels(names=("something",), conditions=conditions)
