import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import engine, programs
from alignment.decoding.requests import Request
from alignment.errors import InputError
from tests.decoding.models import LENGTH, VOCAB, all_logits, all_logprobs, random_lm, slow_greedy

SIZES = dict(num_slots=3, max_len=LENGTH, chunk=8, block=4, num_steps=4)
PROMPTS = [[5, 6, 7, 8, 9, 10], [3], [11, 4, 2], list(range(16)), [1] * 9, [2, 3] * 10, [7, 7, 1]]
PIECES = [bytes([97 + i]) for i in range(VOCAB)]  # a, b, c, ...


@pytest.fixture(scope="module")
def lm():
    return random_lm()


def make(lm, **options):
    return engine.Engine(*lm, **{**SIZES, **options})


def mixed_requests(num, seed=0):
    """Requests of all lengths and options; many share a prefix of their prompt."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, VOCAB, size=20).tolist()
    out = []
    for i in range(num):
        own = rng.integers(0, VOCAB, size=rng.integers(1, 6)).tolist()
        out.append(
            Request(
                prompt=[*shared[: rng.choice([0, 8, 16, 20])], *own],
                max_new_tokens=int(rng.integers(1, 15)),
                temperature=float(rng.choice([0.0, 0.7, 1.5])),
                top_k=int(rng.choice([0, 5])),
                top_p=float(rng.choice([1.0, 0.8])),
                min_p=float(rng.choice([0.0, 0.05])),
                repetition_penalty=float(rng.choice([1.0, 1.3])),
                frequency_penalty=float(rng.choice([0.0, 0.4])),
                stop_ids=(int(rng.integers(VOCAB)),) if rng.random() < 0.3 else (),
                logit_bias={int(rng.integers(VOCAB)): 2.0} if rng.random() < 0.3 else {},
                logprobs=int(rng.choice([0, 3])),
                seed=i,
            )
        )
    return out


def bits(answer):
    return [(t.id, np.float32(t.logprob).tobytes(), t.top) for t in answer.tokens], answer.finish_reason


def test_greedy_answers_are_those_of_whole_passes(lm):
    answers = make(lm).answers([Request(p, 12) for p in PROMPTS])
    assert [a.ids for a in answers] == [slow_greedy(lm, p, 12) for p in PROMPTS]


def test_log_probabilities_are_those_of_whole_passes(lm):
    for answer in make(lm).answers([Request(p, 6, logprobs=3, temperature=1.0, seed=1) for p in PROMPTS]):
        tokens = [*answer.request.prompt, *answer.ids]
        exact = all_logprobs(lm, tokens)[len(answer.request.prompt) - 1 : -1]
        np.testing.assert_allclose([t.logprob for t in answer.tokens], exact[np.arange(6), answer.ids], atol=1e-4)
        for token, row in zip(answer.tokens, exact):
            assert [i for i, _ in token.top] == np.argsort(-row)[:3].tolist()


def test_prompts_are_scored_where_wanted(lm):
    requests = [Request(p, 0, prompt_logprobs=True, logprobs=2) for p in PROMPTS]
    for answer in make(lm).answers([*requests, *requests]):  # the second time the prompts are cached
        prompt = list(answer.request.prompt)
        exact = all_logprobs(lm, prompt)
        assert [t.id for t in answer.prompt] == prompt[1:]
        assert answer.finish_reason == "length" and not answer.tokens
        wanted = [exact[i, token] for i, token in enumerate(prompt[1:])]
        np.testing.assert_allclose([t.logprob for t in answer.prompt], wanted, atol=1e-4)


KINDS = {
    "full": {},
    "window": dict(sliding_window=6, layer_types=("full_attention", "sliding_attention")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_s_bits_do_not_depend_on_what_else_is_served(kind):
    lm = random_lm(**KINDS[kind])
    requests = mixed_requests(50)
    rng = np.random.default_rng(1)
    server = make(lm)
    alone = []
    for request in requests:  # each in an engine of its own, as far as the cache goes: prompts are forgotten
        server.prefixes.forget()
        alone += map(bits, server.answers([request]))
    assert server.counts["cached_tokens"] == 0
    for orders in ("arrival", "longest"):
        server = make(lm, order=orders, chunks_per_turn=int(rng.choice([1, 2])) if orders == "arrival" else None)
        order = rng.permutation(len(requests))
        numbers = {server.submit(requests[i]): i for i in order}
        together = {}
        while server.num_busy or server.num_waiting:
            if rng.random() < 0.3:
                server.preempt(int(rng.choice(list(numbers))))
            for news in server.advance():
                if news.is_done:
                    together[numbers[news.answer.number]] = bits(news.answer)
        assert server.counts["cached_tokens"] > 0
        assert [together[i] for i in range(len(requests))] == alone


def test_over_slot_counts_tokens_are_the_same_up_to_near_ties():
    lm = random_lm(num_layers=1, model_dim=64, num_heads=4, head_dim=16, ffn_dim=64, vocab_size=64)
    # prompts of one token need no prefill, whose program would be compiled for each count; answers cross blocks
    requests = [Request([token], 9, temperature=t, seed=3) for token in range(5) for t in (0.0, 1.0)]
    wanted = make(lm, num_slots=3).answers(requests)
    for num_slots in (1, 2, 4, 5, 6, 7, 8):
        for a, b in zip(make(lm, num_slots=num_slots).answers(requests), wanted):
            assert a.ids == b.ids  # no near tie occurs among these
            np.testing.assert_allclose([t.logprob for t in a.tokens], [t.logprob for t in b.tokens], atol=1e-5)


def test_tensor_parallel_on_eight_devices_writes_the_same():
    lm = random_lm(num_heads=8, num_kv_heads=4, vocab_size=16, head_dim=4)
    requests = [Request([t % 16 for t in p], 8, temperature=t, seed=3) for p in PROMPTS for t in (0.0, 1.0)]
    wanted = [a.ids for a in make(lm).answers(requests)]
    for tensor in (4, 8):  # over 8 the four key heads stay whole
        mesh = Mesh(np.array(jax.devices()).reshape(8 // tensor, 1, tensor), ("data", "fsdp", "tensor"))
        model, params = lm
        server = make((model, jax.device_put(params, NamedSharding(mesh, PartitionSpec()))))
        before = programs.decode._cache_size()
        assert [a.ids for a in server.answers(requests)] == wanted
        assert programs.decode._cache_size() == before + 1  # places do not change from call to call


def test_four_programs_serve_all_requests(lm):
    def sizes():
        return np.array([p._cache_size() for p in (programs.admit, programs.prefill, programs.decode, programs.clean)])

    before, server = sizes(), make(lm, num_steps=5)
    server.answers([Request([1] * 10, 2)])  # a chunk, and a rest of one token
    assert (sizes() - before).tolist() == [1, 2, 1, 0]
    server.answers(mixed_requests(30, seed=10))
    assert (sizes() - before).tolist() == [1, 2, 1, 0]


def test_the_rest_of_a_prompt_is_prefilled_in_half_a_chunk_where_it_fits(lm, monkeypatch):
    widths, prefill = [], programs.prefill

    def watched(plan, weights, state, slot, tokens_C, *rest, **options):
        widths.append(len(tokens_C))
        return prefill(plan, weights, state, slot, tokens_C, *rest, **options)

    monkeypatch.setattr(programs, "prefill", watched)
    for length, wanted in {1: [], 2: [4], 5: [4], 6: [8], 9: [8], 10: [8, 4], 14: [8, 8], 17: [8, 8]}.items():
        widths.clear()
        server = make(lm)
        assert server.answers([Request([1, 2, 3] * 6, 0), Request([7] * length, 3)])[1].ids
        assert widths[3:] == wanted


def test_samples_of_one_prompt_share_its_prefill_and_differ(lm):
    server = make(lm)
    prompt = PROMPTS[3] + [3, 4]
    answers = server.answers(Request(prompt, 10, temperature=1.5, seed=0).samples(16))
    assert server.counts["chunks"] <= 3 + 15  # two whole chunks once, and each sample's rest of two tokens
    assert len({tuple(a.ids) for a in answers}) > 12
    assert [a.num_cached for a in answers] == [0, *[16] * 15]


def test_a_prefix_on_chunk_borders_is_prefilled_once(lm):
    server = make(lm)
    server.answers(Request([1, 2, 3, 4, 5, 6, 7, 8, 9], 10, temperature=1.5, seed=0).samples(16))
    assert server.counts["chunks"] == 1


@pytest.mark.parametrize("num_draft", [0, 2])
def test_draws_follow_the_model_s_distribution(lm, num_draft):
    """Pairs of tokens: behind each first one the prompt has a guess of the second, the token after it."""
    prompt, num = list(range(VOCAB)), 1_500

    def shares(tokens):
        logits = all_logits(lm, tokens)[-1] / 3.0
        p_V = np.exp(logits - logits.max())
        return p_V / p_V.sum()

    expected = num * np.stack([p * shares([*prompt, first]) for first, p in enumerate(shares(prompt))]).ravel()
    server = make(lm, num_slots=8, num_draft=num_draft)
    pairs = np.array([a.ids[:2] for a in server.answers(Request(prompt, 2, temperature=3.0, seed=5).samples(num))])
    assert 0.01 < np.mean(pairs[:, 1] == pairs[:, 0] + 1) < 0.5  # a guess is right, and wrong, often enough to show
    counts = np.bincount(pairs @ [VOCAB, 1], minlength=VOCAB**2)
    large = expected >= 5
    observed, expected = (
        np.append(counts[large], counts[~large].sum()),
        np.append(expected[large], expected[~large].sum()),
    )
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_stop_tokens_end_an_answer_and_stay_in_it(lm):
    greedy = slow_greedy(lm, [3], 12)
    stop = greedy[4]
    answer = make(lm, stop_ids=(stop,)).answers([Request([3], 12)])[0]
    assert answer.ids == slow_greedy(lm, [3], 12, stop_ids=(stop,))
    assert (answer.finish_reason, answer.stop) == ("stop", stop) and answer.answer_ids == answer.ids[:-1]


def test_more_stop_tokens_than_the_device_compares_still_end_an_answer():
    server = make(random_lm(vocab_size=64))
    long = server.answers([Request([3], 12)])[0].ids
    others = [i for i in range(64) if i not in long][:20]
    answer = server.answers([Request([3], 12, stop_ids=[*others, long[5]])])[0]
    assert answer.ids == long[: long.index(long[5]) + 1]


def test_stop_texts_end_an_answer_across_tokens(lm):
    greedy = slow_greedy(lm, [3], 12)
    text = b"".join(PIECES[i] for i in greedy)
    stop = text[3:6].decode()
    first = text.index(text[3:6])
    answer = make(lm, pieces=PIECES).answers([Request([3], 12, stop=["zz", stop])])[0]
    assert answer.text == text[:first] and answer.stop == stop and answer.finish_reason == "stop"
    assert answer.ids == greedy[: first + 3]


def test_a_cancelled_request_frees_its_slot_and_leaves_the_others_alone(lm):
    server = make(lm)
    numbers = [server.submit(Request(p, 12)) for p in PROMPTS]
    first = server.advance()
    cancelled = server.cancel(numbers[0])
    waiting = server.cancel(numbers[6])
    assert (cancelled.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
    assert server.cancel(99) is None
    done = {n.answer.number: n.answer.ids for n in first if n.is_done} | {a.number: a.ids for a in server.run([])}
    assert done == {i: slow_greedy(lm, PROMPTS[i], 12) for i in (1, 2, 3, 4, 5)}
    assert server.num_busy == server.num_waiting == 0


def test_the_longest_answers_go_first_where_that_is_asked(lm):
    server = make(lm, num_slots=1, order="longest")
    lengths = [3, 9, 5, 9, 1]
    assert [a.number for a in server.run([Request([3], n) for n in lengths])] == [1, 3, 2, 0, 4]


def test_logit_bias_can_force_and_forbid(lm):
    greedy = slow_greedy(lm, [3], 1)[0]
    forced, other = make(lm).answers([Request([3], 3, logit_bias={6: 1e4}), Request([3], 1, logit_bias={greedy: -1e4})])
    assert forced.ids == [6, 6, 6] and other.ids[0] == np.argsort(-all_logits(lm, [3])[-1])[1]


def test_penalties_follow_prompt_and_answer(lm):
    prompt, repetition, frequency, presence = [3, 3, 5], 1.7, 0.9, 0.4
    answer = make(lm).answers(
        [
            Request(
                prompt,
                12,
                repetition_penalty=repetition,
                frequency_penalty=frequency,
                presence_penalty=presence,
            )
        ]
    )[0]
    written = []
    for token in answer.ids:
        logits = all_logits(lm, [*prompt, *written])[-1]
        for i in {*prompt, *written}:
            logits[i] = logits[i] / repetition if logits[i] > 0 else logits[i] * repetition
        for i, count in collections.Counter(written).items():
            logits[i] -= frequency * count + presence
        assert token == logits.argmax()
        written.append(token)


def forbid_repeats(logits_BV, tokens_BS, t_B, state):
    """No token twice in a row; the state counts the calls that its row took part in."""
    last_B1 = jnp.take_along_axis(tokens_BS, t_B[:, None] - 1, axis=1)
    ids_1V = jnp.arange(logits_BV.shape[1])[None]
    return jnp.where(ids_1V == last_B1, -jnp.inf, logits_BV), {"calls": state["calls"] + 1}


def limit_calls(logits_BV, tokens_BS, t_B, state):
    """Token 0 from the third call on, by a state that begins where the request says."""
    is_late_B1 = (state["calls"] >= 2)[:, None]
    ids_1V = jnp.arange(logits_BV.shape[1])[None]
    return jnp.where(is_late_B1 & (ids_1V == 0), 1e4, logits_BV), {"calls": state["calls"] + 1}


@pytest.mark.parametrize("num_draft", [0, 3])
def test_processors_are_functions_with_a_state_a_row(lm, num_draft):
    start = [{"calls": jnp.zeros(3, jnp.int32)}] * 2
    server = make(lm, processors=[forbid_repeats, limit_calls], processor_states=start, num_draft=num_draft)
    rows = [{"calls": np.int32(0)}, {"calls": np.int32(2)}]
    plain, late = server.answers([Request([3], 6), Request([3], 6, processor_rows=rows)])
    for answer, first_zero in ((plain, 2), (late, 0)):
        assert answer.ids[first_zero:] == [0] * (6 - first_zero)
    assert all(a != b for a, b in zip([3, *plain.ids[:2]], plain.ids[:2]))


@pytest.mark.parametrize("kind", ["lookup", "draft", "same draft"])
def test_speculation_writes_what_the_target_alone_writes(lm, kind):
    draft = {"lookup": None, "draft": random_lm(seed=5, num_layers=1), "same draft": lm}[kind]
    # prompts that repeat themselves, and others; greedy and drawn
    requests = [Request(p, 14, temperature=t, seed=2, logprobs=2) for p in PROMPTS for t in (0.0, 0.8)]
    plain, fast = make(lm), make(lm, num_draft=3, draft=draft)
    for a, b in zip(plain.answers(requests), fast.answers(requests)):
        assert a.ids == b.ids
        np.testing.assert_allclose([t.logprob for t in a.tokens], [t.logprob for t in b.tokens], atol=1e-5)
    assert fast.counts["steps"] < plain.counts["steps"]
    if kind == "same draft":  # every guess is right: four tokens a step
        assert fast.counts["live_rows"] <= 1.1 * len(requests) * 14 / 4 + len(requests)


def test_guided_answers_are_those_of_combined_passes(lm):
    guides = [random_lm(seed=s) for s in (7, 8)]
    server = make(lm, guides=guides)
    requests = [
        Request(p, 10, guide_prompts=[[1, *p], p[::-1]], guide_weights=w)
        for p in PROMPTS[:5]
        for w in ((0.5, 1.5), (0.0, 0.0), (-0.7, 0.2))
    ]
    for answer in server.answers(requests):
        written = []
        for token in answer.tokens:
            says = [all_logprobs(lm, [*answer.request.prompt, *written])[-1]]
            says += [all_logprobs(g, [*p, *written])[-1] for g, p in zip(guides, answer.request.guide_prompts)]
            combined = says[0] + sum(w * logps for w, logps in zip(answer.request.guide_weights, says[1:]))
            assert token.id == combined.argmax()
            np.testing.assert_allclose(token.by_model, [logps[token.id] for logps in says], atol=1e-4)
            written.append(token.id)


def test_guides_of_weight_zero_leave_the_base_s_answers_to_the_last_bit(lm):
    fields = dict(max_new_tokens=10, temperature=1.0, seed=3)
    plain = make(lm).answers([Request(p, **fields) for p in PROMPTS])
    requests = [Request(p, **fields, guide_prompts=[[4]], guide_weights=[0.0]) for p in PROMPTS]
    guided = make(lm, guides=[random_lm(seed=7)]).answers(requests)
    for a, b in zip(plain, guided):
        assert [(t.id, t.logprob) for t in a.tokens] == [(t.id, t.logprob) for t in b.tokens]


def test_models_that_rule_out_all_tokens_together_are_reported_with_the_step(lm):
    def close_all_after_two(logits_BV, tokens_BS, t_B, state):
        return jnp.where((t_B >= 3)[:, None], -jnp.inf, logits_BV), state

    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match=r"request 0: after 2 tokens.*-inf"):
            make(lm, processors=[close_all_after_two]).answers([Request([5], 6, temperature)])


def test_seeds_are_the_request_s_or_follow_from_the_engine_s_and_its_number(lm):
    requests = [Request([3], 12, temperature=2.0) for _ in range(3)]
    first, again, other = ([a.ids for a in make(lm, seed=s).answers(requests)] for s in (0, 0, 1))
    assert first == again != other and len({*map(tuple, first)}) == 3
    assert len(make(lm, seed=-1).answers(requests)) == 3
    seeded = [dataclasses.replace(r, seed=5) for r in requests]
    assert len({tuple(a.ids) for a in make(lm).answers(seeded)}) == 1


def test_numbers_may_be_numpy_s(lm):
    plain = Request([3, 4], 3, temperature=0.5, top_k=3, seed=7)
    numpy = Request(np.array([3, 4]), np.int64(3), temperature=np.float32(0.5), top_k=np.int32(3), seed=np.int64(7))
    first, second = make(lm).answers([plain, numpy])
    assert first.ids == second.ids


def test_requests_for_no_tokens_are_answered_in_parts(lm):
    server = make(lm, num_slots=2)
    numbers = [server.submit(Request([i, i], 0)) for i in range(5)]
    assert [n.answer.number for n in server.advance()] == numbers[:2]
    assert server.cancel(numbers[2]).finish_reason == "cancelled"
    assert [a.number for a in server.run([])] == numbers[3:]


def test_an_evicted_request_goes_first_and_cancelled_ones_never(lm):
    server = make(lm, num_slots=1, order="longest")
    numbers = [server.submit(Request([3], n)) for n in (6, 9, 3)]
    server.advance()
    assert server.preempt(numbers[1]) and not server.preempt(numbers[1])
    server.submit(Request([3], 20))
    server.cancel(numbers[0])
    assert [(a.number, len(a.ids)) for a in server.run([])] == [(1, 9), (3, 20), (2, 3)]
    assert server.num_waiting == 0


@pytest.mark.parametrize("num_draft", [0, 2])
def test_ids_that_no_token_has_are_never_written(lm, num_draft):
    requests = [Request(p, 8, temperature=t, seed=1, logit_bias={16: 9.0}) for p in PROMPTS for t in (0.0, 3.0)]
    assert max(i for a in make(lm).answers(requests) for i in a.ids) == 16
    answers = make(lm, num_ids=5, num_draft=num_draft).answers(requests)
    assert {i for a in answers for i in a.ids} == {0, 1, 2, 3, 4}
    prompt, first = list(PROMPTS[0]), answers[0].tokens[0]
    exact = all_logprobs(lm, prompt)[-1]
    assert first.id == exact[:5].argmax() and abs(first.logprob - exact[first.id]) < 1e-4
    with pytest.raises(InputError, match="num_ids=18"):
        make(lm, num_ids=18)


def test_a_guide_may_have_more_tokens_than_the_tokenizer(lm):
    guide = random_lm(seed=7, vocab_size=19)
    server = make(lm, guides=[guide], num_ids=15)
    (answer,) = server.answers([Request([3], 8, guide_prompts=[[3]], guide_weights=[1.0])])
    written = [3]
    for token in answer.tokens:
        says = [all_logprobs(m, written)[-1, :15] for m in (lm, guide)]
        says = [logps - np.log(np.exp(logps).sum()) for logps in says]
        assert token.id == (says[0] + says[1]).argmax()
        np.testing.assert_allclose(token.by_model, [logps[token.id] for logps in says], atol=1e-4)
        written.append(token.id)


@pytest.mark.parametrize("vocab_size", [16, 24])
def test_a_draft_may_fill_its_vocabulary_up_to_another_size(lm, vocab_size):
    requests = [Request(p, 14, temperature=t, seed=2) for p in PROMPTS for t in (0.0, 0.8)]
    wanted = [a.ids for a in make(lm, num_ids=16).answers(requests)]
    server = make(lm, num_ids=16, num_draft=3, draft=random_lm(seed=5, num_layers=1, vocab_size=vocab_size))
    assert [a.ids for a in server.answers(requests)] == wanted
    guided = dict(num_ids=15, guides=[random_lm(seed=7, vocab_size=15)])  # the draft's guesses lie beyond its last id
    requests = [dataclasses.replace(r, guide_weights=(1.0,)) for r in requests if max(r.prompt) < 15]
    wanted = [a.ids for a in make(lm, **guided).answers(requests)]
    server = make(lm, **guided, num_draft=3, draft=random_lm(seed=5, num_layers=1, vocab_size=vocab_size))
    assert [a.ids for a in server.answers(requests)] == wanted
    with pytest.raises(InputError, match="16 tokens and the model's 17"):
        make(lm, num_ids=17, num_draft=3, draft=random_lm(vocab_size=16))


def test_a_prompt_that_was_read_for_nothing_is_still_there_for_the_next(lm):
    server = make(lm)
    server.answers([Request([1] * 17, 0), Request([2] * 17, 0, prompt_logprobs=True)])
    assert [answer.num_cached for answer in server.answers([Request([i] * 17, 2) for i in (1, 2)])] == [16, 16]


@pytest.mark.parametrize("odd", [dict(temperature=1.0, top_p=1e-46), dict(temperature=2e-38), dict(temperature=1e-320)])
def test_options_too_small_for_float32_still_draw_the_likeliest_token(lm, odd):
    plain, drawn = make(lm).answers([Request([3, 4], 5), Request([3, 4], 5, seed=1, **odd)])
    assert drawn.ids == plain.ids


def test_a_request_that_was_evicted_is_counted_once(lm):
    server = make(lm)
    number = server.submit(Request(PROMPTS[3], 12))
    server.advance()
    server.preempt(number)
    (answer,) = server.run([])
    assert (answer.num_cached, server.counts["prompt_tokens"], server.counts["cached_tokens"]) == (0, 16, 0)


def test_prompts_are_read_a_few_chunks_at_a_time_where_that_is_asked(lm):
    server = make(lm, chunks_per_turn=1)
    numbers = [server.submit(Request(list(range(16)), 3)), server.submit(Request([3, *range(15)], 3))]
    assert server.advance() == [] and server.counts["chunks"] == 1  # nobody writes yet, and the caller may cancel
    assert server.cancel(numbers[0]).finish_reason == "cancelled"
    assert [a.number for a in server.run([])] == numbers[1:]


def test_all_slots_are_busy_while_requests_wait(lm):
    server = make(lm)
    rng = np.random.default_rng(0)
    server.answers([Request([3], int(n)) for n in rng.geometric(0.15, size=60).clip(1, 40)])
    assert server.counts["full_live_rows"] / (3 * server.counts["full_steps"]) > 0.95


@pytest.mark.parametrize("dtypes", [dict(weights_dtype="int8"), dict(cache_dtype="int8"), dict(cache_dtype="int4")])
def test_eight_bits_are_refused_on_a_cpu_unless_asked_twice(lm, dtypes, monkeypatch):
    with pytest.raises(InputError, match=next(iter(dtypes))):
        make(lm, **dtypes)
    if "int4" not in dtypes.values():
        monkeypatch.setenv("PLUMBLINE_SLOW_INT8", "1")
        plain, rounded = make(lm), make(lm, **dtypes)
        scores = [s.answers([Request(PROMPTS[3], 0, prompt_logprobs=True)])[0].prompt for s in (plain, rounded)]
        losses = [-np.mean([token.logprob for token in tokens]) for tokens in scores]
        assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.1 * losses[0]
