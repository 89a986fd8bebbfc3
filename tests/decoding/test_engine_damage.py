"""Damaged weights: who is told of them, and that the others' answers stay the same bits."""

import numpy as np
import pytest

from alignment.decoding.requests import Request
from tests.decoding import test_engine
from tests.decoding.test_engine import PIECES, bits, make

lm = test_engine.lm


def test_damaged_weights_are_reported(lm):
    model, params = lm
    broken = {**params, "final_norm": params["final_norm"] * np.nan}
    with pytest.raises(FloatingPointError, match=r"request 0: after 0 tokens.*2 of 2 requests failed"):
        make((model, broken)).answers([Request([3], 4), Request([3], 4, temperature=1.0, top_k=3, top_p=0.5)])


def test_logits_that_are_no_numbers_end_their_request_alone_and_leave_a_clean_slot(lm):
    model, params = lm
    poison = 13  # the one token whose embedding is damaged
    damaged = {**params, "embedding": params["embedding"].at[poison].set(np.nan)}
    long, never = list(range(12)) * 2, {poison: -1e4}
    good = [Request([*long, i], 9, temperature=t, logit_bias=never, seed=i) for i in range(4) for t in (0.0, 1.0)]
    bad = [
        Request([*long, poison, 1], 5),
        Request([poison], 5, temperature=1.0, top_k=3),
        Request([1, poison, 2, 3], 0, prompt_logprobs=True),
        Request([3], 9, logit_bias={poison: 1e4}),  # writes it, and reads it in the next step
    ]
    alone = []
    for request in good:
        alone += map(bits, make(lm).answers([request]))
    server = make((model, damaged))
    asked = [r for pair in zip(good, bad) for r in pair] + good[4:]
    answers = sorted(server.run(asked), key=lambda a: a.number)
    assert [bits(a) for a in answers if not a.error] == alone
    failed = [a for a in answers if a.error]
    assert [a.request for a in failed] == bad and {a.finish_reason for a in failed} == {"error"}
    assert [len(a.ids) for a in failed] == [0, 0, 0, 1] and server.counts["failed"] == 4
    assert failed[2].prompt == [] and "not numbers" in failed[2].error


def test_numbers_that_nobody_saw_to_be_none_do_not_fail_the_slot_s_next_request(lm):
    model, params = lm
    poison = 13
    server = make((model, {**params, "embedding": params["embedding"].at[poison].set(np.nan)}), pieces=PIECES)
    good = [Request([i], 6, logit_bias={poison: -1e4}) for i in range(3)]  # of the blocks that the bad ones wrote
    wanted = [bits(answer) for answer in make(lm).answers(good)]
    long = [1, 1, poison, *[2] * 9]
    read, cut = [Request(long, 0)] * 3, [Request([3], 9, logit_bias={poison: 1e4}, stop=["n"])] * 3
    assert PIECES[poison] == b"n"  # the answers' first token; the steps behind it read it
    for bad, reason in ((read, "length"), (cut, "stop")):
        assert [answer.finish_reason for answer in server.answers(bad)] == [reason] * 3
        assert [bits(answer) for answer in server.answers(good)] == wanted
    server.chunks_per_turn = 12
    for leave in (server.cancel, server.preempt):
        numbers = [server.submit(Request(long, 5)) for _ in range(3)]
        server._fill()  # all prompts are read, and nobody has written
        for number in numbers:
            leave(number)
        for number in numbers:
            server.cancel(number)
        assert [bits(answer) for answer in server.answers(good)] == wanted
