import math

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.watermark import membership, verbatim

P = np.log([0.60, 0.05, 0.30, 0.02, 0.80, 0.10, 0.45, 0.01, 0.25, 0.70])
GREEN = np.array([1, 1, 0, 1, 1, 0, 1, 0, 0, 1])


def test_adaptive_min_k_by_hand():
    corrected = membership.adaptive(P, GREEN, 2.0)
    assert membership.min_k(P, 0.2) == pytest.approx(-4.258597, abs=1e-6)
    assert membership.min_k(corrected, 0.2) == pytest.approx(-5.453878, abs=1e-6)
    assert membership.min_k(P, 0.4) == pytest.approx(-3.453878, abs=1e-6)
    assert membership.min_k(corrected, 0.4) == pytest.approx(-4.577858, abs=1e-6)


def test_a_short_text_has_one_token_in_its_smallest_share():
    assert membership.min_k(P[:3], 0.2) == P[1] and membership.is_short(3) and not membership.is_short(10)
    with pytest.raises(InputError, match="k=0"):
        membership.min_k(P, 0)


def test_adaptive_correction_is_off_by_one_factor_from_the_clean_distribution():
    p, green = np.array([0.05, 0.45, 0.3, 0.2]), np.array([1, 0, 1, 0])
    marked = p * np.exp(2.0 * green) / (p * np.exp(2.0 * green)).sum()
    np.testing.assert_allclose(marked, [0.114164, 0.139053, 0.684982, 0.061801], atol=1e-6)
    shortcut = np.exp(membership.adaptive(np.log(marked), green, 2.0))
    np.testing.assert_allclose(shortcut, [0.015450, 0.139053, 0.092702, 0.061801], atol=1e-6)
    np.testing.assert_allclose(shortcut / p, 0.309, atol=1e-3)


def test_the_exact_inverse_gives_the_clean_distribution_back():
    p, green = np.array([0.05, 0.45, 0.3, 0.2]), np.array([1, 0, 1, 0])
    marked = p * np.exp(2.0 * green) / (p * np.exp(2.0 * green)).sum()
    mass = np.full(4, marked[green == 1].sum())
    assert mass[0] == pytest.approx(0.799145, abs=1e-6)
    back = np.exp(membership.exact_debias(np.log(marked), green, mass, 2.0))
    np.testing.assert_allclose(back, p, rtol=1e-12, atol=0)


def test_the_exact_inverse_undoes_any_mark_from_the_masses_that_it_has():
    rng = np.random.default_rng(2)
    p_TV = rng.dirichlet(np.ones(30), 8)
    green_TV = rng.random((8, 30)) < 0.3
    scored = verbatim.Scored(np.log(p_TV[:, 0]), green_TV[:, 0], (p_TV * green_TV).sum(1))
    for delta in (0.0, 2.0, 10.0):
        raised_TV = p_TV * np.exp(delta * green_TV)
        marked_TV = raised_TV / raised_TV.sum(1, keepdims=True)
        np.testing.assert_allclose(scored.marked_mass(delta), (marked_TV * green_TV).sum(1), rtol=1e-12)
        np.testing.assert_allclose(scored.marked(delta), np.log(marked_TV[:, 0]), rtol=1e-9)
        back = membership.exact_debias(scored.marked(delta), scored.is_green_T, scored.marked_mass(delta), delta)
        np.testing.assert_allclose(back, scored.logps_T, atol=1e-9)


def test_min_k_plus_plus_by_hand():
    logp = np.log([0.5, 0.3, 0.2])
    means, squares = np.sum(np.exp(logp) * logp), np.sum(np.exp(logp) * logp**2)
    assert means == pytest.approx(-1.029653, abs=1e-6)
    assert math.sqrt(squares - means**2) == pytest.approx(0.364643, abs=1e-6)
    out = membership.plus_plus(logp, np.full(3, means), np.full(3, squares))
    np.testing.assert_allclose(out, [0.922837, -0.478056, -1.590008], atol=1e-5)


def test_auc_counts_ties_half():
    assert membership.auc([0.9, 0.8, 0.4, 0.4], [0.7, 0.4, 0.3, 0.1]) == 0.8125
    rng = np.random.default_rng(0)
    m, o = rng.integers(0, 5, 20), rng.integers(0, 5, 30)
    slow = np.mean([(a > b) + (a == b) / 2 for a in m for b in o])
    assert membership.auc(m, o) == pytest.approx(slow)
    for wrong in (([], [1]), ([math.nan], [1])):
        with pytest.raises(InputError):
            membership.auc(*wrong)


def test_share_of_members_at_a_rate_of_false_alarms():
    others = np.arange(100)
    assert membership.tpr_at([98.5, 99.5, 50], others, 0.01) == pytest.approx(2 / 3)
    assert membership.tpr_at([98.5, 99.5, 50], others, 0.001) == pytest.approx(1 / 3)


def test_scores_of_texts():
    assert len(__import__("zlib").compress(b"the cat sat on the mat")) == 27
    assert membership.zlib_ratio(np.array([-27.0]), "the cat sat on the mat") == -1
    assert membership.zlib_ratio(np.array([-1.0]), "a" * 32) < membership.zlib_ratio(np.array([-1.0]), "q8#kz0!v" * 30)
    assert membership.lowercase(P, P) == -1
    assert membership.reference_ratio(P, 2 * P) == -0.5
    assert membership.reference_difference(P, 2 * P) == pytest.approx(-P.mean())


def test_the_blind_baseline_reads_words_alone():
    rng = np.random.default_rng(0)
    labels = [i % 2 for i in range(80)]
    dated = [f"{'then' if y else 'now'} word{rng.integers(9)} word{rng.integers(9)}" for y in labels]
    same = [f"word{rng.integers(9)} word{rng.integers(9)}" for _ in labels]
    scores = {name: membership.blind_scores(texts, labels) for name, texts in (("dated", dated), ("same", same))}
    of = {name: membership.auc(s[1::2], s[0::2]) for name, s in scores.items()}
    assert of["dated"] > 0.95 and 0.3 < of["same"] < 0.7


def test_the_sheets_toy_from_end_to_end():
    """Members whose targets the model likes more; a mark hides them from Loss, and the adaptive attack finds them."""
    rng = np.random.default_rng(0)
    N, V, n = 400, 200, 40
    logits = rng.normal(0, 1.5, (N, n, V))
    is_member = np.arange(N) < N // 2
    logits[..., 0] += np.where(is_member, 3, 2)[:, None] + rng.normal(0, 1, (N, n))
    logp = logits[..., 0] - np.log(np.exp(logits).sum(-1))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)

    def auc(score_fn, scores):
        values = np.array([score_fn(row) for row in scores])
        return membership.auc(values[is_member], values[~is_member])

    masks = [rng.random((N, n, V), np.float32) < 0.5 for _ in range(5)]
    marks = [(green[..., 0], np.einsum("ntv,ntv->nt", probs, green)) for green in masks]
    of = {}
    for delta in (0.0, 2.0, 5.0, 10.0):
        rows = []
        for green, mass in marks:
            marked = logp + verbatim.change(green, mass, delta)
            own = verbatim.increase(list(logp[is_member]), list(marked[is_member])).mean_of_delta
            corrected = membership.adaptive(marked, green, delta)
            scores = (membership.loss, marked), (membership.min_k, marked), (membership.min_k, corrected)
            rows.append((own, *(auc(*each) for each in scores)))
        of[delta] = np.mean(rows, axis=0)
    clean = of[0.0]
    assert clean[0] == pytest.approx(0) and of[2.0][0] < of[5.0][0] < of[10.0][0]
    assert clean[1] - of[10.0][1] >= 0.1
    assert clean[2] > of[2.0][2] > of[5.0][2] and clean[2] - of[10.0][2] >= 0.015
    assert all(abs(values[3] - clean[2]) <= 0.005 for values in of.values()), of
