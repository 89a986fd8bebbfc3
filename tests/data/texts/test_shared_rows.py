"""Rows of texts that share their beginnings."""

import numpy as np
import pytest

from alignment.errors import InputError
from data.texts import shared_rows, text


def made(num, trunk=40, seed=0):
    """Texts behind one of three openings of `trunk` tokens, every token a target."""
    rng = np.random.default_rng(seed)
    openings = rng.integers(1, 1000, (3, trunk))
    ids = [np.concatenate([openings[i % 3], rng.integers(1, 1000, rng.integers(2, 30))]) for i in range(num)]
    return [(one.astype(np.int32), np.ones(len(one), np.int8)) for one in ids]


def test_every_target_counts_once_for_each_text_and_every_row_fits():
    pieces = made(60)
    rows = shared_rows.pack(pieces, 128)
    assert sorted(i for row in rows for i in row) == list(range(60))
    batch = shared_rows.fill([[pieces[i] for i in row] for row in rows], num_time=128, pad_id=0)
    assert batch["mask"].sum() == sum(counts[1:].sum() for _, counts in pieces)
    for n, row in enumerate(rows):
        wanted = sorted((int(ids[t]), t) for i in row for ids in [pieces[i][0]] for t in range(1, len(ids)))
        real = np.flatnonzero(batch["mask"][n])
        places = batch["positions"][n, batch["sources"][n, real]] + 1
        found = zip(batch["targets"][n, real], places, batch["mask"][n, real])
        assert sorted((int(t), int(p)) for t, p, weight in found for _ in range(int(weight))) == wanted


@pytest.mark.parametrize("seed", range(4))
def test_rows_hold_targets_of_an_opening_that_only_some_of_its_texts_count(seed):
    rng = np.random.default_rng(seed)
    pieces = [(ids, rng.integers(0, 2, len(ids)).astype(np.int8)) for ids, _ in made(60, seed=seed)]
    rows = shared_rows.pack(pieces, 96)
    batch = shared_rows.fill([[pieces[i] for i in row] for row in rows], num_time=96, pad_id=0)
    assert batch["mask"].sum() == sum(counts[1:].sum() for _, counts in pieces)


def test_openings_that_texts_share_spare_rows():
    pieces = made(60)
    shared = shared_rows.pack(pieces, 128)
    plain = text.pack([ids for ids, _ in pieces], max_len=128, pad_id=0)
    assert len(shared) < 0.6 * len(plain)


def test_a_short_common_beginning_is_not_shared():
    pieces = made(2, trunk=shared_rows.MIN_SHARED - 1, seed=3)[:1] * 1 + made(4, trunk=8)
    batch = shared_rows.fill([pieces], num_time=256, pad_id=0)
    assert (batch["ends"][0] > 0).sum() == sum(len(ids) - 1 for ids, _ in pieces)


def test_rows_depend_on_the_texts_alone():
    pieces = made(30)
    assert shared_rows.pack(pieces, 96) == shared_rows.pack(list(pieces), 96)


def test_sharing_is_refused_where_each_text_has_its_own_row(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="gives each its own"):
        text.check(path=str(tmp_path / "a.txt"), max_len=8, packed=False, share_prefixes=True)
