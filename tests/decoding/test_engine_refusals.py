"""What an engine refuses: requests, sizes and models that do not fit."""

import numpy as np
import pytest

from alignment.decoding.requests import Request
from alignment.errors import InputError
from tests.decoding import test_engine
from tests.decoding.models import VOCAB, random_lm
from tests.decoding.test_engine import PIECES, forbid_repeats, make

lm = test_engine.lm


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (dict(prompt=[]), "prompt is empty"),
        (dict(prompt=[VOCAB]), "token id"),
        (dict(prompt=[1.0]), "token id"),
        (dict(prompt=np.ones((2, 2), int)), "token id"),
        (dict(prompt=[1] * 40, max_new_tokens=20), "at most 48"),
        (dict(max_new_tokens=-1), "max_new_tokens"),
        (dict(temperature=-0.1), "temperature"),
        (dict(temperature=float("nan")), "temperature"),
        (dict(top_p=0.0), "top_p"),
        (dict(top_p=1.1), "top_p"),
        (dict(min_p=2.0), "min_p"),
        (dict(top_k=-1), "top_k"),
        (dict(repetition_penalty=0.0), "repetition_penalty"),
        (dict(stop=[""]), "stop"),
        (dict(stop_ids=[VOCAB]), "stop_ids"),
        (dict(logit_bias={VOCAB: 1.0}), "logit_bias"),
        (dict(logprobs=21), "logprobs"),
        (dict(guide_weights=[1.0]), "guide"),
        (dict(seed=1.5), "seed"),
        (dict(sample=-1), "sample"),
        (dict(sample=1 << 32), "sample"),
        (dict(stop="abc"), "one text"),
        (dict(temperature=1e39), "temperature"),  # infinite on the device
        (dict(repetition_penalty=1e39), "repetition_penalty"),
        (dict(temperature=10**400), "temperature"),  # too long for a float
        (dict(top_p=10**400), "top_p"),
        (dict(min_p=float("inf")), "min_p"),
        (dict(repetition_penalty=1e-46), "repetition_penalty"),
        (dict(processor_rows=[()]), "processor_rows"),
    ],
)
def test_requests_out_of_range_are_refused_by_the_field_s_name(lm, fields, word):
    server = make(lm, pieces=PIECES)
    with pytest.raises(InputError, match=word):
        server.submit(Request(**{"prompt": [1], "max_new_tokens": 8, **fields}))
    assert server.num_waiting == 0


def test_weights_that_overflow_are_refused(lm):
    server = make(lm, guides=[lm])
    for weights in (dict(guide_weights=[1e38]), dict(guide_weights=[1.0], base_weight=-1e38)):
        with pytest.raises(InputError, match=next(iter(reversed(weights)))):
            server.submit(Request([1], 8, guide_prompts=[[1]], **weights))


def test_where_one_of_several_requests_is_refused_none_is_queued(lm):
    server = make(lm)
    with pytest.raises(InputError, match="prompt is empty"):
        server.answers(iter([Request([3], 2), Request([], 2)]))
    assert server.num_waiting == 0 and [a.request.prompt for a in server.answers([Request([4], 2)])] == [[4]]


def test_states_that_do_not_fit_the_processors_are_refused(lm):
    for states in ([], [{"calls": np.zeros(2)}]):
        with pytest.raises(InputError, match="processor_states"):
            make(lm, processors=[forbid_repeats], processor_states=states)
    server = make(lm, processors=[forbid_repeats], processor_states=[{"calls": np.zeros(3)}])
    for rows in ([], [{"count": np.float32(0)}], [{"calls": np.zeros(2)}]):
        with pytest.raises(InputError, match="processor_rows"):
            server.submit(Request([3], 2, processor_rows=rows))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_slots": 0},
        {"chunk": 0},
        {"num_draft": -1},
        {"num_draft": 9},
        {"block": 3},
        {"num_steps": 0},
        {"chunks_per_turn": 0},
    ],
)
def test_sizes_out_of_range_are_refused(lm, sizes):
    with pytest.raises(InputError, match=next(iter(sizes))):
        make(lm, **sizes)


def test_a_stop_text_needs_the_tokens_bytes(lm):
    with pytest.raises(InputError, match="pieces"):
        make(lm).submit(Request([1], 8, stop=["a"]))


def test_vocabularies_that_differ_are_refused(lm):
    other = random_lm(vocab_size=19)
    with pytest.raises(InputError, match=r"\[17, 19\]"):
        make(lm, guides=[other])
    with pytest.raises(InputError, match="19 tokens and the model's 17"):
        make(lm, draft=other, num_draft=2)
