import jax
import jax.numpy as jnp
import pytest

from alignment.train import flops

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
W = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)


def layers(x, w):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, w)[0]


def test_products_in_a_loop_count_each_time():
    assert flops.count(layers, X, W) == 3 * 2 * 4 * 8 * 8


def test_backwards_costs_two_products_for_each_one_forwards():
    def loss(x, w):
        return layers(x, w).sum()

    assert flops.count(jax.grad(loss, argnums=(0, 1)), X, W) == 3 * flops.count(layers, X, W)


@pytest.mark.parametrize(
    ("fn", "products"),
    [
        (lambda x, w: jax.jit(layers)(x, w), 3),
        (lambda x, w: jax.vmap(lambda row: row @ w[0])(x), 1),
        (lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: layers(x, w), lambda: x @ w[0]), 3),
        (lambda x, w: jnp.einsum("bi,lij->blj", x, w), 3),
        (lambda x, w: jnp.tanh(x) * x, 0),
    ],
)
def test_programs_within_programs_and_batched_products_count(fn, products):
    assert flops.count(fn, X, W) == products * 2 * 4 * 8 * 8
