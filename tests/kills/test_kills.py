"""Three runs that are killed at points that no clock decides, and made again."""

import json
import signal

import pytest

from smidgen.cli.main import main
from tests.kills.runs import Kind, arguments, build, difference
from tests.launch import finish, start

# kills itself, as `kill -9` does, when it does `event` to a path that has `part` in it
KILLED = """
import os, signal, sys
event, part, *arguments = sys.argv[1:]
def look(name, about):
    if name == event and any(part in str(one) for one in about):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(look)
from smidgen.cli.main import main
sys.exit(main(arguments))
"""
KINDS = {
    # a checkpoint is complete and has no name yet
    ("os.rename", "checkpoints/step-6"): "--method lora --gradient-accumulation 2",
    # the newest has its name, the oldest is about to go
    ("shutil.rmtree", "checkpoints/step-3"): "--method difffit --keep-checkpoints 1",
    # what a validation found is written, the checkpoint of that step is not
    ("os.rename", "deltas/step-9"): "--method bitfit --validation-share 0.3 --keep-deltas 1",
}


@pytest.mark.slow
@pytest.mark.parametrize(("point", "flags"), KINDS.items(), ids=lambda value: str(value))
def test_a_run_that_is_killed_at_this_point_ends_bit_equal(tmp_path, point, flags):
    build(tmp_path)
    kind = Kind(flags=f"{flags} --checkpoint-every 3", steps=12)
    assert main(arguments(kind, tmp_path, tmp_path / "whole")) == 0

    command = arguments(kind, tmp_path, tmp_path / "killed")
    ((code, _, error),) = finish(start(["-c", KILLED, *point, *command], 1))
    assert code == -signal.SIGKILL, error
    assert main(command) == 0
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["resumed_at_step"] in (3, 6)
    assert difference(tmp_path / "whole", tmp_path / "killed") is None
