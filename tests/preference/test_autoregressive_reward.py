"""A reward model that scores the next token (Xu et al. 2024, arXiv:2410.08193): its loss, and what it learns.

The worked numbers are a plain evaluation in float64 of -log sigmoid(beta (S_w - S_l)), S being a sum over the answer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment import logprobs
from alignment.decoding import guided
from alignment.models import decoder
from alignment.preference import losses, pairs

LN2 = np.log(2)
PROMPT, ANSWER, VOCAB = 4, 8, 64


@pytest.mark.parametrize(
    ("beta", "loss", "slope"),
    [(0.05, 0.6684596, -0.0243751), (0.1, 0.6443967, -0.0475021), (0.5, 0.4740770, -0.1887703)],
)
def test_a_lead_of_one_nat_costs_and_pulls_as_worked_out(beta, loss, slope):
    loss_fn = lambda policy_BP: losses.reference_free(policy_BP, beta=beta)[0]  # noqa: E731
    ahead, behind = jnp.float32([[1.0, 0.0]]), jnp.float32([[0.0, 1.0]])
    value, gradient_BP = jax.value_and_grad(loss_fn)(ahead)
    np.testing.assert_allclose([value, gradient_BP[0, 0], gradient_BP[0, 1]], [loss, slope, -slope], atol=1e-6)
    np.testing.assert_allclose(loss_fn(behind), loss + beta, atol=1e-6)
    np.testing.assert_allclose(loss_fn(jnp.zeros((1, 2))), LN2, atol=1e-6)


def selected(logits_TV, ids, num_prompt, num_padding):
    """Log-probabilities of an answer behind a prompt of other logits, as losses select them; the head is the unit."""
    before_TV, behind_TV = np.full((num_prompt - 1, 3), 5.0), np.full((num_padding, 3), -4.0)
    hidden_1TV = jnp.float32(np.concatenate([before_TV, logits_TV, behind_TV]))[None]
    sources_R = np.r_[num_prompt - 1 + np.arange(len(ids)), np.zeros(num_padding, int)]
    targets_R = np.r_[ids, np.full(num_padding, 2)]
    mask_R = np.r_[np.ones(len(ids)), np.zeros(num_padding)]
    sources, targets, mask = (jnp.array(x[None]) for x in (sources_R, targets_R, mask_R))
    return logprobs.selected(hidden_1TV, jnp.eye(3), sources, targets, mask_NM=mask > 0)[0]


def test_answers_of_two_and_three_tokens_are_summed_and_not_averaged():
    rows = {False: ([[2, 0, -1], [0, 1, 0]], [0, 1]), True: ([[2, 0, -1], [1, 0, 1], [0, 0, 0]], [1, 2, 0])}
    for num_prompt, num_padding in ((1, 0), (4, 0), (3, 5)):  # what is asked and how far a row is filled change nothing
        chosen, rejected = (selected(*rows[side], num_prompt, num_padding) for side in (False, True))
        np.testing.assert_allclose(chosen[:2], [-0.169846, -0.551445], atol=1e-6)
        np.testing.assert_allclose(rejected[:3], [-2.169846, -0.861995, -1.098612], atol=1e-6)
        sums_BP = jnp.stack([chosen.sum(), rejected.sum()])[None]
        np.testing.assert_allclose(sums_BP[0], [-0.7212907, -4.1304531], atol=1e-6)
    for beta, loss in ((0.05, 0.6115457), (0.5, 0.1670798)):
        np.testing.assert_allclose(losses.reference_free(sums_BP, beta=beta)[0], loss, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_it_is_dpo_whose_reference_says_the_same_of_every_answer(shift):
    policy_BP = jnp.float32(np.random.default_rng(0).normal(size=(6, 2)) * 3)
    ours = losses.reference_free(policy_BP, beta=0.3)
    np.testing.assert_allclose(ours, losses.dpo(policy_BP, jnp.full((6, 2), shift), beta=0.3), atol=1e-6)


def planted(num, seed):
    """Random pairs of one prompt; the chosen answer has token 7 once, the rejected one token 9 once."""
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(1, VOCAB), [7, 9])
    prompts = rng.choice(others, size=(num, PROMPT))
    sides = []
    for token in (7, 9):
        answers = rng.choice(others, size=(num, ANSWER))
        answers[np.arange(num), rng.integers(ANSWER, size=num)] = token
        sides.append(np.concatenate([prompts, answers], axis=1))
    return np.stack(sides, axis=1)  # [B,P,T]


def batch_of(tokens_BPT):
    B, P, T = tokens_BPT.shape
    rows_NT = tokens_BPT.reshape(B * P, T).astype(np.int32)
    sources_R = np.arange(PROMPT - 1, T - 1)
    ones_NT = np.ones_like(rows_NT)
    return {
        "tokens": rows_NT,
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), rows_NT.shape),
        "groups": ones_NT,
        "branches": 0 * ones_NT,
        "sources": np.broadcast_to(sources_R.astype(np.int32), (B, P, ANSWER)),
        "targets": tokens_BPT[:, :, PROMPT:].astype(np.int32),
        "mask": np.ones((B, P, ANSWER), np.float32),
        "weights": np.ones(B, np.float32),
    }


@functools.cache
def network():
    model = decoder.DecoderLM(vocab_size=VOCAB, num_layers=2, model_dim=32, num_heads=4, tie_embeddings=False)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def test_two_equal_answers_teach_nothing():
    model, params = network()
    tokens_BPT = planted(8, 0)
    tokens_BPT[:, 1] = tokens_BPT[:, 0]
    loss_fn = pairs.loss_fn(model, "reference_free", beta=0.5)
    value_fn = lambda p: loss_fn(p, batch_of(tokens_BPT), rng=None, frozen=None)[0]  # noqa: E731
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: value_fn(p).total / value_fn(p).count))(params)
    np.testing.assert_allclose(loss, LN2, atol=1e-6)
    # both rows have the same gradient, and the sums over them cancel up to the order of their terms
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(gradient)) < 1e-6


@pytest.mark.slow  # 200 updates each; the tests above hold the loss, tests/experiments/test_genarm.py a run of it
@pytest.mark.parametrize(("beta", "rate"), [(0.05, 3e-3), (0.5, 3e-3), (0.5, 1e-3)])
def test_a_planted_preference_is_learned_and_steers_a_base_that_has_never_heard_of_it(beta, rate):
    model, params = network()
    base = jax.tree.map(jnp.copy, params)
    train, heldout = planted(256, 1), planted(256, 2)
    loss_fn, tx = pairs.loss_fn(model, "reference_free", beta=beta), optax.adamw(rate)

    @jax.jit
    def update(params, state, batch):
        def value_fn(p):
            loss, metrics = loss_fn(p, batch, rng=None, frozen=None)
            return loss.total / loss.count, metrics

        gradient, _ = jax.grad(value_fn, has_aux=True)(params)
        change, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    state, rng = tx.init(params), np.random.default_rng(3)
    for _ in range(200):
        params, state = update(params, state, batch_of(train[rng.integers(256, size=32)]))
    _, metrics = jax.jit(lambda p, b: loss_fn(p, b, rng=None, frozen=None))(params, batch_of(heldout))
    accuracy = metrics["rewards/accuracies"]
    assert accuracy.total / accuracy.count >= 0.95

    prompts = heldout[:32, 0, :PROMPT]
    logits = [decoder.logits(model, p, model.apply({"params": p}, prompts))[:, -1:] for p in (base, params)]

    def first_token(alpha):
        weights_WB = jnp.float32([[1.0] * 32, [alpha] * 32])
        return np.asarray(jax.nn.softmax(guided.combine(guided.logprobs(logits), weights_WB, logits[0]))[:, 0])

    plain, steered = first_token(0.0), first_token(1.0)
    np.testing.assert_allclose(plain, jax.nn.softmax(logits[0])[:, 0], atol=3e-8)
    assert steered[:, 7].mean() >= 10 * plain[:, 7].mean() and steered[:, 9].mean() <= 0.01 * plain[:, 9].mean()
