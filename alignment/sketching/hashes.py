"""Hash tables that send the nodes of a graph to the rows of a sketch, made on the host.

A table is a sparse matrix R of width x N with one entry a column: R[bucket(j), j] = value(j). The value is a random
sign, or, where buckets come from locality-sensitive hashing, a sign over the root of the bucket's size.

Dimensions: N nodes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alignment import errors
from alignment.errors import InputError

# Whether (layers, orders) have hashes of their own. Only all_distinct is unbiased from layer to layer; a hash shared by
# adjacent layers adds a self-loop of about tr(C) / width, which lowers the variance at small widths.
MODES = {
    "order_distinct": (False, True),
    "all_distinct": (True, True),
    "layer_distinct": (True, False),
    "all_same": (False, False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One hash: `bucket_N` int32 in [0, width), `value_N` float32."""

    bucket_N: np.ndarray
    value_N: np.ndarray
    width: int


def check_width(width: int) -> None:
    """Raises InputError for a sketch of fewer than two rows."""
    if width < 2:
        raise InputError(f"a sketch of {width} rows; it needs at least 2, so raise the ratio or the width")


def draw(num_nodes: int, width: int, rng: np.random.Generator) -> Table:
    """Uniform buckets and random signs, so that E[R^T R] is the identity."""
    check_width(width)
    bucket_N = rng.integers(width, size=num_nodes, dtype=np.int32)
    return Table(bucket_N, rng.integers(2, size=num_nodes).astype(np.float32) * 2 - 1, width)


def normalised(bucket_N: np.ndarray, sign_N: np.ndarray, width: int) -> Table:
    """Signs over the root of the bucket's size: the rows of R are orthonormal and R^T R is a projection.

    Without the root a training on buckets of like nodes is unstable: their sums grow with the bucket.
    """
    check_width(width)
    size_C = np.bincount(bucket_N, minlength=width)
    value_N = sign_N / np.sqrt(size_C[bucket_N])
    return Table(bucket_N.astype(np.int32), value_N.astype(np.float32), width)


def concatenated(tables: Sequence[Table]) -> Table:
    """One hash over the stacked columns of several blocks, such as [I, D^-1 A] of GraphSAGE."""
    return Table(
        np.concatenate([table.bucket_N for table in tables]),
        np.concatenate([table.value_N for table in tables]),
        tables[0].width,
    )


def tables(
    mode: str, make_fn: Callable[[int, int, int], Table], *, num_layers: int, order: int, blocks: int
) -> list[list[list[Table]]]:
    """Hashes by layer, order and block; what the mode shares is the same object.

    Args:
        mode: a key of MODES.
        make_fn: (layer, order, block) -> table; called once for each hash, with the first place it is used at.
        num_layers: of the network; there is one more set of hashes, for its output.
        order: of the polynomial, at least 1.
        blocks: of the convolution, whose hashes are always independent.

    Raises:
        InputError: an unknown mode, or an order below 1.
    """
    by_layer, by_order = MODES[errors.one_of("hashes", mode, MODES)]
    errors.within("[1, inf)", order=order)
    made: dict[tuple[int, int, int], Table] = {}
    out = []
    for layer in range(num_layers + 1):
        keys = [
            [(layer if by_layer else 0, k if by_order else 0, block) for block in range(blocks)] for k in range(order)
        ]
        out.append([[made[key] if key in made else made.setdefault(key, make_fn(*key)) for key in row] for row in keys])
    return out


def random_tables(
    mode: str, num_nodes: int, width: int, *, seed: int, num_layers: int, order: int, blocks: int = 1
) -> list[list[list[Table]]]:
    """`tables` of `draw`, each from its place and the seed alone, so that a seed restores them."""

    def make(layer: int, k: int, block: int) -> Table:
        return draw(num_nodes, width, np.random.default_rng([seed, layer, k, block]))

    return tables(mode, make, num_layers=num_layers, order=order, blocks=blocks)


def shares_layers(mode: str) -> bool:
    """Whether adjacent layers have the same hashes, which a residual add needs: else E[R'^T R] = 0, pure noise."""
    return not MODES[errors.one_of("hashes", mode, MODES)][0]
