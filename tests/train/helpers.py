"""A small decoder, seeded batches, and a loader over them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import decoder
from alignment.train import next_token, optimizer, sharding, step, train_state

VOCAB = 40
# (data, fsdp, tensor). The first two split along several axes; the others along one of these alone, and are slow.
MESHES = [(2, 2, 2), (1, 2, 4), *(pytest.param(one, marks=pytest.mark.slow) for one in ((8, 1, 1), (1, 8, 1)))]


def model(**changes):
    settings = dict(vocab_size=VOCAB, num_layers=2, model_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64)
    return decoder.DecoderLM(**{**settings, **changes})


def lm_batch(number, rows=8, t=12, seed=0):
    """Rows whose masks count differently, the last positions padding."""
    rng = np.random.default_rng([seed, number])
    tokens = rng.integers(0, VOCAB, (rows, t + 1))
    lengths = rng.integers(3, t + 1, rows)
    groups = (np.arange(t)[None] < lengths[:, None]).astype(np.int32)
    return {
        "tokens": tokens[:, :-1].astype(np.int32),
        "positions": np.broadcast_to(np.arange(t, dtype=np.int32), (rows, t)).copy(),
        "groups": groups,
        "targets": tokens[:, 1:].astype(np.int32),
        "mask": (groups * (rng.random((rows, t)) < 0.7)).astype(np.float32),
        "index": np.arange(rows, dtype=np.int32) + 100 * number,
    }


def pair_batch(number, seed=0, pairs_=4, t=10):
    """Pairs in rows of their own, chosen before rejected, with stored reference log-probabilities."""
    rng = np.random.default_rng([seed, number])
    tokens = rng.integers(0, VOCAB, (2 * pairs_, t)).astype(np.int32)
    shape = (pairs_, 2, t - 1)
    return {
        "tokens": tokens,
        "positions": np.broadcast_to(np.arange(t, dtype=np.int32), tokens.shape).copy(),
        "groups": np.ones(tokens.shape, np.int32),
        "branches": np.zeros(tokens.shape, np.int32),
        "sources": np.broadcast_to(np.arange(t - 1, dtype=np.int32), shape).copy(),
        "targets": tokens[:, 1:].reshape(shape),
        "mask": np.broadcast_to(np.arange(1, t) > 4, shape).astype(np.float32),
        "weights": np.ones(pairs_, np.float32),
        "reference": np.full(shape, -3.0, np.float32),
    }


class Loader:
    """Endless batches, numbered from 0."""

    def __init__(self, make_fn=lm_batch, **kwargs):
        self.number, self.make_fn, self.kwargs = 0, make_fn, kwargs

    def __next__(self):
        self.number += 1
        return self.make_fn(self.number - 1, **self.kwargs)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def make_mesh(shape=(1, 1, 1)):
    """A mesh (data, fsdp, tensor) over as many of the simulated devices as it takes."""
    return jax.sharding.Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), sharding.AXES)


@functools.cache
def start_params(**changes):
    """Random parameters on the host, drawn once for all tests: drawing them costs more to compile than training."""
    init = jax.jit(lambda key: nn.meta.unbox(model(**changes).init(key, jnp.zeros((1, 4), jnp.int32))["params"]))
    return jax.device_get(init(jax.random.PRNGKey(0)))


def setup(mesh_shape=(1, 1, 1), accumulate=1, **changes):
    """Mesh, update (not compiled), loss_fn and a state at step 0."""
    mesh, net = make_mesh(mesh_shape), model(**changes)
    tx = optimizer.adamw(1e-2, warmup_steps=2, total_steps=20, clip_norm=1.0)
    example, params = jnp.zeros((1, 4), jnp.int32), start_params(**changes)
    state = train_state.create(net, tx, example, seed=0, mesh=mesh, params=params)
    loss_fn = next_token.loss_fn(net, mesh, chunk=16)
    return mesh, step.build(loss_fn, tx, accumulate=accumulate, rate_fn=optimizer.learning_rate), loss_fn, state


def run_steps(mesh, update, state, num_steps=3, **kwargs):
    """Losses and parameters after some updates."""
    compiled, losses = step.compile_update(update, state), []
    with sharding.activations(mesh):
        for number in range(num_steps):
            state, metrics = compiled(state, sharding.to_devices(lm_batch(number, **kwargs), mesh))
            losses.append(float(step.value(metrics["loss"])))
    return losses, jax.device_get(state.params), state
