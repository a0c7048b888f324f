"""The processes of `smidgen study run --workers N` save and end with the one that started them."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from smidgen.study import queue

PROGRAM = """
import sys, time
from tqdm import tqdm
from smidgen.study import queue
from smidgen.training.interrupt import Interrupted, stop_requests

def say(line):
    sys.stdout.write(line + "\\n")  # in one write: several processes have this pipe
    sys.stdout.flush()

def stand_in(task):
    if task.places == ("short",):
        return ["short"]
    if task.places == ("damaging",):
        queue.os._exit(9)
    tqdm.get_lock()  # as a training has, which shows a bar
    with stop_requests() as stop:
        say("begun")
        while stop.signal is None:
            time.sleep(0.01)
        time.sleep(0.1)
        say("saved")
    raise Interrupted("stopped", stop.signal)

queue.do = stand_in  # in the workers too, which run this file as well

if __name__ == "__main__":
    names = sys.argv[1:]
    how = {"source": "", "output": "", "force": False, "retry": False}
    tasks = [queue.Task(places=(name,), **how) for name in names]
    try:
        for done in queue._by_pool(tasks, 2, print):
            say("done")
    except (KeyboardInterrupt, queue.SmidgenError) as error:
        print(type(error).__name__, error)
"""
SLOW_START = """
import sys
if any("spawn_main" in word for word in sys.orig_argv):
    sys.stdout.write("starting\\n")
    sys.stdout.flush()
    sys.stdin.readline()
"""
ALONE = {"stopped": signal.SIGINT, "ended": signal.SIGTERM, "killed": signal.SIGKILL}
PATIENCE = 600  # seconds, after which what has not ended never will


@pytest.fixture
def study(tmp_path):
    """Starts one of these tasks, and waits until so many lines were written."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def started(*tasks, lines):
        process = subprocess.Popen(
            [sys.executable, program, *tasks],
            **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
            start_new_session=True,
            env=environment,
            text=True,
        )
        for _ in range(lines):
            process.stdout.readline()
        return process

    return started


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [("long", "long", "long"), ("long", "short")], ids=" ".join)
@pytest.mark.parametrize("end", ["ctrl-c", "all ended", "stopped", "ended", "killed"])
def test_what_has_begun_saves_and_nobody_is_left(study, tasks, end):
    process = study(*tasks, lines=2)
    if end in ("ctrl-c", "all ended"):
        os.killpg(process.pid, signal.SIGINT if end == "ctrl-c" else signal.SIGTERM)
    else:
        process.send_signal(ALONE[end])
    out, error = process.communicate(timeout=PATIENCE)  # until nobody is left who could write
    assert out.splitlines().count("saved") == min(tasks.count("long"), 2)
    assert "begun" not in out.splitlines(), "none begins after those that were read above"
    assert "Traceback" not in error
    if end != "killed":
        assert "waiting for what has begun" in out
        name = "KeyboardInterrupt" if end in ("ctrl-c", "stopped") else "Interrupted stopped;"
        assert out.splitlines()[-1].startswith(name)
        assert not error


@pytest.mark.slow
def test_nothing_begins_in_workers_that_were_starting_at_ctrl_c(study, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    process = study("long", "long", lines=2)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate("start\n" * 2, timeout=PATIENCE)
    assert "KeyboardInterrupt" in out
    assert "begun" not in out.splitlines()
    assert "Traceback" not in error


def test_a_worker_that_ctrl_c_came_to_begins_nothing_more(monkeypatch):
    monkeypatch.setattr(queue, "_ended", threading.Event())
    monkeypatch.setattr(queue, "do", lambda task: pytest.fail("it has begun"))
    queue._hold(True, signal.SIGINT)
    try:
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):  # the other may be a task of a worker that is still starting
            with pytest.raises(KeyboardInterrupt):
                queue.do_as_worker(None)
    finally:
        queue._hold(False, signal.SIGINT)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_in_one_line(study):
    out, error = study("short", "damaging", lines=0).communicate(timeout=PATIENCE)
    assert "SmidgenError a worker was killed, most often as memory ran out" in out
    assert "Traceback" not in error
