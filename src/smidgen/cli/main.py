"""The `smidgen` command: picks the verb, and turns a user's errors into lines and an exit code.

0 done, 1 failed, 2 misuse, 130 interrupted. Only the chosen verb is imported, so that help and most
mistakes are answered before torch loads. SMIDGEN_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from smidgen.errors import SmidgenError, UsageError, shown
from smidgen.evaluation.protocol import version_of
from smidgen.processes import is_main, speaks

VERBS = {
    "train": "fine-tune a base to a folder of images; writes RUN/delta.safetensors",
    "train-many": "fine-tune a base to each of many folders, in mixed batches",
    "sample": "draw images from a base, with or without a delta",
    "evaluate": "measure a run, a delta or a folder of images against a reference",
    "study": "compare methods, options and data sets by a recipe: plan, run, analyse, report",
    "explain": "show what deltas learned: differences, attention, sizes of edits, as pictures",
    "sds": "change a relief until a base takes its views for a subject (an experiment)",
    "compare": "show results of evaluate side by side",
    "anova": "say which factors of a table of measurements make a difference",
    "inspect": "count what a method would train, without weights",
    "verify": "check a base with its released weights: files, network, training, published number",
    "gate": "judge deltas before they are served: their numbers, copies of training pictures",
    "serve": "serve a base and a folder of deltas behind OpenAI's image API",
    "fold": "write a delta into a copy of the base's weights",
    "convert": "write LoRA for other programs, or read theirs",
    "orphans": "say which deltas a new version of their base leaves behind",
    "push": "put a run or a delta on the Hugging Face hub, with a model card",
    "pull": "fetch a delta from the hub; a delta of another base is refused",
    "ls": "list the deltas on the hub",
    "unpack": "write a shipped set of letters as a folder of images",
    "demo": "fine-tune the shipped base to Greek letters (--text: to a drawing); before and after",
}

HELP = """usage: smidgen VERB [RECIPE.toml] [--flag value ...]

smidgen fine-tunes a pretrained diffusion model by a smidgen of its parameters.

{verbs}

examples:
  smidgen demo
  smidgen train --base glyphs --data photos/ --method difffit --steps 400 --output runs/photos

smidgen VERB --help explains a verb. Every flag may stand in a recipe; flags override it.
"""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer names files as they are called
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        return _dispatch(argv)
    except KeyboardInterrupt:
        return _fail("stopped", 130, quiet=not is_main())
    except BrokenPipeError:
        # The reader of our output left, e.g. `| head`: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SmidgenError as error:
        return _fail(str(error), error.exit_code, quiet=not speaks(error))
    except OSError as error:
        return _fail(_os_message(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        return _fail("out of memory: lower --batch-size or --image-size and run again", 1)


def _dispatch(argv: list[str]) -> int:
    if not argv:
        raise UsageError(f"no verb given; choose from: {', '.join(VERBS)} (smidgen --help)")
    verb, *rest = argv
    if verb in ("-h", "--help", "help"):
        listing = "\n".join(f"  {name:<12}{summary}" for name, summary in VERBS.items())
        print(HELP.format(verbs=listing), end="")
        return 0
    if verb in ("-V", "--version"):
        print(f"smidgen {version_of('smidgen') or '(not installed)'}")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise UsageError(f'unknown verb "{verb}"; {hint}choose from: {", ".join(VERBS)}')
    with _log_to_stderr():
        import_module(f"smidgen.cli.{verb.replace('-', '_')}").run(rest)
    return 0


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """What the library logs, as bare lines."""
    logger = logging.getLogger("smidgen")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _fail(message: str, code: int, *, quiet: bool = False) -> int:
    """The exit code, after a line that says why, unless another process says it."""
    if quiet:
        return code
    if os.environ.get("SMIDGEN_DEBUG") and sys.exc_info()[0] is not None:
        raise
    print(f"smidgen: {shown(message)}", file=sys.stderr, flush=True)
    return code


def _os_message(error: OSError) -> str:
    """One line for what the operating system refused."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in NO_SPACE:
        return f"no space left on the disk{where}; free some and run the same command again"
    return f"{error.strerror or error}{where}"


def _out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the processor or the accelerator."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text
