"""Groups of duplicates and who stays."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.filtering.duplicates import bands, clusters, minhash


def slow_removed(pairs):
    """Groups merged one pair at a time."""
    group_of = {}
    for row in pairs:
        a, b = tuple(row[:2]), tuple(row[2:])
        merged = group_of.get(a, {a}) | group_of.get(b, {b})
        group_of.update(dict.fromkeys(merged, merged))
    return {node: min(group) for node, group in group_of.items() if node != min(group)}


node = st.tuples(st.integers(0, 3), st.integers(0, 6))
pair_lists = st.lists(st.tuples(node, node).map(lambda p: [*p[0], *p[1]]), max_size=25)


@settings(max_examples=80, deadline=None)
@given(pair_lists, st.integers(1, 30), st.integers(1, 30))
def test_groups_equal_those_merged_pair_by_pair_however_the_pairs_are_cut(pairs, chunk, max_pairs):
    arrays = [np.array(pairs[i : i + chunk]) for i in range(0, len(pairs), chunk)]
    assert clusters.solve(arrays, max_pairs=max_pairs).as_dict() == slow_removed(pairs)


@settings(max_examples=40, deadline=None)
@given(pair_lists, st.randoms())
def test_groups_do_not_depend_on_the_order_of_pairs(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    as_dicts = [clusters.solve([np.array(p).reshape(-1, 4)]).as_dict() for p in (pairs, shuffled)]
    assert as_dicts[0] == as_dicts[1]


def test_a_chain_is_one_group_of_which_the_smallest_stays():
    found = clusters.solve([np.array([[1, 5, 2, 0], [2, 0, 2, 7]]), np.array([[0, 9, 2, 7], [3, 1, 3, 2]])])
    assert found.as_dict() == {(1, 5): (0, 9), (2, 0): (0, 9), (2, 7): (0, 9), (3, 2): (3, 1)}
    assert found.removed_in(2) == {0: (0, 9), 7: (0, 9)}
    assert found.removed_in(0) == {}


def test_the_largest_numbers_a_key_file_can_hold_stay_whole():
    found = clusters.solve([np.array([[2**31 - 2, 2**32 - 1, 2**31 - 1, 2**32 - 1]])])
    assert found.as_dict() == {(2**31 - 1, 2**32 - 1): (2**31 - 2, 2**32 - 1)}


def test_no_pairs_remove_nothing():
    assert clusters.solve([]).as_dict() == {}
    assert len(clusters.solve(iter([np.empty((0, 4), np.int64)]))) == 0


def deduplicate(texts, cuts, folder):
    """All four stages over a corpus cut into slices; the kept texts' places in the corpus."""
    s, paths = minhash.Settings(), []
    starts = [0, *cuts, len(texts)]
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        paths.append(folder / f"{len(cuts)}-{number}")
        keys = minhash.band_keys(minhash.signatures(texts[start:stop], s), s)
        bands.write(paths[-1], keys, np.arange(stop - start))
    found = clusters.solve(chunk for band in range(s.num_buckets) for chunk in bands.pairs(paths, band))
    removed = {starts[a] + i for a, i in found.as_dict()}
    return [i for i in range(len(texts)) if i not in removed]


def test_the_same_documents_stay_however_the_corpus_is_cut_into_slices(tmp_path):
    random = np.random.default_rng(0)
    vocabulary = ["".join(letters) for letters in random.choice(list("abcdefghij"), (500, 6))]
    originals = [random.choice(vocabulary, 80).tolist() for _ in range(30)]
    texts = []
    for i in random.integers(0, 30, 120):
        words = list(originals[i])
        words[random.integers(80)] = "changed"
        texts.append(" ".join(words))
    kept = deduplicate(texts, [], tmp_path)
    assert 20 < len(kept) < 40
    assert kept == deduplicate(texts, [60], tmp_path) == deduplicate(texts, [1, 40, 41, 100, 119], tmp_path)
