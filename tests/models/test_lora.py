import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import decoder, huggingface, lora, peft_adapters

SETTINGS = lora.Settings(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "o_proj", "down_proj", "lm_head"))
TOKENS = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def network(**changes):
    sizes = dict(vocab_size=32, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, ffn_dim=24)
    return decoder.DecoderLM(**(sizes | changes))


@functools.cache
def base_of(model):
    return nn.meta.unbox(jax.jit(model.init)(jax.random.PRNGKey(0), TOKENS)["params"])


def moved(adapter, seed=0):
    """An adapter's tree as after training: B is not zero either, where it may be."""
    tree = nn.meta.unbox(jax.jit(adapter.init)(jax.random.PRNGKey(seed))["params"])
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), tree)
    for name, low in [*tree.get("layers", {}).items(), *([("head", tree["head"])] if "head" in tree else [])]:
        into = noise["head"] if name == "head" else noise["layers"][name]
        ranks = jnp.array(adapter.ranks[name])
        is_own = jnp.arange(low["a"].shape[-1])[None] < ranks[:, None]  # [L,R]
        rest = low["b"].ndim - 2
        mask = is_own[0][:, None] if name == "head" else is_own.reshape(*is_own.shape, *(1,) * rest)
        low["b"] = into["b"] * mask
    return tree


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, tokens_BT=TOKENS):
    hidden = model.apply(decoder.variables(params), tokens_BT)
    return decoder.logits(model, params, hidden)


@pytest.mark.parametrize("tie", [True, False])
def test_a_fresh_adapter_changes_no_bit(tie):
    # XLA writes out the products of smaller networks as loops, and sums them in another order when a term is added
    model = network(tie_embeddings=tie, model_dim=64, ffn_dim=192, vocab_size=256)
    base, adapter = base_of(model), lora.lay_out(SETTINGS, model)
    fresh = nn.meta.unbox(jax.jit(adapter.init)(jax.random.PRNGKey(1))["params"])
    run = jax.jit(lambda params: logits(model, params))
    np.testing.assert_array_equal(run(adapter.attach(base, fresh)), run(base))


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("tie", [True, False])
def test_folded_weights_compute_what_the_adapter_beside_them_does(tie, remat):
    model = network(tie_embeddings=tie, remat=remat)
    base, adapter = base_of(model), lora.lay_out(dataclasses.replace(SETTINGS, use_rslora=True), model)
    params = adapter.attach(base, moved(adapter))
    folded = logits(lora.folded_model(model, params), lora.fold(params))
    np.testing.assert_allclose(folded, logits(model, params), rtol=0, atol=1e-5)
    assert np.abs(folded - logits(model, base)).max() > 1e-2


def test_a_tied_head_with_an_adapter_is_untied_when_it_is_folded():
    model = network()
    base, adapter = base_of(model), lora.lay_out(SETTINGS, model)
    params = adapter.attach(base, moved(adapter))
    assert not lora.folded_model(model, params).tie_embeddings
    np.testing.assert_array_equal(lora.fold(params)["embedding"], base["embedding"])
    others = lora.lay_out(lora.Settings(rank=2), model)
    assert lora.folded_model(model, others.attach(base, moved(others))) == model


def test_a_merged_adapter_of_a_tied_head_is_exported_with_a_head_of_its_own(tmp_path):
    model = network()
    base, adapter = base_of(model), lora.lay_out(SETTINGS, model)
    params = adapter.attach(base, moved(adapter))
    merged = lora.folded_model(model, params)
    huggingface.save(lora.fold(params), merged, tmp_path / "hf")
    again = decoder.DecoderLM(**huggingface.config_of(tmp_path / "hf"))
    assert not again.tie_embeddings
    wanted = logits(model, params)
    np.testing.assert_allclose(logits(again, huggingface.load(tmp_path / "hf", again)), wanted, rtol=0, atol=1e-5)


def test_small_changes_of_half_precision_weights_are_added_in_float32():
    weights = jnp.full((1, 2, 2), 1.0, jnp.bfloat16)
    a, b = jnp.full((1, 2, 2), 2.0**-5), jnp.full((1, 2, 2), 2.0**-4)  # 2 * 2^-9: half a bit of 1.0 in bfloat16
    a, b = a.at[0, :, 1].set(2.0**-8), b.at[0, 1, :].set(1.0)  # and 2^-8 more, so that rounding each apart loses it
    assert (lora._folded(weights, a, b) > 1).all()


def slow(x, kernel, a, b, scale):
    """Eq. 3 of the paper with dense matrices in float64."""
    x, kernel, a, b = (np.asarray(v, np.float64) for v in (x, kernel, a, b))
    return x @ (kernel + scale * a @ b)


def test_gradients_equal_those_of_a_slow_twin():
    model = network(num_layers=1)
    base, adapter = base_of(model), lora.lay_out(lora.Settings(rank=3, alpha=6.0), model)
    params = moved(adapter)

    def ours(tree):
        return jnp.sum(jnp.sin(logits(model, adapter.attach(base, tree))))

    def twin(tree):
        """Whole matrices, whose gradient the chain rule takes to A and B."""
        layers = dict(base["layers"])
        for name, low in tree["layers"].items():
            L, R = low["b"].shape[:2]
            change = 2.0 * low["a"].reshape(L, -1, R) @ low["b"].reshape(L, R, -1)
            layers[name] = layers[name] + change.reshape(layers[name].shape)
        return jnp.sum(jnp.sin(logits(model, base | {"layers": layers})))

    ours_gradient, twin_gradient = (jax.jit(jax.grad(fn))(params) for fn in (ours, twin))
    for mine, theirs in zip(jax.tree.leaves(ours_gradient), jax.tree.leaves(twin_gradient)):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


def test_a_layer_adds_the_paper_s_product():
    model = network(num_layers=1)
    base, adapter = base_of(model), lora.lay_out(lora.Settings(rank=3, alpha=6.0, targets=("up_proj",)), model)
    low = moved(adapter)["layers"]["up"]
    folded = lora.fold(adapter.attach(base, {"layers": {"up": low}}))["layers"]["up"][0]
    x = np.eye(16)
    np.testing.assert_allclose(x @ folded, slow(x, base["layers"]["up"][0], low["a"][0], low["b"][0], 2.0), atol=1e-6)


@pytest.mark.parametrize("has_own_rows", [True, False])
def test_a_stack_computes_what_its_adapters_do_one_by_one(has_own_rows):
    model = network()
    base = base_of(model)
    kinds = [lora.Settings(rank=2), SETTINGS, lora.Settings(rank=3, targets=("v_proj",), use_rslora=True)]
    adapters = [(adapter := lora.lay_out(kind, model), moved(adapter, seed)) for seed, kind in enumerate(kinds)]
    stacked = lora.stack(adapters)
    tokens_KBT = jnp.stack([(TOKENS + k * has_own_rows) % 32 for k in range(3)])
    given = tokens_KBT if has_own_rows else TOKENS

    @jax.jit
    def of_all(stacked, tokens):
        hidden = lora.hidden_states(model, base, stacked, tokens, has_own_rows=has_own_rows)
        return lora.logits(model, base, stacked, hidden)

    together = of_all(stacked, given)
    for k, (adapter, params) in enumerate(adapters):
        alone = logits(model, adapter.attach(base, params), tokens_KBT[k])
        np.testing.assert_allclose(together[k], alone, rtol=0, atol=2e-5)


def test_a_stack_multiplies_by_each_base_matrix_once():
    model = network(num_layers=1)
    base, adapter = base_of(model), lora.lay_out(lora.Settings(rank=2), model)
    stacked = lora.stack([(adapter, moved(adapter, k)) for k in range(4)])
    text = str(jax.make_jaxpr(lambda s: lora.hidden_states(model, base, s, TOKENS))(stacked))
    assert "f32[4,16,24]" not in text  # no copy of a kernel for each adapter


def test_no_gradient_of_a_full_matrix_is_computed():
    model = network(model_dim=128, ffn_dim=384)
    base, adapter = base_of(model), lora.lay_out(lora.Settings(rank=2), model)

    def total(base, tree):
        return jnp.sum(jnp.sin(logits(model, adapter.attach(base, tree))))

    def flops(argument):
        return jax.jit(jax.grad(total, argument)).lower(base, moved(adapter)).cost_analysis()["flops"]

    assert flops(1) < 0.75 * flops(0)  # two products with each matrix instead of three


def test_patterns_mean_what_they_mean_in_peft():
    name = "model.layers.1.self_attn.q_proj"
    assert lora.Settings(rank=1, targets=("q_proj",)).hits(name)
    assert not lora.Settings(rank=1, targets=("proj",)).hits(name)
    assert not lora.Settings(rank=1, targets="q_proj").hits(name)  # an expression is for the whole name
    assert lora.Settings(rank=1, targets=r".*\.1\..*q_proj").hits(name)
    assert not lora.Settings(rank=1, targets=("q_proj",), layers=(0,)).hits(name)
    assert not lora.Settings(rank=1, exclude=("self_attn.q_proj",)).hits(name)
    assert not lora.Settings(rank=1).hits("lm_head") and lora.Settings(rank=1, targets=("lm_head",)).hits("lm_head")
    settings = lora.Settings(rank=4, alpha=8, rank_pattern=((r"layers\.1\..*", 16),), alpha_pattern=(("q_proj", 32),))
    assert (settings.rank_of(name), settings.scale_of(name)) == (16, 2.0)
    assert (settings.rank_of("model.layers.0.mlp.up_proj"), settings.scale_of("model.layers.0.mlp.up_proj")) == (4, 2)
    assert dataclasses.replace(settings, use_rslora=True).scale_of(name) == 8.0


def test_zeros_beyond_a_layer_s_rank_stay_zeros():
    model = network()
    settings = lora.Settings(rank=2, rank_pattern=((r"layers\.1\..*q_proj", 5),), targets=("q_proj", "0.mlp.up_proj"))
    base, adapter = base_of(model), lora.lay_out(settings, model)
    tree = moved(adapter)
    assert adapter.ranks == {"query": (2, 5), "up": (2, 0)}
    gradient = jax.jit(jax.grad(lambda tree: jnp.sum(jnp.sin(logits(model, adapter.attach(base, tree))))))(tree)
    for values in (tree, gradient):
        assert not values["layers"]["query"]["a"][0, ..., 2:].any() and not values["layers"]["query"]["b"][0, 2:].any()
        assert not values["layers"]["up"]["a"][1].any() and not values["layers"]["up"]["b"][1].any()
    assert gradient["layers"]["query"]["b"][1, 4].any()


def test_the_description_lists_which_layers_a_pattern_hit():
    words = lora.lay_out(lora.Settings(rank=2, targets=("q_proj", "1.mlp.up_proj")), network()).describe()
    assert words == "adapter of rank 2 on 3 linear layers, 208 numbers: q_proj of layers 0-1; up_proj of layers 1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(targets=("q_porj",)), "hits no linear layer.*q_proj, k_proj"),
        (dict(targets=("q_proj", "fc1")), r"\('fc1',\) hits no linear layer"),
        (dict(targets="q_proj"), "'q_proj' hits no linear layer"),
        (dict(targets=("embed_tokens",)), "embed_tokens, which is not a linear layer"),
        (dict(targets="("), "not a regular expression"),
        (dict(rank=0), "at least 1"),
        (dict(alpha=0.0), "must be positive"),
    ],
)
def test_what_cannot_be_an_adapter_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        lora.lay_out(lora.Settings(**{"rank": 2, **settings}), network())


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        lora.Settings(rank=3, targets=r".*self_attn\.[qv]_proj", use_rslora=True),
        lora.Settings(rank=2, rank_pattern=(("q_proj", 5),), alpha_pattern=((r"1\.self_attn\.q_proj", 3),)),
        lora.Settings(rank=2, targets=("up_proj",), layers=(1,)),
    ],
)
def test_an_adapter_survives_its_folder(tmp_path, settings, capsys):
    model = network(tie_embeddings=False)
    adapter = lora.lay_out(settings, model)
    tree = moved(adapter)
    peft_adapters.save(tmp_path / "adapter", adapter, tree, base="my-model")
    again, read = peft_adapters.load(tmp_path / "adapter", model)
    assert (again.ranks, again.scales) == (adapter.ranks, adapter.scales)
    jax.tree.map(np.testing.assert_array_equal, read, tree)
    assert "no modules_to_save, which vLLM would refuse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora=True.*DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*vLLM refuses"),
        ({"bias": "all"}, "bias='all'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"r": "4"}, "r='4', which must be a positive number"),
        ({"lora_alpha": True}, "lora_alpha='True', which must be a positive number"),
        ({"target_modules": 3}, "a value of another type than peft writes"),
        ({"rank_pattern": ["q_proj"]}, "a value of another type than peft writes"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"target_modules": None}, "no target_modules"),
        ({"target_modules": ["v_proj", "q_proj"]}, "lacks .*v_proj.lora_A.weight"),
        ({"r": 7}, "has shape"),
        ({"layers_to_transform": [0]}, "no place"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused_by_name(tmp_path, change, words):
    model = network()
    adapter = lora.lay_out(lora.Settings(rank=2, targets=("q_proj",)), model)
    peft_adapters.save(tmp_path, adapter, moved(adapter))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=words):
        peft_adapters.load(tmp_path, model)
