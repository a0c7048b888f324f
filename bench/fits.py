"""What fits into a graphics card of 11 GB, by the estimate: python -m bench.fits

Each row is a training of a released size, counted without weights (smidgen.inspect): passes in
bf16, blocks recomputed, as many images as have a million pixels, with the weights of the base kept
in each of WAYS. Writes bench/results/fits.json and the table in docs/bases.md. Nothing is measured:
the estimate beside measured peaks is bench/memory_estimate.py. It takes some minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CARD = 11e9  # bytes
BASES = ("sd-1.5", "sdxl")
METHODS = ("lora", "adapter", "difffit")
IMAGES = {512: 4, 1024: 1}  # in a batch, by their side in pixels
WAYS: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"base_precision": "bf16"},
    "int8": {"base_precision": "int8"},
    "nf4": {"base_precision": "nf4"},
    "bf16, offloaded": {"base_precision": "bf16", "offload": True},
}
SETTINGS = {"gradient_checkpointing": True, "precision": "bf16", "device": "cuda"}
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "bench/results/fits.json", ROOT / "docs/bases.md"
BEGIN, END = "<!-- bench.fits -->", "<!-- end -->"


def cases() -> list[dict[str, Any]]:
    """Base, method, side and images of each row."""
    return [
        {"base": base, "pixels": side, "images": images, "method": method}
        for base in BASES
        for side, images in IMAGES.items()
        for method in METHODS
    ]


def memory_of(case: Mapping[str, Any], way: str) -> dict[str, int]:
    """The parts of the estimate in bytes, and their total."""
    import smidgen

    found = smidgen.inspect(
        case["base"],
        method=case["method"],
        image_size=case["pixels"],
        batch_size=case["images"],
        **SETTINGS,
        **WAYS[way],
    )
    return found["memory"]


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in GB; what is beyond the card is bold."""
    head = ("base", "images", "method", *WAYS)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        totals = [row[way]["total"] for way in WAYS]
        shown = [f"{one / 1e9:.2f}" if one < CARD else f"**{one / 1e9:.2f}**" for one in totals]
        images = f"{row['images']} of {row['pixels']}"
        lines.append(f"| {' | '.join((row['base'], images, row['method'], *shown))} |")
    return "\n".join(lines)


def with_table(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with this table between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table_of(rows)}\n{END}{after}"


def main() -> None:
    """Count all rows, write results and table."""
    rows = []
    for case in cases():
        rows.append(case | {way: memory_of(case, way) for way in WAYS})
        print(table_of(rows[-1:]).splitlines()[-1], flush=True)
    header = {
        "command": "python -m bench.fits",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: version(name) for name in ("smidgen", "torch", "diffusers")},
        "settings": SETTINGS,
        "ways": WAYS,
        "unit": "bytes",
    }
    RESULTS.write_text(json.dumps(header | {"rows": rows}, indent=2) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
