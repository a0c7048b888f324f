"""How far weights in 8 and 4 bit take a network from its own output: python -m bench.quantised

Shipped bases, one forward pass of IMAGES noises at as many times: the length of the difference by
that of what float32 has, for the rounded weights and for the output. In "nf4 everywhere", which
is no choice of smidgen's, the few weights outside repeated blocks are rounded too. Writes
bench/results/quantised.json and the table in docs/bases.md; a minute.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

BASES = ("glyphs", "glyphs-64", "glyphs-text")
EVERYWHERE = "nf4 everywhere"
WAYS = ("int8", "nf4", EVERYWHERE)
IMAGES = 16
PROMPTS = ("a picture of an owl", "a red letter A", "an outline picture of a fish")
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "bench/results/quantised.json", ROOT / "docs/bases.md"
BEGIN, END = "<!-- bench.quantised -->", "<!-- end -->"


def layers_of(network: Any, *, repeated: bool) -> dict[str, Any]:
    """Its linears and convolutions by name, or those in repeated blocks."""
    from smidgen.core.storage import repeated_layers
    from smidgen.core.widening import CAST_BY_AUTOCAST

    blocks = set(repeated_layers(network))
    named = dict(network.named_modules())
    found = {name: one for name, one in named.items() if isinstance(one, CAST_BY_AUTOCAST)}
    return {name: one for name, one in found.items() if one in blocks or not repeated}


def as_kept(weight: Any, precision: str) -> Any:
    """What is left of a weight."""
    from smidgen.core.normal_float import packed, unpacked, values_of_bytes
    from smidgen.core.quantising import in_eight_bit
    from smidgen.core.widening import SCALE

    if precision == "int8":
        whole, beside = in_eight_bit(weight)
        return whole * beside[SCALE]
    return unpacked(packed(weight), weight.shape, values_of_bytes())


def rows_of(name: str) -> list[dict[str, Any]]:
    """Of a base in each of WAYS."""
    import torch

    from smidgen.core.quantising import quantise
    from smidgen.models.calling import calling
    from smidgen.models.pretrained import load_base

    base = load_base(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, *base.latent_shape, generator=generator)
    times = torch.linspace(0, 999, IMAGES).round().long()
    prompts = () if base.conditioner is None else PROMPTS
    labels = torch.arange(IMAGES) % (len(prompts) or base.num_classes)
    condition = base.conditions(prompts)(labels)

    def output_of(network: Any) -> Any:
        with torch.no_grad():
            return calling(base.family, network)(x, times, condition)

    exact, rows = output_of(base.denoiser), []
    for way in WAYS:
        layers = layers_of(base.denoiser, repeated=way == "nf4")
        kept = {key: as_kept(one.weight.detach(), way) for key, one in layers.items()}
        network = copy.deepcopy(base.denoiser)
        if way == EVERYWHERE:
            for key, weight in kept.items():
                network.get_submodule(key).weight.data = weight
        else:
            quantise(network, way)
        own = torch.cat([one.weight.detach().flatten() for one in layers.values()])
        lost = torch.cat([weight.flatten() for weight in kept.values()]) - own
        row = {"base": name, "way": way, "weights": float(lost.norm() / own.norm())}
        row["output"] = float((output_of(network) - exact).norm() / exact.norm())
        rows.append(row)
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each base, its ways beside each other."""
    columns = [("weights", "int8"), ("weights", "nf4"), *(("output", way) for way in WAYS)]
    head = ("base", *(f"{of}, {way}" for of, way in columns))
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["base"] for row in rows):
        own = {row["way"]: row for row in rows if row["base"] == name}
        values = [f"{own[way][of]:.4f}" for of, way in columns]
        lines.append(f"| {' | '.join((name, *values))} |")
    return "\n".join(lines)


def with_table(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with this table between the marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table_of(rows)}\n{END}{after}"


def main() -> None:
    """Measure all bases, write results and table."""
    rows = [row for name in BASES for row in rows_of(name)]
    header = {
        "command": "python -m bench.quantised",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: version(name) for name in ("smidgen", "torch", "diffusers")},
        "unit": "of the length in float32",
    }
    RESULTS.write_text(json.dumps(header | {"rows": rows}, indent=2) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), rows))
    print(table_of(rows))


if __name__ == "__main__":
    main()
