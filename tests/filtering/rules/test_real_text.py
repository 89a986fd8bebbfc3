"""Real text in two languages through the whole pipeline: what a reader of both would expect of the funnel."""

import collections
import csv
import functools
import json

import pytest

from alignment.filtering import pipeline
from alignment.filtering.duplicates import minhash
from alignment.filtering.rules import arabic, language, locales
from experiments.filtering import tools as filter_tools

CHAIN = ("url", "mojibake", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii")
PACKS = {name: locales.load(name) for name in ("en", "ar")}
SHARES = {  # of documents kept, by source: at least, at most
    "c4": (0.65, 0.85),  # lists, prices and short pages go
    "arcd": (0.5, 0.75),  # a fifth are shorter than 50 words
    "xquad_ar": (0.85, 1.0),
    "xquad_en": (0.35, 0.6),  # C4 asks for five sentences, and half of the paragraphs have fewer
    "tashkeela": (0.9, 1.0),
    "tashkeela_bare": (0.9, 1.0),
    "tweets": (0.0, 0.3),  # ten tweets are no page, and many of their words are tags and marks
}
ASKED_FOR = ("free", "war")  # in the place of a scorer, words that send a document to the rewriter


def record(source, i, text):
    return {"id": f"{source}-{i}", "text": text, "source": source, "metadata": {}}


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def documents(shared_data):
    found = {
        "c4": [row["text"] for row in lines_of(shared_data / "text_en_web/c4_demo.jsonl")[:150]],
        "arcd": [row["text"] for row in lines_of(shared_data / "text_ar_wikipedia_arcd/arcd_train.jsonl")],
        "xquad_ar": [row["text"] for row in lines_of(shared_data / "text_xquad_ar_en/xquad_ar_a.jsonl")],
        "xquad_en": [row["text"] for row in lines_of(shared_data / "text_xquad_ar_en/xquad_en_a.jsonl")],
    }
    verses = (shared_data / "text_ar_tashkeela/tashkeela_val.txt").read_text("utf-8").splitlines()
    pages = ["\n".join(verses[i : i + 5]) for i in range(0, 1_000, 5)]
    found["tashkeela"], bare = pages[:100], pages[100:]
    found["tashkeela_bare"] = [arabic.normalise(text, alef=False) for text in bare]
    with open(shared_data / "toxicity_en_davidson/labeled_data_a.csv", encoding="utf-8", newline="") as f:
        tweets = [row["tweet"] for row in csv.DictReader(f)]
    found["tweets"] = ["\n".join(tweets[i : i + 10]) for i in range(0, 600, 10)]
    return [record(source, i, text) for source, texts in found.items() for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def filtered(documents):
    screening = pipeline.Screening(
        chain=CHAIN,
        settings={"c4": {"terminal_punctuation": False}},
        packs=PACKS,
        language_fn=functools.partial(language.identify, packs=PACKS),
        minhash=minhash.Settings(),
        exact=True,
    )

    def score(rows):
        return [{"safety.level": float(any(word in row["text"].lower() for word in ASKED_FOR))} for row in rows]

    aligning = pipeline.Aligning(score="safety.level", rewrite=lambda rows, kind: [row["text"] for row in rows])
    return pipeline.clean(documents, screening, filter_tools.in_languages(score, "safety", "en"), aligning)


def test_nothing_is_lost_between_the_steps(documents, filtered):
    kept, decisions = filtered
    assert [row["id"] for row in decisions] == [d["id"] for d in documents]
    assert [d["id"] for d in kept] == [row["id"] for row in decisions if row["action"] != "drop"]
    assert all(row["reason"] and row["rule"] for row in decisions if row["action"] == "drop")


def test_a_sensible_share_of_every_source_stays(filtered):
    _, decisions = filtered
    actions = collections.defaultdict(list)
    for row in decisions:
        actions[row["source"]].append(row["action"] != "drop")
    shares = {source: sum(found) / len(found) for source, found in actions.items()}
    assert set(shares) == set(SHARES)
    for source, (least, most) in SHARES.items():
        assert least <= shares[source] <= most, f"{source}: {shares[source]:.2f} kept"


def test_no_text_is_taken_for_another_language(filtered):
    _, decisions = filtered
    lost = [row["id"] for row in decisions if row["rule"] == "language"]
    assert len(lost) <= 3, lost


def test_a_scorer_of_english_leaves_arabic_alone(filtered):
    _, decisions = filtered
    arabic_sources = ("arcd", "xquad_ar", "tashkeela", "tashkeela_bare")
    kept = [row for row in decisions if row["source"] in arabic_sources and row["action"] == "keep"]
    assert kept and all((row["rule"], row["reason"]) == ("router", "not_scored") for row in kept)
    asked = [row for row in decisions if row["rule"] == "rewriter"]
    assert asked and all(row["source"] in ("c4", "xquad_en", "tweets") for row in asked)


def test_kept_text_is_the_original_but_for_whole_lines_and_addresses(documents, filtered):
    """What rules take out are lines, reference marks and personal data; letters stay as they were."""
    kept, _ = filtered
    texts = {d["id"]: d["text"] for d in documents}
    ratio = sum(len(d["text"]) for d in kept) / sum(len(texts[d["id"]]) for d in kept)
    assert 0.93 < ratio <= 1.0
    same = sum(texts[d["id"]].strip() == d["text"].strip() for d in kept)
    assert same / len(kept) > 0.5
