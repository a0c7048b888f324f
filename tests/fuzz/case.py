"""One case: a file of the world changed by a seed, a command that reads it, and what must hold."""

import contextlib
import math
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.changes import another
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.world import CACHE, Marks, marks

MOST_SECONDS = 10  # of the processor, all threads together: another's work does not count
MOST_BYTES = 2**30  # which a command may ask for beyond what this process has
HANG = 600  # seconds after which a command that does nothing counts as hung
MOST_LINE = 1000  # characters
HARMFUL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # a terminal obeys these
FREE = (CACHE, "out", "run/bad_files.json", "run/recipe.toml")  # what a refusal may change too
ANOTHER = 0.08  # share of cases in which something else is in the file's place

Command = Callable[[Sequence[str]], int]  # the program's main


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `failure` says what must not be, None: nothing."""

    kind: str
    seed: int
    change: str
    command: str
    code: int | None
    line: str
    failure: str | None


def run(kind: str, seed: int, main: Command) -> Outcome:
    """Change a file of the kind, run a command that reads it, judge what that did. The folder is
    left as the command left it. Seeds below 0 change nothing: -1 is the first command, and so on.
    """
    described, rng = KINDS[kind], Random(f"{kind}/{seed}")
    files = [path for glob in described.files for path in sorted(Path().glob(glob))]
    if seed < 0:
        change, file, command = "nothing", files[0], described.commands[-1 - seed]
    else:
        file, command = rng.choice(files), rng.choice(described.commands)
        change = changed(file, described, rng)
        command += " --json" * (rng.random() < 0.5)
    command = command.format(file=file, stem=file.stem, top=file.parts[0])
    before, start = marks(), time.process_time()
    with limited(), captured() as texts:
        try:
            code = main(command.split())
        except BaseException:  # whatever it is, it must not get here
            code = None
            traceback.print_exc()
    seconds = time.process_time() - start
    out, err = (text.decode(errors="replace").strip() for text in texts)
    failure = unfit(code, out, err) or touched(described, before, marks(), code)
    if seconds > MOST_SECONDS:
        failure = f"it took {seconds:.1f} s"
    line = err.splitlines()[-1] if err else ""
    return Outcome(kind, seed, f"{change} of {file}", command, code, line, failure)


def changed(path: Path, kind: Kind, rng: Random) -> str:
    """Change a file; returns the change's name."""
    change = another if rng.random() < ANOTHER else rng.choice(kind.changes)
    change(path, rng)
    return change.__name__


def unfit(code: int | None, out: str, err: str) -> str | None:
    """What is wrong with an answer, which must be: done, or refused in one line."""
    lines = [line for line in err.splitlines() if line.startswith("smidgen: ")]
    if code not in (0, 1, 2) or "Traceback" in err:
        return f"it ended with {code}: {err[-3000:]}"
    if harmful := HARMFUL.search(out + err):
        return f"it shows {harmful[0]!r}: {(out + err)[-3000:]!r}"
    if code == 0:
        return f"it succeeded and says {lines[0]}" if lines else None
    last = err.splitlines()[-1] if err else ""
    if lines != [last] or len(last) > MOST_LINE:
        return f"not one line: {err[-3000:]}"
    return f"it asked for more than {MOST_BYTES:,} bytes" if "out of memory" in last else None


def touched(kind: Kind, before: Marks, after: Marks, code: int | None) -> str | None:
    """Which file changed, went or came that must not. New ones may come where the command is done:
    a changed recipe can ask for any.
    """
    free = (*FREE, *(kind.own if code == 0 else ()))
    for path in {**before, **after}:
        is_new = path not in before
        if is_new and (path.endswith((".partial", ".lock")) or path.startswith("tmp/")):
            return f"{path} is left behind"
        if before.get(path) == after.get(path) or path.startswith(free) or (is_new and code == 0):
            continue
        return f"{path} is {'new' if is_new else 'changed' if path in after else 'gone'}"
    return None


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """The system ends this process some seconds beyond its time, and gives no more than it may."""
    used = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    bounds = {
        resource.RLIMIT_CPU: math.ceil(time.process_time()) + MOST_SECONDS + 2,
        resource.RLIMIT_DATA: used + MOST_BYTES,
    }
    before = {limit: resource.getrlimit(limit) for limit in bounds}
    for limit, most in bounds.items():
        resource.setrlimit(limit, (most, before[limit][1]))
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        for limit, values in before.items():
            resource.setrlimit(limit, values)


@contextlib.contextmanager
def captured() -> Iterator[list[bytes]]:
    """What anything writes to stdout and stderr, that of C too, once the body has ended."""
    texts: list[bytes] = []
    with tempfile.TemporaryFile(dir="/tmp") as out, tempfile.TemporaryFile(dir="/tmp") as err:
        saved = [os.dup(number) for number in (1, 2)]
        for number, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), number)
        try:
            yield texts
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
