"""What was verified, as a page of Markdown that can be sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

QUESTIONS = {
    "files": "Which files were read?",
    "forward": "Does the network say what stock diffusers says with these weights?",
    "training": "Does a training give the same bits twice, and leave the base alone?",
    "published": "Does the base have the number that its authors published?",
}
VERDICTS = {
    "pass": "all that can be judged passed",
    "fail": "a check failed",
    "incomplete": "nothing failed; not every check was possible",
}


def page_of(document: Mapping[str, Any]) -> str:
    """The page of a verification's document."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    yield f"# {document['base']}: {VERDICTS[document['verdict']]}"
    yield ""
    yield f"{document['network']}, {document['parameters']:,} parameters, {document['date']}"
    yield ""
    yield "| check | | found |"
    yield "|---|---|---|"
    for check in document["checks"]:
        yield f"| {QUESTIONS[check['name']]} | **{check['status']}** | {_cell(check['found'])} |"
    yield ""
    yield "## Machine"
    yield ""
    yield f"- {machine['processor']}, {machine['cores']} cores"
    yield f"- accelerators: {', '.join(machine['accelerators']) or 'none'}"
    yield f"- {', '.join(f'{name} {one}' for name, one in machine['versions'].items())}"
    for check in document["checks"]:
        yield ""
        yield f"## {QUESTIONS[check['name']]}"
        yield ""
        yield from _facts(check["facts"], "")
    yield ""
    yield "The same numbers are in verify.json."


def _facts(facts: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in facts.items():
        label = name.replace("_", " ") if "/" not in name else f"`{name}`"
        if isinstance(value, Mapping):
            yield f"{indent}- {label}:"
            yield from _facts(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}- {label}: {', '.join(map(str, value))}"
        else:
            yield f"{indent}- {label}: {_cell(str(value))}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
