import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.preference import batchwise, losses, scores
from tests.preference import slow

# Every loss, with options away from their defaults where it has some.
CASES = [
    ("dpo", {"beta": 0.1}),
    ("dpo", {"beta": 0.3, "label_smoothing": 0.1}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2}),
    ("hinge", {"beta": 0.2}),
    ("ipo", {"beta": 0.4}),
    ("ipo_sum", {"beta": 0.25}),
    ("reference_free", {"beta": 0.1, "label_smoothing": 0.05}),
    ("sigmoid_norm", {"beta": 5.0, "label_smoothing": 0.05}),
    ("f_dpo", {"beta": 0.2}),
    ("f_dpo", {"beta": 0.2, "divergence": "forward_kl"}),
    ("f_dpo", {"beta": 0.2, "divergence": "js"}),
    ("f_dpo", {"beta": 0.2, "divergence": "alpha", "alpha": 0.3, "label_smoothing": 0.1}),
    ("dpop", {"beta": 0.1, "penalty": 5.0}),
    ("simpo", {"beta": 2.0, "gamma": 0.8}),
    ("orpo", {"beta": 0.3}),
    ("apo_zero", {"beta": 0.2}),
    ("apo_down", {"beta": 0.2}),
    ("sppo", {"beta": 0.5}),
    ("exo", {"beta": 0.2, "label_smoothing": 0.01}),
    ("nca", {"beta": 0.2}),
    ("discopop", {"beta": 0.2, "tau": 0.1}),
    ("plackett_luce", {"beta": 0.2}),
    ("lipo", {"beta": 0.2}),
    ("kto", {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
    ("bco", {"beta": 0.2}),
    ("bco", {"beta": 0.2, "delta": -0.4}),
    ("aot", {"beta": 0.2, "label_smoothing": 0.1}),
    ("aot_unpaired", {"beta": 0.2, "label_smoothing": 0.1}),
    ("kto_unpaired", {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
    ("bco_unpaired", {"beta": 0.2}),
    ("bco_unpaired", {"beta": 0.2, "delta": 0.3}),
    ("apo_zero_unpaired", {"beta": 0.2}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
PAIRED = [case for case in CASES if case[0] in losses.PAIRWISE]
PAIRED_IDS = [i for case, i in zip(CASES, IDS) if case[0] in losses.PAIRWISE]


def batch(size=5, seed=0, dtype=np.float64):
    """Log-probabilities of plausible answers, lengths (or labels), all distinct.

    Each size compiles programs of its own, so nearly all tests take the same.
    """
    rng = np.random.default_rng(seed)
    num_tokens = rng.integers(2, 12, (size, 2))
    reference = -num_tokens * rng.uniform(0.5, 3.0, (size, 2))
    policy = np.minimum(reference + rng.normal(0, 2.0, (size, 2)), -0.1)
    return policy.astype(dtype), reference.astype(dtype), num_tokens


def labels_of(num_tokens):
    return (num_tokens[:, 0] % 2).astype(np.float32)


def run(name, policy, reference, num_tokens, weights=None, **options):
    return losses.compute(
        name,
        policy_BP=jnp.asarray(policy),
        reference_BP=jnp.asarray(reference),
        num_tokens_BP=jnp.asarray(num_tokens),
        labels_B=jnp.asarray(labels_of(num_tokens)),
        weights_B=None if weights is None else jnp.asarray(weights),
        answers_BP=jnp.arange(2 * len(num_tokens)).reshape(-1, 2),
        lists_B=jnp.arange(len(num_tokens)),  # each pair is a list of its own
        **options,
    )


def one(name, policy, reference, num_tokens=(1, 1), **options):
    """Loss of a single pair as a float."""
    arrays = [np.array([x], np.float32) for x in (policy, reference)]
    return float(run(name, *arrays, np.array([num_tokens]), **options)[0])


def test_every_loss_has_a_case_and_a_slow_twin():
    assert {name for name, _ in CASES} == losses.LOSSES.keys()
    assert all(hasattr(slow, name) for name, _ in CASES)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_agrees_with_slow_twin(name, options):
    policy, reference, num_tokens = batch()
    third = labels_of(num_tokens) if name in losses.UNPAIRED else num_tokens
    expected = getattr(slow, name)(policy.tolist(), reference.tolist(), third.tolist(), **options)
    with jax.enable_x64(True):
        exact = np.asarray(run(name, policy, reference, num_tokens, **options))
    rough = np.asarray(run(name, policy.astype(np.float32), reference.astype(np.float32), num_tokens, **options))
    assert exact.dtype == np.float64 and rough.dtype == np.float32
    if name.startswith("aot"):  # the twin lists losses by rank, ours stay at their pair
        expected, exact, rough = np.sort(expected), np.sort(exact), np.sort(rough)
    np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rough, expected, rtol=2e-6, atol=2e-6)


def of_lists(policy, reference, lists, beta, loss="plackett_luce"):
    """The loss of each pair of ranked lists of answers, best first; answers in a tuple are tied."""
    levels = [[one if isinstance(one, tuple) else (one,) for one in answers] for answers in lists]
    order = [
        (w, l, number)
        for number, one in enumerate(levels)
        for i, above in enumerate(one)
        for w in above
        for below in one[i + 1 :]
        for l in below
    ]
    arrays = [jnp.asarray([[x[w], x[l]] for w, l, _ in order]) for x in (policy, reference)]
    answers, numbers = jnp.asarray([(w, l) for w, l, _ in order]), jnp.asarray([n for *_, n in order])
    given = dict(policy_BP=arrays[0], reference_BP=arrays[1], answers_BP=answers, lists_B=numbers)
    return losses.compute(loss, **given, beta=beta)


LISTS = [[3, 0, 4, 1], [2, 5]]


@pytest.mark.parametrize(("loss", "slow_fn"), [("plackett_luce", slow.plackett_luce_list), ("lipo", slow.lipo_list)])
def test_a_ranked_list_has_the_loss_of_its_slow_twin(loss, slow_fn):
    rng = np.random.default_rng(0)
    policy, reference = -rng.uniform(1, 9, 6), -rng.uniform(1, 9, 6)
    with jax.enable_x64(True):
        of = functools.partial(of_lists, reference=reference, lists=LISTS, beta=0.4, loss=loss)
        total, gradient = jax.value_and_grad(lambda p: of(p).sum())(jnp.asarray(policy))
        wanted = [slow_fn([0.4 * (policy[i] - reference[i]) for i in one]) for one in LISTS]
        assert float(total) == pytest.approx(sum(wanted), rel=1e-12)
        for i in range(6):  # steps that change no rank
            step = np.eye(6)[i] * 1e-5
            ends = [float(of(policy + sign * step).sum()) for sign in (1, -1)]
            assert float(gradient[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_lipo_counts_a_tie_as_half_and_ranks_tied_answers_too():
    rng = np.random.default_rng(1)
    policy, reference = -rng.uniform(1, 9, 5), -rng.uniform(1, 9, 5)
    found = of_lists(policy, reference, [[(0, 1), 2, (3, 4)]], 0.4, "lipo")
    wanted = slow.lipo_list([0.4 * (s - r) for s, r in zip(policy, reference)], levels=[3, 3, 2, 1, 1])
    assert float(found.sum()) == pytest.approx(wanted, rel=1e-6)


def test_lipo_learns_from_a_policy_that_is_its_reference():
    start = jnp.full(4, -3.0)
    gradient = jax.grad(lambda policy: of_lists(policy, start, [[2, 0, 3, 1]], 0.1, "lipo").sum())(start)
    assert gradient[2] < 0 < gradient[1] and float(jnp.abs(gradient).min()) > 1e-4


def test_worked_lipo_list_of_three():
    # By hand: s = ln 2, ln 4 and 0, so ranks 2, 1 and 3, and 1 / ln(1 + t) = 0.910239, 1.442695 and 0.721348. Labels
    # 2.5 / 3, 1.5 / 3 and 0.5 / 3, gains 0.781797, 0.414214 and 0.122462. Losses of the pairs ln 3, ln 1.5 and ln 1.25.
    found = of_lists(np.log([2.0, 4.0, 1.0]), np.zeros(3), [[0, 1, 2]], 1.0, "lipo")
    by_hand = [0.367584 * 0.532456 * 1.098612, 0.659335 * 0.188892 * 0.405465, 0.291752 * 0.721348 * 0.223144]
    assert found.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_lipo_is_what_the_papers_library_gives_but_for_its_scale():
    """RAX: gains 2^label - 1, discounts 1 / log2(1 + rank), times the size of the list, without a gradient."""
    rng = np.random.default_rng(2)
    policy, reference = -rng.uniform(1, 9, 4), -rng.uniform(1, 9, 4)
    s, labels = 0.05 * (policy - reference), np.array([3.5, 2.5, 1.5, 0.5]) / 4  # as of the paper's winning matrix
    ranks = 1 + np.argsort(np.argsort(-s))
    weights = 4 * np.abs(np.subtract.outer(2**labels, 2**labels))
    weights *= np.abs(np.subtract.outer(1 / np.log2(1 + ranks), 1 / np.log2(1 + ranks)))
    logistic = np.log1p(np.exp(-np.subtract.outer(s, s)))
    wanted = (weights * logistic)[np.triu_indices(4, 1)] / (4 * np.log(2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(of_lists(policy, reference, [[0, 1, 2, 3]], 0.05, "lipo"), wanted, rtol=1e-10)


def test_worked_list_of_three():
    # Rewards of ln 4, ln 2 and 0: the first is chosen with 4/7, the second of the rest with 2/3.
    found = of_lists(np.log([4.0, 2.0, 1.0]), np.zeros(3), [[0, 1, 2]], 1.0)
    assert float(found.sum()) == pytest.approx(-math.log(4 / 7 * 2 / 3), rel=1e-6)


def test_aot_keeps_each_loss_at_its_pair():
    policy = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]], np.float32)  # margins 3, 1, 2
    reference = np.array([[0.0, 0.0], [10.0, 0.0], [5.0, 0.0]], np.float32)  # sorted 0, 5, 10
    loss = run("aot", policy, reference, np.ones((3, 2), int), beta=1.0)
    np.testing.assert_allclose(loss, [-slow.log_sigmoid(z) for z in (3 - 10, 1 - 0, 2 - 5)], rtol=1e-6)


def test_worked_dpo_numbers():
    s, r = (-10.0, -14.0), (-11.0, -12.0)
    assert one("dpo", s, r, beta=0.1) == pytest.approx(0.554355, abs=1e-6)
    assert one("dpo", s, r, beta=0.1, label_smoothing=0.1) == pytest.approx(0.584355, abs=1e-6)
    assert one("ipo_sum", s, r, beta=0.1) == pytest.approx(4.0, abs=1e-6)
    assert one("ipo", s, r, (1, 2), beta=0.1) == pytest.approx((1 - -1 - 5) ** 2, abs=1e-5)
    assert one("reference_free", s, r, beta=0.1) == pytest.approx(0.513015, abs=1e-6)
    assert one("dpo", s[::-1], r[::-1], beta=0.1) == pytest.approx(0.854355, abs=1e-6)


def test_worked_dpo_gradients_and_rewards():
    policy, reference = jnp.array([[-10.0, -14.0]]), jnp.array([[-11.0, -12.0]])
    lengths = jnp.ones((1, 2), int)
    grads = jax.grad(lambda s, r: losses.dpo(s, r, beta=0.1).sum(), argnums=(0, 1))(policy, reference)
    np.testing.assert_allclose(grads[0], [[-0.0425557, 0.0425557]], atol=1e-7)
    np.testing.assert_array_equal(grads[1], [[0.0, 0.0]])
    rewards = losses.rewards("dpo", policy, reference, lengths, beta=0.1)
    np.testing.assert_allclose(rewards, [[0.1, -0.2]], atol=1e-7)


def test_worked_batch_losses():
    policy = np.array([[3.0, 0.0], [0.0, 0.0], [-2.0, 0.0]], np.float32)
    loss = run("dpo", policy, np.zeros((3, 2), np.float32), np.ones((3, 2), int), beta=0.1)
    np.testing.assert_allclose(loss, [0.554355, 0.693147, 0.798139], atol=1e-6)
    assert float(loss.mean()) == pytest.approx(0.681880, abs=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_initial_loss_is_the_loss_of_agreeing_policy_and_reference(name, options):
    _, reference, num_tokens = batch()
    expected = losses.initial_loss(name, **options)
    mean = float(jnp.mean(run(name, reference.astype(np.float32), reference.astype(np.float32), num_tokens, **options)))
    if (
        name in losses.REFERENCE_FREE | losses.LISTWISE
        or (name == "kto_unpaired")
        or (name == "bco_unpaired" and "delta" in options)
    ):
        assert expected is None
    else:
        assert mean == pytest.approx(expected, abs=1e-6)


def test_initial_losses_known_by_heart():
    assert losses.initial_loss("dpo", beta=0.1, label_smoothing=0.2) == pytest.approx(0.693147, abs=1e-6)
    assert losses.initial_loss("ipo_sum", beta=0.1) == pytest.approx(25.0)
    assert losses.initial_loss("hinge", beta=0.1) == 1.0
    assert losses.initial_loss("kto", beta=0.1) == 0.5
    assert losses.initial_loss("kto_unpaired", beta=0.1) == 0.5
    assert losses.initial_loss("simpo", beta=2.0) is None


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_gradient_is_the_finite_difference(name, options):
    policy, reference, num_tokens = batch(seed=3)
    step = 1e-6
    with jax.enable_x64(True):
        # The statistics of KTO and BCO are constants of the batch to the gradient, so they are held while stepping.
        held = dict(options)
        if name in ("bco", "bco_unpaired") and "delta" not in options:
            held["delta"] = 0.1
        if name == "kto":
            held["kl_P"] = batchwise.kto_kl(policy, reference)
        if name == "kto_unpaired":
            held["kl"] = batchwise.kto_kl(policy, reference)[1]

        def total(p):
            return run(name, p, reference, num_tokens, **held).sum()

        grad = np.asarray(jax.grad(total)(jnp.asarray(policy)))
        for i, j in np.ndindex(policy.shape):
            bump = np.zeros_like(policy)
            bump[i, j] = step
            slope = float(total(policy + bump) - total(policy - bump)) / (2 * step)
            assert grad[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-7), (name, i, j)


@pytest.mark.parametrize("name", ["kto", "bco", "kto_unpaired", "bco_unpaired"])
def test_no_gradient_flows_through_batch_statistics(name):
    policy, reference, num_tokens = batch(seed=1)
    with jax.enable_x64(True):
        jacobian = jax.jacobian(lambda p: run(name, p, reference, num_tokens, beta=0.2))(jnp.asarray(policy))
    across = np.asarray(jacobian)[~np.eye(5, dtype=bool)]
    np.testing.assert_array_equal(across, 0.0)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_extreme_log_ratios_stay_finite(name, options):
    extremes = np.array([[a, b] for a in (-1e4, -1e-9, 0.0, 1e4) for b in (-1e4, -1e-9, 0.0, 1e4)], np.float32)
    zeros, num_tokens = np.zeros_like(extremes), np.ones(extremes.shape, int)
    if name in losses.REFERENCE_FREE:
        extremes = np.minimum(extremes, 0.0)  # a log-probability
    value, grad = jax.value_and_grad(lambda p: run(name, p, zeros, num_tokens, **options).sum())(jnp.asarray(extremes))
    assert np.isfinite(value) and np.isfinite(grad).all()


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_filling_pairs_change_neither_loss_nor_gradient(name, options):
    policy, reference, num_tokens = batch(seed=2)
    filler = np.full((3, 2), -1e3)
    padded = [np.concatenate([x[:2], f, x[2:]]) for x, f in ((policy, filler * 2), (reference, filler))]
    lengths = np.concatenate([num_tokens[:2], np.zeros((3, 2), int), num_tokens[2:]])
    weights = np.array([1, 1, 0, 0, 0, 1, 1, 1], np.float32)

    def total(p):
        return (run(name, p, padded[1], lengths, weights, **options) * weights).sum()

    with jax.enable_x64(True):
        plain, grad = jax.value_and_grad(lambda p: run(name, p, reference, num_tokens, **options).sum())(policy)
        filled, filled_grad = jax.value_and_grad(total)(padded[0])
    assert float(filled) == pytest.approx(float(plain), rel=1e-12)
    np.testing.assert_allclose(np.asarray(filled_grad)[weights > 0], grad, rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(np.asarray(filled_grad)[weights == 0], 0.0)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_batch_of_filling_only_is_finite(name, options):
    policy, reference, num_tokens = batch(dtype=np.float32)
    loss = run(name, policy, reference, num_tokens, np.zeros(5, np.float32), **options)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize(("name", "options"), PAIRED, ids=PAIRED_IDS)
def test_batch_order_does_not_matter(name, options):
    policy, reference, num_tokens = batch(dtype=np.float32)
    turn = np.random.default_rng(0).permutation(len(policy))
    loss = run(name, policy, reference, num_tokens, **options)
    turned = run(name, policy[turn], reference[turn], num_tokens[turn], **options)
    np.testing.assert_allclose(turned, np.asarray(loss)[turn], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_numbers_may_be_traced(name, options):
    policy, reference, num_tokens = batch(dtype=np.float32)
    numbers = {k: v for k, v in options.items() if not isinstance(v, str)}
    words = {k: v for k, v in options.items() if isinstance(v, str)}
    traced = jax.jit(lambda numbers: run(name, policy, reference, num_tokens, **numbers, **words))(numbers)
    np.testing.assert_allclose(traced, run(name, policy, reference, num_tokens, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_low_precision_inputs_give_float32_losses(name, options):
    policy, reference, num_tokens = batch(dtype=np.float32)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (policy, reference)]
    assert run(name, *half, num_tokens, **options).dtype == jnp.float32


@pytest.mark.parametrize("name", losses.PAIRWISE)
def test_a_loss_moves_with_the_arrays_that_it_takes_and_no_others(name):
    policy, reference, num_tokens = batch(size=7, dtype=np.float32)
    base = np.asarray(run(name, policy, reference, num_tokens, beta=0.2))
    other_reference = np.asarray(run(name, policy, reference[::-1] * 1.1, num_tokens, beta=0.2))
    other_lengths = np.asarray(run(name, policy, reference, num_tokens + 1, beta=0.2))
    other_pair = policy.copy()
    other_pair[-1] += [3.0, -2.0]
    neighbours = np.asarray(run(name, other_pair, reference, num_tokens, beta=0.2))[:-1]
    assert (np.array_equal(base, other_reference)) == (name in losses.REFERENCE_FREE)
    assert (not np.array_equal(base, other_lengths)) == (name in losses.PER_TOKEN)
    assert (not np.array_equal(base[:-1], neighbours)) == (name in losses.NON_SEPARABLE)


@settings(max_examples=25, deadline=None)
@given(h=st.floats(-50, 50), beta=st.floats(0.01, 2))
def test_swapping_a_pair_adds_beta_times_its_margin(h, beta):
    forward, backward = one("dpo", (h, 0.0), (0.0, 0.0), beta=beta), one("dpo", (0.0, h), (0.0, 0.0), beta=beta)
    assert backward == pytest.approx(forward + beta * h, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    h=st.floats(-50, 50), beta=st.floats(0.01, 2), name=st.sampled_from(["dpo", "robust", "hinge", "exo", "discopop"])
)
def test_doubling_beta_is_doubling_the_margin(h, beta, name):
    doubled = one(name, (h, 0.0), (0.0, 0.0), beta=2 * beta)
    assert one(name, (2 * h, 0.0), (0.0, 0.0), beta=beta) == pytest.approx(doubled, rel=1e-5, abs=1e-5)


def test_robust_is_unbiased_for_the_clean_loss():
    flip, s, r = 0.2, (-10.0, -14.0), (-11.0, -12.0)
    kept, flipped = (one("robust", x, y, beta=0.1, label_smoothing=flip) for x, y in ((s, r), (s[::-1], r[::-1])))
    assert (1 - flip) * kept + flip * flipped == pytest.approx(one("dpo", s, r, beta=0.1), abs=1e-5)


def test_reverse_kl_is_plain_dpo_and_alpha_joins_both_ends():
    policy, reference, num_tokens = batch()
    with jax.enable_x64(True):
        plain = run("dpo", policy, reference, num_tokens, beta=0.3)
        np.testing.assert_array_equal(run("f_dpo", policy, reference, num_tokens, beta=0.3), plain)
        near_zero = run("f_dpo", policy, reference, num_tokens, beta=0.3, divergence="alpha", alpha=1e-9)
        np.testing.assert_allclose(near_zero, plain, rtol=1e-6)
        at_one = run("f_dpo", policy, reference, num_tokens, beta=0.3, divergence="alpha", alpha=1.0)
        forward = run("f_dpo", policy, reference, num_tokens, beta=0.3, divergence="forward_kl")
        np.testing.assert_allclose(at_one, forward, rtol=1e-12)


def test_divergence_scores_rise_everywhere():
    ratios = jnp.linspace(-200.0, 20.0, 441)
    for name, score_fn in scores.DIVERGENCES.items():
        values = np.asarray(score_fn(ratios, 0.5))
        assert np.isfinite(values).all() and (np.diff(values) >= 0).all(), name
        assert (np.diff(values)[:300] > 0).all(), name  # and strictly where the policy lost probability


def test_sft_anchor_is_the_chosen_loss_per_token():
    value, grad = jax.value_and_grad(lambda s: losses.sft_anchor(s, jnp.array([[4, 9]])).sum())(
        jnp.array([[-6.0, -1.0]])
    )
    assert float(value) == 1.5
    np.testing.assert_array_equal(grad, [[-0.25, 0.0]])


def test_length_desensitised_damps_only_the_tail_of_the_longer_answer():
    logps = jnp.array([[[-1.0, -2.0, -4.0, -8.0], [-1.0, -1.0, -16.0, -16.0]]])
    mask = jnp.array([[[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(scores.length_desensitised(logps, mask, alpha=1.0), [[-7.0, -2.0]])
    np.testing.assert_allclose(scores.length_desensitised(logps, mask, alpha=0.25), [[-4.0, -2.0]])
    shifted = scores.length_desensitised(jnp.roll(logps, 1, -1), jnp.roll(mask, 1, -1), alpha=0.25)
    np.testing.assert_allclose(shifted, [[-4.0, -2.0]])
    grad = jax.grad(lambda x: scores.length_desensitised(x, mask, alpha=0.25).sum())(logps)
    np.testing.assert_array_equal(grad, [[[1.0, 1.0, 0.25, 0.0], [1.0, 1.0, 0.0, 0.0]]])


def test_log1mexp_is_accurate_at_both_ends():
    x = np.array([-30.0, -5.0, -0.7, -0.6, -1e-3, -1e-5], np.float32)
    expected = [math.log(-math.expm1(float(v))) for v in x]
    np.testing.assert_allclose(scores.log1mexp(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-7)


def test_statistics_of_a_larger_batch_can_be_handed_in():
    policy, reference = map(jnp.asarray, batch(dtype=np.float32)[:2])
    kl_P = batchwise.kto_kl(policy, reference)
    delta = batchwise.bco_delta(policy, reference, beta=0.2)
    whole = batchwise.kto(policy, reference, beta=0.2)
    part = batchwise.kto(policy[:2], reference[:2], beta=0.2, kl_P=kl_P)
    np.testing.assert_allclose(part, whole[:2], rtol=1e-6)
    whole = batchwise.bco(policy, reference, beta=0.2)
    part = batchwise.bco(policy[:2], reference[:2], beta=0.2, delta=delta)
    np.testing.assert_allclose(part, whole[:2], rtol=1e-6)


def test_arrays_and_options_are_those_of_the_signatures():
    assert losses.OPTIONS["dpo"] == {"beta": inspect.Parameter.empty, "label_smoothing": 0.0}
    assert set(losses.OPTIONS["kto"]) == {"beta", "desirable_weight", "undesirable_weight"}
    assert losses.LOSSES["dpo"].reads == {"policy_BP", "reference_BP"}
    assert losses.LOSSES["kto_unpaired"].reads == {"policy_BP", "reference_BP", "labels_B", "weights_B"}
    assert losses.UNPAIRED == ("kto_unpaired", "bco_unpaired", "apo_zero_unpaired")


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_good_options_pass(name, options):
    losses.check_options(name, options)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dop", {"beta": 0.1}, ["loss='dop' is not one of", "dpo, robust"]),
        (
            "hinge",
            {"beta": 0.1, "label_smoothing": 0.1},
            ["'hinge'", "'label_smoothing'", "it reads beta", "dpo, robust"],
        ),
        ("dpo", {"beta": 0.1, "betta": 0.1}, ["'betta'", "beta, label_smoothing", "no loss"]),
        ("dpo", {"beta": 0.1, "weights_B": 1}, ["'weights_B'"]),
        ("dpo", {}, ["'dpo' needs beta"]),
        ("dpo", {"beta": 0.0}, ["beta=0.0", "above 0"]),
        ("dpo", {"beta": math.nan}, ["beta=nan"]),
        ("dpo", {"beta": "0.1"}, ["beta='0.1'"]),
        ("robust", {"beta": 0.1, "label_smoothing": 0.5}, ["label_smoothing=0.5", "[0, 0.5)"]),
        ("exo", {"beta": 0.1, "label_smoothing": 0}, ["label_smoothing=0", "0.001"]),
        ("f_dpo", {"beta": 0.1, "divergence": "kl"}, ["'kl'", "reverse_kl, forward_kl, js, alpha"]),
        ("f_dpo", {"beta": 0.1, "divergence": "js", "alpha": 0.5}, ["alpha is only read", "'js'"]),
        ("bco", {"beta": 0.1, "delta": "x"}, ["delta='x'"]),
    ],
)
def test_bad_options_are_named(name, options, words):
    with pytest.raises(InputError) as caught:
        losses.check_options(name, options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "missing"), [("dpo", "reference_BP"), ("kto_unpaired", "labels_B"), ("plackett_luce", "answers_BP")]
)
def test_an_array_that_a_loss_reads_and_did_not_get_is_named(name, missing):
    arrays = {array: jnp.ones((2, 2) if array.endswith("BP") else 2) for array in losses.ARRAYS if array != missing}
    with pytest.raises(TypeError, match=f"loss '{name}' reads {missing}; pass it too"):
        losses.compute(name, **arrays, beta=0.1)
