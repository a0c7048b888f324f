"""A process that has loaded a base keeps what it frees, unless its environment decides that."""

import os
import subprocess
import sys

import pytest

from smidgen import allocator

PROGRAM = """
import resource, torch
from smidgen.allocator import keep_freed_memory
print(keep_freed_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)  # 64 MiB, more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
pytestmark = pytest.mark.skipif(not allocator._has_glibc(), reason="glibc alone is set")


def told(**variables: str) -> list[str]:
    inherited = {n: v for n, v in os.environ.items() if n != "GLIBC_TUNABLES" and "MALLOC" not in n}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=inherited | variables, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.slow
def test_pages_are_taken_once():
    kept, faults = told()
    assert kept == "True"
    assert int(faults) < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "variable", [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=4")]
)
def test_what_the_environment_says_stays(variable):
    assert told(**dict([variable]))[0] == "False"
