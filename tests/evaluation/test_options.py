"""Orders of options, what a reply means and who wins a vote: worked numbers of the reference and of ours."""

import itertools
from collections import Counter

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import options

ALL = ["".join(order) for order in itertools.permutations("ABCD")]


def test_an_order_maps_what_is_shown_to_its_own_letter_and_back():
    assert [options.unshuffle(letter, "BDAC") for letter in "ABCD"] == ["B", "D", "A", "C"]
    for order in ALL:
        assert all(options.shuffle(options.unshuffle(letter, order), order) == letter for letter in "ABCD")


def test_shuffling_takes_a_position_s_luck_away():
    rng = np.random.default_rng(0)
    gold = rng.choice(list("ABCD"), 4_000, p=(0.7, 0.1, 0.1, 0.1))
    drawn = [next(options.orders(4, f"0 {i}")) for i in range(len(gold))]
    always_first = [options.unshuffle("A", order) for order in drawn]
    assert np.mean([a == b for a, b in zip(always_first, gold)]) == pytest.approx(0.25, abs=0.03)
    assert np.mean(gold == "A") == pytest.approx(0.7, abs=0.03)


def test_no_order_comes_again_before_all_have_come():
    drawn = list(itertools.islice(options.orders(4, "x"), 24))
    assert sorted(drawn) == sorted(ALL)
    twenty = Counter(itertools.islice(options.orders(3, "x"), 20))
    assert max(twenty.values()) <= 4 and len(twenty) == 6
    as_reference = Counter(itertools.islice(options.orders(3, "x", repeats_identity=True), 20))
    assert as_reference["ABC"] == 15
    assert list(itertools.islice(options.orders(4, "x"), 3)) == drawn[:3]
    many = list(itertools.islice(options.orders(8, "x"), 50))
    assert len(set(many)) == 50 and all(sorted(order) == list("ABCDEFGH") for order in many)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So it is.\nAnswer: [C]", "C"),
        ("[A] or [B]\nAnswer: [B]", "B"),
        ("Answer: C", None),
        ("So\nAnswer: [B] no, [A]", "A"),
        ("I think [B]", None),
        ("Answer: [D]", "D"),
        ("\nAnswer: [A]\nBut no.\nAnswer: [B]", "B"),
        ("\nAnswer: [E]", None),
        ("", None),
    ],
)
def test_the_last_letter_behind_the_last_answer_counts(reply, answer):
    assert options.parse(reply, "ABCD") == answer


def test_a_reply_is_read_in_the_order_that_was_shown():
    assert options.parse("\nAnswer: [A]", "BDAC") == "B"
    assert options.parse("\nAnswer: [D]", "BDAC") == "C"


@pytest.mark.parametrize(("order", "shown"), [("ABCD", "B"), ("CABD", "B"), ("BDAC", "A"), ("DCBA", "A")])
def test_the_reference_takes_the_last_in_its_order(order, shown):
    assert options.parse("...\nAnswer: [B] no, [A]", order, compatible=True) == options.unshuffle(shown, order)


def test_the_reference_reads_a_reply_without_a_marker_whole():
    assert options.parse("I think [B]", "ABCD", compatible=True) == "B"
    assert options.parse("Answer: C", "ABCD", compatible=True) is None


@pytest.mark.parametrize(
    ("answers", "seen", "reached"), [("BDBDA", "B", "B"), ("BDDB", "B", "D"), ("ACBBCA", "A", "B"), ("D", "D", "D")]
)
def test_votes_and_their_ties(answers, seen, reached):
    assert options.vote(answers)[0] == seen
    assert options.vote(answers, ties=options.FIRST_REACHED)[0] == reached


def test_a_vote_says_whether_it_was_tied_and_counts_no_reply_without_an_answer():
    assert options.vote([]) == (None, False) and options.vote([None, None]) == (None, False)
    assert options.vote([None, "B", "A", "B"]) == ("B", False) and options.vote("BDBDA") == ("B", True)
    assert options.vote("BDDB", ties=options.LIKELIEST, logprobs=[-1, -0.1, -0.2, -1]) == ("D", True)
    with pytest.raises(InputError, match="needs the log-probability"):
        options.vote("BD", ties=options.LIKELIEST)
    with pytest.raises(InputError, match="the nearest is 'first_seen'"):
        options.vote("BD", ties="first_see")


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 0.5), (0.6, 0.68256), (0.7, 0.83692), (0.8, 0.94208)])
def test_the_majority_of_five_follows_the_binomial_law(share, wanted):
    won = [draws for draws in itertools.product("AB", repeat=5) if options.vote(draws)[0] == "A"]
    probability = sum(share ** draws.count("A") * (1 - share) ** draws.count("B") for draws in won)
    assert probability == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("first moss, then fir", "C"),
        ("it is wet moss", "B"),
        ("WET MOSS.", "B"),
        ("mossy firs", None),
        ("", None),
    ],
)
def test_the_text_that_a_reply_names_last_is_its_answer(reply, option):
    assert options.parse_text(reply, {"A": "moss", "B": "wet moss", "C": "fir"}) == option
