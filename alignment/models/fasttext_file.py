"""The files of supervised fastText models, `.bin` and quantised `.ftz`; `fasttext` runs them.

A file (little-endian; versions 11 and 12, the layout of fastText's `FastText::saveModel`) holds a magic number and a
version; thirteen settings; the dictionary: words, labels, and in a pruned model the buckets that remain; the input
matrix with a row for each word and each bucket of n-grams; the output matrix with a row for each label (or for each
inner node of the Huffman tree). Files come from strangers: sizes are checked against the file before anything of that
size is allocated. The matrices stay in the file, mapped into memory, until a row is needed.

Quantisation: Joulin et al. 2016, arXiv:1612.03651

Dimensions: W words and buckets, L labels, D width, E ids of one text, Q parts of a quantised row.
"""

import dataclasses
import math
import mmap
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from alignment.errors import InputError

MAGIC = 793_712_314
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
SETTINGS = ("dim", "ws", "epoch", "min_count", "neg", "word_n_grams", "loss", "model", "bucket", "minn", "maxn", "rate")
SUPERVISED = 3  # of the setting "model"; 1 and 2 are word vectors
MAX_LABELS = 1_000_000
MAX_ORDER = 1_000  # of n-grams
CENTROIDS = 256  # of each part of a quantised row

Rows = Callable[[np.ndarray], np.ndarray]  # ids [E] -> rows of a matrix [E,D]
Tree = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # see `huffman_tree`


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        labels: with their prefix `__label__`, the most frequent first.
        settings: dim, word_n_grams, bucket, minn, maxn, loss, ... (SETTINGS).
        words: word -> row of the input matrix; labels are among them with -1.
        pruned: bucket -> row behind the words' rows; None: every bucket has its own row.
        rows_fn: rows of the input matrix.
        output_LD: the output matrix.
        tree: the Huffman tree of the labels, for the loss `hs` alone.
    """

    labels: list[str]
    settings: dict[str, Any]
    words: dict[bytes, int]
    pruned: dict[int, int] | None
    rows_fn: Rows
    output_LD: np.ndarray
    tree: Tree


def read(path: str | pathlib.Path) -> Contents:
    """Read a supervised model.

    Raises:
        InputError: the file is missing or damaged, or is not a supervised fastText model.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"fastText model {path} is not there; give the path of a .bin or .ftz file")
    with open(path, "rb") as f:
        if path.stat().st_size < 8:
            raise InputError(f"{path} is not a fastText model: it has {path.stat().st_size} bytes")
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data, path)
    try:
        return _contents(reader)
    except InputError:
        raise
    except (struct.error, OverflowError, ValueError, IndexError, MemoryError) as e:  # absurd numbers in the file
        raise InputError(f"{path} is damaged at byte {reader.at} ({e}); fetch it again") from None


class _Reader:
    """Reads numbers from the front of a file on; refuses to read past its end."""

    def __init__(self, data: mmap.mmap, path: pathlib.Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def numbers(self, form: str) -> tuple:
        """Numbers of a `struct` format."""
        size = struct.calcsize("<" + form)
        self.need(size, 1, "numbers")
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += size
        return values

    def array(self, dtype: npt.DTypeLike, *shape: int) -> np.ndarray:
        """An array that is a view of the file."""
        dtype = np.dtype(dtype).newbyteorder("<")
        if min(shape) < 0 or max(shape) >= 1 << 40:
            self.refuse(f"an array of {' x '.join(map(str, shape))}")
        count = math.prod(shape)
        self.need(count, dtype.itemsize, f"an array of {' x '.join(map(str, shape))}")
        view = np.frombuffer(self.data, dtype, count, self.at).reshape(shape)
        self.at += count * dtype.itemsize
        return view

    def need(self, count: int, size: int, what: str) -> None:
        """Refuse the file if fewer than `count` times `size` bytes are left."""
        if count < 0 or count * size > len(self.data) - self.at:
            rest = len(self.data) - self.at
            self.refuse(f"{what} of {count * size} bytes where {rest} remain, at byte {self.at}")

    def refuse(self, why: str) -> NoReturn:
        raise InputError(f"{self.path} is damaged or not a fastText model: {why}. Fetch the file again")


def _contents(reader: _Reader) -> Contents:
    magic, version = reader.numbers("2i")
    if magic != MAGIC or version not in (11, 12):
        raise InputError(
            f"{reader.path} is not a fastText model of version 11 or 12 (it begins with {magic}, {version}); "
            "give the .bin or .ftz file that fastText saves"
        )
    values = dict(zip(SETTINGS, reader.numbers("12i")))
    reader.numbers("d")  # the sampling threshold of training
    # fastText, too, ignores the letter n-grams of supervised models of version 11.
    settings = values | {"loss": LOSSES.get(values["loss"], ""), "maxn": 0 if version == 11 else values["maxn"]}
    if values["model"] != SUPERVISED:
        raise InputError(f"{reader.path} holds word vectors, not a classifier; give a model trained with `supervised`")
    if not settings["loss"] or not 0 < values["dim"] <= 65_536 or values["bucket"] < 0:
        reader.refuse(f"settings {values}")
    if not 0 <= values["word_n_grams"] <= MAX_ORDER or not 0 <= settings["maxn"] <= MAX_ORDER:
        reader.refuse(f"settings {values}")
    words, labels, counts, pruned = _dictionary(reader)
    num_words = len(words) - len(labels)
    is_quantised = bool(reader.numbers("b")[0])
    if pruned is not None and not is_quantised:
        reader.refuse("a pruned dictionary with a matrix that is not quantised")
    rows_fn, shape = _quantised(reader) if is_quantised else _plain(reader)
    num_extra = max(pruned.values(), default=-1) + 1 if pruned is not None else settings["bucket"]
    if shape[1] != values["dim"] or shape[0] < num_words + num_extra:
        reader.refuse(f"an input matrix of {shape} for {num_words} words, {num_extra} buckets, {values['dim']} wide")
    is_quantised_too = bool(reader.numbers("b")[0]) and is_quantised
    output_fn, shape = _quantised(reader) if is_quantised_too else _plain(reader)
    if shape != (len(labels), values["dim"]):
        reader.refuse(f"an output matrix of {shape} for {len(labels)} labels, {values['dim']} wide")
    output_LD = output_fn(np.arange(len(labels))).astype(np.float32)
    tree = huffman_tree(counts) if settings["loss"] == "hs" else []
    return Contents(labels, settings, words, pruned, rows_fn, output_LD, tree)


def _dictionary(reader: _Reader) -> tuple[dict[bytes, int], list[str], list[int], dict[int, int] | None]:
    """Words (among them the labels, with number -1), labels, their counts, and the buckets of a pruned model."""
    size, num_words, num_labels = reader.numbers("3i")
    _, num_pruned = reader.numbers("2q")
    if min(num_words, num_labels) < 0 or not 0 < num_labels <= MAX_LABELS or size != num_words + num_labels:
        reader.refuse(f"a dictionary of {size}: {num_words} words and {num_labels} labels")
    reader.need(size, 10, "a dictionary")
    words: dict[bytes, int] = {}
    labels, counts = [], []
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
        reader.refuse(f"{size - len(words)} entries of the dictionary occur twice")
    if num_pruned < 0:
        return words, labels, counts, None
    pairs = reader.array(np.int32, num_pruned, 2)
    if num_pruned and pairs.min() < 0:
        reader.refuse("a bucket with a number below 0")
    return words, labels, counts, dict(pairs.tolist())


def _plain(reader: _Reader) -> tuple[Rows, tuple[int, int]]:
    """A matrix of float32."""
    num_rows, width = reader.numbers("2q")
    matrix = reader.array(np.float32, num_rows, width)
    return (lambda ids: matrix[ids]), (num_rows, width)


def _quantised(reader: _Reader) -> tuple[Rows, tuple[int, int]]:
    """A product-quantised matrix: a row is cut into parts, and a byte for each part names one of 256 centroids.

    Where rows were normalised before, another byte names one of 256 lengths.
    """
    (has_norms,) = reader.numbers("b")
    num_rows, width = reader.numbers("2q")
    (num_codes,) = reader.numbers("i")
    codes = reader.array(np.uint8, num_codes)
    centroids, num_parts = _centroids(reader, width)
    if num_rows < 0 or num_codes != num_rows * num_parts:
        reader.refuse(f"{num_codes} codes for {num_rows} rows of {num_parts} parts")
    codes_WQ = codes.reshape(num_rows, num_parts)
    norm_codes_W = reader.array(np.uint8, num_rows) if has_norms else None
    norms = _centroids(reader, 1)[0][0] if has_norms else None

    def rows_fn(ids: np.ndarray) -> np.ndarray:
        codes_EQ = codes_WQ[ids]
        rows_ED = np.concatenate([part[codes_EQ[:, q]] for q, part in enumerate(centroids)], axis=1)
        return rows_ED if norms is None or norm_codes_W is None else rows_ED * norms[norm_codes_W[ids]]

    return rows_fn, (num_rows, width)


def _centroids(reader: _Reader, width: int) -> tuple[list[np.ndarray], int]:
    """A table [256, width of the part] for each part, of which the last may be narrower; and the number of parts."""
    dim, num_parts, part, last = reader.numbers("4i")
    is_sound = dim == width and num_parts >= 1 and part >= 1 and 1 <= last <= part
    if not is_sound or (num_parts - 1) * part + last != dim:
        reader.refuse(f"a quantiser of {dim} columns in {num_parts} parts of {part} and {last}")
    flat = reader.array(np.float32, dim * CENTROIDS)
    cut = (num_parts - 1) * CENTROIDS * part
    return [*flat[:cut].reshape(num_parts - 1, CENTROIDS, part), flat[cut:].reshape(CENTROIDS, last)], num_parts


def huffman_tree(counts: Sequence[int]) -> Tree:
    """The Huffman tree of the labels, as fastText's `HierarchicalSoftmaxLoss::buildTree` makes it.

    Leaves have the labels' numbers; inner nodes follow.

    Args:
        counts: of the labels, in falling order.

    Returns:
        Level by level below the root: nodes, their parents, and whether they are right children.
    """
    num = len(counts)
    totals = [*counts, *[10**15] * (num - 1)]
    parents, is_right = [0] * (2 * num - 1), [False] * (2 * num - 1)
    # Labels come from the rarest up and finished nodes in rising order, so the two lightest are always at one of the
    # two fronts, and no heap is needed.
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
    parent_N, is_right_N = np.array(parents), np.array(is_right)
    order = np.argsort(depths, kind="stable")
    cuts = np.flatnonzero(np.diff(depths[order])) + 1
    return [(nodes, parent_N[nodes], is_right_N[nodes]) for nodes in np.split(order, cuts)[1:]]
