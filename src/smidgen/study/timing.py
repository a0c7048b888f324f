"""What a training step of each arm takes: STUDY/time.json.

Seconds are measured in rounds in which the arms take turns, so that what else the machine does hits
all alike; a run's own seconds have all of it. Operations are counted, alike on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import torch

from smidgen.api.planning import flops_of_image, time_steps
from smidgen.errors import SmidgenError
from smidgen.evaluation.machine import machine
from smidgen.files.writing import write_json
from smidgen.sizes import ImageSize
from smidgen.study.costs import TIMES, requests_of, timed_settings
from smidgen.study.design import Design
from smidgen.study.measuring import loaded
from smidgen.study.planning import num_classes
from smidgen.study.request import Request

ROUNDS = 5
GIGA = 1e9


def time_study(
    design: Design, *, rounds: int = ROUNDS, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """A few steps of each arm in every round, on random latents, and their operations; writes
    time.json. An arm that cannot be is left out, and named.

    Raises: SmidgenError if none can be.
    """
    requests, left_out = requests_of(design)
    if not requests:
        raise SmidgenError(f"{design.source}: no arm can be: {next(iter(left_out.values()))}")
    seconds: dict[str, list[float]] = {arm: [] for arm in requests}
    for number in range(rounds):
        for arm, request in requests.items():
            timed = time_steps(loaded(request.base), request.config, num_classes(request))
            seconds[arm].append(timed["seconds_per_step"])
        tell(f"{number + 1}/{rounds} rounds")
    against = design.table.against
    reference = against if against in requests else next(iter(requests))
    arms = {
        arm: {
            "settings": timed_settings(design, request),
            "step_ms": middle(1000 * np.array(seconds[arm])),
            "ratio": middle(np.array(seconds[arm]) / np.array(seconds[reference])),
            **gflops_of(design, request),
        }
        for arm, request in requests.items()
    }
    document = {
        "machine": machine(),
        "date": date.today().isoformat(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "reference": reference,
        "arms": arms,
        "left_out": left_out,
    }
    write_json(document, design.output / TIMES)
    return document


def gflops_of(design: Design, request: Request) -> dict[str, float | None]:
    """Those of a `Cost`."""
    training = request.config.training
    images = training.batch_size * training.gradient_accumulation
    step = images * flops_of_image(loaded(request.base), request.config, num_classes(request))
    before = 0.0
    if request.first is not None:
        first = gflops_of(design, request.first)
        before = (first["gflops"] or 0.0) + (first["gflops_before"] or 0.0)
    seen = design.table.pretraining.get(request.base.base)
    return {
        "step_gflops": step / GIGA,
        "gflops": step * training.steps / GIGA,
        "gflops_before": before,
        "gflops_of_base": None if seen is None else gflops_of_base(request, seen),
    }


def gflops_of_base(request: Request, images: Mapping[str, int]) -> float:
    """Of a training of all weights on so many images of each size."""
    config = replace(request.config, method="full", method_config=None, init=None)
    config = replace(config, training=replace(config.training, train_labels=True)).resolved()
    total = 0.0
    for size, count in images.items():
        base = loaded(replace(request.base, image_size=ImageSize.of(size), positions=None))
        total += count * flops_of_image(base, config, len(base.class_names)) / GIGA
    return total


def middle(values: np.ndarray) -> list[float]:
    """Median and quartiles, four digits."""
    return [float(f"{one:.4g}") for one in np.percentile(values, (50, 25, 75))]
