"""The search against a slow twin: every token of the vocabulary scored exactly, one text at a time.

Dimensions: N prompts, R tokens of an opening, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.decoding import scoring
from alignment.errors import InputError
from alignment.models import decoder
from alignment.safety import search
from tests.decoding.models import VOCAB, all_logprobs, random_lm

WRITER, TARGET = random_lm(4), random_lm(5)
STOP = 3
TASK = search.Task(context=[5, 1], before=[2, 9], after=[4, 4], opening=[7, 8, 6], seed=(0, 0))


def vocabulary(ends=lambda ids: False):
    is_allowed_V = np.ones(VOCAB, bool)
    is_allowed_V[[0, STOP]] = False
    return search.Vocabulary(is_allowed_V, (STOP,), ends)


def refusal(ids, task=TASK):
    """r of a finished text, and whether the target's likeliest answer begins with the opening."""
    row = [*task.before, *ids, *task.after, *task.opening]
    logps_TV = all_logprobs(TARGET, row)
    places = range(len(row) - len(task.opening), len(row))
    r = sum(logps_TV[t - 1, row[t]] for t in places)
    return r, all(logps_TV[t - 1].argmax() == row[t] for t in places)


def slow_write(task, settings, vocab):
    """All tokens scored one by one; then the one draw that follows when nothing is left to explore."""
    ids, per_token = [], len(task.opening) if settings.is_normalised else 1
    while True:
        f_V = all_logprobs(WRITER, [*task.context, *ids])[-1]
        may = [v for v in range(VOCAB) if vocab.is_allowed_V[v] or (v in vocab.stop_ids and ids)]
        scored = {v: refusal([*ids, *([v] if v != STOP else [])], task) for v in may}
        noise_V = np.random.default_rng([*task.seed, len(ids), 1]).gumbel(size=VOCAB)
        total = {v: f_V[v] + settings.weight * r / per_token for v, (r, _) in scored.items()}
        drawn = max(may, key=lambda v: total[v] / settings.temperature + noise_V[v])
        if drawn in vocab.stop_ids:
            return ids, scored[drawn][0], search.EOS
        ids.append(drawn)
        if scored[drawn][1] and vocab.ends_sentence(ids):
            return ids, scored[drawn][0], search.REFUSED
        if len(ids) >= settings.max_new_tokens:
            return ids, scored[drawn][0], search.LENGTH


@pytest.mark.parametrize("negligible", [0.0, 1e-12])
def test_with_all_tokens_as_candidates_the_search_is_the_twin_that_scores_each_text_by_itself(negligible):
    settings = search.Settings(weight=3.0, num_candidates=VOCAB, max_new_tokens=4, negligible=negligible)
    tasks = [search.Task([5, i], [2, 9], [4, 4], [7, 8, 6][: i + 1], (0, i)) for i in range(3)]
    written = search.write(WRITER, TARGET, tasks, vocabulary(), settings)
    for task, one in zip(tasks, written):
        ids, r, why = slow_write(task, settings, vocabulary())
        assert (list(one.ids), one.why) == (ids, why) and one.r == pytest.approx(r, abs=2e-5)


def test_a_prompt_ends_where_the_target_refuses_and_a_sentence_ends():
    settings = search.Settings(weight=3.0, num_candidates=VOCAB, max_new_tokens=4, negligible=0.0)
    probe = search.write(WRITER, TARGET, [TASK], vocabulary(), settings)[0]
    easy = search.Task(TASK.context, TASK.before, TASK.after, [_likeliest(probe.ids[:2])], TASK.seed)
    ends = vocabulary(lambda ids: len(ids) == 2)
    one = search.write(WRITER, TARGET, [easy], ends, settings)[0]
    ids, r, why = slow_write(easy, settings, ends)
    assert (list(one.ids), one.why) == (ids, why) == (ids, search.REFUSED) and one.r == pytest.approx(r, abs=2e-5)


def _likeliest(ids):
    return int(all_logprobs(TARGET, [*TASK.before, *ids, *TASK.after])[-1].argmax())


def hand_made(weight, **changes):
    """Tokens A to D of the sheet, explored."""
    settings = search.Settings(weight=weight, is_normalised=False, **changes)
    prompt = search._Prompt(search.Task([], [], [], [1], (0, 0)), settings)
    prompt.begin_token(np.array([-1.0, -1.5, -3.0, -0.5]))
    prompt.explored = {v: (r, False) for v, r in enumerate((-4.0, -2.0, -1.0, -6.0))}
    return prompt


@pytest.mark.parametrize(("weight", "best"), [(1e-9, 3), (0.5, 1), (1.0, 1), (3.0, 2), (100.0, 2)])
def test_the_weight_says_which_token_is_best(weight, best):
    tokens, s_C = hand_made(weight).scores()
    assert tokens[int(np.argmax(s_C))] == best


def test_tokens_are_drawn_from_the_softmax_of_their_scores():
    drawn, wanted = [], [0.118721, 0.532071, 0.322717, 0.026490]
    s_C = hand_made(1.0).scores()[1]
    np.testing.assert_allclose(np.exp(s_C) / np.exp(s_C).sum(), wanted, atol=5e-7)
    for i in range(4_000):
        prompt = hand_made(1.0, max_turns=1)
        prompt.task = search.Task([], [], [], [1], (0, i))
        search._draw(prompt, search.Vocabulary(np.ones(4, bool), (), lambda ids: False))
        drawn.append(prompt.ids[0])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4_000, wanted, atol=0.03)  # four deviations


def test_only_tokens_that_could_be_drawn_stay_open():
    prompt = hand_made(1.0, negligible=0.5)
    del prompt.explored[2], prompt.explored[3]  # the best one explored is B at -3.5; log 0.5 is -0.69
    assert prompt.open_tokens().tolist() == [2, 3]
    prompt.logps_V[2] = -4.5
    assert prompt.open_tokens().tolist() == [3]


def test_tokens_that_the_writer_finds_unlikely_beside_its_best_are_no_candidates():
    prompt = hand_made(1.0, negligible=0.0, min_p=0.3)  # the best is D at -0.5, log 0.3 is -1.2
    prompt.explored.clear()
    prompt.explored[3] = (-6.0, False)
    assert prompt.open_tokens().tolist() == [0, 1]


def draws(seed, num):
    """Rows of five tokens before a chat's end and an opening, as the sheet's test has them."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 64, size=(num, 5)), rng.integers(1, 64, size=(num, 3))


@pytest.fixture(scope="module")
def toy():
    return random_lm(0, vocab_size=64, model_dim=32, tie_embeddings=True)


def test_the_slope_is_the_derivative_of_r_by_the_token_s_own_row(toy):
    model, params = toy
    prefix_N5, opening_N3 = draws(0, 4)
    rows = np.concatenate([prefix_N5, opening_N3], axis=1).astype(np.int32)
    rows[:, 1] = rows[:, 4]  # the token stands elsewhere in the text as well
    places, sources = np.full(4, 4), np.tile(np.arange(4, 7), (4, 1))
    r_N, slope_NV = search.slopes(model, params, rows, places, sources, rows[:, 5:], np.ones((4, 3), bool))
    np.testing.assert_allclose(r_N, exact(toy, [(row[:4], row[4], row[5:]) for row in rows]), atol=1e-4)
    # the same by differences: the row's own token as a further id, moved towards another token's embedding
    wide = model.clone(vocab_size=65, tie_embeddings=False)
    head_DV = params["embedding"].T

    def r_at(row, moved_D):
        table = jnp.concatenate([params["embedding"], moved_D[None]])
        tokens = jnp.array(row).at[4].set(64)[None]
        own = {**params, "embedding": table, "head": jnp.zeros((32, 65))}
        hidden_TD = wide.apply({"params": own}, tokens)[0]
        logps_TV = jax.nn.log_softmax(hidden_TD @ head_DV)
        return sum(logps_TV[4 + k, row[5 + k]] for k in range(3))

    for row, slope_V in zip(rows[:2], slope_NV):
        here_D, step_D = params["embedding"][row[4]], params["embedding"][11] * 1e-2
        change = r_at(row, here_D + step_D) - r_at(row, here_D - step_D)
        np.testing.assert_allclose(change / 2e-2, slope_V[11], rtol=0.05, atol=0.02)  # float32 differences


def exact(lm, rows):
    return scoring.score_behind(*lm, [([*map(int, a), int(v)], [], [*map(int, R)]) for a, v, R in rows]).total_N


def test_the_exact_best_token_is_nearly_always_among_a_quarter_of_the_vocabulary():
    model, params = random_lm(0, vocab_size=64, model_dim=32)
    # what all embeddings share keeps the norms nearly constant, so that the network is nearly linear in a token's own
    shared_D = 10 * jnp.std(params["embedding"]) * jax.random.normal(jax.random.key(9), (32,))
    params = {**params, "embedding": params["embedding"] + shared_D[None]}
    num, B = 100, 16
    prefix_N5, opening_N3 = draws(1, num)
    rows = np.concatenate([prefix_N5, opening_N3], axis=1).astype(np.int32)
    sources = np.tile(np.arange(4, 7), (num, 1))
    _, slope_NV = search.slopes(model, params, rows, np.full(num, 4), sources, rows[:, 5:], np.ones((num, 3), bool))

    @jax.jit
    def logprobs_of(tokens_NT):
        return jax.nn.log_softmax(decoder.logits(model, params, model.apply({"params": params}, tokens_NT)))

    every_NVT = np.repeat(rows[:, None], 64, axis=1)
    every_NVT[:, :, 4] = np.arange(64)
    logps_MTV = np.asarray(logprobs_of(every_NVT.reshape(-1, 8)))
    r_M = sum(logps_MTV[np.arange(len(logps_MTV)), 4 + k, every_NVT.reshape(-1, 8)[:, 5 + k]] for k in range(3))
    f_NV, r_NV = np.asarray(logprobs_of(rows[:, :4]))[:, -1], r_M.reshape(num, 64)
    for w_f, w in ((1, 0), (1, 1), (1, 10), (0, 1)):
        top_NB = np.argsort(-(w_f * f_NV + w * np.asarray(slope_NV)), axis=1)[:, :B]
        hits = sum(best in top for best, top in zip((w_f * f_NV + w * r_NV).argmax(axis=1), top_NB))
        assert hits >= 0.9 * num


@pytest.mark.slow  # the twin and the slope hold the parts; this is what both are for
def test_a_larger_weight_makes_refusals_likelier(toy):
    settings = [
        search.Settings(weight=w, num_candidates=16, max_new_tokens=8, is_normalised=False) for w in (0.3, 3, 10)
    ]
    tasks = [search.Task([1], [2], [3], [5, 6, 7], (0, i)) for i in range(24)]
    vocab = search.Vocabulary(np.ones(64, bool), (), lambda ids: False)
    writer = random_lm(1, vocab_size=64, model_dim=32, tie_embeddings=True)
    means = [np.mean([one.r for one in search.write(writer, toy, tasks, vocab, own)]) for own in settings]
    assert means == sorted(means)


def test_without_slopes_the_writer_s_likeliest_tokens_are_scored_once():
    options = dict(weight=1.0, num_candidates=2, max_new_tokens=3, negligible=0.0)
    fluent = search.write(WRITER, TARGET, [TASK], vocabulary(), search.Settings(preselect="fluency", **options))[0]
    assert fluent.calls == 3 * (1 + 1 + 2) and fluent.turns == 3  # f, the writer's own choice, two more
    sloped = search.write(WRITER, TARGET, [TASK], vocabulary(), search.Settings(max_turns=1, **options))[0]
    assert sloped.calls == 3 * (1 + 1 + 3 + 2)


def test_a_score_that_is_no_number_drops_the_candidate_and_the_rest_goes_on(monkeypatch):
    score_behind = scoring.score_behind

    def with_nan(*args):
        scores = score_behind(*args)
        scores.total_N[::2] = np.nan
        return scores

    monkeypatch.setattr(scoring, "score_behind", with_nan)
    settings = search.Settings(num_candidates=VOCAB, max_new_tokens=2)
    one = search.write(WRITER, TARGET, [TASK], vocabulary(), settings)[0]
    assert one.dropped_scores and len(one.ids) == 2 and np.isfinite(one.r)


def test_openings_are_the_commonest_first_tokens():
    answers = [[1, 2, 3], [1, 2, 9], [4, 5, 6], [1, 2, 3], [7]]
    assert search.openings(answers, num_tokens=2, num=2) == [(1, 2), (4, 5)]
    assert search.openings([], num_tokens=2, num=2) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(weight=0.0), "weight=0.0"),
        (dict(weight=float("nan")), "weight=nan"),
        (dict(temperature=0.0), "temperature=0.0"),
        (dict(preselect="all"), "preselect='all'"),
        (dict(num_candidates=0), "num_candidates=0"),
        (dict(negligible=1.0), "negligible=1.0"),
        (dict(min_p=1.5), "min_p=1.5"),
        (dict(preselect_weight=-1.0), "preselect_weight=-1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        search.Settings(**options)


def test_models_of_two_vocabularies_and_empty_openings_are_refused():
    other = random_lm(1, vocab_size=VOCAB + 1)
    with pytest.raises(InputError, match="one vocabulary"):
        search.write(other, TARGET, [TASK], vocabulary(), search.Settings())
    empty = search.Task([1], [2], [3], [], (0,))
    with pytest.raises(InputError, match="no token"):
        search.write(WRITER, TARGET, [empty], vocabulary(), search.Settings())
