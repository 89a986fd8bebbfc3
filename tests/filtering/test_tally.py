import random

import pytest

from alignment.filtering import tally

MOST = 5


def counted(rows):
    """A tally of (id, source, outcome, size, score)."""
    found = tally.empty()
    for id, source, outcome, size, score in rows:
        reason = "gopher/short" if outcome == "drop" else ""
        tally.count(found, source, outcome, size, reason)
        tally.histogram(found, "score", [score], 0, 5)
        tally.add(found, "urls/none", size % 2)
        tally.sample(found, outcome, id, {"id": id, "before": "x" * 1000}, MOST)
    return found


@pytest.fixture
def rows():
    draw = random.Random(0)
    kinds = ("keep", "drop", "rewrite")
    return [(f"d{i}", f"s{i % 3}", draw.choice(kinds), draw.randrange(100), draw.random() * 5) for i in range(300)]


def plain(found):
    """The order in which sources, actions and bins came is no part of a tally."""
    return {name: {key: found[name][key] for key in sorted(found[name])} for name in sorted(found)}


@pytest.mark.parametrize("size", [1, 7, 40, 299])
def test_slices_of_any_size_in_any_order_add_up_to_the_whole(rows, size):
    whole = tally.merge([counted(rows)], MOST)
    parts = [counted(rows[at : at + size]) for at in range(0, len(rows), size)]
    random.Random(size).shuffle(parts)
    assert plain(tally.merge(parts, MOST)) == plain(whole)
    assert plain(tally.merge([tally.merge(parts[:2], MOST), tally.merge(parts[2:], MOST)], MOST)) == plain(whole)


def test_merging_leaves_what_it_is_given_as_it_was(rows):
    one, other = counted(rows[:100]), counted(rows[100:])
    tally.merge([one, other], MOST)
    assert one == counted(rows[:100]) and other == counted(rows[100:])


def test_the_sample_is_of_so_many_documents_and_short(rows):
    kept = counted(rows)["samples"]
    assert {name: len(found) for name, found in kept.items()} == {"keep": MOST, "drop": MOST, "rewrite": MOST}
    assert all(len(row["before"]) == tally.TEXT_SHOWN for found in kept.values() for _, row in found)


def test_no_sample_is_taken_where_none_is_asked_for():
    found = tally.empty()
    tally.sample(found, "keep", "a", {"id": "a"}, 0)
    assert tally.merge([found], 0)["samples"] == {"keep": []}


def test_totals_are_over_sources_and_values_outside_fall_into_the_end_bins():
    found = counted([("a", "s", "drop", 3, -1.0), ("b", "t", "drop", 4, 9.0), ("c", "t", "keep", 5, 2.5)])
    assert tally.totals(found) == {"drop": (2, 7), "drop/gopher/short": (2, 7), "keep": (1, 5)}
    bins = found["histograms"]["score"]["counts"]
    assert (bins[0], bins[tally.BINS // 2], bins[-1], sum(bins)) == (1, 1, 1, 3)
