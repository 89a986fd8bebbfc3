"""Supervised fastText models (classifiers such as lid.176), run in numpy; `fasttext_file` reads their files.

Paper:   Joulin et al. 2016, arXiv:1607.01759

A text is the mean of the rows of its words, of their n-grams of letters, and of its n-grams of words; n-grams have no
rows of their own but share buckets by hash. Everything follows fastText's C++ code to the last bit where results could
differ, its oddities included.

Dimensions: L labels, D width, N texts.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from alignment.errors import InputError
from alignment.models import fasttext_file

LABEL = b"__label__"
EOS = b"</s>"
SPACES = str.maketrans(dict.fromkeys("\n\r\t\v\f\0", " "))
LOG_FLOOR = 1e-5  # fastText adds it before every logarithm, so its probabilities go up to 1.00001
MAX_CACHED = 4_000_000  # numbers in the cached sums of words


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier of one line of text.

    Attributes:
        file: labels, settings, dictionary and matrices.
        cache: word -> sum of its rows [D], their number, and its hash.
    """

    file: fasttext_file.Contents
    cache: dict[bytes, tuple[np.ndarray, int, int | None]] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def labels(self) -> list[str]:
        """Labels with their prefix `__label__`, the most frequent first."""
        return self.file.labels

    def predict(self, texts: Sequence[str], k: int = 1, threshold: float = 0.0) -> list[list[tuple[str, float]]]:
        """The `k` likeliest labels of each text with their probabilities, as fastText's `predict` gives them.

        Line breaks count as spaces. A text without any known word or n-gram has no labels: its list is empty.
        """
        predictions: list[list[tuple[str, float]]] = []
        # Descending the tree, fastText gives up a branch below log(threshold + LOG_FLOOR).
        threshold += LOG_FLOOR if self.file.settings["loss"] == "hs" else 0.0
        for text in texts:
            values_L = self._values(text)
            if values_L is None:
                predictions.append([])
                continue
            top = np.argsort(-values_L, kind="stable")[: max(k, 0)]
            predictions.append([(self.labels[i], float(values_L[i])) for i in top if values_L[i] >= threshold])
        return predictions

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The probability of every label, [N,L] float32; zeros for a text without any known word or n-gram."""
        rows = [self._values(text) for text in texts]
        empty_L = np.zeros(len(self.labels), np.float32)
        return np.stack([empty_L if row is None else row for row in rows]) if rows else empty_L[None][:0]

    def ids(self, text: str) -> list[int]:
        """The rows of the input matrix of a text: words, their n-grams of letters, n-grams of words."""
        ids: list[int] = []
        hashes: list[int] = []
        for token in _tokens(text):
            of_word, of_hash = self._word(token)
            ids += of_word
            hashes += [] if of_hash is None else [of_hash]
        return ids + self._of_words(hashes)

    def _of_words(self, hashes: Sequence[int]) -> list[int]:
        """The rows of n-grams of words (fastText's `Dictionary::addWordNgrams`)."""
        ids: list[int] = []
        bucket, length = self.file.settings["bucket"], self.file.settings["word_n_grams"]
        if bucket and length > 1:
            # fastText keeps the 32-bit hashes as signed numbers and extends their sign to 64 bits.
            signed = [h - (1 << 32) if h >> 31 else h for h in hashes]
            for i in range(len(signed)):
                h = signed[i] & 0xFFFFFFFFFFFFFFFF
                for other in signed[i + 1 : i + length]:
                    h = (h * 116_049_371 + other) & 0xFFFFFFFFFFFFFFFF
                    self._push(ids, h % bucket)
        return ids

    def _word(self, token: bytes) -> tuple[list[int], int | None]:
        """A token's own rows, and its hash if it takes part in n-grams of words."""
        number = self.file.words.get(token)
        if number is not None and number < 0:  # a label
            return [], None
        if number is None and token.startswith(LABEL):
            return [], None
        ids = [] if number is None else [number]
        if token != EOS and self.file.settings["maxn"] > 0:
            self._letters(ids, b"<" + token + b">")
        return ids, _hash(token)

    def _hidden(self, text: str) -> np.ndarray | None:
        """The mean of a text's rows [D], None for a text without rows. The sum of a word's rows is computed once."""
        vectors, hashes, count = [], [], 0
        for token in _tokens(text):
            entry = self.cache.get(token)
            if entry is None:
                ids, of_hash = self._word(token)
                entry = self._sum(ids), len(ids), of_hash
                if len(self.cache) >= MAX_CACHED // self.file.output_LD.shape[1]:
                    self.cache.clear()
                self.cache[token] = entry
            vector_D, num, of_hash = entry
            if num:
                vectors.append(vector_D)
                count += num
            if of_hash is not None:
                hashes.append(of_hash)
        ids = self._of_words(hashes)
        if ids:
            vectors.append(self._sum(ids))
        count += len(ids)
        # As in fastText, the mean is over all rows, however many each word contributes.
        return np.add.reduce(vectors) / np.float32(count) if count else None

    def _sum(self, ids: Sequence[int]) -> np.ndarray:
        return self.file.rows_fn(np.array(ids, np.int64)).astype(np.float32).sum(axis=0)

    def _letters(self, ids: list[int], word: bytes) -> None:
        """Add the rows of a word's n-grams of letters, `minn` to `maxn` long; the marks < and > alone do not count."""
        minn, maxn, bucket = (self.file.settings[name] for name in ("minn", "maxn", "bucket"))
        if not bucket:
            return
        starts = [i for i, byte in enumerate(word) if byte & 0xC0 != 0x80] + [len(word)]  # of UTF-8 characters
        signed = [byte | 0xFFFFFF00 if byte & 0x80 else byte for byte in word]
        for i in range(len(starts) - 1):
            h = 2_166_136_261
            for n in range(1, min(maxn, len(starts) - 1 - i) + 1):
                for byte in signed[starts[i + n - 1] : starts[i + n]]:
                    h = ((h ^ byte) * 16_777_619) & 0xFFFFFFFF
                if n >= minn and not (n == 1 and (i == 0 or i + n == len(starts) - 1)):
                    self._push(ids, h % bucket)

    def _push(self, ids: list[int], bucket: int) -> None:
        """Add the row of a bucket, unless pruning removed it; buckets stand behind the words."""
        row = bucket if self.file.pruned is None else self.file.pruned.get(bucket, -1)
        if row >= 0:
            ids.append(len(self.file.words) - len(self.labels) + row)

    def _values(self, text: str) -> np.ndarray | None:
        """The probability of each label [L], or None for a text without rows."""
        with np.errstate(all="ignore"):
            hidden_D = self._hidden(text)
            if hidden_D is None:
                return None
            logits_L = self.file.output_LD @ hidden_D
            if self.file.settings["loss"] == "hs":
                values_L = hierarchical_softmax(logits_L, self.file.tree)
            elif self.file.settings["loss"] == "softmax":
                values_L = _softmax(logits_L)
            else:  # "ova" (one versus all) and "ns" (negative sampling)
                values_L = _sigmoids(logits_L)
        if not np.all(np.isfinite(values_L)):
            raise InputError("the fastText model holds numbers that are not finite; fetch the file again")
        return values_L


def load(path: str | pathlib.Path) -> Model:
    """A supervised model, such as lid.176.bin or lid.176.ftz.

    Raises:
        InputError: the file is missing or damaged, or is not a supervised fastText model.
    """
    return Model(fasttext_file.read(path))


def _softmax(logits_L: np.ndarray) -> np.ndarray:
    weights_L = np.exp(logits_L - np.max(logits_L))
    return weights_L / np.sum(weights_L) + np.float32(LOG_FLOOR)


def _sigmoids(logits_L: np.ndarray) -> np.ndarray:
    """Each label's own sigmoid, from fastText's table of 512 steps from -8 to 8."""
    # The table is part of the result: an exact sigmoid would differ in the third digit.
    step_L = np.clip((logits_L + 8) * 32, 0, 512).astype(np.int64)
    table_L = 1 / (1 + np.exp(-(step_L / np.float32(32) - 8)))
    values_L = np.where(logits_L < -8, 0, np.where(logits_L > 8, 1, table_L))
    return (values_L + LOG_FLOOR).astype(np.float32)


def hierarchical_softmax(logits_L: np.ndarray, tree: fasttext_file.Tree) -> np.ndarray:
    """The probability of each label: the product of the turns on the way from the root to its leaf.

    Args:
        logits_L: of the inner nodes, the last entry unused; sigmoid(logit) is the probability of turning right.
        tree: see `fasttext_file.huffman_tree`.
    """
    num_labels = len(logits_L)
    right = 1 / (1 + np.exp(-logits_L.astype(np.float64)))
    scores = np.zeros(2 * num_labels - 1)
    for children, parents, is_right in tree:
        turn = right[parents - num_labels]
        scores[children] = scores[parents] + np.log(np.where(is_right, turn, 1 - turn) + LOG_FLOOR)
    return np.exp(scores[:num_labels]).astype(np.float32)


def _tokens(text: str) -> Iterator[bytes]:
    """The words between spaces, then the end of the line; a literal "</s>" in the text ends it early."""
    for token in text.translate(SPACES).encode("utf-8", "replace").split(b" "):
        if token == EOS:
            break
        if token:
            yield token
    yield EOS


def _hash(token: bytes) -> int:
    """FNV-1a of 32 bits; like fastText's it takes bytes for signed numbers (a `char` of C++)."""
    h = 2_166_136_261
    for byte in token:
        h = ((h ^ (byte | 0xFFFFFF00 if byte & 0x80 else byte)) * 16_777_619) & 0xFFFFFFFF
    return h
