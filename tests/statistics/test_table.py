"""What is no table, and what a table lacks: one line each that says what is needed."""

import numpy as np
import pytest

from smidgen.errors import SmidgenError, UsageError
from smidgen.statistics.config import AnovaConfig
from smidgen.statistics.table import MOST_ENTRIES, make_table, read_table

CONFIG = AnovaConfig(metric="fd", factors="method", blocks="set")


def test_a_table_has_its_numbers_and_levels_in_the_order_of_the_rows(tmp_path):
    path = tmp_path / "arms.csv"
    path.write_text('\ufeffset, method ,fd,other\n"a, b",lora,1.5,x\nc,full,-2e-1,\nc,lora,3,y\n\n')
    table = read_table(path, CONFIG)
    assert table.values.tolist() == [1.5, -0.2, 3.0]
    assert table.factors["method"].names == ("lora", "full")
    assert table.factors["method"].codes.tolist() == [0, 1, 0]
    assert table.blocks["set"].names == ("a, b", "c")
    later = table.take(np.array([False, True, True]))
    assert later.blocks["set"].names == ("c",)
    assert later.factors["method"].codes.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("set,method,fd\n", "no rows"),
        ("set,method,fd,fd\na,b,1,2\n", 'two columns "fd"'),
        ("set,method,fd\na,b\n", "row 2 has 2 values; the header names 3"),
        ("set,method,fd\na,x,1\nb,y,nan\n", 'row 3: fd is "nan"; expected a finite number'),
        ("set,method,fd\na,x,1\nb,y,inf\n", 'row 3: fd is "inf"'),
        ("set,method,fd\na,x,\nb,y,1\n", 'row 2: fd is ""'),
        ("set,method,fd\na,x,good\nb,y,1\n", 'row 2: fd is "good"'),
        ("set,method,fd\na,x,1\nb,,2\n", "row 3: method is empty"),
        ("set,method,fd\na,x,1\nb,x,2\n", 'method has one level in t.csv, "x"; two or more'),
        ("set,method,fd\na,x,1\na,y,2\n", 'set has one level in t.csv, "a"'),
        ("set,method,fd\na,x,1\nb,y,1\n", "fd is the same in all rows"),
        ('set,method,fd\na,"x,1\n', "no CSV table"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(SmidgenError) as caught:
        read_table(path, CONFIG)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a" * 10 + b"\x80"])
def test_what_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(SmidgenError, match="not UTF-8"):
        read_table(path, CONFIG)


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    columns = {"method": ["a", "b"], "set": ["c", "d"], "fd_inception": [1.0, 2.0]}
    with pytest.raises(UsageError, match=r'no column "fd".*choose from: method, set, fd_inc'):
        make_table(columns, CONFIG, "the table")
    near = AnovaConfig(metric="fd_inception", factors="methods")
    with pytest.raises(UsageError, match=r'no column "methods" .* did you mean "method"'):
        make_table(columns, near, "the table")


def test_columns_of_different_lengths_and_models_without_end_are_refused():
    with pytest.raises(SmidgenError, match="expected as many in each"):
        make_table({"method": ["a", "b"], "set": ["c"], "fd": [1.0, 2.0]}, CONFIG, "the table")
    count = int(MOST_ENTRIES**0.5)
    names = [str(number) for number in range(count)]
    columns = {"method": names, "set": names, "fd": range(count)}
    with pytest.raises(SmidgenError, match="name fewer factors"):
        make_table(columns, CONFIG, "the table")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"factors": ""}, "no factor is named"),
        ({"factors": "fd"}, '"fd" is named twice'),
        ({"factors": "a,a"}, '"a" is named twice'),
        ({"factors": "a", "blocks": "a"}, '"a" is named twice'),
        ({"factors": "a,b", "interaction": "a:c"}, 'interaction is "a:c"; .*of: a, b'),
        ({"factors": "a,b", "interaction": "a:a"}, 'interaction is "a:a"'),
        ({"factors": "a,b", "interaction": "a"}, 'interaction is "a"'),
        ({"factors": "a,b,c", "interaction": "a:b:c"}, 'interaction is "a:b:c"'),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        AnovaConfig(metric="fd", **settings)
