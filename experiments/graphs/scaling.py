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
from alignment.sketching import layers
from data.graphs import Graph
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


TIMED = 15  # steps
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


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A block model with the arms that are trained on it; `full` is None where the usual network is left out."""

    graph: Graph
    prepared: arms.Prepared
    sketched: training.Arm
    full: training.Arm | None
    draw_seconds: float
    sketch_seconds: float


def make(options: Options, block: block_model.Options, num_nodes: int, seed: int) -> Made:
    """Draw a graph and sketch it, each by the clock."""
    model = dataclasses.replace(block, nodes=num_nodes, inside=options.inside, outside=options.outside)
    clock = time.perf_counter()
    graph = block_model.graph(model, seed)
    drawn = time.perf_counter()
    prepared = arms.prepare(graph, features="columns", hidden=options.hidden, **NETWORK)
    plain = dict(seed=seed, lr=options.lr, weight_decay=0.0, dropout=0.0)
    arm = sketched.sketched(
        f"scale@{num_nodes}",
        prepared,
        arms.Coefficients(options.order),
        sketching(options),
        batch_size=options.batch_size,
        one_batch=True,
        clip_norm=1.0,
        **plain,
    )
    jax.block_until_ready(arm.frozen)
    ready = time.perf_counter()
    full = arms.full(f"scale_full@{num_nodes}", prepared, clip_norm=0.0, **plain) if options.full_steps else None
    return Made(graph, prepared, arm, full, drawn - clock, ready - drawn)


def point(
    options: Options, block: block_model.Options, num_nodes: int, folder: pathlib.Path, seed: int
) -> dict[str, Any]:
    """`measure` of one size."""
    return measure(options, make(options, block, num_nodes, seed), folder, seed)


def measure(options: Options, made: Made, folder: pathlib.Path, seed: int) -> dict[str, Any]:
    """One size: memory and time of a step, accuracy on the full graph, and what was done once, counted apart.

    Raises:
        AssertionError: an array of the sketched step has a dimension of the graph's size.
    """
    arm, num_nodes = made.sketched, made.graph.num_nodes
    rng = jax.random.PRNGKey(seed)
    sizes = layers.dimensions(arm.step_fn, arm.params, arm.opt_state, arm.frozen, arm.batch_fn(1)[0], rng)
    assert max(sizes) < num_nodes, f"a step on sketches has an array of dimension {max(sizes)}, of {num_nodes} nodes"
    pace = dict(seed=seed, folder=folder / "arms", digest=arms.digest(made.graph))
    result = training.fit(arm, epochs=options.steps, eval_every=options.steps, **pace)
    clock = time.perf_counter()
    arm.accuracies_fn(arm.params, arm.frozen)
    inference = time.perf_counter() - clock
    num_tested = int(made.graph.splits["test"].sum())
    row = {
        "nodes": num_nodes,
        "edges": made.graph.num_edges,
        "rows of a sketch": options.width,
        "nodes tested": num_tested,
        **_accuracy("test accuracy", result.last["test"], num_tested),
        "chance": float(np.bincount(made.graph.y_N).max() / num_nodes),
        "MiB a step": result.step_bytes / 2**20,
        # Timed one by one: training waits at its end alone, so that its time of a step is a mean, which outliers move.
        "seconds a step": training.seconds_a_step(arm, TIMED),
        "largest dimension": max(sizes),
        "seconds to draw the graph": made.draw_seconds,
        "seconds to sketch it": made.sketch_seconds,
        "seconds of inference": inference,
    }
    if made.full is None:
        return row
    result = training.fit(made.full, epochs=options.full_steps, eval_every=options.full_steps, **pace)
    return row | {
        **_accuracy("full: test accuracy", result.last["test"], num_tested),
        "full: MiB a step": result.step_bytes / 2**20,
        "full: seconds a step": result.step_seconds,
    }


def _accuracy(name: str, accuracy: float, num_nodes: int) -> dict[str, float]:
    """The accuracy with its 95 % interval over test nodes; that over seeds would need several trainings a size."""
    low, high = intervals.wilson(accuracy * num_nodes, num_nodes)
    return {name: accuracy, f"{name}, low": low, f"{name}, high": high}
