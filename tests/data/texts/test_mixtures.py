"""Mixtures keep their shares, use every row of a source before any comes again, and resume at any place."""

import json

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import mixtures, text
from data.tokens import tokenizer

SOURCES = np.repeat([0, 1, 2], [50, 300, 7])
SHARES = (0.5, 0.3, 0.2)


def test_shares_are_exact_in_every_round_and_a_source_s_rows_come_once_each_before_any_again():
    row = mixtures.order(SOURCES, SHARES, seed=3)
    rows = np.array([row(place) for place in range(3 * mixtures.ROUND)])
    for start in range(0, len(rows), mixtures.ROUND):
        counts = np.bincount(SOURCES[rows[start : start + mixtures.ROUND]])
        assert counts.tolist() == [500, 300, 200]
    for source, size in enumerate((50, 300, 7)):
        own = rows[SOURCES[rows] == source]
        for start in range(0, len(own) - size, size):
            assert len(set(own[start : start + size])) == size
    first = own[:7].tolist(), own[7:14].tolist()
    assert first[0] != first[1] and sorted(first[0]) == sorted(first[1])  # each epoch has its own order


def test_a_place_s_row_does_not_depend_on_what_was_asked_before():
    row, other = (mixtures.order(SOURCES, SHARES, seed=3) for _ in range(2))
    places = [5, 999, 1_000, 2_500, 10**12 + 17]
    assert [row(place) for place in places] == [other(place) for place in reversed(places)][::-1]
    again = mixtures.order(SOURCES, SHARES, seed=4)
    assert [again(place) for place in range(50)] != [row(place) for place in range(50)]


def test_remainders_fill_the_round():
    assert mixtures._counts((1, 1, 1)) == [334, 333, 333]


@pytest.fixture
def files(tmp_path):
    for name, num in (("a", 12), ("b", 40)):
        lines = (json.dumps({"text": f"{name}{i} " + name * 30}) for i in range(num))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"


def load(path, **options):
    tok = tokenizer.load("bytes")
    return text.load(path=path, tokenizer=tok, max_len=40, kind="documents", heldout_fraction=0.2, seed=0, **options)


def test_batches_of_two_files_are_mixed_and_resume_at_the_same_batch(files):
    train, _, counts = load(files, shares=(3, 1))
    assert len(train.sources) == len(train) and counts["training rows"] == len(train)
    assert counts["training rows of source 0"] + counts["training rows of source 1"] == len(train)
    batches = text.batches(train, batch_size=100, seed=0)
    first = [next(batches) for _ in range(10)]
    letters = [np.array([np.sum(batch["tokens"] == ord(letter)) for letter in "ab"]) for batch in first]
    letters = [of_a / (of_a + of_b) for of_a, of_b in letters]
    assert np.mean(letters) == pytest.approx(0.75, abs=0.01)
    state = batches.get_state()
    expected = next(batches)
    resumed = text.batches(train, batch_size=100, seed=0)
    resumed.set_state(state)
    np.testing.assert_array_equal(next(resumed)["tokens"], expected["tokens"])
    other, _, _ = load(files, shares=(1, 1))
    moved = text.batches(other, batch_size=100, seed=0)
    with pytest.raises(InputError, match="the data has changed"):
        moved.set_state(state)


def test_joined_rows_are_those_of_the_files(files):
    train, heldout, _ = load(files, shares=(1, 1))
    alone = [load(path)[:2] for path in files.split(",")]
    for mixed, parts in ((train, [one[0] for one in alone]), (heldout, [one[1] for one in alone])):
        rows = text.assemble(mixed, np.arange(len(mixed)))["tokens"]
        expected = [text.assemble(part, np.arange(len(part)))["tokens"] for part in parts]
        np.testing.assert_array_equal(rows, np.concatenate(expected))
        assert mixed.num_targets == sum(part.num_targets for part in parts)
        assert mixed.num_bytes == sum(part.num_bytes for part in parts)


@pytest.mark.parametrize(
    ("shares", "words"), [((1,), "1 shares for 2 paths"), ((1, 0), "must be positive"), ((1, 1e-5), "0.001")]
)
def test_shares_that_do_not_go_with_the_paths_are_refused(files, shares, words):
    with pytest.raises(InputError, match=words):
        load(files, shares=shares)
