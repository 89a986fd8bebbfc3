import itertools
import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.evaluation import relaxed_perplexity as rp

CHAIN = {"A": (0.5, 0.3, 0.2), "B": (0.1, 0.6, 0.3), "C": (0.25, 0.25, 0.5)}
ENDING = {"A": (0.5, 0.2, 0.2, 0.1), "B": (0.1, 0.5, 0.3, 0.1), "C": (0.25, 0.25, 0.4, 0.1)}
A, B, C, END = range(4)


class Chain:
    """A Markov chain as a language model; `END` ends a reply."""

    def __init__(self, rows, seed=0):
        self.rows, self.rng = np.array(list(rows.values())), np.random.default_rng(seed)

    def sample(self, prompts, num, n_max):
        return [[self._walk(prompt[-1], n_max) for _ in range(num)] for prompt in prompts]

    def _walk(self, state, n_max):
        out = []
        while len(out) < n_max:
            state = int(self.rng.choice(self.rows.shape[1], p=self.rows[state]))
            if state == END:
                break
            out.append(state)
        return out

    def score(self, rows, targets):
        def nats(before, ids):
            return sum(math.log(self.rows[a][b]) for a, b in itertools.pairwise([before, *ids]))

        return np.array([nats(rows[row][start - 1], ids) for row, start, ids in targets])

    def exact(self, n, target):
        """log P_n by all prefixes with their probabilities: what the estimator's mean is over."""
        logps, weights = [], []
        for prefix in itertools.product(range(3), repeat=n):
            weights.append(math.prod(self.rows[a][b] for a, b in itertools.pairwise([A, *prefix])))
            logps.append(self.score([[A, *prefix]], [(0, 1 + n, target)])[0])
        return rp.log_mean(np.array(logps), np.array(weights))


def test_a_markov_chain_has_the_probabilities_and_perplexities_worked_by_hand():
    log_p = [Chain(CHAIN).exact(n, (C, B)) for n in range(6)]
    np.testing.assert_allclose(np.exp(log_p), [0.05, 0.0725, 0.08125, 0.084363, 0.085399, 0.085725], atol=1e-6)
    relaxed = [rp.perplexity(p, 2) for p in log_p]
    np.testing.assert_allclose(relaxed, [4.472136, 3.713907, 3.508232, 3.442907, 3.421955, 3.415441], atol=1e-6)
    totals = {how: rp.aggregate(np.array(log_p), 2, how) for how in rp.AGGREGATES}
    assert totals["mean"] == pytest.approx(3.614578, abs=1e-6) and totals["sum"] == pytest.approx(1.475645, abs=1e-6)
    assert totals["best"] == pytest.approx(3.415441, abs=1e-6)
    assert totals["mean"] / totals["sum"] == pytest.approx(6**0.5, abs=1e-6)
    assert math.exp(rp.log_mean(np.array(log_p))) == pytest.approx(0.0765393, abs=1e-7)


def test_far_behind_the_prompt_a_chain_has_forgotten_it_and_the_curve_has_reached_its_limit():
    chain = Chain(CHAIN)
    log_p = []
    for before in (A, B):
        after_S = np.linalg.matrix_power(chain.rows, 60)[before]  # of the token before the target, 60 tokens on
        logps_S = chain.score([[A], [B], [C]], [(state, 1, (C, B)) for state in (A, B, C)])
        log_p.append(rp.log_mean(logps_S, after_S))
    assert rp.perplexity(log_p[0], 2) == pytest.approx(3.412779, abs=1e-6)
    assert log_p[1] == pytest.approx(log_p[0], abs=1e-9)
    assert rp.perplexity(chain.exact(5, (C, B)), 2) > rp.perplexity(log_p[0], 2)


def test_replies_that_end_take_their_share_of_the_probability_with_them():
    log_p = [Chain(ENDING).exact(n, (C, B)) for n in range(4)]
    np.testing.assert_allclose(np.exp(log_p), [0.05, 0.06, 0.05875, 0.054425], atol=1e-9)
    np.testing.assert_allclose(
        [rp.perplexity(p, 2) for p in log_p], [4.472136, 4.082483, 4.125685, 4.286480], atol=1e-6
    )


def test_the_estimate_comes_within_four_standard_errors_and_counts_ended_continuations():
    item = rp.Item([A], [[[C, B]]])
    for rows, wanted, n in ((CHAIN, 0.08125, 2), (ENDING, 0.054425, 3)):
        chain = Chain(rows)
        (curve,) = rp.curves([item], chain.sample, chain.score, num_samples=4_000, n_max=3, stride=1)
        p_K = np.exp(curve.logps_NK[n])
        assert abs(p_K.mean() - wanted) < 4 * p_K.std() / 4_000**0.5
        assert curve.relaxed_N[0] == pytest.approx(4.472136, abs=1e-6) and np.ptp(curve.logps_NK[0]) == 0
    assert np.isinf(curve.logps_NK[3]).mean() == pytest.approx(0.1 + 0.9 * 0.1 + 0.81 * 0.1, abs=0.03)


@pytest.mark.parametrize(("V", "L", "K"), [(2, 1, 1), (3, 3, 3), (3, 5, 2)])
def test_a_uniform_model_has_its_vocabulary_at_every_offset_without_variance(V, L, K):
    chain = Chain(dict.fromkeys("ABC"[:V], (1 / V,) * V))
    item = rp.Item([A], [[[B, A, B, B, A][:L]]])
    (curve,) = rp.curves([item], chain.sample, chain.score, num_samples=K, n_max=4, stride=2)
    np.testing.assert_allclose(curve.relaxed_N, V)
    assert np.ptp(curve.logps_NK) < 1e-9
    drawn = rp.over_continuations([curve, curve], resamples=5)
    np.testing.assert_allclose([curve.relaxed(), *drawn], V)


def test_a_model_that_says_the_target_after_m_tokens_has_one_there_and_a_finite_mean():
    reply = [B, B, C, A]

    def score(rows, targets):
        return np.array(
            [0.0 if [*reply, 9, 9, 9][start - 1 :][: len(ids)] == ids else -math.inf for _, start, ids in targets]
        )

    (curve,) = rp.curves(
        [rp.Item([A], [[[C, A]]])], lambda p, k, n: [[reply] * k], score, num_samples=2, n_max=4, stride=1
    )
    assert curve.relaxed_N.tolist() == [math.inf, math.inf, 1.0, math.inf, math.inf]
    assert curve.relaxed() == pytest.approx(5**0.5)


def test_the_estimate_is_biased_upward_as_worked_by_hand_and_is_no_mean_of_logs():
    logs = np.log([0.4, 0.1])
    assert rp.perplexity(rp.log_mean(logs), 1) == pytest.approx(4.0)
    one = np.mean([rp.perplexity(rp.log_mean(logs[[k]]), 1) for k in (0, 1)])
    two = np.mean([rp.perplexity(rp.log_mean(logs[[a, b]]), 1) for a in (0, 1) for b in (0, 1)])
    assert (one, two) == (pytest.approx(6.25), pytest.approx(5.125))
    assert rp.perplexity(rp.log_mean(logs), 1) != pytest.approx(math.exp(-logs.mean()))  # 5.0


def test_small_probabilities_do_not_underflow():
    log_p = rp.log_mean(np.array([-3.0, -5.0, -4.0]))
    assert log_p == pytest.approx(-3.691006, abs=1e-6) and rp.perplexity(log_p, 2) == pytest.approx(6.331285, abs=1e-6)
    assert rp.log_mean(np.array([-1e4, -1e4])) == pytest.approx(-1e4)
    assert rp.log_mean(np.array([-math.inf])) == -math.inf and rp.perplexity(-math.inf, 3) == math.inf


def test_variants_of_an_answer_and_several_answers_are_added_up():
    chain = Chain(CHAIN)
    answers = [[[C, B], [B, B, B]], [[C, A]]]
    (curve,) = rp.curves([rp.Item([A], answers)], chain.sample, chain.score, num_samples=1, n_max=0, stride=1)
    assert math.exp(curve.log_p_N[0]) == pytest.approx(0.2 * 0.25 + 0.3 * 0.6 * 0.6 + 0.2 * 0.25)
    assert curve.length == 3  # B B B is the likeliest by its tokens


def test_a_corpus_has_the_geometric_mean_and_counts_what_is_infinite():
    out = rp.corpus([2.0, 8.0, math.inf])
    assert out["geometric_mean"] == pytest.approx(4.0) and out["median"] == 5.0
    assert (out["n"], out["infinite"]) == (2, 1) and out["low"] <= 4 <= out["high"]
    assert rp.corpus([math.inf])["geometric_mean"] is None


@pytest.mark.parametrize(("num", "n_max", "stride"), [(0, 4, 1), (1, -1, 1), (1, 4, 0)])
def test_numbers_that_mean_nothing_are_refused(num, n_max, stride):
    with pytest.raises(InputError):
        rp.curves([rp.Item([A], [[[B]]])], None, None, num_samples=num, n_max=n_max, stride=stride)
    with pytest.raises(InputError, match="0 tokens"):
        rp.curves([rp.Item([A], [[[]]])], None, None)


def test_the_interval_over_continuations_is_narrower_for_more_of_them_and_absent_for_infinite_items():
    logps = np.log(np.random.default_rng(0).uniform(0.1, 0.9, (1, 64)))
    few, many = (rp.Curve((0,), logps[:, :k], 1) for k in (4, 64))
    widths = [np.ptp(rp.over_continuations([curve])) for curve in (few, many)]
    assert 0 < widths[1] < widths[0]
    never = rp.Curve((0,), np.full((1, 4), -np.inf), 1)
    assert rp.over_continuations([many, never]) is None
