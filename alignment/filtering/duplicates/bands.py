"""Files of keys, one for each slice of the corpus, and the pairs of documents that share a key.

A file holds, band by band, the slice's keys in ascending order, each with its document number, little endian:

    header   8 bytes "PLBANDS1", then uint64: words a key, bands, rows
    band     rows x words a key x uint64 (all first words, then all second words), rows x uint32, zeros up to 8 bytes

14 bands of 64-bit keys cost 168 bytes a document. Pairs need no shuffle: a worker takes one band and reads the same
range of keys from every file, a range small enough for its memory.

Dimensions: N documents, B bands, K 64-bit words a key, P pairs, 4 = (slice, index, slice, index).
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from alignment import files
from alignment.errors import InputError

NO_KEY = np.uint64(2**64 - 1)  # in all words of all bands: the document is nobody's duplicate
_MAGIC = b"PLBANDS1"
_HEADER_BYTES = 32
_BLOCK = 1 << 16  # rows compared together
_BYTES_A_ROW = 64  # of memory while a range is sorted


@dataclasses.dataclass(frozen=True)
class _File:
    """The header of a file of keys, and the number of its slice."""

    path: pathlib.Path
    slice: int
    words: int
    bands: int
    rows: int

    def columns(self, band: int) -> list[np.memmap | np.ndarray]:
        """Key words and document numbers of a band, mapped into memory: only the parts in use are read from disk."""
        start = _HEADER_BYTES + band * _band_bytes(self.rows, self.words)
        kinds = ["<u8"] * self.words + ["<u4"]
        if not self.rows:
            return [np.empty(0, kind) for kind in kinds]
        content = np.memmap(self.path, np.uint8, "r")
        offsets = [start + 8 * self.rows * k for k in range(self.words + 1)]
        sizes = [8 * self.rows] * self.words + [4 * self.rows]
        return [content[at : at + size].view(kind) for at, size, kind in zip(offsets, sizes, kinds)]


def write(path: str | os.PathLike, keys: np.ndarray, index_N: np.ndarray) -> None:
    """Write the keys of one slice, sorted band by band; the file is complete or absent.

    Args:
        keys: uint64 [N, B], or [N, B, K] for keys of K words (`exact.keys(...)[:, None]` is one band of 128 bits).
            Documents with NO_KEY everywhere are left out.
        index_N: number of each document in its slice, below 2^32.

    Raises:
        ValueError: shapes that do not match, or numbers that do not fit.
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

    with files.replacing(path) as f:
        f.write(_MAGIC + np.array([words, bands, rows], "<u8").tobytes())
        for band in range(bands):
            keys_NK = keys_NBK[:, band][has_key_N]
            order = np.lexsort((index_N, *keys_NK[:, ::-1].T))  # by first word, then second, then document
            f.write(keys_NK[order].T.astype("<u8").tobytes())
            f.write(index_N[order].astype("<u4").tobytes() + bytes(4 * (rows % 2)))


def pairs(
    paths: Sequence[str | os.PathLike],
    band: int,
    *,
    slices: Sequence[int] | None = None,
    max_bytes: int = 64 << 20,
    key_range: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Documents with equal keys in one band, each paired with its group's smallest (slice, index).

    Args:
        slices: slice number of each file; None numbers them 0, 1, ... With numbers the order of `paths` is free.
        max_bytes: memory for the keys in work; a single key that fills more is read file by file.
        key_range: (first, last + 1) of the keys, for workers that share a band; None for all. A key of several words
            is one number whose leading 64 bits are the first word.

    Yields:
        int64 [P, 4]: (slice, index) of the smallest document, then of the other.

    Raises:
        InputError: a file that is damaged or has other bands than the first.
    """
    key_files = sorted(_open(paths, slices), key=lambda file: file.slice)
    words = key_files[0].words if key_files else 1
    for file in key_files:
        if (file.words, file.bands) != (words, key_files[0].bands) or not 0 <= band < file.bands:
            raise InputError(
                f"{file.path} has {file.bands} bands of {file.words}-word keys; band {band} of "
                f"{key_files[0].bands} with {words}-word keys was requested. Files of one run agree: remove those of "
                "another configuration"
            )
    low, high = key_range or (0, 1 << (64 * words))
    bytes_a_row = _BYTES_A_ROW * words
    # Keys are hashes and spread evenly, so equal ranges hold about equally many rows; a quarter more ranges than needed
    # leaves room for chance.
    parts = 1 + 5 * sum(file.rows for file in key_files) * bytes_a_row // (4 * max_bytes)
    edges = sorted({low + (high - low) * i // parts for i in range(parts + 1)})
    todo = list(itertools.pairwise(edges))[::-1]
    while todo:
        low, high = todo.pop()
        spans = [_span(file, band, low, high) for file in key_files]
        num = sum(stop - start for start, stop in spans)
        if num < 2:
            continue
        if num * bytes_a_row <= max_bytes:
            yield from _pairs_in_range(key_files, spans, band)
        elif high - low > 1:  # perhaps one frequent key fills the range: take it apart from the keys on either side
            key = _middle_key(key_files, spans, band)
            todo += [(key + 1, high), (key, key + 1), (low, key)]
        else:
            yield from _pairs_of_one_key(key_files, spans, band)


def _open(paths: Sequence[str | os.PathLike], slices: Sequence[int] | None) -> list[_File]:
    slices = range(len(paths)) if slices is None else slices
    if len(slices) != len(paths) or len(set(slices)) != len(paths):
        raise ValueError(f"{len(paths)} files need as many different slice numbers, got {list(slices)[:10]}")
    return [_read_header(pathlib.Path(path), int(number)) for path, number in zip(paths, slices)]


def _read_header(path: pathlib.Path, number: int) -> _File:
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


def _band_bytes(rows: int, words: int) -> int:
    return 8 * words * rows + 4 * (rows + rows % 2)  # even, so that keys are aligned to 8 bytes and can stay mapped


def _span(file: _File, band: int, low: int, high: int) -> tuple[int, int]:
    """The rows of a file with keys from `low` to below `high`."""
    columns = file.columns(band)[:-1]
    return _position(columns, low, file), _position(columns, high, file)


def _position(columns: Sequence[np.ndarray], key: int, file: _File) -> int:
    """The number of a file's keys below this one, by binary search word after word."""
    if key >> (64 * file.words):
        return file.rows
    start, stop = 0, file.rows
    for k, column in enumerate(columns):
        word = np.uint64((key >> (64 * (file.words - 1 - k))) & (2**64 - 1))
        low, high = np.searchsorted(column[start:stop], word), np.searchsorted(column[start:stop], word, side="right")
        # Among the rows with this word the next word is sorted in turn.
        start, stop = start + int(low), start + int(high)
    return start


def _middle_key(key_files: Sequence[_File], spans: Sequence[tuple[int, int]], band: int) -> int:
    """The median key of a range in the file that has most rows there."""
    file, (start, stop) = max(zip(key_files, spans), key=lambda item: item[1][1] - item[1][0])
    key = 0
    for column in file.columns(band)[:-1]:
        key = key << 64 | int(column[(start + stop) // 2])
    return key


def _load(file: _File, band: int, span: tuple[int, int]) -> tuple[list[np.ndarray], np.ndarray]:
    *key_words, index = (np.array(column[slice(*span)]) for column in file.columns(band))
    return key_words, index.astype(np.int64)


def _pairs_in_range(key_files: Sequence[_File], spans: Sequence[tuple[int, int]], band: int) -> Iterator[np.ndarray]:
    """Pairs of equal keys in a range that fits in memory: one sort of all files' keys."""
    loaded = [(file.slice, *_load(file, band, span)) for file, span in zip(key_files, spans) if span[1] > span[0]]
    columns = [np.concatenate(parts) for parts in zip(*(key_words for _, key_words, _ in loaded))]
    order = np.lexsort(columns[::-1])  # stable: equal keys stay in the order of (slice, index)
    columns = [column[order] for column in columns]
    slice_N = np.repeat([number for number, _, _ in loaded], [len(index) for *_, index in loaded])[order]
    index_N = np.concatenate([index for *_, index in loaded])[order]
    is_new_N = np.ones(len(order), bool)
    is_new_N[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    # For every row the place where its group of equal keys begins: a running maximum carries it along.
    first_N = np.maximum.accumulate(np.where(is_new_N, np.arange(len(order)), 0))
    other, first = np.flatnonzero(~is_new_N), first_N[~is_new_N]
    if len(other):
        yield np.stack([slice_N[first], index_N[first], slice_N[other], index_N[other]], axis=1).astype(np.int64)


def _pairs_of_one_key(key_files: Sequence[_File], spans: Sequence[tuple[int, int]], band: int) -> Iterator[np.ndarray]:
    """Pairs of a key whose rows do not fit in memory together, file by file; the first row of all is the smallest."""
    smallest = None
    for file, span in zip(key_files, spans):
        if span[0] == span[1]:
            continue
        _, index_N = _load(file, band, span)
        rest_N = index_N[1:] if smallest is None else index_N
        smallest = smallest or (file.slice, int(index_N[0]))
        columns = [np.full(len(rest_N), value) for value in (*smallest, file.slice)] + [rest_N]
        if len(rest_N):
            yield np.stack(columns, axis=1).astype(np.int64)
