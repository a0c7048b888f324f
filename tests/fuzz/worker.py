"""A process that runs case after case, and who starts it, and another where a case ended it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.case import Command, Outcome, run
from tests.fuzz.world import World, build

ROOT = Path(__file__).parents[2]
WORKER = "from smidgen.cli.main import main; from tests.fuzz.worker import serve; serve(main)"


def outcomes(cases: Iterable[tuple[str, int]], program: str = WORKER) -> Iterator[Outcome]:
    """What comes of each case, a kind and a seed."""
    process = None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for kind, seed in cases:
            process = process or start(program, folder)
            answer = ask(process, f"{kind}\t{seed}")
            if answer:
                yield Outcome(**json.loads(answer))
            else:  # it ended without a word
                failure = f"its process ended with {process.wait()}"
                yield Outcome(kind, seed, "", "", None, "", failure)
                process = None
        if process is not None:
            process.communicate()


def start(program: str, folder: str) -> subprocess.Popen[str]:
    """A worker, which makes a folder of its own in this one."""
    paths = {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | paths,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen[str], line: str) -> str:
    """The worker's answer, empty if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def serve(main: Command, build: Callable[[], None] = build) -> None:
    """Make the files, then answer each kind and seed that is asked for by its outcome as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed while the files are made is no answer
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), build)
        for line in sys.stdin:
            kind, seed = line.split("\t")
            answers.write(json.dumps(asdict(run(kind, int(seed), main))) + "\n")
            answers.flush()
            world.restore()
