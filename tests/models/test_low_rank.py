import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.models import decoder, lora, low_rank
from alignment.train import flops
from tests.models.test_lora import moved

NAMES = {"query": 12, "key": 6}


@pytest.fixture
def arrays():
    keys = iter(jax.random.split(jax.random.key(0), 20))
    kernels = {name: jax.random.normal(next(keys), (8, size)) for name, size in NAMES.items()}
    a = {name: jax.random.normal(next(keys), (8, rank)) for name, rank in zip(NAMES, (3, 2))}
    b = {name: jax.random.normal(next(keys), (a[name].shape[1], size)) for name, size in NAMES.items()}
    return jax.random.normal(next(keys), (5, 8)), kernels, a, b


def total(fn, *arrays):
    return sum(jnp.sum(jnp.sin(y)) for y in fn(*arrays).values())


def naive(x, kernels, a, b):
    return {name: x @ kernels[name] + (x @ a[name]) @ b[name] for name in kernels}


@pytest.mark.parametrize("fn", [low_rank.products, low_rank.beside])
@pytest.mark.parametrize("argnums", [(0, 2, 3), (2, 3), (0, 1, 2, 3), 1])
def test_values_and_gradients_are_those_of_products_of_their_own(arrays, fn, argnums):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), fn(*arrays), naive(*arrays))
    ours, theirs = (jax.grad(lambda *x, f=f: total(f, *x), argnums)(*arrays) for f in (fn, naive))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), ours, theirs)


def test_a_product_that_nobody_reads_has_a_gradient_of_zero(arrays):
    gradient = jax.grad(lambda a: jnp.sum(low_rank.products(arrays[0], arrays[1], a, arrays[3])["key"]))(arrays[2])
    assert not gradient["query"].any() and gradient["key"].any()


def test_an_adapter_that_is_zero_leaves_every_bit(arrays):
    x, kernels, a, b = arrays
    zeros = jax.tree.map(jnp.zeros_like, b)
    for name, y in low_rank.products(x, kernels, a, zeros).items():
        np.testing.assert_array_equal(y, x @ kernels[name])


def test_no_thin_product_of_the_backward_pass_is_transposed():
    """A CPU takes several times as long for [R,N] = A^T x^T as for [N,R] = x A."""
    N, X, Y, R = 256, 192, 128, 4
    x, kernel, a, b = (jnp.ones(shape) for shape in ((N, X), (X, Y), (X, R), (R, Y)))

    def total(x, a, b):
        return jnp.sum(jnp.sin(low_rank.products(x, {"out": kernel}, {"out": a}, {"out": b})["out"]))

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, a, b).compile().as_text()
    assert f"f32[{N},{R}]" in text and f"f32[{R},{N}]" not in text


def test_an_adapter_s_step_makes_two_products_with_each_matrix_and_four_thin_ones():
    """The shapes of benchmarks/dpo_step.py: forward and backward pass through the layers, without the head."""
    sizes = dict(vocab_size=64, num_layers=8, model_dim=512, num_heads=8, num_kv_heads=4, ffn_dim=1_408)
    model, rows, T = decoder.DecoderLM(**sizes), 8, 256
    adapter = lora.lay_out(lora.Settings(rank=16), model)
    tokens_BT = jnp.zeros((rows, T), jnp.int32)
    base = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), tokens_BT)["params"]))

    def loss(base, params, net=model):
        return jnp.sum(net.apply(decoder.variables(adapter.attach(base, params)), tokens_BT))

    whole = flops.count(jax.grad(lambda base: jnp.sum(model.apply(decoder.variables(base), tokens_BT))), base)
    step = flops.count(jax.grad(loss, 1), base, adapter.form())
    beside = model.clone(merges_adapter=False)
    assert step < flops.count(jax.grad(lambda *x: loss(*x, net=beside), 1), base, adapter.form()) < 0.74 * whole
    forward = flops.count(lambda base: jnp.sum(model.apply(decoder.variables(base), tokens_BT)), base)
    matrices = 2 * rows * T * 8 * (512 * 512 * 2 + 512 * 256 * 2 + 512 * 1_408 * 3)
    inputs_and_outputs = (512 + 512) * 2 + (512 + 256) * 2 + (512 + 1_408) * 3
    thin = 4 * 2 * rows * T * 8 * 16 * inputs_and_outputs // 2
    merging = 2 * 2 * 8 * 16 * (512 * 512 * 2 + 512 * 256 * 2 + 512 * 1_408 * 3)
    attention = forward - matrices
    assert step == pytest.approx(2 * matrices + thin + merging + 3 * attention, rel=0.01)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_network_computes_the_same_either_way(remat):
    sizes = dict(vocab_size=32, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=24, qkv_bias=True)
    tokens_BT = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    model = decoder.DecoderLM(**sizes, remat=remat)
    base = nn.meta.unbox(model.init(jax.random.key(0), tokens_BT)["params"])
    adapter = lora.lay_out(lora.Settings(rank=2, targets=("q_proj", "v_proj", "down_proj")), model)

    def loss(tree, net):
        return jnp.sum(jnp.sin(net.apply(decoder.variables(adapter.attach(base, tree)), tokens_BT)))

    merged, beside = (jax.grad(loss)(moved(adapter), net) for net in (model, model.clone(merges_adapter=False)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), merged, beside)


def test_the_backward_pass_keeps_no_copy_of_a_kernel():
    sizes = dict(vocab_size=32, num_layers=3, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=24)
    model, tokens_BT = decoder.DecoderLM(**sizes), jnp.zeros((1, 5), jnp.int32)
    adapter = lora.lay_out(lora.Settings(rank=2), model)
    base = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), tokens_BT)["params"]))

    def loss(base, params):
        return jnp.sum(model.apply(decoder.variables(adapter.attach(base, params)), tokens_BT))

    eqns = jax.make_jaxpr(jax.grad(loss, 1))(base, adapter.form()).jaxpr.eqns
    forward = next(eqn for eqn in eqns if eqn.primitive.name == "scan")
    kept = [var.aval.shape for var in forward.outvars]
    kernels = {(3, 16, 16), (3, 16, 2, 8), (3, 2, 8, 16), (3, 16, 8), (3, 16, 1, 8), (3, 16, 24), (3, 24, 16)}
    assert not kernels & set(kept) and (3, 2, 8) in kept  # a layer's B for the keys
