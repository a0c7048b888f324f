"""The code blocks of the pages: README.md and all below docs/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
)
BLOCK = re.compile(r"^```(\w*)(?: title=\"(\S+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "sh")  # a block without a language holds commands


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the heading above it, its language, its name if it is a file."""

    page: str
    section: str
    language: str
    title: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a block of the shell."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words


def blocks_of(page: str, section: str | None = None) -> list[Block]:
    """The blocks of a page in order, or those below one heading of it, up to the next one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    outside = BLOCK.sub(lambda block: " " * len(block[0]), text)  # a comment is no heading
    heads = list(re.finditer(r"^#+ (.*)$", outside, re.MULTILINE))
    found = []
    for block in BLOCK.finditer(text):
        above = [head[1] for head in heads if head.start() < block.start()][-1]
        found.append(Block(page, above, block[1], block[2] or "", block[3]))
    return [one for one in found if section in (None, one.section)]
