import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import decoder, huggingface, huggingface_config, tensors

TINY = {"vocab_size": 64, "num_layers": 3, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MIXED = ("full_attention", "sliding_attention", "sliding_attention")
FAMILIES = {
    "llama": {"rope_scaling": LLAMA3, "rope_theta": 500_000.0},
    "qwen2": {"qkv_bias": True, "tie_embeddings": False, "sliding_window": 4, "layer_types": MIXED},
    "qwen3": {"qk_norm": True, "head_dim": 12},
    "mistral": {"sliding_window": 5, "tie_embeddings": False},
}


def make(**kwargs):
    model = decoder.DecoderLM(**{**TINY, **kwargs})
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), nn.meta.unbox(params))


def saved(folder, **kwargs):
    model, params = make()
    huggingface.save(params, model, folder, **kwargs)
    return model, params


def edit(folder, **changes):
    config = huggingface.read_config(folder) | changes
    (folder / "config.json").write_text(json.dumps(config))


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_bytes", [10_000, 10**9])
def test_a_saved_folder_gives_back_the_model_and_its_weights_bit_for_bit(tmp_path, family, max_shard_bytes):
    model, params = make(**FAMILIES[family])
    huggingface.save(params, model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out" / tensors.INDEX).exists() == (max_shard_bytes == 10_000)
    kwargs = huggingface.config_of(tmp_path / "out")
    assert huggingface.read_config(tmp_path / "out")["model_type"] == family
    again = decoder.DecoderLM(**kwargs)
    for name in (*TINY, "rope_theta", "sliding_window", "layer_types", "tie_embeddings", "qkv_bias", "qk_norm"):
        assert getattr(again, name) == getattr(model, name)
    assert dict(again.rope_scaling or {}) == dict(model.rope_scaling or {})
    same(huggingface.load(tmp_path / "out", again), params)


def test_linear_weights_are_stored_transposed(tmp_path):
    _, params = saved(tmp_path / "out")
    stored = tensors.index(tmp_path / "out")
    query = tensors.view("q", stored["model.layers.1.self_attn.q_proj.weight"])  # [H*K, D]
    np.testing.assert_array_equal(query[9], params["layers"]["query"][1, :, 1, 1])  # head 1, its dimension 1
    out = tensors.view("o", stored["model.layers.2.self_attn.o_proj.weight"])  # [D, H*K]
    np.testing.assert_array_equal(out[:, 9], params["layers"]["out"][2, 1, 1])


def test_bfloat16_weights_load_as_asked(tmp_path):
    model, params = saved(tmp_path / "out", dtype="bfloat16")
    expected = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    same(huggingface.load(tmp_path / "out", model, dtype="bfloat16"), expected)
    same(huggingface.load(tmp_path / "out", model), jax.tree.map(lambda x: x.astype(jnp.float32), expected))


def test_sharded_loading_puts_every_slice_in_its_place(tmp_path):
    model, params = saved(tmp_path / "out")
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    rules = [("embed", "fsdp"), ("vocab", "tensor"), ("heads", "tensor"), ("kv_heads", "tensor"), ("mlp", "tensor")]
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
    loaded = huggingface.load(tmp_path / "out", model, shardings)
    assert loaded["layers"]["query"].sharding == shardings["layers"]["query"]
    assert loaded["layers"]["query"].addressable_shards[0].data.shape == (3, 8, 2, 8)
    same(loaded, params)
    huggingface.save(loaded, model, tmp_path / "again")
    same(huggingface.load(tmp_path / "again", model), params)


def test_an_interrupted_save_leaves_the_old_folder(tmp_path):
    model, params = saved(tmp_path / "out")

    def full_disk(folder):
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        huggingface.save(jax.tree.map(jnp.zeros_like, params), model, tmp_path / "out", extra_fn=full_disk)
    same(huggingface.load(tmp_path / "out", model), params)


def test_what_the_source_said_about_tokens_is_kept(tmp_path):
    model, params = make()
    like = {"eos_token_id": [1, 2], "bos_token_id": 7, "max_position_embeddings": 99, "hidden_size": 1}
    huggingface.save(params, model, tmp_path / "out", like=like, token_ids={"pad_token_id": 3})
    config = huggingface.read_config(tmp_path / "out")
    assert (config["eos_token_id"], config["max_position_embeddings"], config["hidden_size"]) == ([1, 2], 99, 32)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 3}


def test_both_layouts_of_rope_mean_the_same(tmp_path):
    saved(tmp_path / "out")
    edit(tmp_path / "out", rope_theta=5e5, rope_scaling=LLAMA3)
    old = huggingface.config_of(tmp_path / "out")
    edit(tmp_path / "out", rope_theta=None, rope_scaling=None, rope_parameters={"rope_theta": 5e5, **LLAMA3})
    assert huggingface.config_of(tmp_path / "out") == old
    assert (old["rope_theta"], old["rope_scaling"]) == (5e5, LLAMA3)


def test_a_window_that_qwen_switches_off_is_off(tmp_path):
    model, params = make(qkv_bias=True)
    huggingface.save(params, model, tmp_path)
    edit(tmp_path, use_sliding_window=False, sliding_window=4096, max_window_layers=1)
    assert huggingface.config_of(tmp_path)["sliding_window"] is None
    edit(tmp_path, use_sliding_window=True)
    assert huggingface.config_of(tmp_path)["layer_types"] == MIXED
    edit(tmp_path, max_window_layers=28)
    assert huggingface.config_of(tmp_path)["sliding_window"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel; supported architectures: LlamaForCausalLM, Qwen2"),
        ({"attention_bias": True}, "attention_bias=True, and only false"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', and only silu"),
        ({"quantization_config": {"bits": 4}}, "only unquantised weights"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported; supported: default, linear"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "another rope for each kind of layer"),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, changes, message):
    saved(tmp_path / "out")
    edit(tmp_path / "out", **changes)
    with pytest.raises(InputError, match=message):
        huggingface.config_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "values", "need"),
    [
        ("hidden_size", (0, -1, 1.5, True, "32", [32], 10**30), "a positive whole number"),
        ("vocab_size", (None, "64", {}), "vocab_size"),
        ("max_window_layers", (-1, "2", 1.5), "a positive whole number"),
        ("rms_norm_eps", (0, float("nan"), "1e-5", True), "a positive number"),
        ("rope_theta", (float("inf"), [1e4]), "a positive number"),
        ("tie_word_embeddings", ("false", 0, []), "true or false"),
        ("architectures", ("LlamaForCausalLM", [None], 3), "a list of names"),
        ("rope_scaling", ("linear", [2.0]), "an object"),
        (
            "rope_scaling",
            ({"rope_type": "linear", "factor": "2"}, {"rope_type": "linear", "factor": True}),
            "rope_scaling.factor=",
        ),
        ("rope_scaling", ({"rope_type": 3},), "rope_scaling.rope_type="),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(saved_config, key, values, need):
    folder, config = saved_config
    for value in values:
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match=need):
            huggingface.config_of(folder)


def test_values_that_are_large_or_turned_off_are_taken(saved_config):
    folder, config = saved_config
    yarn = {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 0.0}
    for changes in ({"rope_theta": 3_580_165_449.0}, {"sliding_window": 0, "use_sliding_window": False}, yarn):
        changes = {"rope_scaling": changes} if changes is yarn else changes
        huggingface_config.check_types(config | changes, folder)


@pytest.fixture(scope="module")
def saved_config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    saved(folder / "out")
    return folder / "out", huggingface.read_config(folder / "out")


def test_a_config_that_lacks_a_size_names_it(tmp_path):
    saved(tmp_path / "out")
    config = huggingface.read_config(tmp_path / "out")
    del config["intermediate_size"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="lacks 'intermediate_size'"):
        huggingface.config_of(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not a JSON object"):
        huggingface.config_of(tmp_path / "out")


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_bytes", [10_000, 10**9])
def test_a_head_that_differs_from_a_tied_embedding_is_loaded(tmp_path, family, max_shard_bytes, capsys):
    model, params = make(**FAMILIES[family] | {"tie_embeddings": False})
    huggingface.save(params, model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    edit(tmp_path / "out", tie_word_embeddings=True)
    again = decoder.DecoderLM(**huggingface.config_of(tmp_path / "out"))
    assert not again.tie_embeddings
    assert "tie_word_embeddings=true, but lm_head.weight differs" in capsys.readouterr().out
    same(huggingface.load(tmp_path / "out", again), params)


def rename(folder, names):
    """Save the tensors of a folder again under names(old name); one that gives several names is there under each."""
    from safetensors import numpy as reference

    arrays = reference.load_file(folder / "model.safetensors")
    reference.save_file({new: x for old, x in arrays.items() for new in names(old)}, folder / "model.safetensors")


@pytest.mark.parametrize("kept", [(EMBEDDING, HEAD), (HEAD,)], ids=["both", "head alone"])
def test_a_tied_matrix_may_be_stored_twice_or_as_the_head(tmp_path, kept):
    model, params = saved(tmp_path)
    rename(tmp_path, lambda name: kept if name == EMBEDDING else (name,))
    assert huggingface.config_of(tmp_path)["tie_embeddings"]
    same(huggingface.load(tmp_path, model), params)


@pytest.mark.parametrize("tied", [True, False])
def test_names_without_the_leading_model_are_read(tmp_path, tied):
    model, params = make(tie_embeddings=tied)
    huggingface.save(params, model, tmp_path)
    rename(tmp_path, lambda name: (name.removeprefix("model."),))
    edit(tmp_path, architectures=["LlamaModel"])
    again = decoder.DecoderLM(**huggingface.config_of(tmp_path))
    assert again.tie_embeddings == tied
    same(huggingface.load(tmp_path, again), params)


def test_a_body_whose_head_is_not_stored_is_refused_unless_tied(tmp_path):
    model, params = make(tie_embeddings=False)
    huggingface.save(params, model, tmp_path)
    rename(tmp_path, lambda name: () if name == HEAD else (name.removeprefix("model."),))
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        huggingface.load(tmp_path, decoder.DecoderLM(**huggingface.config_of(tmp_path)))


def test_missing_unknown_and_misshaped_tensors_are_named(tmp_path):
    saved(tmp_path / "out")
    biased = decoder.DecoderLM(**TINY, qkv_bias=True)
    with pytest.raises(InputError, match=r"lacks model.layers.0.self_attn.q_proj.bias, .* and 4 more; it has model"):
        huggingface.load(tmp_path / "out", biased)
    shallow = decoder.DecoderLM(**{**TINY, "num_layers": 2})
    with pytest.raises(InputError, match=r"model.safetensors has model.layers.2.input_layernorm.weight"):
        huggingface.load(tmp_path / "out", shallow)
    wide = decoder.DecoderLM(**{**TINY, "ffn_dim": 64})
    with pytest.raises(InputError, match=r"gate_proj.weight in .*model.safetensors has shape \(48, 32\).*\(64, 32\)"):
        huggingface.load(tmp_path / "out", wide)


def test_a_model_of_no_family_is_not_exported(tmp_path):
    for kwargs in ({"qkv_bias": True, "qk_norm": True}, {"sliding_window": 4, "layer_types": MIXED}):
        model, params = make(**kwargs)
        with pytest.raises(InputError, match="exported"):
            huggingface.save(params, model, tmp_path / "out")


def test_a_spec_is_a_folder_or_a_hub_id(tmp_path):
    assert huggingface.resolve(f"hf:{tmp_path}") == tmp_path
    with pytest.raises(InputError, match="neither a folder here nor a hub id"):
        huggingface.resolve(f"hf:{tmp_path}/nothing/there")
