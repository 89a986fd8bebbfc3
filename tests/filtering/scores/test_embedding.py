import json

import numpy as np
import pytest
import tokenizers
from safetensors import numpy as safetensors
from tokenizers import models, pre_tokenizers

from alignment.errors import InputError
from alignment.filtering.scores import embedding, fitting, heads, scorers

VOCABULARY = ["[UNK]", "glorp", "bridge", "river", "جسر", "bad"]


@pytest.fixture
def folder(tmp_path):
    """A static embedding of six words."""
    made = tmp_path / "static"
    made.mkdir()
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)  # as published tokenizers often come
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(made / "tokenizer.json"))
    vectors = np.random.default_rng(0).integers(-90, 90, (6, 5)).astype(np.int8)
    safetensors.save_file({"embeddings": vectors}, made / "model.safetensors")
    (made / "config.json").write_text(json.dumps({"normalize": True}))
    return made


def about(static, **changes):
    features = dict(model=static.folder, sha256=static.sha256, width=static.width)
    fields = dict(kind="embedding", name="safety", objective="softmax", levels=tuple("012345"), features=features)
    return heads.About(**{**fields, **changes})


def slow(vectors, text, normalize=True):
    """The mean of the known words' vectors, a word at a time."""
    words = [VOCABULARY.index(word) for word in text.split() if word in VOCABULARY[1:]]
    mean = sum((vectors[i].astype(float) for i in words), np.zeros(5)) / max(len(words), 1)
    return mean / np.linalg.norm(mean) if normalize and words else mean


TEXTS = ["glorp bridge", "river glorp unseen words bad", "", "unseen", "جسر " * 9]


def test_a_text_is_the_mean_of_its_tokens(folder):
    static = embedding.static(folder)
    found, owners, _ = static.pieces(TEXTS, 512)
    vectors = safetensors.load_file(folder / "model.safetensors")["embeddings"]
    assert owners.tolist() == [0, 1, 2, 3, 4] and static.width == 5
    np.testing.assert_allclose(found, [slow(vectors, text) for text in TEXTS], atol=1e-6)
    assert not found[2:4].any()
    (folder / "config.json").unlink()
    plain, *_ = embedding.static(folder).pieces(TEXTS, 512)
    np.testing.assert_allclose(plain, [slow(vectors, text, normalize=False) for text in TEXTS], rtol=1e-6)


def test_weights_and_shared_vectors_of_newer_models_are_read(folder):
    vectors = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    weights, mapping = np.arange(1, 7, dtype=np.float32), np.array([0, 1, 2, 1, 2, 0])
    tensors = {"embeddings": vectors, "weights": weights, "mapping": mapping}
    safetensors.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    found, *_ = embedding.static(folder).pieces(["glorp bad"], 0)
    np.testing.assert_allclose(found[0], (2 * vectors[1] + 6 * vectors[0]) / 2, rtol=1e-6)


def test_long_texts_are_cut_by_tokens_and_blocks_change_nothing(folder, monkeypatch):
    static = embedding.static(folder)
    text = "glorp bridge river unseen bad " * 10
    pieces, owners, starts = static.pieces([text, "bad"], 8)
    assert owners.tolist() == [0] * 5 + [1]  # forty known words
    assert starts.tolist() == [60 * i for i in range(5)] + [0]  # eight of them in ten words, which are 60 characters
    first, *_ = static.pieces([text, "bad"], 8, first=True)
    np.testing.assert_array_equal(first, pieces[[0, 5]])
    monkeypatch.setattr(embedding, "BLOCK", 23)
    monkeypatch.setattr(embedding, "GROUP", 50)
    again, _, again_starts = static.pieces([text, "bad"], 8)
    np.testing.assert_array_equal(again, pieces)
    np.testing.assert_array_equal(again_starts, starts)


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_trained_head_is_the_same_in_jax_and_numpy(hidden, folder, tmp_path):
    static, rng = embedding.static(folder), np.random.default_rng(0)
    told = about(static)
    model = fitting.network(told, num_inputs=5, hidden=hidden)
    shapes = {"kernel": (hidden or 5, 6), "bias": (6,)}
    shapes |= {"hidden_kernel": (5, hidden), "hidden_bias": (hidden,)} if hidden else {}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs, *_ = static.pieces(TEXTS, 512)
    wanted, _ = model.apply({"params": tensors}, {"inputs": inputs})
    heads.save(tmp_path / "scorer", told, tensors)
    scorer = scorers.load("embedding", tmp_path / "scorer")
    np.testing.assert_allclose(scorer.logits(TEXTS), wanted, atol=1e-5)
    rows = scorer([{"text": text} for text in TEXTS])
    chances = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    assert [row["safety.score"] for row in rows] == pytest.approx((chances @ np.arange(6)).tolist(), abs=1e-5)
    assert [row["safety.level"] for row in rows] == np.argmax(wanted, axis=1).tolist()


def test_any_function_can_take_the_place_of_the_embedding(folder, tmp_path):
    static = embedding.static(folder)
    told = about(static, objective="regression", pool="mean", piece=3)
    tensors = {"kernel": np.ones((5, 1), np.float32), "bias": np.zeros(1, np.float32)}
    heads.save(tmp_path / "scorer", told, tensors)
    asked = []

    def embed(texts):
        asked.extend(texts)
        return [[len(text.split()), 0, 0, 0, 0] for text in texts]

    score = scorers.load("embedding", tmp_path / "scorer", embed_fn=embed, name="quality")
    assert score([{"text": "a b c d"}, {"text": "x"}]) == [
        {"quality.score": 2.0, "quality.level": 2.0},
        {"quality.score": 1.0, "quality.level": 1.0},
    ]
    assert asked == ["a b c ", "d", "x"]
    with pytest.raises(InputError, match="trained on 5"):
        scorers.load("embedding", tmp_path / "scorer", embed_fn=lambda texts: [[1.0]] * len(texts))([{"text": "a"}])


def test_another_embedding_than_the_heads_own_is_refused(folder, tmp_path):
    static = embedding.static(folder)
    tensors = {"kernel": np.ones((5, 6), np.float32), "bias": np.zeros(6, np.float32)}
    heads.save(tmp_path / "scorer", about(static), tensors)
    safetensors.save_file({"embeddings": np.ones((6, 5), np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match="another embedding"):
        embedding.load(tmp_path / "scorer")


def test_a_folder_that_is_no_static_embedding_is_refused(folder):
    good = {path: path.read_bytes() for path in folder.iterdir()}

    def refused(name, content, words):
        for path, whole in good.items():
            path.write_bytes(content if path.name == name else whole)
        with pytest.raises(InputError, match=words):
            embedding.static(folder)

    refused("model.safetensors", b"12345678", "damaged|fetch it again")
    refused("tokenizer.json", b"{}", "fetch it again")
    refused("config.json", b"[", "fetch it again")
    refused("model.safetensors", safetensors.save({"other": np.ones(3)}), "a matrix `embeddings`")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        embedding.static(folder)


def test_the_shared_embedding_tells_alike_from_unlike(shared_data):
    folder = shared_data / "embedding_static_model2vec"
    if not folder.is_dir():
        pytest.skip("no static embedding beside this checkout")
    found, *_ = embedding.static(folder).pieces(
        ["The cat sat on the mat.", "A kitten is lying on a rug.", "Interest rates rose in March."], 512
    )
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


def test_chunks_of_a_static_embedding_are_spans_that_score_as_they_do_alone(folder):
    static = embedding.static(folder)
    told = about(static, piece=2)
    tensors = {"kernel": np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32), "bias": np.zeros(6)}
    scorer = embedding.build(told, tensors, lambda texts: static.pieces(texts, 2))
    texts = ["جسر glorp, unseen 𝄞 bad river bridge", "", "unseen", "bad"]
    rows = scorer.with_chunks([{"text": text} for text in texts])
    assert [len(row["safety.chunks"]) for row in rows] == [3, 1, 1, 1]
    for text, row, plain in zip(texts, rows, scorer([{"text": text} for text in texts])):
        spans = row.pop("safety.chunks")
        assert row == plain and "".join(text[start:end] for start, end, _ in spans) == text
        alone = scorer([{"text": text[start:end]} for start, end, _ in spans])
        assert [value for *_, value in spans] == pytest.approx([found["safety.score"] for found in alone])
        assert row["safety.score"] == pytest.approx(max(value for *_, value in spans))
