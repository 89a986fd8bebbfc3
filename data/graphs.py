"""Graphs with features and one class a node, from the files that graph libraries share; no torch, and no unpickling.

Dimensions: N nodes, E directed edges, D features.
"""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from alignment.errors import InputError

SPLITS = ("train", "val", "test")
ROWS = 100_000  # nodes that get their features at a time
# Published counts of nodes, and of edges as some file holds them: undirected, without loops and repeats, or as listed.
KNOWN = {
    "cora": (2_708, (5_278, 5_429)),
    "citeseer": (3_327, (4_552, 4_732)),
    "pubmed": (19_717, (44_324, 44_338)),
    "flickr": (89_250, (449_878, 899_756)),
    "reddit": (232_965, (57_307_946, 114_615_892)),
    "arxiv": (169_343, (1_157_799, 1_166_243)),
    "products": (2_449_029, (61_859_140, 61_859_012)),
}
WHERE = {  # where each layout comes from, for the message that a file is missing
    "planetoid": "https://github.com/kimiyoung/planetoid (folder data)",
    "saint": "https://github.com/GraphSAINT/GraphSAINT (its data folder)",
    "reddit": "https://data.dgl.ai/dataset/reddit.zip",
    "ogb": "http://snap.stanford.edu/ogb/data/nodeproppred/<name>.zip",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph for the classification of nodes.

    `adjacency` is scipy CSR, float32 ones, symmetric, without loops; `x_ND` is dense float32 or CSR; `y_N` int32, -1
    where a node has no class; `splits` of booleans [N] for train, val and test; `counts` of what was changed.
    """

    name: str
    adjacency: Any
    x_ND: Any
    y_N: np.ndarray
    splits: Mapping[str, np.ndarray]
    num_classes: int
    counts: Mapping[str, int]

    @property
    def num_nodes(self) -> int:
        return len(self.y_N)

    @property
    def num_edges(self) -> int:
        """Undirected, without loops and repeats."""
        return self.adjacency.nnz // 2


def build(
    name: str,
    source_E: np.ndarray,
    target_E: np.ndarray,
    x_ND: Any,
    y_N: np.ndarray,
    splits: Mapping[str, np.ndarray],
    *,
    num_classes: int | None = None,
) -> Graph:
    """A graph from its parts, checked: edges become undirected, loops and repeats go, and both are counted.

    Args:
        splits: booleans, or the nodes' numbers.
        num_classes: None: as many as the largest class names.

    Raises:
        InputError: node ids that do not exist, features that are not finite numbers, labels of no class, splits that
            overlap, nobody to train on; each names the first offender.
    """
    y_N = labels(name, y_N)
    return assemble(name, undirected(name, source_E, target_E, len(y_N)), x_ND, y_N, splits, num_classes=num_classes)


def assemble(
    name: str,
    edges: tuple[Any, dict[str, int]],
    x_ND: Any,
    y_N: np.ndarray,
    splits: Mapping[str, np.ndarray],
    *,
    num_classes: int | None = None,
) -> Graph:
    """`build` from edges that `undirected` or `streamed` has joined: the adjacency, and the counts of what it changed.

    Raises:
        InputError: as `build`, but for the ends of edges.
    """
    adjacency, counts = edges
    num_nodes = len(y_N)
    if x_ND.ndim != 2 or x_ND.shape[0] != num_nodes or not x_ND.shape[1]:
        raise InputError(f"{name}: features of shape {x_ND.shape} for {num_nodes:,} labels; a row a node is needed")
    x_ND = _features(name, x_ND)
    masks = _masks(name, splits, num_nodes)
    classes = int(y_N.max()) + 1 if num_classes is None else num_classes
    if num_classes is None and classes < 2:
        raise InputError(f"{name}: all nodes have one class; two are needed to tell apart")
    for split, mask_N in masks.items():
        bad = np.flatnonzero(mask_N & ((y_N < 0) | (y_N >= classes)))
        if len(bad):
            raise InputError(f"{name}: node {bad[0]} of {split} has label {y_N[bad[0]]}; labels are 0 to {classes - 1}")
    counts = counts | {
        "isolated nodes": int(np.sum(np.diff(adjacency.indptr) == 0)),
        "nodes of no class": int(np.sum(y_N < 0)),
    }
    graph = Graph(name, adjacency, x_ND, y_N.astype(np.int32), masks, classes, counts)
    _compare_counts(graph)
    return graph


def undirected(name: str, source_E: Any, target_E: Any, num_nodes: int) -> tuple[Any, dict[str, int]]:
    """CSR of ones for both directions of every edge, and counts of loops, repeats and edges with one direction."""
    source_E, target_E = (whole(f"{name}: the ends of edges", ends) for ends in (source_E, target_E))
    for ends in (source_E, target_E):
        bad = np.flatnonzero((ends < 0) | (ends >= num_nodes))
        if len(bad):
            raise InputError(
                f"{name}: edge {bad[0]} names node {ends[bad[0]]}, and there are nodes 0 to {num_nodes - 1}"
            )
    return streamed([(source_E, target_E)], num_nodes)


def streamed(pieces: Iterable[tuple[np.ndarray, np.ndarray]], num_nodes: int) -> tuple[Any, dict[str, int]]:
    """What `undirected` returns, of edges that come as pieces (source, target), all between existing nodes.

    No more than one piece is held as pairs of nodes: the peak of memory is that of the graph itself and a quarter.
    """
    num_loops = num_edges = 0
    merged: list[Any] = []  # of pieces, each longer than the next, so that an edge is copied a logarithm of times
    for source_E, target_E in pieces:
        is_edge_E = source_E != target_E
        num_loops += len(is_edge_E) - int(is_edge_E.sum())
        num_edges += int(is_edge_E.sum())
        piece = _ones((source_E[is_edge_E], target_E[is_edge_E]), num_nodes)
        while merged and merged[-1].nnz <= 2 * piece.nnz:
            piece = _flat(piece + merged.pop())
        merged.append(piece)
    directed = scipy.sparse.csr_matrix((num_nodes,) * 2, dtype=np.int8)
    while merged:
        directed = _flat(directed + merged.pop())
    repeats = num_edges - directed.nnz
    both = directed + directed.T
    del directed  # the numbers of both are widened only now
    one_way = int(np.sum(both.data == 1)) // 2
    both.data = np.ones(both.nnz, np.float32)
    both.sort_indices()
    return both, {"loops dropped": num_loops, "repeats dropped": repeats, "edges made two-way": one_way}


def _ones(ends: tuple[Any, Any], num_nodes: int) -> Any:
    """CSR of the edges, repeats merged; bytes, since floats would be half of the memory while edges are joined."""
    return _flat(scipy.sparse.csr_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(num_nodes,) * 2))


def _flat(matrix: Any) -> Any:
    """The matrix with ones where it has sums of them."""
    matrix.data[:] = 1
    return matrix


def labels(name: str, y_N: Any) -> np.ndarray:
    """One class a node, int64 [N]; -1 where a node has none, which files may write as NaN.

    Raises:
        InputError: several columns, no node, labels that are not whole numbers, a label that is not below the number
            of nodes, for which features and weights of as many classes would be made.
    """
    y_N = np.asarray(y_N)
    if y_N.ndim == 0 or y_N.size == 0 or y_N.size != len(y_N):
        raise InputError(f"{name}: labels of shape {y_N.shape}; one class a node is needed, as a whole number from 0")
    if y_N.dtype.kind == "f":
        y_N = np.where(np.isnan(y_N), -1, y_N)
    y_N = whole(f"{name}: labels", y_N)
    if y_N.max() >= len(y_N):
        raise InputError(f"{name}: label {y_N.max()} is beyond the {len(y_N):,} nodes; classes are numbered from 0")
    return y_N


def whole(what: str, numbers: Any) -> np.ndarray:
    """Whole numbers as int64, flat; a cast alone would cut fractions off and read text.

    Raises:
        InputError: one that is not whole, or too large.
    """
    numbers = np.asarray(numbers).ravel()
    if numbers.dtype.kind not in "biuf":
        raise InputError(f"{what} must be whole numbers; they are of type {numbers.dtype}")
    with np.errstate(invalid="ignore"):
        cast = numbers.astype(np.int64)
    bad = np.flatnonzero(cast != numbers)
    if len(bad):
        raise InputError(f"{what} must be whole numbers; number {bad[0]} of them is {numbers[bad[0]]}")
    return cast


def _features(name: str, x_ND: Any) -> Any:
    is_sparse = scipy.sparse.issparse(x_ND)
    if x_ND.dtype.kind not in "biuf":
        raise InputError(f"{name}: features must be numbers; they are of type {x_ND.dtype}")
    x_ND = scipy.sparse.csr_matrix(x_ND, dtype=np.float32) if is_sparse else np.asarray(x_ND, np.float32)
    bad = np.flatnonzero(~np.isfinite(x_ND.data if is_sparse else x_ND.ravel()))
    if len(bad):
        node = np.searchsorted(x_ND.indptr, bad[0], side="right") - 1 if is_sparse else bad[0] // x_ND.shape[1]
        raise InputError(f"{name}: a feature of node {node} is not a finite number")
    return x_ND


def _masks(name: str, splits: Mapping[str, np.ndarray], num_nodes: int) -> dict[str, np.ndarray]:
    masks = {}
    for split in SPLITS:
        nodes = np.asarray(splits[split])
        if nodes.dtype != bool:
            nodes = whole(f"{name}: the nodes of {split}", nodes)
            bad = np.flatnonzero((nodes < 0) | (nodes >= num_nodes))
            if len(bad):
                raise InputError(f"{name}: {split} names node {nodes[bad[0]]}, and there are 0 to {num_nodes - 1}")
            mask_N = np.zeros(num_nodes, bool)
            mask_N[nodes] = True
            nodes = mask_N
        if nodes.shape != (num_nodes,):
            raise InputError(f"{name}: the mask of {split} has shape {nodes.shape} for {num_nodes:,} nodes")
        masks[split] = nodes
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        both = np.flatnonzero(masks[first] & masks[second])
        if len(both):
            raise InputError(f"{name}: node {both[0]} is of {first} and of {second}; splits must not overlap")
    for split in SPLITS:
        if not masks[split].any():
            raise InputError(f"{name}: no node is of {split}; mark some")
    return masks


def _compare_counts(graph: Graph) -> None:
    """Say where a graph of a published name has other counts than published."""
    for name, (num_nodes, num_edges) in KNOWN.items():
        if name in graph.name.lower() and (graph.num_nodes != num_nodes or graph.num_edges not in num_edges):
            published = " or ".join(f"{number:,}" for number in num_edges)
            warnings.warn(
                f"{graph.name} has {graph.num_nodes:,} nodes and {graph.num_edges:,} edges; {name} is published with "
                f"{num_nodes:,} and {published}",
                stacklevel=3,
            )


def drawn_splits(
    y_N: np.ndarray, seed: int, *, per_class: int | None = 20, num_val: int = 500, num_test: int = 1_000
) -> dict[str, np.ndarray]:
    """Splits for files that have none: 20 nodes of each class to train on, then 500 and 1,000 as far as they go."""
    if y_N.max() < 0:
        raise InputError("no node has a class; mark some")
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(y_N >= 0))
    train = np.concatenate([order[y_N[order] == label][:per_class] for label in range(int(y_N.max()) + 1)])
    rest = order[~np.isin(order, train)]
    num_val = min(num_val, len(rest) // 2)
    return {"train": train, "val": rest[:num_val], "test": rest[num_val : num_val + num_test]}


def synthetic_features(y_N: np.ndarray, num_features: int, scale: float, seed: int) -> np.ndarray:
    """Normal noise around a centre for each class; nodes of no class have noise alone."""
    rng = np.random.default_rng([seed, 1])
    centres = scale * rng.standard_normal((int(y_N.max()) + 1, num_features), dtype=np.float32)
    centres = np.concatenate([centres, np.zeros((1, num_features), np.float32)])  # label -1 takes the last
    x_ND = rng.standard_normal((len(y_N), num_features), dtype=np.float32)
    for first in range(0, len(y_N), ROWS):  # in place and a few at a time: a second array would double the memory
        x_ND[first : first + ROWS] += centres[y_N[first : first + ROWS]]
    return x_ND


def counts(graph: Graph) -> dict[str, int]:
    """What was read, for the report."""
    sizes = {"nodes": graph.num_nodes, "undirected edges": graph.num_edges, "features": graph.x_ND.shape[1]}
    sizes |= {"classes": graph.num_classes}
    sizes |= {f"nodes of {split}": int(mask_N.sum()) for split, mask_N in graph.splits.items()}
    return sizes | {what: number for what, number in graph.counts.items() if number}


def missing(path: str | os.PathLike, layout: str) -> InputError:
    """The error of a file that is not there, with where it can be had; nothing is fetched by itself."""
    return InputError(f"{path} is not there; {layout} files are at {WHERE[layout]}: fetch them and put it there")


def need(folder: pathlib.Path, names: Sequence[str], layout: str) -> list[pathlib.Path]:
    """These files of a folder; raises `missing` for the first that is not there."""
    for name in names:
        if not (folder / name).is_file():
            raise missing(folder / name, layout)
    return [folder / name for name in names]
