"""Theorem 1 of DiffFit as an experiment, where its words can be exact: python -m bench.theorem

The source is C independent elements of one law; the target is the source with each element
multiplied by a scale of its own. The denoiser of the source, the exact one or one that was trained,
is frozen; then only `Scale` edits are trained on n pictures of the target, with smidgen's schedule
and loss. How far the scales that are found are from the true ones is measured over n, and beside it
what no unbiased estimate of them can beat. Writes bench/results/theorem.json and
docs/studies/theorem/figure.png; --page draws anew what is there. b pictures, c elements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from smidgen.core.delta import Delta, Provenance
from smidgen.core.edits import Scale
from smidgen.core.fingerprint import fingerprint
from smidgen.core.sites import Site
from smidgen.diffusion.process import Diffusion
from smidgen.diffusion.schedule import Images, Indices, Schedule, gather
from smidgen.evaluation.machine import machine
from smidgen.figures import COLOURS, MARKERS, new, png, styled
from smidgen.files.writing import whole_file, write_json

RESULTS, FIGURE = Path("bench/results/theorem.json"), Path("docs/studies/theorem/figure.png")

# the law of an element of the source: two Gaussians, with a mean of 0 and a variance of 1
WEIGHTS, MEANS, DEVIATION = (0.6, 0.4), (-0.7483315, 1.1224972), 0.4
SITES = ("state", "level", "answer")  # what has a unit of the data
CASES = {  # by name, the denoiser and where scales act
    "exact denoiser": ("exact", SITES),
    "trained denoiser": ("trained", SITES),
    "trained, no scale on the noise level": ("trained", ("state", "answer")),
    "trained, a scale on the answer alone": ("trained", ("answer",)),
}
MIN_SNR = 5.0  # without it the least noisy steps outweigh all others ten thousandfold
INFINITE = 0  # pictures: new ones at every step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the numbers depend on. `scales` are drawn evenly in their logarithm."""

    num_elements: int = 8
    width: int = 24
    source_steps: int = 3000
    steps: int = 1000
    batch_size: int = 512
    source_lr: float = 3e-3
    lr: float = 3e-2
    scales: tuple[float, float] = (0.5, 2.0)
    sizes: tuple[int, ...] = (16, 64, 256, 1024, 4096, INFINITE)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


class Denoiser(nn.Module):
    """What smidgen's loss reads as the noise in x_t, by a guess at each element of x_0 alone.

    What has a unit of the data passes through a module without weights, where a scale can act: the
    noisy picture as x_0 + sigma noise (b, c), sigma of each element, and the answer.
    """

    def __init__(self, schedule: Schedule, guess: nn.Module) -> None:
        super().__init__()
        self.schedule = schedule
        self.guess = guess
        self.state, self.level, self.answer = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x_t: Images, t: Indices) -> Images:
        signal = gather(self.schedule.sqrt_alphas_cumprod, t, x_t)
        noise = gather(self.schedule.sqrt_one_minus_alphas_cumprod, t, x_t)
        state = self.state((x_t / signal).flatten(1))  # (b, c, 1, 1) -> (b, c)
        level = self.level((noise / signal).flatten(1).expand_as(state))
        x0 = self.answer(self.guess(state, level))[..., None, None]
        return (x_t - signal * x0) / noise


class Learned(nn.Module):
    """One small network for every element, preconditioned for data of variance 1 (Karras et al.
    2022, table 1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, state: Tensor, level: Tensor) -> Tensor:
        total = (1 + level.square()).sqrt()
        read = torch.stack([state / total, level.log() / 4], dim=-1)
        return state / total.square() + level / total * self.layers(read).squeeze(-1)


class Exact(nn.Module):
    """E[x_0 | x_0 + sigma noise] under the law of the source: of each Gaussian, by their shares."""

    def forward(self, state: Tensor, level: Tensor) -> Tensor:
        variance = DEVIATION**2 + level.square()
        means = torch.tensor(MEANS)
        away = state[..., None] - means  # (b, c, 2)
        logits = torch.tensor(WEIGHTS).log() - away.square() / (2 * variance[..., None])
        guesses = means + DEVIATION**2 / variance[..., None] * away
        return (logits.softmax(dim=-1) * guesses).sum(dim=-1)


def source(count: int, num_elements: int, generator: torch.Generator) -> Images:
    """Pictures of the source (b, c, 1, 1)."""
    shape = (count, num_elements, 1, 1)
    second = torch.rand(shape, generator=generator) < WEIGHTS[1]
    noise = torch.randn(shape, generator=generator)
    return torch.where(second, MEANS[1], MEANS[0]) + DEVIATION * noise


def true_scales(settings: Settings, seed: int) -> Tensor:
    """One for each element (c,)."""
    low, high = np.log(settings.scales)
    drawn = torch.rand(settings.num_elements, generator=torch.Generator().manual_seed(seed))
    return torch.exp(low + (high - low) * drawn)


def trained(
    network: nn.Module,
    process: Diffusion,
    parameters: Sequence[nn.Parameter],
    draw: Callable[[torch.Generator], Images],
    *,
    steps: int,
    lr: float,
    seed: int,
) -> list[Tensor]:
    """AdamW on the epsilon loss, the rate on half a cosine down to 0; returns the mean of each
    parameter over the second half of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    means = [torch.zeros_like(one) for one in parameters]
    second = steps - steps // 2
    for step in range(steps):
        x0 = draw(generator)
        places = torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)
        t = process.times(places.double() / len(x0))  # evenly, which makes the gradients quieter
        noise = torch.randn(x0.shape, generator=generator)
        x_t = process.noised(x0, t, noise)
        loss = process.loss(network(x_t, t), x0, x_t, t, noise, min_snr=MIN_SNR).mean()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        falling.step()
        if step >= steps // 2:
            for mean, parameter in zip(means, parameters, strict=True):
                mean += parameter.detach() / second
    return means


def denoisers(settings: Settings, process: Diffusion) -> dict[str, Denoiser]:
    """The exact denoiser of the source and one that was trained on it, both frozen."""
    torch.manual_seed(0)
    network = Denoiser(process.schedule, Learned(settings.width))
    weights = trained(
        network,
        process,
        list(network.parameters()),
        lambda generator: source(settings.batch_size, settings.num_elements, generator),
        steps=settings.source_steps,
        lr=settings.source_lr,
        seed=0,
    )
    for parameter, mean in zip(network.parameters(), weights, strict=True):
        parameter.data.copy_(mean)
    return {
        "exact": Denoiser(process.schedule, Exact()),
        "trained": network.requires_grad_(False),
    }


def scales_of(sites: Sequence[str], num_elements: int, network: nn.Module) -> Delta:
    """A scale of every element at each of the sites, all 1."""
    provenance = Provenance(
        method="scales",
        config={},
        host="",
        base="theorem",
        fingerprint=fingerprint(network.state_dict()),
        classes=(),
        training={},
    )
    return Delta({name: Scale(Site(name), num_elements) for name in sites}, provenance)


def errors_of(
    network: Denoiser,
    process: Diffusion,
    settings: Settings,
    sites: Sequence[str],
    size: int,
    seed: int,
) -> dict[str, float]:
    """By site, how far the found scales are from the true ones: the root of the mean over elements
    of their squared relative errors. Of a state and a level the true one is 1 / scale.
    """
    scale = true_scales(settings, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    found = source(max(size, 1), settings.num_elements, generator)

    def draw(generator: torch.Generator) -> Images:
        if size == INFINITE:
            x = source(settings.batch_size, settings.num_elements, generator)
        else:
            x = found[torch.randint(size, (settings.batch_size,), generator=generator)]
        return scale[:, None, None] * x

    delta = scales_of(sites, settings.num_elements, network)
    with delta.attach(network):
        gains = trained(
            network,
            process,
            list(delta.parameters()),
            draw,
            steps=settings.steps,
            lr=settings.lr,
            seed=seed,
        )
    truths = {"state": 1 / scale, "level": 1 / scale, "answer": scale}
    return {
        name: float((gain / truths[name] - 1).square().mean().sqrt())
        for name, gain in zip(sites, gains, strict=True)
    }


def least_error() -> float:
    """sqrt(n) times the relative error that no unbiased estimate of a scale from n elements can
    beat (Cramer and Rao): 1 / sqrt(E[(1 + x (log p)'(x))^2]) under the law p of the source.
    """
    x = np.linspace(-8, 8, 400_001)
    parts = [
        weight * np.exp(-((x - mean) ** 2) / (2 * DEVIATION**2)) / (DEVIATION * np.sqrt(2 * np.pi))
        for weight, mean in zip(WEIGHTS, MEANS, strict=True)
    ]
    density = np.sum(parts, axis=0)
    slopes = [(mean - x) / DEVIATION**2 * part for mean, part in zip(MEANS, parts, strict=True)]
    score = np.sum(slopes, axis=0) / np.maximum(density, 1e-300)
    information = np.trapezoid(density * (1 + x * score) ** 2, x)
    return float(1 / np.sqrt(information))


def measured(settings: Settings) -> Iterator[dict[str, Any]]:
    """A row for each training of scales."""
    process = Diffusion(schedule=Schedule.linear(), prediction="epsilon")
    networks = denoisers(settings, process)
    for seed in settings.seeds:
        for size in settings.sizes:
            for case, (denoiser, sites) in CASES.items():
                errors = errors_of(networks[denoiser], process, settings, sites, size, seed)
                yield {"case": case, "pictures": size, "seed": seed, "errors": errors}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By case: the error of the answer's scale at each size, its geometric mean over seeds
    with a 95 % interval, and the exponent of n over the sizes, of each seed, the same way.
    """
    found: dict[str, Any] = {}
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        logs: dict[int, dict[int, float]] = {}
        for row in own:
            logs.setdefault(row["pictures"], {})[row["seed"]] = np.log(row["errors"]["answer"])
        sizes = sorted(size for size in logs if size != INFINITE)
        slopes = [
            float(np.polyfit(np.log(sizes), [logs[size][seed] for size in sizes], 1)[0])
            for seed in dict.fromkeys(row["seed"] for row in own)
        ]
        found[case] = {
            "error": {
                str(size): np.exp(mean_and_interval(list(of_seed.values()))).tolist()
                for size, of_seed in sorted(logs.items())
            },
            "exponent": mean_and_interval(slopes),
        }
    return found


def mean_and_interval(values: Sequence[float]) -> list[float]:
    """The mean, and the ends of its 95 % interval by Student's t."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half)]


def draw_figure(document: Mapping[str, Any], path: Path) -> None:
    """The error over the number of pictures, with the bound and what is left with new pictures."""
    with styled():
        figure, axes = new()
        sizes = np.array([size for size in document["settings"]["sizes"] if size != INFINITE])
        for number, (case, one) in enumerate(document["summary"].items()):
            points = np.array([one["error"][str(size)] for size in sizes])
            colour = COLOURS[number]
            reach = np.abs(points[:, 1:] - points[:, :1]).T
            axes.errorbar(
                sizes,
                points[:, 0],
                reach,
                color=colour,
                marker=MARKERS[number],
                markersize=5,
                capsize=3,
                label=case,
            )
            axes.axhline(one["error"][str(INFINITE)][0], color=colour, linewidth=0.8, linestyle=":")
        bound = document["least_error"] / np.sqrt(sizes)
        axes.plot(sizes, bound, color="black", linestyle="--", label="the bound, 1 / sqrt(n)")
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="pictures of the target, n",
            ylabel="relative error of the scales",
        )
        axes.legend(frameon=False, fontsize=9)
        with whole_file(path) as partial:
            partial.write_bytes(png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only draw the figure anew")
    arguments = parser.parse_args()
    if arguments.page:
        document = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        torch.set_num_threads(1)
        settings = Settings()
        rows = []
        for row in measured(settings):
            print(json.dumps(row), flush=True)
            rows.append(row)
        document = {
            "command": "python -m bench.theorem",
            "date": date.today().isoformat(),
            "machine": machine(),
            "processor_seconds": round(time.process_time(), 1),
            "settings": asdict(settings),
            "least_error": least_error(),
            "summary": summary(rows),
            "rows": rows,
        }
        write_json(document, RESULTS)
    draw_figure(document, FIGURE)


if __name__ == "__main__":
    main()
