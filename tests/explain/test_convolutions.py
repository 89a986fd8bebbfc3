"""Fast forms give the numbers of lax.  Dimensions: N images, Y X rows and columns, C channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from alignment.explain import convolutions


def equation(fn, *arrays):
    """Parameters of the one equation that `fn` is."""
    (eqn,) = [
        e for e in jax.make_jaxpr(fn)(*arrays).eqns if e.primitive.name in ("conv_general_dilated", "reduce_window_max")
    ]
    return eqn.params


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding", "channels"),
    [
        ((12, 10), (7, 7), (2, 2), ((3, 3), (3, 3)), 3),  # a stem: by phases
        ((11, 9), (3, 2), (2, 3), ((1, 0), (0, 2)), 3),  # nothing divides, sides differ
        ((9, 9), (1, 1), (2, 2), ((0, 0), (0, 0)), 3),  # most inputs are never read
        ((10, 7), (11, 11), (4, 4), ((2, 2), (2, 2)), 3),  # a window beyond the image
        ((8, 9), (3, 3), (2, 2), ((1, 1), (1, 1)), 20),  # with zeros in between
        ((8, 9), (3, 3), (1, 1), ((1, 1), (0, 2)), 4),
    ],
)
def test_a_transposed_convolution_is_the_vjp_of_lax(size, window, strides, padding, channels):
    x_NYXC, kernel = normal(2, *size, channels), normal(*window, channels, 5, seed=1)

    def forward(x):
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    out, pullback = jax.vjp(forward, x_NYXC)
    params = equation(forward, x_NYXC)
    assert convolutions.is_plain(params)
    gradient = normal(*out.shape, seed=2)
    got = convolutions.transposed(gradient, kernel, params, x_NYXC.shape)
    np.testing.assert_allclose(got, pullback(gradient)[0], atol=2e-5)
    np.testing.assert_array_equal(convolutions.conv(x_NYXC, kernel, params), out)


def test_groups_dilation_and_other_layouts_take_the_general_way():
    for names, x, kernel, options in [
        (("NHWC", "HWIO", "NHWC"), normal(2, 6, 6, 4), normal(3, 3, 2, 4, seed=1), {"feature_group_count": 2}),
        (("NHWC", "HWIO", "NHWC"), normal(2, 8, 8, 3), normal(3, 3, 3, 4, seed=1), {"rhs_dilation": (2, 2)}),
        (("NCHW", "OIHW", "NCHW"), normal(2, 3, 6, 6), normal(4, 3, 3, 3, seed=1), {}),
    ]:

        def forward(x, names=names, kernel=kernel, options=options):
            return lax.conv_general_dilated(x, kernel, (2, 1), "SAME", dimension_numbers=names, **options)

        out, pullback = jax.vjp(forward, x)
        params = equation(forward, x)
        assert not convolutions.is_plain(params)
        gradient = normal(*out.shape, seed=2)
        got = convolutions.transposed(gradient, kernel, params, x.shape)
        np.testing.assert_allclose(got, pullback(gradient)[0], atol=1e-5)


def test_a_transposed_convolution_takes_more_gradients_than_images():
    x, kernel = normal(1, 6, 6, 3), normal(3, 3, 3, 4, seed=1)
    params = equation(
        lambda x: lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")), x
    )
    gradients = normal(4, 3, 3, 4, seed=2)
    together = convolutions.transposed(gradients, kernel, params, x.shape)
    for i in range(4):
        alone = convolutions.transposed(gradients[i : i + 1], kernel, params, x.shape)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [
        ((8, 10), (3, 3), (2, 2), ((1, 1), (1, 1))),
        ((7, 9), (2, 2), (2, 2), ((0, 0), (0, 0))),  # the last row and column are in no window
        ((9, 8), (3, 2), (1, 3), ((0, 1), (1, 0))),
        ((4, 4), (4, 4), (4, 4), ((0, 0), (0, 0))),
    ],
)
def test_max_pooling_and_its_gradient_are_those_of_lax_also_for_equals(size, window, stride, padding):
    x_NYXC = jnp.maximum(jnp.round(normal(2, *size, 3)), 0)  # many equals, as after a ReLU

    def forward(x):
        pads = ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), pads)

    out, pullback = jax.vjp(forward, x_NYXC)
    params = equation(forward, x_NYXC)
    assert convolutions.is_plain_pool(params)
    best, winner = convolutions.winners(x_NYXC, params)
    np.testing.assert_array_equal(best, out)
    np.testing.assert_array_equal(convolutions.max_pool(x_NYXC, params), out)
    gradient = normal(*out.shape, seed=2)
    got = convolutions.unpool(gradient, winner, params, x_NYXC.shape)
    np.testing.assert_allclose(got, pullback(gradient)[0], atol=1e-5)
    _, own_pullback = jax.vjp(lambda x: convolutions.max_pool(x, params), x_NYXC)
    np.testing.assert_array_equal(own_pullback(gradient)[0], got)


@pytest.mark.parametrize("first", [np.inf, -np.inf, np.nan, 3e7, -0.0])
def test_no_first_gradient_of_a_max_pool_changes_the_others(first):
    params = equation(
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"), normal(1, 4, 4, 1)
    )
    _, winner = convolutions.winners(normal(1, 4, 4, 1), params)
    gradient = normal(1, 2, 2, 1, seed=1)
    got = convolutions.unpool(gradient.at[0, 0, 0, 0].set(first), winner, params, (1, 4, 4, 1))
    want = convolutions.unpool(gradient, winner, params, (1, 4, 4, 1))
    np.testing.assert_array_equal(got[:, 2:], want[:, 2:])
    assert float(jnp.nansum(jnp.abs(got[:, 2:]))) > 0


@pytest.mark.parametrize("num_channels", [1, 3, 4, 5])
def test_the_sum_over_channels_is_numpys_however_many_there_are(num_channels):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, num_channels)).astype(np.float32)
    np.testing.assert_allclose(convolutions.channel_sum(jnp.asarray(x)), x.sum(-1), rtol=1e-6, atol=1e-6)
