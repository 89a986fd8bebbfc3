"""The choice of a kernel, and the TPU's paged one, which Pallas computes step by step on a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from alignment.decoding import engine, kernels, layout, network, paged, rows
from alignment.errors import InputError
from alignment.models import decoder
from tests.decoding.models import LENGTH, all_logprobs, random_lm
from tests.decoding.test_engine import bits, mixed_requests

SIZES = dict(num_slots=3, max_len=LENGTH, chunk=16, block=16, num_steps=4)
FITS = dict(num_rows=3, max_len=LENGTH, chunk=16, block=16, num_draft=0, cache_dtype="", num_devices=1)
HEADS = dict(num_heads=4, num_kv_heads=2, head_dim=128, num_layers=1, dtype="bfloat16")
HALF = decoder.DecoderLM(vocab_size=9, model_dim=32, **HEADS)
FUSED = {"gpu": "cudnn", "tpu": "paged"}


@pytest.fixture(autouse=True)
def asks_anew():
    kernels._fault.cache_clear()
    yield
    kernels._fault.cache_clear()


@pytest.fixture
def interpreted(monkeypatch):
    """TPU kernels are computed here, and a row of three blocks takes three turns of the kernel's loop."""
    monkeypatch.setattr(paged, "POSITIONS", 16)
    pallas_tpu.set_tpu_interpret_mode(True)
    yield
    pallas_tpu.set_tpu_interpret_mode(None)


def on(monkeypatch, backend):
    """A machine of this kind whose kernels are right."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(kernels, "self_test", lambda *args, **sizes: None)


@pytest.mark.parametrize("backend", FUSED)
def test_a_cpu_walks_blocks_and_an_accelerator_takes_its_kernel_where_it_is_right(backend, monkeypatch, capsys):
    assert kernels.choose("auto", [HALF], **FITS) == "blocks" and capsys.readouterr().out == ""
    on(monkeypatch, backend)
    assert kernels.choose("auto", [HALF], **FITS) == FUSED[backend] and FUSED[backend] in capsys.readouterr().out
    assert kernels.choose("blocks", [HALF], **FITS) == "blocks" and capsys.readouterr().out == ""


COMMON = [
    (dict(dtype="float32"), {}, "dtype=float32"),
    (dict(sliding_window=8), {}, "sliding_window=8"),
    ({}, dict(num_draft=2), "num_draft=2"),
    ({}, dict(cache_dtype="int8"), "int8"),
    ({}, dict(num_devices=2), "one device, not 2"),
]
TPU_ALONE = [
    (dict(dtype="float16"), {}, "bfloat16, not dtype=float16"),
    (dict(head_dim=64), {}, "a multiple of 128 numbers, not 64"),
    ({}, dict(block=8), "a multiple of 16 positions, not block=8"),
]


@pytest.mark.parametrize(
    ("backend", "model", "needs", "said"), [("gpu", *c) for c in COMMON] + [("tpu", *c) for c in COMMON + TPU_ALONE]
)
def test_what_a_kernel_does_not_take_keeps_the_blocks_and_says_why(backend, model, needs, said, monkeypatch, capsys):
    on(monkeypatch, backend)
    assert kernels.choose("auto", [HALF, HALF.clone(**model)], **(FITS | needs)) == "blocks"
    assert said in capsys.readouterr().out
    with pytest.raises(InputError, match="use 'blocks'"):
        kernels.choose(FUSED[backend], [HALF.clone(**model)], **(FITS | needs))


@pytest.mark.parametrize("backend", FUSED)
def test_a_kernel_that_is_missing_is_refused_by_its_self_test(backend, monkeypatch, capsys):
    with pytest.raises(InputError, match=f"attention='{FUSED[backend]}' does not run here"):
        kernels.choose(FUSED[backend], [HALF], **FITS)  # no CPU has it
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert kernels.choose("auto", [HALF], **FITS) == "blocks" and "as this run now does" in capsys.readouterr().out


@pytest.mark.parametrize("is_there", ["for all", "for one row of three"])
def test_a_kernel_that_is_wrong_is_refused_by_its_self_test(is_there, monkeypatch):
    right = rows.attend

    def wrong(q_RTHK, cache, positions_RT, first_row, kernel):
        """Ignores where rows end, as kernels for another version of a library have done."""
        is_wrong_R1 = jnp.ones((3, 1), bool) if is_there == "for all" else jnp.array([[False], [True], [False]])
        return right(q_RTHK, cache, jnp.where(is_wrong_R1, LENGTH - 1, positions_RT), first_row, "xla")

    monkeypatch.setattr(rows, "attend", wrong)
    with pytest.raises(InputError, match="attention='cudnn' is wrong here: it is off by"):
        kernels.choose("cudnn", [HALF], **FITS)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(InputError, match="attention='splash'"):
        kernels.choose("splash", [HALF], **FITS)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_paged_kernel_agrees_with_the_walk_over_blocks(num_rows, interpreted, capsys):
    assert kernels.choose("paged", [HALF], **(FITS | dict(num_rows=num_rows))) == "paged"
    assert "'paged', which agrees with 'blocks' here" in capsys.readouterr().out


def test_a_page_or_a_position_too_many_is_seen(interpreted, monkeypatch):
    right = paged.attend
    for wrong in (
        lambda q, cache, lengths_R: right(q, cache, jnp.minimum(lengths_R + 1, LENGTH)),
        lambda q, cache, lengths_R: right(q, {n: x[::-1] for n, x in cache.items()}, lengths_R),
        lambda q, cache, lengths_R: right(q, cache | {"keys": jnp.flip(cache["keys"], 2)}, lengths_R),
    ):
        kernels._fault.cache_clear()
        monkeypatch.setattr(paged, "attend", wrong)
        with pytest.raises(InputError, match="attention='paged' is wrong here"):
            kernels.choose("paged", [HALF], **FITS)


def test_pages_that_go_together_divide_a_row():
    assert [paged.pages_at_once(n, 64) for n in (1, 8, 16, 17, 12)] == [1, 8, 8, 1, 6]
    assert paged.pages_at_once(3, 1024) == 1


def test_a_paged_request_s_bits_do_not_depend_on_what_else_is_served(interpreted):
    lm, guide = random_lm(**HEADS), random_lm(seed=5, **HEADS)
    server = engine.Engine(*lm, **SIZES, guides=[guide], attention="paged")
    assert server.plan.attention == "paged"
    requests = [dataclasses.replace(r, guide_weights=(0.5 * (i % 2),)) for i, r in enumerate(mixed_requests(24))]
    rng = np.random.default_rng(1)
    alone = []
    for request in requests:
        server.prefixes.forget()
        alone += server.answers([request])
    assert server.counts["cached_tokens"] == 0
    numbers = {server.submit(requests[i]): i for i in rng.permutation(len(requests))}
    together = {}
    while server.num_busy or server.num_waiting:
        if rng.random() < 0.3:
            server.preempt(int(rng.choice(list(numbers))))
        for news in server.advance():
            if news.is_done:
                together[numbers[news.answer.number]] = bits(news.answer)
    assert server.counts["cached_tokens"] > 0
    assert [together[i] for i in range(len(requests))] == [bits(answer) for answer in alone]
    for by, model in enumerate((lm, guide)):
        off = []
        for answer in alone:
            first, tokens = len(answer.request.prompt) - 1, [*answer.request.prompt, *answer.ids]
            exact = all_logprobs(model, tokens)[first:-1][np.arange(len(answer.ids)), answer.ids]
            off += np.abs([t.by_model[by] for t in answer.tokens] - exact).tolist()
        assert np.mean(off) < 0.05  # whole passes round to bfloat16 elsewhere; one key left out is 0.3


def test_a_slot_that_is_not_read_costs_the_kernel_one_position(monkeypatch):
    seen = []
    monkeypatch.setattr(paged, "attend", lambda q, cache, lengths_R: seen.append(lengths_R) or q.reshape(3, 1, -1))
    model, params = random_lm(**HEADS)
    weights = layout.prepare(model, params)

    @jax.jit
    def lengths(positions_R1, is_live_R):
        cache = network.init_cache(model, 3, LENGTH, block=16, chunk=16, attention="paged")
        options = dict(is_live_R=is_live_R, attention="paged")
        network.forward(model, weights, cache, jnp.zeros((3, 1), int), positions_R1, **options)
        return seen[-1]

    assert lengths(np.array([[4], [40], [9]]), np.array([True, False, True])).tolist() == [5, 1, 10]
