"""What the image networks share: convolutions, norms and pools that can carry a mask of real pixels along.

The functions that make parameters are called inside a module's compact method and take the submodule's name. Paddings
are torch's, the same number on both sides. A mask is 1 on real pixels of a box; None means that all are. With a mask,
what lies outside the box is zero before every convolution, just as beyond the edge of an image, and an output position
is real where the image without its padding would have it: so the real positions hold what they would without padding,
where the padding before the box is a multiple of the network's whole stride.

Dimensions: N images, Y X rows and columns, C channels, I J rows and columns of pooled bins.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment import placing
from alignment.errors import InputError

AXES = ("window", "window", "channels_in", "channels")
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def check_size(model: nn.Module, size: tuple[int, ...]) -> None:
    """Refuse images of a size (rows, columns) that the network cannot take, with one that it can."""
    label, fixed = type(model).__name__, getattr(model, "img_size", None)
    if fixed is not None and tuple(size) != (fixed, fixed):
        raise InputError(
            f"{label} takes images of {fixed} x {fixed} and these are {size[0]} x {size[1]}: its position embeddings "
            f"are learned for one size and are not interpolated. Resize the images to {fixed} x {fixed}, or train a "
            f"network with img_size={-(-max(size) // model.patch_size) * model.patch_size}"
        )
    if fixed is None and min(size) < model.min_size:
        raise InputError(
            f"{label} needs images of at least {model.min_size} x {model.min_size}, and these are "
            f"{size[0]} x {size[1]}; enlarge them, or take a network of fewer strides (resnet_small takes any size)"
        )


def start(model: nn.Module, x_NYXC: jax.Array, mask_NYX: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The images in the dtype of the computation, zero outside the mask, and the mask as booleans; sizes checked."""
    if x_NYXC.ndim != 4:
        raise InputError(f"images of shape {x_NYXC.shape} must be [N,Y,X,C]; a single one is x[None]")
    check_size(model, x_NYXC.shape[1:3])
    if mask_NYX is not None and mask_NYX.shape != x_NYXC.shape[:3]:
        raise InputError(f"mask_NYX of shape {mask_NYX.shape} must be {x_NYXC.shape[:3]}, as the images are")
    mask_NYX = None if mask_NYX is None else mask_NYX.astype(bool)
    return zero_outside(jnp.asarray(x_NYXC, model.dtype), mask_NYX), mask_NYX


def conv(
    x_NYXC: jax.Array,
    mask_NYX: jax.Array | None,
    channels: int,
    window: int = 3,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = False,
    dtype: str,
    name: str,
) -> tuple[jax.Array, jax.Array | None]:
    """A convolution and the mask of its outputs; what is outside the mask is not zero yet.

    Args:
        padding: rows and columns of zeros on each side; None: (window - 1) // 2.
    """
    padding = (window - 1) // 2 if padding is None else padding
    module = nn.Conv(
        channels,
        (window, window),
        stride,
        [(padding, padding)] * 2,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(he_normal, AXES),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
        name=name,
    )
    return module(x_NYXC), strided(mask_NYX, window, stride, padding)


def norm(
    x_NYXC: jax.Array, mask_NYX: jax.Array | None, train: bool, *, eps: float = 1e-5, dtype: str, name: str
) -> jax.Array:
    """Batch norm, zero outside the mask; in training its statistics are those of the real positions.

    Unlike torch's, the running variance is not scaled by n / (n - 1).
    """
    # Zero outside the mask again afterwards, because the norm's shift moves the zeros of the padding as well.
    module = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=eps, dtype=dtype, name=name)
    mask = None if mask_NYX is None or not train else mask_NYX[..., None]
    return zero_outside(module(x_NYXC, mask=mask), mask_NYX)


def dense(
    x_NC: jax.Array,
    features: int,
    axes: tuple[str, str],
    *,
    dtype: str,
    name: str,
    init: nn.initializers.Initializer = he_normal,
) -> jax.Array:
    """A dense layer whose kernel carries logical axes."""
    module = nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )
    return module(x_NC)


def head(x_NC: jax.Array, num_classes: int, *, dtype: str) -> jax.Array:
    """The logits, float32; every network calls this layer `head`."""
    init = nn.initializers.normal(0.01)
    return dense(x_NC, num_classes, ("embed", "classes"), dtype=dtype, name="head", init=init).astype(jnp.float32)


def shard(x_NYXC: jax.Array) -> jax.Array:
    """Split by images, whatever the kernels are split by; without a mesh this does nothing."""
    return placing.shard(x_NYXC, "batch", *(None,) * (x_NYXC.ndim - 1))


def max_pool(
    x_NYXC: jax.Array, mask_NYX: jax.Array | None, window: int = 2, stride: int = 2, padding: int = 0
) -> tuple[jax.Array, jax.Array | None]:
    """Max-pooling of what is not negative (after a ReLU), so that the zeros outside the mask never win."""
    x_NYXC = nn.max_pool(x_NYXC, (window, window), (stride, stride), [(padding, padding)] * 2)
    mask_NYX = strided(mask_NYX, window, stride, padding)
    return zero_outside(x_NYXC, mask_NYX), mask_NYX


def avg_pool(x_NYXC: jax.Array, mask_NYX: jax.Array | None, window: int = 2) -> tuple[jax.Array, jax.Array | None]:
    """Average-pooling of windows beside each other; rows and columns left over are dropped."""
    x_NYXC = nn.avg_pool(x_NYXC, (window, window), (window, window))
    mask_NYX = strided(mask_NYX, window, window, 0)
    return zero_outside(x_NYXC, mask_NYX), mask_NYX


def global_mean(x_NYXC: jax.Array, mask_NYX: jax.Array | None) -> jax.Array:
    """The mean over the real positions, [N,C]; zero for an image that has none left."""
    if mask_NYX is None:
        return x_NYXC.mean((1, 2))
    count_N = jnp.maximum(mask_NYX.sum((1, 2)), 1).astype(x_NYXC.dtype)
    return zero_outside(x_NYXC, mask_NYX).sum((1, 2)) / count_N[:, None]


def adaptive_mean(x_NYXC: jax.Array, mask_NYX: jax.Array | None, bins: int) -> jax.Array:
    """torch's adaptive average pooling to bins x bins: bin i of n rows averages rows floor(i n / bins) up to (not
    including) ceil((i + 1) n / bins), so bins overlap where n is not a multiple. With a mask, n counts the box's rows.
    """
    N, Y, X, _ = x_NYXC.shape
    if mask_NYX is None and Y % bins == 0 and X % bins == 0:
        window = (Y // bins, X // bins)
        return x_NYXC if window == (1, 1) else nn.avg_pool(x_NYXC, window, window)
    with jax.named_scope("adaptive_mean"):
        if mask_NYX is None:
            with jax.ensure_compile_time_eval():  # constants of the program
                rows_NIY, columns_NJX = _bins(jnp.ones((1, Y), bool), bins), _bins(jnp.ones((1, X), bool), bins)
        else:
            rows_NIY, columns_NJX = _bins(mask_NYX.any(2), bins), _bins(mask_NYX.any(1), bins)
        rows_NIY = jnp.broadcast_to(rows_NIY, (N, bins, Y)).astype(x_NYXC.dtype)
        columns_NJX = jnp.broadcast_to(columns_NJX, (N, bins, X)).astype(x_NYXC.dtype)
        x_NIXC = jnp.einsum("NYXC,NIY->NIXC", x_NYXC, rows_NIY)
        return jnp.einsum("NIXC,NJX->NIJC", x_NIXC, columns_NJX)


def _bins(real_NY, bins):
    """Weights [N,I,Y] of the rows in each bin, from which rows are real."""
    Y = real_NY.shape[1]
    first_N11 = jnp.argmax(real_NY, axis=1)[:, None, None]
    size_N11 = real_NY.sum(1)[:, None, None]
    bin_1I1, row_11Y = jnp.arange(bins)[None, :, None], jnp.arange(Y)[None, None, :]
    begin = first_N11 + bin_1I1 * size_N11 // bins
    end = first_N11 - (-(bin_1I1 + 1) * size_N11 // bins)
    is_in_NIY = (row_11Y >= begin) & (row_11Y < end)
    return is_in_NIY / jnp.maximum(end - begin, 1)


def strided(mask_NYX: jax.Array | None, window: int, stride: int, padding: int) -> jax.Array | None:
    """Which outputs of a strided window are real: those that the image without its padding would have."""
    if mask_NYX is None:
        return None
    reach = window - 1 - 2 * padding  # the last row that output i needs is i * stride + reach
    for axis in (1, 2):
        before = jax.lax.slice_in_dim(mask_NYX, reach, None, stride, axis)
        mask_NYX = jax.lax.slice_in_dim(mask_NYX, 0, mask_NYX.shape[axis] - reach, stride, axis) & before
    return mask_NYX


def zero_outside(x_NYXC: jax.Array, mask_NYX: jax.Array | None) -> jax.Array:
    """Set everything outside the mask to zero."""
    return x_NYXC if mask_NYX is None else jnp.where(mask_NYX[..., None], x_NYXC, 0)
