import math

import pytest

from alignment.errors import InputError
from data import fields, records


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a ", "a "),
        (None, ""),
        (math.nan, ""),
        (math.inf, ""),
        (7, "7"),
        (1.5, "1.5"),
        (True, "True"),
        (b"caf\xc3\xa9", "café"),
    ],
)
def test_a_text_is_what_the_field_says_and_nothing_where_it_is_absent(value, expected):
    assert fields.text(value) == expected


@pytest.mark.parametrize("value", [["a"], ("a",), {"text": "a"}, [], {}, b"\xff\xfe"])
def test_what_is_no_text_is_not_written_as_one(value):
    with pytest.raises(fields.Odd, match="question is"):
        fields.text(value, "question")


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 "])
def test_an_id_is_one_name_in_every_type(value):
    assert fields.name(value) == "7"


@pytest.mark.parametrize("value", [2, 2.0, "2", " 2", "2.0"])
def test_a_whole_number_is_read_from_every_spelling(value):
    assert fields.whole(value) == 2


@pytest.mark.parametrize("value", [1.5, "1.5", True, None, math.nan, math.inf, "", "B", [2], "1e400"])
def test_a_fraction_or_a_truth_value_is_no_whole_number(value):
    with pytest.raises(fields.Odd, match="label="):
        fields.whole(value, "label")


@pytest.mark.parametrize("value", ['["a", "b"]', "['a', 'b']", " ['a', 'b'] ", ["a", "b"], ("a", "b")])
def test_a_list_is_read_as_a_table_writes_it(value):
    assert list(fields.sequence(value)) == ["a", "b"]


@pytest.mark.parametrize("value", ["ab", "[a, b", "__import__('os')", {"a": 1}, None, 3])
def test_a_text_does_not_fall_apart_into_letters(value):
    with pytest.raises(fields.Odd, match="choices is not a list"):
        fields.sequence(value, "choices")


def test_a_named_column_wins_over_the_file_s_own_of_that_name_in_either_order():
    for names in (("question", "asked"), ("asked", "question")):
        row = records.Record(dict(zip(names, names)), "a.jsonl", 3)
        assert fields.renamed(row, {"question": "asked", "answer": ""}) == {"question": "asked"}
    with pytest.raises(InputError, match=r"a.jsonl:3: no column 'q', which columns.question names"):
        fields.renamed(row, {"question": "q"})


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), StopIteration("x"), OverflowError("x"), AttributeError("x")]
)
def test_whatever_a_reader_meets_names_file_and_line(error):
    with (
        pytest.raises(InputError, match=r"a\.jsonl:3: not a row of bbq"),
        fields.reading(records.Record({}, "a.jsonl", 3), "bbq"),
    ):
        raise error
