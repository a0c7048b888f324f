"""The processes of `smidgen study run --workers N` end with the one that started them."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from smidgen.study.queue import begin_worker

if __name__ == "__main__":
    spawn = get_context("spawn")
    with ProcessPoolExecutor(2, spawn, initializer=begin_worker, initargs=(1,)) as pool:
        workers = {pool.submit(os.getpid).result()}
        pool.submit(time.sleep, 600)
        while len(workers) < 2:
            workers.add(pool.submit(os.getpid).result())
        print("both are there", flush=True)
        time.sleep(600)
"""
PATIENCE = 120  # seconds, of which one is enough


@pytest.mark.slow
def test_no_process_outlives_the_study_that_was_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as study:
        assert study.stdout is not None
        assert study.stdout.readline() == "both are there\n"
        study.send_signal(signal.SIGKILL)
        study.communicate(timeout=PATIENCE)  # until nobody is left who could write
