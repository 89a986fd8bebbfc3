"""Files of keys and the pairs found in them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.filtering.duplicates import bands


def slow_pairs(slices, band):
    """Every document with its group's smallest (slice, index), by a dict of keys."""
    groups = {}
    for number, (keys, index) in slices.items():
        for key, i in zip(keys[:, band].tolist(), index.tolist()):
            groups.setdefault(tuple(np.atleast_1d(key)), []).append((number, i))
    groups.pop((int(bands.NO_KEY),), None)
    return {(*min(group), *other) for group in groups.values() for other in group if other != min(group)}


def make(folder, *, num_slices=4, rows=200, num_bands=3, distinct=150, words=1, seed=0):
    random = np.random.default_rng(seed)
    pool = random.integers(0, 2**64 - 1, (distinct, words), np.uint64)
    slices, paths = {}, []
    for number in range(num_slices):
        keys = pool[random.integers(0, distinct, (rows, num_bands))]
        index = random.permutation(10 * rows)[:rows]
        paths.append(folder / f"{number:05d}.keys")
        bands.write(paths[-1], keys if words > 1 else keys[..., 0], index)
        slices[number] = (keys, index)
    return slices, paths


def found(*args, **options):
    rows = [tuple(row) for chunk in bands.pairs(*args, **options) for row in chunk.tolist()]
    assert len(rows) == len(set(rows))
    return set(rows)


@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("max_bytes", [64 << 20, 4_096, 200], ids=["at once", "in ranges", "key by key"])
def test_pairs_equal_those_of_a_dict_of_keys_whatever_the_memory(tmp_path, words, max_bytes):
    rows = 200 if max_bytes > 200 else 12
    slices, paths = make(tmp_path, words=words, rows=rows, distinct=max(6, rows // 2))
    for band in range(3):
        assert found(paths, band, max_bytes=max_bytes) == slow_pairs(slices, band)


def test_pairs_do_not_depend_on_the_order_of_the_files(tmp_path):
    _, paths = make(tmp_path)
    expected = found(paths, 1)
    order = [2, 0, 3, 1]
    assert found([paths[i] for i in order], 1, slices=order) == expected


def test_ranges_of_keys_given_to_several_workers_find_what_one_does(tmp_path):
    _, paths = make(tmp_path)
    edges = [0, 2**61, 2**63, 2**63 + 2**40, 2**64]
    shares = [found(paths, 0, key_range=span) for span in itertools.pairwise(edges)]
    assert set().union(*shares) == found(paths, 0)
    assert sum(map(len, shares)) == len(found(paths, 0))


def test_a_key_held_by_more_documents_than_fit_is_read_a_file_at_a_time(tmp_path):
    key = np.full((500, 1), 77, np.uint64)
    paths = [tmp_path / f"{i}.keys" for i in range(3)]
    for path in paths:
        bands.write(path, key, np.arange(500))
    chunks = list(bands.pairs(paths, 0, max_bytes=1_000))
    assert len(chunks) == 3
    rows = np.concatenate(chunks)
    assert len(rows) == 1_499 and (rows[:, :2] == 0).all()


def test_128_bit_keys_that_differ_in_one_word_alone_are_no_pair(tmp_path):
    keys = np.array([[[1, 2]], [[1, 3]], [[2, 2]], [[1, 2]]], np.uint64)
    bands.write(tmp_path / "0", keys, np.arange(4))
    for max_bytes in (64 << 20, 200):
        assert found([tmp_path / "0"], 0, max_bytes=max_bytes) == {(0, 0, 0, 3)}


def test_documents_without_a_key_are_nobodys_duplicate(tmp_path):
    keys = np.full((3, 2), bands.NO_KEY)
    bands.write(tmp_path / "0", keys, np.arange(3))
    assert found([tmp_path / "0"], 0) == set()
    assert (tmp_path / "0").stat().st_size == 32


def test_an_empty_slice_is_a_file_like_any_other(tmp_path):
    bands.write(tmp_path / "0", np.empty((0, 14), np.uint64), np.empty(0, np.int64))
    bands.write(tmp_path / "1", np.full((2, 14), 5, np.uint64), np.arange(2))
    assert found([tmp_path / "0", tmp_path / "1"], 13) == {(1, 0, 1, 1)}
    assert found([], 0) == set()


def test_fourteen_bands_cost_168_bytes_a_document(tmp_path):
    make(tmp_path, num_slices=1, rows=1_000, num_bands=14)
    assert (tmp_path / "00000.keys").stat().st_size == 32 + 168 * 1_000


def test_equal_rows_in_another_order_give_the_same_bytes(tmp_path):
    keys = np.random.default_rng(0).integers(0, 9, (50, 2), np.uint64)
    order = np.random.default_rng(1).permutation(50)
    bands.write(tmp_path / "a", keys, np.arange(50))
    bands.write(tmp_path / "b", keys[order], np.arange(50)[order])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no unfinished file stays


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=12), min_size=1, max_size=4))
def test_any_keys_give_the_pairs_of_a_dict(tmp_path_factory, columns):
    folder = tmp_path_factory.mktemp("keys")
    slices, paths = {}, []
    for number, column in enumerate(columns):
        keys = np.array(column, np.uint64).reshape(-1, 1)
        paths.append(folder / str(number))
        bands.write(paths[-1], keys, np.arange(len(keys)))
        slices[number] = (keys, np.arange(len(keys)))
    for max_bytes in (64 << 20, 300):
        assert found(paths, 0, max_bytes=max_bytes) == slow_pairs(slices, 0)


def test_damaged_and_foreign_files_are_refused_with_their_name(tmp_path):
    _, (path, *_) = make(tmp_path, num_slices=1)
    whole = path.read_bytes()
    for content in (whole[:-1], b"{}" + whole[2:], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"00000\.keys"):
            list(bands.pairs([path], 0))


def test_files_of_different_settings_do_not_mix(tmp_path):
    bands.write(tmp_path / "0", np.ones((2, 14), np.uint64), np.arange(2))
    bands.write(tmp_path / "1", np.ones((2, 20), np.uint64), np.arange(2))
    with pytest.raises(InputError, match="20 bands"):
        list(bands.pairs([tmp_path / "0", tmp_path / "1"], 0))
    with pytest.raises(InputError, match="band 14"):
        list(bands.pairs([tmp_path / "0"], 14))


def test_keys_of_the_wrong_shape_and_numbers_too_large_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is needed"):
        bands.write(tmp_path / "0", np.ones((3, 14), np.uint64), np.arange(2))
    with pytest.raises(ValueError, match="32 bits"):
        bands.write(tmp_path / "0", np.ones((1, 14), np.uint64), np.array([2**32]))
