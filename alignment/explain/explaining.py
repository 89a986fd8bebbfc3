"""One call for every attribution method, in batches of one shape.

Dimensions: N images, K targets an image, Y X rows and columns, C channels or classes.

    maps_NYX = explain(apply_fn, variables, x_NYXC, targets_N, method="gradcam", layer="layer4")

`apply_fn(variables, x_NYXC)` returns logits_NC, or a pair of them and a dict of activations; it is any JAX function,
such as a linen module's `apply`. Pass the same `apply_fn` each time: compiled programs are found again by it (two equal
linen modules share theirs; a new lambda has its own).
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import memory
from alignment.errors import InputError, one_of, within
from alignment.explain import (
    attention,
    composites,
    fitness,
    gradcam,
    gradients,
    graph,
    hoisting,
    layers,
    lime,
    lrp,
    occlusion,
    steps,
)


def relevance_maps(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    composite: Any = "auto",
    rules: tuple = (),
    low: float | jax.Array = -1.0,
    high: float | jax.Array = 1.0,
    return_delta: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Layer-wise relevance propagation, summed over the channels; the options are those of `lrp.relevance`."""
    # each channel sum is taken inside, target by target, so that no array with channels is kept for all targets
    options: dict[str, Any] = dict(composite=composite, rules=rules, low=low, high=high, return_delta=return_delta)
    out = lrp.relevance(apply_fn, variables, x_NYXC, targets_NK, sum_channels=True, **options)
    if isinstance(out, tuple):
        maps_NKYX, delta_NK = out
        return maps_NKYX.astype(jnp.float32), delta_NK
    return out.astype(jnp.float32)


METHODS: dict[str, Callable] = {
    "lrp": relevance_maps,
    "gradcam": gradcam.gradcam,
    "gradcam++": gradcam.gradcam_plus_plus,
    "integrated_gradients": gradients.integrated_gradients,
    "smoothgrad": gradients.smoothgrad,
    "input_x_gradient": gradients.input_x_gradient,
    "gradient": gradients.gradient,
    "guided_backprop": gradients.guided_backprop,
    "occlusion": occlusion.relevance,
    "lime": lime.relevance,
    "attention_rollout": attention.rollout,
}

DRAWN = ("ids_N", "key")  # parameters of methods that draw random numbers; they are not options
ON_HOST = ("lime",)  # part of it runs in numpy, so it cannot be one compiled program
# Methods that spend much on the weights alone. On GPUs this work is small, and cuDNN's fast paths want the kernels
# unflipped, so programs are taken apart on CPUs only.
HOISTED = ("lrp",)
PIXELS_CPU = 448 * 448  # in a batch, where the caller names no size; more is no faster there (ResNet-18, two cores)
PIXELS = 64 * 448 * 448


def options_of(method: str) -> list[str]:
    """Names of a method's options.

    Raises:
        InputError: an unknown method, with the nearest.
    """
    return [name for name in _keywords(method) if name not in DRAWN]


def _keywords(method: str) -> list[str]:
    method_fn = METHODS[one_of("method", method, METHODS)]
    return [p.name for p in inspect.signature(method_fn).parameters.values() if p.kind == p.KEYWORD_ONLY]


def check_options(method: str, options: Mapping[str, Any], *, has_key: bool = True) -> None:
    """Refuses what a method does not take: misspelt options, a driver where there is one pass, a missing key.

    Raises:
        InputError: with the options that the method takes.
    """
    known = options_of(method)
    if "driver" in options and "driver" not in known:
        raise InputError(f"{method} runs in one pass and takes no driver; leave it out")
    if "return_delta" in options and "return_delta" not in known:
        have = [name for name in METHODS if "return_delta" in options_of(name)]
        raise InputError(f"{method} has no conservation or completeness error; {' and '.join(have)} do")
    for name in options:
        one_of("option", name, known, hint=f"{method} takes no other")
    if "key" in _keywords(method) and not has_key:
        raise InputError(f"{method} draws random numbers and was given no key; pass key=jax.random.key(0), say")


@functools.partial(jax.jit, static_argnums=0)
def _forward(apply_fn, variables, x_NYXC):
    return apply_fn(variables, x_NYXC)


def num_classes(apply_fn: Callable, variables: Any, image_shape: tuple[int, ...]) -> int:
    """Width of the logits for images [N, Y, X, C], from shapes alone.

    Raises:
        InputError: the network does not take these images, or returns something else.
    """
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    # The network's own code may fail in any way on images of a wrong shape; its first line is the clue.
    try:
        out = jax.eval_shape(functools.partial(_forward, apply_fn), variables, image)
    except InputError:
        raise
    except Exception as error:
        hint = "; they look like [N, C, Y, X]: np.moveaxis(x, 1, -1)" if image_shape[1] in (1, 3) else ""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"apply_fn(variables, x) fails on images of shape {image_shape}, read as [N, Y, X, C]{hint}. It says: "
            f"{first_line}"
        ) from error
    logits = out[0] if isinstance(out, tuple | list) and out else out
    if isinstance(out, tuple | list) and len(out) > 1 and isinstance(out[1], Mapping) and "batch_stats" in out[1]:
        raise InputError(
            "apply_fn returns new batch statistics beside the logits, so batch norm is in training mode and maps would "
            "depend on the other images of a batch; use use_running_average=True, without mutable=['batch_stats']"
        )
    if not hasattr(logits, "shape") or len(logits.shape) != 2 or logits.shape[0] != image_shape[0]:
        output = getattr(logits, "shape", type(logits).__name__)
        raise InputError(
            f"apply_fn must return logits [N, C], alone or before a dict of activations; its output is {output}"
        )
    return logits.shape[1]


def check_key(key: Any) -> None:
    """Refuses what is not one random key; jax.random.fold_in would fail later with a message about dtypes.

    Raises:
        InputError: for a number, for several keys, and for anything else.
    """
    is_typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed and np.ndim(key) == 0 and np.asarray(key).dtype.kind in "iu":
        raise InputError(f"key={key} is a number; pass the random key jax.random.key({key})")
    if not is_typed and (getattr(key, "dtype", None) != np.uint32 or np.ndim(key) == 0):
        raise InputError(f"key is {type(key).__name__}; pass one random key, such as jax.random.key(0)")
    shape = jnp.shape(key) if is_typed else np.shape(key)[:-1]
    if shape:
        raise InputError(f"key holds {shape[0]} random keys; pass one of them: each image folds in its own number")


def check_images(x_NYXC: Any) -> Any:
    """The images as float32, or an InputError that says what they should be."""
    try:
        x = x_NYXC if isinstance(x_NYXC, jax.Array) else np.asarray(x_NYXC)
    except ValueError as error:  # images of different sizes
        raise InputError("x must be images of one size, [N, Y, X, C]; explain each size by itself") from error
    if x.ndim != 4 or 0 in x.shape:
        hint = "; a single image is x[None]" if x.ndim == 3 else ""
        raise InputError(f"x of shape {x.shape} must be images [N, Y, X, C], at least one{hint}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"x is {x.dtype}; give the numbers the network reads, such as x / 127.5 - 1 for bytes")
    if isinstance(x, jax.core.Tracer):  # inside jit there are no values to check
        return x.astype(jnp.float32)
    with np.errstate(over="ignore"):  # float64 past float32 becomes infinite, and is refused below
        x = x.astype(np.float32)
    xp = jnp if isinstance(x, jax.Array) else np
    finite_N = np.asarray(xp.isfinite(x).all((1, 2, 3)))
    if not finite_N.all():
        raise InputError(f"image {int(np.argmin(finite_N))} of {len(x)} holds NaN or infinity; leave it out")
    return x


def check_targets(targets: Any, num_images: int, classes: int) -> np.ndarray:
    """The targets as int32 [N, K], or an InputError that says what they should be."""
    targets = np.asarray(targets)
    if targets.ndim not in (1, 2) or len(targets) != num_images or 0 in targets.shape:
        raise InputError(
            f"targets of shape {targets.shape} must be class numbers [N] or [N, K] for N={num_images} images"
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"targets are {targets.dtype} and must be integers: class numbers, not scores or one-hot rows")
    wrong = (targets < 0) | (targets >= classes)
    if wrong.any():
        raise InputError(
            f"target {targets[wrong][0]} is out of range; the network has {classes} classes, 0 to {classes - 1}"
        )
    return targets.astype(np.int32).reshape(num_images, -1)


def _warn_of_box(apply_fn, variables, x_NYXC, options: dict) -> None:
    """Warns where images leave the bounds of the z-box rule; relevance there would change its sign."""
    composite, low, high = options.get("composite", "auto"), options.get("low", -1.0), options.get("high", 1.0)
    if composite not in ("auto", "epsilon_gamma_box") or isinstance(x_NYXC, jax.core.Tracer):
        return
    if bool(((x_NYXC >= low) & (x_NYXC <= high)).all()):
        return
    if composite == "auto":
        traced = graph.trace(apply_fn, variables, jax.ShapeDtypeStruct((1, *x_NYXC.shape[1:]), x_NYXC.dtype))
        composite = composites.default(layers.read(traced))
    if composite == "epsilon_gamma_box":
        warnings.warn(
            f"x runs from {float(x_NYXC.min()):.4g} to {float(x_NYXC.max()):.4g}, past low and high of the z-box rule "
            "in the first layer; pass the least and the largest value that an input can have as low= and high= "
            "(numbers, or arrays for each channel)",
            stacklevel=3,
        )


def default_batch_size(height: int, width: int, together: int = 1) -> int:
    """Images in a batch, by backend and size: enough to fill the device, few enough for its memory.

    Args:
        height: rows of an image.
        width: columns of an image.
        together: backward passes of one image that a method takes at once.
    """
    pixels = PIXELS_CPU if jax.default_backend() == "cpu" else PIXELS
    return int(np.clip(pixels // (height * width * together), 1, 512))


def _freeze(value):
    """Lists as tuples, so that an option can name a compiled program."""
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(method_fn, apply_fn, settings, variables, x_NYXC, targets_NK, arrays):
    return method_fn(apply_fn, variables, x_NYXC, targets_NK, **dict(settings), **arrays)


# jax.jit would look up a program by its shapes; the parts are several programs, so they have a cache of their own.
@functools.lru_cache(maxsize=32)
def _parts(method_fn, apply_fn, settings, structure, leaves):
    """The program in two parts, see `hoisting`; the cache's key is what the program was traced for."""

    def fn(variables, inputs):
        x_NYXC, targets_NK, arrays = inputs
        return method_fn(apply_fn, variables, x_NYXC, targets_NK, **dict(settings), **arrays)

    # images and targets stay in one part, because XLA frees a buffer after its last use only within a program
    return hoisting.split(fn, *jax.tree.unflatten(structure, leaves))


def _in_parts(method_fn, apply_fn, settings, variables, x_NYXC, targets_NK, arrays, prepared):
    """As `_compiled`, but work on weights is done once for all calls and kept in `prepared`."""
    inputs = (jnp.asarray(x_NYXC), jnp.asarray(targets_NK), arrays)
    leaves, structure = jax.tree.flatten((variables, inputs))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    prepare, finish = _parts(method_fn, apply_fn, settings, structure, shapes)
    if prepare not in prepared:
        prepared[prepare] = prepare(variables)
    return finish(prepared[prepare], inputs)


def build(
    apply_fn: Callable, variables: Any, *, method: str = "lrp", key: jax.Array | None = None, **options: Any
) -> Callable:
    """`fn(x_NYXC, targets_NK, ids_N) -> maps_NKYX`, compiled once for each shape; inputs are not checked.

    The function is one program and may be called inside another, unless the method is LIME or loops on the host
    (driver="host", the default of multi-step methods on CPUs).

    Args:
        apply_fn: `(variables, x_NYXC) -> logits_NC`, or a pair that begins with them.
        variables: its parameters and statistics.
        method: a key of METHODS.
        key: for methods that draw random numbers; an image's own come from it and its number in `ids_N`.
        options: of the method; see its docstring. With return_delta=True, `fn` returns (maps, delta_NK).

    Raises:
        InputError: an unknown method or option, or a missing key.
    """
    check_options(method, options, has_key=key is not None)
    method_fn, apply_fn = METHODS[method], steps.hashable(apply_fn)
    if "driver" in options_of(method):
        options["driver"] = steps.choose(options.get("driver"))
    # options that are arrays are inputs of the program; the others are part of its name, so they must be hashable
    arrays = {name: value for name, value in options.items() if isinstance(value, np.ndarray | jax.Array)}
    settings = {name: _freeze(value) for name, value in options.items() if name not in arrays}

    prepared: dict[Callable, Any] = {}
    compiled: set = set()

    def fn(x_NYXC, targets_NK, ids_N=None, **own):
        fitness.check(apply_fn, variables, x_NYXC.shape, method=method)
        ids_N = jnp.arange(len(x_NYXC)) if ids_N is None else ids_N
        drawn = {name: value for name, value in (("ids_N", ids_N), ("key", key)) if name in _keywords(method)}
        inputs = {**arrays, **drawn, **own}
        if method in ON_HOST or settings.get("driver") == "host":
            return method_fn(apply_fn, variables, jnp.asarray(x_NYXC), jnp.asarray(targets_NK), **settings, **inputs)
        static = tuple(sorted(settings.items()))  # sorted: the order of keywords does not compile anew
        arguments = (variables, x_NYXC, targets_NK, inputs)
        is_traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
        is_on_cpu = jax.default_backend() == "cpu" and not is_traced
        if method in HOISTED and is_on_cpu:
            out = _in_parts(method_fn, apply_fn, static, *arguments, prepared)
        else:
            # compiling leaves memory behind, which is given back before the program runs
            memory.compile_first(_compiled, compiled, *arguments, static=(method_fn, apply_fn, static))
            out = _compiled(method_fn, apply_fn, static, *arguments)
        return jax.block_until_ready(out) if is_on_cpu else out  # otherwise queued batches pile up in host memory

    return fn


def explain(
    apply_fn: Callable,
    variables: Any,
    x: Any,
    targets: Any,
    *,
    method: str = "lrp",
    key: jax.Array | None = None,
    batch_size: int | None = None,
    driver: str | None = None,
    return_delta: bool = False,
    **options: Any,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """One map an image of what the network's logit for a class rests on.

    Args:
        apply_fn: `(variables, x_NYXC) -> logits_NC`, or a pair of them and a dict of activations.
        variables: the network's parameters and statistics.
        x: images [N, Y, X, C] as the network reads them (normalised).
        targets: class numbers, [N] or [N, K]; an image's K maps share its forward pass.
        method: a key of METHODS.
        key: for "smoothgrad" and "lime". Image i draws from `fold_in(key, i)`, whatever the batch size.
        batch_size: images at a time; the last batch is filled up, so that one program serves all. None:
            `default_batch_size`.
        driver: "host", "scan" or "flat" for methods of many steps, see `steps`; None: the backend's.
        return_delta: also an error for each map: of conservation, as a share of the logit (lrp), or of completeness, in
            logits (integrated_gradients).
        options: of the method; see its docstring.

    Returns:
        maps [N, Y, X] for targets [N], [N, K, Y, X] for [N, K], float32; with `return_delta` also [N] or [N, K].

    Raises:
        InputError: images, targets or options that cannot be used, before any work on the device.
    """
    options = dict(options, **({"driver": driver} if driver is not None else {}))
    options.update({"return_delta": True} if return_delta else {})
    check_options(method, options, has_key=key is not None)
    if key is not None:
        check_key(key)
    try:
        targets = np.asarray(targets)
    except ValueError as error:  # rows of different lengths
        raise InputError("targets must be class numbers [N] or [N, K], as many for each image") from error
    x_NYXC, apply_fn = check_images(x), steps.hashable(apply_fn)
    num_images = len(x_NYXC)
    is_single = targets.ndim == 1
    within("[1, inf)", batch_size=batch_size, hint="; leave it out for the backend's own")
    # LRP walks back for all targets of an image at once, so K targets take the memory of K images
    together = max(targets.shape[1], 1) if targets.ndim == 2 and method == "lrp" else 1
    height, width = x_NYXC.shape[1:3]
    batch_size = min(batch_size or default_batch_size(height, width, together), num_images)
    classes = num_classes(apply_fn, variables, (batch_size, *x_NYXC.shape[1:]))
    targets_NK = check_targets(targets, num_images, classes)
    # an array with a row for each image is cut into batches as the images are
    segments_NYX = options.pop("segments_NYX", None)
    if segments_NYX is not None and np.shape(segments_NYX) != x_NYXC.shape[:3]:
        raise InputError(
            f"segments_NYX of shape {np.shape(segments_NYX)} must be {x_NYXC.shape[:3]}, as the images are"
        )
    if method == "lrp":
        _warn_of_box(apply_fn, variables, x_NYXC, options)
    fn = build(apply_fn, variables, method=method, key=key, **options)
    batches = []
    for first in range(0, num_images, batch_size):
        rows = np.arange(first, first + batch_size)
        rows[rows >= num_images] = 0  # image 0 fills the last batch up and is cut off below
        x = x_NYXC if batch_size == num_images else x_NYXC[rows]
        own = {} if segments_NYX is None else {"segments_NYX": np.asarray(segments_NYX)[rows]}
        batches.append(fn(x, targets_NK[rows], rows.astype(np.int32), **own))
    maps = jax.tree.map(lambda *parts: jnp.concatenate(parts)[:num_images], *batches)
    return jax.tree.map(lambda a: a[:, 0], maps) if is_single else maps
