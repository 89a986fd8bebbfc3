"""A stochastic block model of any size: classes of nodes with more edges inside than between them, made in pieces.

Edges between two classes are drawn with their ends uniform; repeats are merged, as are loops, so that a node has a
little less than the expected number of neighbours where classes are small.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from alignment.errors import InputError
from data import graphs

PIECE = 1_000_000  # edges drawn at a time


@dataclasses.dataclass(frozen=True)
class Options:
    """What a block model is drawn from.

    Args:
        inside, outside: expected neighbours of a node in its own class, and in all others together.
        feature_scale: standard deviation of the classes' centres, where that of the noise is 1.
        train, val: shares of the nodes; the rest is for the test.
    """

    nodes: int = 1_200
    classes: int = 4
    inside: float = 6.0
    outside: float = 1.8
    features: int = 16
    feature_scale: float = 0.6
    train: float = 0.2
    val: float = 0.2

    def __post_init__(self) -> None:
        if self.classes < 2 or self.nodes < 4 * self.classes:
            raise InputError(
                f"a block model of {self.nodes} nodes and {self.classes} classes; 2 classes of 4 nodes or more"
            )
        if min(self.inside, self.outside) < 0 or self.inside + self.outside > self.nodes / 2:
            raise InputError(f"inside={self.inside} and outside={self.outside} neighbours of {self.nodes} nodes")
        if self.features < 1 or not (self.train > 0 and self.val > 0 and self.train + self.val < 1):
            raise InputError(
                f"features={self.features}, train={self.train}, val={self.val}; it needs 1 or more features, and "
                "shares above 0 that leave some for the test"
            )


def edges(options: Options, y_N: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(source, target) of pieces of the edges, each once."""
    by_class = [np.flatnonzero(y_N == label) for label in range(options.classes)]
    for first in range(options.classes):
        for second in range(first, options.classes):
            expected = options.inside / 2 * len(by_class[first])
            if first != second:
                expected = (
                    options.outside * len(by_class[first]) * len(by_class[second]) / (len(y_N) - len(by_class[first]))
                )
            left = rng.poisson(expected)
            while left:
                number = min(left, PIECE)
                yield rng.choice(by_class[first], number), rng.choice(by_class[second], number)
                left -= number


def graph(options: Options, seed: int) -> graphs.Graph:
    """The model's graph, features and splits, all from the seed."""
    rng = np.random.default_rng(seed)
    y_N = rng.integers(options.classes, size=options.nodes)
    y_N[: options.classes] = np.arange(options.classes)
    x_ND = graphs.synthetic_features(y_N, options.features, options.feature_scale, seed)
    joined = graphs.streamed(edges(options, y_N, rng), options.nodes)
    order_N = rng.permutation(options.nodes)
    bounds = np.cumsum([round(options.train * options.nodes), round(options.val * options.nodes)])
    splits = dict(zip(graphs.SPLITS, np.split(order_N, bounds)))
    name = f"block model of {options.nodes:,} nodes"
    return graphs.assemble(name, joined, x_ND, y_N, splits, num_classes=options.classes)
