"""Sketch-GNN from the command line: what a run leaves behind, what is refused, and that it learns."""

import dataclasses
import json
import pathlib
import threading

import jax
import numpy as np
import pytest
import scipy.sparse

from alignment.errors import InputError
from alignment.models import gnn
from alignment.train import loop
from data.toys import block_model
from experiments import sketch_gnn
from experiments.graphs import arms, parts, refreshing, scaling, sketched, training
from experiments.pages import sketch_gnn as page
from tests.experiments.conftest import launch


def changed(**changes):
    c = sketch_gnn.get_config("tiny")
    with c.unlocked():
        c.update_from_flattened_dict(changes)
    return c


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sketch.ratios": (0.0,)}, "a ratio must be above 0"),
        ({"sketch.ratios": (-0.5,)}, "a ratio must be above 0"),
        ({"sketch.ratios": ()}, "set one"),
        ({"sketch.width": 8}, "set one"),
        ({"sketch.ratios": (), "sketch.width": 1}, "sketch.width=1 must be at least 2"),
        ({"sketch.order": 0}, "sketch.order=0 must be at least 1"),
        ({"sketch.top_k": 0}, "sketch.top_k=0"),
        ({"sketch.hashes": "order_distinc"}, "the nearest is 'order_distinct'"),
        ({"sketch.buckets": "lsh"}, "sketch.buckets='lsh' is not one of"),
        ({"sketch.readout": "mode"}, "sketch.readout='mode' is not one of: median, mean"),
        ({"sketch.coefficients": "taylor"}, "activation='relu' is not one of: sigmoid, tanh"),
        ({"sketch.coefficients": "ridge", "sketch.activation": "gelu"}, "sketch.activation='gelu'"),
        ({"sketch.coefficients": "ridge", "network.name": "sgc"}, "gcn and sage, and network.name='sgc'"),
        ({"sketch.coefficients": "ridge", "network.name": "gat"}, "gcn and sage, and network.name='gat'"),
        ({"sketch.residual": True, "sketch.hashes": "all_distinct"}, "the sum is noise"),
        ({"sketch.buckets": "lsh_learned", "sketch.hashes": "all_distinct"}, "learns hashes that all layers share"),
        ({"network.name": "gnc"}, "network.name='gnc' is not one of: gcn, sage"),
        ({"sketch.activation": "tanh"}, "and not where it is learned"),
        ({"network.heads": 2}, "network.heads=2 is of gat"),
        ({"lsh.every": 3}, "lsh.every=3 is not read, as sketch.buckets=lsh_learned is not set"),
        ({"attention.every": 3}, "attention.every=3 is not read, as network.name=gat is not set"),
        ({"parts.walk": 3}, "parts.walk=3 is not read, as baselines is not set"),
        ({"baselines": ("sait",)}, "the nearest is 'saint'"),
        ({"baselines": ("saint",), "network.name": "gat"}, "trains none of them"),
        (
            {"sketch.ratios": (), "sketch.width": 1_000, "sketch.top_k": None, "sketch.memory_mib": 15},
            "need 15.3 MiB for the convolution, and sketch.memory_mib=15 is less; lower sketch.width",
        ),
        ({"sizes": (2_000,), "scale.width": 600, "sketch.memory_mib": 5}, "need 5.5 MiB .*; lower scale.width"),
        ({"sizes": (10,)}, "sizes names 10 nodes"),
        ({"data.path": "nowhere"}, "nowhere is not there"),
        ({"data.path": ""}, "data.path is not set"),
        ({"data.path": "synthetic:blocks"}, "synthetic:block_model"),
        ({"data.features": "row"}, "the nearest is 'rows'"),
        ({"data.num_features": 4}, "block.features is of synthetic:block_model"),
        ({"block.classes": 1}, "2 classes of 4 nodes"),
        ({"optimizer.lr": 0.0}, "optimizer.lr=0.0 must be above 0"),
        ({"optimizer.dropout": 1.0}, r"optimizer.dropout=1.0 must be in \[0, 1\)"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_read(changes, message):
    with pytest.raises(InputError, match=message):
        sketch_gnn.check(changed(**changes))


def test_a_graph_of_which_a_ratio_leaves_one_row_is_refused_and_large_ones_are_named(capsys):
    with pytest.raises(InputError, match="of 240 nodes is 1 row"):
        sketch_gnn.widths_of(changed(**{"sketch.ratios": (0.001,)}), 240)
    assert sketch_gnn.widths_of(changed(**{"sketch.ratios": (1.5, 0.01)}), 240) == {1.5: 360, 0.01: 3}
    out = capsys.readouterr().out
    assert "ratio 1.5 is larger than the graph" in out and "top_k=4 is cut to the 3 rows" in out


def test_a_ratio_beyond_the_memory_is_refused_before_any_arm(tmp_path):
    c = changed(**{"sketch.ratios": (0.1, 2.0), "sketch.top_k": None, "sketch.memory_mib": 1, "sizes": ()})
    with pytest.raises(InputError, match=r"480 rows, 2 layers, .* need 3\.5 MiB .*; lower sketch\.ratios"):
        sketch_gnn.run(c, str(tmp_path))
    assert not (tmp_path / "arms").exists()


def test_attention_needs_memory_in_each_layer_and_shared_convolutions_once():
    once = changed(**{"sketch.top_k": None, "sketch.memory_mib": 1})  # 4 * 250^2 * 4 bytes a layer
    sketch_gnn.check_budget(once, 250)
    for changes in ({"network.name": "gat"}, {"sketch.hashes": "all_distinct"}):
        each = changed(**{"sketch.top_k": None, "sketch.memory_mib": 1} | changes)
        with pytest.raises(InputError, match=r"need 1\.9 MiB"):
            sketch_gnn.check_budget(each, 250)


def test_a_run_leaves_accuracies_memory_and_time_of_every_arm_and_size(tiny):
    ended = tiny("sketch_gnn")
    summary = json.loads((ended.workdir / "summary.json").read_text())
    for name in ("accuracy", "step_seconds", "memory"):
        assert {f"{name}/full", f"{name}/sketch", f"{name}/poly_full"} <= summary.keys()
    assert summary["ratio"] == 0.5 and summary["sizes/memory_growth"] == 1.0
    rows = [json.loads(line) for line in (ended.workdir / "tables/sizes.jsonl").read_text().splitlines()]
    assert [row["nodes"] for row in rows] == [700, 1_400]
    assert all(row["largest dimension"] < row["nodes"] for row in rows)
    for name in ("test accuracy", "full: test accuracy"):
        assert all(row[f"{name}, low"] <= row[name] <= row[f"{name}, high"] for row in rows)
    assert {"sizes/accuracy/sketch/low", "sizes/accuracy/full/high"} <= summary.keys()
    assert {"sizes/prepare_seconds", "sizes/inference_seconds"} <= summary.keys()
    names = {path.name for path in (ended.workdir / "figures").glob("*.png")}
    assert {"ratios.png", "mib_by_size.png", "seconds_by_size.png"} <= names


def test_a_run_of_our_own_designs_says_so_beside_its_sketched_arms(tmp_path):
    assert not sketch_gnn.ours(changed())
    note = sketch_gnn.ours(changed(**{"network.name": "gat"}))
    assert note == "attention refreshed on the full graph: ours, not the paper's"
    assert sketch_gnn.ours(changed(**{"sketch.buckets": "lsh_learned"})).startswith("learned hashes: ours")
    curve = [{"epoch": 1, "loss": 1.0, "val": 0.5}]
    results = [
        training.Result(name, 0, {"val": 0.5, "test": 0.5}, 1, {"test": 0.5}, 1.0, 1, curve, {})
        for name in ("full", "poly_full", "sketch@0.5")
    ]
    page.write(tmp_path, results, [], first_ratio=0.5, note=note)
    rows = [json.loads(line) for line in (tmp_path / "tables/arms.jsonl").read_text().splitlines()]
    assert [row["note"] for row in rows] == ["", "", note]


def test_an_arm_of_several_seeds_has_the_interval_of_its_mean_accuracy():
    curve = [{"epoch": 1, "loss": 1.0, "val": 0.5}]
    results = [
        training.Result("sketch@0.1", seed, {"val": 0.5, "test": test}, 1, {"test": test}, 1.0, 1, curve, {})
        for seed, test in enumerate((0.7, 0.8, 0.9))
    ]
    line = page.line_of("sketch@0.1", results)
    half = 4.302653 * 0.1 / 3**0.5  # Student's t of two degrees of freedom
    assert (line["low"], line["high"]) == pytest.approx((0.8 - half, 0.8 + half))
    assert page.line_of("sketch@0.1", results[:1])["low"] is None


def test_a_finished_arm_is_read_again_and_one_of_other_data_is_refused(tiny, tmp_path):
    (path,) = (tiny("sketch_gnn").workdir / "arms").glob("full,seed=0.json")
    stored = json.loads(path.read_text())
    (tmp_path / path.name).write_bytes(path.read_bytes())
    arm = training.Arm("full", None, {}, {}, {}, None, None)
    pace = dict(seed=0, epochs=6, eval_every=3, folder=tmp_path)
    assert training.fit(arm, digest=stored["digest"], **pace).best == stored["best"]
    with pytest.raises(InputError, match="was trained on other data"):
        training.fit(arm, digest="other", **pace)


def test_the_digest_of_a_graph_changes_with_its_features_dense_and_sparse():
    graph = block_model.graph(block_model.Options(nodes=40, inside=4.0, outside=1.0), 0)
    sparse = dataclasses.replace(graph, x_ND=scipy.sparse.csr_matrix(graph.x_ND))
    found = {arms.digest(g) for one in (graph, sparse) for g in (one, dataclasses.replace(one, x_ND=one.x_ND * 2))}
    assert len(found) == 4


# Arms on one small graph


@pytest.fixture(scope="module")
def graph():
    return block_model.graph(block_model.Options(nodes=300, inside=8.0, outside=2.0), 0)


def prepared(graph, name="gcn", heads=1):
    return arms.prepare(graph, features="columns", name=name, num_layers=2, hidden=8, heads=heads)


OPTIONS = dict(lr=0.02, weight_decay=0.0, clip_norm=1.0, dropout=0.0)


def sketching(**changes):
    defaults = dict(
        width=100,
        top_k=8,
        sets=1,
        mode="order_distinct",
        buckets="random",
        readout="median",
        is_residual=False,
    )
    return sketched.Sketching(**(defaults | changes))


def fitted(arm, folder, epochs=25):
    return training.fit(arm, seed=0, epochs=epochs, eval_every=5, folder=folder, digest="")


@pytest.mark.parametrize(("name", "buckets"), [("gcn", "lsh_fixed"), ("sage", "lsh_fixed"), ("sgc", "random")])
def test_sketched_networks_learn(name, buckets, graph, tmp_path):
    arm = sketched.sketched(
        "sketch",
        prepared(graph, name),
        arms.Coefficients(1 if name == "sgc" else 2),
        sketching(buckets=buckets, width=150),
        seed=0,
        batch_size=1_000,
        **OPTIONS,
    )
    result = fitted(arm, tmp_path)
    assert result.curve[-1]["loss"] < 0.9 * result.curve[0]["loss"] and result.best["val"] > 0.5
    assert pathlib.Path(tmp_path / "sketch,seed=0.npz").is_file()


def test_the_same_seed_gives_the_same_losses(graph, tmp_path):
    curves = []
    for number in range(2):
        arm = sketched.sketched(
            f"sketch{number}", prepared(graph), arms.Coefficients(2), sketching(), seed=3, batch_size=1_000, **OPTIONS
        )
        curves.append(fitted(arm, tmp_path, 6).curve)
    assert curves[0] == curves[1]


def learned(graph):
    hashing = refreshing.Hashing(warmup=2, every=2, lr=0.05, margin=2.0)
    options = dict(seed=0, batch_size=1_000, hashing=hashing, **OPTIONS)
    given, how = arms.Coefficients(2), sketching(buckets="lsh_learned", width=60)
    return sketched.sketched("sketch", prepared(graph), given, how, **options)


def test_an_arm_that_was_stopped_goes_on_to_the_same_end_with_its_learned_hashes(graph, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STOP", threading.Event())
    pace = dict(seed=0, epochs=8, eval_every=2, digest="a")
    expected = training.fit(learned(graph), folder=tmp_path / "at once", **pace)
    arm, evaluations = learned(graph), []

    def accuracies_fn(params, frozen):
        evaluations.append(1)
        if len(evaluations) == 2:
            loop.STOP.set()
        return arm.accuracies_fn(params, frozen)

    with pytest.raises(loop.Stopped, match="stopped after epoch 4 of 8"):
        training.fit(dataclasses.replace(arm, accuracies_fn=accuracies_fn), folder=tmp_path / "twice", **pace)
    loop.STOP.clear()
    with pytest.raises(InputError, match="was trained on other data"):
        training.fit(learned(graph), folder=tmp_path / "twice", **pace | {"digest": "b"})
    found = training.fit(learned(graph), folder=tmp_path / "twice", **pace)
    assert found.curve == expected.curve and found.notes == expected.notes
    assert not list((tmp_path / "twice").glob("*.part"))


def test_the_memory_of_a_step_is_read_from_the_program_that_trains(graph, tmp_path, caplog):
    made = arms.prepare(graph, features="columns", name="gcn", num_layers=2, hidden=7, heads=1)
    arm = arms.full("full", made, seed=0, **OPTIONS)
    with jax.log_compiles():
        fitted(arm, tmp_path, 2)
    compiled = [r for r in caplog.records if "Finished XLA compilation of jit(update)" in r.getMessage()]
    assert len(compiled) == 1


def test_features_stay_sparse_in_their_sketches_and_centring_is_that_of_dense_ones(graph):
    """A bag of words, sketched by its entries, and the same numbers dense and centred by hand."""
    rng = np.random.default_rng(0)
    words = scipy.sparse.random_array((300, 400), density=0.01, rng=rng, dtype=np.float32, format="csr")
    made = prepare_centred(dataclasses.replace(graph, x_ND=words))
    assert isinstance(made.graph.x_ND, scipy.sparse.csr_array) and made.x_ND.shape == (300, 401)
    rows = arms.scaled(words, "rows").toarray()
    by_hand = dataclasses.replace(made, x_ND=rows - rows.mean(axis=0), mean_D=None)
    outputs = []
    for one in (made, by_hand):
        arm = sketched.sketched("s", one, arms.Coefficients(2), sketching(), seed=0, batch_size=1_000, **OPTIONS)
        outputs.append((arm.frozen["sketched"].features, arm.accuracies_fn(arm.params, arm.frozen), fit_once(arm)))
    (sparse, *found), (dense, *expected) = outputs
    assert isinstance(sparse, gnn.Entries) and sum(a.nbytes for a in jax.tree.leaves(sparse)) < dense.nbytes / 5
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], rel=1e-5)


def prepare_centred(graph):
    return arms.prepare(graph, features="centred", name="gcn", num_layers=2, hidden=8, heads=1)


def fit_once(arm):
    params, opt_state = jax.tree.map(jax.numpy.array, (arm.params, arm.opt_state))
    return float(arm.step_fn(params, opt_state, arm.frozen, arm.batch_fn(1)[0], jax.random.PRNGKey(0))[2])


@pytest.mark.parametrize("kind", parts.KINDS)
def test_baselines_on_parts_of_the_graph_learn(kind, graph, tmp_path):
    options = parts.Options(seeds=30, fanout=5, roots=60, presampled=10, clusters=6, merged=3)
    arm = parts.arm(kind, prepared(graph), options, seed=0, **OPTIONS)
    result = fitted(arm, tmp_path, 15)
    assert result.best["val"] > 0.6


def test_parts_of_saint_sum_to_the_whole_in_the_mean(graph):
    """Weighted counts of nodes: each labelled node weighs one a part, on the average."""
    options = parts.Options(roots=60, presampled=400)
    total = np.zeros(300)
    rng, number = np.random.default_rng(1), 0
    for _ in range(12):
        for nodes, _, weights in parts.saint(prepared(graph), options, rng, seed=0):
            total[nodes] += weights
            number += 1
    mean = total[graph.splits["train"]] / number
    assert mean.mean() == pytest.approx(1.0, abs=0.1)
    assert not total[~graph.splits["train"]].any()


def test_learned_hashes_never_reconstruct_worse(graph, tmp_path):
    notes = fitted(learned(graph), tmp_path, 8).notes
    assert list(notes) == ["3", "5", "7"]
    assert all(note["error after"] <= note["error before"] for note in notes.values())
    assert any(note["nodes moved"] for note in notes.values())


def test_attention_is_refreshed_at_intervals_and_its_vectors_are_trained_there_alone(graph, tmp_path):
    arm = sketched.sketched(
        "sketch",
        prepared(graph, "gat", heads=2),
        arms.Coefficients(2),
        sketching(top_k=4),
        seed=0,
        batch_size=1_000,
        attention=refreshing.Attention(every=3, steps=1),
        **OPTIONS,
    )
    before = np.asarray(arm.params["layers"][0]["source"])
    assert list(fitted(arm, tmp_path, 4).notes) == ["4"]
    with np.load(tmp_path / "sketch,seed=0.npz") as weights:
        assert not np.array_equal(weights["layers/0/source"], before)


def test_weight_decay_leaves_the_attention_vectors_of_a_sketched_step_and_reaches_the_kernels(graph):
    options = OPTIONS | dict(weight_decay=0.5)
    arm = sketched.sketched(
        "sketch", prepared(graph, "gat"), arms.Coefficients(2), sketching(), seed=0, batch_size=1_000, **options
    )
    before = jax.device_get(arm.params["layers"][0])
    params, opt_state = arm.params, arm.opt_state
    params, _, _ = arm.step_fn(params, opt_state, arm.frozen, arm.batch_fn(1)[0], jax.random.PRNGKey(0))
    for name in refreshing.VECTORS:
        np.testing.assert_array_equal(params["layers"][0][name], before[name])

    def change(decay):
        tx = training.optimizer(1.0, weight_decay=decay, constant=refreshing.VECTORS)
        layers = {"layers": [before], "coefficients": np.ones((1, 2))}
        changes, _ = tx.update(jax.tree.map(np.zeros_like, layers), tx.init(layers), layers)
        return {name: bool(np.any(changes["layers"][0][name])) for name in ("kernel", *refreshing.VECTORS)}

    assert change(0.5) == {"kernel": True, "source": False, "target": False}


def test_attention_of_a_residual_network_is_that_of_its_residual_inputs(graph):
    """The accuracies read `infer` with matrices of attention, which must be the network's own outputs."""
    made = arms.prepare(graph, features="columns", name="gat", num_layers=4, hidden=8, heads=1)
    given, params = arms.Coefficients(2), arms.start(made, seed=0, order=2)
    matrices_L = arms.attention_matrices(made, params, given, True)
    pattern = gnn.attended(gnn.entries(made.matrices[0]))
    expected = gnn.polynomial(params["layers"], given.of(params), arms.on_device(made.x_ND), pattern, is_residual=True)
    found = gnn.infer(params["layers"], np.asarray(given.of(params)), made.x_ND, matrices_L, is_residual=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    other_L = arms.attention_matrices(made, params, given, False)
    assert abs(other_L[-1][0] - matrices_L[-1][0]).max() > 1e-3


@pytest.mark.parametrize("how", ["least_squares", "ridge"])
def test_fitted_coefficients_are_those_of_every_layer_but_the_last(how, graph):
    given = arms.coefficients(prepared(graph), how=how, activation="relu", order=2, radius=3.0, width=100, seed=0)
    assert given.fixed_LK1.shape == (2, 3)
    np.testing.assert_array_equal(given.fixed_LK1[1], [0, 1, 0])
    if how == "least_squares":
        np.testing.assert_allclose(given.fixed_LK1[0], [0.28125, 0.5, 0.15625], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_advice_and_the_best_weights_stay(graph, tmp_path):
    options = OPTIONS | dict(lr=1e30, clip_norm=0.0)
    arm = sketched.sketched(
        "sketch", prepared(graph), arms.Coefficients(2), sketching(), seed=0, batch_size=1_000, **options
    )
    with pytest.raises(InputError, match="Lower the learning rate"):
        fitted(arm, tmp_path)
    assert (tmp_path / "sketch,seed=0.npz").is_file() and not (tmp_path / "sketch,seed=0.json").exists()


def test_the_time_of_a_step_leaves_the_arm_as_it_was(graph):
    arm = sketched.sketched(
        "sketch", prepared(graph), arms.Coefficients(2), sketching(), seed=0, batch_size=1_000, **OPTIONS
    )
    before = jax.device_get(arm.params)
    assert 0 < training.seconds_a_step(arm, 2) < 60
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(arm.params))


def test_memory_and_dimensions_of_a_step_do_not_grow_with_the_graph(tmp_path):
    options = scaling.Options(width=24, hidden=4, steps=1, full_steps=0, batch_size=64)
    block = block_model.Options()
    rows = [scaling.point(options, block, size, tmp_path, 0) for size in (499, 997)]  # primes
    assert rows[0]["MiB a step"] == rows[1]["MiB a step"]
    assert rows[0]["largest dimension"] == rows[1]["largest dimension"] < 499


# Longer


@pytest.mark.slow
def test_the_laptop_run_reproduces_the_measured_accuracies(tmp_path):
    """Full 0.95 or more, ratio 0.5 within 3 points of it, hashes of like nodes 5 points above random at 0.1."""
    flags = ["--config.seeds=1", "--config.baselines=()", "--config.sizes=()", "--config.sketch.ratios=(0.5,0.1)"]
    found = {}
    for buckets in ("random", "lsh_fixed"):
        ended = launch("sketch_gnn.py:laptop", tmp_path / buckets, *flags, f"--config.sketch.buckets={buckets}")
        assert ended.code == 0, ended.err
        found[buckets] = json.loads((tmp_path / buckets / "summary.json").read_text())
    assert found["random"]["accuracy/poly_full"] >= 0.95
    assert found["random"]["accuracy/sketch/0.5"] >= found["random"]["accuracy/poly_full"] - 0.03
    assert found["lsh_fixed"]["accuracy/sketch/0.1"] >= found["random"]["accuracy/sketch/0.1"] + 0.05


@pytest.mark.slow
def test_cora_at_half_the_rows_is_within_three_points_of_the_full_network(shared_data, tmp_path):
    ended = launch("sketch_gnn.py", tmp_path, f"--config.data.path={shared_data}/graph_cora", "--config.seeds=2")
    assert ended.code == 0, ended.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy/full"] >= 0.80
    assert summary["accuracy/sketch"] >= summary["accuracy/full"] - 0.03
