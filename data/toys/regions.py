"""Made-up regions in which some places follow another rule: tasks of nine places, drawn afresh by their number.

Weights w ~ 1.5 N(0, I) of a task give logits w . x of Bernoulli labels. Three places of nine, drawn for each task, use
w with its first four signs flipped, and have 1.5 added to the last feature before the label is drawn, so that a model
can see which places they are.
"""

import numpy as np

from data import loader

PLACES, SIDE, ODD, FEATURES = 9, 3, 3, 8  # places a task, along a side, of the other rule; features a sample
SHIFT, SCALE = 1.5, 1.5
MOST = 2**24  # tasks there are; their numbers are exact in float32
ROW = 5  # tasks side by side on the plane


def box(number: int) -> tuple[float, float, float, float]:
    """West, south, east, north of a task: a unit square on a plane."""
    west, south = float(number % ROW), float(number // ROW)
    return west, south, west + 1, south + 1


def place_box(number: int, place: int) -> tuple[float, float, float, float]:
    """West, south, east, north of a place of a task."""
    west, south, _, _ = box(number)
    west, south = west + place % SIDE / SIDE, south + place // SIDE / SIDE
    return west, south, west + 1 / SIDE, south + 1 / SIDE


def task(number: int, *, support: int, query: int, seed: int = 0, has_positions: bool = True) -> dict[str, np.ndarray]:
    """One task: `support_x` [S,M,D], `support_y` [S,M], `query_x`, `query_y`, `query_weight`, `place_weight` [S],
    `query_xy` [S,Q,2], where the samples lie in the task's box, and `is_odd` [S], the places of the other rule. Without
    `has_positions` there is no `query_xy`, and all else is the same.
    """
    # A generator that takes its key as it is: mixing one from two numbers would take a third of the time of a task.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    num = support + query
    w_D = SCALE * rng.standard_normal(FEATURES)
    is_odd_S = np.zeros(PLACES, bool)
    is_odd_S[rng.permutation(PLACES)[:ODD]] = True
    flips_D = np.where(np.arange(FEATURES) < 4, -1.0, 1.0)
    w_SD = np.where(is_odd_S[:, None], w_D * flips_D, w_D)
    x_SND = rng.standard_normal((PLACES, num, FEATURES), np.float32)
    x_SND[is_odd_S, :, -1] += SHIFT
    logits_SN = (x_SND @ w_SD[..., None].astype(np.float32))[..., 0]
    y_SN = (rng.random((PLACES, num)) < 1 / (1 + np.exp(-logits_SN))).astype(np.int32)
    made = {
        "support_x": x_SND[:, :support],
        "support_y": y_SN[:, :support],
        "query_x": x_SND[:, support:],
        "query_y": y_SN[:, support:],
        "query_weight": np.ones((PLACES, query), np.float32),
        "place_weight": np.ones(PLACES, np.float32),
        "is_odd": is_odd_S,
    }
    if has_positions:
        corner_S2 = np.stack([np.arange(PLACES) % SIDE, np.arange(PLACES) // SIDE], axis=-1)
        inside_SQ2 = rng.random((PLACES, query, 2))
        made["query_xy"] = (corner_S2[:, None] + inside_SQ2) / SIDE + np.array(box(number)[:2])
    return made


def batches(
    *,
    first: int = 0,
    num_tasks: int | None = None,
    batch_size: int,
    support: int = 16,
    query: int = 32,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> loader.Loader:
    """Batches of tasks, the task's number as `index` and `task`; endless ones bring no positions.

    Args:
        first, num_tasks: the tasks first to first + num_tasks - 1, once; without `num_tasks` endlessly fresh ones, in
            an order that follows from `seed`.
        support, query: samples of a place.
        seed: of the tasks' content.
    """

    def make_batch(index_B: np.ndarray, weight_B: np.ndarray) -> loader.Batch:
        number_B = (index_B.astype(np.int64) + first).astype(np.int32)
        options = dict(support=support, query=query, seed=seed, has_positions=num_tasks is not None)
        made = [task(int(number), **options) for number in number_B]
        batch = {name: np.stack([one[name] for one in made]) for name in made[0] if name != "is_odd"}
        return batch | {"task": number_B, "index": number_B, "weights": weight_B}

    return loader.build(
        make_batch,
        num_examples=MOST - first if num_tasks is None else num_tasks,
        batch_size=batch_size,
        seed=seed,
        endless=num_tasks is None,
        process_index=process_index,
        process_count=process_count,
        content=f"regions {seed} {first} {support} {query}",
    )
