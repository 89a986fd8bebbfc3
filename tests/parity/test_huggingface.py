"""Our decoder against transformers, on small random checkpoints of each family, in fp32."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from alignment.models import decoder, huggingface, tensors  # noqa: E402

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500_000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CASES = {
    "llama3.1-tied": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-untied-yarn": ("Llama", {"rope_parameters": YARN, "rms_norm_eps": 1e-5}),
    "qwen2.5": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2.5-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": 5}),
}
T = 24  # longer than every window, and than half of the original context of the scaled ropes


@functools.cache
def peer(case):
    """A transformers model with every parameter moved off its start: norms off one, biases off zero."""
    family, kwargs = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **kwargs)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """case -> (model, params, folder), read from what transformers saved."""

    @functools.cache
    def read(case):
        folder = tmp_path_factory.mktemp(case)
        peer(case).save_pretrained(folder)
        model = decoder.DecoderLM(**huggingface.config_of(folder))
        return model, huggingface.load(folder, model), folder

    return read


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, *row):
    return decoder.logits(model, params, model.apply({"params": params}, *row))


def our_logits(model, params, *row):
    return np.asarray(_logits(model, params, *(jnp.asarray(x, jnp.int32) for x in row)))


def peer_logits(model, tokens, **kwargs):
    with torch.no_grad():
        out = model(torch.tensor(np.asarray(tokens)), **{key: torch.tensor(x) for key, x in kwargs.items()})
    return out.logits.float().numpy()


def ids(B, length, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (B, length))


@pytest.mark.parametrize("case", CASES)
def test_logits_agree(ours, case):
    model, params, _ = ours(case)
    tokens = ids(2, T)
    np.testing.assert_allclose(our_logits(model, params, tokens), peer_logits(peer(case), tokens), atol=1e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_agree_under_padding(ours, case, side):
    model, params, _ = ours(case)
    tokens, groups = ids(2, T), np.ones((2, T), int)
    groups[1, : 7 if side == "left" else 0] = 0
    groups[1, T if side == "left" else T - 7 :] = 0
    positions = np.maximum(np.cumsum(groups, axis=1) - 1, 0)
    expected = peer_logits(peer(case), tokens, attention_mask=groups, position_ids=positions)
    got = our_logits(model, params, tokens, positions, groups)
    np.testing.assert_allclose(got[groups == 1], expected[groups == 1], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_packed_rows_agree_with_separate_runs_of_the_peer(ours, case):
    model, params, _ = ours(case)
    pieces = [ids(1, length, seed=length) for length in (11, 9, 4)]
    row = np.concatenate(pieces, axis=1)
    positions = np.concatenate([np.arange(x.shape[1]) for x in pieces])[None]
    groups = np.concatenate([np.full(x.shape[1], i) for i, x in enumerate(pieces, 1)])[None]
    expected = np.concatenate([peer_logits(peer(case), x) for x in pieces], axis=1)
    np.testing.assert_allclose(our_logits(model, params, row, positions, groups), expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_our_export_loads_in_transformers_with_the_same_logits(ours, case, tmp_path):
    model, params, folder = ours(case)
    like = huggingface.read_config(folder)
    huggingface.save(params, model, tmp_path / "export", max_shard_bytes=40_000, like=like)
    assert (tmp_path / "export" / tensors.INDEX).exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    assert type(again) is type(peer(case))
    tokens = ids(2, T)
    np.testing.assert_array_equal(peer_logits(again, tokens), peer_logits(peer(case), tokens))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_model_of_our_own_exports_as_llama(tie_embeddings, tmp_path):
    model = decoder.DecoderLM(vocab_size=64, num_layers=2, model_dim=32, num_heads=4, tie_embeddings=tie_embeddings)
    shapes = huggingface.param_shapes(model)
    rng = np.random.default_rng(0)
    params = {path[0]: rng.normal(size=s).astype(np.float32) for path, s in shapes.items() if len(path) == 1}
    params["layers"] = {p[1]: rng.normal(size=s).astype(np.float32) for p, s in shapes.items() if len(p) == 2}
    huggingface.save(params, model, tmp_path / "export", token_ids={"eos_token_id": 3})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    assert type(again).__name__ == "LlamaForCausalLM" and again.generation_config.eos_token_id == 3
    tokens = ids(1, 9) % 64
    expected = peer_logits(again, tokens)
    np.testing.assert_allclose(our_logits(model, params, tokens), expected, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_shards_from_transformers_load_exactly(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(json.loads((tmp_path / tensors.INDEX).read_text())["weight_map"]) == len(list(model.parameters()))
    ours = decoder.DecoderLM(**huggingface.config_of(tmp_path))
    params = huggingface.load(tmp_path, ours)
    tokens = ids(2, T)
    expected = peer_logits(model.float(), tokens)
    np.testing.assert_allclose(our_logits(ours, params, tokens), expected, atol=1e-4)
