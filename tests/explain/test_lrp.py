"""Relevance of whole networks: what is conserved, what equals what, which networks are understood or refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import errors
from alignment.explain import composites, graph, layers, lrp, lrp_rules
from alignment.models import resnet

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 8, 8, 3)).astype(np.float32)
TARGETS = np.array([[0, 2], [1, 0], [2, 1]])


class Mixed(nn.Module):
    """Residual sum, concat, pools and nested modules; biases and batch norm on request."""

    use_bias: bool = False
    use_norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(Unit(6, self.use_bias, self.use_norm, name="stem")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(x + Unit(6, self.use_bias, self.use_norm, name="branch")(x))
        x = jnp.concatenate([x, nn.relu(Unit(4, self.use_bias, self.use_norm, name="side")(x))], axis=-1)
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(3, use_bias=self.use_bias, name="head")(x)


class Unit(nn.Module):
    width: int
    use_bias: bool
    use_norm: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), use_bias=self.use_bias, name="conv")(x)
        return nn.BatchNorm(use_running_average=True, name="bn")(x) if self.use_norm else x


def _shaken(variables, seed=1):
    """Weights, biases and statistics away from 0 and 1."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.2 * np.abs(rng.normal(size=leaf.shape)).astype("f") for leaf in leaves])


@pytest.fixture(scope="module")
def plain():
    model = Mixed()
    return model.apply, jax.jit(model.init)(jax.random.key(0), X)


@pytest.fixture(scope="module")
def normed():
    model = Mixed(use_bias=True, use_norm=True)
    return model.apply, _shaken(jax.jit(model.init)(jax.random.key(0), X))


def _explain(net, x=X, targets=TARGETS, **options):
    apply_fn, variables = net
    return jax.jit(lambda v, x, t: lrp.relevance(apply_fn, v, x, t, **options))(variables, x, targets)


def _gradients(apply_fn, variables):
    """x times the gradient of each target's logit."""

    def logit(x, targets_N):
        return jnp.sum(jnp.take_along_axis(apply_fn(variables, x), targets_N[:, None], axis=1))

    return jnp.stack([X * jax.jit(jax.grad(logit))(X, TARGETS[:, k]) for k in range(2)], axis=1)


def test_without_biases_lrp_zero_is_input_times_gradient_and_conserves(plain):
    apply_fn, variables = plain
    kind = composites.kind
    pairs = [(kind("conv", "dense"), lrp_rules.zero), (kind("sum", "avg_pool"), lrp_rules.proportional)]
    ours, delta = _explain(plain, composite=pairs, return_delta=True)
    np.testing.assert_allclose(ours, _gradients(apply_fn, variables), rtol=2e-3, atol=2e-4)
    assert ours.shape == (3, 2, 8, 8, 3)
    assert np.max(delta) < 1e-3


@pytest.mark.parametrize("name", ["epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1_flat"])
def test_without_biases_composites_conserve(plain, name):
    _, delta = _explain(plain, composite=name, return_delta=True)
    assert np.max(delta) < 2e-3


def test_sums_of_layers_show_where_relevance_stays(normed):
    apply_fn, variables = normed
    sums = jax.jit(lambda v: lrp.conservation(apply_fn, v, X, TARGETS, composite="epsilon_plus_flat"))(variables)
    logits = np.take_along_axis(np.asarray(apply_fn(variables, X)), TARGETS, axis=1)
    bias_share = np.abs(sums["head"] - logits) / np.abs(logits)
    assert np.max(bias_share) > 1e-3  # the head's bias keeps some
    np.testing.assert_allclose(sums["max_pool"], sums["activation"], rtol=1e-5)
    relevance = _explain(normed, composite="epsilon_plus_flat")
    np.testing.assert_allclose(sums["stem/conv"], relevance.sum((2, 3, 4)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(composites.COMPOSITES))
def test_jit_equals_eager_and_targets_and_batches_do_not_matter(normed, name):
    apply_fn, variables = normed
    together = _explain(normed, composite=name)
    assert np.all(np.isfinite(together)) and np.any(together)
    alone = _explain(normed, X[1:2], TARGETS[1:2, 1:], composite=name)
    np.testing.assert_allclose(together[1:2, 1:], alone, rtol=1e-3, atol=1e-5 * np.abs(together).max())
    if name == "epsilon_gamma_box":  # one is enough: eager compiles every primitive by itself
        eager = lrp.relevance(apply_fn, variables, X, TARGETS, composite=name)
        np.testing.assert_allclose(together, eager, rtol=1e-3, atol=1e-5 * np.abs(together).max())


def test_folding_batch_norm_leaves_the_logits_and_equals_a_network_with_the_folded_weights(normed):
    apply_fn, variables = normed
    assert lrp.check_fold(apply_fn, variables, X) < 1e-5
    folded = {"head": variables["params"]["head"]}
    for unit in ("stem", "branch", "side"):
        params, statistics = variables["params"][unit], variables["batch_stats"][unit]["bn"]
        scale = params["bn"]["scale"] / np.sqrt(statistics["var"] + 1e-5)
        bias = (params["conv"]["bias"] - statistics["mean"]) * scale + params["bn"]["bias"]
        folded[unit] = {"conv": {"kernel": params["conv"]["kernel"] * scale[None, None, None], "bias": bias}}
    expected = _explain((Mixed(use_bias=True).apply, {"params": folded}), composite="epsilon_plus_flat")
    np.testing.assert_allclose(_explain(normed), expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_fold_that_changes_the_logits_is_refused(normed, monkeypatch):
    monkeypatch.setattr(lrp, "_constants", lambda *_: (None, None))
    with pytest.raises(errors.InputError, match=r"folding batch norm .* changes the logits by .*float32"):
        lrp.check_fold(*normed, X)


def test_batch_norm_in_front_of_a_relu_takes_the_rule_of_affine_layers():
    def apply_fn(variables, x):
        return nn.relu(nn.BatchNorm(use_running_average=True).apply(variables, x)).mean((1, 2))

    variables = _shaken(nn.BatchNorm(use_running_average=True).init(jax.random.key(0), X))
    kinds = [layer.kind for layer in layers.read(graph.trace(apply_fn, variables, X))]
    assert kinds == ["affine", "activation", "avg_pool", "scale"]
    assert np.all(np.isfinite(_explain((apply_fn, variables))))


def test_residual_networks_are_read_whole():
    model = resnet.ResNet(num_classes=3, stage_sizes=(1, 1), width=4)
    variables = _shaken(jax.jit(model.init)(jax.random.key(0), X))
    traced = graph.trace(model.apply, variables, X)
    network = layers.read(traced)
    convs = {layer.name: layer for layer in network if layer.kind == "conv"}
    assert list(convs)[:3] == ["conv1", "layer1_0/conv1", "layer1_0/conv2"] and "layer2_0/downsample_conv" in convs
    assert all(layer.is_scaled for layer in convs.values())
    assert [name for name, layer in convs.items() if layer.is_first] == ["conv1"]
    assert [name for name, layer in convs.items() if not layer.is_nonnegative] == ["conv1"]
    assert not any(layer.kind in ("affine", "unknown") for layer in network)
    assert lrp.check_fold(model.apply, variables, X) < 1e-5
    assert np.all(np.isfinite(_explain((model.apply, variables), return_delta=True)[0]))


class Gated(nn.Module):
    """What EfficientNet and transformers are made of."""

    @nn.compact
    def __call__(self, x):
        x = nn.silu(nn.Conv(4, (3, 3), name="conv")(x))
        gate = nn.sigmoid(nn.Dense(4, name="excite")(nn.gelu(nn.Dense(2, name="squeeze")(x.mean((1, 2))))))
        x = x * gate[:, None, None]
        x = nn.Conv(4, (4, 4), (4, 4), name="patches")(nn.leaky_relu(x)).reshape(x.shape[0], -1, 4)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="norm")(x))
        return nn.Dense(3, name="head")(nn.hard_swish(nn.RMSNorm(name="last")(x))[:, 0])


def test_activations_gates_norms_and_attention_are_recognised():
    model = Gated()
    variables = _shaken(jax.jit(model.init)(jax.random.key(0), X))
    network = layers.read(graph.trace(model.apply, variables, X))
    kinds = [layer.kind for layer in network if layer.kind not in ("move", "scale")]
    assert kinds == [
        "conv", "activation", "avg_pool", "dense", "activation", "dense", "activation", "gate", "activation", "conv",
        "norm", "dense", "dense", "dense", "matmul", "softmax", "matmul", "dense", "sum", "norm", "activation", "dense",
    ]  # fmt: skip
    assert composites.default(network) == "attn_lrp"
    relevance = _explain((model.apply, variables), composite="auto")
    assert np.all(np.isfinite(relevance)) and np.any(relevance)


def test_all_relevance_of_a_gate_goes_to_the_signal():
    def apply_fn(w, x):
        pooled = x.mean((1, 2))
        return (x * nn.sigmoid(pooled @ w)[:, None, None]).sum((1, 2))

    w = RNG.normal(size=(3, 3)).astype(np.float32)
    relevance, delta = _explain((apply_fn, w), composite="epsilon", return_delta=True)
    others = np.arange(3)[None, None] != TARGETS[:, :, None]
    np.testing.assert_array_equal(np.abs(relevance).sum((2, 3))[others], 0)
    assert np.max(delta) < 1e-3


def test_a_layer_without_a_rule_is_named_and_takes_the_rule_that_is_given():
    def apply_fn(w, x):
        with jax.named_scope("mixing"):
            x = jnp.fft.fft2(x, axes=(1, 2)).real
        return jnp.maximum(x, 0).mean((1, 2)) @ w

    net = apply_fn, RNG.normal(size=(3, 3)).astype(np.float32)
    with pytest.raises(errors.InputError, match=r"mixing/unknown.*\(fft.*rules=\[\('mixing/unknown', lrp_rules.prop"):
        _explain(net)
    relevance = _explain(net, rules=[("mixing/*", lambda step, R: R.real)])
    assert relevance.shape == (3, 2, 8, 8, 3)


def test_the_first_pair_that_holds_decides(plain):
    doubled = [("stem/*", lambda step, R: 2 * lrp_rules.epsilon(step, R)), ("*/conv", lrp_rules.epsilon)]
    np.testing.assert_allclose(
        _explain(plain, composite=doubled), 2 * _explain(plain, composite="epsilon"), rtol=1e-4, atol=1e-5
    )
    seen = []
    _explain(plain, composite=[(lambda layer: seen.append(layer) or False, lrp_rules.epsilon)])
    stem = next(layer for layer in seen if layer.name == "stem/conv")
    assert (stem.kind, stem.is_first, stem.in_shape, stem.out_shape) == ("conv", True, (3, 8, 8, 3), (3, 8, 8, 6))


class Wrapped(nn.Module):
    """A module whose conv, norm and activation have names of their own."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
        return nn.relu(nn.Conv(4, (3, 3), name="after")(x))


class OfWrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3), name="grain_first")(Wrapped(name="grain")(x)))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def test_a_modules_path_holds_for_the_layers_with_weights_below_it():
    model = OfWrapped()
    net = model.apply, _shaken(jax.jit(model.init)(jax.random.key(0), X))
    taken = []

    def noted(step, R):
        taken.append(step.layer.name)
        return lrp_rules.flat(step, R)

    by_path = _explain(net, composite=[("grain", noted)])
    assert set(taken) == {"grain/Conv_0", "grain/after"}
    by_name = _explain(net, composite=[("grain/Conv_0", lrp_rules.flat), ("grain/after", lrp_rules.flat)])
    np.testing.assert_array_equal(by_path, by_name)
    assert not np.allclose(by_path, _explain(net, composite="epsilon"))
    taken.clear()
    _explain(net, composite=[("grain/Conv_0", noted)])
    assert set(taken) == {"grain/Conv_0"}
    with pytest.raises(errors.InputError, match=r"'grai' is not one of.*nearest is 'grain'"):
        _explain(net, composite=[("grai", noted)])


def test_a_modules_path_without_weights_below_it_holds_for_all_of_it():
    def apply_fn(w, x):
        with jax.named_scope("mixing"):
            x = jnp.fft.fft2(x, axes=(1, 2)).real
        return jnp.maximum(x, 0).mean((1, 2)) @ w

    net = apply_fn, RNG.normal(size=(3, 3)).astype(np.float32)
    rule = lambda step, R: R.real  # noqa: E731
    np.testing.assert_array_equal(*(_explain(net, rules=[(name, rule)]) for name in ("mixing", "mixing/*")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(composite="epsilon_minus"), "'epsilon_minus' is not one of: epsilon, epsilon_plus"),
        (
            dict(targets=np.array([0, 1, 2])),
            r"targets of shape \(3,\) do not fit 3 images; need classes \[N, K\]",
        ),
        (dict(targets=np.array([[0], [3], [1]])), "target 3 is not a class; the network has classes 0 to 2"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(plain, options, message):
    options = {"targets": TARGETS, **options}
    with pytest.raises(errors.InputError, match=message):
        lrp.relevance(*plain, X, options.pop("targets"), **options)


class Gram(nn.Module):
    """Second-order pooling, in one of its spellings."""

    spelling: str

    @nn.compact
    def __call__(self, x):
        f_NTC = nn.relu(nn.Conv(4, (3, 3), use_bias=False)(x)).reshape(len(x), -1, 4)
        if self.spelling == "gram":
            pooled = jnp.einsum("nti,ntj->nij", f_NTC, f_NTC)
        elif self.spelling == "matmul":
            pooled = f_NTC.swapaxes(1, 2) @ f_NTC
        elif self.spelling == "tokens":
            pooled = jnp.einsum("nti,nsi->nts", f_NTC, f_NTC)
        elif self.spelling == "two views":
            pooled = jnp.einsum("nti,ntj->nij", 2 * f_NTC, nn.relu(f_NTC))
        else:
            pooled = (f_NTC[..., None] * f_NTC[..., None, :]).sum(1)
        return nn.Dense(3, use_bias=False)(pooled.reshape(len(x), -1))


@pytest.mark.parametrize("spelling", ["gram", "matmul", "tokens", "two views", "outer product"])
def test_second_order_pooling_is_explained_and_conserved(spelling):
    x = jax.random.uniform(jax.random.key(0), (2, 6, 6, 3), minval=-1, maxval=1)
    net = Gram(spelling)
    variables = net.init(jax.random.key(1), x)
    R, delta = lrp.relevance(
        net.apply, variables, x, jnp.array([[0, 1], [2, 0]]), composite="epsilon", return_delta=True
    )
    assert np.isfinite(R).all()
    np.testing.assert_allclose(delta, 0, atol=1e-3)
