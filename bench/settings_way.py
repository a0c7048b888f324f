"""The way of settings through the files: who holds them, in order, and how often it comes back.

    python bench/settings_way.py train|sample [FOLDER] [--calls]

A small training of "glyphs" on FOLDER (else a few made-up pictures), or a small sampling, is run
and its calls are watched. A function is on the way if a settings object is among its arguments (or
three or more of the fields of SamplingConfig, for code that passes them one by one); "with what
they call" also counts the functions that those call themselves. A call from one place in the source
counts once, however often it runs. The files of these functions in the order of the calls: a return
is a file that comes again after another one. The folder of smidgen that is imported is measured, so
that PYTHONPATH compares two states of the code.

Files and returns at commit 9721404, before settings travelled whole, and on 2026-11-29:

    functions that hold the settings    train 12, 11 -> 13,  5    sample 1, 0 -> 3, 1
    with what they call                 train 31, 51 -> 41, 56    sample 6, 3 -> 7, 5
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

import smidgen

SOURCE = str(Path(smidgen.__file__).parent) + os.sep
CONFIGS = ("RunConfig", "TrainingConfig", "SamplingConfig")
SAMPLING = (
    *("classes", "prompts", "num_images", "steps", "sampler", "guidance", "guidance_channels"),
    *("seed", "batch_size", "precision"),
)


def is_settings(value: Any) -> bool:
    """Whether this is the settings of a run, of a training, of a sampling or of a method."""
    kind = type(value)
    of_method = kind.__module__.startswith("smidgen.methods") and dataclasses.is_dataclass(kind)
    return kind.__name__ in CONFIGS or (of_method and kind.__name__.endswith("Config"))


def holds_settings(frame: FrameType) -> bool:
    """Whether settings are among the arguments of the function that begins."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[:count]
    loose = len(set(names) & set(SAMPLING)) >= 3
    return loose or any(is_settings(frame.f_locals.get(name)) for name in names)


def watch(act: Callable[[], Any], root: str) -> list[tuple[str, str, bool]]:
    """(file, function, whether it holds the settings itself) of every call on the way below the
    function `root`.
    """
    found: dict[tuple[Any, ...], tuple[str, str, bool]] = {}
    stack: list[tuple[FrameType, bool]] = []

    def see(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "return" and stack and stack[-1][0] is frame:
            stack.pop()
        if event != "call" or not code.co_filename.startswith(SOURCE):
            return
        if not stack and code.co_name != root:
            return
        holds, below = holds_settings(frame), bool(stack) and stack[-1][1]
        caller = stack[-1][0] if stack else None
        # a generator goes on from many places; it is entered once
        goes_on = caller is None or bool(code.co_flags & inspect.CO_GENERATOR)
        place = None if goes_on or caller is None else (caller.f_code, caller.f_lineno)
        stack.append((frame, holds))
        if (holds or below) and not code.co_name.endswith(("comp>", "genexpr>")):
            step = (code.co_filename.removeprefix(SOURCE), code.co_qualname, holds)
            found.setdefault((place, code), step)

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return list(found.values())


def report(title: str, steps: list[tuple[str, str, bool]]) -> None:
    """The files in their order, the returns, and between which files they are."""
    files = [file for file, *_ in steps]
    way = files[:1] + [after for before, after in pairwise(files) if before != after]
    seen: set[str] = set()
    returns: Counter[tuple[str, str]] = Counter()
    for before, file in zip([None, *way], way, strict=False):
        if before is not None and file in seen:
            returns[before, file] += 1
        seen.add(file)
    print(f"\n{title}: {len(seen)} files, {returns.total()} returns")
    print("  " + " -> ".join(dict.fromkeys(way)))
    for (before, file), count in returns.most_common():
        print(f"  {count} x {before} -> {file}")


def pictures(folder: Path) -> Path:
    """Three classes of eight random pictures."""
    generator = np.random.default_rng(0)
    for name in ("alpha", "beta", "gamma"):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("folder", type=Path, nargs="?", help="images to train on")
    parser.add_argument("--calls", action="store_true", help="list every call, * holds settings")
    given = parser.parse_args()
    base = smidgen.load_base("glyphs")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data = given.folder or pictures(place / "data")

        def train() -> None:
            small: dict[str, Any] = {"steps": 2, "batch_size": 4, "checkpoint_every": 1}
            small |= {"validation_share": 0.1, "trackers": (), "progress": False}
            small |= {"output": place / "run", "cache_dir": place / "cache"}
            smidgen.train(base, data, **small)

        def sample() -> None:
            smidgen.sample(base, num_images=2, steps=2, sampler="ddim")

        is_train = given.what == "train"
        steps = watch(train if is_train else sample, "fine_tune" if is_train else "sample")
    report("functions that hold the settings", [step for step in steps if step[2]])
    report("with what they call", steps)
    if given.calls:
        for file, function, holds in steps:
            print(f"  {'*' if holds else ' '} {file} {function}")


if __name__ == "__main__":
    main()
