"""Many mosaics explained and scored: tiles go to the devices as bytes, scores come back, maps stay on the devices.

Mosaics are split over the mesh's row axes. The numbers do not depend on the mesh or the batch size, up to rounding.

Dimensions: M mosaics, B of them in a batch, 4 tiles, K = 1 target a mosaic, N tiles, Y X rows and columns, C channels
or classes.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment.errors import InputError
from alignment.explain import focus, steps
from alignment.train import sharding

ExplainFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_BYXC, targets_BK, ids_B) -> maps_BKYX


@jax.jit
def mosaics_of(tiles_B4YXC: jax.Array) -> jax.Array:
    """The network's input from four tiles of bytes: one image of numbers from -1 to 1."""
    return focus.join(tiles_B4YXC).astype(jnp.float32) / 127.5 - 1


@jax.jit
def _measured(maps_BKYX: jax.Array, is_target_B4: jax.Array) -> dict[str, jax.Array]:
    return focus.measure(maps_BKYX[:, 0], is_target_B4)


def rate(
    explain_fn: ExplainFn,
    tiles_NYXC: np.ndarray,
    tile_index_M4: np.ndarray,
    is_target_M4: np.ndarray,
    explained_M: np.ndarray,
    mesh: Mesh,
    *,
    batch_size: int,
    ids_M: np.ndarray | None = None,
    keep: Collection[int] = (),
    on_maps_fn: Callable[[np.ndarray, np.ndarray], None] | None = None,
    advance_fn: Callable[[float], None] | None = None,
) -> tuple[dict[str, np.ndarray], float]:
    """The numbers of `focus.measure` for each mosaic, and the rate in mosaics a second.

    Args:
        explain_fn: from `explaining.build`.
        tiles_NYXC: uint8.
        tile_index_M4: the tiles of each mosaic.
        is_target_M4: tiles that count as the target's.
        explained_M: the class to explain; in the test R3 none of these tiles shows it.
        mesh: devices that share each batch.
        batch_size: mosaics at a time over all devices; the last batch is filled up.
        ids_M: the mosaics' numbers; methods draw an image's noise from its number, and errors name it. None counts.
        keep: numbers of mosaics whose maps come to the host.
        on_maps_fn: called with the numbers and maps [B, Y, X] of every batch, which costs their transfer to the host.
        advance_fn: called with mosaics done since the last call, as the passes of the "host" driver and batches end.

    Returns:
        Arrays [M]: `mosaic` (its number), those of `focus.measure`, `share` [M, 4]; and for the mosaics in `keep`
        `kept` and `kept_maps` [.., Y, X]. The rate leaves out the first batch, which compiles, where there are others.

    Raises:
        InputError: maps of another size than the mosaics, or with a value that is not finite, naming the mosaic.
    """
    ids_M = np.arange(len(explained_M)) if ids_M is None else np.asarray(ids_M)
    rows = {"index": tile_index_M4, "is_target": is_target_M4, "explained": explained_M[:, None], "ids": ids_M}
    parts: list[dict[str, np.ndarray]] = []
    maps_by_number: dict[int, np.ndarray] = {}
    times = [time.perf_counter()]
    for batch, count in _batches(tiles_NYXC, rows, mesh, batch_size):
        x_BYXC = mosaics_of(batch["tiles"])
        with _reporting(advance_fn, count):
            maps_BKYX = explain_fn(x_BYXC, batch["explained"], batch["ids"])
        if maps_BKYX.shape[:2] != (len(x_BYXC), 1):
            raise InputError(f"maps of shape {maps_BKYX.shape}; one target a mosaic gives [mosaics, 1, rows, columns]")
        focus.check_shape(maps_BKYX[:, 0].shape, num_mosaics=len(x_BYXC), size=x_BYXC.shape[1:3])
        scores = {name: v[:count] for name, v in sharding.to_host(_measured(maps_BKYX, batch["is_target"])).items()}
        ids_B = ids_M[len(parts) * batch_size :][:count]
        focus.check_finite(scores.pop("is_finite"), ids_B)
        parts.append(scores)
        times.append(time.perf_counter())  # to_host has waited for the batch
        wanted = [i for i, number in enumerate(ids_B) if int(number) in keep]
        if wanted or on_maps_fn is not None:
            maps_BYX = np.asarray(sharding.to_host(maps_BKYX))[:count, 0]
            maps_by_number |= {int(ids_B[i]): maps_BYX[i] for i in wanted}
            if on_maps_fn is not None:
                on_maps_fn(ids_B, maps_BYX)
    rated = {"mosaic": ids_M.astype(np.int32)}
    rated |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if maps_by_number:
        rated |= {
            "kept": np.array(list(maps_by_number), np.int32),
            "kept_maps": np.stack(list(maps_by_number.values())),
        }
    num_untimed = 1 if len(parts) > 1 else 0  # the first batch compiles
    seconds = times[-1] - times[num_untimed]
    return rated, (len(ids_M) - num_untimed * batch_size) / max(seconds, 1e-9)


@contextlib.contextmanager
def _reporting(advance_fn: Callable[[float], None] | None, count: int) -> Iterator[None]:
    """Passes the progress of one batch of `count` mosaics on to `advance_fn`, in mosaics."""
    if advance_fn is None:
        yield
        return
    remaining = 1.0

    def advance(share: float) -> None:
        nonlocal remaining
        share = min(share, remaining)  # shares of passes are rounded, and may sum to a little more than 1
        remaining -= share
        advance_fn(share * count)

    with steps.listening(advance):
        yield
    advance(remaining)


def _batches(
    tiles_NYXC: np.ndarray, rows: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int
) -> Iterator[tuple[dict[str, Any], int]]:
    """Batches of one shape on the devices, each with the number of its rows that are not filling."""
    sharding.check_batch(batch_size, mesh)
    share = sharding.row_share(mesh)
    size = batch_size // share["process_count"]
    mine = slice(share["process_index"] * size, (share["process_index"] + 1) * size)
    num = len(rows["ids"])
    for first in range(0, num, batch_size):
        places = np.arange(first, first + batch_size)
        places = np.where(places < num, places, first)[mine]  # the batch's first mosaic fills it up
        batch = {name: values[places] for name, values in rows.items()}
        batch = {name: v.astype(np.int32) if v.dtype.kind in "iu" else v for name, v in batch.items()}
        batch["tiles"] = tiles_NYXC[batch.pop("index")]  # bytes: a quarter of the transfer of float32
        yield sharding.to_devices(batch, mesh), min(batch_size, num - first)


def predict(
    apply_fn: Callable, variables: Any, tiles_NYXC: np.ndarray, mesh: Mesh, *, batch_size: int, scale: int = 1
) -> np.ndarray:
    """The class that the network gives each tile alone, [N]; `scale` enlarges tiles for networks of one fixed size."""

    @jax.jit
    def classes_of(variables, tiles_BYXC):
        x_BYXC = tiles_BYXC.astype(jnp.float32) / 127.5 - 1
        shape = (x_BYXC.shape[0], scale * x_BYXC.shape[1], scale * x_BYXC.shape[2], x_BYXC.shape[3])
        # A network of one fixed size explains mosaics of four tiles, so a tile alone has half its side.
        x_BYXC = x_BYXC if scale == 1 else jax.image.resize(x_BYXC, shape, "bilinear")
        out = apply_fn(variables, x_BYXC)
        return jnp.argmax(out[0] if isinstance(out, tuple) else out, axis=-1)

    rows = {"index": np.arange(len(tiles_NYXC)), "ids": np.arange(len(tiles_NYXC))}
    parts = []
    for batch, count in _batches(tiles_NYXC, rows, mesh, batch_size):
        parts.append(np.asarray(sharding.to_host(classes_of(variables, batch["tiles"])))[:count])
    return np.concatenate(parts)


def spread(num: int, limit: int | None) -> np.ndarray:
    """At most `limit` (None: all) of the numbers below `num`, spread evenly over them."""
    if limit is None or limit >= num:
        return np.arange(num)
    return (np.arange(limit) * num) // limit
