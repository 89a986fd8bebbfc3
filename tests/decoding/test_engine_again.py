"""Engines of one process that are made for the same shapes share their compiled programs."""

import jax
import pytest

from alignment.decoding import engine
from alignment.decoding.requests import Request
from tests.decoding.models import LENGTH, random_lm

SIZES = dict(num_slots=2, max_len=LENGTH, chunk=8, block=4, num_steps=4)


@pytest.mark.parametrize("num_guides", [0, 1])
def test_a_second_engine_for_other_weights_of_the_same_shapes_compiles_nothing(compilations, num_guides):
    model, params = random_lm()
    other = jax.tree.map(lambda leaf: leaf * 0.5, params)

    def written(weights, seed):
        guides = [(model, params)] * num_guides
        served = engine.Engine(model, weights, guides=guides, **SIZES)
        options = dict(temperature=0.7, seed=seed, guide_weights=(1.0,) * num_guides)
        return [a.ids for a in served.answers([Request(p, 5, **options) for p in ([3, 4, 5], [6] * 11)])]

    first = written(params, 0)
    assert compilations
    compilations.clear()
    second = written(other, 1)
    assert compilations == []
    assert first != second
