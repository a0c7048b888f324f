"""Serving 64 deltas at once, beside a pipeline of diffusers that switches between them: python -m
bench.serve

The base is glyphs-text, each delta a LoRA of rank 16 with random values, a request one guided image
in ten steps of DDIM. All requests at once, in rounds that take turns: a server with a different
delta for each, a server with one delta for all, and diffusers, which loads all as adapters, sets
one for each request and draws 16 of these. Then requests that come at random (Poisson) at shares of
what the server drew: from coming to being done, median and 95th percentile; with diffusers, which
draws one after the other, they wait. The requests go through the server's whole ASGI application,
without a socket. Writes bench/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from smidgen.api.folding import export_lora
from smidgen.evaluation.machine import machine
from smidgen.files.writing import write_json
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.models.names import EMBEDDED
from smidgen.models.pretrained import load_base
from smidgen.serving.app import create_app
from smidgen.serving.config import ServeConfig

RESULTS = Path("bench/results/serve.json")
DELTAS, BATCH, STEPS, GUIDANCE = 64, 16, 10, 4.0
PROMPT = "an outline picture of an owl in navy on white"
RATES = (0.15, 0.3, 0.6, 0.9)
SWITCHED = 16  # requests of a round that diffusers draws, one after the other
Send = Callable[[Sequence[str], Sequence[float]], list[float]]  # models, when they come -> seconds


def write_deltas(folder: Path, base: Base) -> list[str]:
    """The deltas, and each as LoRA of diffusers; their names."""
    names = [f"delta{number}" for number in range(DELTAS)]
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        delta = build_delta("lora", base, configure("lora", {"rank": 16}), (), generator)
        with torch.no_grad():
            for parameter in delta.parameters():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        delta.save(folder / f"{name}.safetensors")
        place = folder / "peft" / f"{name}.safetensors"
        export_lora(delta, base, format="peft", output=place)
    return names


@contextmanager
def server(base: Base, folder: Path) -> Iterator[Send]:
    """Requests to a server, each when it comes."""
    config = ServeConfig(deltas=folder, batch_size=BATCH, slots=DELTAS, waiting=10_000)
    app = create_app(base, config)

    async def ask(client: httpx.AsyncClient, model: str, seed: int, at: float) -> float:
        await asyncio.sleep(at)
        began = time.perf_counter()
        body = {"model": model, "prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE}
        answer = await client.post(
            "/v1/images/generations", json=body | {"seed": seed, "sampler": "ddim"}, timeout=None
        )
        answer.raise_for_status()
        return time.perf_counter() - began

    async def ask_all(models: Sequence[str], times: Sequence[float]) -> list[float]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            each = zip(models, times, strict=True)
            return await asyncio.gather(
                *(ask(client, model, seed, at) for seed, (model, at) in enumerate(each))
            )

    yield lambda models, times: asyncio.run(ask_all(models, times))
    app.state.served.engine.stop()


def switching(folder: Path, names: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """The same requests to a pipeline of diffusers, one after the other."""
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED / "glyphs-text").to(torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for name in names:
        place = {"weight_name": f"{name}.safetensors", "adapter_name": name}
        pipeline.load_lora_weights(folder / "peft", **place)

    def send(models: Sequence[str]) -> None:
        for seed, model in enumerate(models):
            pipeline.set_adapters(model)
            pipeline(
                PROMPT,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(seed),
                output_type="pil",
            )

    return send


def queued(send: Callable[[Sequence[str]], None]) -> Send:
    """Each request when it comes, or once those before it are done."""

    def send_all(models: Sequence[str], times: Sequence[float]) -> list[float]:
        began, seconds = time.perf_counter(), []
        for model, at in zip(models, times, strict=True):
            time.sleep(max(0.0, began + at - time.perf_counter()))
            send([model])
            seconds.append(time.perf_counter() - began - at)
        return seconds

    return send_all


def throughput(send: Callable[[Sequence[str]], Any], models: Sequence[str]) -> float:
    """Images a second of so many requests at once."""
    began = time.perf_counter()
    send(models)
    return len(models) / (time.perf_counter() - began)


def latency(send: Send, models: Sequence[str], rate: float, seed: int) -> dict[str, float]:
    """Seconds that requests at this rate a second take."""
    draw, times = random.Random(seed), [0.0]
    for _ in models[1:]:
        times.append(times[-1] + draw.expovariate(rate))
    seconds = sorted(send(models, times))
    return {
        "median": round(statistics.median(seconds), 3),
        "percentile_95": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=DELTAS)
    arguments = parser.parse_args()
    base = load_base("glyphs-text", dtype=torch.float32)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = write_deltas(folder, base)
        mixed = [names[number % DELTAS] for number in range(arguments.requests)]
        one = [names[0]] * arguments.requests
        stock = switching(folder, names)
        with server(base, folder) as served, torch.inference_mode():
            at_once: Callable[[Sequence[str]], Any] = lambda m: served(m, [0.0] * len(m))  # noqa: E731
            arms = {
                "the server, 64 deltas": lambda: throughput(at_once, mixed),
                "the server, one delta": lambda: throughput(at_once, one),
                "diffusers, switched for each request": lambda: throughput(stock, mixed[:SWITCHED]),
            }
            for arm in arms.values():
                arm()  # slots are filled, kernels chosen
            for _ in range(arguments.rounds):
                for name, arm in arms.items():
                    found.setdefault(name, []).append(arm())
            most = statistics.median(found["the server, 64 deltas"])
            waits = {
                f"{share:g}": {
                    "requests_a_second": round(share * most, 2),
                    "the server, 64 deltas": latency(served, mixed, share * most, 1),
                    "the server, one delta": latency(served, one, share * most, 1),
                    "diffusers, switched for each request": latency(
                        queued(stock), mixed[:SWITCHED], share * most, 1
                    ),
                }
                for share in RATES
            }
    document = {
        "command": "python -m bench.serve",
        "date": date.today().isoformat(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "base": "glyphs-text",
        "deltas": f"{DELTAS} of LoRA, rank 16",
        "request": {"images": 1, "steps": STEPS, "sampler": "ddim", "guidance": GUIDANCE},
        "batch": BATCH,
        "requests": {
            name: SWITCHED if name.startswith("diffusers") else arguments.requests for name in found
        },
        "images_a_second": {
            name: {
                "median": round(statistics.median(values), 2),
                "of_the_first": round(
                    statistics.median(
                        value / first
                        for value, first in zip(values, next(iter(found.values())), strict=True)
                    ),
                    3,
                ),
                "rounds": [round(value, 2) for value in values],
            }
            for name, values in found.items()
        },
        "seconds_at_shares_of_the_first": waits,
    }
    write_json(document, RESULTS)
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
