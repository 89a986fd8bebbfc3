"""Networks that cannot be explained as they are: probabilities, batch statistics, and keys of the wrong kind."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import explaining, fitness

X = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


def logits_of(weights, x):
    return jax.nn.relu(x.mean((1, 2)) @ weights + 0.1)


ENDINGS = {
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
    "softmax by hand": lambda z: jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True),
    "softmax of a temperature, cast": lambda z: jax.nn.softmax(z / 2).astype(jnp.bfloat16),
    "exp of log-softmax": lambda z: jnp.exp(jax.nn.log_softmax(z)),
    "sigmoid by hand": lambda z: 1 / (1 + jnp.exp(-z)),
    "clipped sigmoid": lambda z: jnp.clip(jax.nn.sigmoid(z), 1e-6, 1 - 1e-6),
    "both sides of a sigmoid": lambda z: jnp.concatenate([1 - jax.nn.sigmoid(z), jax.nn.sigmoid(z)], -1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_probabilities_in_place_of_logits_are_refused(ending):
    def net(weights, x):
        return ENDINGS[ending](logits_of(weights, x)), {"pooled": x}

    for method in ("lrp", "gradient", "lime"):
        with pytest.raises(InputError, match="probabilities, not logits"):
            explaining.explain(net, WEIGHTS, X, [0, 1], method=method, key=jax.random.key(0))


@pytest.mark.parametrize(
    "ending",
    [lambda z: z, lambda z: jax.nn.log_softmax(z), lambda z: z * jax.nn.sigmoid(z), lambda z: jnp.tanh(z) @ WEIGHTS.T],
)
def test_logits_and_what_only_holds_a_sigmoid_inside_are_taken(ending):
    fitness.check(lambda weights, x: ending(logits_of(weights, x)), WEIGHTS, X.shape, method="lrp")


def test_attention_inside_does_not_make_logits_probabilities_and_rollout_needs_no_logits():
    def attends(weights, x):
        tokens = x.reshape(len(x), -1, 3)
        return (jax.nn.softmax(tokens @ tokens.swapaxes(1, 2)) @ tokens).mean(1) @ weights

    fitness.check(attends, WEIGHTS, X.shape, method="gradient")
    fitness.check(lambda v, x: jax.nn.softmax(attends(v, x)), WEIGHTS, X.shape, method="attention_rollout")


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=False)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(5)(nn.relu(h).mean((1, 2)))


def test_batch_norm_in_training_mode_is_refused():
    variables = Normed().init(jax.random.key(0), X)
    with pytest.raises(InputError, match="use_running_average=True"):
        explaining.explain(
            lambda v, x: Normed().apply(v, x, mutable=["batch_stats"]), variables, X, [0, 1], method="gradient"
        )
    with pytest.raises(InputError, match="use_running_average=True"):  # the statistics thrown away
        explaining.explain(
            lambda v, x: Normed().apply(v, x, mutable=["batch_stats"])[0], variables, X, [0, 1], method="gradient"
        )


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0, keepdims=True),
        lambda x: x / jnp.abs(x).max(),
        lambda x: jax.nn.softmax(x, axis=0),
        lambda x: (x.reshape(len(x), -1).T @ x.reshape(len(x), -1)).sum() * x,
    ],
)
def test_a_reduction_over_the_batch_is_refused(mix):
    with pytest.raises(InputError, match="other images of its batch"):
        explaining.explain(lambda v, x: logits_of(v, mix(x)), WEIGHTS, X, [0, 1], method="gradient")


def test_norms_within_an_image_are_taken():
    def net(v, x):
        h = nn.GroupNorm(3).apply({"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}, x)
        return logits_of(v, h - h.mean((1, 2, 3), keepdims=True))

    assert explaining.explain(net, WEIGHTS, X, [0, 1], method="gradient").shape == (2, 8, 8)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
@pytest.mark.parametrize("method", ["lrp", "gradient", "gradcam"])
def test_a_random_key_in_the_network_is_carried_along(key, method):
    def net(v, x):
        h = jax.nn.relu(
            jax.lax.conv_general_dilated(x, v[0], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )
        kept = jax.random.bernoulli(key, 0.5, h.shape[1:])
        return (h * kept[None]).mean((1, 2)) @ v[1], {"feature": h}

    v = jnp.ones((3, 3, 3, 3)) * 0.1, WEIGHTS
    assert np.isfinite(explaining.explain(net, v, X, [0, 1], method=method)).all()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (np.int64(0), "is a number"),
        (0, "is a number"),
        (np.uint32(3), "is a number"),
        (jax.random.split(jax.random.key(0)), "holds 2 random keys"),
        (jax.random.split(jax.random.PRNGKey(0), 3), "holds 3 random keys"),
        ("seed", "pass one random key"),
        (np.zeros(2), "pass one random key"),
    ],
)
def test_what_is_not_one_random_key_is_refused(key, reason):
    with pytest.raises(InputError, match=reason):
        explaining.explain(logits_of, WEIGHTS, X, [0, 1], method="smoothgrad", key=key)
