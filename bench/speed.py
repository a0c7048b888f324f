"""Speed beside peers and beside the bound of this machine: python bench/speed.py [--only NAME ...]

Each case lets all its rows take turns, round after round, so that what else the machine does hits
all alike. A row is the median of its ratio to the first row of the case, with quartiles. The floor
of a case is what the frozen products, forward and for the input gradient, and attention take alone.
Writes bench/results/speed.json after each case and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.plain_dit import PlainDiT
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.fast.acting import acting
from smidgen.fast.eight_bit import has_int8
from smidgen.fast.names import FrozenPrecision
from smidgen.files.writing import write_json, write_text
from smidgen.hosts.host import find_host
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT, DiTConfig
from smidgen.training.activations import Packed, bears_it, one_byte_kept
from smidgen.training.network import checkpointing
from smidgen.training.precision import has_amx

RESULTS, PAGE = Path("bench/results/speed.json"), Path("docs/benchmarks.md")
ROUNDS = 5
CLASSES = 20
REDUCED = ("8-bit backward", "8-bit both ways", "bf16")  # need instructions that few CPUs have
Row = Callable[[], float]
Rows = dict[str, Row]


@dataclass(frozen=True)
class Shape:
    """A DiT of 2 x 2 patches, and the images of a step."""

    width: int
    depth: int
    heads: int
    batch: int
    size: int = 32

    @property
    def config(self) -> DiTConfig:
        return DiTConfig(
            image_size=self.size,
            width=self.width,
            depth=self.depth,
            num_heads=self.heads,
            num_classes=CLASSES,
        )

    @property
    def tokens(self) -> int:
        return (self.size // 2) ** 2


SHAPES = {
    "DiT-S/2": Shape(384, 12, 6, 8),
    "DiT-B/2": Shape(768, 12, 12, 4),
    "XL width, 4 blocks": Shape(1152, 4, 16, 4),
    "glyphs": Shape(192, 8, 3, 64, size=8),
    "glyphs-64": Shape(192, 8, 3, 64, size=16),
}


def lively(network: nn.Module, seed: int = 0) -> Any:
    """Random weights, so that no zero gate makes gradients 0, which some kernels are fast at."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def delta_of(network: DiT, method: str, **options: Any) -> Delta:
    """A delta of `method` in `network`, a little off its start."""
    base: Any = SimpleNamespace(
        denoiser=network,
        host=find_host(network),
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        name="bench",
        fingerprint="sketch1:none",
    )
    random = torch.Generator().manual_seed(0)
    delta = build_delta(method, base, configure(method, options), base.class_names, random)
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=random))
    return delta


def batch_of(shape: Shape, images: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    images = images or shape.batch
    random = torch.Generator().manual_seed(1)
    x = torch.randn(images, 4, shape.size, shape.size, generator=random)
    return x, torch.linspace(0, 999, images), torch.arange(images) % CLASSES


def step(
    call: Callable[..., Tensor],
    parameters: list[nn.Parameter],
    batch: Any,
    *,
    reduced: bool = False,
) -> Row:
    """Forward, under autocast to bf16 if `reduced`, backward, and AdamW as PyTorch has it by
    default.
    """
    optimizer = torch.optim.AdamW(parameters, lr=1e-9)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            output = call(*batch)
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(run)


def no_grad(call: Callable[..., Tensor], batch: Any) -> Row:
    @torch.no_grad()
    def run() -> None:
        call(*batch)

    return timed(run)


def floor(shape: Shape) -> Row:
    """The products of frozen linears, both ways, and attention, both ways, of all blocks."""
    width, rows = shape.width, shape.batch * shape.tokens
    sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    linears = [
        (torch.randn(rows, a), torch.randn(b, a), torch.randn(b), torch.randn(rows, b))
        for a, b in sizes
    ]
    heads = (shape.batch, shape.tokens, 3, shape.heads, width // shape.heads)
    q, k, v = torch.randn(heads).permute(2, 0, 3, 1, 4).unbind(0)
    q, k, v = qkv = [each.detach().requires_grad_() for each in (q, k, v)]

    def run() -> None:
        for _ in range(shape.depth):
            for h, weight, bias, dy in linears:
                torch.addmm(bias, h, weight.T)
                torch.mm(dy, weight)
            output = functional.scaled_dot_product_attention(q, k, v)
            torch.autograd.grad(output, qkv, output.detach())

    return timed(run)


def plain(shape: Shape, *, difffit: bool) -> PlainDiT:
    sizes = (shape.size, shape.width, shape.depth, shape.heads, CLASSES)
    return lively(PlainDiT(*sizes, difffit=difffit))


def own(shape: Shape) -> DiT:
    return lively(DiT(shape.config)).requires_grad_(False)


def timed(run: Callable[[], object]) -> Row:
    """The seconds that `run` takes."""

    def row() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return row


def with_delta(
    network: nn.Module,
    delta: Delta | Bank | None,
    run: Row,
    *,
    fast: bool,
    frozen_precision: FrozenPrecision = "exact",
) -> Row:
    """`run` while the delta acts in the network: attaching is not timed."""

    def row() -> float:
        with acting(delta, network, fast=fast, frozen_precision=frozen_precision):
            return run()

    return row


def steps_of(name: str) -> Rows:
    """A training step, each method by hooks and on the fast path."""
    shape = SHAPES[name]
    batch, network = batch_of(shape), own(shape)
    full, naive = plain(shape, difffit=False), plain(shape, difffit=True)
    rows: Rows = {
        "full, plain PyTorch": step(full, trained(full), batch),
        "the floor": floor(shape),
        "DiffFit, plain PyTorch": step(naive, trained(naive), batch),
    }
    for method in ("difffit", "bitfit", "lora", "vpt", "adaptformer", "full"):
        options = {"targets": ("qkv", "o", "ff1", "ff2")} if method == "lora" else {}
        delta = delta_of(network, method, **options)
        run = step(network, list(delta.parameters()), batch)
        rows[f"{method}, hooks"] = with_delta(network, delta, run, fast=False)
        rows[f"{method}, fast"] = with_delta(network, delta, run, fast=True)
        if method == "difffit":
            rows |= reduced_rows(network, delta, batch)
    delta = delta_of(network, "difffit")
    run = step(kept_in_bytes(network, delta), list(delta.parameters()), batch)
    rows["difffit, fast, activations 8bit"] = with_delta(network, delta, run, fast=True)
    run = step(network, list(delta.parameters()), batch)
    rows["difffit, fast, blocks recomputed"] = recomputing(
        network, with_delta(network, delta, run, fast=True)
    )
    if lora := peft_lora(shape):
        rows["LoRA, PEFT"] = step(lora, trained(lora), batch)
    return rows


def kept_in_bytes(network: DiT, delta: Delta) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        with one_byte_kept(network, delta):
            return network(*inputs)

    return call


def recomputing(network: DiT, run: Row) -> Row:
    """`run` with gradient checkpointing."""

    def row() -> float:
        with checkpointing(network, True):
            return run()

    return row


def reduced_rows(network: DiT, delta: Delta, batch: Any) -> Rows:
    """DiffFit's step in fewer bits, where the processor has instructions for them."""
    names: dict[str, FrozenPrecision] = {"backward": "8bit-backward", "both ways": "8bit"}
    parameters, rows = list(delta.parameters()), {}
    for name, precision in names.items() if has_int8() else ():
        run = step(network, parameters, batch)
        rows[f"difffit, fast, 8-bit {name}"] = with_delta(
            network, delta, run, fast=True, frozen_precision=precision
        )
    if has_amx():
        run = step(network, parameters, batch, reduced=True)
        rows["difffit, fast, bf16"] = with_delta(network, delta, run, fast=True)
    return rows


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def peft_lora(shape: Shape) -> nn.Module | None:
    """PEFT's LoRA of rank 8 on the same four linears, None where PEFT is not installed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        return None
    wanted = LoraConfig(r=8, target_modules=["qkv", "proj", "mlp.0", "mlp.2"])
    return inject_adapter_in_model(wanted, plain(shape, difffit=False).requires_grad_(False))


def forwards_of(name: str, images: int) -> Rows:
    """A forward pass of so many images, each guided, as sampling calls it."""
    shape = SHAPES[name]
    network, reference, batch = own(shape), plain(shape, difffit=False), batch_of(shape, 2 * images)
    delta, run = delta_of(network, "difffit"), no_grad(network, batch)
    return {
        "plain PyTorch": no_grad(reference, batch),
        "base": with_delta(network, None, run, fast=True),
        "DiffFit, hooks": with_delta(network, delta, run, fast=False),
        "DiffFit, fast": with_delta(network, delta, run, fast=True),
    }


def mixed_of(name: str) -> Rows:
    """A guided forward pass of 16 images, each with another one of 64 deltas."""
    shape = SHAPES[name]
    network = own(shape)
    deltas = [delta_of(network, "difffit") for _ in range(64)]
    bank = Bank(deltas)
    bank.choose(torch.arange(0, 64, 4))
    run = no_grad(network, batch_of(shape, 32))
    acts = {"one delta": deltas[0], "16 of 64 deltas": bank}
    return {
        "base": with_delta(network, None, run, fast=True),
        **{
            f"{what}, {'fast' if fast else 'hooks'}": with_delta(network, delta, run, fast=fast)
            for what, delta in acts.items()
            for fast in (False, True)
        },
    }


CASES: Mapping[str, Callable[[], Rows]] = {
    **{f"a training step of {name}": partial(steps_of, name) for name in SHAPES},
    **{
        f"{words} of {name}": partial(forwards_of, name, images)
        for name in list(SHAPES)[:3]
        for images, words in ((1, "one guided image"), (4, "four guided images"))
    },
    "sixteen guided images of DiT-S/2": partial(mixed_of, "DiT-S/2"),
}


def measured(rows: Rows, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds, and the ratio to the first row of the same round: median and quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, row in rows.items():
            seconds[name].append(row())
    warm = {name: np.array(values[1:]) for name, values in seconds.items()}
    first = next(iter(warm.values()))
    found = {}
    for name, values in warm.items():
        low, middle, high = np.quantile(values / first, (0.25, 0.5, 0.75))
        found[name] = {
            "seconds": round(float(np.median(values)), 5),
            "ratio": round(float(middle), 3),
            "quartiles": [round(float(low), 3), round(float(high), 3)],
        }
    return found


def kept(shape: Shape) -> dict[str, float]:
    """Bytes that a forward pass keeps for the backward pass, in units of (B, N, D) a block."""
    batch, network, full = batch_of(shape), own(shape), plain(shape, difffit=False)
    delta = delta_of(network, "difffit")
    unit = batch[0].element_size() * shape.batch * shape.tokens * shape.width * shape.depth
    found = {"full, plain PyTorch": saved_bytes(full, batch, full) / unit}
    for fast in (False, True):
        with acting(delta, network, fast=fast):
            own_bytes = saved_bytes(network, batch, network, delta)
            in_bytes = saved_bytes(network, batch, network, delta, heads=shape.heads)
        name = "DiffFit, fast" if fast else "DiffFit, hooks"
        found |= {name: own_bytes / unit, f"{name}, activations 8bit": in_bytes / unit}
    return {name: round(value, 2) for name, value in found.items()}


def saved_bytes(
    call: Callable[..., Tensor], batch: Any, *known: nn.Module, heads: int | None = None
) -> int:
    """Of all tensors that autograd keeps and that are no parameters of `known`; with `heads`, those
    of the network's attention, as they are with activations in 8 bit.
    """
    weights = {p.untyped_storage().data_ptr() for module in known for p in module.parameters()}
    seen: dict[object, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place: object = storage.data_ptr()
        if place in weights:
            return tensor
        alive.append(tensor)
        if heads is not None and bears_it(tensor, heads):
            place = (place, tensor.storage_offset(), tensor.shape, tensor.stride())
            seen[place] = Packed.of(tensor).nbytes
        else:
            seen[place] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call(*batch)
    return sum(seen.values())


def header() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ", 1)[1] for line in lines if "model name" in line), "")
    packages = ("torch", "numpy", "peft")
    return {
        "command": "python -m bench.speed",
        "machine": f"{processor}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "seed": 0,
    }


def write_page(document: Mapping[str, Any]) -> None:
    """docs/benchmarks.md, from the results alone."""
    lines = [
        "# Benchmarks",
        "",
        f"`{document['command']}` made this page and [{RESULTS.name}](../{RESULTS}) "
        f"({document['machine']}; torch {document['versions']['torch']}; float32, random "
        "weights, seed 0). All rows of a table take turns, round after round; a ratio is to the "
        "first row of the same round, its median with quartiles. *Plain PyTorch* is the network as "
        "its paper describes it ([bench/plain_dit.py](../bench/plain_dit.py)), trained with "
        "PyTorch's default AdamW. *The floor* is what the products with frozen weights, forward "
        "and for the input's gradient, and attention both ways take alone. GPUs were not measured "
        "yet.",
    ]
    for name, case in document["cases"].items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        if name.startswith("a training step"):
            missing = [row for row in REDUCED if not any(row in one for one in case["rows"])]
            lines += [f"Not measured: {', '.join(missing)}.", ""] if missing else []
        lines += [
            f"{case['threads']} threads, {case['rounds']} rounds, {case['date']}.",
            "",
            "| | milliseconds | ratio | quartiles |",
            "|---|---|---|---|",
        ]
        for row, found in case["rows"].items():
            low, high = found["quartiles"]
            cells = f"{1000 * found['seconds']:.1f} | {found['ratio']:.2f} | {low:.2f}-{high:.2f}"
            lines.append(f"| {row} | {cells} |")
        if "kept" in case:
            full = case["kept"]["full, plain PyTorch"]
            words = [
                f"{row} {units:g} ({units / full:.2f} of full)"
                for row, units in case["kept"].items()
            ]
            lines += [
                "",
                f"Kept for the backward pass, in units of (B, N, D) a block: {'; '.join(words)}.",
            ]
    write_text("\n".join(lines) + "\n", PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name has these words")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document = {"cases": {}} | (json.loads(RESULTS.read_text()) if RESULTS.exists() else {})
    document |= header()
    for name, make in CASES.items():
        if not all(word in name for word in arguments.only):
            continue
        case = {
            "date": date.today().isoformat(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "rows": measured(make(), arguments.rounds),
        }
        shape = SHAPES[name.rsplit(" of ", 1)[1]]
        if name.startswith("a training step"):
            case["kept"] = kept(shape)
        print(json.dumps({name: case}), flush=True)
        document["cases"][name] = case
        write_json(document, RESULTS)
    write_page(document)


if __name__ == "__main__":
    main()
