import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from data.texts import unseen
from data.texts.suites import PLAIN, Case

TOPICS = ("doors", "keys", "lamps", "wells", "roofs")
STYLES = (PLAIN, "fiction", "research", "encoding", "past_tense")


def cases_of(requests):
    """Each request, a set of topics, in some styles."""
    return [
        Case(f"{i}/{style}", f"{style} {i}", "harmful", "", f"r{i}", style, tuple(topics))
        for i, (topics, styles) in enumerate(requests)
        for style in styles
    ]


def grid(num=40):
    return cases_of([((TOPICS[i % 5], *TOPICS[i % 7 : i % 7 + 1]), STYLES) for i in range(num)])


some_requests = st.lists(
    st.tuples(st.sets(st.sampled_from(TOPICS), max_size=3), st.sets(st.sampled_from(STYLES), min_size=1)),
    min_size=2,
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(requests=some_requests, seed=st.integers(0, 99), topic_share=st.sampled_from([0.0, 0.2, 0.5]))
def test_no_request_is_on_both_sides_and_training_meets_no_unseen_style_or_topic(requests, seed, topic_share):
    cases = cases_of(requests)
    try:
        out = unseen.split(cases, topic_share=topic_share, num_unseen_styles=1, seed=seed)
    except InputError:
        return
    assert not {case.request for case in out.train} & {case.request for case in out.test}
    assert not {case.style for case in out.train} & set(out.unseen_styles)
    assert not {topic for case in out.train for topic in case.topics} & set(out.unseen_topics)
    assert len(out.train) + len(out.test) + out.num_left_out == len(cases)
    assert PLAIN not in out.unseen_styles
    assert {out.cell(case) for case in out.train} <= {"seen_topic_seen_style", unseen.PLAIN_CELL}


def test_all_four_cells_are_tested_and_plain_requests_stand_apart():
    out = unseen.split(grid(), num_unseen_styles=2)
    cells = {out.cell(case) for case in out.test}
    assert cells == {*unseen.CELLS, unseen.PLAIN_CELL}
    assert all(case.style == PLAIN for case in out.test if out.cell(case) == unseen.PLAIN_CELL)


def test_unseen_topics_have_at_most_their_share_of_the_rows_or_are_the_smallest_alone():
    cases = grid(100)
    for seed in range(20):
        out = unseen.split(cases, topic_share=0.4, num_unseen_styles=1, seed=seed)
        mass = sum(bool(set(case.topics) & set(out.unseen_topics)) for case in cases)
        assert 0 < mass <= 0.4 * len(cases)
    out = unseen.split(cases, topic_share=0.01, num_unseen_styles=1)
    assert len(out.unseen_topics) == 1


def test_a_rendering_with_a_held_back_topic_takes_its_whole_request_along():
    cases = cases_of([(("doors",), STYLES)] * 6)
    cases[1] = Case("0/x", "x", "harmful", "", "r0", "fiction", ("keys",))
    out = unseen.split(cases, unseen_topics=["keys"], num_unseen_styles=1)
    assert "r0" not in {case.request for case in out.train}
    assert {out.cell(case).startswith("unseen_topic") for case in out.test if case.request == "r0"} >= {True}
    assert not any(out.cell(case).startswith("seen") for case in out.test if case.request == "r0")


def test_groups_of_topics_are_held_back_together():
    groups = {"doors": "inside", "keys": "inside", "lamps": "inside", "wells": "outside", "roofs": "outside"}
    for seed in range(5):
        out = unseen.split(grid(), topic_groups=groups, topic_share=0.5, num_unseen_styles=1, seed=seed)
        assert out.unseen_topics in (("roofs", "wells"), ("doors", "keys", "lamps"))


def test_the_order_of_the_rows_changes_no_side_and_the_seed_does():
    cases = grid()
    first, again = (unseen.split(rows, num_unseen_styles=1) for rows in (cases, cases[::-1]))
    assert set(first.train) == set(again.train) and first.unseen_topics == again.unseen_topics
    assert len({unseen.split(cases, num_unseen_styles=1, seed=seed).test for seed in range(9)}) > 3


def test_sets_without_topics_or_attacks_hold_back_requests_alone():
    out = unseen.split(cases_of([((), (PLAIN,))] * 10))
    assert (len(out.train), len(out.test), out.unseen_topics, out.unseen_styles) == (8, 2, (), ())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_unseen_styles": 4}, "4 of 4 styles"),
        ({"unseen_styles": ["ficton"]}, "'fiction'"),
        ({"unseen_topics": ["boats"]}, "'boats'"),
        ({"test_share": 1.0}, "test_share"),
        ({"topic_share": 1.0}, "topic_share"),
        ({"unseen_topics": TOPICS, "num_unseen_styles": 1}, "0 rows to train on"),
    ],
)
def test_splits_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        unseen.split(grid(), **{"num_unseen_styles": 1, **options})
