"""llama.cpp's files: what is read from them is what was written into them."""

import struct

import jax.numpy as jnp
import numpy as np
import pytest

from alignment import gguf as gguf_files
from alignment.errors import InputError
from alignment.models import decoder, gguf_names, huggingface, rope
from alignment.train import language_model
from data.tokens import tokenizer

gguf = pytest.importorskip("gguf")

VOCAB, WIDTH, HEADS, KV_HEADS, FFN, LAYERS = 264, 64, 4, 2, 96, 2
HEAD_DIM = WIDTH // HEADS
SHAPES = {
    "attn_norm": (WIDTH,),
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_HEADS * HEAD_DIM, WIDTH),
    "attn_v": (KV_HEADS * HEAD_DIM, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (FFN, WIDTH),
    "ffn_up": (FFN, WIDTH),
    "ffn_down": (WIDTH, FFN),
}


def values(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.2 + (len(shape) == 1)


def write(path, *, architecture="llama", quantisation="F32", metadata=(), extra=(), tied=False, without=()):
    """A tiny random model; returns what was written, by GGUF's names."""
    out = gguf.GGUFWriter(path, architecture)
    out.add_block_count(LAYERS)
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_rope_freq_base(5e4)
    out.add_layer_norm_rms_eps(1e-5)
    for add, *arguments in metadata:
        getattr(out, add)(*arguments)
    shapes = {"token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {} if tied else {"output.weight": (VOCAB, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in SHAPES.items()}
        if architecture == "qwen2":
            shapes |= {f"blk.{i}.attn_{x}.bias": SHAPES[f"attn_{x}"][:1] for x in "qkv"}
        if architecture == "qwen3":
            shapes |= {f"blk.{i}.attn_{x}_norm.weight": (HEAD_DIM,) for x in "qk"}
    tensors = {name: values(shape, i) for i, (name, shape) in enumerate(shapes.items()) if name not in without}
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, tensor in (tensors | dict(extra)).items():
        if tensor.ndim == 1 or quantisation == "F32":
            out.add_tensor(name, tensor.astype(np.float32))
        else:
            raw = gguf.quants.quantize(tensor, kind)
            out.add_tensor(name, raw, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return tensors


def load(path):
    model = decoder.DecoderLM(**huggingface.config_of(huggingface.resolve(f"gguf:{path}")))
    return model, huggingface.load(str(path), model)


def turned(rows, num_heads):
    """llama.cpp's order of a query's rows, from the definition: row 2j + h of a head is row j of its half h."""
    half = len(rows) // num_heads // 2
    places = [n * 2 * half + h * half + j for n in range(num_heads) for j in range(half) for h in (0, 1)]
    return rows[places]


def test_llamas_queries_and_keys_come_back_in_the_order_of_transformers(tmp_path):
    written = write(tmp_path / "m.gguf")
    _, params = load(tmp_path / "m.gguf")
    query_ED = np.asarray(params["layers"]["query"][1]).reshape(WIDTH, -1).T
    key_ED = np.asarray(params["layers"]["key"][0]).reshape(WIDTH, -1).T
    np.testing.assert_array_equal(turned(query_ED, HEADS), written["blk.1.attn_q.weight"])
    np.testing.assert_array_equal(turned(key_ED, KV_HEADS), written["blk.0.attn_k.weight"])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_keep_their_rows_and_bring_biases_or_norms(tmp_path, architecture):
    written = write(tmp_path / "m.gguf", architecture=architecture)
    model, params = load(tmp_path / "m.gguf")
    assert (model.qkv_bias, model.qk_norm) == (architecture == "qwen2", architecture == "qwen3")
    query_ED = np.asarray(params["layers"]["query"][0]).reshape(WIDTH, -1).T
    np.testing.assert_array_equal(query_ED, written["blk.0.attn_q.weight"])
    if model.qk_norm:
        np.testing.assert_array_equal(params["layers"]["key_norm"][1], written["blk.1.attn_k_norm.weight"])
    else:
        np.testing.assert_array_equal(np.ravel(params["layers"]["value_bias"][1]), written["blk.1.attn_v.bias"])


def test_the_settings_are_those_of_the_metadata(tmp_path):
    write(tmp_path / "m.gguf", tied=True)
    model, _ = load(tmp_path / "m.gguf")
    sizes = (model.num_layers, model.model_dim, model.num_heads, model.num_kv_heads, model.ffn_dim, model.vocab_size)
    assert sizes == (LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCAB)
    assert (model.rope_theta, model.norm_eps, model.tie_embeddings) == (5e4, 1e-5, True)


def slow_q4_0(raw):
    """Blocks of 18 bytes: a float16 scale, then 32 numbers of four bits, low halves first, each less 8."""
    numbers = []
    for row in raw.reshape(-1, 18):
        scale = struct.unpack("<e", row[:2].tobytes())[0]
        numbers += [scale * ((b & 15) - 8) for b in row[2:].tolist()] + [
            scale * ((b >> 4) - 8) for b in row[2:].tolist()
        ]
    return np.array(numbers, np.float32)


def test_q4_0_is_read_as_its_format_says(tmp_path):
    write(tmp_path / "m.gguf", quantisation="Q4_0")
    tensor = gguf_files.read(str(tmp_path / "m.gguf")).tensors["blk.0.ffn_up.weight"]
    np.testing.assert_array_equal(tensor.array().ravel(), slow_q4_0(tensor.raw))


@pytest.mark.parametrize(
    ("quantisation", "error"), [("F16", 2e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q5_1", 0.08), ("Q4_1", 0.15)]
)
def test_a_quantised_model_is_near_the_one_it_was_made_of(tmp_path, quantisation, error):
    write(tmp_path / "full.gguf")
    write(tmp_path / "m.gguf", quantisation=quantisation)
    _, full = load(tmp_path / "full.gguf")
    _, params = load(tmp_path / "m.gguf")
    away = np.abs(np.asarray(params["layers"]["gate"]) - np.asarray(full["layers"]["gate"]))
    assert 0 < away.max() < error


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_k_quants_have_the_shape_and_the_values_of_the_package(tmp_path, kind):
    _, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(0).integers(0, 60, (3, num_bytes), dtype=np.uint8)  # small: no scale is infinite
    tensor = gguf_files.Quantised(tmp_path, "t", kind, (3, 256), raw)
    assert tensor.array().shape == (3, 256)
    np.testing.assert_array_equal(tensor.array(), gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]))


def test_llama_3s_divisors_become_its_rope_scaling(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, **gguf_names.LLAMA3}
    plain_J, scaled_J = rope.frequencies(HEAD_DIM, 5e4)[0], rope.frequencies(HEAD_DIM, 5e4, scaling)[0]
    write(tmp_path / "m.gguf", extra={"rope_freqs.weight": plain_J / scaled_J}.items())
    model, _ = load(tmp_path / "m.gguf")
    assert dict(model.rope_scaling) == scaling


def test_a_model_in_two_files_is_one(tmp_path):
    written = write(tmp_path / "m-00001-of-00002.gguf", without=("output_norm.weight",))
    second = gguf.GGUFWriter(tmp_path / "m-00002-of-00002.gguf", "llama")
    second.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    second.write_header_to_file()
    second.write_kv_data_to_file()
    second.write_tensors_to_file()
    second.close()
    model = gguf_files.read(str(tmp_path / "m-00001-of-00002.gguf"))
    assert set(model.tensors) == {*written, "output_norm.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma3"}, "is a gemma3 model; of GGUF files these architectures are read: llama, qwen2"),
        ({"metadata": [("add_expert_count", 8)]}, "a mixture of 8 experts"),
        ({"metadata": [("add_rope_dimension_count", 8)]}, "turns 8 of a head's 16 dimensions"),
        ({"metadata": [("add_rope_scaling_type", gguf.RopeScalingType.LONGROPE)]}, "scales its rope by 'longrope'"),
        ({"extra": [("rope_freqs.weight", np.full(8, 3.0, np.float32))]}, "divisors that are not Llama 3's"),
        ({"extra": [("blk.0.attn_sinks.weight", np.ones(4, np.float32))]}, "blk.0.attn_sinks.weight"),
        ({"without": ("blk.1.ffn_up.weight",)}, "lacks model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, options, message):
    write(tmp_path / "m.gguf", **options)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "m.gguf")


def test_a_damaged_file_is_refused(tmp_path):
    write(tmp_path / "m.gguf")
    content = (tmp_path / "m.gguf").read_bytes()
    for name, damaged in {"cut": content[:-5_000], "no": b"PK" + content[2:], "empty": b""}.items():
        (tmp_path / f"{name}.gguf").write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}.gguf is truncated or not a GGUF file"):
            gguf_files.read(str(tmp_path / f"{name}.gguf"))


@pytest.mark.parametrize("name", ["gone.gguf", "m-00001-of-00002.gguf"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(InputError, match=name):
        gguf_files.read(str(tmp_path / ("gone.gguf" if name.startswith("gone") else "m-00002-of-00002.gguf")))


def bytes_and_words():
    """A byte-level vocabulary with two merges, as llama.cpp keeps it."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, "ab", "Ġab", "<|im_start|>", "<|im_end|>"]
    kinds = [gguf.TokenType.NORMAL] * (len(pieces) - 2) + [gguf.TokenType.CONTROL] * 2
    return pieces, kinds, ["a b", "Ġ ab"]


def byte_level(pre):
    pieces, kinds, merges = bytes_and_words()
    return [
        ("add_tokenizer_model", "gpt2"),
        ("add_tokenizer_pre", pre),
        ("add_token_list", pieces),
        ("add_token_types", kinds),
        ("add_token_merges", merges),
        ("add_bos_token_id", len(pieces) - 2),
        ("add_eos_token_id", len(pieces) - 1),
        ("add_chat_template", "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"),
    ]


def test_a_byte_level_tokenizer_has_its_tokens_merges_ends_and_template(tmp_path):
    write(tmp_path / "m.gguf", metadata=byte_level("smollm"))
    tok = tokenizer.load(f"gguf:{tmp_path / 'm.gguf'}")
    pieces = bytes_and_words()[0]
    text = "ab ab12é<|im_end|>"
    ids = tok.encode(text)
    assert [pieces[i] for i in ids] == ["ab", "Ġab", "1", "2", "Ã", "©", "<|im_end|>"]
    assert tok.decode(ids, skip_special=False) == text
    assert (tok.bos_id, tok.eos_id, tok.stop_ids) == (258, 259, (259,))
    assert tok.render([{"role": "user", "content": "ab"}]) == "<|im_start|>ab<|im_end|>"


def test_an_unknown_way_to_cut_words_is_refused_with_the_list(tmp_path):
    write(tmp_path / "m.gguf", metadata=byte_level("chatglm-bpe"))
    with pytest.raises(InputError, match=r"tokenizer.ggml.pre.*'chatglm-bpe' is not one of: default"):
        tokenizer.load(f"gguf:{tmp_path / 'm.gguf'}")


def test_a_sentencepiece_tokenizer_falls_back_on_bytes(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "▁ab"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 5]
    metadata = [
        ("add_tokenizer_model", "llama"),
        ("add_token_list", pieces),
        ("add_token_scores", [0.0] * 259 + [-5.0, -5.0, -5.0, -1.0, -2.0]),
        ("add_token_types", kinds),
        ("add_bos_token_id", 1),
        ("add_eos_token_id", 2),
        ("add_unk_token_id", 0),
    ]
    write(tmp_path / "m.gguf", metadata=metadata)
    tok = tokenizer.load(f"gguf:{tmp_path / 'm.gguf'}")
    assert [pieces[i] for i in tok.encode("ab abé", add_bos=True)] == ["<s>", "▁ab", "▁ab", "<0xC3>", "<0xA9>"]
    assert tok.adds_bos and tok.decode(tok.encode("ab abé")) == "ab abé"


def test_a_run_starts_from_the_file_and_its_export_has_the_same_weights(tmp_path):
    write(tmp_path / "m.gguf", metadata=byte_level("gpt-2"), quantisation="Q8_0")
    init_from = f"gguf:{tmp_path / 'm.gguf'}"
    tok = tokenizer.load(language_model.tokenizer_of(init_from))
    net = language_model.build(init_from, tok, model={}, compute={"dtype": "float32"}, rows_are_plain=True)
    params = huggingface.load(str(tmp_path / "m.gguf"), net)
    language_model.export(tmp_path / "hf", params, net, tok, dtype="float32", init_from=init_from)
    again = huggingface.load(tmp_path / "hf", decoder.DecoderLM(**huggingface.config_of(tmp_path / "hf")))
    tokens_BT = jnp.arange(12)[None] * 7
    hidden = [np.asarray(net.apply({"params": p}, tokens_BT)) for p in (params, again)]
    np.testing.assert_array_equal(*hidden)
    assert tokenizer.load(str(tmp_path / "hf")).encode("ab ab") == tok.encode("ab ab")
