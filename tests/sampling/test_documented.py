"""docs/sampling.md is true: its examples run as they stand there, one after another."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from smidgen.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL)
FEW = ["--steps", "2", "--num-images", "4"]  # the later of two flags counts


def commands():
    for kind, text in BLOCKS:
        if kind == "python":
            yield text
        else:
            yield from (shlex.split(line) for line in text.replace("\\\n", " ").splitlines())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_examples_change_restore_list_and_repeat(folder):
    ran = []
    for command in commands():
        if isinstance(command, str):
            exec(command, {})
            continue
        program, verb, *arguments = command
        assert program == "smidgen"
        few = FEW if verb == "sample" and "--like" not in arguments else []
        assert main([verb, *arguments, *few]) == 0
        ran.append(arguments[-1])
    assert ran[1:] == [
        *("changed", "inpainted", "denoised", "upscaled"),
        *("grid", "again", "another"),
    ]
    for name in ran[1:6]:
        record = json.loads((folder / name / "sample.json").read_text())
        assert len(record["images"]) == len(list((folder / name).glob("*.png"))) == 4
    assert (folder / "grid" / "page.html").is_file()
    sizes = {Image.open(path).size for path in (folder / "upscaled").glob("*.png")}
    assert sizes == {(64, 64)}
    (again,), (another,) = ((folder / name).glob("*.png") for name in ("again", "another"))
    assert again.read_bytes() == (folder / "grid" / again.name).read_bytes()
    assert another.read_bytes() != again.read_bytes()
