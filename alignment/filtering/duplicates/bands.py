"""Files of keys, one a slice of the corpus, and the pairs of documents that share a key.

A file holds, band by band, the slice's keys in ascending order with each one's document number, little endian:

    header   8 bytes "PLBANDS1", then uint64: words a key, bands, rows
    band     rows x words a key x uint64 (all first words, then all second words), rows x uint32, zeros up to 8 bytes

14 bands of 64-bit keys cost 168 bytes a document. Pairs are found without a shuffle: whoever handles a band reads the
same range of keys from every file, a range small enough for its memory.

Dimensions: N documents, B bands, K 64-bit words a key, P pairs, 4 = (slice, index, slice, index).
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from alignment.errors import InputError

NO_KEY = np.uint64(2**64 - 1)  # in all words of all bands: a document that is nobody's duplicate
_MAGIC = b"PLBANDS1"
_HEADER_BYTES = 32
_BLOCK = 1 << 16  # rows looked at together
_BYTES_A_ROW = 64  # of memory while a range is sorted


@dataclasses.dataclass(frozen=True)
class _File:
    path: pathlib.Path
    slice: int
    words: int
    bands: int
    rows: int

    def columns(self, band: int) -> list[np.memmap | np.ndarray]:
        """Key words and document numbers of a band, mapped, so that only what is looked at is read."""
        start = _HEADER_BYTES + band * _band_bytes(self.rows, self.words)
        kinds = ["<u8"] * self.words + ["<u4"]
        if not self.rows:
            return [np.empty(0, kind) for kind in kinds]
        whole = np.memmap(self.path, np.uint8, "r")
        offsets = [start + 8 * self.rows * k for k in range(self.words + 1)]
        sizes = [8 * self.rows] * self.words + [4 * self.rows]
        return [whole[at : at + size].view(kind) for at, size, kind in zip(offsets, sizes, kinds)]


def write(path: str | os.PathLike, keys: np.ndarray, index_N: np.ndarray) -> None:
    """The keys of one slice, sorted band by band; complete or absent whenever the writer is killed.

    Args:
        path: the file; its folder exists.
        keys: uint64 [N, B], or [N, B, K] for keys of K words (`exact.keys(...)[:, None]` is one band of 128 bits).
            Documents with NO_KEY everywhere are left out.
        index_N: number of each document in its slice, below 2^32.
    """
    keys_NBK = np.asarray(keys, np.uint64)
    keys_NBK = keys_NBK[..., None] if keys_NBK.ndim == 2 else keys_NBK
    index_N = np.asarray(index_N)
    if keys_NBK.ndim != 3 or len(keys_NBK) != len(index_N):
        raise ValueError(f"keys of shape {np.shape(keys)} for {len(index_N)} documents; [N, B] or [N, B, K] is needed")
    if len(index_N) and (index_N.min() < 0 or index_N.max() >= 2**32):
        raise ValueError(f"document numbers {index_N.min()} to {index_N.max()} do not fit 32 bits; use smaller slices")
    has_key_N = np.empty(len(index_N), bool)
    for start in range(0, len(index_N), _BLOCK):  # keys may be mapped from a file, and are never copied whole
        some = keys_NBK[start : start + _BLOCK]
        has_key_N[start : start + _BLOCK] = ~(some == NO_KEY).all(axis=(1, 2))
    index_N = index_N[has_key_N]
    rows, bands, words = len(index_N), *keys_NBK.shape[1:]

    def parts():
        yield _MAGIC + np.array([words, bands, rows], "<u8").tobytes()
        for band in range(bands):
            keys_NK = keys_NBK[:, band][has_key_N]
            order = np.lexsort((index_N, *keys_NK[:, ::-1].T))
            yield keys_NK[order].T.astype("<u8").tobytes()
            yield index_N[order].astype("<u4").tobytes() + bytes(4 * (rows % 2))

    replace(path, parts())


def replace(path: str | os.PathLike, parts: Iterable[bytes | memoryview]) -> None:
    """A file written under a temporary name, then renamed."""
    unfinished = f"{os.fspath(path)}.unfinished"
    with open(unfinished, "wb") as f:
        f.writelines(parts)
    os.replace(unfinished, path)


def pairs(
    paths: Sequence[str | os.PathLike],
    band: int,
    *,
    slices: Sequence[int] | None = None,
    max_bytes: int = 64 << 20,
    key_range: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Documents of one band with equal keys, each with the group's smallest (slice, index); arrays [P, 4], int64.

    Rows are (slice, index) of the smallest, then of the other. The order of `paths` does not matter when `slices` says
    which slice each file is of; without it the first is 0, the second 1, and so on.

    Args:
        max_bytes: memory for the keys handled at a time; a single key that fills more is read a file at a time.
        key_range: (first, last + 1) of the keys to look at, for workers that share a band; None for all. A key is the
            number whose leading 64 bits are its first word.
    """
    files = sorted(_open(paths, slices), key=lambda file: file.slice)
    words = files[0].words if files else 1
    for file in files:
        if (file.words, file.bands) != (words, files[0].bands) or not 0 <= band < file.bands:
            raise InputError(
                f"{file.path} has {file.bands} bands of {file.words}-word keys; band {band} of {files[0].bands} with "
                f"{words}-word keys was asked for. Files of one run agree: remove those left by another configuration"
            )
    low, high = key_range or (0, 1 << (64 * words))
    bytes_a_row = _BYTES_A_ROW * words
    parts = 1 + 5 * sum(file.rows for file in files) * bytes_a_row // (4 * max_bytes)  # keys are spread evenly
    edges = sorted({low + (high - low) * i // parts for i in range(parts + 1)})
    todo = list(itertools.pairwise(edges))[::-1]
    while todo:
        low, high = todo.pop()
        spans = [_span(file, band, low, high) for file in files]
        num = sum(stop - start for start, stop in spans)
        if num < 2:
            continue
        if num * bytes_a_row <= max_bytes:
            yield from _pairs_in_range(files, spans, band)
        elif high - low > 1:  # one key fills much of it, perhaps: that key apart, and what lies on either side
            key = _middle_key(files, spans, band)
            todo += [(key + 1, high), (key, key + 1), (low, key)]
        else:
            yield from _pairs_of_one_key(files, spans, band)


def _open(paths, slices):
    slices = range(len(paths)) if slices is None else slices
    if len(slices) != len(paths) or len(set(slices)) != len(paths):
        raise ValueError(f"{len(paths)} files need as many different slice numbers, got {list(slices)[:10]}")
    return [_read_header(pathlib.Path(path), int(number)) for path, number in zip(paths, slices)]


def _read_header(path, number):
    with open(path, "rb") as f:
        header = f.read(_HEADER_BYTES)
        size = f.seek(0, os.SEEK_END)
    if len(header) < _HEADER_BYTES or header[:8] != _MAGIC:
        raise InputError(
            f"{path} does not start with {_MAGIC.decode()} like a file of keys; make its slice's keys again"
        )
    words, bands, rows = np.frombuffer(header[8:], "<u8").tolist()
    expected = _HEADER_BYTES + bands * _band_bytes(rows, words)
    if size != expected:
        raise InputError(f"{path} has {size} bytes, its header promises {expected}; make its slice's keys again")
    return _File(path, number, words, bands, rows)


def _band_bytes(rows, words):
    return 8 * words * rows + 4 * (rows + rows % 2)  # so that keys lie on 8 bytes and are searched where they are


def _span(file, band, low, high):
    columns = file.columns(band)[:-1]
    return _position(columns, low, file), _position(columns, high, file)


def _position(columns, key, file):
    """How many of a file's keys are below this one."""
    if key >> (64 * file.words):
        return file.rows
    start, stop = 0, file.rows
    for k, column in enumerate(columns):
        word = np.uint64((key >> (64 * (file.words - 1 - k))) & (2**64 - 1))
        found = column[start:stop]
        start, stop = start + int(np.searchsorted(found, word)), start + int(np.searchsorted(found, word, side="right"))
    return start


def _middle_key(files, spans, band):
    """The key in the middle of what the file with most of a range has there."""
    file, (start, stop) = max(zip(files, spans), key=lambda item: item[1][1] - item[1][0])
    key = 0
    for column in file.columns(band)[:-1]:
        key = key << 64 | int(column[(start + stop) // 2])
    return key


def _load(file, band, span):
    *key_words, index = (np.array(column[slice(*span)]) for column in file.columns(band))
    return key_words, index.astype(np.int64)


def _pairs_in_range(files, spans, band):
    found = [(file.slice, *_load(file, band, span)) for file, span in zip(files, spans) if span[1] > span[0]]
    columns = [np.concatenate(parts) for parts in zip(*(key_words for _, key_words, _ in found))]
    order = np.lexsort(columns[::-1])  # stable: equal keys stay in the order of (slice, index)
    columns = [column[order] for column in columns]
    slice_N = np.repeat([number for number, _, _ in found], [len(index) for *_, index in found])[order]
    index_N = np.concatenate([index for *_, index in found])[order]
    is_new_N = np.ones(len(order), bool)
    is_new_N[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    first_N = np.maximum.accumulate(np.where(is_new_N, np.arange(len(order)), 0))
    other, first = np.flatnonzero(~is_new_N), first_N[~is_new_N]
    if len(other):
        yield np.stack([slice_N[first], index_N[first], slice_N[other], index_N[other]], axis=1).astype(np.int64)


def _pairs_of_one_key(files, spans, band):
    smallest = None
    for file, span in zip(files, spans):
        if span[0] == span[1]:
            continue
        _, index_N = _load(file, band, span)
        rest_N = index_N[1:] if smallest is None else index_N
        smallest = smallest or (file.slice, int(index_N[0]))
        columns = [np.full(len(rest_N), value) for value in (*smallest, file.slice)] + [rest_N]
        if len(rest_N):
            yield np.stack(columns, axis=1).astype(np.int64)
