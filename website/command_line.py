"""The reference of the command line: what `smidgen VERB --help` says of every verb."""

import contextlib
import io
import os
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from smidgen.cli.main import VERBS, main

PLACE = "reference/command-line.md"
INTRODUCTION = """# The command line

Every setting below may stand in a recipe, under its name with underscores; a flag goes before it.
The verbs:
"""


def help_of(*arguments: str) -> str:
    """What the command prints, in lines that fit the page."""
    printed = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="82")
    with wide, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return printed.getvalue()


def page() -> str:
    """The reference as Markdown."""
    listed = [f"- [{verb}](#{verb}): {what}" for verb, what in VERBS.items()]
    parts = [f"## {verb}\n\n```text\n{help_of(verb)}```" for verb in VERBS]
    return "\n\n".join([INTRODUCTION, "\n".join(listed), *parts])


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the page."""
    files.append(File.generated(config, PLACE, content=page()))
