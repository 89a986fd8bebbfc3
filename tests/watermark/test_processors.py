import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import engine
from alignment.decoding.requests import Request
from alignment.errors import InputError
from alignment.watermark import detect, green, hashing, markllm, processors, tournament
from alignment.watermark.text_marks import Mark
from tests.decoding.models import VOCAB, all_logits, random_lm

SIZES = dict(num_slots=3, max_len=48, chunk=8, block=4, num_steps=4)
ALL = np.arange(VOCAB, dtype=np.uint32)[None]
PROMPTS = [[5, 6, 7, 8, 9, 10], [3], [11, 4, 2], [1] * 9]
MARKS = {
    "left": Mark("kgw", 7, VOCAB, delta=3.0, width=2),
    "min": Mark("kgw", 7, VOCAB, delta=3.0, width=2, seeding="min"),
    "self": Mark("kgw", 7, VOCAB, delta=3.0, width=2, seeding="self"),
    "unigram": Mark("unigram", 7, VOCAB, delta=3.0),
    "random": Mark("random", 7, VOCAB, delta=3.0),
    "lm-watermarking": Mark("kgw", 7, VOCAB, delta=3.0, parity="kgw"),
    "transformers self": Mark("kgw", 7, VOCAB, delta=3.0, width=2, seeding="self", parity="hf"),
    "synthid": Mark("synthid", (5, 6, 7), VOCAB, width=2, history=8),
    "exp": Mark("exp", 7, VOCAB, width=2),
}


@functools.cache
def lm():
    return random_lm()


@functools.cache
def engine_of(name):
    fn, row = processors.build(MARKS[name])
    states = (processors.stack(row, SIZES["num_slots"]),)
    return engine.Engine(*lm(), processors=(fn,), processor_states=states, **SIZES), row


def requests(name, prompts=PROMPTS, *, marked=True, temperature=1.0):
    _, row = engine_of(name)
    row = row if marked else processors.off(row)
    temperature = processors.draws_at(MARKS[name], temperature) if marked else temperature
    options = dict(max_new_tokens=24, seed=3, processor_rows=(row,), temperature=temperature)
    return [Request(prompt, **options) for prompt in prompts]


def slow_bias(mark, tokens, logits):
    """What a mark makes of the logits after these tokens, one mask at a time in numpy."""
    if mark.scheme == "random":
        values = hashing.values(
            "left",
            hashing.split_key(mark.key)[None],
            np.array([[len(tokens)]]),
            ALL,
        )
        return logits + mark.delta * (values[0] < hashing.threshold(mark.gamma))
    C = mark.num_context
    if len(tokens) < C:
        return logits
    window = tokens[len(tokens) - C :]
    if mark.parity == "hf" and mark.seeding == "self":
        mask = np.array([v in green.torch_list(mark, [*window, v]) for v in range(VOCAB)])
    else:
        mask = green.masks(mark, np.array(window, int).reshape(1, C))[0]
    return logits + mark.delta * mask


@pytest.mark.parametrize("name", [n for n in MARKS if n not in ("synthid", "exp")])
def test_greedy_marked_answers_are_those_of_masks_made_one_by_one(name):
    (answer,) = engine_of(name)[0].answers(requests(name, PROMPTS[1:2], temperature=0.0))
    tokens, slow = list(PROMPTS[1]), []
    for _ in range(24):
        slow.append(int(np.argmax(slow_bias(MARKS[name], tokens, all_logits(lm(), tokens)[-1]))))
        tokens.append(slow[-1])
    assert answer.ids == slow


def test_a_draw_of_exp_is_the_largest_of_logits_and_the_keys_noise():
    mark = MARKS["exp"]
    (answer,) = engine_of("exp")[0].answers(requests("exp", PROMPTS[:1]))
    tokens, contexts, num_marked = list(PROMPTS[0]), set(), 0
    for token in answer.ids:
        window = tuple(tokens[-2:])
        if window not in contexts:
            values = hashing.values("left", hashing.split_key(7)[None], np.array([window]), ALL)
            noisy = all_logits(lm(), tokens)[-1] - np.log(-np.log(hashing.uniform(values)[0]))
            assert token == int(np.argmax(noisy))
            num_marked += 1
        contexts.add(window)
        tokens.append(token)
    assert num_marked > 5 and mark.num_context == 2


def test_a_tournament_in_the_step_is_that_of_numpy():
    """One step's logits, for a fresh context and for one that came before."""
    mark = MARKS["synthid"]
    fn, row = processors.build(mark, temperature=0.5)
    logits = np.random.default_rng(0).normal(size=(3, VOCAB)).astype(np.float32)
    tokens = np.tile(np.array([9, 9, 1, 2, 3, 1, 2, 0]), (3, 1)).astype(np.int32)
    state = {name: np.stack([value] * 3) for name, value in row.items()}
    state["start"][:] = 2
    state["is_on"][2] = False
    t = np.array([5, 7, 5], np.int32)  # contexts (2, 3): new; (1, 2): came before the 3
    out, after = fn(logits, tokens, t, state)
    probs = np.exp(logits[0] / 0.5) / np.exp(logits[0] / 0.5).sum()
    h = tournament.accumulate(tournament.context_hash(np.array([[2, 3]]))[:, None], ALL)
    for g in tournament.layers(tournament.bits(mark)[h[0] % 65_536], 3).T:
        probs = probs * (1 + g - (g * probs).sum())
    np.testing.assert_allclose(out[0] / 0.5, np.log(probs), rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(out[1:], logits[1:])
    assert after["start"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["left", "self", "synthid", "exp"])
def test_a_marked_answer_is_the_same_in_any_batch_slot_and_order(name):
    eng, _ = engine_of(name)
    alone = [eng.answers([request])[0].ids for request in requests(name)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        together = eng.answers([requests(name)[i] for i in order])
        assert [answer.ids for answer in together] == [alone[i] for i in order]


@pytest.mark.parametrize("name", ["left", "synthid", "exp"])
def test_a_request_without_a_mark_gets_what_an_engine_without_processors_writes(name):
    plain = engine.Engine(*lm(), **SIZES).answers(
        [Request(prompt, max_new_tokens=24, seed=3, temperature=1.0) for prompt in PROMPTS]
    )
    mixed = engine_of(name)[0].answers(requests(name, marked=False) + requests(name))
    assert [a.ids for a in mixed[: len(PROMPTS)]] == [a.ids for a in plain]
    assert [a.ids for a in mixed[len(PROMPTS) :]] != [a.ids for a in plain]


def test_eight_devices_mark_as_one_and_read_as_one():
    sizes = dict(num_layers=1, num_heads=8, num_kv_heads=4, vocab_size=16, head_dim=4)
    model, params = random_lm(**sizes)
    marks = [Mark("kgw", 7, 16, delta=3.0, width=2), Mark("synthid", (5, 6, 7), 16, width=2, history=8)]
    fns, rows = zip(*(processors.build(mark) for mark in marks))
    states = tuple(processors.stack(row, SIZES["num_slots"]) for row in rows)
    choices = [(rows[0], processors.off(rows[1])), (processors.off(rows[0]), rows[1])]
    work = [
        Request([t % 16 for t in prompt], max_new_tokens=16, seed=3, temperature=1.0, processor_rows=choice)
        for prompt in PROMPTS
        for choice in choices
    ]
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 8), ("data", "fsdp", "tensor"))
    spread = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    one, eight = (
        engine.Engine(model, p, processors=fns, processor_states=states, **SIZES).answers(work)
        for p in (params, spread)
    )
    assert [a.ids for a in eight] == [a.ids for a in one]  # no near tie occurs among these
    ids = np.random.default_rng(0).integers(0, 16, 66)
    context, tokens = green.windows(ids[:-1], 2), ids[2:, None].astype(np.uint32)
    key = np.broadcast_to(hashing.split_key(7), (64, 2))
    rows_of = NamedSharding(mesh, PartitionSpec("tensor"))  # texts lie on eight devices
    placed = [jax.device_put(x, rows_of) for x in (key, context, tokens)]
    values = jax.jit(hashing.values, static_argnums=0)(hashing.LEFT, *placed)
    assert len(values.sharding.device_set) == 8
    assert (np.asarray(values)[:, 0] < hashing.threshold(0.5)).tolist() == green.flags(marks[0], ids).tolist()


def test_a_preempted_answer_comes_back_to_the_same_marked_tokens():
    eng, _ = engine_of("synthid")
    (request,) = requests("synthid", PROMPTS[:1])
    expected = eng.answers([request])[0].ids
    number = eng.submit(request)
    eng.advance()
    assert eng.preempt(number)
    done = []
    while not done:
        done = [news.answer for news in eng.advance() if news.is_done]
    assert done[0].ids == expected


@pytest.mark.parametrize("name", ["left", "unigram", "lm-watermarking"])
def test_what_the_engine_marked_the_detector_reads(name):
    eng, row = engine_of(name)
    strong = row | {"delta": np.float32(60)}
    work = [Request([i], max_new_tokens=24, seed=3, temperature=8.0, processor_rows=(strong,)) for i in range(12)]
    found = [detect.detect(MARKS[name], answer.ids, counts="all") for answer in eng.answers(work)]
    assert np.median([out.fraction for out in found]) > 0.95 and np.median([out.z for out in found]) > 4


def test_lists_are_drawn_once_a_context_and_the_oldest_go():
    fn = processors.TorchLists(Mark("kgw", 7, VOCAB, parity="kgw"), max_bytes=6)
    assert fn.max_lists == 2
    for window in ((1,), (2,), (1,), (3,), (1,), (2,)):
        packed = fn.packed(window)
        mask = np.unpackbits(packed)[:VOCAB].astype(bool)
        assert set(np.flatnonzero(mask)) == set(green.torch_list(fn.mark, window).tolist())
    assert fn.num_drawn == 4 and len(fn._lists) == 2


def test_marks_of_draws_need_a_temperature_and_lists_the_models_vocabulary():
    with pytest.raises(InputError, match="marks draws"):
        processors.build(MARKS["synthid"], temperature=0.0)
    fn, row = processors.build(Mark("kgw", 7, 9, parity="kgw"))
    with pytest.raises(InputError, match="vocab_size=9 and this model has 17"):
        fn(np.zeros((1, VOCAB), np.float32), np.zeros((1, 4), np.int32), np.array([2]), {"delta": np.ones(1)})
    assert row["delta"] == 2


def test_markllms_calls_write_under_the_mark_and_read_it():
    def encode(text):
        return [int(word) for word in text.split()]

    def decode(ids):
        return " ".join(map(str, ids))

    mark, server = MARKS["unigram"], engine_of("unigram")[0]
    written = markllm.generate_watermarked_text("5 6 7", mark, server, encode, decode, max_new_tokens=24, seed=3)
    (same,) = server.answers(requests("unigram", [[5, 6, 7]]))
    assert encode(written) == same.answer_ids
    said = detect.detect(mark, encode(written))
    for threshold in (said.z - 0.1, said.z + 0.1):
        read = markllm.detect_watermark(written, mark, encode, z_threshold=threshold)
        assert read == {"is_watermarked": threshold < said.z, "score": said.z, "p_value": said.p_value}
