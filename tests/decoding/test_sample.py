import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignment.decoding import sample
from alignment.errors import InputError
from alignment.models import decoder

PROMPTS = [[5, 6, 7, 8, 9, 10], [3], [11, 4, 2]]


def random_lm(seed=4, **settings):
    """A decoder whose logits spread (deviation 4), so that argmax is safe and answers vary."""
    sizes = {"vocab_size": 17, "num_layers": 2, "model_dim": 16, "num_heads": 4, "num_kv_heads": 2}
    model = decoder.DecoderLM(**sizes, tie_embeddings=False, **settings)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    return model, {**params, "embedding": params["embedding"] * 5.0, "head": params["head"] * 4.0}


@pytest.fixture(scope="module")
def lm():
    return random_lm()


@functools.cache
def forward_fn(model):
    return jax.jit(lambda params, tokens_BT: decoder.logits(model, params, model.apply({"params": params}, tokens_BT)))


def full_logits(lm, tokens):
    """Next-token logits by a forward pass over the whole sequence, without a cache."""
    model, params = lm
    filled = np.array([[*tokens, *[0] * (24 - len(tokens))]])  # one shape for all; no token sees what comes after it
    return np.asarray(forward_fn(model)(params, filled)[0, len(tokens) - 1], np.float64)


def slow_greedy(lm, prompt, num_tokens, stop_ids=()):
    answer = []
    while len(answer) < num_tokens and not (answer and answer[-1] in stop_ids):
        answer.append(int(full_logits(lm, [*prompt, *answer]).argmax()))
    return answer


def answers(tokens, lengths):
    return [np.asarray(row)[:n].tolist() for row, n in zip(tokens, np.asarray(lengths))]


def right_padded(prompts, length):
    tokens = np.full((len(prompts), length), 16, np.int32)
    groups = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], groups[row, : len(prompt)] = prompt, 1
    return tokens, groups


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_greedy_is_the_argmax_of_repeated_full_forwards(lm, side):
    tokens, groups = sample.pad_prompts(PROMPTS, length=8) if side == "left" else right_padded(PROMPTS, 8)
    if side == "both":
        tokens, groups = np.roll(tokens, 1, axis=1), np.roll(groups, 1, axis=1)
    got = answers(*sample.generate(*lm, tokens, groups, max_new_tokens=7))
    assert got == [slow_greedy(lm, prompt, 7) for prompt in PROMPTS]
    assert all(len(set(answer)) > 2 for answer in got)  # not a constant


def test_greedy_with_a_sliding_window_shorter_than_prompt_and_answer(lm):
    windowed = random_lm(sliding_window=3)
    got = answers(*sample.generate(*windowed, *sample.pad_prompts(PROMPTS), max_new_tokens=6))
    assert got == [slow_greedy(windowed, prompt, 6) for prompt in PROMPTS]
    assert got != [slow_greedy(lm, prompt, 6) for prompt in PROMPTS]  # the window matters


def test_a_model_with_rope_scaling_can_be_sampled():
    scaling = {"rope_type": "linear", "factor": 2.0}
    model, params = random_lm(rope_scaling=scaling)
    got = answers(*sample.generate(model, params, np.array([[1, 2]]), max_new_tokens=4))
    frozen = model.clone(rope_scaling=flax.core.freeze(scaling))
    assert got == [slow_greedy((frozen, params), [1, 2], 4)]


def test_stop_tokens_end_an_answer_and_are_kept(lm):
    free = [slow_greedy(lm, prompt, 8) for prompt in PROMPTS]
    stop_ids = (free[0][2], free[2][4])
    expected = [slow_greedy(lm, prompt, 8, stop_ids) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 1  # rows stop at different turns
    tokens, lengths = sample.generate(*lm, *sample.pad_prompts(PROMPTS), max_new_tokens=8, stop_ids=stop_ids, pad_id=16)
    assert answers(tokens, lengths) == expected
    for row, length in zip(np.asarray(tokens), np.asarray(lengths)):
        assert (row[length:] == 16).all()


def test_decoding_ends_when_every_row_has_stopped(lm):
    turns = []

    def count(logits_BV, tokens_BS, t):
        jax.debug.callback(lambda t: turns.append(int(t)), t)
        return logits_BV

    stop_ids = {slow_greedy(lm, prompt, 2)[1] for prompt in PROMPTS}
    _, lengths = sample.generate(
        *lm, *sample.pad_prompts(PROMPTS), max_new_tokens=50, stop_ids=stop_ids, process_logits=count
    )
    jax.effects_barrier()
    assert max(lengths) <= 2 and len(turns) == max(lengths)


def test_answers_have_at_most_max_new_tokens(lm):
    for n in (1, 5):
        tokens, lengths = sample.generate(*lm, *sample.pad_prompts(PROMPTS), max_new_tokens=n)
        assert tokens.shape == (3, n) and (np.asarray(lengths) == n).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_the_other_rows_nor_on_padding(lm, temperature):
    settings = {"max_new_tokens": 6, "temperature": temperature, "rng": jax.random.key(7)}
    together = answers(*sample.generate(*lm, *sample.pad_prompts(PROMPTS), **settings))
    first_two = answers(*sample.generate(*lm, *sample.pad_prompts(PROMPTS[:2], length=9), **settings))
    last = sample.generate(*lm, *right_padded(PROMPTS[2:], 5), row_ids_B=np.array([2]), **settings)
    assert first_two + answers(*last) == together


def test_rows_with_the_same_prompt_draw_different_answers(lm):
    tokens, _ = sample.generate(*lm, np.full((4, 1), 3), max_new_tokens=12, temperature=5.0, rng=jax.random.key(0))
    assert len({tuple(row) for row in np.asarray(tokens)}) == 4


def test_same_key_same_answers_and_another_key_others(lm):
    settings = {"max_new_tokens": 12, "temperature": 2.0}
    runs = [sample.generate(*lm, np.array([[3, 5]]), rng=jax.random.key(k), **settings)[0] for k in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_second_tokens_follow_the_softmax_at_the_temperature(lm, temperature):
    """Drawn tokens against exact probabilities: a chi-square test with a fixed seed."""
    num_rows = 4000
    model, params = lm
    params = {**params, "head": params["head"] / 3.0}  # flatter, so that many tokens occur
    tokens, _ = sample.generate(
        model, params, np.full((num_rows, 2), 3), max_new_tokens=2, temperature=temperature, rng=jax.random.key(3)
    )
    first = np.bincount(np.asarray(tokens)[:, 0], minlength=17).argmax()
    second = np.asarray(tokens)[np.asarray(tokens)[:, 0] == first, 1]
    for drawn, prompt in ((np.asarray(tokens)[:, 0], [3, 3]), (second, [3, 3, int(first)])):
        logits = full_logits((model, params), prompt) / temperature
        expected = np.exp(logits - logits.max())
        expected *= len(drawn) / expected.sum()
        observed = np.bincount(drawn, minlength=17)
        assert (expected > 5).sum() > 4
        assert scipy.stats.chisquare(*_pool(observed, expected)).pvalue > 0.01
        colder = expected**1.4
        wrong = colder * expected.sum() / colder.sum()
        assert scipy.stats.chisquare(*_pool(observed, wrong)).pvalue < 1e-3  # the test can tell temperatures apart


def _pool(observed, expected):
    """Rare tokens in one bin, as chi-square asks."""
    common = expected > 5
    return [np.append(x[common], x[~common].sum() + 1e-9) for x in (observed.astype(float), expected)]


def test_process_logits_sees_the_prompt_and_answer_right_aligned(lm):
    seen = []

    def forbid_repeats(logits_BV, tokens_BS, t):
        jax.debug.callback(lambda tokens, t: seen.append((np.array(tokens), int(t))), tokens_BS, t)
        last_B = jax.lax.dynamic_index_in_dim(tokens_BS, t - 1, axis=1, keepdims=False)
        return jnp.where(jax.nn.one_hot(last_B, logits_BV.shape[1], dtype=bool), -jnp.inf, logits_BV)

    tokens, _ = sample.generate(*lm, *right_padded(PROMPTS, 6), max_new_tokens=5, process_logits=forbid_repeats)
    jax.effects_barrier()
    for row, prompt in zip(np.asarray(tokens), PROMPTS):
        whole = [*prompt, *row]
        assert all(a != b for a, b in zip(whole[len(prompt) - 1 :], whole[len(prompt) :]))
    assert sorted(t for _, t in seen) == [6, 7, 8, 9, 10]
    for buffer, t in seen:
        for row, prompt, answer in zip(buffer, PROMPTS, np.asarray(tokens)):
            expected = [*prompt, *answer[: t - 6]]
            assert row[t - len(expected) : t].tolist() == expected


def test_one_compile_serves_every_temperature_key_and_stop_set_of_a_size(lm):
    before = sample._generate._cache_size()
    for i, temperature in enumerate((0.0, 0.5, 1)):
        sample.generate(
            *lm,
            np.full((2, 13), 3),
            max_new_tokens=3,
            temperature=temperature,
            rng=jax.random.key(i),
            stop_ids=(i,),
            pad_id=i,
        )
    assert sample._generate._cache_size() == before + 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 2, "temperature": 1.0}, "needs rng"),
        ({"max_new_tokens": 2, "temperature": -1.0, "rng": 0}, "temperature=-1.0"),
        ({"max_new_tokens": 2, "prompt_groups_BT": np.array([[1, 1], [0, 0]])}, "prompt 1 has no tokens"),
    ],
)
def test_bad_settings_are_named(lm, settings, words):
    with pytest.raises(InputError, match=words):
        sample.generate(*lm, np.ones((2, 2), np.int32), **settings)


def test_prompts_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="prompt 0 has 6 tokens"):
        sample.pad_prompts(PROMPTS, length=4)
    with pytest.raises(InputError, match="prompt 1 has 0 tokens"):
        sample.pad_prompts([[1], []])
