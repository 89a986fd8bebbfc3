"""The reader of fastText models on files written here by hand; tests/parity/ compares it with fastText itself."""

import itertools
import math
import random
import struct

import numpy as np
import pytest

from alignment.errors import InputError
from alignment.filtering.scores import scorers
from alignment.models import fasttext, fasttext_file

WORDS = ["</s>", "glorp", "bridge", "جسر", "river"]
LABELS = ["__label__en", "__label__ar", "__label__other"]
SETTINGS = dict(
    dim=4, ws=5, epoch=5, min_count=1, neg=5, word_n_grams=2, loss=3, model=3, bucket=50, minn=2, maxn=3, rate=100
)


def dictionary(words=WORDS, labels=LABELS, pruned=None):
    pairs = [] if pruned is None else list(pruned.items())
    sizes = len(words) + len(labels), len(words), len(labels)
    out = struct.pack("<3i2q", *sizes, 99, -1 if pruned is None else len(pairs))
    for i, word in enumerate([*words, *labels]):
        out += word.encode() + b"\0" + struct.pack("<qb", 100 - i, i >= len(words))
    return out + b"".join(struct.pack("<2i", *pair) for pair in pairs)


def matrix(values):
    return struct.pack("<2q", *values.shape) + values.astype("<f4").tobytes()


def quantiser(values, part, last):
    dim = (len(values) - 1) * part + last
    return struct.pack("<4i", dim, len(values), part, last) + b"".join(v.astype("<f4").tobytes() for v in values)


def model_bytes(settings=SETTINGS, pruned=None, quantised=False, seed=0):
    """A file and what its matrices are, [rows, dim] and [labels, dim]."""
    rng = np.random.default_rng(seed)
    rows = len(WORDS) + (settings["bucket"] if pruned is None else len(pruned))
    outputs = rng.normal(size=(len(LABELS), 4))
    head = (
        struct.pack("<2i", fasttext_file.MAGIC, 12) + struct.pack("<12i", *settings.values()) + struct.pack("<d", 1e-4)
    )
    head += dictionary(pruned=pruned)
    if not quantised:
        inputs = rng.normal(size=(rows, 4)).astype(np.float32)
        return head + b"\0" + matrix(inputs) + b"\0" + matrix(outputs), inputs, outputs
    codes = rng.integers(0, 256, (rows, 2), dtype=np.uint8)
    centroids = [rng.normal(size=(256, 3)), rng.normal(size=(256, 1))]
    norms, norm_codes = rng.normal(size=(256, 1)), rng.integers(0, 256, rows, dtype=np.uint8)
    inputs = np.concatenate([centroids[0][codes[:, 0]], centroids[1][codes[:, 1]]], axis=1) * norms[norm_codes]
    body = b"\1" + b"\1" + struct.pack("<2qi", rows, 4, codes.size) + codes.tobytes() + quantiser(centroids, 3, 1)
    body += norm_codes.tobytes() + quantiser([norms], 1, 1)
    return head + body + b"\0" + matrix(outputs), inputs, outputs


def slow_hash(text):
    h = 2166136261
    for byte in text.encode():
        h = ((h ^ ((byte - 256 if byte > 127 else byte) & 0xFFFFFFFF)) * 16777619) % 2**32
    return h


def slow_ids(text, settings=SETTINGS, pruned=None):
    """The rows of a text as the fastText paper's code numbers them."""

    def add(number):
        if pruned is None or number in pruned:
            ids.append(len(WORDS) + (number if pruned is None else pruned[number]))

    ids, hashes = [], []
    for word in [*text.split(), "</s>"]:
        if word in WORDS:
            ids.append(WORDS.index(word))
        marked = f"<{word}>"
        for i in range(len(marked) if word != "</s>" else 0):
            for n in range(settings["minn"], settings["maxn"] + 1):
                if i + n <= len(marked):
                    add(slow_hash(marked[i : i + n]) % settings["bucket"])
        hashes.append((slow_hash(word) + 2**31) % 2**32 - 2**31)  # as a signed number of 32 bits
    for first, second in itertools.pairwise(hashes):
        add((first * 116049371 + second) % 2**64 % settings["bucket"])
    return ids


def slow_probabilities(ids, inputs, outputs):
    logits = outputs.astype(np.float32) @ np.mean(inputs[ids], axis=0)
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("kind", ["plain", "quantised", "pruned"])
def test_predictions_are_those_of_a_naive_reading(kind, tmp_path):
    pruned = {7: 0, 3: 1, 44: 2} if kind == "pruned" else None
    content, inputs, outputs = model_bytes(pruned=pruned, quantised=kind != "plain")
    (tmp_path / "model.bin").write_bytes(content)
    model = fasttext.load(tmp_path / "model.bin")
    assert model.labels == LABELS
    for text in ("glorp bridge", "unseen جسر words here", "river"):
        assert sorted(model.ids(text)) == sorted(slow_ids(text, pruned=pruned))
        wanted = slow_probabilities(slow_ids(text, pruned=pruned), inputs, outputs)
        found = dict(model.predict([text], k=3)[0])
        for label, value in zip(LABELS, wanted):
            assert found[label] == pytest.approx(value + 1e-5, abs=1e-5)  # fastText's own 1e-5 in its logarithm
        np.testing.assert_allclose(model.probabilities([text])[0], wanted, atol=2e-5)


def test_line_breaks_are_spaces_and_longer_lists_of_labels_come_in_order(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_bytes()[0])
    model = fasttext.load(tmp_path / "model.bin")
    broken, whole = model.predict(["glorp\nbridge\r\n\triver", "glorp bridge river"], k=2)
    assert broken == whole and len(whole) == 2 and whole[0][1] > whole[1][1]
    assert model.predict(["glorp"], k=3, threshold=0.99) == [[]]
    assert model.predict([], k=1) == [] and model.probabilities([]).shape == (0, 3)


def test_the_tree_of_labels_is_huffmans_and_its_probabilities_add_up():
    counts = [40, 30, 15, 10, 5]
    depths = {}
    for depth, (nodes, _, _) in enumerate(fasttext_file.huffman_tree(counts), 1):
        depths |= dict.fromkeys(nodes.tolist(), depth)
    assert [depths[leaf] for leaf in range(5)] == [1, 2, 3, 4, 4]
    logits = np.array([0.3, -1.0, 2.0, 0.5, 0.0], np.float32)
    found = fasttext.hierarchical_softmax(logits, fasttext_file.huffman_tree(counts))
    assert np.sum(found) == pytest.approx(1, abs=2e-4)  # up to the 1e-5 a turn
    assert np.sum(fasttext.hierarchical_softmax(logits[:1], fasttext_file.huffman_tree([3]))) == pytest.approx(1)


def test_a_scorer_gives_the_probability_of_the_label_asked_for(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_bytes()[0])
    score = scorers.load("fasttext", tmp_path / "model.bin", label="ar", name="arabic")
    batch = [{"text": "glorp جسر"}, {"text": "river"}]
    wanted = fasttext.load(tmp_path / "model.bin").probabilities([record["text"] for record in batch])[:, 1]
    assert [row["arabic.score"] for row in score(batch)] == pytest.approx(wanted)
    with pytest.raises(InputError, match="3 labels, ar, en, other"):
        scorers.load("fasttext", tmp_path / "model.bin", label="__label__xx")


def refused(path, content, words=None):
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        fasttext.load(path)


def test_other_files_are_refused_by_what_they_are(tmp_path):
    path = tmp_path / "model.bin"
    refused(path, b"", "it has 0 bytes")
    refused(path, b"a" * 500, "not a fastText model of version")
    refused(path, model_bytes({**SETTINGS, "model": 1})[0], "word vectors")
    refused(path, model_bytes({**SETTINGS, "loss": 9})[0], "settings")
    refused(path, model_bytes({**SETTINGS, "dim": 5})[0], "matrix")
    refused(path, model_bytes(pruned={1: 0})[0], "pruned dictionary")
    refused(path, model_bytes(pruned={1: 70}, quantised=True)[0], "input matrix")


@pytest.mark.parametrize("options", [{}, dict(quantised=True, pruned={1: 0, 2: 1})])
def test_a_damaged_file_is_refused_or_read_but_never_a_crash(options, tmp_path):
    content, path = model_bytes(**options)[0], tmp_path / "model.bin"
    for length in range(0, len(content), 13):
        refused(path, content[:length])
    rng = random.Random(0)
    outcomes = set()
    header = len(content) - 400 if options else 400
    for _ in range(250):
        damaged = bytearray(content)
        at = rng.randrange(min(header, len(content)))
        damaged[at] = rng.randrange(256)
        if rng.random() < 0.5:
            damaged[at : at + 4] = struct.pack("<i", rng.choice([-1, 2**31 - 1, 2**30, 0]))
        path.write_bytes(bytes(damaged))
        try:
            model = fasttext.load(path)
            values = [value for row in model.predict(["glorp جسر unseen", ""], k=3) for _, value in row]
            outcomes.add(all(math.isfinite(value) for value in values))
        except InputError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}
