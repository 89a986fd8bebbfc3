import json

import pytest

from alignment.errors import InputError
from data import records
from data.texts import pair_formats, verdicts

PAIR = {"instruction": "Q", "output_1": "one", "output_2": "two"}
SINGLE = {"prompt": "Q", "completion": "yes"}


def read(values, **options):
    counts = {}
    rows = [records.Record(v, "f.jsonl", i) for i, v in enumerate(values, 1)]
    return pair_formats.read(rows, counts=counts, **options), counts


def chosen(values, words=None):
    """The chosen answer for each preference, or its count's name."""
    out = []
    for value in values:
        items, counts = read([PAIR | {"preference": value}], words=words)
        out.append(items[0].answers[0] if items else next(iter(counts)))
    return out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, {1: "one", "2.0": "two", 0.0: "tie", None: "tie", "Tie": "tie", float("nan"): "tie"}),
        (
            {"output_1": "model_a", "output_2": "model_b", "tie": "tie,tie (bothbad)"},
            {"model_a": "one", " Model_B": "two", "tie": "tie", "tie (bothbad)": "tie", None: "tie"},
        ),
        (
            {"output_1": "-3,-2,-1", "output_2": "1,2,3", "tie": "0"},
            {-3: "one", -1.0: "one", "-2": "one", 1: "two", "2.0": "two", 3: "two", 0: "tie"},
        ),
        ({"output_1": "0", "output_2": "1"}, {0: "one", 1.0: "two"}),
        ({"tie": "both,neither"}, {1: "one", "both": "tie", "Neither": "tie", 2: "two"}),
    ],
)
def test_a_preference_means_what_the_config_says(words, expected):
    assert chosen(expected, words) == list(expected.values())


def test_labels_mean_what_the_config_says():
    words = {"desirable": "good,4,5", "undesirable": "bad,1,2", "tie": "3"}
    values = ["good", 5.0, "BAD", 1, 3, None]
    items, counts = read([SINGLE | {"label": value} for value in values], words=words)
    assert [item.label for item in items] == [True, True, False, False]
    assert counts == {"label for neither side": 1, "no label": 1}


@pytest.mark.parametrize(
    ("base", "column", "fine", "odd", "side"),
    [
        (PAIR, "preference", 1, [-3, -2, 3], "output_1"),
        (PAIR, "preference", 2, ["model_a", "model_c", "A"], "output_2"),
        (SINGLE, "label", True, [4, "good", 0.5], "desirable"),
        (SINGLE, "label", "no", [-1, "b", "??"], "undesirable"),
    ],
)
def test_values_without_a_meaning_are_counted_with_their_lines_and_refused_where_they_are_many(
    base, column, fine, odd, side, capsys
):
    values = [base | {column: fine}] * 400
    items, counts = read([*values[:5], base | {column: odd[0]}, *values[5:]])
    assert len(items) == 400 and counts == {"records with a preference or label of unknown meaning": 1}
    assert f"set aside: f.jsonl:6: {column} {odd[0]!r} has no meaning" in capsys.readouterr().out
    with pytest.raises(InputError, match=rf"f\.jsonl:401: 6 of 406 records have a {column} of") as caught:
        read([*values, *(base | {column: value} for value in [*odd, *odd])])
    assert all(f"{str(value)!r} (2)" in str(caught.value) for value in odd)
    assert f"--config.data.verdicts.{side}=" in str(caught.value)


def test_a_files_own_words_take_the_place_of_the_usual_ones():
    words = {"output_1": "-1", "output_2": "-2"}
    with pytest.raises(InputError, match=r"1 of 2 records have a preference of unknown meaning: '1' \(1\)"):
        read([PAIR | {"preference": value} for value in (-1, 1)], words=words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"output_1": "a"}, "names words for output_1; name those for output_2 too"),
        ({"undesirable": "bad"}, "name those for desirable too"),
        ({"output_1": "a,1.0", "output_2": "1"}, "'1' means output_1 and output_2"),
        ({"desirable": "x", "undesirable": "y", "tie": "X"}, "'x' means desirable and tie"),
        ({"ouput_1": "a"}, "the nearest is 'output_1'"),
    ],
)
def test_words_that_cannot_be_told_apart_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        verdicts.of(words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"tie": "draw"}),
        (SINGLE | {"label": True}, {"output_1": "a", "output_2": "b"}),
        (PAIR | {"preference": 1}, {"desirable": "a", "undesirable": "b"}),
        (PAIR | {"preference": 1}, {"desirable": "a", "undesirable": "b", "tie": "c"}),
    ],
)
def test_words_that_no_record_needs_are_refused(value, words):
    with pytest.raises(InputError, match=r"data\.verdicts\.(tie|output_1|desirable) says what"):
        read([value], words=words)


@pytest.mark.parametrize("as_text", [False, True])
def test_dialogues_of_two_models_and_the_name_of_the_winner(as_text):
    user, one, two = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "one"), ("assistant", "two")))
    both = {"conversation_a": [user, one], "conversation_b": [user, two]}
    both = {name: json.dumps(value) if as_text else value for name, value in both.items()}
    columns = {"output_1": "conversation_a", "output_2": "conversation_b", "preference": "winner"}
    words = {"output_1": "model_a", "output_2": "model_b", "tie": "tie,tie (bothbad)"}
    winners = ("model_b", "model_a", "tie (bothbad)")
    items, counts = read([both | {"winner": w} for w in winners], columns=columns, words=words)
    assert [(i.prompt, i.answers) for i in items] == [([user], ("two", "one")), ([user], ("one", "two"))]
    assert counts["tie"] == 1
