"""Batches of tasks, drawn from regions.

Each draw of a task takes, for every place, some samples as support and others as query; a batch has the layout of
`alignment.fairness.meta`, with filling where tasks have fewer places.

Dimensions: N samples, D features, B tasks of a batch, S places, M support and Q query samples of a place.
"""

from collections.abc import Sequence

import numpy as np

from alignment.errors import InputError
from data import loader
from data.places import Place, Region, Samples

DRAWS = 2**30  # draws of tasks that an endless loader numbers


def batches(
    samples: Samples,
    regions: Sequence[Region],
    *,
    batch_size: int,
    support: int,
    query: int,
    num_places: int,
    num_query: int,
    seed: int,
    endless: bool,
    process_index: int = 0,
    process_count: int = 1,
) -> loader.Loader:
    """Batches of tasks; endless ones draw regions and samples anew each time, finite ones take each region once.

    Args:
        support: M.
        query: the most query samples of a place.
        num_places, num_query: S and Q; regions with fewer places, and places with fewer query samples, are filled.
        seed: of the draws. In a finite pass a region's draw follows from the seed and its number alone.
    """

    def make_batch(index_B: np.ndarray, weight_B: np.ndarray) -> loader.Batch:
        parts = [
            draw(samples, regions[number % len(regions)], (seed, number), support, query, num_places, num_query)
            for number in index_B.astype(np.int64).tolist()
        ]
        batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        task_B = (index_B % len(regions)).astype(np.int32)
        return batch | {"task": task_B, "index": index_B, "weights": weight_B}

    return loader.build(
        make_batch,
        # Each draw of a region has a number of its own, so that any batch can be made again from its numbers.
        num_examples=DRAWS // len(regions) * len(regions) if endless else len(regions),
        batch_size=batch_size,
        seed=seed,
        endless=endless,
        process_index=process_index,
        process_count=process_count,
        content=f"{samples.digest} {support} {query} " + " ".join(region.id for region in regions),
    )


def queries(place: Place, support: int) -> int:
    """How many query samples a place has beside its support set."""
    if place.is_query_N is not None:
        return int(place.is_query_N.sum())
    return len(place.index_N) - support


def draw(
    samples: Samples,
    region: Region,
    seed: tuple[int, int],
    support: int,
    query: int,
    num_places: int,
    num_query: int,
) -> dict[str, np.ndarray]:
    """One task: disjoint support and query samples of each place, filled up to `num_places` and `num_query`."""
    rng = np.random.default_rng(seed)
    support_SM = np.zeros((num_places, support), np.int64)
    query_SQ = np.zeros((num_places, num_query), np.int64)
    weight_SQ = np.zeros((num_places, num_query), np.float32)
    for s, place in enumerate(region.places):
        support_SM[s], query_N = split(place, rng, support, query)
        query_SQ[s, : len(query_N)] = query_N
        weight_SQ[s, : len(query_N)] = 1
    return {
        "support_x": samples.x[support_SM],
        "support_y": samples.y_N[support_SM],
        "query_x": samples.x[query_SQ],
        "query_y": samples.y_N[query_SQ],
        "query_weight": weight_SQ,
        "place_weight": (np.arange(num_places) < len(region.places)).astype(np.float32),
        "query_xy": samples.xy_N2[query_SQ],
    }


def split(place: Place, rng: np.random.Generator, support: int, query: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a place's support samples and of its query samples, no sample in both."""
    if place.is_query_N is not None:
        first = rng.permutation(place.index_N[~place.is_query_N])[:support]
        second = rng.permutation(place.index_N[place.is_query_N])[:query]
        check_disjoint(first, second)
        return first, second
    mixed = rng.permutation(place.index_N)
    return mixed[:support], mixed[support : None if query is None else support + query]


def check_disjoint(support: np.ndarray, query: np.ndarray) -> None:
    """Refuse a sample that is in both sets, where its answer would be known beforehand."""
    if len(both := np.intersect1d(support, query)):
        raise InputError(f"samples {both[:5].tolist()} are both support and query of one place; split them")
