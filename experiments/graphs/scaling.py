"""The curve over sizes: block models of growing size, sketches of one size, and the full network beside them.

Dimensions: N nodes, C rows of a sketch.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from alignment import intervals
from alignment.models import gnn
from alignment.sketching import layers
from data.toys import block_model
from experiments.graphs import arms, sketched, training


@dataclasses.dataclass(frozen=True)
class Options:
    """What every size has in common.

    Args:
        width: C, rows of a sketch.
        inside, outside: neighbours of a node in its own class and in others.
        steps: of the sketched network, each on `batch_size` labelled nodes.
        full_steps: of the usual network; 0 leaves it out.
    """

    width: int = 1_024
    hidden: int = 64
    inside: float = 15.0
    outside: float = 5.0
    order: int = 2
    steps: int = 100
    full_steps: int = 60
    batch_size: int = 1_024
    lr: float = 0.01


NETWORK: dict[str, Any] = dict(name="gcn", num_layers=2, heads=1)


def sketching(options: Options) -> sketched.Sketching:
    return sketched.Sketching(
        width=options.width,
        top_k=None,
        sets=1,
        mode="order_distinct",
        buckets="lsh_fixed",
        readout="median",
        is_residual=False,
    )


def check_budget(options: Options, memory_mib: int) -> None:
    """Raises InputError where the sketches of every size are larger than the budget."""
    sketched.check_budget(
        sketching(options),
        network=NETWORK["name"],
        num_layers=NETWORK["num_layers"],
        heads=NETWORK["heads"],
        order=options.order,
        memory_mib=memory_mib,
        advice="lower scale.width or scale.order",
    )


def point(
    options: Options, block: block_model.Options, num_nodes: int, folder: pathlib.Path, seed: int
) -> dict[str, Any]:
    """One size: memory and time of a step, accuracy on the full graph, and what was done once, counted apart.

    Raises:
        AssertionError: an array of the sketched step has a dimension of the graph's size.
    """
    model = dataclasses.replace(block, nodes=num_nodes, inside=options.inside, outside=options.outside)
    clock = time.perf_counter()
    graph = block_model.graph(model, seed)
    drawn = time.perf_counter() - clock
    prepared = arms.prepare(graph, features="columns", hidden=options.hidden, **NETWORK)
    clock = time.perf_counter()
    optimizer = dict(lr=options.lr, weight_decay=0.0, clip_norm=1.0, dropout=0.0)
    arm = sketched.sketched(
        f"scale@{num_nodes}",
        prepared,
        arms.Coefficients(options.order),
        sketching(options),
        seed=seed,
        batch_size=options.batch_size,
        one_batch=True,
        **optimizer,
    )
    jax.block_until_ready(arm.frozen)
    prepare = time.perf_counter() - clock
    rng = jax.random.PRNGKey(seed)
    sizes = layers.dimensions(arm.step_fn, arm.params, arm.opt_state, arm.frozen, arm.batch_fn(1)[0], rng)
    assert max(sizes) < num_nodes, f"a step on sketches has an array of dimension {max(sizes)}, of {num_nodes} nodes"
    pace = dict(seed=seed, folder=folder / "arms", digest=arms.digest(graph))
    result = training.fit(arm, epochs=options.steps, eval_every=options.steps, **pace)
    clock = time.perf_counter()
    params = jax.device_get(arm.params)
    coefficients = np.pad(params["coefficients"], ((0, 0), (1, 0)))
    gnn.infer(params["layers"], coefficients, prepared.x_ND, [prepared.matrices] * 2)
    num_tested = int(graph.splits["test"].sum())
    row = {
        "nodes": num_nodes,
        "edges": graph.num_edges,
        "rows of a sketch": options.width,
        "nodes tested": num_tested,
        **_accuracy("test accuracy", result.last["test"], num_tested),
        "chance": float(np.bincount(graph.y_N).max() / num_nodes),
        "MiB a step": result.step_bytes / 2**20,
        "seconds a step": result.step_seconds,
        "largest dimension": max(sizes),
        "seconds to draw the graph": drawn,
        "seconds to sketch it": prepare,
        "seconds of inference": time.perf_counter() - clock,
    }
    return row | (_full(options, prepared, num_nodes, pace) if options.full_steps else {})


def _accuracy(name: str, accuracy: float, num_nodes: int) -> dict[str, float]:
    """The accuracy with its 95 % interval over test nodes; that over seeds would need several trainings a size."""
    low, high = intervals.wilson(accuracy * num_nodes, num_nodes)
    return {name: accuracy, f"{name}, low": low, f"{name}, high": high}


def _full(options: Options, prepared: arms.Prepared, num_nodes: int, pace: dict[str, Any]) -> dict[str, Any]:
    """The usual network on the same graph, whose first convolution is made once."""
    arm = arms.full(
        f"scale_full@{num_nodes}",
        prepared,
        seed=pace["seed"],
        dropout=0.0,
        lr=options.lr,
        weight_decay=0.0,
        clip_norm=0.0,
    )
    result = training.fit(arm, epochs=options.full_steps, eval_every=options.full_steps, **pace)
    return {
        **_accuracy("full: test accuracy", result.last["test"], int(prepared.graph.splits["test"].sum())),
        "full: MiB a step": result.step_bytes / 2**20,
        "full: seconds a step": result.step_seconds,
    }
