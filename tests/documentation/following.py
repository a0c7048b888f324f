"""Somebody who does what a page says, in the working folder, with few steps in place of many."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from smidgen.cli.main import main
from smidgen.serving.app import create_app
from smidgen.serving.config import API_KEY
from tests.answering import answering
from tests.documentation.pages import SHELL, Block
from tests.documentation.reading import read_command

SERVED = "http://127.0.0.1:8000"  # where pages say that a server answers


def follow(
    blocks: Iterable[Block],
    few: Mapping[str, Sequence[str]],
    space: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the blocks one after the other; the names that Python has then. `few`: flags that go
    behind those of a verb, or with which its name begins; the later of two flags counts.
    """
    space = {} if space is None else space
    address = SERVED
    with contextlib.ExitStack() as servers:
        for block in blocks:
            block = replace(block, text=block.text.replace(SERVED, address))
            if block.title:
                Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                exec(compile(block.text, block.page, "exec"), space)
            elif block.language in SHELL:
                for words in block.commands():
                    if "serve" in words[:3]:
                        address = servers.enter_context(answering(_app(words)))
                    else:
                        _do(words, few)
    return space


def _do(words: list[str], few: Mapping[str, Sequence[str]]) -> None:
    match words:
        case ["smidgen", verb, *arguments]:
            code = main([verb, *arguments, *few.get(verb, ())])
            assert code == 0, words
        case ["curl", address, *rest]:
            body = rest[rest.index("-d") + 1]
            json = {"Content-Type": "application/json"}
            answer = httpx.post(address, content=body, headers=json, timeout=600)
            assert answer.status_code == 200, answer.text
        case ["mkdir" | "mv", *_]:
            subprocess.run(words, check=True)
        case _:
            raise AssertionError(f"not done here: {words}")


def _app(words: list[str]) -> Any:
    """What `smidgen serve` answers with; the names before the command are its environment."""
    own = dict(word.split("=", 1) for word in words[: words.index("smidgen")])
    configs = read_command(words)
    key = own.get(API_KEY, os.environ.get(API_KEY))
    return create_app(configs["base"].load(), configs["serving"], key)
