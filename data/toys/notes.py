"""Made-up pairs for a rewriter: short English and Arabic notes on everyday things, some with a fault planted.

A fault is a placeholder for an insult, an advert, a prejudice against a people that does not exist, or a word said
twice. The rewritten form is the same text without the fault. Nothing in them is a real insult.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.toys import tables

FAULTS = ("insult", "advert", "prejudice", "repeated")
UNSAFE = {"[insult]": 3.0, "[إهانة]": 3.0, "[slur]": 2.0, "[وصمة]": 2.0, "[shop]": 1.0, "[متجر]": 1.0}  # safety scores
LISTS = 0.35  # share of sentences that are lists
LANGUAGES = tables.load("notes")


def pairs(num: int, seed: int = 0, *, faulty: float = 0.7) -> list[dict[str, str]]:
    """Records of `origin`, `rewritten`, `planted` (a fault, or "") and `language`, half of them Arabic.

    Args:
        faulty: share of the pairs with one fault; the other originals have none and stay as they are.
    """
    return [_pair(random.Random(f"{seed}/rewrite/{i}"), faulty) for i in range(num)]


def _pair(rng: random.Random, faulty: float) -> dict[str, str]:
    language = rng.choice(sorted(LANGUAGES))
    words = LANGUAGES[language]
    planted = rng.choice(FAULTS) if rng.random() < faulty else ""
    sentences = [_sentence(rng, words) for _ in range(rng.randint(1, 2))]
    if planted == "prejudice" and not any(people in s for s in sentences for people in words["peoples"]):
        sentences[0] = _sentence(rng, words, rng.choice(words["peoples"]))
    faulty_sentences = list(sentences)
    if planted in ("insult", "advert"):
        extra = _filled(rng, rng.choice(words[planted]))
        faulty_sentences.insert(rng.randint(0, len(sentences)), extra)
    elif planted:
        at = next((i for i, s in enumerate(sentences) if any(p in s for p in words["peoples"])), 0)
        faulty_sentences[at] = _spoilt(rng, words, sentences[at], planted)
    origin, rewritten = " ".join(faulty_sentences), " ".join(sentences)
    return {"origin": origin, "rewritten": rewritten, "planted": planted, "language": language}


def _spoilt(rng: random.Random, words: Mapping[str, Any], sentence: str, planted: str) -> str:
    """The sentence with a prejudice after the people it names, or with one word said twice."""
    if planted == "prejudice":
        people = next(p for p in words["peoples"] if p in sentence)
        before, _, after = sentence.partition(people)
        return f"{before}{people} {rng.choice(words['prejudice'])}{after}"
    parts = sentence.split(" ")
    at = rng.randrange(1, len(parts) - 1)
    return " ".join([*parts[: at + 1], *parts[at:]])


def _sentence(rng: random.Random, words: Mapping[str, Any], who: str = "") -> str:
    """A note on who did what, or sometimes a list of words, which a model can copy and cannot guess."""
    if not who and rng.random() < LISTS:
        named = [word for name in ("who", "did", "what") for word in words[name]]
        return _filled(rng, " ".join([rng.choice(words["list"]), *rng.sample(named, rng.randint(3, 8))]) + ".")
    parts = {name: rng.choice(words[name]) for name in ("time", "who", "did", "what", "where")}
    parts["who"] = who or parts["who"]
    return _filled(rng, words["order"].format(**parts))


def _filled(rng: random.Random, text: str) -> str:
    """The text with a new number for each {year} and {num}."""
    text = re.sub(r"\{year\}", lambda _: str(rng.randint(1801, 1899)), text)
    return re.sub(r"\{num\}", lambda _: str(rng.randint(11, 99)), text)


def safety(texts: Sequence[str]) -> list[float]:
    """Scores in [0, 3] of made-up texts, each that of the worst placeholder in the text."""
    return [max((score for word, score in UNSAFE.items() if word in text), default=0.0) for text in texts]
