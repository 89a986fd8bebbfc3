import gzip
import json
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse

from alignment.errors import InputError
from data import graph_files, graphs
from data.toys import block_model

SOURCE, TARGET = [0, 1, 2, 3, 3, 0], [1, 0, 3, 4, 3, 1]  # a loop at 3, and 0 - 1 three times
X = np.arange(10.0).reshape(5, 2)
Y = [0, 1, 0, 1, -1]
SPLITS = {"train": [0, 1], "val": [2], "test": [3]}


def build(**changes):
    parts = dict(source_E=SOURCE, target_E=TARGET, x_ND=X, y_N=Y, splits=SPLITS) | changes
    return graphs.build("toy", **parts)


def test_edges_become_two_way_once_and_what_was_dropped_is_counted():
    graph = build()
    expected = np.zeros((5, 5))
    expected[[0, 2, 3], [1, 3, 4]] = 1
    np.testing.assert_array_equal(graph.adjacency.toarray(), expected + expected.T)
    assert graph.num_edges == 3 and graph.num_nodes == 5 and graph.num_classes == 2
    assert graph.counts == {
        "loops dropped": 1,
        "repeats dropped": 1,
        "edges made two-way": 2,
        "isolated nodes": 0,
        "nodes of no class": 1,
    }
    np.testing.assert_array_equal(graph.splits["train"], [True, True, False, False, False])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(target_E=[1, 0, 3, 5, 3, 1]), "edge 3 names node 5, and there are nodes 0 to 4"),
        (dict(source_E=[0, -1, 2, 3, 3, 0]), "edge 1 names node -1"),
        (dict(x_ND=np.where(X == 7, np.nan, X)), "a feature of node 3 is not a finite number"),
        (dict(x_ND=scipy.sparse.csr_matrix(np.where(X == 4, np.inf, X))), "a feature of node 2 is not"),
        (dict(x_ND=X[:4]), r"features of shape \(4, 2\) for 5 labels"),
        (dict(x_ND=X[:, 0]), r"features of shape \(5,\) for 5 labels"),
        (dict(x_ND=X.astype(str)), "features must be numbers"),
        (dict(source_E=[0, 1, 2.5, 3, 3, 0]), r"number 2 of them is 2\.5"),
        (dict(source_E=np.array(SOURCE, np.uint64) + np.uint64(1 << 63)), "number 0 of them is 9223372036854775808"),
        (dict(y_N=[0, 1, 0.5, 1, -1]), r"labels must be whole numbers; number 2 of them is 0\.5"),
        (dict(y_N=["a", "b", "a", "b", "a"]), "labels must be whole numbers; they are of type"),
        (dict(y_N=np.eye(2)[[0, 1, 0, 1, 1]]), r"labels of shape \(5, 2\); one class a node"),
        (dict(y_N=[0, 1, 0, 1, 1 << 40]), "label 1099511627776 is beyond the 5 nodes"),
        (dict(splits=SPLITS | {"test": [2.5]}), "the nodes of test must be whole numbers"),
        (dict(y_N=[0, 1, 0, -1, 1]), "node 3 of test has label -1"),
        (dict(num_classes=1), "node 1 of train has label 1; labels are 0 to 0"),
        (dict(splits=SPLITS | {"val": [1]}), "node 1 is of train and of val"),
        (dict(splits=SPLITS | {"train": np.array([], int)}), "no node is of train"),
        (dict(splits=SPLITS | {"test": [9]}), "test names node 9"),
        (dict(splits=SPLITS | {"test": np.ones(3, bool)}), r"mask of test has shape \(3,\)"),
    ],
)
def test_a_bad_graph_is_refused_with_its_first_offender(changes, message):
    with pytest.raises(InputError, match=message):
        build(**changes)


def test_isolated_nodes_are_legal():
    assert build(source_E=[0], target_E=[1]).counts["isolated nodes"] == 3


def test_a_graph_of_a_published_name_with_other_counts_is_named():
    with pytest.warns(UserWarning, match="cora is published with 2,708 and 5,278 or 5,429"):
        graphs.build("cora", SOURCE, TARGET, X, Y, SPLITS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()


# Layouts


def csr(prefix, matrix):
    matrix = scipy.sparse.csr_matrix(matrix)
    parts = {part: getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    return {prefix + part: value for part, value in parts.items()}


INDICES = {f"{split}_idx": np.array(nodes) for split, nodes in SPLITS.items()}
ADJACENCY = scipy.sparse.csr_matrix((np.ones(6), (SOURCE, TARGET)), shape=(5, 5))
LAYOUTS = {
    "edges": dict(edges=np.array([SOURCE, TARGET]).T, labels=np.array(Y), **csr("feat_", X), **INDICES),
    "edge_index": dict(
        edge_index=np.array([SOURCE, TARGET]),
        x=X,
        y=np.array(Y),
        **{f"{split}_mask": np.isin(np.arange(5), nodes) for split, nodes in SPLITS.items()},
    ),
    "adj": dict(**csr("adj_", ADJACENCY), **csr("attr_", X), labels=np.array(Y), **INDICES),
    "attr_matrix": dict(**csr("adj_", ADJACENCY), attr_matrix=X, labels=np.array(Y), **INDICES),
}


def same(graph):
    expected = build()
    np.testing.assert_array_equal(graph.adjacency.toarray(), expected.adjacency.toarray())
    x = graph.x_ND.toarray() if scipy.sparse.issparse(graph.x_ND) else graph.x_ND
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(graph.y_N, Y)
    for split, mask in expected.splits.items():
        np.testing.assert_array_equal(graph.splits[split], mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_npz_files_of_every_layout_give_the_same_graph(layout, tmp_path):
    np.savez(tmp_path / "toy.npz", **LAYOUTS[layout])
    same(graph_files.read(str(tmp_path / "toy.npz")))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_masks_stored_as_numbers_are_masks_and_other_numbers_are_refused(dtype, tmp_path):
    arrays = {name: a.astype(dtype) if name.endswith("_mask") else a for name, a in LAYOUTS["edge_index"].items()}
    np.savez(tmp_path / "toy.npz", **arrays)
    same(graph_files.read(str(tmp_path / "toy.npz")))
    np.savez(tmp_path / "toy.npz", **arrays | {"val_mask": np.array([0, 0, 2, 0, 0], dtype)})
    with pytest.raises(InputError, match=r"val_mask has 2.* at place 2; a mask has 0 or 1"):
        graph_files.read(str(tmp_path / "toy.npz"))


@pytest.mark.parametrize(("layout", "name"), [("edges", "edges"), ("edge_index", "edge_index")])
def test_the_two_ends_of_edges_may_lie_along_either_axis_and_there_are_two(layout, name, tmp_path):
    arrays = LAYOUTS[layout]
    np.savez(tmp_path / "toy.npz", **arrays | {name: arrays[name].T})
    same(graph_files.read(str(tmp_path / "toy.npz")))
    np.savez(tmp_path / "toy.npz", **arrays | {name: np.zeros((3, 6), int)})
    with pytest.raises(InputError, match=rf"{name} has shape \(3, 6\)"):
        graph_files.read(str(tmp_path / "toy.npz"))


def test_a_planetoid_folder_gives_its_graph(tmp_path):
    """Nodes 0 to 2 are fixed, the test nodes 4 and 3 come in that order."""
    one_hot = np.eye(2, dtype=np.int32)[[0, 1, 0, 1, 1]]
    lists = {0: [1, 1], 1: [0, 0], 2: [3], 3: [2, 3, 4], 4: [3]}
    parts = dict(
        x=scipy.sparse.csr_matrix(X[:2]),
        allx=scipy.sparse.csr_matrix(X[:3]),
        tx=scipy.sparse.csr_matrix(X[[4, 3]]),
        y=one_hot[:2],
        ally=one_hot[:3],
        ty=one_hot[[4, 3]],
        graph=lists,
    )
    for part, value in parts.items():
        (tmp_path / f"ind.toy.{part}").write_bytes(pickle.dumps(value, 2))
    (tmp_path / "ind.toy.test.index").write_text("4\n3\n")
    graph = graph_files.read(str(tmp_path))
    np.testing.assert_array_equal(graph.x_ND.toarray(), X)
    np.testing.assert_array_equal(graph.y_N, [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(graph.adjacency.toarray(), build().adjacency.toarray())
    assert [np.flatnonzero(graph.splits[s]).tolist() for s in graphs.SPLITS] == [[0, 1], [2], [3, 4]]
    for text, message in (("4\n4\n", "its 2 nodes do not fit"), ("4\nx\n", "not a table"), ("", "has 0 rows")):
        (tmp_path / "ind.toy.test.index").write_text(text)
        with pytest.raises(InputError, match=message):
            graph_files.read(str(tmp_path))
    (tmp_path / "ind.toy.ty").unlink()
    with pytest.raises(
        InputError, match=r"ind.toy.ty is not there; planetoid files are at https://github.com/kimiyoung"
    ):
        graph_files.read(str(tmp_path))


def saint(folder, **changes):
    labels = json.dumps({str(n): y for n, y in enumerate(Y) if y >= 0})
    texts = {"class_map": labels, "role": json.dumps({"tr": [0, 1], "va": [2], "te": [3]})} | changes
    scipy.sparse.save_npz(folder / "adj_full.npz", ADJACENCY)
    np.save(folder / "feats.npy", X)
    for name, text in texts.items():
        (folder / f"{name}.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def test_a_graphsaint_folder_gives_its_graph(tmp_path):
    same(graph_files.read(saint(tmp_path)))
    same(graph_files.read(saint(tmp_path, role=b"\xef\xbb\xbf" + (tmp_path / "role.json").read_bytes())))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("class_map", '{"0": [1, 0]}', "several labels"),
        ("class_map", "[0, 1]", "is not a JSON object"),
        ("class_map", b'{"0": "\xff"}', "is not a JSON object"),
        ("class_map", '{"0": 1', "is not a JSON object"),
        ("class_map", '{"5": 1}', "names node '5', and there are nodes 0 to 4"),
        ("class_map", '{"zero": 1}', "names node 'zero'"),
        ("class_map", '{"0": "cat"}', "labels must be whole numbers"),
        ("role", '{"tr": [0, 1], "va": [2]}', "has no list 'te'"),
        ("role", '{"tr": ["a"], "va": [2], "te": [3]}', "the nodes of train must be whole numbers"),
    ],
)
def test_odd_labels_and_roles_of_graphsaint_are_refused(name, text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        graph_files.read(saint(tmp_path, **{name: text}))


def test_features_that_are_cut_short_or_pickled_are_refused(tmp_path):
    folder = saint(tmp_path)
    np.save(tmp_path / "feats.npy", np.array([{}] * 5), allow_pickle=True)
    with pytest.raises(InputError, match=r"feats\.npy is not an array that can be read"):
        graph_files.read(folder)
    (tmp_path / "feats.npy").write_bytes(b"\x93NUMPY\x01\x00v")
    with pytest.raises(InputError, match=r"feats\.npy is not an array that can be read"):
        graph_files.read(folder)


def test_a_reddit_folder_gives_its_graph(tmp_path):
    scipy.sparse.save_npz(tmp_path / "reddit_graph.npz", ADJACENCY.tocoo())
    np.savez(tmp_path / "reddit_data.npz", feature=X, label=np.array(Y), node_types=np.array([1, 1, 2, 3, 0]))
    with pytest.warns(UserWarning, match="reddit is published"):
        same(graph_files.read(str(tmp_path)))
    whole = (tmp_path / "reddit_data.npz").read_bytes()
    (tmp_path / "reddit_data.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"reddit_data\.npz is not a readable \.npz"):
        graph_files.read(str(tmp_path))


def ogb(folder, **changes):
    tables = {
        "raw/edge": "\n".join(f"{s},{t}" for s, t in zip(SOURCE, TARGET)),
        "raw/node-feat": "\n".join(f"{a},{b}" for a, b in X),
        "raw/node-label": "0\n1\n0\n1\nnan",
        "split/time/train": "0\n1",
        "split/time/valid": "2",
        "split/time/test": "3",
    }
    for name, text in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = changes.get(name.rpartition("/")[2].replace("-", "_"), text)
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return str(folder)


def test_a_raw_ogb_folder_gives_its_graph(tmp_path):
    same(graph_files.read(ogb(tmp_path)))
    (tmp_path / "raw/edge.csv.gz").unlink()
    with pytest.raises(InputError, match=r"edge\.csv\.gz is not there; ogb files are at"):
        graph_files.read(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(edge="0,1,7\n2,3,7"), r"edge\.csv\.gz has 2 rows of 3 columns; it needs 2"),
        (dict(node_label="0,1\n1,0"), r"node-label\.csv\.gz has 2 rows of 2 columns"),
        (dict(node_feat="1,2\n" * 10), r"features of shape \(10, 2\) for 5 labels"),
        (dict(node_label="0.5\n1\n0\n1\nnan"), "labels must be whole numbers"),
        (dict(train=""), r"train\.csv\.gz has 0 rows"),
        (dict(edge="a,b"), "is not a table of numbers"),
    ],
)
def test_tables_of_another_shape_are_not_folded_into_the_right_one(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        graph_files.read(ogb(tmp_path, **changes))


def test_splits_and_features_are_drawn_where_a_file_has_none_and_never_silently(tmp_path, capsys):
    labels = np.arange(120) % 3
    edges = np.stack([np.arange(119), np.arange(1, 120)], axis=1)
    np.savez(tmp_path / "bare.npz", edges=edges, labels=labels)
    with pytest.raises(InputError, match=r"has no features; set data\.num_features"):
        graph_files.read(str(tmp_path / "bare.npz"))
    graph = graph_files.read(str(tmp_path / "bare.npz"), num_features=4, seed=1)
    assert "has no splits" in capsys.readouterr().out
    assert graph.x_ND.shape == (120, 4)
    assert [int(graph.splits[s].sum()) for s in graphs.SPLITS] == [60, 30, 30]
    assert np.bincount(labels[graph.splits["train"]]).tolist() == [20, 20, 20]
    np.savez(tmp_path / "far.npz", edges=edges, labels=np.where(labels == 2, 1 << 40, labels))
    with pytest.raises(InputError, match="label 1099511627776 is beyond the 120 nodes"):  # and not out of memory
        graph_files.read(str(tmp_path / "far.npz"), num_features=4)
    np.savez(tmp_path / "toy.npz", **LAYOUTS["edges"])
    with pytest.raises(InputError, match="for graphs without features"):
        graph_files.read(str(tmp_path / "toy.npz"), num_features=4)


def test_an_array_named_npz_and_a_path_that_no_disk_has_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    for path, said in ((tmp_path / "a.npz", "not a readable .npz"), ("x" * 5_000, "cannot be opened")):
        with pytest.raises(InputError, match=said):
            graph_files.read(str(path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": np.array(1)}, "one class a node"),
        ({"y": np.zeros(5, int)}, "one class"),
        ({"x": np.ones((5, 0))}, "features"),
    ],
)
def test_arrays_that_say_nothing_are_refused(changes, said, tmp_path):
    np.savez(tmp_path / "toy.npz", **LAYOUTS["edge_index"] | changes)
    with pytest.raises(InputError, match=said):
        graph_files.read(str(tmp_path / "toy.npz"))


def test_files_that_are_no_graph_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        graph_files.check(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="holds no graph"):
        graph_files.check(str(tmp_path))
    (tmp_path / "a.txt").write_text("0 1")
    with pytest.raises(InputError, match=r"no \.npz"):
        graph_files.check(str(tmp_path / "a.txt"))
    (tmp_path / "a.npz").write_text("0 1")
    with pytest.raises(InputError, match="not a readable"):
        graph_files.read(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", other=np.ones(3))
    with pytest.raises(InputError, match="has the arrays other"):
        graph_files.read(str(tmp_path / "b.npz"))
    np.savez(tmp_path / "c.npz", edges=np.zeros((1, 2), int), labels=np.array([{}, 1], object))
    with pytest.raises(InputError, match="'labels' cannot be read as numbers"):
        graph_files.read(str(tmp_path / "c.npz"))


# The block model


def test_a_block_model_has_the_neighbours_that_it_was_asked_for():
    graph = block_model.graph(block_model.Options(nodes=4_000, inside=8.0, outside=3.0), seed=1)
    edges = graph.adjacency.tocoo()
    is_inside = graph.y_N[edges.row] == graph.y_N[edges.col]
    assert is_inside.sum() / 4_000 == pytest.approx(8.0, abs=0.3)
    assert (~is_inside).sum() / 4_000 == pytest.approx(3.0, abs=0.2)
    assert [int(graph.splits[s].sum()) for s in graphs.SPLITS] == [800, 800, 2_400]
    again = block_model.graph(block_model.Options(nodes=4_000, inside=8.0, outside=3.0), seed=1)
    assert (graph.adjacency != again.adjacency).nnz == 0 and np.array_equal(graph.x_ND, again.x_ND)


def test_a_streamed_block_model_is_that_of_all_its_edges_at_once(monkeypatch):
    monkeypatch.setattr(block_model, "PIECE", 50)
    monkeypatch.setattr(graphs, "ROWS", 70)
    options = block_model.Options(nodes=200, inside=9.0, outside=8.0)
    graph = block_model.graph(options, 3)
    rng = np.random.default_rng(3)
    y_N = rng.integers(4, size=200)
    y_N[:4] = np.arange(4)
    source_E, target_E = (np.concatenate(ends) for ends in zip(*block_model.edges(options, y_N, rng)))
    at_once = graphs.build("all", source_E, target_E, graph.x_ND, y_N, graph.splits)
    assert graph.counts == at_once.counts and graph.counts["repeats dropped"] > 0 < graph.counts["loops dropped"]
    assert graph.num_edges == len({(min(ends), max(ends)) for ends in zip(source_E, target_E) if ends[0] != ends[1]})
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(graph.adjacency, name), getattr(at_once.adjacency, name))
    assert graph.adjacency.data.dtype == np.float32
    draws = np.random.default_rng([3, 1])
    centres = np.float32(options.feature_scale) * draws.standard_normal((4, 16), dtype=np.float32)
    np.testing.assert_array_equal(graph.x_ND, centres[y_N] + draws.standard_normal((200, 16), dtype=np.float32))


def test_the_edges_of_a_block_model_are_never_held_beside_its_graph(monkeypatch):
    monkeypatch.setattr(block_model, "PIECE", 4_000)
    tracemalloc.start()
    try:
        graph = block_model.graph(block_model.Options(nodes=6_000, inside=60.0, outside=20.0), 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = [graph.adjacency.indptr, graph.adjacency.indices, graph.adjacency.data, graph.x_ND, graph.y_N]
    assert peak < 1.6 * sum(array.nbytes for array in arrays)  # with all edges as pairs of nodes: 5 times


@pytest.mark.parametrize(
    "changes", [dict(classes=1), dict(nodes=6), dict(inside=-1.0), dict(features=0), dict(train=0.5, val=0.5)]
)
def test_a_block_model_that_cannot_be_is_refused(changes):
    with pytest.raises(InputError):
        block_model.Options(**changes)


# Real files


def test_both_forms_of_cora_give_the_same_graph_with_the_published_counts(shared_data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planetoid = graph_files.read(str(shared_data / "graph_cora"))
        plain = graph_files.read(str(shared_data / "graph_cora/cora.npz"))
    assert (planetoid.num_nodes, planetoid.num_edges, planetoid.num_classes) == (2_708, 5_278, 7)
    assert [int(planetoid.splits[s].sum()) for s in graphs.SPLITS] == [140, 500, 1_000]
    assert (planetoid.adjacency != plain.adjacency).nnz == 0 and (planetoid.x_ND != plain.x_ND).nnz == 0
    np.testing.assert_array_equal(planetoid.y_N, plain.y_N)
    for split in graphs.SPLITS:
        np.testing.assert_array_equal(planetoid.splits[split], plain.splits[split])


def test_the_structure_of_pubmed_is_read_with_drawn_features(shared_data):
    graph = graph_files.read(str(shared_data / "graph_pubmed_structure/pubmed_structure.npz"), num_features=16)
    assert (graph.num_nodes, graph.num_edges, graph.num_classes) == (19_717, 44_324, 3)
    assert graph.x_ND.shape == (19_717, 16)
