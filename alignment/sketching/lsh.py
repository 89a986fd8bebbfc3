"""Hashes that put like nodes into the same bucket: fixed random directions, or directions that are trained.

The paper says that its hash is locality-sensitive and trained; what follows is ours. Node i has a vector z_i (the row
of C X, centred). With v = z_i P, the largest of [v, -v] gives the bucket and the sign. Buckets are normalised (see
hashes.py), so that R^T R projects onto signed means of buckets: biased, with far less variance than random hashes.

Dimensions: N nodes, D features of z, C rows of a sketch, P pairs, B rows of a batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

from alignment.sketching import hashes
from alignment.sketching.hashes import Table

ROWS = 16_384  # nodes hashed at a time
CLOSE = 0.01  # share of the pairs that are close: those with the largest cosine
SAMPLE = 1_024  # nodes that pairs are drawn from


def centred(x_ND: np.ndarray) -> np.ndarray:
    """The vectors less their mean, as float32."""
    return (x_ND - x_ND.mean(axis=0, keepdims=True)).astype(np.float32)


def direction(num_features: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """P [D,C], normal."""
    return rng.standard_normal((num_features, width), dtype=np.float32)


def winners(z_ND: np.ndarray, projection_DC: np.ndarray) -> np.ndarray:
    """argmax of [z P, -z P], in [0, 2 C)."""
    out = np.empty(len(z_ND), np.int64)
    width = projection_DC.shape[1]
    for start in range(0, len(z_ND), ROWS):
        v_BC = z_ND[start : start + ROWS] @ projection_DC
        high_B, low_B = v_BC.argmax(axis=1), v_BC.argmin(axis=1)
        rows = np.arange(len(v_BC))
        out[start : start + ROWS] = np.where(v_BC[rows, high_B] >= -v_BC[rows, low_B], high_B, width + low_B)
    return out


def table(z_ND: np.ndarray, projection_DC: np.ndarray) -> Table:
    """The hash of all nodes, normalised."""
    width = projection_DC.shape[1]
    return of_winners(winners(z_ND, projection_DC), width)


def of_winners(winner_N: np.ndarray, width: int) -> Table:
    """Bucket j mod C, and the sign of the half that j lies in."""
    return hashes.normalised(winner_N % width, np.where(winner_N < width, 1.0, -1.0), width)


def hinge(projection_DC: jax.Array, close_2PD: jax.Array, far_2PD: jax.Array, *, margin: float = 1.0) -> jax.Array:
    """max(0, mean cosine of far pairs - mean cosine of close pairs + margin), after projection."""
    close, far = (jnp.mean(cosines(pairs_2PD @ projection_DC)) for pairs_2PD in (close_2PD, far_2PD))
    return jnp.maximum(0.0, far - close + margin)


def cosines(pairs_2PD: jax.Array) -> jax.Array:
    """[P], 0 where a vector has no length."""
    a_PD, b_PD = pairs_2PD
    norms_P = jnp.sqrt(jnp.sum(a_PD**2, axis=-1) * jnp.sum(b_PD**2, axis=-1))
    return jnp.sum(a_PD * b_PD, axis=-1) / jnp.where(norms_P == 0, 1.0, norms_P)


def pairs(z_ND: np.ndarray, num_pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Close pairs (the top CLOSE by cosine) and far ones (below the median), each [2,P,D], of a sample of nodes."""
    z_BD = z_ND[rng.choice(len(z_ND), min(SAMPLE, len(z_ND)), replace=False)]
    unit_BD = z_BD / np.maximum(np.linalg.norm(z_BD, axis=1, keepdims=True), 1e-12)
    first, second = np.triu_indices(len(z_BD), 1)
    cosine_P = (unit_BD @ unit_BD.T)[first, second]
    high, middle = np.quantile(cosine_P, [1 - CLOSE, 0.5])
    out = []
    for chosen in (np.flatnonzero(cosine_P >= high), np.flatnonzero(cosine_P < middle)):
        chosen = rng.choice(chosen if len(chosen) else np.arange(len(cosine_P)), num_pairs)
        out.append(np.stack([z_BD[first[chosen]], z_BD[second[chosen]]]))
    return out[0], out[1]


@functools.partial(jax.jit, static_argnames=("steps", "learning_rate", "margin"))
def _trained(
    projection_DC: jax.Array,
    close_2PD: jax.Array,
    far_2PD: jax.Array,
    *,
    steps: int,
    learning_rate: float,
    margin: float,
) -> tuple[jax.Array, jax.Array]:
    tx = optax.adam(learning_rate)

    def one(carry: Any, _: None) -> tuple[Any, jax.Array]:
        projection, state = carry
        loss, gradient = jax.value_and_grad(hinge)(projection, close_2PD, far_2PD, margin=margin)
        changes, state = tx.update(gradient, state)
        return (optax.apply_updates(projection, changes), state), loss

    (projection_DC, _), losses = jax.lax.scan(one, (projection_DC, tx.init(projection_DC)), None, length=steps)
    return projection_DC, losses


def train(
    projection_DC: np.ndarray,
    z_ND: np.ndarray,
    rng: np.random.Generator,
    *,
    steps: int = 20,
    num_pairs: int = 1_024,
    learning_rate: float = 1e-3,
    margin: float = 1.0,
) -> np.ndarray:
    """P after some steps of Adam on the hinge of freshly drawn pairs; a hinge that is 0 already changes nothing."""
    close_2PD, far_2PD = pairs(z_ND, num_pairs, rng)
    moved, _ = _trained(
        jnp.asarray(projection_DC), close_2PD, far_2PD, steps=steps, learning_rate=learning_rate, margin=margin
    )
    return np.asarray(moved)


def reconstruction_error(z_ND: np.ndarray, of: Table, rows_B: np.ndarray) -> float:
    """Mean of |z - R^T R z| / |z| over some nodes."""
    sums_CD = sketched(z_ND, of)
    back_BD = of.value_N[rows_B, None] * sums_CD[of.bucket_N[rows_B]]
    norm_B = np.linalg.norm(z_ND[rows_B], axis=1)
    gap_B = np.linalg.norm(z_ND[rows_B] - back_BD, axis=1)
    return float(np.mean(gap_B[norm_B > 0] / norm_B[norm_B > 0]))


def sketched(x_ND: Any, of: Table) -> np.ndarray:
    """R X on the host, for dense or sparse X; [C,D] float32."""
    sketch = sums(x_ND, of)
    return np.asarray(sketch.toarray() if scipy.sparse.issparse(sketch) else sketch, np.float32)


def sums(x_ND: Any, of: Table) -> Any:
    """R X, sparse where X is."""
    return _matrix(of) @ x_ND


def rehashed(old: Table, winner_N: np.ndarray, gradient_N: np.ndarray, share: float) -> tuple[Table, np.ndarray]:
    """`old` with at most a share of all nodes moved to their new winners, those of the largest gradient first.

    Args:
        gradient_N: length of the loss's gradient at each node's bucket.

    Returns:
        The new table, normalised, and the nodes that moved.
    """
    new_bucket_N, new_sign_N = winner_N % old.width, np.where(winner_N < old.width, 1.0, -1.0)
    sign_N = np.sign(old.value_N)
    differs_M = np.flatnonzero((new_bucket_N != old.bucket_N) | (new_sign_N != sign_N))
    most = int(share * len(winner_N))
    moved_M = differs_M[np.argsort(-gradient_N[differs_M], kind="stable")[:most]]
    bucket_N, sign_N = old.bucket_N.copy(), sign_N.copy()
    bucket_N[moved_M], sign_N[moved_M] = new_bucket_N[moved_M], new_sign_N[moved_M]
    return hashes.normalised(bucket_N, sign_N, old.width), moved_M


def moved_sketch(sketch_CD: np.ndarray, x_ND: np.ndarray, old: Table, new: Table, moved_M: np.ndarray) -> np.ndarray:
    """The sketch under the new hash from that under the old one: only the rows of moved nodes are read.

    Sums of signed rows are taken back from the normalised ones, changed by the moved nodes, and scaled again by the
    sizes of the buckets.
    """
    size_old_C, size_new_C = (np.bincount(t.bucket_N, minlength=t.width) for t in (old, new))
    sums_CD = sketch_CD.astype(np.float64) * np.sqrt(np.maximum(size_old_C, 1))[:, None]
    x_MD = x_ND[moved_M]
    x_MD = np.asarray(x_MD.toarray() if scipy.sparse.issparse(x_MD) else x_MD, np.float64)
    np.subtract.at(sums_CD, old.bucket_N[moved_M], np.sign(old.value_N[moved_M])[:, None] * x_MD)
    np.add.at(sums_CD, new.bucket_N[moved_M], np.sign(new.value_N[moved_M])[:, None] * x_MD)
    # A bucket that is empty now keeps rounding errors of what was taken out.
    sums_CD[size_new_C == 0] = 0.0
    return (sums_CD / np.sqrt(np.maximum(size_new_C, 1))[:, None]).astype(np.float32)


def touched_buckets(matrix: Any, right: Sequence[tuple[Table, Table]], left: tuple[Table, Table]) -> np.ndarray:
    """Rows of a two-sided sketch that differ between old and new hashes, each a pair (old, new).

    A row differs where one of its nodes moved or changed its value, or has a neighbour whose column did.
    """
    changed_N = np.any([_differs(*pair) for pair in right], axis=0)
    is_read_N = np.asarray(abs(matrix) @ changed_N.astype(np.float32)).ravel() > 0
    touched_N = is_read_N | _differs(*left)
    return np.unique(np.concatenate([left[0].bucket_N[touched_N], left[1].bucket_N[touched_N]]))


def _differs(old: Table, new: Table) -> np.ndarray:
    return (old.bucket_N != new.bucket_N) | (old.value_N != new.value_N)


def _matrix(of: Table) -> Any:
    number = len(of.bucket_N)
    return scipy.sparse.csr_matrix((of.value_N, (of.bucket_N, np.arange(number))), shape=(of.width, number))
