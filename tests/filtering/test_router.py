import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.filtering import router


def test_the_six_levels_are_routed_as_the_table_says():
    assert [router.route(s) for s in range(6)] == ["keep", "rewrite", "rewrite", "rewrite", "drop", "drop"]
    assert [router.route(s, synthesise=True) for s in range(6)] == ["keep", *["rewrite"] * 3, *["synthesise"] * 2]


def test_fractions_go_to_the_nearest_level_and_a_half_to_the_stricter_side():
    levels = {0.49: 0, 0.5: 1, 1.5: 2, 2.5: 3, 3.49: 3, 3.5: 4, -2.0: 0, 7.0: 5, math.inf: 5}
    assert {score: router.level(score) for score in levels} == levels


def test_thresholds_move_what_is_kept_and_what_is_dropped():
    assert [router.route(s, keep_at=1, drop_at=6) for s in range(6)] == ["keep"] * 2 + ["rewrite"] * 4
    assert [router.route(s, keep_at=-1) for s in (0, 1)] == ["rewrite", "rewrite"]  # as the paper: all is rewritten


@pytest.mark.parametrize(("keep_at", "drop_at"), [(0, 1), (3, 4), (4, 2), (-2, 4), (0, 7)])
def test_thresholds_that_leave_nothing_to_rewrite_are_refused(keep_at, drop_at):
    with pytest.raises(InputError, match="leave no level to rewrite"):
        router.check(keep_at, drop_at)
    router.check(0, 4)


@pytest.mark.parametrize("score", [None, math.nan])
def test_a_document_without_a_score_is_not_routed(score):
    with pytest.raises(InputError, match="score the document"):
        router.route(score)


def test_one_unsafe_word_in_twenty_is_tagged_and_no_safe_one():
    text = "word " * 10_000
    for seed in range(3):
        tagged = router.tag(text, score=4.0, seed=seed, document_id="a")
        assert abs(tagged.count(router.TAG) - 500) <= 66  # three standard deviations of a binomial
        assert router.tag(text, score=0.0, seed=seed, document_id="a") == text


@given(st.text(max_size=80), st.floats(0, 1))
def test_taking_the_tags_out_gives_the_text_back(text, probability):
    tagged = router.tag(text, score=5.0, seed=1, document_id="a", probability=probability)
    assert tagged.replace(f"{router.TAG} ", "") == text.replace(f"{router.TAG} ", "")


def test_tags_depend_on_seed_and_document_alone():
    text = "one two three four " * 50
    tag = {key: router.tag(text, score=5, seed=key[0], document_id=key[1]) for key in ((0, "a"), (0, "b"), (1, "a"))}
    assert len(set(tag.values())) == 3
    assert tag[0, "a"] == router.tag(text, score=1, seed=0, document_id="a")
    assert router.tag(text, score=5, seed=0, document_id="a", probability=1.0).count(router.TAG) == 200


def test_a_safe_text_is_never_tagged_even_where_all_is_rewritten():
    text = "word " * 10_000
    assert router.tag(text, score=0, keep_at=-1, seed=0, document_id="d") == text
    assert router.TAG in router.tag(text, score=1, keep_at=-1, seed=0, document_id="d")
