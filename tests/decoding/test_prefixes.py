import itertools

import numpy as np
import pytest

from alignment.decoding import prefixes, programs
from tests.decoding.models import VOCAB

CHUNK, BLOCK, RING, WINDOW = 8, 4, 5, 6


class Windowed:
    """What `Prefixes` reads of a model: one layer that sees all positions, and one with a window."""

    layer_types = ("full_attention", "sliding_attention")
    num_layers, sliding_window, vocab_size = 2, WINDOW, VOCAB


def record(num_slots=2, **settings):
    plan = programs.Plan((Windowed(),), num_slots, max_len=64, block=BLOCK, chunk=CHUNK, **settings)
    return prefixes.Prefixes(plan, [[16, RING]])


def test_chunks_are_shared_up_to_the_first_that_differs_and_never_the_last_token():
    table = record()
    assert table.whole_chunks(range(17)) == [tuple(range(8)), tuple(range(8, 16))]
    assert table.whole_chunks(range(16)) == [tuple(range(8))]
    for chunk in (range(8), range(8, 16)):
        table.add(0, 0, chunk)
    wanted = table.whole_chunks([*range(8), *range(9, 20)])
    assert [table.num_shared(slot, 0, wanted) for slot in (0, 1)] == [1, 0]
    table.forget()
    assert table.num_shared(0, 0, wanted) == 0


@pytest.mark.parametrize("num_draft", [0, 3])
def test_what_is_shared_of_a_ring_is_still_in_it(num_draft):
    """Random histories of two slots, beside rings that are really written, step for step."""
    rng = np.random.default_rng(num_draft)
    table = record(num_draft=num_draft)
    places = np.full((2, RING * BLOCK), -1)  # slot, place -> the position that lies there
    chunks = [tuple(rng.integers(0, 9, CHUNK)) for _ in range(4)]
    num_shared = 0

    def write(slot, first, num):
        for position in range(first, first + num):
            places[slot, position % (RING * BLOCK)] = position

    for _ in range(2_000):
        slot, num_whole, num_new = rng.integers(2), rng.integers(5), rng.integers(1, 25)
        prompt = [*itertools.chain(*chunks[:num_whole]), *range(rng.integers(1, CHUNK + 1))]
        wanted = table.whole_chunks(prompt)
        counts = [table.num_shared(s, 0, wanted) for s in (0, 1)]
        source = int(np.argmax(counts))
        start = counts[source] * CHUNK
        if start:
            needed = range(max(0, start - WINDOW + 1), start)
            assert all(places[source, p % (RING * BLOCK)] == p for p in needed)
            num_blocks = min(start // BLOCK, RING)
            places[slot, : num_blocks * BLOCK] = places[source, : num_blocks * BLOCK]
            num_shared += 1
        table.start(slot, 0, wanted[: counts[source]], source)
        for at in range(start, len(prompt) - 1, CHUNK):
            table.add(slot, 0, prompt[at : min(at + CHUNK, len(prompt) - 1)])
            write(slot, at, CHUNK)
        if rng.random() < 0.8:  # and some are cancelled before they write
            table.wrote(slot, 0, len(prompt) + num_new)
            write(slot, len(prompt) - 1, num_new + 1 + num_draft)
    assert num_shared > 200
