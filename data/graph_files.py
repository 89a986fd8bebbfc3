"""Layouts of graph files: Planetoid folders, npz of several libraries, GraphSAINT and Reddit folders, raw OGB folders.

Each reader takes a path and gives a `graphs.Graph`. `read` finds out which layout lies there.

Dimensions: N nodes, E directed edges, D features.
"""

import gzip
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from alignment import files
from alignment.errors import InputError
from data import graphs, pickled

PLANETOID = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
ROLES = {"train": "tr", "val": "va", "test": "te"}  # of GraphSAINT's role.json
SAINT = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")
REDDIT = ("reddit_data.npz", "reddit_graph.npz")
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,  # a .npy of that name opens as an array, which has no arrays by name
)  # of a file that is cut short or another kind
OGB = ("raw/edge.csv.gz", "raw/node-feat.csv.gz", "raw/node-label.csv.gz")


def check(path: str) -> None:
    """Refuse a path that holds no graph, before anything is read.

    Raises:
        InputError: nothing there, or no layout that is read.
    """
    _reader(pathlib.Path(path))


def read(path: str, *, num_features: int | None = None, feature_scale: float = 0.6, seed: int = 0) -> graphs.Graph:
    """The graph of a file or folder.

    Args:
        num_features: draw features for a graph that has none, around a centre for each class; None refuses one.
        feature_scale: distance of those centres, in standard deviations of the noise.
        seed: of drawn features, and of splits for files without.

    Raises:
        InputError: nothing there, no known layout, or a graph that `graphs.build` refuses.
    """
    where = pathlib.Path(path)
    parts = _reader(where)(where)
    y_N = graphs.labels(path, parts["y"])
    if parts.get("splits") is None:
        print(
            f"data: {path} has no splits; 20 nodes of each class are drawn to train on, 500 and 1,000 others",
            flush=True,
        )
        parts["splits"] = graphs.drawn_splits(y_N, seed)
    if parts.get("x") is None:
        if num_features is None:
            raise InputError(
                f"{path} has no features; set data.num_features, such as 16, to draw some around a centre of each class"
            )
        parts["x"] = graphs.synthetic_features(y_N, num_features, feature_scale, seed)
    elif num_features is not None:
        raise InputError(f"data.num_features={num_features} is for graphs without features, and {path} has them")
    source_E, target_E = parts["edges"]
    return graphs.build(parts["name"], source_E, target_E, parts["x"], y_N, parts["splits"])


def _reader(path: pathlib.Path) -> Any:
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as e:
        raise InputError(f"{str(path)[:200]!r} cannot be opened: {e}") from None
    if is_file:
        if path.suffix == ".npz":
            return _npz
        raise InputError(f"{path} is a file and no .npz; name an .npz, or the folder of a Planetoid or OGB graph")
    if not path.is_dir():
        raise InputError(f"{path} is not there; name an .npz, or the folder of a Planetoid, GraphSAINT or OGB graph")
    if list(path.glob("ind.*")):
        return _planetoid
    if (path / "adj_full.npz").is_file() or (path / "role.json").is_file():
        return _saint
    if any((path / name).is_file() for name in REDDIT):
        return _reddit
    if (path / "raw").is_dir():
        return _ogb
    raise InputError(
        f"{path} holds no graph: neither ind.<name>.graph (Planetoid), adj_full.npz (GraphSAINT), reddit_graph.npz nor "
        "raw/edge.csv.gz (OGB)"
    )


Parts = dict[str, Any]  # name, edges (source, target), x or None, y, splits or None


def _planetoid(folder: pathlib.Path) -> Parts:
    """Test nodes lie at the end, in the order of test.index; those without a row (Citeseer's) have no features."""
    names = sorted({path.name.split(".")[1] for path in folder.glob("ind.*.*")})
    if len(names) > 1:
        raise InputError(f"{folder} holds several graphs: {', '.join(names)}; put one in a folder of its own")
    prefix = f"ind.{names[0]}."
    paths = dict(zip(PLANETOID, graphs.need(folder, [prefix + part for part in PLANETOID], "planetoid")))
    tests_B = _table(paths["test.index"], np.int64, 1).ravel()
    kinds = dict.fromkeys(("x", "tx", "allx"), scipy.sparse.csr_matrix) | dict.fromkeys(("y", "ty", "ally"), np.ndarray)
    read = {part: pickled.read_pickle(paths[part]) for part in (*kinds, "graph")}
    for part, kind in {**kinds, "graph": dict}.items():
        if not isinstance(read[part], kind):
            raise InputError(
                f"{paths[part]} holds a {type(read[part]).__name__}; Planetoid has a {kind.__name__} there"
            )
    num_nodes = max(int(tests_B.max()) + 1, read["ally"].shape[0] + read["ty"].shape[0])
    num_fixed = read["allx"].shape[0]
    if (
        len(set(tests_B.tolist())) != read["tx"].shape[0]
        or len(tests_B) != read["tx"].shape[0]
        or tests_B.min() < num_fixed
    ):
        raise InputError(f"{paths['test.index']}: its {len(tests_B)} nodes do not fit tx of {read['tx'].shape[0]} rows")
    x_ND = scipy.sparse.lil_matrix((num_nodes, read["allx"].shape[1]), dtype=np.float32)
    x_ND[:num_fixed] = read["allx"]
    x_ND[tests_B] = read["tx"]
    y_N = np.full(num_nodes, -1)
    for nodes, one_hot in ((np.arange(num_fixed), read["ally"]), (tests_B, read["ty"])):
        y_N[nodes] = np.where(one_hot.any(axis=1), one_hot.argmax(axis=1), -1)
    lists = read["graph"]
    source_E = np.repeat(np.fromiter(lists, np.int64), [len(neighbours) for neighbours in lists.values()])
    target_E = np.fromiter((node for neighbours in lists.values() for node in neighbours), np.int64)
    num_train = read["y"].shape[0]
    splits = {
        "train": np.arange(num_train),
        "val": np.arange(num_train, min(num_train + 500, num_fixed)),
        "test": tests_B,
    }
    return dict(name=names[0], edges=(source_E, target_E), x=x_ND.tocsr(), y=y_N, splits=splits)


def _npz(path: pathlib.Path) -> Parts:
    """By the names of its arrays: edges with sparse features, edge_index with x and y, or adj_* with attr_*."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            get = _getter(path, file)
            if "edges" in names:
                source_E, target_E = _ends(path, "edges", get("edges"), 1)
                x = _sparse(get, "feat_") if "feat_indptr" in names else None
                y = get("labels")
            elif "edge_index" in names:
                source_E, target_E = _ends(path, "edge_index", get("edge_index"), 0)
                x, y = get("x") if "x" in names else None, get("y")
            elif "adj_indptr" in names:
                adjacency = _sparse(get, "adj_").tocoo()
                source_E, target_E = adjacency.row, adjacency.col
                x = (
                    _sparse(get, "attr_")
                    if "attr_indptr" in names
                    else get("attr_matrix")
                    if "attr_matrix" in names
                    else None
                )
                y = get("labels")
            else:
                raise InputError(
                    f"{path} has the arrays {', '.join(sorted(names))}; edges, edge_index or adj_indptr should be one"
                )
            return dict(name=path.stem, edges=(source_E, target_E), x=x, y=y, splits=_splits(path, get, names))
    except InputError:
        raise
    except UNREADABLE as e:
        raise InputError(f"{path} is not a readable .npz: {e}") from e


def _ends(path: pathlib.Path, name: str, edges: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the edges; exporters differ in which axis has the two of them.

    Args:
        axis: that has the two ends by the layout's own rule; it decides where both have two.
    """
    if edges.ndim != 2 or 2 not in edges.shape:
        raise InputError(f"{path}: {name} has shape {edges.shape}; a source and a target an edge are needed")
    source_E, target_E = np.moveaxis(edges, axis if edges.shape[axis] == 2 else 1 - axis, 0)
    return source_E, target_E


def _getter(path: pathlib.Path, file: Any) -> Any:
    def get(name: str) -> np.ndarray:
        try:
            return file[name]
        except KeyError:
            raise InputError(f"{path} has no array {name!r}; it has {', '.join(file.files)}") from None
        except ValueError as e:  # an array of objects, which only unpickling could read
            raise InputError(f"{path}: the array {name!r} cannot be read as numbers: {e}") from e

    return get


def _sparse(get: Any, prefix: str) -> Any:
    data, indices, indptr, shape = (get(prefix + part) for part in ("data", "indices", "indptr", "shape"))
    try:
        matrix = scipy.sparse.csr_matrix((data, indices, indptr), shape=tuple(int(size) for size in shape))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError) as e:
        raise InputError(f"the arrays {prefix}* are not a CSR matrix: {e}") from e
    return matrix


def _splits(path: pathlib.Path, get: Any, names: set[str]) -> Mapping[str, np.ndarray] | None:
    if all(f"{split}_idx" in names for split in graphs.SPLITS):
        return {split: get(f"{split}_idx") for split in graphs.SPLITS}
    if all(f"{split}_mask" in names for split in graphs.SPLITS):
        return {split: _mask(path, f"{split}_mask", get(f"{split}_mask")) for split in graphs.SPLITS}
    return None


def _mask(path: pathlib.Path, name: str, mask_N: np.ndarray) -> np.ndarray:
    """Booleans, which some exporters store as integers; `graphs.build` would take integers for nodes' numbers."""
    bad = np.flatnonzero((mask_N != 0) & (mask_N != 1))
    if len(bad):
        raise InputError(
            f"{path}: {name} has {mask_N.ravel()[bad[0]]} at place {bad[0]}; a mask has 0 or 1 for each node, "
            f"and nodes' numbers belong in {name.removesuffix('_mask')}_idx"
        )
    return mask_N.astype(bool)


def _saint(folder: pathlib.Path) -> Parts:
    adjacency, features, class_map, role = graphs.need(folder, SAINT, "saint")
    matrix = _loaded(adjacency).tocoo()
    labels = files.read_object(class_map)
    if any(isinstance(label, list) for label in labels.values()):
        raise InputError(f"{class_map}: nodes with several labels; graphs with one class a node are read")
    y_N = np.full(matrix.shape[0], -1)
    names = [node for node in labels if not node.isdecimal() or int(node) >= len(y_N)]
    if names:
        raise InputError(f"{class_map} names node {names[0]!r}, and there are nodes 0 to {len(y_N) - 1}")
    y_N[[int(node) for node in labels]] = graphs.whole(f"{class_map}: labels", list(labels.values()))
    roles = files.read_object(role)
    if missing := [name for name in ROLES.values() if not isinstance(roles.get(name), list)]:
        raise InputError(f"{role} has no list {missing[0]!r}; it needs {', '.join(ROLES.values())}")
    if odd := [name for name in ROLES.values() if any(isinstance(node, (list, dict)) for node in roles[name])]:
        raise InputError(f"{role}: {odd[0]!r} must be a list of nodes' numbers")
    splits = {ours: np.array(roles[theirs]) for ours, theirs in ROLES.items()}
    try:
        x_ND = np.load(features, allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise InputError(f"{features} is not an array that can be read: {e}. Write it again with numpy.save") from e
    return dict(name=folder.name, edges=(matrix.row, matrix.col), x=x_ND, y=y_N, splits=splits)


def _reddit(folder: pathlib.Path) -> Parts:
    data, graph = graphs.need(folder, REDDIT, "reddit")
    matrix = _loaded(graph).tocoo()
    try:
        with np.load(data, allow_pickle=False) as file:
            get = _getter(data, file)
            kinds, x_ND, y_N = get("node_types"), get("feature"), get("label")
    except UNREADABLE as e:
        raise InputError(f"{data} is not a readable .npz: {e}") from e
    splits = {split: kinds == number for number, split in enumerate(graphs.SPLITS, 1)}
    return dict(name="reddit", edges=(matrix.row, matrix.col), x=x_ND, y=y_N, splits=splits)


def _loaded(path: pathlib.Path) -> Any:
    try:
        return scipy.sparse.load_npz(path)  # which reads no objects
    except (*UNREADABLE, KeyError) as e:
        raise InputError(f"{path} is not a sparse matrix of scipy: {e}") from e


def _ogb(folder: pathlib.Path) -> Parts:
    """Raw files of ogbn-arxiv and ogbn-products; missing labels (nan) are nodes of no class."""
    edges, features, labels = graphs.need(folder, OGB, "ogb")
    parts = sorted((folder / "split").glob("*/train.csv.gz"))
    if len(parts) != 1:
        raise InputError(f"{folder}/split holds {len(parts)} folders with train.csv.gz; it should be one")
    names = dict(zip(graphs.SPLITS, ("train", "valid", "test")))
    paths = graphs.need(parts[0].parent, [f"{name}.csv.gz" for name in names.values()], "ogb")
    source_E, target_E = _table(edges, np.int64, 2).T
    y_N, x_ND = _table(labels, np.float64, 1), _table(features, np.float32)
    splits = {split: _table(path, np.int64, 1).ravel() for split, path in zip(names, paths)}
    return dict(name=folder.name, edges=(source_E, target_E), x=x_ND, y=y_N, splits=splits)


def _table(path: pathlib.Path, dtype: Any, num_columns: int | None = None) -> np.ndarray:
    """A table of numbers [rows, columns] without names; None takes any number of columns."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without a row
            table = np.loadtxt(file, dtype=dtype, delimiter=",", ndmin=2)
    except UNREADABLE as e:
        raise InputError(f"{path} is not a table of numbers: {e}") from e
    if not len(table) or num_columns not in (None, table.shape[1]):
        raise InputError(f"{path} has {len(table)} rows of {table.shape[1]} columns; it needs {num_columns or 'some'}")
    return table
