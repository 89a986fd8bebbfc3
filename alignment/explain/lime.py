"""LIME on super-pixels.  Dimensions: N images, K targets an image, Y X rows and columns, C channels (classes where it
follows a score), P perturbations, S of them in one pass, G super-pixels (segments) of the image that has most.

Super-pixels, perturbations and the small ridge regressions are made on the host; only the network runs on the device.
"""

import os
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError, one_of
from alignment.explain import gradients, steps

SEGMENTERS = ("quickshift", "slic")
SEED = 777  # of quickshift, which breaks ties between pixels at random; the paper's
SMALL = 100  # pixels a side; quickshift's kernel does not shrink with the image
PAD = 16  # super-pixels are counted in multiples of this, so that few programs are compiled


def segment(
    x_NYXC: np.ndarray,
    segmenter: str = "quickshift",
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    **options: Any,
) -> np.ndarray:
    """Super-pixels by scikit-image.

    The paper's quickshift is meant for images of hundreds of pixels a side: its kernel does not shrink with the image,
    and 56 x 56 pixels give hardly any super-pixels. Take "slic" for small ones.

    Args:
        x_NYXC: images of 1 or 3 channels.
        segmenter: "quickshift" with the paper's kernel_size=4, max_dist=200, ratio=0.2, or "slic" with
            n_segments=64, compactness=10.
        value_range: what x spans; it is mapped to [0, 1], which the colour conversion needs.
        options: replace the segmenter's.

    Returns:
        segments_NYX, int32, from 0 without gaps in every image.

    Raises:
        InputError: another number of channels, or an unknown segmenter.
    """
    from skimage import segmentation  # its import takes half a second

    one_of("segmenter", segmenter, SEGMENTERS, hint="or pass segments_NYX of your own")
    if x_NYXC.shape[-1] not in (1, 3):
        raise InputError(
            f"{segmenter} reads 1 or 3 channels and x has {x_NYXC.shape[-1]}; pass segments_NYX of your own"
        )
    low, high = value_range
    colours_NYXC = np.clip((np.asarray(x_NYXC, np.float64) - low) / (high - low), 0, 1)
    colours_NYXC = np.broadcast_to(colours_NYXC, (*x_NYXC.shape[:3], 3))
    if segmenter == "quickshift":
        options = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2, "rng": SEED} | options
    else:
        options = {"n_segments": 64, "compactness": 10.0, "start_label": 0} | options

    def one(image_YXC):
        map_YX = getattr(segmentation, segmenter)(np.ascontiguousarray(image_YXC), **options)
        return _renumbered(map_YX)

    with futures.ThreadPoolExecutor(min(os.cpu_count() or 1, len(x_NYXC))) as pool:  # scikit-image releases the lock
        return np.stack(list(pool.map(one, colours_NYXC))).astype(np.int32)


def default_segmenter(height: int, width: int) -> str:
    """The segmenter for images of a size: slic where quickshift would take the image for one super-pixel."""
    return "slic" if max(height, width) < SMALL else "quickshift"


def _renumbered(map_YX: np.ndarray) -> np.ndarray:
    """Super-pixels from 0, without gaps."""
    return np.unique(map_YX, return_inverse=True)[1].reshape(map_YX.shape).astype(np.int32)


def perturbations(key: jax.Array, image: int, num_samples: int, num_segments: int) -> np.ndarray:
    """on_PG uint8: which super-pixels are shown, each by a fair coin; row 0 shows all of them."""
    # numpy draws on the host from the bits of a JAX key, so that a key means the same on any backend
    words = np.asarray(jax.random.key_data(jax.random.fold_in(key, image))).ravel()
    on_PG = np.random.default_rng([int(word) for word in words]).integers(0, 2, (num_samples, num_segments), np.uint8)
    on_PG[0] = 1
    return on_PG


def proximity(on_PG: np.ndarray, kernel_width: float = 0.25) -> np.ndarray:
    """Weights exp(-d^2 / (2 width^2)), where d is the cosine distance to the complete image."""
    share_P = np.asarray(on_PG, np.float64).mean(-1)
    distance_P = 1 - np.sqrt(share_P)  # the cosine z.1 / (|z| |1|) of a 0-1 vector is the root of its share of ones
    return np.exp(-(distance_P**2) / (2 * kernel_width**2))


def ridge(on_PG: np.ndarray, values_PK: np.ndarray, weights_P: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """coefficients_KG of a weighted ridge regression; the intercept is not penalised."""
    on_PG, values_PK = on_PG.astype(np.float64), values_PK.astype(np.float64)
    # centring by the weighted means takes the place of an intercept that the penalty leaves alone
    share_P = weights_P / weights_P.sum()
    on_PG, values_PK = on_PG - share_P @ on_PG, values_PK - share_P @ values_PK
    gram_GG = (on_PG * weights_P[:, None]).T @ on_PG
    moments_GK = (on_PG * weights_P[:, None]).T @ values_PK
    return np.linalg.solve(gram_GG + alpha * np.eye(len(gram_GG)), moments_GK).T


def without_noise(coefficients_KG: np.ndarray, values_PK: np.ndarray) -> np.ndarray:
    """Coefficients, with 0 for those that rounding alone can make.

    A network that ignores the image, or is sure of the class whatever is hidden, gives the same float32 value each
    time; the regression then returns some 1e-17 with either sign.
    """
    least_K1 = np.finfo(np.float32).eps * np.abs(values_PK).max(0)[:, None]
    return np.where(np.abs(coefficients_KG) > least_K1, coefficients_KG, 0.0)


def top_positive(coefficients_KG: np.ndarray, num_features: int) -> np.ndarray:
    """1 at the `num_features` largest positive coefficients of each row, else 0."""
    order_KG = np.argsort(-coefficients_KG, axis=1, kind="stable")[:, :num_features]
    mask_KG = np.zeros_like(coefficients_KG)
    np.put_along_axis(mask_KG, order_KG, 1.0, axis=1)
    return mask_KG * (coefficients_KG > 0)


def _step(static, arrays, step_S, valid_S):
    (apply_fn,) = static
    variables, x_NYXC, targets_NK, hide_NYXC, segments_NYX, on_NPG = arrays
    del valid_S  # rows past the last are cut off
    # a super-pixel's flag is looked up for every pixel on the device; only flags travel, not images
    on_SNG = jnp.moveaxis(on_NPG[:, step_S], 1, 0)
    shown_SNYX = jax.vmap(jax.vmap(lambda on_G, segments_YX: on_G[segments_YX]), (0, None))(on_SNG, segments_NYX)
    x_SNYXC = jnp.where(shown_SNYX[..., None] > 0, x_NYXC[None], hide_NYXC[None])
    flat = x_SNYXC.reshape(-1, *x_NYXC.shape[1:])
    values = jax.nn.softmax(gradients.logits(apply_fn, variables, flat))
    values = gradients.pick(values, jnp.tile(targets_NK, (len(step_S), 1)))
    return values.reshape(len(step_S), len(x_NYXC), -1)


def relevance(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    ids_N: jax.Array | None = None,
    key: jax.Array | None = None,
    num_samples: int = 1000,
    num_features: int | None = 5,
    segments_NYX: np.ndarray | None = None,
    segmenter: str = "quickshift",
    segmenter_options: dict | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    hide: float | jax.Array = 0.0,
    kernel_width: float = 0.25,
    alpha: float = 1.0,
    driver: str | None = None,
    per_pass: int = 8,
) -> jax.Array:
    """LIME of Ribeiro et al. 2016 (arXiv:1602.04938) for images, with the settings of arXiv:2109.15035.

    The softmax probability of a class is regressed on which super-pixels are shown. This is not jittable.

    Args:
        num_samples: perturbations of an image.
        num_features: the map is 1 on this many super-pixels with the largest positive coefficients and 0 elsewhere, as
            in the paper; None gives every pixel the coefficient of its super-pixel.
        segments_NYX: super-pixels of your own, one integer each; otherwise `segment` makes them.
        segmenter: "quickshift" or "slic", with `segmenter_options`.
        value_range: what x spans, for the colours that the segmenter sees.
        hide: value of hidden super-pixels, in the units of x: a number, or an array that broadcasts to x_NYXC.
        kernel_width: of the proximity, in cosine distance.
        alpha: of the ridge regression.
        driver: see `steps`.
        per_pass: perturbations that go through the network together.

    Raises:
        InputError: no key, no samples, or super-pixels that are not integers.
    """
    if key is None:
        raise InputError("lime draws random numbers and was given no key; pass key=jax.random.key(0), say")
    if num_samples < 1:
        raise InputError(f"num_samples={num_samples}; the first shows the whole image, and the paper takes 1000")
    numbers_N = np.arange(len(x_NYXC)) if ids_N is None else np.asarray(ids_N)
    if segments_NYX is None:
        segments_NYX = segment(np.asarray(x_NYXC), segmenter, value_range=value_range, **(segmenter_options or {}))
    elif not np.issubdtype(np.asarray(segments_NYX).dtype, np.integer):
        raise InputError(f"segments_NYX are {np.asarray(segments_NYX).dtype}; they are the numbers of super-pixels")
    segments_NYX = np.stack([_renumbered(map_YX) for map_YX in np.asarray(segments_NYX)])
    counts_N = segments_NYX.max((1, 2)) + 1
    on_N = [perturbations(key, int(i), num_samples, int(count)) for i, count in zip(numbers_N, counts_N)]
    # images differ in their number of super-pixels; padded ones belong to no pixel
    on_NPG = np.zeros((len(on_N), num_samples, -(-max(counts_N) // PAD) * PAD), np.uint8)
    for row_PG, on_PG in zip(on_NPG, on_N):
        row_PG[:, : on_PG.shape[1]] = on_PG
    hide_NYXC = gradients.like_images(hide, x_NYXC, "hide")
    arrays = (variables, x_NYXC, targets_NK, hide_NYXC, jnp.asarray(segments_NYX), jnp.asarray(on_NPG))
    static = (steps.hashable(apply_fn),)
    values_PNK = np.asarray(steps.stacked(_step, static, arrays, num_samples, driver=driver, per_pass=per_pass))
    maps = np.zeros((*targets_NK.shape, *x_NYXC.shape[1:3]), np.float32)
    for image, on_PG in enumerate(on_N):
        coefficients_KG = ridge(on_PG, values_PNK[:, image], proximity(on_PG, kernel_width), alpha)
        coefficients_KG = without_noise(coefficients_KG, values_PNK[:, image])
        if num_features is not None:
            coefficients_KG = top_positive(coefficients_KG, num_features)
        maps[image] = coefficients_KG[:, segments_NYX[image]]
    return jnp.asarray(maps)
