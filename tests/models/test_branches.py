import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import branches

PLAIN = "b01f_01io->b01f"  # as XLA's CPU library of convolutions wants them


@jax.custom_jvp
def clipped(x):
    return jnp.maximum(x, 0)


clipped.defjvp(lambda primals, tangents: (clipped(primals[0]), tangents[0] * (primals[0] > 0)))


def loss(params, x, **options):
    out = jax.jit(lambda x: conv(x, params["first"]))(x)  # a call that holds a convolution
    return jnp.sum(jnp.sin(conv(clipped(out), params["second"], **options)) ** 2)


def conv(x, kernel, strides=(1, 1), **options):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=names, **options)


def tangent(params, x, **options):
    """Forward-mode and reverse-mode at once: a gradient along itself."""
    gradient = jax.grad(loss)(params, x, **options)
    return gradient, jax.jvp(lambda p: loss(p, x, **options), (params,), (gradient,))[1]


@pytest.mark.parametrize(
    "options", [{}, {"strides": (2, 2)}, {"rhs_dilation": (2, 2)}, {"feature_group_count": 2}], ids=str
)
def test_convolutions_of_a_branch_and_of_a_loop_are_plain_and_the_numbers_stay(options):
    rng, groups = np.random.default_rng(0), options.get("feature_group_count", 1)
    params = {"first": jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32) / 5}
    params["second"] = jnp.asarray(rng.normal(size=(3, 3, 4 // groups, 6)), jnp.float32) / 5
    x = jnp.asarray(rng.normal(size=(2, 3, 7, 6, 3)), jnp.float32)

    def one(params, x):
        return tangent(params, x, **options)

    def branched(params, x, fn):
        nothing = lambda params, x: jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, params, x))  # noqa: E731
        return jax.lax.cond(jnp.sum(x) > -1e9, fn, nothing, params, x)

    def looped(params, x, fn):
        return jax.lax.map(lambda x: fn(params, x), x)

    for program, given in ((branched, x[0]), (looped, x)):
        compiled = jax.jit(program, static_argnums=2).lower(params, given, branches.fast(one)).compile()
        if groups == 1:  # those in groups get an axis more
            assert set(re.findall(r"dim_labels=(\S+?)[, ]", compiled.as_text())) == {PLAIN}
        got, wanted = compiled(params, given), program(params, given, one)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, wanted)


def test_what_holds_no_convolution_is_computed_as_before():
    def fn(x, y):
        return {"sum": clipped(x) + y}, jax.jit(jnp.sin)(x)

    x = jnp.linspace(-1, 1, 5)
    jax.tree.map(np.testing.assert_array_equal, branches.fast(fn)(x, 2.0), fn(x, 2.0))
