"""Starts a Python program in several processes, with the environment that torchrun gives each."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
HANG = 600  # seconds after which a process counts as hung


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(program: Sequence[str], count: int) -> list[subprocess.Popen]:
    """`program` (arguments of Python) as ranks 0 to `count` - 1, their outputs piped as text."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, *program],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else shared,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(count)
    ]


def finish(started: Sequence[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each, once all have ended; none is left behind."""
    try:
        outputs = [process.communicate(timeout=HANG) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]
