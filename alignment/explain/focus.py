"""Focus: the share of positive relevance that falls on the two tiles of a mosaic that show the class explained.

Arias-Duart, Parés, Garcia-Gasulla, Giménez-Ábalos 2022, arXiv:2109.15035. Chance is 0.5; with other numbers of target
tiles, which the paper does not have, a quarter of that number.

`score` is the plain function, `measure` returns all numbers of a map, `Focus` is the call that Quantus users know.

Dimensions: N images, M mosaics, 4 tiles (top-left, top-right, bottom-left, bottom-right), Y X rows and columns,
C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError, one_of, within

EMPTY = ("nan", "zero")


def assemble(images_NYXC: jax.Array, tile_index_M4: jax.Array) -> jax.Array:
    """Mosaics [M, 2Y, 2X, C] gathered from images where they are, on the device: every pixel is a copy."""
    return join(images_NYXC[tile_index_M4])


def join(tiles_M4YXC: jax.Array) -> jax.Array:
    """Four tiles a mosaic put together: [M, 2Y, 2X, C]."""
    _, _, Y, X, C = tiles_M4YXC.shape
    grid = tiles_M4YXC.reshape(-1, 2, 2, Y, X, C)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 2 * Y, 2 * X, C)


def by_tile(maps_MYX: jax.Array) -> jax.Array:
    """Sums over the four quadrants [M, 4], in float32; rows split at floor(Y / 2), columns at floor(X / 2)."""
    # four slices, since a reshape to [M, 2, Y/2, 2, X/2] needs even sides
    y, x = maps_MYX.shape[1] // 2, maps_MYX.shape[2] // 2
    halves = [(slice(None, y), slice(None, x)), (slice(None, y), slice(x, None))]
    halves += [(slice(y, None), slice(None, x)), (slice(y, None), slice(x, None))]
    sums = [maps_MYX[:, rows, columns].sum((1, 2), dtype=jnp.float32) for rows, columns in halves]
    return jnp.stack(sums, axis=1)


def score(
    maps_MYX: jax.Array,
    tile_label_M4: jax.Array,
    target_M: jax.Array,
    *,
    empty: str = "nan",
    allow_any: bool = False,
) -> jax.Array:
    """Focus of each map, in [0, 1].

    Sum of positive relevance over the tiles whose label is the target, over the sum of all positive relevance.

    Args:
        maps_MYX: relevance for the target at the mosaic's size; only its positive part counts.
        tile_label_M4: class of each tile.
        target_M: the class explained.
        empty: of a map without positive relevance: 'nan' as in the authors' code (0/0), or 'zero' as in Quantus.
        allow_any: take mosaics whose target is on another number of tiles than two.

    Raises:
        InputError: for shapes, targets and maps that cannot be rated; of traced values only the shapes are checked, and
            a map with a NaN scores NaN.
    """
    is_target_M4 = check_targets(tile_label_M4, target_M, allow_any=allow_any)
    check_maps(maps_MYX, num_mosaics=len(target_M))
    return measure(maps_MYX, is_target_M4, empty=empty)["focus"]


def measure(maps_MYX: jax.Array, is_target_M4: jax.Array | np.ndarray, *, empty: str = "nan") -> dict[str, jax.Array]:
    """All numbers of a map; pure, so that it can be jitted together with the explanation.

    Returns:
        Arrays [M] `focus`, the masses `tp` and `fp` (positive relevance on and off the target tiles), `fn` and `tn`
        (negative relevance on and off them, as positive numbers), `pos_total`, `is_finite`; and `share` [M, 4], the
        part of the positive relevance on each tile, NaN where there is none.
    """
    one_of("empty", empty, EMPTY)
    is_target_M4 = jnp.asarray(is_target_M4, jnp.float32)
    maps_MYX = jnp.asarray(maps_MYX).astype(jnp.float32)
    maps_MYX, scale_M = _within_range(maps_MYX)  # a sum over pixels of large relevance could overflow
    positive_M4 = by_tile(jnp.maximum(maps_MYX, 0))
    negative_M4 = by_tile(jnp.maximum(-maps_MYX, 0))
    total_M = positive_M4.sum(1)
    is_empty_M = total_M == 0
    tp_M, fn_M = (positive_M4 * is_target_M4).sum(1), (negative_M4 * is_target_M4).sum(1)
    # the inner where avoids 0 / 0, whose NaN would reach gradients and `jax_debug_nans`
    focus_M = jnp.where(is_empty_M, 0.0 if empty == "zero" else jnp.nan, tp_M / jnp.where(is_empty_M, 1, total_M))
    return {
        "focus": focus_M,
        "tp": tp_M * scale_M,
        "fp": (positive_M4 * (1 - is_target_M4)).sum(1) * scale_M,
        "tn": (negative_M4 * (1 - is_target_M4)).sum(1) * scale_M,
        "fn": fn_M * scale_M,
        "pos_total": total_M * scale_M,
        "is_finite": jnp.isfinite(maps_MYX).all((1, 2)),
        "share": positive_M4 / jnp.where(is_empty_M, jnp.nan, total_M)[:, None],
    }


def _within_range(maps_MYX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps whose positive sums do not overflow float32, and the factor that undoes the scaling.

    The factor is a power of two, so that no digit is lost.
    """
    # float32 ends at 2^128, so below 2^90 a sum over up to 2^38 pixels fits; small maps keep their smallest values.
    scale_M = jnp.where(maps_MYX.max((1, 2)) > 2.0**90, 2.0**60, 1.0).astype(jnp.float32)
    return maps_MYX / scale_M[:, None, None], scale_M


def summary(scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, variance and standard deviation (ddof 1), mean and quartiles of the defined scores; `n` counts all.

    A number that does not exist (of no score, or of a single one) is NaN.
    """
    scores = np.asarray(scores, np.float64).ravel()
    defined = scores[~np.isnan(scores)]
    # np.percentile fails on an empty array.
    q1, median, q3 = np.percentile(defined, [25, 50, 75]) if len(defined) else [np.nan] * 3
    variance = np.var(defined, ddof=1) if len(defined) > 1 else np.nan
    return {
        "median": float(median),
        "mean": float(defined.mean()) if len(defined) else np.nan,
        "variance": float(variance),
        "std": float(variance**0.5),
        "q1": float(q1),
        "q3": float(q3),
        "n": len(scores),
        "n_undefined": len(scores) - len(defined),
    }


def check_targets(tile_label_M4: jax.Array, target_M: jax.Array, *, allow_any: bool = False) -> jax.Array:
    """Which tiles show the target, as booleans [M, 4]; refuses a mosaic where these are not two."""
    if tile_label_M4.ndim != 2 or tile_label_M4.shape[1] != 4 or target_M.shape != tile_label_M4.shape[:1]:
        raise InputError(
            f"tile labels of shape {tile_label_M4.shape} and targets of shape {target_M.shape}; they are [M, 4] and [M]"
        )
    is_target_M4 = tile_label_M4 == target_M[:, None]
    if not isinstance(is_target_M4, jax.core.Tracer):
        _check_flags(np.asarray(is_target_M4), allow_any)
    return is_target_M4


def check_maps(maps_MYX: jax.Array | np.ndarray, *, num_mosaics: int, size: tuple[int, int] | None = None) -> None:
    """Refuses maps of another shape, number or size than their mosaics, and any value that is not finite."""
    check_shape(maps_MYX.shape, num_mosaics=num_mosaics, size=size)
    if not isinstance(maps_MYX, jax.core.Tracer):
        check_finite(np.asarray(jnp.isfinite(jnp.asarray(maps_MYX)).all((1, 2))))


def check_shape(shape: tuple[int, ...], *, num_mosaics: int, size: tuple[int, int] | None = None) -> None:
    """The checks of `check_maps` that need no values, so that they work under jit."""
    if len(shape) != 3:
        raise InputError(
            f"maps of shape {shape}; Focus rates one number a pixel, [M, Y, X]: reduce the channels first, by their "
            "sum (relevance) or the largest magnitude (gradients)"
        )
    if shape[0] != num_mosaics:
        raise InputError(f"{shape[0]} maps for {num_mosaics} mosaics; there must be one each")
    if min(shape[1:]) < 2:
        raise InputError(f"maps of {shape[1]} x {shape[2]} pixels have no four quadrants")
    if size is not None and tuple(shape[1:]) != tuple(size):
        raise InputError(
            f"maps of {shape[1]} x {shape[2]} pixels for mosaics of {size[0]} x {size[1]}; resize them to the mosaic "
            "first, so that the split between tiles is where you mean it"
        )


def check_finite(is_finite_M: np.ndarray, ids_M: np.ndarray | None = None) -> None:
    """Refuses maps with NaN or infinite relevance; `ids_M` are the mosaics' numbers, None counts them."""
    if not np.all(is_finite_M):
        wrong = np.flatnonzero(~np.asarray(is_finite_M))
        wrong = wrong if ids_M is None else np.asarray(ids_M)[wrong]
        raise InputError(
            f"the map of mosaic {', '.join(map(str, wrong[:5]))}{' ...' if len(wrong) > 5 else ''} holds NaN or "
            f"infinite relevance ({len(wrong)} maps do); look for a division by zero in the method, or an "
            "overflow in float16"
        )


def _check_flags(is_target_M4: np.ndarray, allow_any: bool) -> None:
    """Refuses mosaics whose target is not on two tiles (with `allow_any`, not on any)."""
    num_M = is_target_M4.sum(1)
    wrong = np.flatnonzero((num_M == 0) if allow_any else (num_M != 2))
    if len(wrong):
        raise InputError(
            f"mosaic {wrong[0]}: the target is on {num_M[wrong[0]]} of its tiles ({len(wrong)} such mosaics); Focus "
            "needs two, then chance is 0.5. allow_any=True takes 1 to 4, with chance at a quarter of that number"
        )


class Focus:
    """The metric as Quantus users call it, for JAX models.

        scores = Focus()(model=(model.apply, variables), x_batch=mosaics, y_batch=targets, custom_batch=positions,
                         explain_func_kwargs={"method": "gradcam"})

    A map without positive relevance is NaN here and counted in `num_undefined`; `empty="zero"` gives Quantus' number.

    Args:
        empty: 'nan' or 'zero'.
        allow_any: take mosaics whose target is on another number of tiles than two.
        abs: rate the magnitude of relevance instead of its positive part.
    """

    def __init__(self, *, empty: str = "nan", allow_any: bool = False, abs: bool = False):
        one_of("empty", empty, EMPTY)
        self.empty, self.allow_any, self.abs = empty, allow_any, abs
        self.evaluation_scores: list[float] = []
        self.num_undefined = 0

    def __call__(
        self,
        model: Any,
        x_batch: np.ndarray,
        y_batch: np.ndarray,
        a_batch: np.ndarray | None = None,
        *,
        custom_batch: Sequence[Sequence[int]],
        explain_func: Callable[..., np.ndarray] | None = None,
        explain_func_kwargs: Mapping[str, Any] | None = None,
        channel_first: bool | None = None,
        batch_size: int = 64,
    ) -> list[float]:
        """The score of each mosaic.

        Args:
            model: (apply_fn, variables), or whatever `explain_func` takes.
            x_batch: mosaics, [N, Y, X, C] or, with `channel_first`, [N, C, Y, X]; None looks where 1 or 3 stands.
            y_batch: [N] the classes explained.
            a_batch: maps made beforehand, [N, Y, X] or [N, 1, Y, X]; None calls `explain_func`.
            custom_batch: [N, 4] flags, 1 where a tile shows the class: top-left, top-right, bottom-left, bottom-right.
            explain_func: called as `explain_func(model=..., inputs=..., targets=..., **explain_func_kwargs)`; None is
                `explaining.explain`.
        """
        x_batch, y_batch = np.asarray(x_batch), np.asarray(y_batch)
        is_target_N4 = self._check_inputs(x_batch, y_batch, custom_batch, batch_size)
        size = _size_of(x_batch, channel_first)
        if a_batch is not None:
            a_batch = _one_channel(a_batch)
            check_maps(a_batch, num_mosaics=len(x_batch), size=size)
        explain = _explainer(explain_func, model)
        parts = []
        for start in range(0, len(x_batch), batch_size):
            part = slice(start, start + batch_size)
            if a_batch is None:
                maps = _one_channel(explain(x_batch[part], y_batch[part], **dict(explain_func_kwargs or {})))
                check_maps(maps, num_mosaics=len(x_batch[part]), size=size)
            else:
                maps = a_batch[part]
            maps = jnp.abs(jnp.asarray(maps)) if self.abs else maps
            parts.append(np.asarray(measure(maps, is_target_N4[part], empty=self.empty)["focus"]))
        # a list of floats, because Quantus' callers expect one
        scores = np.concatenate(parts) if parts else np.zeros(0)
        self.num_undefined = int(np.isnan(scores).sum())
        self.evaluation_scores = [float(s) for s in scores]
        return self.evaluation_scores

    def _check_inputs(
        self, x_batch: np.ndarray, y_batch: np.ndarray, custom_batch: Sequence[Sequence[int]], batch_size: int
    ) -> np.ndarray:
        flags_N4 = np.asarray(custom_batch)
        if x_batch.ndim != 4 or flags_N4.shape != (len(x_batch), 4) or y_batch.shape != (len(x_batch),):
            raise InputError(
                f"x_batch {x_batch.shape}, y_batch {y_batch.shape}, custom_batch {flags_N4.shape}: they must be four-"
                "dimensional, [N] and [N, 4], one row a mosaic"
            )
        if not np.isin(flags_N4, (0, 1)).all():
            wrong = np.flatnonzero(~np.isin(flags_N4, (0, 1)).all(1))[0]
            raise InputError(
                f"custom_batch[{wrong}]={flags_N4[wrong].tolist()}; its four flags are 1 where a tile shows the class "
                "explained and 0 elsewhere: top-left, top-right, bottom-left, bottom-right"
            )
        within("[1, inf)", batch_size=batch_size)
        _check_flags(flags_N4.astype(bool), self.allow_any)
        return flags_N4.astype(bool)


def _size_of(x_batch: np.ndarray, channel_first: bool | None) -> tuple[int, int]:
    """Rows and columns of the mosaics."""
    if channel_first is None:
        channel_first = x_batch.shape[-1] not in (1, 3) and x_batch.shape[1] in (1, 3)
    return tuple(x_batch.shape[2:] if channel_first else x_batch.shape[1:3])


def _one_channel(maps: Any) -> Any:
    """Maps [N, Y, X] from [N, Y, X] or [N, 1, Y, X]; `check_maps` refuses others later."""
    maps = maps if isinstance(maps, jax.Array) else np.asarray(maps)
    return maps[:, 0] if maps.ndim == 4 and maps.shape[1] == 1 else maps


def _explainer(explain_func: Callable[..., np.ndarray] | None, model: Any) -> Callable[..., Any]:
    """A function (inputs, targets, **options) -> maps."""
    if explain_func is not None:
        return lambda inputs, targets, **options: explain_func(model=model, inputs=inputs, targets=targets, **options)

    def ours(inputs, targets, **options):
        from alignment.explain import explaining  # imported here, because it takes longer than the metric

        apply_fn, variables = model
        return explaining.explain(apply_fn, variables, jnp.asarray(inputs), jnp.asarray(targets), **options)

    return ours
