"""Open answers against references: n-gram overlap by kept libraries, and perplexity by words and bytes.

BLEU is sacrebleu's, ROUGE rouge-score's (extra `eval`), over words that Unicode calls so: rouge-score's own tokenizer
keeps a to z and digits only, which cuts Spanish words and leaves nothing of Arabic. `compatible=True` computes what the
public tasks of lm-evaluation-harness do: case and punctuation count in BLEU, a BLEU of 0 is 1e-5, ROUGE is ASCII.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError

PIP = "pip install 'plumbline[eval]' (or sacrebleu rouge-score)"
NGRAM = ("bleu", "rouge1", "rouge2", "rougeL")
ALMOST_ZERO = 1e-5  # what the public tasks write for a BLEU of 0
MAX_EMPTY = 0.05  # share of undefined values above which a metric is marked as unreliable
FOREIGN = 0.2  # share of letters outside a to z above which the compatible ROUGE means little
_WORD = ("L", "M", "N")  # Unicode's letters, marks (Arabic vowels, accents written apart) and numbers


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, marks and digits; all else parts them."""
    text = unicodedata.normalize("NFC", text).lower()
    return "".join(letter if unicodedata.category(letter)[0] in _WORD else " " for letter in text).split()


def bleu(candidate: str, reference: str, *, order: int = 4, compatible: bool = False) -> float:
    """BLEU of one answer (Papineni et al. 2002) without smoothing: 0 where an n-gram order has no match.

    So an answer of fewer than `order` words has 0, also where it equals the reference.

    Args:
        order: the longest n-grams.
        compatible: 13a tokens, case kept, and 1e-5 in place of 0.
    """
    if not compatible:
        candidate, reference = " ".join(words(candidate)), " ".join(words(reference))
    # a corpus of one answer, as the library warns at every call of its score of a sentence
    value = _bleu(order, compatible).corpus_score([candidate], [[reference]]).score / 100
    return value if value or not compatible else ALMOST_ZERO


@functools.cache
def _bleu(order: int, compatible: bool) -> Any:
    tokens = "13a" if compatible else "none"
    return _library("sacrebleu").metrics.BLEU(tokenize=tokens, smooth_method="none", max_ngram_order=order)


def rouge(candidate: str, reference: str, *, compatible: bool = False) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), no stemming."""
    _library("rouge_score")
    return {name: float(score.fmeasure) for name, score in _scorer(compatible).score(reference, candidate).items()}


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer(compatible: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(NGRAM[1:]), use_stemmer=False, tokenizer=None if compatible else _Words())


def ngram_scores(candidate: str, reference: str, *, compatible: bool = False, least: int = 1) -> dict[str, float]:
    """The metrics of NGRAM; NaN for all where an answer or reference has fewer than `least` characters."""
    if min(len(candidate), len(reference)) < least or not candidate.strip() or not reference.strip():
        return dict.fromkeys(NGRAM, math.nan)
    return {"bleu": bleu(candidate, reference, compatible=compatible)} | rouge(
        candidate, reference, compatible=compatible
    )


def corpus(values: Sequence[float]) -> dict[str, Any]:
    """Mean of the defined values (`mean`, None without any), their number `n`, `empty`, and `reliable`."""
    defined = [value for value in values if not math.isnan(value)]
    empty = len(values) - len(defined)
    mean = float(np.mean(defined)) if defined else None
    return {"mean": mean, "n": len(defined), "empty": empty, "reliable": empty <= MAX_EMPTY * max(len(values), 1)}


def foreign_share(text: str) -> float:
    """Share of a text's letters outside a to z."""
    letters = [letter for letter in text if letter.isalpha()]
    return sum(not letter.isascii() for letter in letters) / len(letters) if letters else 0.0


def units(text: str, *, compatible: bool = False) -> tuple[int, int]:
    """Words and bytes of a text: pieces between white space, and UTF-8.

    Args:
        compatible: as the public tasks count, pieces of a split of the unstripped text, so that a blank at either end
            is one word more, and an empty text has one word.
    """
    num_words = len(re.split(r"\s+", text)) if compatible else len(text.split())
    return num_words, len(text.encode())


def perplexities(totals: Sequence[float], texts: Sequence[str], *, compatible: bool = False) -> dict[str, float]:
    """`word_perplexity`, `byte_perplexity` and `bits_per_byte` of a corpus: sums of nats over sums of units.

    A mean of perplexities would be another number. Texts of no word or no byte are left out by the caller.

    Args:
        totals: log-likelihood of each text, in nats.

    Raises:
        InputError: no unit at all, by which nothing can be divided.
    """
    counted = [units(text, compatible=compatible) for text in texts]
    num_words, num_bytes = (sum(pair[i] for pair in counted) for i in (0, 1))
    if not num_words or not num_bytes:
        raise InputError(f"{len(texts)} texts have {num_words} words and {num_bytes} bytes; a perplexity needs both")
    nats = -math.fsum(totals)
    return {
        "word_perplexity": exp(nats / num_words),
        "byte_perplexity": exp(nats / num_bytes),
        "bits_per_byte": nats / num_bytes / math.log(2),
    }


def exp(value: float) -> float:
    """The exponential, infinite where it overflows."""
    return math.exp(value) if value < 709.0 else math.inf


def is_installed() -> bool:
    """Whether the libraries of the n-gram metrics are here."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("sacrebleu", "rouge_score"))


@functools.cache
def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise InputError(f"{name} is not installed; {PIP}") from e
