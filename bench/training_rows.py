"""Training steps for bench/speed.py: of a DiT by every method, of several domains in one batch, of
compiled code and of a UNet; and the bytes that they keep for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.rows import (
    SHAPES,
    Row,
    Rows,
    Shape,
    batch_of,
    delta_of,
    own,
    plain,
    step,
    timed,
    trained,
    with_delta,
)
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.fast.acting import acting
from smidgen.fast.eight_bit import has_int8
from smidgen.fast.names import FrozenPrecision
from smidgen.models.dit import DiT
from smidgen.training.activations import Packed, bears_it, one_byte_kept
from smidgen.training.compiled import check_compiler, compiling
from smidgen.training.network import checkpointing
from smidgen.training.precision import has_amx

FOUR = ("qkv", "o", "ff1", "ff2")  # the linears of a block, as LoRA's targets
DOMAINS = 8
ATTACHED = ExitStack()  # deltas that stay until the end


def floor(shape: Shape, *, images: int | None = None, backward: bool = True) -> Row:
    """The products of frozen linears and attention of all blocks, both ways or only forward."""
    width, images = shape.width, images or shape.batch
    rows = images * shape.tokens
    sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    linears = [
        (torch.randn(rows, a), torch.randn(b, a), torch.randn(b), torch.randn(rows, b))
        for a, b in sizes
    ]
    heads = (images, shape.tokens, 3, shape.heads, width // shape.heads)
    q, k, v = torch.randn(heads).permute(2, 0, 3, 1, 4).unbind(0)
    q, k, v = qkv = [each.detach().requires_grad_(backward) for each in (q, k, v)]

    def run() -> None:
        for _ in range(shape.depth):
            for h, weight, bias, dy in linears:
                torch.addmm(bias, h, weight.T)
                if backward:
                    torch.mm(dy, weight)
            output = functional.scaled_dot_product_attention(q, k, v)
            if backward:
                torch.autograd.grad(output, qkv, output.detach())

    return timed(run)


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
        options = {"targets": FOUR} if method == "lora" else {}
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


def peft_lora(shape: Shape) -> nn.Module | None:
    """PEFT's LoRA of rank 8 on the same four linears, None where PEFT is not installed."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        return None
    wanted = LoraConfig(r=8, target_modules=["qkv", "proj", "mlp.0", "mlp.2"])
    return inject_adapter_in_model(wanted, plain(shape, difffit=False).requires_grad_(False))


def domains_of(name: str) -> Rows:
    """A step of a batch of one domain, and of as many images of eight domains, each of which feeds
    its own delta: together, and one delta after the other.
    """
    shape = SHAPES[name]
    network, batch = own(shape), batch_of(shape, DOMAINS)
    deltas = [delta_of(network, "difffit") for _ in range(DOMAINS)]
    bank = Bank(deltas, trainable=True)
    bank.choose(torch.arange(DOMAINS))
    parts = [tuple(each[row : row + 1] for each in batch) for row in range(DOMAINS)]
    alone = [
        with_delta(network, delta, step(network, list(delta.parameters()), part), fast=True)
        for delta, part in zip(deltas, parts, strict=True)
    ]
    one, all_of_them = (step(network, list(each.parameters()), batch) for each in (deltas[0], bank))
    return {
        "one domain, fast": with_delta(network, deltas[0], one, fast=True),
        "eight domains in one batch, fast": with_delta(network, bank, all_of_them, fast=True),
        "one domain, hooks": with_delta(network, deltas[0], one, fast=False),
        "eight domains in one batch, hooks": with_delta(network, bank, all_of_them, fast=False),
        "eight domains one by one, fast": lambda: sum(row() for row in alone),
    }


def compiled_of(name: str) -> Rows:
    """Steps of compiled code, where there is a compiler, beside those without, each in a network of
    its own: attaching and detaching a delta anywhere makes PyTorch forget what it has compiled.
    """
    shape, ways = SHAPES[name], (False, True) if has_compiler() else (False,)
    ATTACHED.enter_context(compiling())
    batch, rows = batch_of(shape), {}
    for words, difffit in (("full", False), ("DiffFit", True)):
        for compiled in ways:
            network = plain(shape, difffit=difffit)
            call = torch.compile(network) if compiled else network
            suffix = ", compiled" if compiled else ""
            rows[f"{words}, plain PyTorch{suffix}"] = step(call, trained(network), batch)
    rows["the floor"] = floor(shape)
    for compiled in ways:
        network = own(shape)
        delta = delta_of(network, "difffit")
        ATTACHED.enter_context(acting(delta, network))
        call = torch.compile(network) if compiled else network
        row = f"difffit, fast{', compiled' if compiled else ''}"
        rows[row] = step(call, list(delta.parameters()), batch)
    return rows


def has_compiler() -> bool:
    try:
        check_compiler()
    except UsageError:
        return False
    return True


def kept(name: str) -> dict[str, float]:
    """Bytes that a forward pass keeps for the backward pass, in units of (B, N, D) a block."""
    shape = SHAPES[name]
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
