"""`explain`: pictures and numbers of what the deltas of some runs learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smidgen.api.evaluation import Drawn, delta_file, delta_of
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.explanation.config import DOCUMENT, ExplanationConfig
from smidgen.explanation.run import Explanation
from smidgen.explanation.run import explain as look_at
from smidgen.files.settings import make
from smidgen.files.writing import whole_file, write_json, write_text
from smidgen.models.base import Base


def explain(
    runs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    base: Base | str | Path | None = None,
    device: str = "cpu",
    report: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What the deltas of these runs (folders or delta files, of one base) learned, as explain.json
    has it (docs/explain.md); with `output` also as files in that folder.

    `base` None: the one that the first run's recipe or the delta's header names. `settings`: those
    of ExplanationConfig, such as prompt, without, word, class_name, num_images, times, seed.

    Raises: UsageError for what is no run or delta, or a setting that makes no sense; SmidgenError
        for a delta of another base, or if the disk refuses.
    """
    sources = [runs] if isinstance(runs, str | Path) else list(runs)
    config = make(ExplanationConfig, settings)
    drawn = Drawn(base=base)
    found = look_at_runs(list(map(Path, sources)), config, drawn, device, report)
    if output is not None:
        write_explanation(found, Path(output))
    return found.document()


def look_at_runs(
    sources: Sequence[Path],
    config: ExplanationConfig,
    drawn: Drawn,
    device: str,
    report: Callable[[int, int], None] | None = None,
) -> Explanation:
    """`explain` with its settings as objects, before anything is written."""
    deltas = load_deltas(sources)
    base = drawn.load(sources[0], deltas[0][1], EvaluationConfig(device=device), None)
    return look_at(base, deltas, config, report)


def load_deltas(sources: Sequence[Path]) -> list[tuple[str, Delta]]:
    """The deltas of runs with a name each: that of the run's folder, or of the file, and as much of
    the path before it as tells it from the others.

    Raises: UsageError for what is no run or delta, one that is given twice, or none; SmidgenError
        for a file that is no delta.
    """
    check_sources(sources)
    return [(name, Delta.load(delta_of(path))) for name, path in named(sources).items()]


def check_sources(sources: Sequence[Path]) -> None:
    """Raises: UsageError for what is no run or delta, one that is given twice, or none."""
    if not sources:
        raise UsageError("no runs given; give run folders or delta files")
    for source in sources:
        delta_file(source)
    if len({source.resolve() for source in sources}) < len(sources):
        raise UsageError("a run is given twice; give each once")


def named(sources: Sequence[Path]) -> dict[str, Path]:
    """The shortest ends of the paths that tell them apart, all of as many parts."""
    paths = [source.resolve() for source in sources]
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest + 1):
        names = {Path(*path.parts[-count:]).as_posix(): path for path in paths}
        if len(names) == len(paths):
            break
    return names


def write_explanation(
    found: Explanation, folder: Path, request: dict[str, Any] | None = None
) -> list[str]:
    """The pictures, as PNG and SVG, and explain.json, which is written last; their names.

    Raises: SmidgenError if the disk refuses.
    """
    from smidgen.explanation.figures import figures_of
    from smidgen.figures import png, svg

    names = []
    for name, figure in figures_of(found).items():
        with whole_file(folder / f"{name}.png") as partial:
            partial.write_bytes(png(figure))
        write_text(svg(figure) + "\n", folder / f"{name}.svg")
        names += [f"{name}.png", f"{name}.svg"]
    document = found.document()
    write_json(document if request is None else {**document, "request": request}, folder / DOCUMENT)
    return [*names, DOCUMENT]
