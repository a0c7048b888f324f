"""docs/benchmarks.md, from the results of bench/speed.py alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.files.writing import write_text

AMOUNTS = {
    "kept": "Kept for the backward pass",
    "held": "With gradients and AdamW's two averages",
    "peak": "At most at any time of a step, beyond the weights and averages of all rows",
    "state": "Kept by the optimizer from step to step",
}
UNIT = "units of (B, N, D) a block"
REDUCED = ("8-bit backward", "8-bit both ways", "bf16")  # need instructions that few CPUs have


def write_page(
    document: Mapping[str, Any], names: Sequence[str], results: Path, page: Path
) -> None:
    """The page of all cases by name; those that have no results yet are said to be so."""
    lines = [
        "# Benchmarks",
        "",
        f"`{document['command']}` made this page and [{results.name}](../{results}) "
        f"({document['machine']}; torch {document['versions']['torch']}; float32, random "
        "weights, seed 0). All rows of a table take turns, round after round; a ratio is to the "
        "first row of the same round, its median with quartiles. *Plain PyTorch* is the network as "
        "its paper describes it ([bench/plain_dit.py](../bench/plain_dit.py)), trained with "
        "PyTorch's default AdamW. *The floor* is what the products with frozen weights, forward "
        "and for the input's gradient, and attention both ways take alone, of a forward pass only "
        "forward. *diffusers* is its "
        "`DiTTransformer2DModel` of the same shape, in whole samplings its `DiTPipeline` with a "
        "codec of next to nothing; *PEFT* is its LoRA of rank 8 on the same linears.",
    ]
    for name, case in document["cases"].items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        if "kept" in case and case.get("unit", UNIT) == UNIT:
            missing = [row for row in REDUCED if not any(row in one for one in case["rows"])]
            lines += [f"Not measured: {', '.join(missing)}.", ""] if missing else []
        how = f"{case['threads']} threads, {case['rounds']} rounds, {case['date']}"
        lines += [
            f"{how}{_where(case, document)}.",
            "",
            "| | milliseconds | ratio | quartiles |",
            "|---|---|---|---|",
        ]
        for row, found in case["rows"].items():
            low, high = found["quartiles"]
            cells = f"{1000 * found['seconds']:.1f} | {found['ratio']:.2f} | {low:.2f}-{high:.2f}"
            lines.append(f"| {row} | {cells} |")
        for what, words in AMOUNTS.items():
            if what in case:
                lines += ["", f"{words}, in {case.get('unit', UNIT)}: {_amounts(case[what])}."]
        lines += _spent(case.get("spent", {}))
    missing = [name for name in names if name not in document["cases"]]
    if missing:
        lines += ["", "## Not measured", "", *(f"- {name}" for name in missing)]
    write_text("\n".join(lines) + "\n", page)


def _spent(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of what the rows spend their time on, in milliseconds."""
    if not rows:
        return []
    kinds = list(next(iter(rows.values())))
    return [
        "",
        "Milliseconds by kind of PyTorch's operators, of the fastest of three steps under its "
        "profiler; a bias is copied into the output of its product first, which counts as a copy.",
        "",
        f"| | {' | '.join(kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
        *(
            f"| {row} | {' | '.join(f'{1000 * found[kind]:.1f}' for kind in kinds)} |"
            for row, found in rows.items()
        ),
        *_beside_floor(rows),
    ]


def _beside_floor(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the last row takes, in parts of all that the floor does."""
    floor, (name, found) = rows["the floor"]["all"], list(rows.items())[-1]
    parts = {kind: seconds / floor for kind, seconds in found.items()}
    words = ", ".join(f"{kind} {part:.2f}" for kind, part in parts.items() if kind != "all")
    return ["", f"In units of the floor, {name} takes {parts['all']:.2f}: {words}."]


def _where(case: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """The machine, if it is another one than that of the newest case."""
    machine = case.get("machine", document["machine"])
    return "" if machine == document["machine"] else f", on {machine}"


def _amounts(amounts: Mapping[str, float]) -> str:
    full = next(iter(amounts.values()))
    return "; ".join(
        f"{row} {number:g} ({number / full:.2f} of full)" for row, number in amounts.items()
    )
