"""Our encoders against transformers: small random weights of each family, and all-MiniLM-L6-v2 where it is here."""

import pathlib

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from alignment.models import bert, bert_classifier, bleurt  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "aeioust")]
TEXTS = ["a o u", "Ünit, states: sat", "is " * 70, "o"]
MINILM = pathlib.Path("models/minilm")


def make(family):
    torch.manual_seed(0)
    if family == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=len(WORDS), max_position_embeddings=64, n_layers=2, n_heads=4, dim=32, hidden_dim=48
        )
        return transformers.DistilBertModel(config)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
    return transformers.BertModel(config)


def moved_and_saved(model, folder):
    """Move the first weights, in which biases are zeros, and save them; the tokenizer beside them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return transformers.BertTokenizerFast.from_pretrained(str(folder))


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.txt"])
def test_hidden_states_and_means_agree_with_transformers(tmp_path, family, file):
    model = make(family).eval()
    peer = moved_and_saved(model, tmp_path)
    if file == "tokenizer.json":
        peer.save_pretrained(str(tmp_path))
        (tmp_path / "vocab.txt").unlink(missing_ok=True)
    compare(tmp_path, model, peer, 64)


def test_grades_of_pairs_agree_with_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, num_labels=1, **sizes)
    model = transformers.BertForSequenceClassification(config).eval()
    peer = moved_and_saved(model, tmp_path)
    batch = peer(TEXTS, TEXTS[::-1], padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(bleurt.load(tmp_path).score(TEXTS[::-1], TEXTS), wanted, atol=1e-4)


def test_a_classifier_s_logits_and_gradients_agree_with_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config).eval()  # without dropout
    peer = moved_and_saved(model, tmp_path)
    batch = peer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    labels_B = np.arange(len(TEXTS)) % 3
    theirs = model(**batch, labels=torch.from_numpy(labels_B))
    theirs.loss.backward()
    trunk = bert.load(tmp_path)
    ours = bert_classifier.Classifier(trunk.model, 3, "first")
    named = dict(model.named_parameters())
    heads = {"pooler": "bert.pooler.dense", "head": "classifier"}
    params = {"trunk": trunk.params} | {
        name: {"kernel": named[f"{of}.weight"].detach().numpy().T, "bias": named[f"{of}.bias"].detach().numpy()}
        for name, of in heads.items()
    }
    tokens_BT, mask_BT = batch["input_ids"].numpy(), batch["attention_mask"].numpy() > 0

    def loss_fn(params):
        logits_BC, _ = ours.apply({"params": params}, tokens_BT, mask_BT)
        return optax.softmax_cross_entropy_with_integer_labels(logits_BC, labels_B).mean(), logits_BC

    (loss, logits_BC), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    np.testing.assert_allclose(logits_BC, theirs.logits.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(loss, theirs.loss.item(), atol=1e-5)
    for place, name in {
        ("trunk", "words"): "bert.embeddings.word_embeddings.weight",
        ("trunk", "layer_1_query", "bias"): "bert.encoder.layer.1.attention.self.query.bias",
        ("trunk", "layer_0_down", "bias"): "bert.encoder.layer.0.output.dense.bias",
        ("pooler", "bias"): "bert.pooler.dense.bias",
        ("head", "bias"): "classifier.bias",
    }.items():
        mine = gradient
        for key in place:
            mine = mine[key]
        np.testing.assert_allclose(mine, named[name].grad.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.skipif(not MINILM.is_dir(), reason="make models writes it")
def test_minilm_agrees_with_transformers():
    model = transformers.AutoModel.from_pretrained(str(MINILM)).eval()
    compare(MINILM, model, transformers.AutoTokenizer.from_pretrained(str(MINILM)), 256)


def compare(folder, model, peer, longest):
    encoder = bert.load(folder)
    assert encoder.max_len == longest
    batch = peer(TEXTS, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
    assert encoder.encode(TEXTS) == ids
    with torch.no_grad():
        out = model(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    mask = batch["attention_mask"].bool()
    for layer, states in enumerate(out.hidden_states):
        for ours, theirs, is_token in zip(encoder.hidden(TEXTS, layer=layer), states, mask):
            np.testing.assert_allclose(ours, theirs[is_token].numpy(), atol=1e-4)
    weights = mask[..., None].float()
    means = ((out.last_hidden_state * weights).sum(1) / weights.sum(1)).numpy()
    np.testing.assert_allclose(encoder.embed(TEXTS, normalize=False), means, atol=1e-4)
