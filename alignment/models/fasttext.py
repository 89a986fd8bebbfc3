"""Supervised fastText models, `.bin` and quantised `.ftz`, read and run in numpy.

Paper:   Joulin et al. 2016, arXiv:1607.01759; quantisation: Joulin et al. 2016, arXiv:1612.03651

The file (little-endian; versions 11 and 12): a magic number and a version; thirteen settings; the dictionary (words,
labels, and of a pruned model which buckets are left); the input matrix, one row a word and a bucket of n-grams; the
output matrix, one row a label (or an inner node of the Huffman tree). Sizes are checked against the file before
anything of that size is made, and the matrices stay in the file until a row is asked for.

Dimensions: W words and buckets, L labels, D width, E ids of one text, Q parts of a quantised row.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError

MAGIC = 793_712_314
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
SETTINGS = ("dim", "ws", "epoch", "min_count", "neg", "word_n_grams", "loss", "model", "bucket", "minn", "maxn", "rate")
LABEL = b"__label__"
EOS = b"</s>"
SPACES = str.maketrans(dict.fromkeys("\n\r\t\v\f\0", " "))
LOG_FLOOR = 1e-5  # fastText adds it before every logarithm, so its probabilities run up to 1.00001
MAX_CACHED = 4_000_000  # numbers in the sums of words that are remembered
MAX_LABELS = 1_000_000
MAX_ORDER = 1_000  # of n-grams
CENTROIDS = 256  # of each part of a quantised row


@dataclasses.dataclass(frozen=True)
class Model:
    """A classifier of one line of text.

    Attributes:
        labels: as the file has them, with their prefix `__label__`, the most frequent first.
        settings: dim, word_n_grams, bucket, minn, maxn, loss, ... of the file.
    """

    labels: list[str]
    settings: dict[str, Any]
    words: dict[bytes, int]
    pruned: dict[int, int] | None  # bucket -> row behind the words; None: every bucket has its own
    rows: Callable[[np.ndarray], np.ndarray]  # ids [E] -> rows of the input matrix [E,D]
    output_LD: np.ndarray
    tree: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # of `hs`: see `_tree`
    remembered: dict[bytes, tuple[np.ndarray, int, int | None]] = dataclasses.field(default_factory=dict, repr=False)

    def predict(self, texts: Sequence[str], k: int = 1, threshold: float = 0.0) -> list[list[tuple[str, float]]]:
        """The `k` likeliest labels of each text with their probabilities, as fastText gives them.

        Line breaks count as spaces. A text of which the model knows nothing has no labels: an empty list.
        """
        found = []
        threshold += LOG_FLOOR if self.settings["loss"] == "hs" else 0.0  # fastText's cut of a branch
        for text in texts:
            values_L = self._values(text)
            if values_L is None:
                found.append([])
                continue
            top = np.argsort(-values_L, kind="stable")[: max(k, 0)]
            found.append([(self.labels[i], float(values_L[i])) for i in top if values_L[i] >= threshold])
        return found

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Of every label, [N,L] float32; zeros for a text of which the model knows nothing."""
        rows = [self._values(text) for text in texts]
        empty_L = np.zeros(len(self.labels), np.float32)
        return np.stack([empty_L if row is None else row for row in rows]) if rows else empty_L[None][:0]

    def ids(self, text: str) -> list[int]:
        """Rows of the input matrix that a text averages: words, their n-grams of letters, n-grams of words."""
        ids, hashes = [], []
        for token in _tokens(text):
            of_word, of_hash = self._word(token)
            ids += of_word
            hashes += [] if of_hash is None else [of_hash]
        return ids + self._of_words(hashes)

    def _of_words(self, hashes: Sequence[int]) -> list[int]:
        """The rows of n-grams of words."""
        ids, bucket, length = [], self.settings["bucket"], self.settings["word_n_grams"]
        if bucket and length > 1:
            signed = [h - (1 << 32) if h >> 31 else h for h in hashes]
            for i in range(len(signed)):
                h = signed[i] & 0xFFFFFFFFFFFFFFFF
                for other in signed[i + 1 : i + length]:
                    h = (h * 116_049_371 + other) & 0xFFFFFFFFFFFFFFFF
                    self._push(ids, h % bucket)
        return ids

    def _word(self, token: bytes) -> tuple[list[int], int | None]:
        """A token's own rows, and its hash where it counts in n-grams of words."""
        number = self.words.get(token)
        if number is not None and number < 0:  # a label
            return [], None
        if number is None and token.startswith(LABEL):
            return [], None
        ids = [] if number is None else [number]
        if token != EOS and self.settings["maxn"] > 0:
            self._letters(ids, b"<" + token + b">")
        return ids, _hash(token)

    def _hidden(self, text: str) -> np.ndarray | None:
        """The mean of a text's rows [D], None where it has none; the sum of a word's rows is made once."""
        vectors, hashes, count = [], [], 0
        for token in _tokens(text):
            found = self.remembered.get(token)
            if found is None:
                ids, of_hash = self._word(token)
                found = self._sum(ids), len(ids), of_hash
                if len(self.remembered) >= MAX_CACHED // self.output_LD.shape[1]:
                    self.remembered.clear()
                self.remembered[token] = found
            vector_D, num, of_hash = found
            if num:
                vectors.append(vector_D)
                count += num
            if of_hash is not None:
                hashes.append(of_hash)
        ids = self._of_words(hashes)
        if ids:
            vectors.append(self._sum(ids))
        count += len(ids)
        return np.add.reduce(vectors) / np.float32(count) if count else None

    def _sum(self, ids: Sequence[int]) -> np.ndarray:
        return self.rows(np.array(ids, np.int64)).astype(np.float32).sum(axis=0)

    def _letters(self, ids: list[int], word: bytes) -> None:
        """Add the rows of a word's n-grams of letters, `minn` to `maxn` long; its marks < and > alone are none."""
        minn, maxn, bucket = self.settings["minn"], self.settings["maxn"], self.settings["bucket"]
        if not bucket:
            return
        starts = [i for i, byte in enumerate(word) if byte & 0xC0 != 0x80] + [len(word)]
        signed = [byte | 0xFFFFFF00 if byte & 0x80 else byte for byte in word]
        for i in range(len(starts) - 1):
            h = 2_166_136_261
            for n in range(1, min(maxn, len(starts) - 1 - i) + 1):
                for byte in signed[starts[i + n - 1] : starts[i + n]]:
                    h = ((h ^ byte) * 16_777_619) & 0xFFFFFFFF
                if n >= minn and not (n == 1 and (i == 0 or i + n == len(starts) - 1)):
                    self._push(ids, h % bucket)

    def _push(self, ids: list[int], number: int) -> None:
        if self.pruned is not None:
            number = self.pruned.get(number, -1)
        if number >= 0:
            ids.append(len(self.words) - len(self.labels) + number)

    def _values(self, text: str) -> np.ndarray | None:
        with np.errstate(all="ignore"):
            hidden_D = self._hidden(text)
            if hidden_D is None:
                return None
            values_L = PROBABILITIES[self.settings["loss"]](self.output_LD @ hidden_D, self.tree)
        if not np.all(np.isfinite(values_L)):
            raise InputError("the fastText model holds numbers that are not finite; fetch the file again")
        return values_L


def load(path: str | pathlib.Path) -> Model:
    """A supervised model, such as lid.176.bin or lid.176.ftz.

    Raises:
        InputError: no such file, no supervised fastText model, or a damaged one.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"fastText model {path} is not there; give the path of a .bin or .ftz file")
    with open(path, "rb") as f:
        if path.stat().st_size < 8:
            raise InputError(f"{path} is no fastText model: {path.stat().st_size} bytes")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data, path)
    try:
        return _model(reader)
    except InputError:
        raise
    except (struct.error, OverflowError, ValueError, IndexError, MemoryError) as e:  # numbers that fit no such model
        raise InputError(f"{path} is damaged at byte {reader.at} ({e}); fetch it again") from None


def scorer(path: str | pathlib.Path, *, label: str = "", name: str = "") -> Callable[[list[dict]], list[dict]]:
    """`score(batch) -> [{name.score: probability}]` of a model's label.

    Args:
        label: whose probability is the score, with or without `__label__`; "": the second of a model of two labels,
            in alphabetical order (such as `__label__hq` after `__label__cc`).
        name: of the score; "": the label's.
    """
    model = load(path)
    known = {known.removeprefix(LABEL.decode()): i for i, known in enumerate(model.labels)}
    wanted = label.removeprefix(LABEL.decode()) or (sorted(known)[1] if len(known) == 2 else "")
    if wanted not in known:
        shown = ", ".join(sorted(known)[:20])
        raise InputError(f"label={label!r}: {path} has {len(known)} labels, {shown}; name one of them")
    key = f"{name or wanted}.score"

    def score(batch: list[dict]) -> list[dict]:
        values_NL = model.probabilities([record["text"] for record in batch])
        return [{key: min(float(value), 1.0)} for value in values_NL[:, known[wanted]]]

    return score


def _softmax(logits_L, tree):
    del tree
    weights_L = np.exp(logits_L - np.max(logits_L))
    return weights_L / np.sum(weights_L) + np.float32(LOG_FLOOR)


def _one_by_one(logits_L, tree):
    """Each label's own sigmoid, off fastText's table: 512 steps from -8 to 8."""
    del tree
    step_L = np.clip((logits_L + 8) * 32, 0, 512).astype(np.int64)
    table_L = 1 / (1 + np.exp(-(step_L / np.float32(32) - 8)))
    values_L = np.where(logits_L < -8, 0, np.where(logits_L > 8, 1, table_L))
    return (values_L + LOG_FLOOR).astype(np.float32)


def _hierarchical(logits_L, tree):
    """Of each label the product of the turns on the way to it."""
    num_labels = len(logits_L)
    right = 1 / (1 + np.exp(-logits_L.astype(np.float64)))
    scores = np.zeros(2 * num_labels - 1)
    for children, parents, is_right in tree:
        turn = right[parents - num_labels]
        scores[children] = scores[parents] + np.log(np.where(is_right, turn, 1 - turn) + LOG_FLOOR)
    return np.exp(scores[:num_labels]).astype(np.float32)


PROBABILITIES = {"softmax": _softmax, "ova": _one_by_one, "ns": _one_by_one, "hs": _hierarchical}


def _tokens(text: str) -> Iterator[bytes]:
    """What stands between spaces, and the end of the line; written in a text, too, that ends it."""
    for token in text.translate(SPACES).encode("utf-8", "replace").split(b" "):
        if token == EOS:
            break
        if token:
            yield token
    yield EOS


def _hash(token: bytes) -> int:
    """FNV-1a of 32 bits, with bytes read as signed numbers, as fastText has it."""
    h = 2_166_136_261
    for byte in token:
        h = ((h ^ (byte | 0xFFFFFF00 if byte & 0x80 else byte)) * 16_777_619) & 0xFFFFFFFF
    return h


# Reading


class _Reader:
    """Numbers off a file, from the front; refuses to read past its end."""

    def __init__(self, data: mmap.mmap, path: pathlib.Path):
        self.data, self.path, self.at = data, path, 0

    def numbers(self, form: str) -> tuple:
        size = struct.calcsize("<" + form)
        self.need(size, 1, "numbers")
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return found

    def array(self, dtype, *shape: int) -> np.ndarray:
        """A view of the file."""
        dtype = np.dtype(dtype).newbyteorder("<")
        if min(shape) < 0 or max(shape) >= 1 << 40:
            self.refuse(f"an array of {' x '.join(map(str, shape))}")
        count = math.prod(shape)
        self.need(count, dtype.itemsize, f"an array of {' x '.join(map(str, shape))}")
        found = np.frombuffer(self.data, dtype, count, self.at).reshape(shape)
        self.at += count * dtype.itemsize
        return found

    def need(self, count: int, size: int, what: str) -> None:
        if count < 0 or count * size > len(self.data) - self.at:
            left = len(self.data) - self.at
            self.refuse(f"{what} of {count * size} bytes where {left} are left, at byte {self.at}")

    def refuse(self, why: str):
        raise InputError(f"{self.path} is a damaged fastText model, or none: {why}. Fetch the file again")


def _model(reader: _Reader) -> Model:
    magic, version = reader.numbers("2i")
    if magic != MAGIC or version not in (11, 12):
        raise InputError(
            f"{reader.path} is no fastText model of version 11 or 12 (it begins with {magic}, {version}); "
            "give the .bin or .ftz file that fastText saves"
        )
    values = dict(zip(SETTINGS, reader.numbers("12i")))
    reader.numbers("d")
    settings = values | {"loss": LOSSES.get(values["loss"], ""), "maxn": 0 if version == 11 else values["maxn"]}
    if values["model"] != 3:
        raise InputError(f"{reader.path} holds word vectors, no classifier; give a model trained with `supervised`")
    if not settings["loss"] or not 0 < values["dim"] <= 65_536 or values["bucket"] < 0:
        reader.refuse(f"settings {values}")
    if not 0 <= values["word_n_grams"] <= MAX_ORDER or not 0 <= settings["maxn"] <= MAX_ORDER:
        reader.refuse(f"settings {values}")
    words, labels, counts, pruned = _dictionary(reader)
    num_words = len(words) - len(labels)
    is_quantised = bool(reader.numbers("b")[0])
    if pruned is not None and not is_quantised:
        reader.refuse("a pruned dictionary beside a matrix that is not quantised")
    rows, shape = _quantised(reader) if is_quantised else _plain(reader)
    num_extra = max(pruned.values(), default=-1) + 1 if pruned is not None else settings["bucket"]
    if shape[1] != values["dim"] or shape[0] < num_words + num_extra:
        reader.refuse(f"an input matrix of {shape} for {num_words} words, {num_extra} buckets, {values['dim']} wide")
    is_quantised_too = bool(reader.numbers("b")[0]) and is_quantised
    of_output, shape = _quantised(reader) if is_quantised_too else _plain(reader)
    if shape != (len(labels), values["dim"]):
        reader.refuse(f"an output matrix of {shape} for {len(labels)} labels, {values['dim']} wide")
    output_LD = of_output(np.arange(len(labels))).astype(np.float32)
    tree = _tree(counts) if settings["loss"] == "hs" else []
    return Model(labels, settings, words, pruned, rows, output_LD, tree)


def _dictionary(reader: _Reader):
    """Words (labels among them, with number -1), labels and their counts, and the buckets left."""
    size, num_words, num_labels = reader.numbers("3i")
    _, num_pruned = reader.numbers("2q")
    if min(num_words, num_labels) < 0 or not 0 < num_labels <= MAX_LABELS or size != num_words + num_labels:
        reader.refuse(f"a dictionary of {size}: {num_words} words and {num_labels} labels")
    reader.need(size, 10, "a dictionary")
    words, labels, counts = {}, [], []
    data, at = reader.data, reader.at
    for i in range(size):
        end = data.find(b"\0", at)
        if end < 0 or end + 10 > len(data):
            reader.refuse(f"the dictionary is cut short at entry {i} of {size}")
        word = data[at:end]
        count, kind = struct.unpack_from("<qb", data, end + 1)
        at = end + 10
        if kind != int(i >= num_words):
            reader.refuse(f"entry {i} of the dictionary is of kind {kind}")
        if kind:
            labels.append(word.decode("utf-8", "replace"))
            counts.append(count)
        words[word] = -1 if kind else i
    reader.at = at
    if len(words) != size:
        reader.refuse(f"{size - len(words)} entries of the dictionary stand there twice")
    if num_pruned < 0:
        return words, labels, counts, None
    pairs = reader.array(np.int32, num_pruned, 2)
    if num_pruned and pairs.min() < 0:
        reader.refuse("a bucket with a number below 0")
    return words, labels, counts, dict(pairs.tolist())


def _plain(reader: _Reader):
    num_rows, width = reader.numbers("2q")
    matrix = reader.array(np.float32, num_rows, width)
    return (lambda ids: matrix[ids]), (num_rows, width)


def _quantised(reader: _Reader):
    """Rows as products of parts: each a centroid of 256, the row's length apart where it was normalised."""
    (has_norms,) = reader.numbers("b")
    num_rows, width = reader.numbers("2q")
    (num_codes,) = reader.numbers("i")
    codes = reader.array(np.uint8, num_codes)
    centroids, num_parts = _centroids(reader, width)
    if num_rows < 0 or num_codes != num_rows * num_parts:
        reader.refuse(f"{num_codes} codes for {num_rows} rows of {num_parts} parts")
    codes_WQ = codes.reshape(num_rows, num_parts)
    norm_codes_W = norms = None
    if has_norms:
        norm_codes_W = reader.array(np.uint8, num_rows)
        (norms,), _ = _centroids(reader, 1)

    def rows(ids):
        codes_EQ = codes_WQ[ids]
        found_ED = np.concatenate([part[codes_EQ[:, q]] for q, part in enumerate(centroids)], axis=1)
        return found_ED if norms is None else found_ED * norms[norm_codes_W[ids]]

    return rows, (num_rows, width)


def _centroids(reader: _Reader, width: int):
    """A table [256, width of the part] of each part; the last part may be narrower."""
    dim, num_parts, part, last = reader.numbers("4i")
    is_sound = dim == width and num_parts >= 1 and part >= 1 and 1 <= last <= part
    if not is_sound or (num_parts - 1) * part + last != dim:
        reader.refuse(f"a quantiser of {dim} columns in {num_parts} parts of {part} and {last}")
    flat = reader.array(np.float32, dim * CENTROIDS)
    cut = (num_parts - 1) * CENTROIDS * part
    return [*flat[:cut].reshape(num_parts - 1, CENTROIDS, part), flat[cut:].reshape(CENTROIDS, last)], num_parts


def _tree(counts: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The Huffman tree of the labels: from the root down, (nodes, their parents, whether they lie to the right).

    Leaves are numbered as the labels, which stand in falling order of their counts; inner nodes follow.
    """
    num = len(counts)
    totals = [*counts, *[10**15] * (num - 1)]
    parents, is_right = [0] * (2 * num - 1), [False] * (2 * num - 1)
    leaf, node = num - 1, num
    for made in range(num, 2 * num - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and totals[leaf] < totals[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        totals[made] = totals[pair[0]] + totals[pair[1]]
        for child in pair:
            parents[child] = made
        is_right[pair[1]] = True
    depths = np.zeros(2 * num - 1, np.int64)
    for child in range(2 * num - 3, -1, -1):  # a parent has the larger number
        depths[child] = depths[parents[child]] + 1
    parents, is_right = np.array(parents), np.array(is_right)
    order = np.argsort(depths, kind="stable")
    cuts = np.flatnonzero(np.diff(depths[order])) + 1
    return [(nodes, parents[nodes], is_right[nodes]) for nodes in np.split(order, cuts)[1:]]
