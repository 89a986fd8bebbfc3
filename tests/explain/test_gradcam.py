"""GradCAM and GradCAM++: worked numbers, slow twins, layers by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import gradcam, graph
from alignment.models import vision
from tests.explain import nets


def slow_focus(map_YX, labels, target):
    """Positive relevance on the target's quadrants over all of it; labels top-left, top-right, bottom-left, -right."""
    positive = np.maximum(np.asarray(map_YX, np.float64), 0)
    half = [s // 2 for s in positive.shape]
    quadrants = [q for rows in np.split(positive, [half[0]]) for q in np.split(rows, [half[1]], axis=1)]
    return sum(q.sum() for q, label in zip(quadrants, labels) if label == target) / positive.sum()


def slow_resize(map_IJ, height, width):
    """Bilinear with half-pixel centres, edges repeated; one pixel at a time."""
    rows, columns = map_IJ.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = np.clip((y + 0.5) * rows / height - 0.5, 0, rows - 1)
            u = np.clip((x + 0.5) * columns / width - 0.5, 0, columns - 1)
            v0, u0 = int(v), int(u)
            v1, u1 = min(v0 + 1, rows - 1), min(u0 + 1, columns - 1)
            top = map_IJ[v0, u0] * (1 - (u - u0)) + map_IJ[v0, u1] * (u - u0)
            bottom = map_IJ[v1, u0] * (1 - (u - u0)) + map_IJ[v1, u1] * (u - u0)
            out[y, x] = top * (1 - (v - v0)) + bottom * (v - v0)
    return out


def resized(map_IJ, height, width):
    return np.asarray(gradcam.resize(jnp.asarray(map_IJ)[None, None], height, width))[0, 0]


def cells(size, labels):
    """1 on cells whose centre lies on a target tile; ties belong to the right and the bottom."""
    is_second = (np.arange(size) + 0.5) / size >= 0.5
    tile = 2 * is_second[:, None] + is_second[None]
    return np.isin(tile, [i for i, label in enumerate(labels) if label == 7]).astype(np.float32)


@pytest.mark.parametrize(
    ("size", "labels", "ceiling"),
    [(14, [7, 7, 2, 5], 0.982143), (14, [7, 2, 5, 7], 0.964923), (13, [7, 2, 5, 7], 0.923543)],
)
def test_a_perfect_coarse_map_leaks_over_the_border_when_resized(size, labels, ceiling):
    assert slow_focus(resized(cells(size, labels), 448, 448), labels, 7) == pytest.approx(ceiling, abs=1e-6)


def test_resizing_has_half_pixel_centres():
    got = resized(jnp.array([[1.0, 0.0], [0.0, 0.0]]), 4, 4)
    np.testing.assert_allclose(got[0], [1, 0.75, 0.25, 0], atol=1e-7)
    assert slow_focus(got, [7, 2, 5, 3], 7) == pytest.approx(0.765625)
    coarse = np.random.default_rng(0).normal(size=(3, 5))
    for height, width in ((12, 10), (7, 11), (3, 5)):
        np.testing.assert_allclose(
            resized(np.float32(coarse), height, width), slow_resize(coarse, height, width), atol=1e-5
        )


def test_the_worked_gradcam_map_has_its_focus():
    activation = jnp.array([[[1.0, 4.0], [2.0, 3.0]], [[3.0, 2.0], [4.0, 1.0]]])[None]
    map_IJ = jnp.maximum(gradcam.weighted(activation, jnp.array([[[0.5, -0.25]]])), 0)[0, 0]
    np.testing.assert_allclose(map_IJ, [[0, 0.25], [1, 1.75]])
    assert slow_focus(map_IJ, [7, 2, 5, 7], 7) == pytest.approx(0.583333, abs=1e-6)


def test_the_worked_gradcam_plus_plus_weight():
    activation = jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    weights = gradcam.plus_plus_weights(activation, jnp.full((1, 1, 2, 2, 1), 0.5))
    assert float(weights[0, 0, 0]) == pytest.approx(0.285714, abs=1e-6)  # four times 0.5 * 0.142857
    assert not gradcam.plus_plus_weights(activation, jnp.zeros((1, 1, 2, 2, 1))).any()


def test_the_order_of_scaling_and_rectifying_in_gradcam_plus_plus_matters():
    """The raw map is 4 x the image, through a network whose layer is a multiple of the image."""

    def network(_, x):
        doubled = 2.0 * x
        return doubled.sum((1, 2)), {"layer": doubled}

    x = jnp.array([[2.0, -1.0], [-1.0, 0.0]])[None, :, :, None]
    explain = functools.partial(
        gradcam.gradcam_plus_plus, network, jnp.ones(()), x, jnp.zeros((1, 1), int), layer="layer"
    )
    np.testing.assert_allclose(explain()[0, 0], [[1, 0], [0, 1 / 3]], atol=1e-6)
    assert slow_focus(explain()[0, 0], [7, 7, 2, 5], 7) == pytest.approx(0.75)
    assert slow_focus(explain(relu=True)[0, 0], [7, 7, 2, 5], 7) == pytest.approx(1.0)


def slow_gradcam(activation, score, plus_plus):
    """Eq. 1 and 2 with the gradient by central differences of `score`, in float64."""
    gradient = np.zeros_like(activation)
    for index in np.ndindex(activation.shape):
        bump = np.zeros_like(activation)
        bump[index] = 1e-5
        gradient[index] = (score(activation + bump) - score(activation - bump)) / 2e-5
    weights = gradient.mean((0, 1))
    if plus_plus:
        total = activation.sum((0, 1))  # of each channel
        alpha = gradient**2 / (2 * gradient**2 + total[None, None] * gradient**3 + 1e-6)
        weights = (np.maximum(gradient, 0) * alpha).sum((0, 1))
    return (activation * weights).sum(-1)


@pytest.mark.parametrize("plus_plus", [False, True])
def test_both_methods_are_their_equations_with_numerical_gradients(plus_plus):
    rng = np.random.default_rng(1)
    mix, hidden, out = rng.normal(size=(3, 4)), rng.normal(size=(4, 6)), rng.normal(size=(6, 3))

    def network(w, x):
        layer = jax.nn.relu(jnp.einsum("nyxc,cd->nyxd", x, w["mix"]))
        return jnp.tanh((layer**2).mean((1, 2)) @ w["hidden"]) @ w["out"], {"maps": layer}

    x = rng.normal(size=(2, 3, 4, 3))
    targets = np.array([[0, 2], [1, 1]])
    variables = {name: jnp.float32(w) for name, w in (("mix", mix), ("hidden", hidden), ("out", out))}
    method = gradcam.gradcam_plus_plus if plus_plus else gradcam.gradcam
    got = method(network, variables, jnp.float32(x), jnp.array(targets), scale=False, relu=False)
    for i in range(2):
        activation = np.maximum(x[i] @ mix, 0)
        for k, target in enumerate(targets[i]):

            def score(a, target=target):
                return np.tanh((a**2).mean((0, 1)) @ hidden) @ out[:, target]

            expected = slow_gradcam(activation, score, plus_plus)
            np.testing.assert_allclose(got[i, k], expected, rtol=2e-3 if plus_plus else 1e-4, atol=1e-5)


def test_only_the_network_after_the_layer_is_differentiated():
    """Both convolutions lie at or before the layer: none is transposed, and each occurs once for four targets."""
    network, variables, x, _ = nets.made(nets.Small())
    targets = jnp.zeros((len(x), 4), int)
    program = jax.make_jaxpr(lambda x: gradcam.gradcam(network, variables, x, targets))(x)
    assert str(program).count("conv_general_dilated[") == 2


def test_the_last_spatial_activation_is_the_default_layer():
    network, variables, x, targets = nets.made(nets.Small())
    default = gradcam.gradcam(network, variables, x, targets)
    np.testing.assert_array_equal(default, gradcam.gradcam(network, variables, x, targets, layer="layer1"))
    assert np.abs(default - gradcam.gradcam(network, variables, x, targets, layer="stem")).max() > 0.05


def test_a_users_own_module_is_explained_by_module_path():
    network, variables, x, targets = nets.made(nets.Plain())
    default = gradcam.gradcam(network, variables, x, targets)
    np.testing.assert_array_equal(default, gradcam.gradcam(network, variables, x, targets, layer="activation1"))
    with pytest.raises(InputError, match=r"'grian' is not one of.*answer.*nearest is 'grain'"):
        gradcam.gradcam(network, variables, x, targets, layer="grian")
    with pytest.raises(InputError, match=r"'answer' is \(3, 3\); GradCAM needs"):
        gradcam.gradcam(network, variables, x, targets, layer="answer")


def test_tokens_become_a_grid_without_those_in_front():
    assert gradcam.grid(197, 224, 224) == (14, 14)
    assert gradcam.grid(8, 32, 64) == (2, 4)
    assert gradcam.grid(10, 32, 64) == (2, 4)
    with pytest.raises(InputError, match="do not form a grid of square patches"):
        gradcam.grid(15, 224, 224)
    tokens = jnp.arange(2 * 5 * 3).reshape(2, 5, 3)
    np.testing.assert_array_equal(gradcam.as_grid(tokens, 8, 8, 1), tokens[:, 1:].reshape(2, 2, 2, 3))


def test_a_network_of_blocks_of_tokens_is_read_before_its_last_block():
    def network(variables, x):
        patches = x.reshape(len(x), 2, 4, 2, 4, 3).mean((2, 4))
        tokens = jnp.concatenate([jnp.zeros((len(x), 1, 3)), patches.reshape(len(x), 4, 3)], axis=1)
        activations = {"patches": patches}
        for i in range(3):
            weights = jnp.broadcast_to(jax.nn.softmax(variables), (len(x), 1, 5, 5))
            tokens = tokens + jnp.tanh(jnp.einsum("nts,nsd->ntd", weights[:, 0], tokens))
            activations |= {f"attention{i}": weights, f"block{i}": tokens}
        return tokens[:, 0], activations

    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    variables = jnp.arange(25.0).reshape(5, 5) / 9
    assert gradcam.default_layer(graph.trace(network, variables, x)) == "block1"
    maps = gradcam.gradcam(network, variables, x, jnp.array([[0], [1]]), relu=False)
    assert maps.shape == (2, 1, 8, 8) and np.asarray(maps.max((1, 2, 3))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4"), ("vgg11", "block5"), ("alexnet", "block3"), ("cnn", "block3")]
)
def test_the_papers_layer_is_the_default_of_its_networks(name, layer):
    """The last block of ResNet-18, the last max-pool of VGG and AlexNet; nothing is computed to find it."""
    net = vision.network(name, num_classes=3)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x), x)
    assert gradcam.default_layer(graph.trace(net.apply, variables, x, keep_custom=True)) == layer


def conv(x, kernel, order="NHWC"):
    spec = (order, "HWIO", order)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=spec)


class Dark(nn.Module):
    """Class 0 has -mean(act(a)): nothing speaks for it."""

    after: str

    @nn.compact
    def __call__(self, x):
        h = nn.Conv(1, (1, 1), use_bias=False, kernel_init=lambda *_: jnp.ones((1, 1, 3, 1)) / 3)(x)
        h = {
            "relu": nn.relu,
            "max": lambda h: jnp.maximum(h, 0),
            "scaled": lambda h: nn.relu(h * 2),
            "sum": lambda h: nn.relu(h + x[..., :1]),
            "pool": lambda h: nn.max_pool(nn.relu(h), (2, 2), (2, 2)),
        }[self.after](h)
        return nn.Dense(2, use_bias=False, kernel_init=lambda *_: jnp.array([[-1.0, 1.0]]))(h.mean((1, 2)))


@pytest.mark.parametrize("after", ["relu", "max", "scaled", "sum", "pool"])
def test_the_default_layer_is_taken_after_a_relu_that_is_a_function(after):
    x = jnp.ones((1, 8, 8, 3)).at[:, 4:].set(-1)
    net = Dark(after)
    variables = net.init(jax.random.key(0), x)
    maps = gradcam.gradcam(net.apply, variables, x, jnp.array([[0, 1]]))
    np.testing.assert_array_equal(maps[0, 0], 0)
    assert maps[0, 1, :3].min() == 1 and maps[0, 1, 5:].max() == 0


def nameless(variables, x):
    kernel_1, kernel_2, head = variables
    h = jax.nn.relu(conv(x, kernel_1))
    return jax.nn.silu(conv(h, kernel_2)).mean((1, 2)) @ head


def test_layers_without_names_are_numbered_and_the_last_is_the_default():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (3, 3, 3, 4), (3, 3, 4, 4), (4, 2)
    variables = tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3), minval=-1)
    targets = jnp.array([[0], [1]])
    default = gradcam.gradcam(nameless, variables, x, targets)

    def with_feature(variables, x):
        h = jax.nn.silu(conv(jax.nn.relu(conv(x, variables[0])), variables[1]))
        return h.mean((1, 2)) @ variables[2], {"feature": h}

    np.testing.assert_allclose(default, gradcam.gradcam(with_feature, variables, x, targets), atol=1e-5)
    np.testing.assert_array_equal(default, gradcam.gradcam(nameless, variables, x, targets, layer="activation1"))
    assert not np.allclose(default, gradcam.gradcam(nameless, variables, x, targets, layer="activation0"))
    with pytest.raises(InputError, match="activation0, activation1"):
        gradcam.gradcam(nameless, variables, x, targets, layer="block7")
    with pytest.raises(InputError, match=r"return one beside the logits: \(logits, {'feature': h}\)"):
        gradcam.gradcam(lambda v, x: x.mean((1, 2)) @ v[0][0, 0], variables, x, targets)


@pytest.mark.parametrize(("size", "channels"), [((8, 8), 5), ((8, 8), 8), ((8, 12), 30), ((6, 4), 6)])
@pytest.mark.parametrize("is_returned", [True, False])
def test_activations_with_channels_first_are_refused(size, channels, is_returned):
    def net(variables, x):
        h = jax.nn.relu(conv(x.transpose(0, 3, 1, 2), variables[0], "NCHW"))
        logits = h.mean((2, 3)) @ variables[1]
        return (logits, {"feature": h}) if is_returned else logits

    variables = jnp.ones((3, 3, 3, channels)), jnp.ones((channels, 2))
    with pytest.raises(InputError, match="channels last"):
        gradcam.gradcam(net, variables, jnp.ones((1, *size, 3)), jnp.array([[0]]))


def test_channels_turned_last_and_grids_without_padding_are_taken():
    def net(variables, x):
        h = jax.nn.relu(conv(x.transpose(0, 3, 1, 2), variables[0], "NCHW")).transpose(0, 2, 3, 1)[:, 2:-2, 2:-2]
        return h.mean((1, 2)) @ variables[1], {"feature": h}

    variables = jnp.ones((3, 3, 3, 5)), jnp.ones((5, 2))
    assert gradcam.gradcam(net, variables, jnp.ones((1, 8, 16, 3)), jnp.array([[0]])).shape == (1, 1, 8, 16)
