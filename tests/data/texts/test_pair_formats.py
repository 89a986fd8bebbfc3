import pytest

from alignment.errors import InputError
from data import records
from data.texts import pair_formats

USER, YES, NO = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "yes"), ("assistant", "no")))


def read(*values, **options):
    counts = {}
    rows = [records.Record(v, "f.jsonl", i) for i, v in enumerate(values, 1)]
    return pair_formats.read(rows, counts=counts, **options), counts


@pytest.mark.parametrize(
    ("value", "prompt", "answers"),
    [
        ({"prompt": "Q: ", "chosen": "yes", "rejected": "no"}, "Q: ", ("yes", "no")),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, [USER], ("yes", "no")),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, [USER], ("yes", "no")),
        ({"prompt": "Q", "chosen": [USER, YES], "rejected": [USER, NO]}, [USER], ("yes", "no")),
        ({"prompt": "Q", "chosen": [YES], "rejected": [NO]}, [USER], ("yes", "no")),
        ({"chosen": "Is it so? yes", "rejected": "Is it so? no"}, "Is it so?", (" yes", " no")),
        ({"chosen": "Is it so? yesterday", "rejected": "Is it so? yes"}, "Is it so?", (" yesterday", " yes")),
        ({"question": "Q", "chosen_answer": "yes", "discarded_answer": "no"}, "Q", ("yes", "no")),
        (
            {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"},
            [USER],
            ("yes", "no"),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "yes"},
                "rejected": {"from": "gpt", "value": "no"},
            },
            [USER],
            ("yes", "no"),
        ),
        ({"instruction": "Q", "output_1": "yes", "output_2": "no", "preference": 1}, "Q", ("yes", "no")),
        ({"instruction": "Q", "output_1": "no", "output_2": "yes", "preference": "2.0"}, "Q", ("yes", "no")),
        (
            {"instruction": "Q", "input": "I", "output_1": "no", "output_2": "yes", "preference": 2.0},
            "Q\n\nI",
            ("yes", "no"),
        ),
    ],
)
def test_each_spelling_reads_as_the_same_comparison(value, prompt, answers):
    (item,), counts = read(value)
    assert (item.prompt, item.answers, item.label) == (prompt, answers, None)
    assert not counts and (item.file, item.line) == ("f.jsonl", 1)


def test_questions_are_chat_and_trl_prompts_are_text_to_continue():
    is_chat = [
        read({**v, "chosen": "yes", "rejected": "no"})[0][0].is_chat
        for v in ({"prompt": "Q"}, {"question": "Q"}, {"instruction": "Q"})
    ]
    assert is_chat == [False, True, True]


SYSTEM, NEXT = {"role": "system", "content": "S"}, {"role": "user", "content": "and?"}


@pytest.mark.parametrize(
    ("prompt", "opening", "expected"),
    [
        ("Q", [SYSTEM, USER], [SYSTEM, USER]),
        ([SYSTEM, USER], [SYSTEM, USER], [SYSTEM, USER]),
        ([SYSTEM, USER], [USER], [SYSTEM, USER]),
        ([SYSTEM], [USER], [SYSTEM, USER]),
        ("Q", [SYSTEM, USER, YES, NEXT], [SYSTEM, USER, YES, NEXT]),
        ([USER, YES], [NEXT], [USER, YES, NEXT]),
        ([USER, YES, NEXT], [], [USER, YES, NEXT]),
    ],
)
def test_a_prompt_that_the_answers_repeat_is_read_once(prompt, opening, expected):
    (item,), _ = read({"prompt": prompt, "chosen": [*opening, YES], "rejected": [*opening, NO]})
    assert item.prompt == expected


def test_answers_by_anyone_but_the_assistant_are_set_aside():
    items, counts = read({"prompt": "Q", "chosen": [USER, NEXT], "rejected": [USER, NO]})
    assert not items and counts == {"answer is not the assistant's": 1}


@pytest.mark.parametrize(
    ("value", "columns", "is_chat"),
    [
        ({"question": "Q"}, {"prompt": "question"}, True),
        ({"q": "Q"}, {"prompt": "q"}, True),
        ({"prompt": "Q"}, {"prompt": "prompt"}, False),
        ({"prompt": "Q", "question": "other"}, {}, False),
        ({"prompt": "other", "question": "Q"}, {"prompt": "question"}, True),
        ({"prompt": None, "question": "Q"}, {}, True),
    ],
)
def test_what_the_file_calls_a_prompt_says_whether_it_is_chat(value, columns, is_chat):
    for answers in ({"chosen": "yes", "rejected": "no"}, {"completion": "yes", "label": True}):
        (item,), _ = read(value | answers, columns=columns)
        assert (item.prompt, item.is_chat) == ("Q", is_chat)


def test_unpaired_records_keep_their_labels():
    values = (
        {"messages": [USER, YES], "label": True},
        {"prompt": "Q", "completion": "no", "label": False},
        {"prompt": [USER], "completion": [NO], "label": "true"},
        {"messages": [USER, YES], "label": None},
    )
    items, counts = read(*values)
    assert [(i.answers, i.label) for i in items] == [(("yes",), True), (("no",), False), (("no",), True)]
    assert counts == {"no label": 1}


def test_a_conversation_with_a_label_is_an_unpaired_record():
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "yes"}]
    items, counts = read({"conversations": turns, "label": "no"})
    assert [(item.prompt, item.answers, item.label) for item in items] == [([USER], ("yes",), False)] and not counts


def test_single_answers_are_refused_where_pairs_are_needed():
    items, _ = read(
        {"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"prompt": "Q", "completion": "a", "label": True}
    )
    pair_formats.check_pairs(items[:1], "a.jsonl")
    with pytest.raises(InputError, match=r"f\.jsonl:2: a single answer with a label"):
        pair_formats.check_pairs(items, "a.jsonl")


def test_what_teaches_nothing_is_counted_by_reason():
    base = {"instruction": "Q", "output_1": "yes", "output_2": "no"}
    ties = [base | {"preference": p} for p in (0, "0.0", None, "None", "tie", float("nan"))]
    others = [
        {"prompt": "Q", "chosen": "yes ", "rejected": " yes"},
        {"prompt": "Q", "chosen": "", "rejected": "no"},
        {"prompt": " ", "chosen": "yes", "rejected": "no"},
        {"prompt": "Q", "chosen": None, "rejected": "no"},
        {"prompt": "Q", "chosen": 3, "rejected": "no"},
        {"chosen": [USER, YES, USER, YES], "rejected": [USER, NO, USER, NO]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: other\n\nAssistant: no"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: yes\n\nHuman: and?", "rejected": "\n\nHuman: Q\n\nAssistant: no"},
    ]
    others.append({"conversations": [{"from": "human", "value": "Q"}], "chosen": [], "rejected": {"value": "no"}})
    items, counts = read(*ties, *others)
    assert not items
    assert counts == {
        "tie": 6,
        "record of another shape": 1,
        "identical answers": 1,
        "empty answer": 1,
        "empty prompt": 1,
        "no answer": 1,
        "answers of two kinds": 1,
        "answers differ over several turns": 1,
        "dialogues have different prompts": 1,
        "dialogue does not end with the assistant": 1,
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"prompt": "Q", "chosen": None, "rejected": None}, "no answer"),
        ({"prompt": None, "chosen": [YES], "rejected": [NO]}, "empty prompt"),
        ({"instruction": "Q", "output_1": None, "output_2": "no", "preference": 1}, "answer is not a text"),
        ({"conversations": None, "chosen": [YES], "rejected": [NO]}, "empty prompt"),
        ({"messages": None, "label": True}, "record of another shape"),
        ({"prompt": "Q", "completion": None, "label": True}, "record of another shape"),
    ],
)
def test_null_cells_are_set_aside_and_counted(value, reason):
    items, counts = read({"prompt": "Q", "chosen": "yes", "rejected": "no"}, value)
    assert len(items) == 1 and counts == {reason: 1}


def test_columns_that_a_record_leaves_empty_do_not_decide_its_format():
    blank = dict.fromkeys(("conversations", "messages", "label", "output_1", "output_2", "preference", "chosen"))
    items, counts = read(
        blank | {"prompt": "Q", "chosen": "yes", "rejected": "no"}, blank | {"messages": [USER, YES], "label": False}
    )
    assert [(i.answers, i.label) for i in items] == [(("yes", "no"), None), (("yes",), False)] and not counts


def test_columns_named_in_the_config_are_read():
    value = {"q": "Q: ", "good": "yes", "bad": "no", "source": "web"}
    (item,), _ = read(value, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert (item.prompt, item.answers, item.source) == ("Q: ", ("yes", "no"), "web")
    value = {"q": "Q", "a": "yes", "b": "no", "winner": 2}
    (item,), _ = read(value, columns={"prompt": "q", "output_1": "a", "output_2": "b", "preference": "winner"})
    assert item.answers == ("no", "yes")


@pytest.mark.parametrize(
    ("value", "options"),
    [
        ({"question_text": "Q", "yes": "a", "no": "b"}, {}),
        ({"prompt": "Q", "chosen": "yes", "lost": "no"}, {}),
        ({"prompt": "Q", "good": "yes", "rejected": "no"}, {"columns": {"chosen": "god"}}),
        ({"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"format": "two_answers"}),
        ({"prompt": "Q", "label": True}, {"format": "unpaired"}),
        ({"chosen": "a", "rejected": "b"}, {"columns": {"prompt": "question"}}),
    ],
)
def test_missing_columns_name_the_file_the_need_and_what_is_there(value, options):
    with pytest.raises(InputError, match=r"f\.jsonl:1: columns missing: .*Columns found: ") as caught:
        read(value, **options)
    assert all(name in str(caught.value) for name in value)


def test_unknown_formats_and_column_keys_are_refused():
    with pytest.raises(InputError, match="format='parquet'"):
        read({"prompt": "Q"}, format="parquet")
    with pytest.raises(InputError, match=r"data.columns has \['propmt'\]"):
        read({"prompt": "Q"}, columns={"propmt": "q"})


def test_limit_counts_usable_comparisons():
    values = [{"prompt": f"Q{i}", "chosen": "yes", "rejected": "yes" if i % 2 else "no"} for i in range(10)]
    items, counts = read(*values, limit=3)
    assert [i.prompt for i in items] == ["Q0", "Q2", "Q4"] and counts == {
        "identical answers": 2,
        "records beyond data.limit": 5,
    }
