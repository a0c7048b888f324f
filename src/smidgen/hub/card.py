"""The model card of a delta, from its header and its result: metadata that the hub searches, and a
page for people. Nothing is in it that the files do not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smidgen.core.delta import Delta
from smidgen.errors import shown
from smidgen.evaluation.compare import feature_blocks
from smidgen.evaluation.metric_table import baseline_texts, header_text, value_text
from smidgen.evaluation.table import METRICS
from smidgen.hub import usage
from smidgen.hub.config import TAG, PushConfig
from smidgen.hub.contents import Contents, last_name
from smidgen.models.labels import trained_prompt
from smidgen.models.names import on_hub

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

RESULT_NAME = "the result"  # in messages
MOST_CLASSES, MOST_SHOWN = 40, 400  # classes that are listed, characters of a text
CLASSES, PROMPTS = "unconditional-image-generation", "text-to-image"  # the hub's names of tasks
SETTINGS = ("lr", "batch_size", "optimizer", "ema_decay", "precision", "seed")  # that are shown


def make_card(contents: Contents, config: PushConfig) -> ModelCard:
    """The card of `contents` in the repository of `config`."""
    from huggingface_hub import ModelCard, ModelCardData

    delta, name = contents.delta, config.repo.partition("/")[2]
    known = delta.provenance
    base = shown(last_name(known.base))
    base_model = config.base_model or (known.base if on_hub(known.base) else None)
    task = CLASSES if known.host == usage.OWN_NETWORK else PROMPTS
    results = list(_results(contents.result, task))
    summary = {
        "base": base,
        "fingerprint": known.fingerprint,
        "method": known.method,
        "trainable": delta.num_parameters(),
        "classes": len(known.classes),
    }
    others: dict[str, Any] = {"base_model_relation": "adapter"} if base_model else {}
    others[TAG] = summary
    data = ModelCardData(
        license=config.licence,
        base_model=base_model,
        library_name=TAG,
        tags=[TAG, known.method],
        pipeline_tag=task,
        model_name=name if results else None,
        eval_results=results or None,
        **others,
    )
    lines = [
        f"# {name}",
        "",
        f"A delta of {delta.num_parameters():,} trained parameters "
        f"({contents.delta_bytes:,} bytes) for the diffusion model {_code(base_model or base)}, "
        f"made by smidgen with the method {_code(known.method)}. The base is not "
        "in this repository and is never changed.",
        "",
        *([f"![Samples]({contents.picture})", ""] if contents.picture else []),
        *_table(dict(_facts(contents, config, base_model or base))),
        *_measured(contents.result),
        "## Use",
        "",
        *usage.here(delta, config.repo, base_model or base),
    ]
    if section := usage.in_diffusers(delta, config.repo, base_model or base):
        lines += ["### In diffusers", "", *section]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))


def _facts(contents: Contents, config: PushConfig, base: str) -> Iterator[tuple[str, str]]:
    """The rows of the first table."""
    delta = contents.delta
    known, training = delta.provenance, delta.provenance.training
    yield "base", _code(base)
    yield "fingerprint of the base", _code(known.fingerprint)
    options = ", ".join(f"{name} = {value}" for name, value in known.config.items())
    yield "method", _code(known.method) + (f": {_code(options)}" if options else "")
    if delta.components:
        yield "acts in", ", ".join(_code(one) for one in ("the denoiser", *delta.components))
    yield from _shows(delta)
    data = training.get("data")
    if isinstance(data, Mapping):
        yield "data", _data(data)
    settings = training.get("settings")
    settings = settings if isinstance(settings, Mapping) else training
    steps = training.get("step", settings.get("steps"))
    parts = [] if steps is None else [f"{steps} steps"]
    parts += [f"{name} {settings[name]}" for name in SETTINGS if name in settings]
    if parts:
        yield "training", _code(", ".join(parts))
    for name in ("strength", "sum_of", "init"):
        if name in training:
            yield name.replace("_", " "), _code(str(training[name]))
    if contents.date:
        yield "date", _code(contents.date)
    versions = training.get("versions")
    if isinstance(versions, Mapping):
        yield "versions", _code(", ".join(f"{name} {v}" for name, v in versions.items()))
    yield "licence", _code(config.licence) if config.licence else "none was given"


def _shows(delta: Delta) -> Iterator[tuple[str, str]]:
    """What the delta was trained to show."""
    classes = delta.provenance.classes
    if classes:
        more = f" and {len(classes) - MOST_CLASSES:,} more" if len(classes) > MOST_CLASSES else ""
        named = ", ".join(map(_code, classes[:MOST_CLASSES]))
        yield f"classes ({len(classes):,})", named + more
    prompt = trained_prompt(delta)
    if prompt is not None:
        yield "prompt", _code(prompt)


def _data(data: Mapping[str, Any]) -> str:
    parts = [f"{data[name]}" for name in ("name", "split") if data.get(name)]
    if isinstance(data.get("images"), int):
        parts.append(f"{data['images']:,} images")
    parts += [f"{name.replace('_', ' ')} {data[name]}" for name in ("image_size",) if name in data]
    parts += [f"{name} {data[name]}" for name in ("resize", "flip") if name in data]
    return _code(", ".join(parts))


def _results(result: Mapping[str, Any] | None, task: str) -> Iterator[EvalResult]:
    """Every number of a result as the hub has such. Of a number with a spread that is the mean, and
    the spread is among its arguments.
    """
    from huggingface_hub import EvalResult

    if result is None:
        return
    for features, block in feature_blocks(RESULT_NAME, result).items():
        protocol = block["protocol"]
        for name, value in block["metrics"].items():
            if value is None:
                continue
            spread = value if isinstance(value, Mapping) else None
            yield EvalResult(
                task_type=task,
                dataset_type="imagefolder",
                dataset_name=last_name(protocol.get("reference") or "unknown"),
                dataset_config=features,
                dataset_revision=protocol.get("reference_identity"),
                metric_type=name,
                metric_name=METRICS[name].label if name in METRICS else name,
                metric_value=value if spread is None else spread["mean"],
                metric_args={"num_images": protocol.get("num_images")}
                | ({} if spread is None else {"std": spread["std"]}),
            )


def _measured(result: Mapping[str, Any] | None) -> Iterator[str]:
    """The results for people: a table for each of the features, what they depend on, warnings."""
    if result is None:
        return
    yield from ("## Results", "", f"Of {_code(header_text(result['protocol']))}.", "")
    for features, block in feature_blocks(RESULT_NAME, result).items():
        protocol = block["protocol"]
        against = protocol.get("reference") or "no reference"
        number = protocol.get("num_reference")
        images = f", {number:,} images" if number else ""
        yield from (f"Features {_code(features)}, against {_code(against)}{images}:", "")
        yield from ("| metric | value | better | beside it |", "|---|---|---|---|")
        for name, value in block["metrics"].items():
            row = METRICS.get(name)
            better = "" if row is None else "higher" if row.higher_is_better else "lower"
            beside = [
                *baseline_texts(name, value, block.get("baselines", {})),
                *block.get("notes", {}).get(name, ()),
            ]
            cells = (row.label if row else name, value_text(name, value), better, "; ".join(beside))
            yield f"| {' | '.join(map(_cell, cells))} |"
        yield ""
        yield from (f"- {_cell(text)}" for text in block.get("warnings", ()))
        yield ""


def _table(rows: Mapping[str, str]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items()), ""]


def _code(text: str) -> str:
    """Text as code in a table's cell: nothing in it is Markdown or HTML, and it is one line."""
    plain = shown(text[:MOST_SHOWN]).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain.strip() else ""


def _cell(text: str) -> str:
    """Text in a table's cell."""
    plain = shown(text[:MOST_SHOWN])
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("[", "\\[")):
        plain = plain.replace(mark, instead)
    return plain
