import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import InputError
from data.texts import rewrite_pairs
from data.texts.rewrite_pairs import Pair
from data.tokens import word_bytes
from data.toys import notes


def test_made_up_pairs_have_their_fault_in_the_original_alone():
    pairs = rewrite_pairs.synthetic(600, seed=1)
    assert pairs == rewrite_pairs.synthetic(600, seed=1) != rewrite_pairs.synthetic(600, seed=2)
    assert {p.planted for p in pairs} == {"", *notes.FAULTS} and {p.language for p in pairs} == {"en", "ar"}
    assert all((p.origin == p.rewritten) == (p.planted == "") for p in pairs)
    assert notes.safety([p.rewritten for p in pairs]) == [0] * 600
    for pair, score in zip(pairs, notes.safety([p.origin for p in pairs])):
        assert (score > 0) == (pair.planted in ("insult", "advert", "prejudice"))
    assert all(set(re.findall(r"\w+", p.rewritten)) <= set(re.findall(r"\w+", p.origin)) for p in pairs)


def test_files_of_the_public_layout_are_read_and_bad_rows_set_aside(tmp_path):
    rows = [{"origin": f"a{i}", "rewritten": f"b{i}"} for i in range(300)]
    bad = [{"origin": "x", "rewritten": None}, {"origin": "  ", "rewritten": "y"}, {"origin": ["x"], "rewritten": "y"}]
    (tmp_path / "seed.json").write_text(json.dumps(rows + bad))
    (tmp_path / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{torn\n")
    counts = {}
    options = dict(counts=counts, bad_path=str(tmp_path / "bad" / "records.jsonl"))
    pairs = rewrite_pairs.read([str(tmp_path / "seed.json"), str(tmp_path / "part.jsonl")], **options)
    assert pairs == [Pair(r["origin"], r["rewritten"]) for r in rows] * 2
    assert counts == {"records": 604, "set aside": 4}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "bad" / "records.jsonl").read_text().splitlines()]
    assert sorted(reasons)[:3] == ["no text in origin", "no text in origin", "no text in rewritten"]


def test_columns_may_have_other_names_and_unknown_ones_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"before": "a", "after": "b"}\n')
    assert rewrite_pairs.read(str(path), columns={"origin": "before", "rewritten": "after"}) == [Pair("a", "b")]
    with pytest.raises(InputError, match="columns before, after; pairs need origin and rewritten"):
        rewrite_pairs.read(str(path))
    path.write_text('{"origin": "a", "rewritten": ""}\n')
    with pytest.raises(InputError, match="no pair of two texts; 1 records"):
        rewrite_pairs.read(str(path))


def test_one_original_is_never_on_both_sides():
    pairs = [Pair(f"text {i % 50}", f"answer {i}") for i in range(500)]
    train, heldout = rewrite_pairs.split(pairs, fraction=0.2, seed=0)
    assert sorted(train + heldout, key=pairs.index) == pairs
    assert not {p.origin for p in train} & {p.origin for p in heldout}
    assert 4 <= len({p.origin for p in heldout}) <= 18
    for fraction in (0.0, 1.0, 1e-9):
        with pytest.raises(InputError, match="heldout_fraction"):
            rewrite_pairs.split(pairs, fraction=fraction, seed=0)


def test_what_is_held_out_is_wanted_nowhere_in_training():
    pairs = [Pair(f"text {i}", f"answer {i % 150}") for i in range(300)]
    train, heldout = rewrite_pairs.split(pairs, fraction=0.2, seed=0)
    assert sorted(train + heldout, key=pairs.index) == pairs and len(heldout) > 5
    assert not {p.rewritten for p in train} & {p.rewritten for p in heldout}


@given(st.integers(1, 40), st.integers(0, 40), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_at_least_the_asked_share_is_to_be_left_alone(num_edits, num_same, share):
    pairs = [Pair(f"{i}", f"{i}!") for i in range(num_edits)] + [Pair(f"s{i}", f"s{i}") for i in range(num_same)]
    mixed = rewrite_pairs.with_identity(pairs, share=share, seed=0)
    same = [p for p in mixed if p.origin == p.rewritten]
    assert mixed[: len(pairs)] == pairs and len(same) >= share * len(mixed)
    assert len(same) == num_same or (len(same) - 1) < share * (len(mixed) - 1)  # and no more than that
    assert {p.rewritten for p in mixed} == {p.rewritten for p in pairs}


def test_a_share_that_leaves_no_edits_is_refused():
    with pytest.raises(InputError, match=r"identity_share=1\.0"):
        rewrite_pairs.with_identity([Pair("a", "b")], share=1.0, seed=0)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return word_bytes.build([" red red blue", " blue one"], tmp_path_factory.mktemp("words"), num_words=2)


@given(text=st.text())
def test_a_tokenizer_of_words_and_bytes_gives_any_text_back(words, text):
    assert words.decode(words.encode(text)) == text


def test_the_most_frequent_words_are_one_token_and_a_rare_one_is_spelt(words):
    assert len(words.encode(" red red blue")) == 3 and len(words.encode(" one")) == 4
    assert words.vocab_size == 256 + 2 + 2 and words.stop_ids == (words.eos_id,)
