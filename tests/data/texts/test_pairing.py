import random
from collections import Counter

from data.texts import pairing
from data.texts.egida import Pair, SafeAnswer
from data.texts.suites import PLAIN, Case

SAFE = {"a": SafeAnswer("a", "q", "I will not.", "mistral"), "b": SafeAnswer("b", "q", "It is open.")}


def test_unsafe_answers_to_requests_with_a_safe_answer_are_pairs_and_all_others_are_counted():
    verdicts = ("unsafe", "safe", "invalid", "unsafe", "unsafe", "unsafe")
    requests = ("a", "a", "a", "b", "c", "a")
    responses = ("It is open.", "no", "", "It is open. ", "yes", " ")
    cases = [
        Case(f"{i}", f"open {request}", "harmful", "", request, "S1" if i else PLAIN, ("doors", "keys"))
        for i, request in enumerate(requests)
    ]
    counts = {}
    pairs = pairing.pair_up(cases, responses, verdicts, SAFE, target_model="small", counts=counts)
    assert pairs == [
        Pair("a", "open a", "I will not.", "It is open.", PLAIN, ("doors", "keys"), "small", "mistral"),
    ]
    assert counts == {
        "answers that are safe, not paired": 1,
        "answers that are invalid, not paired": 1,
        "pairs of one answer": 1,
        "unsafe answers to requests without a safe answer": 1,
        "unsafe answers that are empty": 1,
    }


def pairs_of(sizes):
    return [
        Pair(f"{style}{i}", "q", "no", "yes", style, (topic,)) for (style, topic), n in sizes.items() for i in range(n)
    ]


SIZES = {("S1", "doors"): 100, ("S1", "keys"): 50, ("S2", "doors"): 30, ("S3", "lamps"): 20}


def test_a_sample_has_each_stratum_in_its_share():
    pairs = pairs_of(SIZES)
    for n in (10, 37, 100, 199):
        got = Counter((pair.style, pair.topics[0]) for pair in pairing.sampled(pairs, n))
        assert got.total() == n
        assert all(abs(got[key] - n * size / 200) < 1.5 for key, size in SIZES.items())


def test_strata_of_one_pair_are_drawn_as_often_as_others():
    singles = [Pair(f"{i}", "q", "no", "yes", f"S{i}", ("x",)) for i in range(50)]
    pairs = pairs_of({("big", "doors"): 50}) + singles
    num = [sum(pair.topics == ("x",) for pair in pairing.sampled(pairs, 20, seed=seed)) for seed in range(40)]
    assert 9 < sum(num) / len(num) < 11


def test_smaller_samples_lie_in_larger_ones_and_the_order_of_the_input_does_not_matter():
    pairs = pairs_of(SIZES)
    shuffled = random.Random(0).sample(pairs, len(pairs))
    large = pairing.sampled(pairs, 80)
    assert pairing.sampled(shuffled, 80) == large and pairing.sampled(pairs, 30) == large[:30]
    assert pairing.sampled(pairs, 80, seed=1) != large


def test_fewer_pairs_than_wanted_are_all_taken():
    pairs = pairs_of({("S1", "doors"): 3})
    assert len(pairing.sampled(pairs, 300)) == len(pairing.sampled(pairs, None)) == 3
