"""Dimensions: N sequences, T time, V vocabulary."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.decoding import scoring
from alignment.errors import InputError
from alignment.models import decoder
from alignment.train import sharding

PLAIN = decoder.DecoderLM(vocab_size=23, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=24)
MODELS = {
    "grouped heads": PLAIN,
    "window": PLAIN.clone(sliding_window=5, layer_types=("sliding_attention", "full_attention")),
    "head of its own": PLAIN.clone(tie_embeddings=False, qk_norm=True, attention="dense"),
}


@pytest.fixture(scope="module")
def all_params():
    drawn = {}
    for name, model in MODELS.items():
        boxed = jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, 4), jnp.int32))["params"]
        drawn[name] = jax.tree.map(lambda leaf: 3 * np.asarray(leaf), nn.meta.unbox(boxed))
    return drawn


@pytest.fixture(scope="module")
def params(all_params):
    return all_params["grouped heads"]


LENGTHS = (32, 96, 640)
FORWARDS = {
    name: jax.jit(lambda params, tokens_BT, m=model: decoder.logits(m, params, m.apply({"params": params}, tokens_BT)))
    for name, model in MODELS.items()
}


def slow_score(params, pairs, name="grouped heads", max_len=None):
    """One sequence at a time from whole logits, sums in float64; what is filled up behind it is not seen."""
    out = []
    for context, rest in pairs:
        ids = [*context, *rest]
        if max_len is not None:
            ids = ids[-max_len - 1 :]
        length = min(n for n in LENGTHS if n >= len(ids))
        logits_TV = FORWARDS[name](params, np.array([ids + [0] * (length - len(ids))]))[0]
        logits_TV = np.asarray(logits_TV, np.float64)
        logps_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        scored = range(len(ids) - len(rest), len(ids))
        total = sum(logps_TV[t - 1, ids[t]] for t in scored)
        out.append((total, len(rest), all(np.argmax(logits_TV[t - 1]) == ids[t] for t in scored)))
    return out


def agree(scores, expected, atol=5e-6):
    totals, lengths, greedy = zip(*expected)
    np.testing.assert_allclose(scores.total_N, totals, rtol=5e-6, atol=atol)
    assert scores.length_N.tolist() == list(lengths)
    assert scores.is_greedy_N.tolist() == list(greedy)


def draw(rng, num):
    return [int(i) for i in rng.integers(0, 23, size=num)]


def questions(rng, num, longest=30):
    """Choices of one to eight tokens behind contexts, in a random order."""
    pairs = []
    for _ in range(num):
        context = draw(rng, rng.integers(1, longest))
        pairs += [(context, draw(rng, rng.integers(1, 9))) for _ in range(rng.integers(1, 5))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


@pytest.mark.parametrize("name", MODELS)
def test_branches_of_one_context_score_as_sequences_of_their_own(name, all_params):
    pairs = questions(np.random.default_rng(0), 12)
    scores = scoring.score(MODELS[name], all_params[name], pairs)
    agree(scores, slow_score(all_params[name], pairs, name))


def test_a_continuation_is_greedy_where_every_token_is_the_first_of_the_likeliest(params):
    context = draw(np.random.default_rng(1), 7)
    rest = []
    for _ in range(4):
        ids = [*context, *rest]
        logits_TV = FORWARDS["grouped heads"](params, np.array([ids + [0] * (32 - len(ids))]))[0]
        rest.append(int(np.argmax(logits_TV[len(ids) - 1])))
    other = [*rest[:3], (rest[3] + 1) % 23]
    scores = scoring.score(PLAIN, params, [(context, rest), (context, other), (context, rest[:2])])
    assert scores.is_greedy_N.tolist() == [True, False, True]


def test_of_equal_logits_the_first_token_is_the_greedy_one(params):
    alike = dict(params, embedding=np.zeros_like(params["embedding"]))
    scores = scoring.score(PLAIN, alike, [([3], [0]), ([3], [1])])
    np.testing.assert_allclose(scores.total_N, -np.log(23), rtol=1e-6)
    assert scores.is_greedy_N.tolist() == [True, False]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), tokens_per_call=st.sampled_from([64, 600, 2_048]))
def test_neither_order_nor_packing_nor_sharing_matter(params, seed, tokens_per_call):
    rng = np.random.default_rng(seed)
    pairs = questions(rng, 6)
    together = scoring.score(PLAIN, params, pairs)
    order = rng.permutation(len(pairs))
    shuffled = scoring.score(PLAIN, params, [pairs[i] for i in order], tokens_per_call=tokens_per_call)
    np.testing.assert_allclose(shuffled.total_N, together.total_N[order], atol=5e-6)
    assert shuffled.is_greedy_N.tolist() == together.is_greedy_N[order].tolist()
    i = int(rng.integers(len(pairs)))
    alone = scoring.score(PLAIN, params, [pairs[i]])
    np.testing.assert_allclose(alone.total_N[0], together.total_N[i], atol=5e-6)


def test_a_pair_that_comes_twice_is_computed_once(params):
    pair = ([1, 2], [3, 4])
    scores = scoring.score(PLAIN, params, [pair, ([5], [6]), pair])
    assert scores.total_N[0] == scores.total_N[2]
    agree(scores, slow_score(params, [pair, ([5], [6]), pair]))


def test_more_continuations_than_a_row_holds_are_split_behind_copies_of_their_context(params):
    rng = np.random.default_rng(2)
    one_token = [([7, 8, 9], [int(i)]) for i in range(23)] * 30
    long = [([4, 2], draw(rng, 60)) for _ in range(12)]
    pairs = [*one_token, *long]
    groups = scoring._groups(scoring._cut(long, None)[0])
    assert len(groups) == 2
    agree(scoring.score(PLAIN, params, pairs), slow_score(params, pairs), atol=2e-5)  # sums of 60 terms


def test_what_is_longer_than_the_model_reads_loses_its_first_tokens_and_is_counted(params):
    rng = np.random.default_rng(3)
    pairs = [(draw(rng, 20), draw(rng, 3)), (draw(rng, 4), draw(rng, 10)), (draw(rng, 8), draw(rng, 3))]
    scores = scoring.score(PLAIN, params, pairs, max_len=10)
    assert scores.num_cut == 2
    agree(scores, slow_score(params, pairs, max_len=10))


def test_a_sequence_longer_than_the_usual_row_gets_a_row_of_its_length(params):
    rng = np.random.default_rng(4)
    pairs = [(draw(rng, 600), draw(rng, 5)), (draw(rng, 9), draw(rng, 5))]
    lengths = [length for length, _ in scoring._pack(scoring._groups(scoring._cut(pairs, None)[0]))]
    assert lengths == [768]
    agree(scoring.score(PLAIN, params, pairs), slow_score(params, pairs))


def test_packing_places_every_group_once_and_leaves_few_places_empty():
    rng = np.random.default_rng(5)
    keys = scoring._cut(questions(rng, 400, longest=120), None)[0]
    groups = scoring._groups(keys)
    rows = list(scoring._pack(groups))
    placed = [id(g) for _, row in rows for g in row]
    assert sorted(placed) == sorted(map(id, groups))
    assert all(sum(g.size for g in row) <= length for length, row in rows)
    assert sum(g.size for g in groups) > 0.95 * sum(length for length, _ in rows)


def test_one_program_serves_all_calls_of_one_row_length(params):
    scoring._scored.clear_cache()
    for seed in range(4):
        scoring.score(PLAIN, params, questions(np.random.default_rng(seed), 120), tokens_per_call=1_024)
    assert scoring._scored._cache_size() <= 2  # two rows a call, or one where a job has a single row


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 2), (1, 1, 4)])
def test_a_mesh_changes_nothing(params, shape):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), sharding.AXES)
    pairs = questions(np.random.default_rng(6), 10)
    agree(scoring.score(PLAIN, params, pairs, mesh=mesh), slow_score(params, pairs))


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ([([1], [2]), ([], [2])], "sequence 1 has 0 tokens of context"),
        ([([1], [])], "0 after it"),
        ([([1, 2], [3] * 9)], "continuation of 9 tokens; with max_len=8 it may have 8"),
        ([([1], [2]), ([1], [23])], "sequence 1 has a token id outside the vocabulary, which is 0 to 22"),
        ([([-1], [2])], "sequence 0 has a token id outside the vocabulary"),
    ],
)
def test_what_cannot_be_scored_is_refused(params, pairs, match):
    with pytest.raises(InputError, match=match):
        scoring.score(PLAIN, params, pairs, max_len=8)


def slow_rolling(params, text, prefix_id, max_len, stride):
    """Each token with the context of its window, one token at a time."""
    ids, total = [prefix_id, *text], 0.0
    for t in range(1, len(ids)):
        end = t if t <= max_len else max_len + -(-(t - max_len) // stride) * stride
        start = max(0, min(end, len(ids) - 1) - max_len)
        total += slow_score(params, [(ids[start:t], ids[t : t + 1])])[0][0]
    return total


@pytest.mark.parametrize("stride", [None, 1, 5])
def test_rolling_scores_each_token_once_in_its_window(params, stride):
    rng = np.random.default_rng(7)
    texts = [draw(rng, num) for num in (25, 1, 12, 0, 13)]
    scores = scoring.rolling(PLAIN, params, texts, prefix_id=22, max_len=12, stride=stride)
    assert scores.length_N.tolist() == [25, 1, 12, 0, 13]
    expected = [slow_rolling(params, text, 22, 12, stride or 12) for text in texts]
    np.testing.assert_allclose(scores.total_N, expected, atol=2e-5)  # sums of up to 25 terms


def test_a_shorter_stride_gives_more_context_and_a_bad_one_is_refused(params):
    text = draw(np.random.default_rng(8), 30)
    options = dict(prefix_id=0, max_len=8)
    contexts = [min(len(c) for c, _ in list(scoring._windows(text, 0, 8, stride))[1:]) for stride in (8, 4, 1)]
    assert contexts == [1, 5, 8]
    for stride in (0, 9):
        with pytest.raises(InputError, match="stride="):
            scoring.rolling(PLAIN, params, [text], stride=stride, **options)


@pytest.mark.parametrize("name", MODELS)
def test_targets_that_leave_a_row_anywhere_score_as_if_the_row_ended_there(name, all_params):
    rng = np.random.default_rng(5)
    rows = [rng.integers(23, size=n).tolist() for n in (30, 9, 12)]
    places = [(0, 1), (0, 8), (0, 8), (0, 30), (1, 9), (1, 3), (2, 4)]
    targets = [(row, start, rng.integers(23, size=1 + i % 4).tolist()) for i, (row, start) in enumerate(places)]
    got = scoring.score_within(MODELS[name], all_params[name], rows, targets)
    wanted = slow_score(all_params[name], [(rows[row][:start], ids) for row, start, ids in targets], name)
    np.testing.assert_allclose(got.total_N, [total for total, _, _ in wanted], atol=1e-4)
    assert got.is_greedy_N.tolist() == [greedy for _, _, greedy in wanted]


def test_many_targets_of_a_row_are_split_over_several(params):
    row, rng = list(range(20)), np.random.default_rng(0)
    targets = [(0, 1 + i % 20, rng.integers(23, size=6).tolist()) for i in range(150)]
    together = scoring.score_within(PLAIN, params, [row], targets).total_N
    alone = [scoring.score(PLAIN, params, [(row[:start], ids)]).total_N[0] for _, start, ids in targets[::50]]
    np.testing.assert_allclose(together[::50], alone, atol=1e-4)


@pytest.mark.parametrize("target", [(0, 0, [1]), (0, 4, [1]), (0, 2, [])])
def test_a_target_behind_nothing_or_without_tokens_is_refused(params, target):
    with pytest.raises(InputError, match="target 0 has"):
        scoring.score_within(PLAIN, params, [[1, 2, 3]], [target])


def test_of_a_path_and_its_target_only_the_target_is_scored(params):
    rng = np.random.default_rng(3)
    contexts = [draw(rng, 9), draw(rng, 4)]
    paths = [(contexts[i % 2], draw(rng, i % 4), draw(rng, 1 + i % 3)) for i in range(40)]
    scores = scoring.score_behind(PLAIN, params, paths)
    agree(scores, slow_score(params, [([*context, *path], target) for context, path, target in paths]))
    with pytest.raises(InputError, match="both need one"):
        scoring.score_behind(PLAIN, params, [([1], [2], [])])
