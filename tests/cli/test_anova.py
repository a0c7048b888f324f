"""`smidgen anova` and `smidgen.anova`: one analysis, as tables, as JSON and in Python."""

import csv
import json

import pytest

import smidgen as package
from tests.statistics.designs import crossed, paper

from .test_misuse import assert_refused

FACTORS = ("--metric", "clip_i", "--factors", "input,output")


def write_table(path, columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture
def pairs(tmp_path):
    return write_table(tmp_path / "pairs.csv", paper(subjects=("owl", "dog")))


def test_json_is_one_document_and_that_of_python(smidgen, tmp_path):
    path = write_table(tmp_path / "t.csv", crossed([[2, 3], [3, 2]]))
    flags = ("--metric", "y", "--factors", "a,b", "--blocks", "k", "--interaction", "a:b")
    outcome = smidgen("anova", path, *flags, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert {"terms", "one_way", "aliased", "notes"} <= set(outcome.document)
    settings = {"metric": "y", "factors": ["a", "b"], "blocks": "k", "interaction": "a:b"}
    python = package.anova(str(path), **settings)
    assert json.loads(json.dumps(python)) == outcome.document


def test_the_tables_have_a_row_for_each_term_and_the_notes_last(smidgen, pairs):
    outcome = smidgen("anova", pairs, *FACTORS, "--against", "CA_out:FFN_in")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "clip_i of 120 rows in pairs.csv"
    for title in ("terms, 96 rows in 16 connected cells", "one-way, all rows"):
        place = next(number for number, line in enumerate(lines) if line.startswith(title))
        assert lines[place + 1].startswith("  input  ")
        assert lines[place + 2].startswith("  output  ")
    assert "  CA_c:CA_c less CA_out:FFN_in" in outcome.out
    assert "  input CA_c with output CA_c" in lines
    assert lines[-1].startswith("note: ")


def test_a_dry_run_says_what_would_be_analysed(smidgen, pairs):
    outcome = smidgen("anova", pairs, *FACTORS, "--dry-run")
    assert outcome.code == 0
    assert "# connected rows: 96" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.csv", *FACTORS), ("no such table: none.csv",)),
        ((".", *FACTORS), ("expected the file of the table",)),
        (("pairs.csv", "--metric", "clip", "--factors", "input"), ('"clip"', '"clip_i"')),
        (("pairs.csv", "--metric", "clip_i"), ("missing --factors",)),
        (("pairs.csv", *FACTORS, "--blocks", "subjects"), ('"subjects"', '"subject"')),
        (("pairs.csv", *FACTORS, "--interaction", "input:seed"), ("input:seed", "input, output")),
        (("pairs.csv", *FACTORS, "--against", "CA_c"), ('no cell "CA_c"',)),
        (("pairs.csv", *FACTORS, "--plot", "r.jpg"), ("r.jpg", ".png or .svg")),
    ],
)
def test_misuse_is_one_line(smidgen, pairs, monkeypatch, arguments, words):
    monkeypatch.chdir(pairs.parent)
    for more in ((), ("--dry-run",)):
        assert_refused(smidgen("anova", *arguments, *more), *words, codes=(2,))


def test_a_number_that_is_none_fails_with_its_row(smidgen, pairs):
    lines = pairs.read_text().splitlines()
    lines[4] = ",".join([*lines[4].split(",")[:-1], "nan"])
    pairs.write_text("\n".join(lines))
    assert_refused(smidgen("anova", pairs, *FACTORS), "row 5", "clip_i", codes=(1,))


@pytest.mark.parametrize(("name", "begins"), [("r.png", b"\x89PNG"), ("r.svg", b"<svg")])
def test_a_plot_of_the_residuals_is_the_answers_path(smidgen, pairs, tmp_path, name, begins):
    picture = tmp_path / "pictures" / name
    outcome = smidgen("anova", pairs, *FACTORS, "--blocks", "subject", "--plot", picture)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(begins)
