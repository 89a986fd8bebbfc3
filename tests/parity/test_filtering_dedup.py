"""MinHash deduplication beside datatrove's four stages, on real English text with planted near duplicates."""

import itertools
import json
import struct
import time

import numpy as np
import pytest

from alignment.filtering.duplicates import bands, clusters, datatrove_words, minhash

pytest.importorskip("datatrove")
pytest.importorskip("spacy")

from datatrove.data import Document
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import simplify_text
from datatrove.utils.word_tokenizers import load_word_tokenizer

NUM_SLICES = 3
SETTINGS = minhash.Settings(mode="datatrove")


def real_texts(shared_data):
    with open(shared_data / "text_en_web/c4_demo.jsonl", encoding="utf-8") as f:
        texts = [json.loads(line)["text"] for line in f]
    with open(shared_data / "text_en_wikitext2/wikitext2_valid.txt", encoding="utf-8") as f:
        texts += [line for line in f if len(line) > 300][:300]
    with open(shared_data / "text_xquad_ar_en/xquad_en_a.jsonl", encoding="utf-8") as f:
        texts += [json.loads(line)["text"] for line in f][:100]
    return texts


def edited(text, rate, random):
    """Words replaced, dropped and repeated at this rate."""
    words = text.split(" ")
    for i in np.flatnonzero(random.random(len(words)) < rate):
        words[i] = ["edited", "", f"{words[i]} {words[i]}"][random.integers(3)]
    return " ".join(words)


@pytest.fixture(scope="module")
def corpus(shared_data):
    """Real documents, and 200 edited copies of some at several rates, shuffled."""
    random = np.random.default_rng(0)
    texts = real_texts(shared_data)
    rates = random.choice([0.0, 0.002, 0.01, 0.02, 0.03, 0.05, 0.1], 200)
    texts += [edited(texts[random.integers(len(texts))], rate, random) for rate in rates]
    texts += ["", "too short", "!!!"]
    return [texts[i] for i in random.permutation(len(texts))]


@pytest.fixture(scope="module")
def slices(corpus):
    return [corpus[i::NUM_SLICES] for i in range(NUM_SLICES)]


@pytest.fixture(scope="module")
def reference(slices, tmp_path_factory):
    """datatrove's folder after all stages, and what its filter lets through."""
    folder = tmp_path_factory.mktemp("datatrove")
    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc="sha1"))
    for rank, texts in enumerate(slices):
        documents = [Document(text=text, id=f"{rank}/{i}") for i, text in enumerate(texts)]
        MinhashDedupSignature(str(folder / "signatures"), config=config).run(documents, rank, NUM_SLICES)
    for rank in range(config.num_buckets):
        stage = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=config)
        stage.run(None, rank, config.num_buckets)
    MinhashDedupCluster(str(folder / "pairs"), str(folder / "removed"), config=config, save_cluster_id=True).run()
    kept = []
    for rank, texts in enumerate(slices):
        documents = [Document(text=text, id=f"{rank}/{i}") for i, text in enumerate(texts)]
        kept += [d.id for d in MinhashDedupFilter(str(folder / "removed")).run(documents, rank, NUM_SLICES)]
    return folder, kept


def reference_clusters(folder):
    groups = {}
    for path in (folder / "removed").glob("*.clusters"):
        for index, group in struct.iter_unpack("<2I", path.read_bytes()):
            groups.setdefault(group, set()).add((int(path.stem), index))
    return {frozenset(group) for group in groups.values()}


def ours(slices, folder, s):
    paths = []
    for number, texts in enumerate(slices):
        paths.append(folder / f"{number:05d}.keys")
        keys = minhash.band_keys(minhash.signatures(texts, s), s)
        bands.write(paths[-1], keys, np.arange(len(texts)))
    return clusters.solve(chunk for band in range(s.num_buckets) for chunk in bands.pairs(paths, band))


def groups_of(found):
    groups = {}
    for removed, kept in found.as_dict().items():
        groups.setdefault(kept, {kept}).add(removed)
    return {frozenset(group) for group in groups.values()}


def test_every_signature_equals_datatroves_bit_for_bit(slices, reference):
    folder, _ = reference
    record = np.dtype([("hashes", "<u8", 8), ("index", "<u4")])
    for rank, texts in enumerate(slices):
        signatures = minhash.signatures(texts, SETTINGS).reshape(len(texts), 14, 8)
        has_signature = ~(signatures == minhash.EMPTY).all(axis=(1, 2))
        for bucket in range(14):
            theirs = np.fromfile(folder / f"signatures/bucket_{bucket:03d}/{rank:05d}.minhash.sig", record)
            np.testing.assert_array_equal(np.sort(theirs["index"]), np.flatnonzero(has_signature))
            np.testing.assert_array_equal(theirs["hashes"], signatures[theirs["index"], bucket])


def test_clusters_and_the_number_of_removed_documents_equal_datatroves(slices, reference, tmp_path):
    folder, kept = reference
    found = ours(slices, tmp_path, SETTINGS)
    assert groups_of(found) == reference_clusters(folder)
    assert len(groups_of(found)) > 80  # the planted copies are there to be found
    assert len(found) == sum(map(len, slices)) - len(kept)


def grams(text):
    words = datatrove_words.words(text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_fast_mode_differs_from_datatroves_duplicates_near_the_threshold_alone(slices, reference, tmp_path):
    """Other hash functions: at a similarity of .6 to .85 a pair is found with probability .2 to .99, by either."""
    groupings = groups_of(ours(slices, tmp_path, minhash.Settings())), reference_clusters(reference[0])
    fast, theirs = ({pair for g in groups for pair in itertools.combinations(sorted(g), 2)} for groups in groupings)
    assert len(fast & theirs) > 0.75 * len(fast | theirs)
    for (a, i), (b, j) in fast ^ theirs:
        left, right = grams(slices[a][i]), grams(slices[b][j])
        assert 0.5 < len(left & right) / len(left | right) < 0.9


def test_words_of_arabic_and_of_rare_signs_are_split_as_spacy_splits_them(shared_data):
    splitter = load_word_tokenizer("eng")
    texts = (shared_data / "text_ar_tashkeela/tashkeela_val.txt").read_text(encoding="utf-8").split("\n")[:40]
    texts += (shared_data / "text_ar_wikipedia_arcd/arcd_train.jsonl").read_text(encoding="utf-8").split("\n")[:15]
    signs = "\u00bfa \u00a33 3\u00a3 5km 3\u03bcg ☂a☂b x\u20ac \u2018dont\u2019 a\u2260b \u226ea \u300ecannot\u300f "
    signs += "\U0001fae0z 0\u043a\u0433 \u0665\u0643\u0645"
    for text in [*texts, signs, signs.replace(" ", "")]:
        assert datatrove_words.words(text) == splitter.word_tokenize(simplify_text(text))


@pytest.mark.parametrize("hash_name", ["sha1", "xxhash"])
def test_both_of_datatroves_hash_functions_are_there(corpus, hash_name):
    config = MinhashConfig(hash_config=HashConfig(precision=64, hash_fc=hash_name))
    stage = MinhashDedupSignature("unused", config=config)
    theirs = [np.ravel(stage.get_signature(stage.get_shingles(text))) for text in corpus[:10] if len(text) > 100]
    texts = [text for text in corpus[:10] if len(text) > 100]
    s = minhash.Settings(mode="datatrove", shingle_hash=hash_name)
    np.testing.assert_array_equal(minhash.signatures(texts, s), theirs)


def test_fast_signatures_take_less_than_a_tenth_of_datatroves_time(corpus):
    texts = [text for text in corpus if 1_500 < len(text) < 4_000][:40]
    stage = MinhashDedupSignature("unused", config=MinhashConfig())
    stage.get_shingles(texts[0])
    minhash.signatures([*texts, "é"], minhash.Settings())
    start = time.process_time()
    for text in texts:
        stage.get_signature(stage.get_shingles(text))
    middle = time.process_time()
    for _ in range(10):
        minhash.signatures(texts, minhash.Settings())
    assert (time.process_time() - middle) / 10 < (middle - start) / 10
