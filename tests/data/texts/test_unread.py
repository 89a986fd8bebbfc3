"""Nothing of a record goes unsaid: columns, keys of messages, and spellings of message lists."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data import records
from data.texts import labels, pair_formats, rewrite_pairs, text, turns
from data.tokens import tokenizer

Q, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "yes"), ("assistant", "no")))
PAIR = {"chosen": [YES], "rejected": [NO]}
DIALOGUES = {a: f"\n\nHuman: Why?\n\nAssistant: {text}" for a, text in (("chosen", "yes"), ("rejected", "no"))}


def read(*values, **options):
    counts = {}
    rows = [records.Record(v, "f.jsonl", i) for i, v in enumerate(values, 1)]
    return pair_formats.read(rows, counts=counts, **options), counts


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def exchanges(tmp_path, *values):
    path = write(tmp_path / "a.jsonl", values)
    _, _, counts = text.load(path=path, tokenizer=tokenizer.load("bytes"), heldout_fraction=0, max_len=256)
    return {what for what in counts if "not read" in what}


UNREAD = [
    ("input", {"prompt": [Q], "input": "more", **PAIR}),
    ("input", {"input": "more", **DIALOGUES}),
    ("input", {"messages": [Q, YES], "input": "more"}),
    ("system_prompt", {"prompt": "Why?", "system": "Be brief.", "system_prompt": "Be kind.", **PAIR}),
    ("prompt", {"messages": [Q, YES], "prompt": "Another?"}),
    ("messages", {"prompt": "Why?", "messages": [{**Q, "content": "Another?"}], **PAIR}),
    ("notes", {"prompt": "Why?", "notes": ["one", "two"], **PAIR}),
    ("turns", {"messages": [Q, YES], "turns": [{**Q, "content": "Another?"}]}),
]


@pytest.mark.parametrize(("column", "value"), UNREAD)
def test_a_column_whose_text_reaches_nothing_is_counted(tmp_path, column, value):
    what = f"texts in the column {column!r} that are not read"
    if "chosen" in value:
        items, counts = read(value)
        assert len(items) == 1 and counts == {what: 1}
    else:
        assert exchanges(tmp_path, value) == {what}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Why?", "input": "more", "system": "Be brief.", "history": [["Hi", "Hello"]], **PAIR},
        {"prompt": "Why?", "messages": [Q, YES], "chosen": [Q, YES], "rejected": [Q, NO]},
        {"prompt": [Q, {**YES, "content": "Because"}], "completion": " of this.", "label": True, "source": "web"},
        {"conversations": json.dumps([Q]), "chosen": "yes", "rejected": "no"},
    ],
)
def test_columns_that_say_the_same_or_are_read_are_not_counted(value):
    items, counts = read(value)
    assert len(items) == 1 and not counts


def test_keys_of_messages_that_nothing_reads_are_counted(tmp_path):
    value = {"messages": [Q | {"mask": True, "id": 3, "lang": None}, YES | {"mask": True}]}
    said = "records with the key {!r} in a message, which is not read"
    assert exchanges(tmp_path, value) == {said.format("mask"), said.format("id")}
    _, counts = read({"prompt": [Q], **PAIR, "rejected": [NO | {"score": 1}]})
    assert counts == {said.format("score"): 1}


@pytest.mark.parametrize(
    "written",
    [json.dumps, str, lambda turns: "\n" + json.dumps(turns, indent=2) + "\n", lambda turns: json.dumps(turns[-1])],
    ids=["json", "python", "indented", "one turn"],
)
def test_messages_written_as_text_are_read(written):
    (item,), counts = read({"prompt": "Why?", "chosen": written([Q, YES]), "rejected": written([Q, NO])})
    assert (item.prompt, item.answers) == ([Q], ("yes", "no")) and not counts
    (item,), _ = read({"prompt": "Why?", "completion": written([YES]), "label": 1})
    assert (item.prompt, item.answers) == ([Q], ("yes",))
    (item,), _ = read({"conversations": written([Q]), "chosen": "yes", "rejected": "no"})
    assert item.prompt == [Q]


@pytest.mark.parametrize(
    "answer",
    [
        '[{"name": "kettle", "value": 3}]',
        '{"content": "noon"}',
        "{'role'}",
        "[{role: user}]",
        "{" * 500 + '"role"}',
        "{}",
    ],
)
def test_answers_that_are_data_are_no_messages(answer):
    assert turns.parsed(answer) == answer
    (item,), _ = read({"prompt": "Why?", "chosen": answer, "rejected": "no"})
    assert item.answers == (answer, "no")


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"images": ["a.png"]}, "a turn with images, which no text model reads"),
        ({"content": [{"type": "file", "file": {"id": 1}}]}, "a turn with file, which no text model reads"),
        ({"content": [{"type": "tool_use", "name": "f", "input": {}}]}, "a turn with a part of the type 'tool_use'"),
        ({"weight": 0.5}, "a turn whose weight is neither 0 nor 1"),
        ({"weight": "half"}, "a turn whose weight is neither 0 nor 1"),
    ],
)
def test_a_turn_that_no_text_model_reads_sets_its_record_aside(turn, reason):
    items, counts = read({"prompt": [Q | turn], **PAIR})
    assert not items and len(counts) == 1 and next(iter(counts)).startswith(reason)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"tool_calls": [{"function": {"name": "f"}}]}, "answer that calls a tool"),
        ({"function_call": {"name": "f"}}, "answer that calls a tool"),
        ({"reasoning_content": "hm"}, "answer with a reasoning beside its text"),
        ({"weight": 0}, "answer of weight 0"),
    ],
)
def test_an_answer_that_is_more_than_its_text_sets_its_pair_aside(turn, reason):
    for value in (
        {"prompt": [Q], "chosen": [YES | turn], "rejected": [NO]},
        {"prompt": [Q], "chosen": [YES], "rejected": [NO | turn]},
        {"conversations": [Q], "chosen": YES | turn, "rejected": NO},
        {"messages": [Q, YES | turn], "label": True},
        {"prompt": [Q], "completion": [YES | turn], "label": True},
    ):
        assert read(value) == ([], {reason: 1})


@pytest.mark.parametrize(("weight", "expected"), [("0", 0), ("False", 0), (0.0, 0), ("1", 1), (True, 1), (None, None)])
def test_weights_of_any_spelling_are_read(weight, expected):
    for key in turns.WEIGHTS:
        (turn,) = turns.messages_of([YES | {key: weight}])
        assert turn.get("weight") == expected
    (turn,) = turns.messages_of([YES | {"loss": 1.23}])
    assert "weight" not in turn


def test_a_call_in_openais_older_form_is_a_tool_call_and_its_result_a_tools_turn():
    call = {"name": "kettle_time", "arguments": "{}"}
    asked, told = turns.messages_of(
        [{**YES, "content": None, "function_call": call}, {"role": "function", "content": "12"}]
    )
    assert asked["tool_calls"] == [{"type": "function", "function": call}] and told["role"] == "tool"


@pytest.mark.parametrize("system", [["Be brief."], {"text": "Be brief."}, 3])
def test_a_system_prompt_that_is_no_text_sets_its_record_aside(system):
    assert read({"prompt": "Why?", "system": system, **PAIR}) == ([], {"system prompt that is not a text": 1})
    (item,), counts = read({"prompt": "Why?", "system": float("nan"), **PAIR})
    assert item.prompt == [Q] and not counts


def test_labelled_texts_and_rewritings_say_what_they_leave(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2, "title": f"title {i}", "more": ""} for i in range(10)]
    _, counts = labels.load(write(tmp_path / "a.jsonl", rows), limit=8)
    assert counts["texts in the column 'title' that are not read"] == 8 and counts["records beyond data.limit"] == 2
    counts = {}
    rows = [{"origin": f"a {i}", "rewritten": f"b {i}", "comment": "c"} for i in range(5)]
    rewrite_pairs.read(write(tmp_path / "b.jsonl", rows), limit=4, counts=counts)
    assert counts["texts in the column 'comment' that are not read"] == 4 and counts["records beyond data.limit"] == 1


def test_texts_with_an_empty_label_are_no_level_of_their_own(tmp_path):
    rows = [
        {"text": f"text {i}", "label": label} for i, label in enumerate(["mild", "harsh", "nan", "NULL", "N/A", ""])
    ]
    found, counts = labels.load(write(tmp_path / "a.jsonl", rows))
    assert found.levels == ("harsh", "mild") and counts["no label"] == 4
    found, counts = labels.load(str(tmp_path / "a.jsonl"), levels=("nan", "mild,harsh"))
    assert found.labels_N.tolist() == [1, 1, 0] and counts["no label"] == 3


def test_levels_and_a_column_of_labels_are_refused_where_pairs_have_none(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "Q", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)])
    assert len(labels.load(path)[0]) == 8
    for options, name in (({"levels": ("0", "1")}, "levels"), ({"columns": {"label": "harm"}}, "columns.label")):
        with pytest.raises(InputError, match=rf"data\.{name}.* chosen and rejected"):
            labels.load(path, **options)


NAMES = ("prompt", "question", "instruction", "query", "input", "system", "system_prompt", "completion", "response")
NAMES += ("output", "text", "notes", "title", "chosen_response", "messages", "conversations", "history")
BASES = (
    {"chosen": "yes", "rejected": "no"},
    {"chosen": [YES], "rejected": [NO]},
    DIALOGUES,
    {"output_1": "yes", "output_2": "no", "preference": 1},
    {"completion": "yes", "label": True},
    {"messages": [Q, YES], "label": True},
)


def in_column(name, is_list):
    """A text that no other column has, as this column holds it."""
    words = f"words of {name}."
    if name == "history":
        return [["earlier", words]], words
    return ([{"role": "user", "content": words}] if is_list else words), words


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(BASES), st.dictionaries(st.sampled_from(NAMES), st.booleans()))
def test_every_text_of_a_record_reaches_its_comparison_or_is_counted(base, columns):
    made = {name: in_column(name, is_list) for name, is_list in columns.items()}
    value = base | {name: content for name, (content, _) in made.items()}
    try:
        items, counts = read(value)
    except InputError:  # no reader takes these columns
        return
    assert len(items) + sum(n for what, n in counts.items() if "not read" not in what) == 1
    for item in items:
        shown = "\n".join((item.prompt_text(), item.prefill, *item.answers))
        for name, (_, words) in made.items():
            assert words in shown or counts.get(f"texts in the column {name!r} that are not read"), name
