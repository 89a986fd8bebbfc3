"""From pairs of duplicates to the documents that go: one of each connected group stays, the smallest (slice, index).

Dimensions: P pairs, R removed documents, M nodes.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from alignment.errors import InputError
from alignment.filtering.duplicates import bands

_MAGIC = b"PLCLUST1"
_COLUMNS = ("slice_R", "index_R", "kept_slice_R", "kept_index_R", "size_R")


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Removed documents in the order of (slice, index), what stays in the place of each, and its group's size."""

    slice_R: np.ndarray
    index_R: np.ndarray
    kept_slice_R: np.ndarray
    kept_index_R: np.ndarray
    size_R: np.ndarray

    def removed_in(self, number: int) -> dict[int, tuple[int, int]]:
        """Of one slice: index of each removed document -> (slice, index) of the one that stays."""
        start, stop = np.searchsorted(self.slice_R, [number, number + 1])
        kept = zip(self.kept_slice_R[start:stop].tolist(), self.kept_index_R[start:stop].tolist())
        return dict(zip(self.index_R[start:stop].tolist(), kept))

    def as_dict(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(slice, index) of every removed document -> that of the one that stays."""
        removed = zip(self.slice_R.tolist(), self.index_R.tolist())
        return dict(zip(removed, zip(self.kept_slice_R.tolist(), self.kept_index_R.tolist())))

    def __len__(self) -> int:
        return len(self.slice_R)


def solve(pairs: Iterable[np.ndarray], *, max_pairs: int = 1 << 22) -> Clusters:
    """Connected groups of documents; the same whatever the order of the pairs and their cutting into arrays.

    Args:
        pairs: arrays [P, 4] of (slice, index, slice, index) as `bands.pairs` yields them, of all bands one after the
            other; slices below 2^31, indices below 2^32.
        max_pairs: pairs held before they are folded into groups. Memory grows with the documents that have a
            duplicate, not with the pairs.
    """
    held, num = [np.empty((0, 2), np.int64)], 0
    for pairs_P4 in pairs:
        pairs_P4 = np.asarray(pairs_P4, np.int64)
        held.append((pairs_P4[:, [0, 2]] << 32) | pairs_P4[:, [1, 3]])
        num += len(pairs_P4)
        if num >= max_pairs:
            node_M, root_M = _roots(np.concatenate(held))
            held, num = [np.stack([root_M, node_M], axis=1)], 0
    node_M, root_M = _roots(np.concatenate(held))
    _, group_M, size_G = np.unique(root_M, return_inverse=True, return_counts=True)
    removed_M = node_M != root_M
    node_R, root_R, size_R = node_M[removed_M], root_M[removed_M], size_G[group_M][removed_M]
    low = np.int64(2**32 - 1)
    return Clusters(node_R >> 32, node_R & low, root_R >> 32, root_R & low, size_R.astype(np.int64))


def save(path: str | os.PathLike, found: Clusters) -> None:
    """One file: 8 bytes "PLCLUST1", uint64 rows, then five columns of int64, little endian; complete or absent."""
    columns = [getattr(found, name).astype("<i8").tobytes() for name in _COLUMNS]
    bands.replace(path, [_MAGIC + np.array([len(found)], "<u8").tobytes(), *columns])


def load(path: str | os.PathLike) -> Clusters:
    content = pathlib.Path(path).read_bytes()
    rows = int.from_bytes(content[8:16], "little")
    if content[:8] != _MAGIC or len(content) != 16 + 8 * len(_COLUMNS) * rows:
        raise InputError(f"{path} is not a whole {_MAGIC.decode()} file of duplicate groups; group again")
    return Clusters(*np.frombuffer(content[16:], "<i8").reshape(len(_COLUMNS), rows).astype(np.int64))


def _roots(pairs_P2):
    """Each document in any pair, ascending, and the smallest of its group."""
    if not len(pairs_P2):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    from scipy import sparse  # slow to import, and only the one who groups needs it
    from scipy.sparse import csgraph

    node_M, ends_P2 = np.unique(pairs_P2, return_inverse=True)
    ends_P2 = ends_P2.reshape(-1, 2)
    edges = sparse.coo_array((np.ones(len(ends_P2), bool), (ends_P2[:, 0], ends_P2[:, 1])), (len(node_M),) * 2)
    _, label_M = csgraph.connected_components(edges, directed=False)
    _, first, group_M = np.unique(label_M, return_index=True, return_inverse=True)
    return node_M, node_M[first[group_M]]  # nodes ascend, so a group's first is its smallest
