"""Columns and keys that change a conversation: read in every format, or the record is set aside under a reason."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data import loader, records
from data.texts import answers, pair_formats, preferences, text, turns
from data.tokens import chat, tokenizer

Q, A, YES, NO, NEXT = (
    {"role": role, "content": content}
    for role, content in (
        ("user", "Q"),
        ("assistant", "A"),
        ("assistant", "yes"),
        ("assistant", "no"),
        ("user", "and?"),
    )
)
SYSTEM = {"role": "system", "content": "S"}
PAIR = {"chosen": "yes", "rejected": "no"}


def read(*values, **options):
    counts = {}
    rows = [records.Record(v, "f.jsonl", i) for i, v in enumerate(values, 1)]
    return pair_formats.read(rows, counts=counts, **options), counts


def exchanges(tmp_path, *values, **options):
    """The texts that supervised tuning makes of records, with their targets, and the counts."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    tok = tokenizer.load("bytes")
    options = {"max_len": 2_000, "heldout_fraction": 0.0, "packed": False} | options
    texts, _, counts = text.load(path=str(tmp_path / "a.jsonl"), tokenizer=tok, **options)
    rows = []
    for i in range(texts.num_texts):
        ids = texts.tokens[texts.starts[i] : texts.starts[i + 1]]
        is_target = texts.counts[texts.starts[i] : texts.starts[i + 1]] > 0
        rows.append((tok.decode(ids), tok.decode(ids[is_target])))
    return rows, counts


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "Q", "input": "I", **PAIR},
        {"question": "Q", "input": "I", **PAIR},
        {"prompt": "Q", "input": "I", **PAIR},
        {"instruction": "Q", "input": "I", "output_1": "yes", "output_2": "no", "preference": 1},
        {"instruction": "Q", "input": "I", "completion": "yes", "label": True},
    ],
)
def test_the_input_of_an_instruction_follows_it_in_every_format(value):
    (item,), _ = read(value)
    assert item.prompt == "Q\n\nI"


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "value",
    [
        {"question": "Q", **PAIR},
        {"prompt": "Q", **PAIR},
        {"prompt": [Q], **PAIR},
        {"prompt": [Q], "chosen": [YES], "rejected": [NO]},
        {"conversations": [{"from": "human", "value": "Q"}], **PAIR},
        {"instruction": "Q", "output_1": "yes", "output_2": "no", "preference": 1},
        {"prompt": "Q", "completion": "yes", "label": 1},
        {"messages": [Q, YES], "label": True},
    ],
)
def test_a_system_column_is_the_first_turn_in_every_format(value, column):
    (item,), _ = read(value | {column: "S"})
    assert item.prompt == [SYSTEM, Q]


@pytest.mark.parametrize(
    "history", [[["Q", "A"]], [Q, A], [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]]
)
def test_history_comes_before_the_prompt(history):
    (item,), _ = read({"instruction": "and?", "history": history, "system": "S", **PAIR})
    assert item.prompt == [SYSTEM, Q, A, NEXT]


def test_columns_of_other_names_are_read_by_a_flag():
    value = {"q": "Q", "persona": "S", "more": "I", "first": "no", "second": "yes", "better": 2}
    names = {"prompt": "q", "system": "persona", "input": "more", "output_1": "first", "output_2": "second"}
    (item,), counts = read(value, columns={**names, "preference": "better"})
    assert item.prompt == [SYSTEM, {"role": "user", "content": "Q\n\nI"}] and item.answers == ("yes", "no")
    assert not counts


def test_a_text_column_that_nobody_reads_is_counted_under_its_name():
    _, counts = read({"prompt": "Q", **PAIR, "persona": "a pirate", "score": 3}, {"prompt": "Q", **PAIR, "persona": ""})
    assert counts == {"texts in the column 'persona' that are not read": 1}


@pytest.mark.parametrize(
    ("value", "unread"),
    [
        ({"prompt": "Q", "question": "other", **PAIR}, "question"),
        ({"prompt": "Q", **PAIR, "completion": "third"}, "completion"),
        ({"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 1, "output": "c"}, "output"),
        ({"prompt": "Q", "completion": "yes", "label": True, "chosen_by": "Ann"}, "chosen_by"),
    ],
)
def test_a_column_of_another_format_that_this_reader_leaves_is_counted(value, unread):
    items, counts = read(value)
    assert len(items) == 1 and counts == {f"texts in the column {unread!r} that are not read": 1}


def test_a_documents_other_texts_are_counted(tmp_path):
    _, counts = exchanges(tmp_path, {"text": "a b c", "system": "S", "url": "x"})
    assert [counts[f"texts in the column {name!r} that are not read"] for name in ("system", "url")] == [1, 1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"type": "text", "text": "x"}, "x"),
        ({"text": "x"}, "x"),
        (["x", {"text": "y"}], "xy"),
        (float("nan"), ""),
        (None, ""),
    ],
)
def test_a_content_of_one_part_is_its_text(content, expected):
    assert turns.messages_of([{"role": "user", "content": content}]) == [{"role": "user", "content": expected}]


@pytest.mark.parametrize(
    "messages",
    [3, True, [3], [None], [["user", "q"]], [{"role": "user", "content": 3}], [{"role": "user", "content": {"a": 1}}]],
)
def test_what_is_no_text_becomes_neither_a_blank_turn_nor_a_turn_of_its_own(messages):
    with pytest.raises(turns.SetAside, match="which is not read"):
        turns.messages_of(messages)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"type": "text", "text": "Q"}, {"type": "image", "text": None}], "Q"),
        ([{"type": "text", "text": None}, "Q"], "Q"),
        (None, ""),
    ],
)
def test_a_part_without_text_writes_nothing(value, expected):
    assert turns.messages_of([{"role": "user", "content": value}]) == [{"role": "user", "content": expected}]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], **PAIR},
        {"prompt": "Q", "images": ["a.png"], **PAIR},
    ],
)
def test_pictures_are_set_aside_by_name(value):
    items, counts = read(value)
    assert not items and list(counts.values()) == [1] and "which no text model reads" in next(iter(counts))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            {"conversations": [Q], "chosen": [A, NEXT, YES], "rejected": [A, NEXT, NO]},
            "answers of several turns",
        ),
        ({"prompt": [Q, A], "chosen": [A], "rejected": [NO]}, "prompt that already ends with the answer"),
        ({"prompt": "other", "chosen": [Q, YES], "rejected": [Q, NO]}, "prompt and answers that open with different"),
        ({"prompt": [SYSTEM, Q], "system": "other", **PAIR}, "two different system turns"),
    ],
)
def test_what_has_no_one_reading_is_set_aside_under_a_reason(value, reason):
    items, counts = read(value)
    assert not items and [n for what, n in counts.items() if what.startswith(reason)] == [1]


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [("Q ", [Q]), ([SYSTEM, Q], [{"role": "user", "content": "Q\n"}]), ("User: Q", [Q]), ([Q, A, NEXT], [NEXT])],
)
def test_a_prompt_repeated_in_another_spelling_is_read_once(prompt, opening):
    (item,), _ = read({"prompt": prompt, "chosen": [*opening, YES], "rejected": [*opening, NO]})
    assert [m["content"].strip() for m in item.prompt if m["role"] == "user"].count(opening[-1]["content"].strip()) == 1
    assert len(item.prompt) == (len(prompt) if isinstance(prompt, list) else 1)


def test_messages_beside_answers_are_the_prompt():
    (item,), _ = read({"messages": [SYSTEM, Q], "chosen": YES, "rejected": NO})
    assert item.prompt == [SYSTEM, Q] and item.answers == ("yes", "no")


def test_answers_that_are_json_text_of_messages_are_read():
    value = {"prompt": "Q", "chosen": json.dumps([Q, YES]), "rejected": json.dumps([Q, NO])}
    (item,), _ = read(value)
    assert item.prompt == [Q] and item.answers == ("yes", "no")
    (item,), _ = read({"prompt": "Q", "chosen": "[1] is cited", "rejected": "[{not json}]"})
    assert item.answers == ("[1] is cited", "[{not json}]")


@pytest.mark.parametrize(
    ("label", "expected"),
    [(1.0, True), (0.0, False), ("true", True), ("Yes", True), ("no", False), (True, True), ("1", True)],
)
def test_labels_of_usual_spellings_are_read(label, expected):
    for value in ({"prompt": "Q", "completion": "yes"}, {"conversations": [Q, YES]}, {"messages": [Q, YES]}):
        (item,), _ = read(value | {"label": label})
        assert item.label is expected


def written(item, answer):
    tok = tokenizer.load("bytes")
    (encoded,) = answers.encode(tok, [item], [answer])
    if isinstance(encoded, records.BadRecord):
        return encoded
    return tok.decode(encoded.ids[: encoded.prompt_len]), tok.decode(
        encoded.ids[encoded.prompt_len :], skip_special=False
    )


def test_an_answer_goes_on_from_the_opening_that_the_prompt_ends_with():
    prompt = [Q, {"role": "assistant", "content": "The kettle"}]
    value = {"prompt": prompt, "chosen": " boils.", "rejected": "The kettle no."}
    (item,), _ = read(value)
    assert written(item, item.answers[0]) == ("User: Q\n\nAssistant: The kettle", " boils.<|eos|>")
    assert written(item, item.answers[1]) == ("User: Q\n\nAssistant: The kettle", " no.<|eos|>")


@pytest.mark.parametrize("prompt", ["Q", [Q]])
def test_an_end_that_an_answer_writes_out_is_learned_once(prompt):
    (item,), _ = read({"prompt": prompt, "chosen": " yes<|eos|>", "rejected": " no<|eos|><|eos|>\n"})
    for answer in item.answers:
        assert written(item, answer)[1].count("<|eos|>") == 1


CALL = {"type": "function", "function": {"name": "kettle_time", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_a_call_that_the_template_does_not_show_sets_the_record_aside():
    (item,), _ = read({"prompt": [Q, CALLED, {"role": "tool", "content": "12"}], **PAIR, "tools": [CALL]})
    bad = written(item, "yes")
    assert (bad.file, bad.line) == ("f.jsonl", 1) and "'kettle_time'" in bad.reason


def test_tools_may_be_json_text_and_nothing_else():
    (item,), _ = read({"prompt": [Q], **PAIR, "tools": json.dumps([CALL])})
    assert item.tools == [CALL]
    for tools in ("kettle_time()", {"name": "kettle_time"}):
        items, counts = read({"prompt": [Q], **PAIR, "tools": tools})
        assert not items and counts == {"tools that are not a list": 1}


def test_the_last_answer_alone_cannot_be_learned_where_its_weight_is_0(tmp_path):
    value = {"messages": [Q, A, NEXT, YES | {"weight": 0}]}
    with pytest.raises(InputError, match=r"the last answer has weight 0"):
        exchanges(tmp_path, value, turns="last")
    ((_, learned),), _ = exchanges(tmp_path, value)
    assert learned.startswith(" A") and "yes" not in learned


def test_only_stop_tokens_are_taken_off_an_answer():
    assert tokenizer.load("bytes").ends == ("<|eos|>",)
    assert chat.without_end("It boils.<|eos|> <|eos|>\n", ("<|eos|>",)) == "It boils."
    assert chat.without_end("It boils.", ("<|eos|>",)) == "It boils."


def test_turns_of_weight_0_are_read_and_not_learned(tmp_path):
    draft = {"role": "assistant", "content": "draft", "weight": 0}
    ((whole, learned),), _ = exchanges(tmp_path, {"messages": [Q, draft, NEXT, YES | {"weight": 1}]})
    assert "draft" in whole and "draft" not in learned and "yes" in learned


@pytest.mark.parametrize(
    "value",
    [
        {"system": "S", "instruction": "and?", "output": "yes", "history": [["Q", "A"]]},
        {"system_prompt": "S", "question": "and?", "response": "yes", "history": [["Q", "A"]]},
        {"system": "S", "prompt": "and?", "completion": "yes", "history": [["Q", "A"]]},
        {
            "system": "S",
            "conversations": [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "yes"}],
            "history": [Q, A],
        },
    ],
)
def test_supervised_tuning_reads_system_and_history_in_every_format(tmp_path, value):
    ((whole, _),), _ = exchanges(tmp_path, value)
    assert [whole.index(word) for word in ("S", "Q", "A", "and?", "yes")] == sorted(
        whole.index(word) for word in ("S", "Q", "A", "and?", "yes")
    )


def test_a_conversation_that_the_template_refuses_is_set_aside_under_one_percent(tmp_path):
    calls = {"messages": [Q, CALLED, {"role": "tool", "content": "12"}, YES]}
    good = [{"messages": [{"role": "user", "content": f"Q{i}"}, YES]} for i in range(200)]
    rows, counts = exchanges(tmp_path, *good, calls)
    assert len(rows) == 200 and counts["conversations that the chat template refuses"] == 1
    with pytest.raises(InputError, match=r"2 of 12 lines.*a\.jsonl:1: the chat template does not write calls"):
        exchanges(tmp_path, calls, calls, *good[:10])


def test_a_folder_with_test_files_holds_them_out_and_side_files_are_not_read(tmp_path, capsys):
    for name, number in {"train-0.jsonl": 3, "test-0.jsonl": 2}.items():
        rows = [{"prompt": f"{name} {i}", **PAIR} for i in range(number)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "._train-0.jsonl").write_bytes(b"\x00\x05")
    train, heldout, _ = preferences.load(path=str(tmp_path), tokenizer=tokenizer.load("bytes"))
    assert [item.prompt for item in heldout.items] == ["test-0.jsonl 0", "test-0.jsonl 1"] and len(train) == 3
    assert ": 1 files to train on, 1 files held out" in capsys.readouterr().out


def test_an_arrow_folder_is_named(tmp_path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"data-00000-of-00001\.arrow.*save_to_disk.*to_parquet"):
        records.find(str(tmp_path))


def test_a_position_in_other_data_is_refused(tmp_path):
    tok = tokenizer.load("bytes")
    loaders = []
    for answer in ("yes", "yet"):  # the same shapes
        rows = [{"prompt": f"Q{i}", "chosen": answer, "rejected": "no"} for i in range(8)]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train, _, _ = preferences.load(path=str(tmp_path / "a.jsonl"), tokenizer=tok, heldout_fraction=0.0)
        loaders.append(preferences.batches(train, batch_size=2))
    next(loaders[0])
    with pytest.raises(InputError, match="the data has changed since this run began"):
        loaders[1].set_state(loaders[0].get_state())
    loaders[0].set_state(loaders[0].get_state())


def test_a_digest_knows_values_types_and_shapes():
    import numpy as np

    a = np.arange(6, dtype=np.int32)
    assert len({loader.digest(x) for x in (a, a + 1, a.astype(np.int64), a.reshape(2, 3), a[:5])}) == 5
    assert loader.digest(a) == loader.digest(a.copy())


TEXT = st.one_of(st.none(), st.sampled_from(["", " ", "yes", "no", "Q", "S"]), st.integers(0, 2))
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT}), max_size=3
)
COLUMNS = ("prompt", "question", "instruction", "input", "system", "history", "messages", "conversations", "tools")
RECORD = st.fixed_dictionaries(
    {},
    optional={name: st.one_of(TEXT, TURNS) for name in COLUMNS},
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(RECORD, st.one_of(TEXT, TURNS), st.one_of(TEXT, TURNS)), min_size=1, max_size=4))
def test_every_record_is_read_or_counted_under_a_reason(values):
    rows = [value | {"chosen": chosen, "rejected": rejected} for value, chosen, rejected in values]
    items, counts = read(*rows)
    assert len(items) + sum(n for what, n in counts.items() if not what.startswith("texts in the column")) == len(rows)
    assert all(isinstance(answer, str) and answer.strip() for item in items for answer in item.answers)
