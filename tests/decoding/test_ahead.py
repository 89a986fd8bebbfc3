import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment.decoding import engine
from alignment.decoding.requests import Request
from tests.decoding.models import random_lm

PLACES = {
    "nowhere": lambda: None,
    "a device": lambda: jax.devices()[0],
    "a mesh of one": lambda: NamedSharding(Mesh(np.array(jax.devices()[:1]), ("tensor",)), PartitionSpec()),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_program_is_compiled_once_wherever_the_weights_were_put(place, compilations):
    model, params = random_lm(norm_eps=2e-5)  # a plan that no other test has compiled
    params = params if PLACES[place]() is None else jax.device_put(params, PLACES[place]())
    served = engine.Engine(model, params, num_slots=2 + list(PLACES).index(place), max_len=48, chunk=8, block=4)
    for prompt in ([1], [1, 2, 3], [3], [1, 2, 3, 4]):  # the state meets the weights in a prefill or in a step
        served.answers([Request(prompt, 3)])
    names = [name for name in compilations if name in ("jit(admit)", "jit(prefill)", "jit(decode)")]
    assert sorted(names) == ["jit(admit)", "jit(decode)", "jit(prefill)"]


def test_what_fails_to_compile_ahead_is_raised_where_it_is_used(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a processor's own fault")

    model, params = random_lm(norm_eps=3e-5)
    monkeypatch.setattr("alignment.decoding.programs.sampling.choose", broken)
    served = engine.Engine(model, params, num_slots=2, max_len=48, chunk=8, block=4)
    with pytest.raises(RuntimeError, match="own fault"):
        served.answers([Request([1], 3)])
