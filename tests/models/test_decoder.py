import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import attention, decoder
from alignment.train import sharding, train_state

TINY = {"vocab_size": 64, "num_layers": 3, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}
EVERYTHING = dict(
    **TINY,
    head_dim=12,
    qkv_bias=True,
    qk_norm=True,
    tie_embeddings=False,
    sliding_window=4,
    layer_types=("full_attention", "sliding_attention", "full_attention"),
)


@functools.cache
def make(**kwargs):
    """A model, and parameters in which nothing is at its starting zero or one."""
    model = decoder.DecoderLM(**{**TINY, **kwargs})
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), nn.meta.unbox(params))


def ids(B, T, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, TINY["vocab_size"], (B, T)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, *row):
    return model.apply({"params": params}, *row)


def slow_forward(params, tokens_T, c):
    """One row, one head, one layer after another, in float64: pre-norm Llama with biases, head norms and windows."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def rope(x_K, position):
        J = len(x_K) // 2
        out = np.zeros_like(x_K)
        for j in range(J):
            angle = position * 10_000.0 ** (-j / J)
            out[j] = x_K[j] * np.cos(angle) - x_K[j + J] * np.sin(angle)
            out[j + J] = x_K[j + J] * np.cos(angle) + x_K[j] * np.sin(angle)
        return out

    x_TD, T = p["embedding"][tokens_T], len(tokens_T)
    for i in range(c["num_layers"]):
        w = {name: x[i] for name, x in p["layers"].items()}
        window = c["sliding_window"] if c["layer_types"][i] == "sliding_attention" else T
        normed_TD, mixed = norm(x_TD, w["attention_norm"]), np.zeros((T, c["num_heads"], c["head_dim"]))
        for h in range(c["num_heads"]):
            g = h // (c["num_heads"] // c["num_kv_heads"])
            q = norm(normed_TD @ w["query"][:, h] + w["query_bias"][h], w["query_norm"])
            k = norm(normed_TD @ w["key"][:, g] + w["key_bias"][g], w["key_norm"])
            v = normed_TD @ w["value"][:, g] + w["value_bias"][g]
            q, k = (np.stack([rope(x[t], t) for t in range(T)]) for x in (q, k))
            for t in range(T):
                seen = range(max(0, t - window + 1), t + 1)
                scores = np.array([q[t] @ k[s] / np.sqrt(c["head_dim"]) for s in seen])
                weights = np.exp(scores - scores.max())
                mixed[t, h] = sum(weight * v[s] for weight, s in zip(weights / weights.sum(), seen))
        x_TD = x_TD + np.einsum("thk,hkd->td", mixed, w["out"])
        normed_TD = norm(x_TD, w["mlp_norm"])
        gate = normed_TD @ w["gate"]
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * (normed_TD @ w["up"])) @ w["down"]
    return norm(x_TD, p["final_norm"])


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_scanned_layers_equal_a_loop_over_layers_heads_and_positions(kernel):
    model, params = make(**EVERYTHING, attention=kernel)
    tokens_BT = ids(2, 9)
    expected = np.stack([slow_forward(params, np.asarray(row), EVERYTHING) for row in tokens_BT])
    np.testing.assert_allclose(run(model, params, tokens_BT), expected, atol=2e-5)


@pytest.mark.parametrize("T", [5, 65, 300])
def test_blocked_attention_equals_dense_in_value_and_gradient(T):
    rng = np.random.default_rng(T)
    q, k, v = (jnp.asarray(rng.normal(size=(2, T, heads, 8)), jnp.float32) for heads in (6, 2, 2))
    w = jnp.asarray(rng.normal(size=q.shape), jnp.float32)
    places = {
        "positions": jnp.broadcast_to(jnp.arange(T)[None], (2, T)),
        "groups": jnp.asarray(np.sort(rng.integers(0, 3, (2, T)), axis=1)),  # with padding, whose rows see nothing
        "branches": jnp.zeros((2, T), jnp.int32),
    }
    seen = attention.visible(places, places, window=40)

    def loss(kernel):
        return lambda q, k, v: jnp.sum(kernel(q, k, v, seen) * w * (places["groups"] > 0)[:, :, None, None])

    got, expected = (
        jax.jit(jax.value_and_grad(loss(f), argnums=(0, 1, 2)))(q, k, v) for f in (attention.blocked, attention.dense)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-5), got, expected)


def test_visibility_is_the_rule_written_out():
    rng = np.random.default_rng(0)
    places = {name: rng.integers(0, 3, (2, 12)) for name in ("positions", "groups", "branches")}
    got = attention.visible(places, places, window=2)
    for b, i, j in np.ndindex(2, 12, 12):
        group, position, branch = (places[name][b] for name in ("groups", "positions", "branches"))
        expected = group[i] == group[j] != 0 and 0 <= position[i] - position[j] < 2 and branch[j] in (0, branch[i])
        assert got[b, i, j] == expected


def test_no_token_changes_an_earlier_hidden_state():
    model, params = make(**EVERYTHING)
    tokens = ids(1, 10)
    changed = tokens.at[0, 6].add(1)
    before, after = run(model, params, tokens), run(model, params, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.all(np.abs(before - after)[0, 6:].max(-1) > 1e-4)


def test_packed_groups_equal_separate_runs():
    model, params = make(**EVERYTHING)
    a, b = ids(1, 7, seed=1), ids(1, 5, seed=2)
    tokens = jnp.concatenate([a, b, jnp.zeros((1, 3), jnp.int32)], axis=1)
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(5), jnp.zeros(3, int)])[None]
    groups = jnp.array([[1] * 7 + [2] * 5 + [0] * 3])
    packed = run(model, params, tokens, positions, groups)
    np.testing.assert_allclose(packed[:, :7], run(model, params, a), atol=1e-5)
    np.testing.assert_allclose(packed[:, 7:12], run(model, params, b), atol=1e-5)


def test_branches_of_a_trunk_equal_separate_sequences_in_value_and_gradient():
    model, params = make(qkv_bias=True)
    trunk, chosen, rejected = ids(1, 6, seed=1), ids(1, 4, seed=2), ids(1, 3, seed=3)
    tokens = jnp.concatenate([trunk, chosen, rejected], axis=1)
    positions = jnp.concatenate([jnp.arange(6), 6 + jnp.arange(4), 6 + jnp.arange(3)])[None]
    branches = jnp.array([[0] * 6 + [1] * 4 + [2] * 3])

    def shared(params):
        return run(model, params, tokens, positions, jnp.ones_like(tokens), branches)

    def separate(params):
        first = run(model, params, jnp.concatenate([trunk, chosen], axis=1))
        second = run(model, params, jnp.concatenate([trunk, rejected], axis=1))
        return jnp.concatenate([first, second[:, 6:]], axis=1)

    np.testing.assert_allclose(shared(params), separate(params), atol=1e-5)
    got, expected = (
        jax.jit(jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p)[:, 6:]))))(params) for f in (shared, separate)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model, params = make(**EVERYTHING)
    tokens = ids(1, 6)
    pad = ((0, 0), (3, 0) if side == "left" else (0, 3))
    real = slice(3, None) if side == "left" else slice(0, 6)
    padded = [jnp.pad(x, pad) for x in (tokens, jnp.arange(6)[None], jnp.ones((1, 6), jnp.int32))]
    np.testing.assert_allclose(run(model, params, *padded)[:, real], run(model, params, tokens), atol=1e-5)


def test_a_row_of_padding_gives_finite_values_and_gradients():
    model, params = make(**EVERYTHING)
    groups = jnp.zeros((1, 6), jnp.int32)
    value, grads = jax.value_and_grad(lambda p: jnp.sum(run(model, p, ids(1, 6), None, groups)))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_a_window_hides_exactly_what_lies_beyond_it():
    model, params = make(num_layers=1, sliding_window=3)
    tokens = ids(1, 8)
    difference = np.abs(run(model, params, tokens) - run(model, params, tokens.at[0, 2].add(1)))[0].max(-1)
    assert (difference > 0).tolist() == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize("remat", [name for name in decoder.REMAT if name != "none"])
def test_rematerialisation_changes_no_gradient(remat):
    model, params = make(**EVERYTHING)

    def grads(model):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(run(model, p, ids(2, 8))))))(params)

    got, expected = grads(model.clone(remat=remat)), grads(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), got, expected)


def test_unrolling_keeps_the_parameters_and_the_result():
    model, params = make(**EVERYTHING)
    unrolled = model.clone(unroll=3)
    np.testing.assert_allclose(run(unrolled, params, ids(2, 8)), run(model, params, ids(2, 8)), atol=1e-5)


def test_bfloat16_compute_stays_near_float32():
    model, params = make(**EVERYTHING)
    low = run(model.clone(dtype="bfloat16"), params, ids(2, 8))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), run(model, params, ids(2, 8)), atol=0.15)  # 8 bits of mantissa


def test_tied_logits_are_products_with_the_embedding():
    model, params = make(tie_embeddings=True)
    hidden = run(model, params, ids(1, 3))
    expected = np.einsum("btd,vd->btv", np.asarray(hidden, np.float64), np.asarray(params["embedding"], np.float64))
    np.testing.assert_allclose(decoder.logits(model, params, hidden), expected, atol=1e-4)
    assert "head" not in params


def test_every_parameter_names_its_axes_and_layers_come_first():
    model = decoder.DecoderLM(**EVERYTHING)
    boxed = jax.eval_shape(model.init, jax.random.key(0), ids(1, 4))["params"]
    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    for path, box in jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_box)[0]:
        assert len(box.names) == box.value.ndim
        assert (box.names[0] == "layers") == (path[0].key == "layers")
    assert boxed["layers"]["query"].names == ("layers", "embed", "heads", "head")
    assert boxed["layers"]["key"].names == ("layers", "embed", "kv_heads", "head")
    assert boxed["embedding"].names == ("vocab", "embed")


def test_eight_devices_give_one_devices_result():
    model, params = make(**EVERYTHING)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    placed = jax.tree.map(jax.device_put, params, train_state.param_shardings(model, ids(1, 4), mesh))

    def loss(params, tokens):
        return jnp.sum(jnp.sin(run(model, params, tokens)))

    with sharding.activations(mesh):
        value, grads = jax.jit(jax.value_and_grad(loss))(placed, ids(4, 8))
        assert "sharding_constraint" in str(jax.make_jaxpr(loss)(placed, ids(4, 8)))
    assert "sharding_constraint" not in str(jax.make_jaxpr(loss)(params, ids(4, 8)))
    expected = jax.jit(jax.value_and_grad(loss))(params, ids(4, 8))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), grads, expected[1])


def test_rows_that_a_fused_causal_kernel_gets_wrong_are_poisoned():
    def poison(positions, groups, branches):
        row = {"positions": positions, "groups": groups, "branches": branches}
        return attention.plain_rows({name: jnp.array([x]) for name, x in row.items()})[0]

    assert poison([0, 1, 2, 3], [1, 1, 1, 1], [0, 0, 0, 0]) == 0
    assert poison([0, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]) == 0
    assert np.isnan(poison([0, 1, 0, 1], [1, 1, 2, 2], [0, 0, 0, 0]))  # packed
    assert np.isnan(poison([0, 0, 1, 2], [0, 1, 1, 1], [0, 0, 0, 0]))  # padded on the left
    assert np.isnan(poison([0, 1, 2, 2], [1, 1, 1, 1], [0, 0, 1, 2]))  # a tree


def test_the_self_test_passes_right_kernels_and_refuses_wrong_or_absent_ones(monkeypatch):
    attention.self_test("blocked")
    if jax.default_backend() == "cpu":
        with pytest.raises(InputError, match="does not run here"):
            attention.self_test("cudnn")
    wrong_fn = lambda q, k, v, rule: attention.dense(q, k[:, :, ::-1], v, rule)  # noqa: E731
    monkeypatch.setitem(attention.KERNELS, "blocked", wrong_fn)
    with pytest.raises(InputError, match="output is off by"):
        attention.self_test("blocked")


def test_a_model_can_be_a_static_argument():
    scaling = {"rope_type": "linear", "factor": 2.0}
    a, b = (decoder.DecoderLM(**TINY, rope_scaling=x) for x in (scaling, dict(scaling)))
    assert a == b and hash(a) == hash(b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"num_heads": 5, "num_kv_heads": 5}, "set head_dim"),
        ({"head_dim": 7}, "head_dim=7 is odd"),
        ({"remat": "some"}, "is not one of: full, attn"),
        ({"attention": "flash"}, "is not one of: dense"),
        ({"attention": "cudnn"}, "takes bfloat16"),
        ({"layer_types": ("full_attention",)}, "num_layers=3"),
        ({"layer_types": ("chunked",) * 3}, "knows only"),
        ({"layer_types": ("sliding_attention",) * 3}, "sliding_window is None"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "supported: default, linear, llama3, yarn"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks 'low_freq_factor'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(change, message):
    with pytest.raises(InputError, match=message):
        decoder.DecoderLM(**{**TINY, **change})
