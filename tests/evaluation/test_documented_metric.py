"""docs/add-a-metric.md is true: its metric goes through evaluate, result.json, compare and help."""

import contextlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

import smidgen
from smidgen.cli.main import main
from smidgen.evaluation import features, table

from .conftest import class_folder, colour_extractor

PAGE = Path(__file__).parents[2] / "docs" / "add-a-metric.md"


@pytest.fixture(autouse=True)
def _energy(monkeypatch):
    """The page's module in its place, and its row at the end of the table."""
    function, row = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("smidgen.evaluation.energy")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(function, str(PAGE), "exec"), vars(module))
    rows = {}
    exec(compile(row, str(PAGE), "exec"), rows)
    for name, metric in rows["ROW"].items():
        monkeypatch.setitem(table.METRICS, name, metric)
    colours = replace(colour_extractor(), name="glyphs")  # a name that the command line knows
    monkeypatch.setattr(features, "EXTRACTORS", {"glyphs": lambda device: colours})


def folder_features(folder: Path) -> np.ndarray:
    extractor = colour_extractor()
    paths = sorted(folder.rglob("*.png"))
    pixels = [extractor.prepare(np.asarray(Image.open(path))) for path in paths]
    return np.concatenate([extractor.read(one[None])[0].double().numpy() for one in pixels])


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    return 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()


def measured(images: Path, reference: Path, output: Path) -> dict:
    asked = ["--metrics", "energy,fd", "--device", "cpu", "--output", str(output)]
    assert main(["evaluate", str(images), "--reference", str(reference), *asked]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


def test_the_documented_metric_is_measured_recorded_and_shown(tmp_path, capsys):
    images, reference = class_folder(tmp_path / "a", 3), class_folder(tmp_path / "b", 2, seed=1)
    expected = by_pairs(folder_features(images), folder_features(reference))
    document = measured(images, reference, tmp_path / "first.json")
    assert document["metrics"]["energy"] == pytest.approx(expected, rel=1e-9)
    assert document["protocol"]["metric_settings"] == {"energy": {"power": 1.0}}
    assert re.search(rf"energy distance +{expected:.3f}", capsys.readouterr().out)
    (tmp_path / "second.json").write_text(json.dumps(document), encoding="utf-8")
    assert main(["compare", *(str(tmp_path / f"{name}.json") for name in ("first", "second"))]) == 0
    head, line, *_ = capsys.readouterr().out.splitlines()
    assert "energy ↓" in head
    assert f"{expected:.3f}" in line


def test_the_documented_metric_is_compared_at_equal_settings_only(tmp_path, monkeypatch):
    images, reference = class_folder(tmp_path / "a", 3), class_folder(tmp_path / "b", 2, seed=1)
    first = measured(images, reference, tmp_path / "first.json")
    other = replace(table.METRICS["energy"], settings={"power": 1.5})
    monkeypatch.setitem(table.METRICS, "energy", other)
    second = measured(images, reference, tmp_path / "second.json")
    assert second["metrics"]["energy"] != first["metrics"]["energy"]
    with pytest.raises(smidgen.SmidgenError, match=r"metric_settings\.energy"):
        smidgen.compare({"a": first, "b": second})


def test_the_help_explains_the_documented_metric(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "smidgen.cli.evaluate", raising=False)  # read the table anew
    with contextlib.suppress(SystemExit):
        main(["evaluate", "--help"])
    assert re.search(r"energy +energy distance of the features", capsys.readouterr().out)


def test_the_documented_metric_says_why_it_cannot_be_had(tmp_path):
    images = class_folder(tmp_path / "a", 2)
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(smidgen.SmidgenError, match="energy unknown: the reference holds no feat"):
        smidgen.evaluate(images, tmp_path / "theirs.npz", metrics=["energy"])
