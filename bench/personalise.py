"""Personalisation of `glyphs-text`, measured: python bench/personalise.py [--only adapter]

Subjects x seeds, by the adapter recipe and by DreamBooth, the whole UNet (`full`), beside it;
writes bench/results/personalise-glyphs-text.json after each run and docs/personalise-glyphs.md.
A run that is in the results is skipped, one that was stopped resumes. Seconds are those of this
machine with whatever else it did. `--rates` tries learning rates with one seed, and writes nothing
but what it finds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import smidgen
from smidgen.cli.demo_text import class_of
from smidgen.data.embedded_sets import SUBJECTS, unpack
from smidgen.evaluation.personalisation import share_of_way
from smidgen.files.settings import read_recipe
from smidgen.files.writing import write_json, write_text
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig

RECIPE = Path("src/smidgen/cli/demo_text.toml")
RESULTS = Path("bench/results/personalise-glyphs-text.json")
PAGE = Path("docs/personalise-glyphs.md")
CHOSEN = ("owl-ink", "dog-line", "fish-line")
SEEDS = (0, 1, 2)
# DreamBooth has none of the adapter's options, and the rate of a whole network
OF_ADAPTER = ("input_position", "output_position", "width")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "adapter": {},
    "full": {"method": "full", "lr": 1e-4},
}
SAMPLING = SamplingConfig(steps=25, sampler="dpm++", guidance=4.0, num_images=104, batch_size=64)
COLUMNS = (
    "CLIP-I | no delta | real pictures | of the way | ink and ground | no delta | CLIP-T "
    "| no delta | drift | other noise | diversity | no delta"
)
# what is to be reached
WAY, COLOURS = 0.5, 0.85


def settings_of(method: str, subject: str, seed: int, rate: float | None) -> dict[str, Any]:
    """The keywords of a training: the recipe's, with what belongs to the method and the subject."""
    settings = {name: value for name, value in read_recipe(RECIPE).items() if name != "base"}
    changed = METHODS[method]
    options = {name: settings.pop(name) for name in OF_ADAPTER}
    settings |= {"method_config": {} if "method" in changed else options}
    settings |= changed | class_of(subject) | {"seed": seed}
    return settings if rate is None else settings | {"lr": rate}


def run_one(
    base: Base, method: str, subject: str, seed: int, folder: Path, rate: float | None = None
) -> dict[str, Any]:
    """Train, measure, and say what the results keep of it."""
    pictures = unpack(SUBJECTS, folder / SUBJECTS) / subject
    name = f"{method}-{subject}-{seed}" + ("" if rate is None else f"-{rate:g}")
    settings = settings_of(method, subject, seed, rate)
    start = time.perf_counter()
    delta = smidgen.train(base, pictures, output=folder / name, progress=False, **settings)
    trained = time.perf_counter()
    document = smidgen.evaluate(folder / name, pictures, base=base, sampling=SAMPLING)
    metrics, beside = document["metrics"], document["baselines"]
    way = share_of_way(metrics["clip_i"], beside["clip_i_of_base"], beside["clip_i_of_reference"])
    report = json.loads((folder / name / "run.json").read_text())
    return {
        "method": method,
        "subject": subject,
        "seed": seed,
        "lr": settings["lr"],
        "num_parameters": delta.num_parameters(),
        "train_seconds": round(report.get("seconds", trained - start), 1),
        "evaluate_seconds": round(time.perf_counter() - trained, 1),
        "share_of_way": None if way is None else round(way, 4),
        "metrics": rounded(metrics),
        "baselines": rounded(beside),
        "by_prompt": {prompt: rounded(row) for prompt, row in document["by_prompt"].items()},
    }


def rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if v is None else round(v, 5) for name, v in numbers.items()}


def key_of(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["method"], row["subject"], row["seed"]


def read_rows() -> list[dict[str, Any]]:
    """The runs in the results file."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []


def header(base: Base) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ", 1)[1] for line in lines if "model name" in line), "")
    packages = ("torch", "diffusers", "transformers", "numpy", "pillow")
    return {
        "command": "python bench/personalise.py",
        "date": date.today().isoformat(),
        "machine": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "base_parameters": sum(p.numel() for p in base.denoiser.parameters()),
        "sampling": SAMPLING.facts(),
        "recipe": read_recipe(RECIPE),
        "methods": METHODS,
    }


def summaries(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The means over seeds and subjects of each method, and whether they reach what is asked."""
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        numbers = {
            name: round(mean(row["metrics"][name] for row in own), 4) for name in own[0]["metrics"]
        }
        beside = {
            name: round(mean(row["baselines"][name] for row in own), 4)
            for name in own[0]["baselines"]
        }
        way = mean(row["share_of_way"] or 0 for row in own)
        yield {
            "method": method,
            "num_runs": len(own),
            "share_of_way": round(way, 4),
            "least_share_of_way": min(row["share_of_way"] or 0 for row in own),
            "metrics": numbers,
            "baselines": beside,
            "reached": way >= WAY and numbers["ink_and_ground"] >= COLOURS,
            "train_seconds": round(mean(row["train_seconds"] for row in own), 1),
            "num_parameters": own[0]["num_parameters"],
        }


def write_page(rows: list[dict[str, Any]]) -> None:
    """docs/personalise-glyphs.md: the means of each method, and every run."""
    found = list(summaries(rows))
    lines = [
        "# Personalisation of glyphs-text",
        "",
        f"`python bench/personalise.py` made this page and [{RESULTS.name}](../{RESULTS}), which "
        "has machine, date, versions and the numbers of each prompt. Subjects that neither the "
        "base nor the CLIP that judges has seen, five pictures each, seeds 0 to 2; "
        f"{SAMPLING.num_images} samples of thirteen prompts and as many a prompt of seven others, "
        f"{SAMPLING.steps} DPM-Solver++ steps at guidance {SAMPLING.guidance:g}. What the columns "
        "mean is in [metrics.md](metrics.md). To reach: half of the way from the floor to the "
        "ceiling of CLIP-I, and ink and ground of the prompt in 85 %.",
        "",
        f"| method | parameters | seconds | {COLUMNS} |",
        "|---|" + "---|" * 14,
    ]
    lines += [
        table_row([one["method"], f"{one['num_parameters']:,}", f"{one['train_seconds']:.0f}"], one)
        for one in found
    ]
    lines += [
        "",
        f"| subject | seed | method | {COLUMNS} |",
        "|---|" + "---|" * 14,
    ]
    lines += [table_row([row["subject"], str(row["seed"]), row["method"]], row) for row in rows]
    write_text("\n".join(lines) + "\n", PAGE)


def table_row(head: list[str], row: Mapping[str, Any]) -> str:
    now, beside = row["metrics"], row["baselines"]
    cells = [
        f"{now['clip_i']:.3f}",
        f"{beside['clip_i_of_base']:.3f}",
        f"{beside['clip_i_of_reference']:.3f}",
        "" if row["share_of_way"] is None else f"{row['share_of_way']:.0%}",
        f"{now['ink_and_ground']:.0%}",
        f"{beside['ink_and_ground_of_base']:.0%}",
        f"{now['clip_t']:.3f}",
        f"{beside['clip_t_of_base']:.3f}",
        f"{now['drift']:.3f}",
        f"{beside['drift_of_other_noise']:.3f}",
        f"{now['diversity']:.3f}",
        f"{beside['diversity_of_base']:.3f}",
    ]
    return f"| {' | '.join([*head, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default=",".join(CHOSEN), help="comma-separated")
    parser.add_argument("--only", choices=METHODS, help="one method")
    parser.add_argument("--output", type=Path, default=Path("runs/personalise"))
    parser.add_argument("--rates", type=float, nargs="*", help="try these rates with seed 0")
    arguments = parser.parse_args()
    base = smidgen.load_base("glyphs-text")
    methods = [arguments.only] if arguments.only else list(METHODS)
    subjects = arguments.subjects.split(",")
    if arguments.rates:
        for method in methods:
            for rate in arguments.rates:
                for subject in subjects:
                    row = run_one(base, method, subject, 0, arguments.output, rate)
                    print(
                        json.dumps({k: v for k, v in row.items() if k != "by_prompt"}), flush=True
                    )
        return
    for seed in SEEDS:  # a first seed of everything comes first
        for subject in subjects:
            for method in methods:
                rows = read_rows()
                if (method, subject, seed) in map(key_of, rows):
                    continue
                row = run_one(base, method, subject, seed, arguments.output)
                print(json.dumps({k: v for k, v in row.items() if k != "by_prompt"}), flush=True)
                # another process may have added runs meanwhile
                rows = sorted([*read_rows(), row], key=lambda one: (one["subject"], key_of(one)))
                write_json(
                    header(base) | {"methods_compared": list(summaries(rows)), "runs": rows},
                    RESULTS,
                )
    write_page(read_rows())


if __name__ == "__main__":
    main()
