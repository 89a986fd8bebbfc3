import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.texts import packing, text
from data.tokens import tokenizer

BYTES = tokenizer.load("bytes")
TALK = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "no"},
]


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def load(path, **options):
    return text.load(path=path, **{"tokenizer": BYTES, "max_len": 32, "heldout_fraction": 0.0} | options)


def learned(texts):
    """What counts, row by row."""
    batch = text.assemble(texts, np.arange(len(texts)))
    return ["".join(BYTES.decode(t[m > 0], skip_special=False)) for t, m in zip(batch["targets"], batch["mask"])]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=30), st.integers(2, 20))
def test_packing_makes_every_token_a_target_once(lengths, num_time):
    pieces = packing.chunks(lengths, num_time)
    sizes = [stop - start - 1 for _, start, stop in pieces]
    rows = packing.first_fit(sizes, num_time, open_rows=3)
    assert sorted(i for row in rows for i in row) == list(range(len(pieces)))
    assert all(sum(sizes[i] for i in row) <= num_time for row in rows)
    targets = sorted((i, t) for i, start, stop in pieces for t in range(start + 1, stop))
    assert targets == [(i, t) for i, length in enumerate(lengths) for t in range(1, length)]


def test_rows_restart_positions_and_separate_groups(tmp_path):
    docs = [{"text": "x" * n} for n in (5, 9, 40, 3, 12)]
    train, _, report = load(write(tmp_path / "a.jsonl", docs))
    batch = text.assemble(train, np.arange(len(train)))
    assert batch["tokens"].shape == (len(train), 32) and report["training tokens"] == sum((5, 9, 40, 3, 12)) + 5
    for tokens, positions, groups, targets, mask in zip(
        *(batch[k] for k in ("tokens", "positions", "groups", "targets", "mask"))
    ):
        for g in range(1, groups.max() + 1):
            mine = np.flatnonzero(groups == g)
            assert positions[mine].tolist() == list(range(len(mine))) and (np.diff(mine) == 1).all()
            assert targets[mine][:-1].tolist() == tokens[mine][1:].tolist()  # targets never come from another group
        assert ((groups == 0) == (mask == 0)).all()  # every token of a document counts
    assert "".join(sorted("".join(learned(train)))) == "".join(sorted("x" * 69 + "<|eos|>" * 5))


def test_documents_begin_with_bos_and_end_with_eos(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", [{"text": "abc"}]))
    batch = text.assemble(train, np.array([0]))
    assert batch["tokens"][0, :5].tolist() == [257, 97, 98, 99, 256] and batch["targets"][0, :4].tolist() == [
        97,
        98,
        99,
        258,
    ]


@pytest.mark.parametrize(
    ("record", "all_turns"),
    [
        ({"messages": TALK}, [" yes<|eos|> no<|eos|>", " no<|eos|>"]),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}, [" yes<|eos|>"] * 2),
        ({"instruction": "hi", "input": "there", "output": "yes"}, [" yes<|eos|>"] * 2),
        ({"prompt": "hi ", "completion": "yes"}, ["yes<|eos|>"] * 2),
        ({"prompt": TALK[:1], "completion": TALK[1:2]}, [" yes<|eos|>"] * 2),
        ({"question": "hi", "response": "yes"}, [" yes<|eos|>"] * 2),
        ({"messages": [{"role": "system", "content": "be"}, *TALK[:3]]}, [" yes<|eos|>"] * 2),
    ],
)
def test_only_assistant_turns_count(tmp_path, record, all_turns):
    path = write(tmp_path / "a.jsonl", [record])
    for turns, expected in zip(("all", "last"), all_turns):
        train, _, _ = load(path, turns=turns, max_len=128)
        assert learned(train) == [expected], turns


def test_long_conversations_are_cut_dropped_or_refused(tmp_path):
    records = [
        {"prompt": "q:", "completion": "x" * 50},
        {"prompt": "q" * 40, "completion": "x"},
        {"prompt": "q:", "completion": "x"},
    ]
    path = write(tmp_path / "a.jsonl", records)
    train, _, report = load(path)
    assert report["conversations cut"] == 2 and report["no answer left"] == 1 and report["training rows"] == 2
    assert set(learned(train)) == {"x" * 30, "x<|eos|>"}  # no EOS on the cut answer
    train, _, report = load(path, truncation="drop")
    assert learned(train) == ["x<|eos|>"] and report["longer than a row, dropped"] == 2
    with pytest.raises(InputError, match=r"a\.jsonl:1: a conversation of 54 tokens in rows of 32"):
        load(path, truncation="error")


def test_unpacked_rows_hold_one_text_each(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q:", "completion": "x"}] * 6)
    assert len(load(path)[0]) == 1 and len(load(path, packed=False)[0]) == 6


def test_heldout_texts_are_apart_and_batches_static(tmp_path):
    docs = [{"text": f"document {i} " + "x" * (i % 30)} for i in range(200)]
    train, heldout, _ = load(write(tmp_path / "a.jsonl", docs), heldout_fraction=0.2)
    assert 20 < len(heldout.starts) - 1 < 60 and len(train.starts) + len(heldout.starts) == 202
    one, two = (text.batches(train, batch_size=4, seed=1) for _ in range(2))
    next(one)
    two.set_state(one.get_state())
    assert np.array_equal(next(one)["tokens"], next(two)["tokens"])
    batches = list(text.batches(heldout, batch_size=16, endless=False))
    assert {b["tokens"].shape for b in batches} == {(16, 32)}
    total = sum(b["mask"].sum() for b in batches)
    assert total == heldout.counts.sum()  # rows that fill up count nothing


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        ({"body": "x"}, {}, "text; messages.*Columns found: body"),
        ({"text": "x"}, {"kind": "answers"}, "messages; conversations.*Columns found: text"),
        ({"text": "x"}, {"columns": {"text": "body"}}, r"text \(config says 'body'\).*Columns found: text"),
        ({"text": "x"}, {"kind": "images"}, "data.kind='images'"),
        ({"text": "x"}, {"turns": "first"}, "data.turns='first'"),
        ({"text": "x"}, {"max_len": 1}, "data.max_len=1"),
        ({"text": " "}, {}, "no text is left.*'empty text': 1"),
        ({"messages": TALK[:1]}, {}, "no text is left.*'no assistant turn': 1"),
    ],
)
def test_wrong_texts_and_options_are_refused(tmp_path, record, options, words):
    with pytest.raises(InputError, match=words):
        load(write(tmp_path / "a.jsonl", [record]), **options)


def test_columns_named_in_the_config_are_read(tmp_path):
    train, _, _ = load(write(tmp_path / "a.jsonl", [{"body": "abc"}]), columns={"text": "body"})
    assert learned(train) == ["abc<|eos|>"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "hi", "output": None}, "empty prompt or answer"),
        ({"instruction": None, "output": "yes"}, "empty prompt or answer"),
        ({"instruction": None, "input": "there", "output": "yes"}, "empty prompt or answer"),
        ({"prompt": None, "completion": "yes"}, "empty prompt or answer"),
        ({"question": "hi", "response": None}, "empty prompt or answer"),
        ({"messages": None}, "empty prompt or answer"),
        ({"messages": []}, "empty prompt or answer"),
        ({"messages": 3}, "messages of the type int, which is not read"),
        ({"prompt": 3, "completion": "yes"}, "messages of the type int, which is not read"),
        ({"instruction": "hi", "output": 3}, "messages of the type int, which is not read"),
        ({"text": None}, "empty text"),
        ({"text": 3}, "empty text"),
    ],
)
def test_empty_cells_are_set_aside_and_counted(tmp_path, record, reason):
    usable = [{"text": "good"}, {"messages": TALK[:2]}]
    train, _, report = load(write(tmp_path / "a.jsonl", [*usable, record]))
    assert train.num_texts == 2 and report[reason] == 1 and report["records"] == 3
    kind = "documents" if "text" in record else "answers"
    with pytest.raises(InputError, match=f"no text is left.*'{reason}': 1"):
        load(write(tmp_path / "b.jsonl", [record]), kind=kind)


def test_columns_that_a_record_leaves_empty_do_not_decide_its_kind(tmp_path):
    blank = {"text": None, "messages": None}
    path = write(tmp_path / "a.jsonl", [blank | {"text": "good"}, blank | {"messages": TALK[:2]}])
    train, _, report = load(path, packed=False)
    assert sorted(learned(train)) == [" yes<|eos|>", "good<|eos|>"] and report["records"] == 2


def test_naming_a_column_does_not_change_the_tokens(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "hi", "response": "yes"}])
    usual, named = (load(path, columns=c)[0] for c in ({}, {"prompt": "question", "completion": "response"}))
    assert usual.tokens.tolist() == named.tokens.tolist()


WORDS = {"model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "bb": 2, "é": 3}, "unk_token": "[UNK]"}}
WORDS |= {"pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}


@pytest.mark.parametrize("max_len", [32, 3])
def test_the_bytes_of_the_targets_are_counted(tmp_path, max_len):
    docs, talk = (
        write(tmp_path / "a.jsonl", [{"text": "abc é"}, {"text": "x" * 40}]),
        write(tmp_path / "b.jsonl", [{"messages": TALK}]),
    )
    texts, _, _ = load(docs, max_len=max_len)  # BOS comes first, so every byte has a token before it
    assert (texts.num_bytes, texts.num_targets) == (46, 46 + 2)  # and each text has an end, which is no byte
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    words = tokenizer.load(str(tmp_path / "tokenizer.json"))
    plain, _, _ = load(write(tmp_path / "c.jsonl", [{"text": "a bb é"}]), tokenizer=words, max_len=max_len)
    assert (plain.num_bytes, plain.num_targets) == (6, 2)  # nothing predicts the first word
    answers, _, _ = load(talk, kind="answers", max_len=100)
    assert answers.num_bytes == sum(len(one) for one in learned(answers)) - 2 * len("<|eos|>") or answers.num_bytes


def test_a_held_out_file_alone_gives_no_training_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "abc"}] * 3)
    train, heldout, report = load("", heldout_path=path)
    assert len(train) == 0 and heldout.num_texts == 3 and report["records"] == 3
    with pytest.raises(InputError, match=r"data\.path is empty"):
        load("")
