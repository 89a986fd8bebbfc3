"""Whole rows in place of blocks: the layout on a CPU."""

import numpy as np

from alignment.decoding import engine
from tests.decoding.models import LENGTH, random_lm
from tests.decoding.test_engine import mixed_requests

SIZES = dict(num_slots=3, max_len=LENGTH, chunk=8, block=4, num_steps=4)


def test_answers_over_whole_rows_are_those_over_blocks():
    lm, requests = random_lm(), mixed_requests(20)
    over_blocks, over_rows = engine.Engine(*lm, **SIZES), engine.Engine(*lm, **SIZES, attention="xla")
    for a, b in zip(over_blocks.answers(requests), over_rows.answers(requests)):
        assert a.ids == b.ids
        np.testing.assert_allclose([t.logprob for t in a.tokens], [t.logprob for t in b.tokens], atol=1e-5)
    assert over_rows.counts["cached_tokens"] == over_blocks.counts["cached_tokens"] > 0
