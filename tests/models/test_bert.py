import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from alignment.errors import InputError
from alignment.models import bert

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "give", "iron", "##s", "or", "##ally", ".", "e"]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
}


def stored_tensors(prefix=""):
    """Random weights under the names of transformers' BERT."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 0.4, shape).astype(np.float32)

    def norm(name):
        return {f"{name}.weight": 1 + normal(8), f"{name}.bias": normal(8)}

    out = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), 8),
        "embeddings.position_embeddings.weight": normal(40, 8),
        "embeddings.token_type_embeddings.weight": normal(2, 8),
        **norm("embeddings.LayerNorm"),
    }
    for i in range(2):
        for part, (name, _) in bert.PARTS.items():
            name = f"encoder.layer.{i}.{name}"
            if part.endswith("norm"):
                out |= norm(name)
            else:
                shape = {"up": (12, 8), "down": (8, 12)}.get(part, (8, 8))
                out |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    return {prefix + name: value for name, value in out.items()}


def write(folder, *, tensors=None, config=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    safetensors.numpy.save_file(tensors or stored_tensors(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return bert.load(write(tmp_path_factory.mktemp("bert") / "tiny"))


def slow_bert(t, ids):
    """One text in float64, a token and a head at a time."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    erf = np.vectorize(__import__("math").erf)
    x = np.stack([t["embeddings.word_embeddings.weight"][i] for i in ids])
    x = x + t["embeddings.position_embeddings.weight"][: len(ids)] + t["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(2):
        n = f"encoder.layer.{i}"
        q, k, v = (dense(x, f"{n}.attention.self.{p}").reshape(-1, 2, 4) for p in ("query", "key", "value"))
        mixed = np.zeros_like(q)
        for h in range(2):
            for a in range(len(ids)):
                w = np.exp([q[a, h] @ k[b, h] / 2 for b in range(len(ids))])
                mixed[a, h] = (w / w.sum()) @ v[:, h]
        x = norm(x + dense(mixed.reshape(-1, 8), f"{n}.attention.output.dense"), f"{n}.attention.output.LayerNorm")
        u = dense(x, f"{n}.intermediate.dense")
        x = norm(x + dense(u * 0.5 * (1 + erf(u / 2**0.5)), f"{n}.output.dense"), f"{n}.output.LayerNorm")
    return x


def test_hidden_states_are_those_of_the_slow_twin_whatever_stands_beside_them(encoder):
    texts = ["Give irons orally.", "give", "iron " * 20]
    twin = [slow_bert({k: v.astype(np.float64) for k, v in stored_tensors().items()}, i) for i in encoder.encode(texts)]
    for together, alone, wanted in zip(encoder.hidden(texts), (encoder.hidden([t])[0] for t in texts), twin):
        np.testing.assert_allclose(together, wanted, atol=2e-5)
        np.testing.assert_allclose(alone, wanted, atol=2e-5)
    means = np.stack([w.mean(0) for w in twin])
    np.testing.assert_allclose(encoder.embed(texts, normalize=False), means, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(texts), axis=1), 1, atol=1e-6)
    assert [len(h) for h in encoder.hidden(texts, with_special=False)] == [6, 1, 20]


def test_a_last_layer_of_the_first_token_alone_has_its_state(encoder):
    tokens_BT, mask_BT = np.array([[2, 4, 5, 3], [2, 5, 3, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    args = ({"params": encoder.params}, tokens_BT, mask_BT)
    every, first = encoder.model.apply(*args), encoder.model.apply(*args, ends_with_first=True)
    assert first[-1].shape == (2, 1, 8)
    np.testing.assert_allclose(first[-1], every[-1][:, :1], atol=1e-6)
    np.testing.assert_array_equal(first[-2], every[-2])


def test_words_are_cut_into_pieces_and_long_texts_lose_their_end(encoder):
    assert encoder.encode(["Give irons ORALLY."])[0] == [2, 4, 5, 6, 7, 8, 9, 3]
    long = "iron " * 60
    assert len(encoder.encode([long])[0]) == encoder.max_len == 40 and encoder.num_cut([long, "iron"]) == 1


def test_names_behind_a_head_and_old_names_of_norms_are_read(tmp_path, encoder):
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in stored_tensors("bert.").items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in old.items()}
    again = bert.load(write(tmp_path / "old", tensors=old | {"cls.predictions.bias": np.zeros(3, np.float32)}))
    np.testing.assert_array_equal(again.embed(["give iron"]), encoder.embed(["give iron"]))
    assert again.digest != encoder.digest and jnp.asarray(again.params["words"]).dtype == jnp.float32


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "roberta"}, "not one of: bert, distilbert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "silu"}, "activation='silu'"),
        ({"hidden_size": 16}, "config.json says"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(tmp_path, config, words):
    with pytest.raises(InputError, match=words):
        bert.load(write(tmp_path / "x", config=config))


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        bert.check(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.txt"):
        bert.check(tmp_path)
