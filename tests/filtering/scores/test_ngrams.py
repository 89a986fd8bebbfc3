import collections
import itertools
import math
import random
import unicodedata

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.filtering.scores import chunks, ngrams

MASK = (1 << 64) - 1
TEXTS = [
    "The Glorps opened a library. The Glorps!",
    "",
    "   \n ",
    "a",
    "كل الغلوربيون سيئون، كما يُقال.",
    "日本語 text 😀😀 and 42 numbers: a_b-c",
    "Ünïcödé É e\u0301 x" * 3,
    "same same same same",
    "\U0001d54fy 𠀀𠀀",
]


def slow_mix(h):
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def slow_words(text):
    """Words by the sheet: runs of letters, digits and marks; symbols and ideographs alone."""
    words, run = [], ""
    for character in text:
        category = unicodedata.category(character)
        name = unicodedata.name(character, "")
        is_alone = category == "So" or name.startswith(("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER"))
        if not is_alone and category[0] in "LMN":
            run += character
            continue
        words += [run] if run else []
        words += [character] if is_alone else []
        run = ""
    return words + ([run] if run else [])


def slow(text, chosen):
    """{bucket: value} of one text, an n-gram at a time."""
    text = f" {' '.join((text.lower() if chosen.lower else text).split())} "
    hashes = []
    low, high = chosen.characters
    for n in range(low, high + 1) if high else ():
        for i in range(len(text) - n + 1):
            h = 0
            for character in text[i : i + n]:
                h = (h * 0x9E3779B97F4A7C15 + slow_mix(ord(character) + 1)) & MASK
            hashes.append(h)
    words = []
    for word in slow_words(text):
        h = sum(slow_mix(ord(c) + 0x51ED2701) * pow(0xC2B2AE3D27D4EB4F, i, 1 << 64) for i, c in enumerate(word))
        words.append(slow_mix((h + len(word)) & MASK))
    low, high = chosen.words
    for n in range(low, high + 1) if high else ():
        for i in range(len(words) - n + 1):
            h = 0
            for word in words[i : i + n]:
                h = (h * 0xC2B2AE3D27D4EB4F + word) & MASK
            hashes.append(h ^ 0xC2B2AE3D27D4EB4F)
    counts = collections.Counter()
    bits = chosen.buckets.bit_length() - 1
    for h in map(slow_mix, hashes):
        top = h >> (63 - bits)  # bucket, then sign
        counts[top >> 1] += -1 if top & 1 else 1
    length = math.sqrt(sum(count**2 for count in counts.values()))
    return {bucket: count / length for bucket, count in counts.items() if count}


@pytest.mark.parametrize(
    "chosen",
    [
        ngrams.Settings(),
        ngrams.Settings(words=(1, 3), characters=(0, 0), buckets=64),
        ngrams.Settings(words=(0, 0), characters=(1, 8), lower=False),
        ngrams.Settings(words=(2, 2), characters=(4, 4), buckets=2),
    ],
)
def test_features_are_those_of_a_naive_reading(chosen):
    found = ngrams.features(TEXTS, chosen)
    for i, text in enumerate(TEXTS):
        span = slice(found.offsets[i], found.offsets[i + 1])
        wanted = dict(sorted(slow(text, chosen).items()))
        assert found.ids_E[span].tolist() == list(wanted), text
        np.testing.assert_allclose(found.values_E[span], list(wanted.values()), rtol=1e-6)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(st.text(max_size=40), max_size=8), st.integers(0, 2**31))
def test_a_texts_features_do_not_depend_on_its_company(texts, seed):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    chosen = ngrams.Settings(buckets=1 << 10)
    together = ngrams.features(texts, chosen)
    weights = np.random.default_rng(seed).normal(size=(1 << 10, 2)).astype(np.float32)
    products = ngrams.dot(together, weights)
    for i, text in enumerate(texts):
        alone = ngrams.features([text], chosen)
        span = slice(together.offsets[i], together.offsets[i + 1])
        np.testing.assert_array_equal(alone.ids_E, together.ids_E[span])
        np.testing.assert_array_equal(alone.values_E, together.values_E[span])
        np.testing.assert_array_equal(ngrams.dot(alone, weights)[0], products[i])


def test_a_batch_longer_than_a_group_is_handled_alike(monkeypatch):
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcde  ", k=rng.randint(0, 300))) for _ in range(200)]
    whole = ngrams.features(texts)
    monkeypatch.setattr(ngrams, "GROUP", 500)
    for ours, theirs in zip(ngrams.features(texts), whole):
        np.testing.assert_array_equal(ours, theirs)
    assert len(whole.offsets) == 201


def test_rows_have_length_one_and_products_are_those_of_dense_vectors():
    chosen = ngrams.Settings(buckets=256)
    found = ngrams.features(TEXTS, chosen)
    dense = np.zeros((len(TEXTS), 256))
    for i in range(len(TEXTS)):
        span = slice(found.offsets[i], found.offsets[i + 1])
        dense[i, found.ids_E[span]] = found.values_E[span]
    lengths = np.linalg.norm(dense, axis=1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-6)
    assert np.flatnonzero(lengths == 0).tolist() == [1, 2]  # nothing but space: too short for an n-gram of 3
    weights = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    np.testing.assert_allclose(ngrams.dot(found, weights), dense @ weights, atol=1e-5)


def test_padded_rows_hold_the_same_and_longer_texts_are_thinned_out():
    found = ngrams.features(TEXTS)
    longest = int(np.diff(found.offsets).max())
    ids, values = ngrams.padded(found, longest + 5)
    weights = np.random.default_rng(0).normal(size=(1 << 18, 1)).astype(np.float32)
    products = np.sum(values * weights[ids, 0], axis=1)
    np.testing.assert_allclose(products, ngrams.dot(found, weights)[:, 0], atol=1e-5)
    ids, values = ngrams.padded(found, 10)
    assert ids.shape == (len(TEXTS), 10)
    cut = np.diff(found.offsets) > 10
    np.testing.assert_allclose(np.linalg.norm(values[cut], axis=1), 1, rtol=1e-6)
    assert set(ids[0]) <= set(found.ids_E[: found.offsets[1]].tolist()) and len(set(ids[0])) == 10


def test_one_letter_changes_few_features_and_order_of_words_only_the_pairs():
    words = ngrams.Settings(characters=(0, 0), words=(1, 1))
    same = [ngrams.features([text], words) for text in ("alpha beta gamma", "gamma, alpha; beta")]
    np.testing.assert_array_equal(same[0].ids_E, same[1].ids_E)
    pairs = [ngrams.features([text]) for text in ("alpha beta gamma delta", "alpha beta gamma delto")]
    shared = len(set(pairs[0].ids_E) & set(pairs[1].ids_E))
    assert shared > 0.7 * len(pairs[0].ids_E)


def test_settings_that_make_no_sense_are_refused():
    for change, words in [
        (dict(buckets=1000), "power of 2"),
        (dict(buckets=1 << 30), "power of 2"),
        (dict(words=(2, 1)), r"words=\(2, 1\)"),
        (dict(characters=(3, 9)), "shortest, longest"),
        (dict(words=(0, 0), characters=(0, 0)), "no n-grams"),
        (dict(bucket=8), "'bucket' is not one of"),
    ]:
        with pytest.raises(InputError, match=words):
            ngrams.settings(change)
    assert ngrams.settings({"words": [1, 2]}) == ngrams.Settings()


@hypothesis.given(st.text(alphabet="ab \n\u00a0", max_size=200), st.integers(1, 5), st.integers(1, 20))
def test_pieces_make_up_the_text_and_keep_to_their_lengths(text, words, characters):
    pieces = chunks.split(text, words, characters)
    assert "".join(pieces) == text and pieces
    assert chunks.first(text, words, characters) == pieces[0]
    if len(text) > words:
        assert all(len(piece.split()) <= words for piece in pieces)
        assert all(len(piece.rstrip()) <= characters + len(piece) - len(piece.lstrip()) for piece in pieces)


@hypothesis.given(st.lists(st.text(alphabet="ab \n\u00a0𝄞ج", max_size=60), max_size=6), st.integers(0, 5))
def test_spans_cut_each_text_exactly_into_its_pieces(texts, words):
    pieces, owners = chunks.of_texts(texts, words)
    found = chunks.spans(texts, owners, chunks.starts(pieces, owners), range(len(pieces)))
    cut = [text[start:end] for text, spans in zip(texts, found, strict=True) for start, end, _ in spans]
    assert cut == pieces and [value for spans in found for *_, value in spans] == list(range(len(pieces)))
    for text, spans in zip(texts, found):
        assert spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))


def test_a_texts_pieces_are_pooled_in_one_pass():
    values = np.array([[1.0, 10], [3, 30], [2, 20], [5, 50]])
    owners = np.array([0, 0, 0, 1])
    best = chunks.pool(values, owners, 2, "max", by_P=values[:, 0])
    np.testing.assert_array_equal(best, [[3, 30], [5, 50]])
    np.testing.assert_array_equal(chunks.pool(values, owners, 2, "mean", values[:, 0]), [[2, 20], [5, 50]])
    assert chunks.pool(values[:0], owners[:0], 0, "max", values[:0, 0]).shape == (0, 2)
