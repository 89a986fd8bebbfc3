"""MinHash: the sheet's worked numbers, unbiased estimates, and signatures that depend on nothing but their text."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.filtering.duplicates import bands, datatrove_words, minhash, shingles

FOX = "the quick brown fox jumps over the lazy dog "
DISTINCT = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]  # sixty words without digits
DATATROVE = minhash.Settings(mode="datatrove")
FAST = minhash.Settings()
CHARACTERS = minhash.Settings(n_grams=24, num_buckets=20, hashes_per_bucket=13, unit="character")


def numbered(changed=None):
    return " ".join("x" if i == changed else f"w{i}" for i in range(60))


def jaccard(a, b):
    return len(a & b) / len(a | b)


def slow_shingles(text, n=5):
    """The n-grams themselves, as tuples of words, of a text in lower case without signs."""
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def fast_shingles(text, **options):
    return {x for block in shingles.blocks([text], n=5, **options) for x in block.shingles_S.tolist()}


def compare(a, b, s):
    """Equal entries, and equal bands, of two texts."""
    signatures = minhash.signatures([a, b], s)
    keys = minhash.band_keys(signatures, s)
    return int((signatures[0] == signatures[1]).sum()), int((keys[0] == keys[1]).sum())


@pytest.mark.parametrize(
    ("similarity", "expected"),
    [(0.5, 0.0533), (0.6, 0.2111), (0.7, 0.5645), (0.75, 0.7716), (0.8, 0.9235), (0.85, 0.9884), (0.9, 0.9996)],
)
def test_fourteen_bands_of_eight_meet_with_the_probabilities_of_the_sheet(similarity, expected):
    assert minhash.probability(similarity) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("similarity", "expected"), [(0.8, 0.6773), (0.85, 0.9240), (0.9, 0.9972)])
def test_twenty_bands_of_thirteen_meet_with_the_probabilities_of_the_sheet(similarity, expected):
    assert minhash.probability(similarity, 20, 13) == pytest.approx(expected, abs=5e-5)


def test_hashed_shingles_have_the_jaccard_similarity_worked_out_by_hand():
    today, tomorrow = fast_shingles(FOX + "today"), fast_shingles(FOX + "tomorrow")
    assert (len(today), len(tomorrow), len(today & tomorrow)) == (6, 6, 5)
    text = " ".join(DISTINCT)
    last = fast_shingles(" ".join([*DISTINCT[:59], "x"]))
    middle = fast_shingles(" ".join([*DISTINCT[:30], "x", *DISTINCT[31:]]))
    assert jaccard(fast_shingles(text), last) == pytest.approx(0.964912, abs=1e-6)
    assert jaccard(fast_shingles(text), middle) == pytest.approx(0.836066, abs=1e-6)
    assert minhash.probability(0.836066) == pytest.approx(0.9780, abs=5e-5)


def test_datatrove_signature_has_the_numbers_of_the_sheet():
    factors, offsets = minhash._datatrove_parameters(1, 112)
    assert factors[:2].tolist() == [775169054918279404, 1758426461858698313]
    assert offsets[:2].tolist() == [1062448801025099917, 1324811268927594100]
    assert minhash._sha1([b"the quick brown fox jumps"])[0] == 12313522834835307089
    signature = minhash.signatures([FOX + "today"], DATATROVE)[0]
    start = [411606762430784536, 284080765670708113, 545916850315717829, 226360113463360020]
    assert signature[:4].tolist() == start


def test_datatrove_signatures_agree_where_the_sheet_says():
    assert compare(FOX + "today", FOX + "tomorrow", DATATROVE) == (83, 0)


def test_a_datatrove_signature_equals_its_definition_in_python_integers():
    """One shingle at a time; a x + b wraps at 2^64 before the prime is taken off."""
    words = datatrove_words.words(numbered())
    assert words[:3] == ["w0", "w0", "w0"]  # numbers become 0, in the middle of a word too
    hashed = [minhash._sha1([" ".join(words[i : i + 5]).encode()])[0] for i in range(len(words) - 4)]
    a, b = minhash._datatrove_parameters(1, 112)
    slow = [min((int(x) * int(a[h]) + int(b[h])) % 2**64 % (2**61 - 1) for x in hashed) for h in range(112)]
    assert minhash.signatures([numbered()], DATATROVE)[0].tolist() == slow


def test_sixty_words_with_one_changed_share_as_many_hashes_as_the_sheet_says():
    """Its words w0 ... w59 go in as they are, without datatrove's numbers-to-0."""

    def signature(changed):
        words = numbered(changed).split()
        grams = [" ".join(words[i : i + 5]).encode() for i in range(56)]
        return minhash._datatrove_minima(minhash._sha1(grams), DATATROVE)

    text, last, middle = (signature(changed) for changed in (None, 59, 30))
    for other, share, num_bands in ((last, 0.9643, 10), (middle, 0.8125, 4)):
        keys = minhash.band_keys(np.stack([text, other]), DATATROVE)
        assert (text == other).mean() == pytest.approx(share, abs=5e-5)
        assert (keys[0] == keys[1]).sum() == num_bands


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8])
def test_the_share_of_equal_hashes_estimates_jaccard_without_bias_and_with_binomial_spread(similarity):
    random, num, size = np.random.default_rng(int(10 * similarity)), 300, 60
    texts = ([], [])
    for _ in range(num):
        words = ["".join(letters) for letters in random.choice(list("abcdefghij"), (size, 9))]
        shared = round(size * similarity)
        half = shared + (size - shared) // 2
        texts[0].append(" ".join(words[:half]))
        texts[1].append(" ".join(words[:shared] + words[half:]))
    s = minhash.Settings(n_grams=1)
    estimates = (minhash.signatures(texts[0], s) == minhash.signatures(texts[1], s)).mean(axis=1)
    spread = (similarity * (1 - similarity) / 112) ** 0.5
    assert abs(estimates.mean() - similarity) < 4 * spread / num**0.5
    assert 0.85 * spread < estimates.std() < 1.15 * spread  # 300 pairs know it to within 4 %


def test_texts_meet_in_a_band_as_often_as_the_curve_says():
    random, num, size = np.random.default_rng(0), 400, 60
    s = minhash.Settings(n_grams=1)
    for similarity in (0.6, 0.7, 0.8):
        shared, texts = round(size * similarity), ([], [])
        for _ in range(num):
            words = ["".join(letters) for letters in random.choice(list("abcdefghij"), (size, 9))]
            half = shared + (size - shared) // 2
            texts[0].append(" ".join(words[:half]))
            texts[1].append(" ".join(words[:shared] + words[half:]))
        keys = [minhash.band_keys(minhash.signatures(side, s), s) for side in texts]
        met, expected = (keys[0] == keys[1]).any(axis=1).mean(), minhash.probability(similarity)
        assert abs(met - expected) < 4 * (expected * (1 - expected) / num) ** 0.5


words_of = st.lists(st.sampled_from(["a", "bc", "the", "fox", "qu", "zz"]), max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(words_of, words_of)
def test_shingles_are_equal_exactly_where_the_words_are(a, b):
    assert jaccard_or_one(slow_shingles(a), slow_shingles(b)) == jaccard_or_one(fast_shingles(a), fast_shingles(b))


def jaccard_or_one(a, b):
    return jaccard(a, b) if a | b else 1.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=12), st.sampled_from([FAST, CHARACTERS, DATATROVE]))
def test_a_signature_depends_on_its_own_text_alone(texts, s):
    together = minhash.signatures(texts, s)
    assert together.shape == (len(texts), s.num_hashes) and together.dtype == np.uint64
    for text, signature in zip(texts, together):
        np.testing.assert_array_equal(minhash.signatures([text], s)[0], signature)


@pytest.mark.parametrize("s", [FAST, CHARACTERS, DATATROVE], ids=["words", "characters", "datatrove"])
def test_a_long_text_cut_into_blocks_has_the_signature_of_the_whole(s, monkeypatch):
    random = np.random.default_rng(3)
    long = " ".join("".join(letters) for letters in random.choice(list("abcé0"), (3_000, 5)))
    texts = ["short one", long, "", long[:100]]
    whole = minhash.signatures(texts, s)
    monkeypatch.setattr(shingles, "BLOCK", 1_000)
    monkeypatch.setattr(minhash, "_BLOCK", 100)
    shingles._powers.cache_clear()
    in_blocks = minhash.signatures(texts, s)
    shingles._powers.cache_clear()
    np.testing.assert_array_equal(in_blocks, whole)


def test_case_numbers_signs_marks_and_spaces_make_no_difference():
    text = "In 2021 the café served 1234 guests at noon and closed early on rainy days"
    same = "in 7, the “CAFE\u0301” served: 99 guests\n\nat noon (and closed) early on   rainy days!"
    for s in (FAST, CHARACTERS, DATATROVE):
        assert compare(text, same, s) == (s.num_hashes, s.num_buckets)


def test_harakat_and_tatweel_do_not_hide_an_arabic_duplicate():
    plain = "ذهب الولد الى المدرسة في الصباح الباكر ثم عاد الى بيته"
    vowelled = "ذَهَبَ الوَلَدُ الى المَدرَسَةِ في الصَّباحِ الباكِرِ، ثُمَّ عادَ الى بَيتِهِ."
    assert compare(plain, vowelled, FAST) == (112, 14)


def test_texts_written_without_spaces_have_a_shingle_at_every_character():
    text = "今日は良い天気ですから公園へ散歩に行きましょう"
    assert len(fast_shingles(text)) == len(text) - 4
    assert jaccard(fast_shingles(text), fast_shingles(text[:-1] + "か")) == pytest.approx(
        (len(text) - 5) / (len(text) - 3)
    )


@pytest.mark.parametrize("text", ["", " \n\t", "!!! ...", "\u200b\u0301"])
def test_a_text_without_words_has_no_signature_and_no_key(text):
    for s in (FAST, CHARACTERS, DATATROVE):
        signatures = minhash.signatures(["some words to stand beside it", text], s)
        assert (signatures[1] == minhash.EMPTY).all() and not (signatures[0] == minhash.EMPTY).any()
        keys = minhash.band_keys(signatures, s)
        assert (keys[1] == bands.NO_KEY).all() and not (keys[0] == bands.NO_KEY).any()


def test_a_short_text_is_one_shingle_of_all_its_words_and_datatrove_leaves_it_out():
    assert compare("Hello, World", "hello world", FAST) == (112, 14)
    assert compare("hello world", "hello", FAST)[1] == 0
    assert compare("hello world", "world hello", FAST)[1] == 0
    assert (minhash.signatures(["only four words here"], DATATROVE) == minhash.EMPTY).all()


def test_lone_surrogates_are_text_like_any_other():
    for s in (FAST, CHARACTERS, DATATROVE):
        assert compare("bad \ud800 escape in a page of words", "bad \ud800 escape in a page of words", s)[1] > 0


def test_seeds_make_unrelated_signatures():
    text = [FOX + "today"]
    other = minhash.Settings(seed=2)
    assert not (minhash.signatures(text, FAST) == minhash.signatures(text, other)).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_grams=0), "n_grams=0"),
        (dict(unit="line"), "unit='line'"),
        (dict(mode="slow"), "mode='slow'"),
        (dict(mode="datatrove", unit="character"), "mode='fast' has both"),
    ],
)
def test_unknown_settings_are_refused_with_a_way_out(options, message):
    with pytest.raises(InputError, match=message):
        minhash.Settings(**options)


def test_words_without_an_apostrophe_are_split_as_the_reference_splits_them(monkeypatch):
    text = "We cannot say; it dont matter, 25km at 3.5% \u00a3300 ☂rain 5\u20ac \u2018quoted\u2019"
    expected = "we can not say it do nt matter 0 km at 0 \u00a3 0 ☂ rain 0 \u20ac \u2018 quoted"
    assert datatrove_words.words(text) == expected.split()
    monkeypatch.setattr(datatrove_words, "_MOST_PIECES", 3)  # what was remembered is forgotten
    assert datatrove_words.words(text) == datatrove_words.words(text) == expected.split()


def test_importing_deduplication_loads_neither_jax_nor_the_reference():
    names = "exact, minhash, bands, clusters, bloom"
    imports = f"import sys; from alignment.filtering.duplicates import {names}; "
    loaded = imports + "print(*{m.split('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "torch", "spacy", "datatrove", "scipy"} & set(found)
