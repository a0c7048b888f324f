"""Class names of every kind on their way through the verbs: own names in the records, shown ones
in messages, short ones on the disk; and folders as people have them.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from smidgen.core.delta import Delta

from .conftest import train_arguments

LONG = ("夕暮れの東京タワーと満開の桜並木を背景にした肖像写真集特別限定版二〇二六年春号" * 3)[:83]
NAMES = ("東京\u3000タワー", LONG, LONG[:82] + "夜", "two\nlines", "dot.", "con")


@pytest.fixture
def named(photos, tmp_path) -> Path:
    """The pictures of two classes under each of the names."""
    for number, name in enumerate(NAMES):
        shutil.copytree(photos / ("dog", "elk")[number % 2], tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such folders")
def test_classes_keep_their_names_from_the_folder_to_the_result(smidgen, base, named, tmp_path):
    delta = tmp_path / "run" / "delta.safetensors"
    outcome = smidgen(*train_arguments(base, named, tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert sorted(Delta.load(delta).provenance.classes) == sorted(NAMES)

    samples = tmp_path / "samples"
    places = ("--base", base, "--delta", delta, "--output", samples)
    outcome = smidgen("sample", *places, "--steps", "1", "--num-images", 2 * len(NAMES))
    assert outcome.code == 0, outcome.err
    record = json.loads((samples / "sample.json").read_text(encoding="utf-8"))
    assert sorted(record["images"].values()) == sorted(2 * NAMES)
    assert {path.name for path in samples.glob("*.png")} == record["images"].keys()
    assert all(len(os.fsencode(name)) <= 255 for name in record["images"])
    assert len({name.partition("-")[2] for name in record["images"]}) == len(NAMES)

    outcome = smidgen("evaluate", samples, "--reference", named, "--json")
    assert outcome.code == 0, outcome.err
    assert "count as unknown" not in json.dumps(outcome.document)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such folders")
def test_an_unknown_class_is_told_in_one_line_whatever_the_others_are_called(
    smidgen, base, named, tmp_path
):
    smidgen(*train_arguments(base, named, tmp_path / "run"))
    places = ("--base", base, "--delta", tmp_path / "run" / "delta.safetensors")
    outcome = smidgen("sample", *places, "--classes", "none", "--output", tmp_path / "samples")
    assert outcome.code == 2
    assert len(outcome.complaint) == 1
    assert "two\\nlines" in outcome.err
    assert "東京\u3000タワー" in outcome.err


def test_a_folder_that_is_not_utf8_is_refused_before_any_work(smidgen, base, photos, tmp_path):
    raw = tmp_path / "photos" / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(photos / "dog", raw)
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    run = tmp_path / "run"
    for data in (tmp_path / "photos", raw):
        for arguments in (
            train_arguments(base, data, run),
            ("evaluate", data, "--reference", photos),
            ("evaluate", photos, "--reference", data),
        ):
            outcome = smidgen(*arguments)
            assert outcome.code == 1
            assert len(outcome.complaint) == 1
            assert r'caf\udce9" has a name that is not UTF-8' in outcome.err
    assert not run.exists()


def test_side_files_wrong_suffixes_and_duplicates_train_with_a_word_about_each(
    smidgen, base, photos, tmp_path
):
    folder = tmp_path / "photos" / "dog"
    shutil.copytree(photos / "dog", folder)
    shutil.copy(folder / "0.png", folder / "again.png")
    for number in range(4):
        (folder / f"{number}.xmp").write_text("<x:xmpmeta/>")
        (folder / f"{number}.pt").write_bytes(b"PK\3\4")
        Image.open(folder / f"{number}.png").save(folder / f"web {number}.jpg", "WEBP")
    outcome = smidgen(*train_arguments(base, folder.parent, tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    for line in (
        "9 image(s) in 1 class(es)",
        "4 with the suffix of another format",
        "1 are duplicates of others",
        "8 side file(s)",
        "8 encoded, 0 from the cache",
    ):
        assert line in outcome.err


@pytest.mark.skipif(sys.platform != "linux", reason="others have no such names")
def test_an_output_that_is_not_utf8_is_named_by_its_own_bytes(tmp_path):
    """On a terminal that takes nothing but UTF-8 in text."""
    output = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "smidgen.cli", "unpack", "subjects", "--output", output],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == output
