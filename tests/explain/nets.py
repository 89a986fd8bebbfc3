"""Small linen networks for the tests of explanations."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Small(nn.Module):
    """Two convolutions, a residual sum, a max-pool and a dense head; returns its activations."""

    classes: int = 5

    @nn.compact
    def __call__(self, x_NYXC):
        x = first = nn.relu(nn.Conv(6, (3, 3), name="conv1")(x_NYXC))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = layer1 = nn.relu(x + nn.Conv(6, (3, 3), name="conv2")(x))
        return nn.Dense(self.classes, name="head")(x.mean((1, 2))), {"stem": first, "layer1": layer1}


class Plain(nn.Module):
    """A user's own network: no activations, other names, GELU and ReLU."""

    @nn.compact
    def __call__(self, x_NYXC):
        x = nn.gelu(nn.Conv(4, (3, 3), name="grain")(x_NYXC))
        x = nn.relu(nn.Conv(4, (3, 3), name="shape")(x))
        return nn.Dense(3, name="answer")(x.reshape(len(x), -1))


def made(net, *, images=3, size=8, seed=0):
    """apply_fn, variables, images [N, Y, X, 3] in [-1, 1] and targets [N, 2]."""
    x = jax.random.uniform(jax.random.key(seed), (images, size, size, 3), minval=-1, maxval=1)
    variables = jax.jit(lambda key, x: net.init(key, x))(jax.random.key(seed + 1), x)  # `net` may have no hash
    return net.apply, variables, x, jnp.array([[0, 1], [2, 0], [1, 2], [0, 2]])[:images]
