"""From pairs of duplicates to removed documents: of each connected group the smallest (slice, index) stays.

Dimensions: P pairs, R removed documents, M nodes.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Removed documents in the order of (slice, index), and the document that stays instead of each."""

    slice_R: np.ndarray
    index_R: np.ndarray
    kept_slice_R: np.ndarray
    kept_index_R: np.ndarray

    def removed_in(self, number: int) -> dict[int, tuple[int, int]]:
        """For one slice: index of each removed document -> (slice, index) of the one that stays."""
        start, stop = np.searchsorted(self.slice_R, [number, number + 1])
        stays = zip(self.kept_slice_R[start:stop].tolist(), self.kept_index_R[start:stop].tolist())
        return dict(zip(self.index_R[start:stop].tolist(), stays))

    def as_dict(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(slice, index) of every removed document -> (slice, index) of the one that stays."""
        removed = zip(self.slice_R.tolist(), self.index_R.tolist())
        return dict(zip(removed, zip(self.kept_slice_R.tolist(), self.kept_index_R.tolist())))

    def __len__(self) -> int:
        return len(self.slice_R)


def solve(pairs: Iterable[np.ndarray], *, max_pairs: int = 1 << 22) -> Clusters:
    """Connected groups of documents; they do not depend on the order of the pairs, nor on how arrays cut them.

    Args:
        pairs: arrays [P, 4] of (slice, index, slice, index) as `bands.pairs` yields them, of all bands one after the
            other; slices below 2^31, indices below 2^32.
        max_pairs: pairs that are collected before they are folded into groups, so that memory grows with the documents
            that have a duplicate, not with the pairs.
    """
    # A document is one number, slice in the high half: the smallest number is the smallest (slice, index).
    links, num = [np.empty((0, 2), np.int64)], 0
    for pairs_P4 in pairs:
        pairs_P4 = np.asarray(pairs_P4, np.int64)
        links.append((pairs_P4[:, [0, 2]] << 32) | pairs_P4[:, [1, 3]])
        num += len(pairs_P4)
        if num >= max_pairs:
            node_M, root_M = _roots(np.concatenate(links))
            # (root, member) links say all that the pairs said, with one row a document.
            links, num = [np.stack([root_M, node_M], axis=1)], 0
    node_M, root_M = _roots(np.concatenate(links))
    removed_M = node_M != root_M
    node_R, root_R = node_M[removed_M], root_M[removed_M]
    low = np.int64(2**32 - 1)
    return Clusters(node_R >> 32, node_R & low, root_R >> 32, root_R & low)


def _roots(pairs_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each document of any pair, ascending, and the smallest of its group."""
    if not len(pairs_P2):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    from scipy import sparse  # slow to import, and only this stage needs it
    from scipy.sparse import csgraph

    node_M, ends_P2 = np.unique(pairs_P2, return_inverse=True)
    ends_P2 = ends_P2.reshape(-1, 2)
    edges = sparse.coo_array((np.ones(len(ends_P2), bool), (ends_P2[:, 0], ends_P2[:, 1])), (len(node_M),) * 2)
    _, label_M = csgraph.connected_components(edges, directed=False)
    _, first, group_M = np.unique(label_M, return_index=True, return_inverse=True)
    return node_M, node_M[first[group_M]]  # nodes ascend, so a group's first node is its smallest
