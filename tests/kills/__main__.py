"""`python -m tests.kills`: twenty runs of all kinds are killed at random moments and made again by
the same command; each must end bit-equal to a run of its kind that nobody killed.
"""

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom
from subprocess import Popen

from tests.kills.runs import PROMPTS, RUNS, Kind, arguments, build, difference
from tests.launch import finish, start
from tests.tiny.pipelines import TINY_PIPELINES

KILLS = 20
LONGEST = 0.05  # seconds that a kill comes after a step: that of a slow one


def begin(kind: Kind, folder: Path, output: Path) -> list[Popen[str]]:
    """Start the run."""
    return start(["-m", "smidgen.cli", *arguments(kind, folder, output)], kind.processes)


def complete(processes: Sequence[Popen[str]]) -> None:
    """Wait for a run that must succeed."""
    for code, _, error in finish(processes):
        assert code == 0, error


def killed(processes: Sequence[Popen[str]], victim: Popen[str], log: Path, steps: int) -> bool:
    """Kill one process of a run at a random moment from when this many steps are in its log; False
    if it had ended. The others must end too, and one of them say why in one line.
    """
    while victim.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < steps):
        time.sleep(0.001)
    time.sleep(SystemRandom().uniform(0, LONGEST))
    with contextlib.suppress(ProcessLookupError):
        victim.kill()
    outcomes = finish(processes)
    errors = "".join(error for code, _, error in outcomes if code)
    assert "Traceback" not in errors, errors
    assert errors.count("smidgen: ") == any(code > 0 for code, _, _ in outcomes), errors
    return victim.returncode == -signal.SIGKILL


def main() -> int:
    """Twenty kills, all kinds by turns; returns 1 if a run ended otherwise than a whole one."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as root:
        folder = Path(root)
        build(folder)
        TINY_PIPELINES["sd"].save(folder / PROMPTS)
        for number in range(KILLS):
            name, kind = list(RUNS.items())[number % len(RUNS)]
            whole, output = folder / f"whole {name}", folder / str(number)
            if not whole.exists():
                complete(begin(kind, folder, whole))
            while True:
                steps = SystemRandom().randrange(kind.steps)
                processes = begin(kind, folder, output)
                victim = SystemRandom().choice(processes)
                if killed(processes, victim, output / "log.jsonl", steps):
                    break
                shutil.rmtree(output)  # it was done: another moment
            left = ", ".join(path.name for path in sorted(output.glob("checkpoints/*")))
            complete(begin(kind, folder, output))
            what = difference(whole, output)
            failures += what is not None
            print(
                f"{number + 1:2} {name}: killed after step {steps} of {kind.steps}, with "
                f"{left or 'no checkpoint'}: {what or 'bit-equal'}",
                flush=True,
            )
    print(f"{KILLS - failures} of {KILLS} bit-equal")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
