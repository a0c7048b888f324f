"""A step in bf16 as a share of one in float32, by network and size: python -m bench.precision

Forward and backward with frozen weights, on one thread, the two taking turns; the median of the
rounds' ratios. What `--precision auto` goes by (docs/decisions/0018-precision-auto.md) is read off
these rows: `work` is its measure of a size. Processors with less are looked at with
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 (no AMX) or AVX512_CORE (no bf16) before the command. Writes
bench/results/precision.json, or prints alone with --print.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from bench.rows import SHAPES, Shape, batch_of, delta_of, own
from bench.speed import header
from smidgen.fast.acting import acting
from smidgen.training.precision import has_amx, mean_linear

ROUNDS = 6
TEXT = 256  # width of a text, of 120 tokens
WIDTH, HEADS, IMAGES = 384, 6, 4


def dits() -> Iterator[tuple[str, Shape, int]]:
    yield from ((name, shape, shape.batch) for name, shape in SHAPES.items())
    yield from ((f"glyphs, {n} images", SHAPES["glyphs"], n) for n in (1, 4, 16))
    yield from ((f"width {w}", Shape(w, 2, w // 32, 64, size=8), 64) for w in (32, 64, 96))


def pixart() -> tuple[nn.Module, Callable[[], Any]]:
    network = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        num_layers=6,
        cross_attention_dim=WIDTH,
        sample_size=32,
        caption_channels=TEXT,
        use_additional_conditions=False,
    )
    x, text, steps = inputs(4)
    size = {"resolution": None, "aspect_ratio": None}
    return network, lambda: network(
        x, encoder_hidden_states=text, timestep=steps, added_cond_kwargs=size
    )


def sd3() -> tuple[nn.Module, Callable[[], Any]]:
    network = SD3Transformer2DModel(
        sample_size=32,
        num_layers=6,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=TEXT,
        pos_embed_max_size=32,
    )
    x, text, steps = inputs(16)
    return network, lambda: network(
        x, encoder_hidden_states=text, pooled_projections=text[:, 0], timestep=steps
    )


def flux() -> tuple[nn.Module, Callable[[], Any]]:
    network = FluxTransformer2DModel(
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT,
        pooled_projection_dim=TEXT,
        axes_dims_rope=(16, 24, 24),
    )
    x, text, steps = inputs(16)
    packed = x.reshape(IMAGES, 64, 256).transpose(1, 2)
    places = {"img_ids": torch.zeros(256, 3), "txt_ids": torch.zeros(120, 3)}
    return network, lambda: network(
        packed, encoder_hidden_states=text, pooled_projections=text[:, 0], timestep=steps, **places
    )


def unet() -> tuple[nn.Module, Callable[[], Any]]:
    network = UNet2DConditionModel(
        block_out_channels=(96, 192, 288),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT,
        attention_head_dim=4,
    )
    x, text, steps = inputs(4)
    return network, lambda: network(x, encoder_hidden_states=text, timestep=steps)


def inputs(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents that get a gradient, texts and steps."""
    x = torch.randn(IMAGES, channels, 32, 32, requires_grad=True)
    return x, torch.randn(IMAGES, 120, TEXT), torch.full((IMAGES,), 0.5)


def measured(network: nn.Module, pixels: int, call: Callable[[], Tensor]) -> dict[str, Any]:
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS + 1):
        for reduced, found in seconds.items():
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                loss = call().float().square().mean()
            loss.backward()
            found.append(time.perf_counter() - start)
    wide, reduced = (found[1:] for found in seconds.values())
    ratios = [b / a for a, b in zip(wide, reduced, strict=True)]
    return {
        "work": round(pixels * mean_linear(network)),
        "fp32_ms": round(1000 * statistics.median(wide), 1),
        "bf16_ms": round(1000 * statistics.median(reduced), 1),
        "ratio": round(statistics.median(ratios), 2),
    }


def rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, shape, images in dits():
        network = own(shape)
        delta, batch = delta_of(network, "difffit"), batch_of(shape, images)
        with acting(delta, network):
            pixels = images * shape.size**2
            yield name, measured(network, pixels, lambda net=network, b=batch: net(*b))
    for make in (pixart, sd3, flux, unet):
        network, call = make()
        network.requires_grad_(False)
        pixels = IMAGES * 32 * 32
        yield make.__name__, measured(network, pixels, lambda call=call: call().sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for name, row in rows():
        print(name, json.dumps(row), flush=True)
        found[name] = row
    if not arguments.print:
        document = header() | {"command": "python -m bench.precision", "threads": 1}
        document |= {"amx": has_amx(), "isa": os.environ.get("ONEDNN_MAX_CPU_ISA"), "rows": found}
        Path("bench/results/precision.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
