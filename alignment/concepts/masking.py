"""Words that go along with a concept, by pointwise mutual information, and texts without them.

Zhou et al. 2024 (arXiv:2311.08648), Section 4. The authors' program counts a word once for each of its spellings in a
text, has no least count, and breaks ties by the order of a hash table; here a word counts once a text, rare words are
left out, and ties go to the more frequent word and then by the alphabet. Who has the concept never depends on what was
masked; in that program it does.
"""

import dataclasses
import math
import re
import string
from collections import Counter
from collections.abc import Collection, Sequence

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word as it is compared: in small letters, without punctuation at its ends.

    Attributes:
        pmi: ln p(word, concept) / (p(word) p(concept)), in nats, of shares of texts.
        count: texts that hold it.
    """

    word: str
    pmi: float
    count: int


def normal(word: str) -> str:
    """A word between spaces as it is compared."""
    return word.lower().strip(string.punctuation)


def words(text: str) -> set[str]:
    """The words of a text, each once."""
    return {normal(word) for word in _WORD.findall(text)} - {""}


def ranked(
    texts: Sequence[str], has_concept: Sequence[bool], *, min_count: int = 5, counts_spellings: bool = False
) -> list[Word]:
    """Words that stand in texts with and in texts without the concept, the most telling first.

    Args:
        texts: of the training split alone.
        min_count: texts that must hold a word.
        counts_spellings: count a text once for each spelling of a word in it, as the authors' program does.
    """
    with_concept: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for text, has in zip(texts, has_concept, strict=True):
        spelt = [normal(word) for word in set(_WORD.findall(text))] if counts_spellings else words(text)
        (with_concept if has else without).update(word for word in spelt if word)
    num, num_with = len(texts), sum(map(bool, has_concept))
    out = []
    for word in with_concept.keys() & without.keys():
        count = with_concept[word] + without[word]
        if count >= min_count:
            pmi = math.log(with_concept[word] * num / (count * num_with))
            out.append(Word(word, pmi, count))
    return sorted(out, key=lambda w: (-w.pmi, -w.count, w.word))


def mask(text: str, masked: Collection[str], mark: str) -> str:
    """The text with `mark` in place of each of these words, whatever its case and the punctuation around it."""
    return _WORD.sub(lambda match: mark if normal(match[0]) in masked else match[0], text)
