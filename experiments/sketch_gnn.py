"""Sketch-GNN: a graph network trained on sketches whose size is chosen, whatever the size of the graph.

Paper:   Ding et al. 2022, arXiv:2406.15575 (NeurIPS 2022)
Run:     python -m experiments.run --config experiments/sketch_gnn.py --config.data.path=FOLDER_OR_NPZ
         --workdir runs/sketch_gnn
Laptop:  python -m experiments.run --config experiments/sketch_gnn.py:laptop      (CPU, minutes; `tiny`: seconds)
Expect:  laptop, two seeds: test accuracy 0.964, 0.958, 0.960 and 0.963 at 50, 30, 10 and 5 % of the rows; full 0.983,
         with polynomials 0.976; a step on sketches holds 12.8 MiB on 10,000 and on 30,000 nodes

The graph's features and its convolution are sketched once, by hashing nodes to the rows of small matrices; a training
step reads the sketches alone. The weights are then used on the full graph. Beside the sketched network, at several
ratios of sketch to graph, stand the usual network on the full graph and the one with polynomials in place of ReLU,
which is what the sketches approximate. Test accuracies are those of the epoch with the best validation accuracy.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.models import gnn
from alignment.sketching import hashes, layers, polynomial
from data import graph_files, graphs
from data.toys import block_model
from experiments.graphs import arms, parts, refreshing, scaling, sketched, training
from experiments.launch import checks
from experiments.pages import sketch_gnn as page

SETTINGS = ("", "laptop", "tiny")
EMBEDDED = "synthetic:block_model"
LEAST = dict.fromkeys(("epochs", "eval_every", "seeds", "network.layers", "network.hidden", "network.heads"), 1)
LEAST |= dict.fromkeys(("sketch.order", "sketch.sets", "sketch.top_k", "sketch.memory_mib", "data.num_features"), 1)
LEAST |= {"sketch.width": 2}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the first of `seeds` trainings; the embedded graph is drawn from it
    c.data = dict(
        path="",  # a Planetoid folder, .npz, GraphSAINT, Reddit or raw OGB folder; or synthetic:block_model
        features="centred",  # rows (each sums to 1), centred (rows less their mean), columns (variance 1 too) or none
        num_features=config_dict.placeholder(int),  # of a graph without features: drawn around a centre of each class
    )
    c.block = dataclasses.asdict(block_model.Options())  # of synthetic:block_model; its docstring has the meanings
    c.network = dict(
        name="gcn",  # gcn, sage, sgc or gat
        layers=2,
        hidden=16,
        heads=1,  # of gat, which are averaged
    )
    c.sketch = dict(
        ratios=(0.5,),  # rows of a sketch over nodes; each a training, and the first is the summary's
        width=config_dict.placeholder(int),  # rows of a sketch, in place of ratios
        order=2,  # of the polynomial
        coefficients="learned",  # learned, taylor, least_squares or ridge
        activation="relu",  # which the others than learned fit
        radius=3.0,  # of least_squares: pre-activations from -radius to radius
        top_k=24,  # entries that stay in a row of a sketched convolution; None: all
        sets=5,  # independent sketches, of which the read-out takes the mean
        readout="mean",  # or median
        hashes="order_distinct",  # order_distinct, all_distinct, layer_distinct or all_same
        buckets="lsh_fixed",  # random; lsh_fixed: like nodes in one bucket; lsh_learned: by directions that are trained
        residual=False,  # add a middle layer's input to its output
        memory_mib=4_096,  # of sketched convolutions, of `sizes` too; more is refused before anything is trained
    )
    c.optimizer = dict(  # of the polynomial and the sketched network
        lr=0.01,
        weight_decay=5e-4,
        clip_norm=1.0,
        dropout=0.7,  # of columns of each layer's input, which commutes with a sketch
    )
    c.full = dict(lr=0.01, weight_decay=5e-4, clip_norm=0.0, dropout=0.5)  # of the usual one
    c.lsh = dataclasses.asdict(refreshing.Hashing())  # of sketch.buckets=lsh_learned, which is ours
    c.attention = dataclasses.asdict(refreshing.Attention())  # of gat on sketches, which is ours
    c.baselines = ()  # of neighbours, saint, cluster: trained on a part of the graph in each step
    c.parts = dataclasses.asdict(parts.Options())  # of the baselines
    c.sizes = ()  # nodes of block models that are trained on too, for memory and time by size
    c.scale = dataclasses.asdict(scaling.Options())  # what all these sizes have in common
    c.epochs = 200
    c.eval_every = 1  # epochs
    c.batch_size = 8_192  # labelled nodes of a sketched step, at most
    c.seeds = 10  # trainings of each kind
    if arg:
        c.data.path = EMBEDDED
        c.data.features = "columns"
        c.full.dropout = 0.0
        c.optimizer.update(lr=5e-3, weight_decay=0.0, dropout=0.0)
        c.sketch.top_k = 8
        c.sketch.sets = 2
    if arg == "tiny":
        c.block.nodes = 240
        c.network.hidden = 4
        c.sketch.top_k = 4
        c.sketch.sets = 1
        c.epochs = 6
        c.eval_every = 3
        c.seeds = 1
        c.sizes = (700, 1_400)
        c.scale.width = 16
        c.scale.hidden = 4
        c.scale.steps = 3
        c.scale.full_steps = 2
        c.scale.batch_size = 64
    elif arg == "laptop":
        c.sketch.ratios = (0.5, 0.3, 0.1, 0.05)
        c.epochs = 200
        c.eval_every = 5
        c.seeds = 2
        c.baselines = ("neighbours", "saint", "cluster")
        c.sizes = (10_000, 30_000)
        c.scale.width = 512
        c.scale.hidden = 16
        c.scale.steps = 60
        c.scale.full_steps = 30
    return c


def sweep() -> Iterator[dict[str, Any]]:
    for buckets in ("random", "lsh_fixed"):
        for ratio in (0.5, 0.3, 0.1, 0.05):
            yield {"sketch.buckets": buckets, "sketch.ratios": (ratio,)}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither the graph nor devices to be seen."""
    checks.check_least(c, LEAST)
    errors.one_of("network.name", c.network.name, gnn.NETWORKS)
    errors.one_of("data.features", c.data.features, arms.FEATURES)
    check_data(c)
    check_unread(c)
    errors.one_of("sketch.coefficients", c.sketch.coefficients, polynomial.COEFFICIENTS)
    errors.one_of("sketch.hashes", c.sketch.hashes, hashes.MODES)
    errors.one_of("sketch.buckets", c.sketch.buckets, sketched.BUCKETS)
    errors.one_of("sketch.readout", c.sketch.readout, layers.READOUTS)
    for ratio in c.sketch.ratios:
        if not ratio > 0:
            raise InputError(f"sketch.ratios={tuple(c.sketch.ratios)}: a ratio must be above 0, such as 0.5")
    if (c.sketch.width is None) == (not c.sketch.ratios):
        raise InputError(
            f"sketch.ratios={tuple(c.sketch.ratios)} and sketch.width={c.sketch.width}: set one, the other None or ()"
        )
    if c.sketch.coefficients != "learned":
        polynomial.taylor(c.sketch.activation, c.sketch.order) if c.sketch.coefficients == "taylor" else errors.one_of(
            "sketch.activation", c.sketch.activation, polynomial.ACTIVATIONS
        )
    if c.sketch.coefficients == "ridge" and c.network.name in ("sgc", "gat"):
        raise InputError(
            f"sketch.coefficients='ridge' fits the pre-activations of gcn and sage, and network.name="
            f"{c.network.name!r}; take learned, taylor or least_squares"
        )
    if c.sketch.residual and not hashes.shares_layers(c.sketch.hashes):
        raise InputError(
            f"sketch.residual=True adds sketches of two layers, and sketch.hashes={c.sketch.hashes!r} hashes them "
            "apart, so that the sum is noise; take order_distinct or all_same"
        )
    if c.network.heads > 1 and c.network.name != "gat":
        raise InputError(
            f"network.heads={c.network.heads} is of gat, and network.name={c.network.name!r}; leave it out"
        )
    if c.sketch.width is not None:
        check_budget(c, c.sketch.width)
    for group in ("optimizer", "full"):
        checks.within(c, "[0, 1)", f"{group}.dropout")
        checks.within(c, "(0, inf)", f"{group}.lr")
        checks.within(c, "[0, inf)", f"{group}.weight_decay", f"{group}.clip_norm")


def check_unread(c: ml_collections.ConfigDict) -> None:
    """Refuse settings that this run does not read."""
    readers = {
        "lsh": (c.sketch.buckets == "lsh_learned", "sketch.buckets=lsh_learned"),
        "attention": (c.network.name == "gat", "network.name=gat"),
        "parts": (bool(c.baselines), "baselines"),
        "scale": (bool(c.sizes), "sizes"),
        "block": (c.data.path == EMBEDDED or bool(c.sizes), f"data.path={EMBEDDED}"),
    }
    unread = [(group, f"{reader} is not set") for group, (is_read, reader) in readers.items() if not is_read]
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], unread)
    if c.sketch.coefficients == "learned" and (c.sketch.activation, c.sketch.radius) != ("relu", 3.0):
        raise InputError(
            f"sketch.activation={c.sketch.activation!r} and sketch.radius={c.sketch.radius} are read where "
            "sketch.coefficients fits an activation, and not where it is learned; leave them as they are"
        )
    if c.sketch.buckets == "lsh_learned":
        if not hashes.shares_layers(c.sketch.hashes) or c.network.name == "gat":
            raise InputError(
                f"sketch.buckets=lsh_learned learns hashes that all layers share: sketch.hashes={c.sketch.hashes!r} "
                f"and network.name={c.network.name!r} do not fit; take order_distinct or all_same, and not gat"
            )
        if c.lsh.every < 1 or c.lsh.warmup < 0 or not 0 < c.lsh.share <= 1 or c.lsh.steps < 1:
            raise InputError(f"lsh={dict(c.lsh)}: every and steps at least 1, warmup 0, share above 0 and at most 1")
    if c.network.name == "gat" and min(c.attention.every, c.attention.steps) < 1:
        raise InputError(f"attention={dict(c.attention)}: every and steps must be at least 1")
    for name in c.baselines:
        errors.one_of("baselines", name, parts.KINDS)
        errors.one_of("network.name", c.network.name, parts.NETWORKS, hint="baselines=() trains none of them")
    if c.baselines and (min(c.parts.values()) < 1 or c.parts.merged > c.parts.clusters):
        raise InputError(f"parts={dict(c.parts)}: all must be at least 1, and merged at most clusters")
    for size in c.sizes:
        if size <= c.scale.width:
            raise InputError(f"sizes names {size} nodes, which scale.width={c.scale.width} does not shrink")
        dataclasses.replace(block_model.Options(**c.block), nodes=size, inside=c.scale.inside, outside=c.scale.outside)
    if c.sizes and min(c.scale.width - 1, c.scale.hidden, c.scale.order, c.scale.steps, c.scale.batch_size) < 1:
        raise InputError(f"scale={dict(c.scale)}: width at least 2; hidden, order, steps and batch_size at least 1")
    if c.sizes:
        scaling.check_budget(scaling.Options(**c.scale), c.sketch.memory_mib)


def sketching_of(c: ml_collections.ConfigDict, width: int) -> sketched.Sketching:
    return sketched.Sketching(
        width=width,
        top_k=c.sketch.top_k,
        sets=c.sketch.sets,
        mode=c.sketch.hashes,
        buckets=c.sketch.buckets,
        readout=c.sketch.readout,
        is_residual=c.sketch.residual,
    )


def check_budget(c: ml_collections.ConfigDict, width: int) -> None:
    sketched.check_budget(
        sketching_of(c, width),
        network=c.network.name,
        num_layers=c.network.layers,
        heads=c.network.heads,
        order=c.sketch.order,
        memory_mib=c.sketch.memory_mib,
        advice=f"lower sketch.{'ratios' if c.sketch.width is None else 'width'}, top_k, order or sets",
    )


def check_data(c: ml_collections.ConfigDict) -> None:
    if not c.data.path:
        raise InputError(f"data.path is not set; name a folder or .npz of a graph, or {EMBEDDED}")
    if c.data.path.startswith("synthetic:"):
        errors.one_of("data.path", c.data.path, [EMBEDDED])
        block_model.Options(**c.block)
        if c.data.num_features is not None:
            raise InputError(f"data.num_features={c.data.num_features} is of files; block.features is of {EMBEDDED}")
    else:
        graph_files.check(c.data.path)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    graph = read(c)
    files.report_counts(folder, graphs.counts(graph))
    widths = widths_of(c, graph.num_nodes)
    for width in widths.values():
        check_budget(c, width)
    prepared = arms.prepare(
        graph,
        features=c.data.features,
        name=c.network.name,
        num_layers=c.network.layers,
        hidden=c.network.hidden,
        heads=c.network.heads,
    )
    digest = arms.digest(graph)
    results = []
    for seed in range(c.seed, c.seed + c.seeds):
        for make in arms_of(c, prepared, widths, seed):
            pace = dict(epochs=c.epochs, eval_every=c.eval_every, folder=folder / "arms", digest=digest)
            results.append(training.fit(make, seed=seed, **pace))
            best = results[-1].best
            print(f"{make.name}, seed {seed}: test accuracy {best['test']:.3f}", flush=True)
    rows = []
    for size in c.sizes:
        model = block_model.Options(**c.block)
        rows.append(scaling.point(scaling.Options(**c.scale), model, size, folder, c.seed))
        print(
            f"{size:,} nodes: {rows[-1]['MiB a step']:.1f} MiB and {rows[-1]['seconds a step']:.3f} s a step",
            flush=True,
        )
    return page.write(folder, results, rows, first_ratio=next(iter(widths)), note=ours(c))


def ours(c: ml_collections.ConfigDict) -> str:
    """Which parts of this run's sketched networks are our own design; "" where all are the paper's."""
    parts_of_ours = {
        "attention refreshed on the full graph": c.network.name == "gat",
        "learned hashes": c.sketch.buckets == "lsh_learned",
    }
    names = [name for name, is_used in parts_of_ours.items() if is_used]
    return f"{', '.join(names)}: ours, not the paper's" if names else ""


def read(c: ml_collections.ConfigDict) -> graphs.Graph:
    if c.data.path == EMBEDDED:
        return block_model.graph(block_model.Options(**c.block), c.seed)
    return graph_files.read(c.data.path, num_features=c.data.num_features, seed=c.seed)


def widths_of(c: ml_collections.ConfigDict, num_nodes: int) -> dict[float, int]:
    """Rows of a sketch by ratio."""
    if c.sketch.width is not None:
        return {c.sketch.width / num_nodes: c.sketch.width}
    widths = {ratio: math.ceil(ratio * num_nodes) for ratio in c.sketch.ratios}
    for ratio, width in widths.items():
        if width < 2:
            raise InputError(f"sketch.ratios names {ratio}, which of {num_nodes} nodes is {width} row; it needs 2")
        if ratio > 1:
            print(f"warning: a sketch at ratio {ratio} is larger than the graph", flush=True)
        if c.sketch.top_k is not None and c.sketch.top_k > width:
            print(f"warning: sketch.top_k={c.sketch.top_k} is cut to the {width} rows of ratio {ratio}", flush=True)
    return widths


def arms_of(
    c: ml_collections.ConfigDict, prepared: arms.Prepared, widths: Mapping[float, int], seed: int
) -> Iterator[training.Arm]:
    """The usual network, the polynomial one, and a sketched one for each ratio, made when they are asked for."""
    yield arms.full(page.FULL, prepared, seed=seed, **c.full)
    for name in c.baselines:
        yield parts.arm(name, prepared, parts.Options(**c.parts), seed=seed, **c.full)
    coefficients = None
    for ratio, width in widths.items():
        if coefficients is None or c.sketch.coefficients == "ridge":  # which alone depends on the width
            coefficients = arms.coefficients(
                prepared,
                how=c.sketch.coefficients,
                activation=c.sketch.activation,
                order=c.sketch.order,
                radius=c.sketch.radius,
                width=width,
                seed=seed,
            )
        if ratio == next(iter(widths)):
            yield arms.poly_full(
                page.POLY, prepared, coefficients, seed=seed, is_residual=c.sketch.residual, **c.optimizer
            )
        yield sketched.sketched(
            f"{page.SKETCH}@{ratio:g}",
            prepared,
            coefficients,
            sketching_of(c, width),
            seed=seed,
            batch_size=c.batch_size,
            hashing=refreshing.Hashing(**c.lsh),
            attention=refreshing.Attention(**c.attention),
            **c.optimizer,
        )


METRICS = page.METRICS
headline = page.headline
