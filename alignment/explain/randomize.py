"""Sanity tests of a rating, in which there is nothing to explain: weights or layers redrawn, targets moved.

R1 `fully` scores 0.5, and along R2 `cascade` a score falls from its trained value to that. R3 `absent_targets` scores
less the better a method tells classes apart: the mosaic's three classes compete for a class that is none of them, and
the target is one of the three, so it lies between 1/3 (all relevance to whichever class is most alike) and 1/2.
The initialisers are those of the Focus authors' code; the forward pass says which layers are the top ones.

Dimensions: M mosaics, 4 tiles.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError

Variables = Mapping[str, Any]
Path = tuple[str, ...]  # of a module: ("layer1", "block0", "conv1")
FRESH = {"bias": 0.0, "scale": 1.0, "mean": 0.0, "var": 1.0}  # initial values of arrays other than weights


def fully(variables: Variables, key: jax.Array) -> dict[str, Any]:
    """R1: every convolution and dense layer Xavier-uniform, biases zero, norms and their statistics as at the start.

    Other parameters (class tokens, positions) are drawn from N(0, 0.02^2).
    """
    flat = flax.traverse_util.flatten_dict(nn.meta.unbox(dict(variables)))
    return flax.traverse_util.unflatten_dict({path: _fresh(path, value, key) for path, value in flat.items()})


def cascade(
    variables: Variables, num_layers: int, key: jax.Array, *, order: Sequence[Path] | None = None
) -> dict[str, Any]:
    """R2: the last `num_layers` weight layers redrawn, and the norms after the first of them; 0 changes nothing.

    Convolutions He-normal by fan-out, dense layers N(0, 0.01^2), biases zero. A layer gets the same draw whatever
    `num_layers` is, so that a longer cascade only adds to a shorter one.

    Args:
        order: modules in order of computation, from `layers`; None takes the parameter tree's own order, which is that
            of computation only where nothing has sorted it.
    """
    flat = flax.traverse_util.flatten_dict(nn.meta.unbox(dict(variables)))
    order = list(order) if order is not None else list(dict.fromkeys(path[1:-1] for path in flat))
    has_weight = {path[1:-1] for path in flat if path[-1] == "kernel"}
    weights = [path for path in order if path in has_weight]
    if not 0 <= num_layers <= len(weights):
        raise InputError(f"num_layers={num_layers}; this network has {len(weights)} layers to redraw, 0 to all of them")
    # norms and other modules after the first redrawn layer are redrawn with it: their statistics fit no new weights
    first = order.index(weights[-num_layers]) if num_layers else len(order)
    redrawn = set(order[first:])
    missing = has_weight - set(order)
    if missing:
        raise InputError(f"the order of layers does not name {'/'.join(sorted(missing)[0])}; take it from layers()")
    changed = {
        path: _from_the_top(path, value, key) if path[1:-1] in redrawn else value for path, value in flat.items()
    }
    return flax.traverse_util.unflatten_dict(changed)


def layers(apply_fn: Callable[..., Any], variables: Variables, x_NYXC: jax.Array) -> list[Path]:
    """Modules that have parameters, in the order in which a forward pass calls them; nothing is computed.

    Works on linen modules; for a forward pass without any, the order of the parameter tree.
    """
    with_parameters = {path[1:-1]: None for path in flax.traverse_util.flatten_dict(dict(variables))}
    called: dict[Path, None] = {}

    def note(next_fn: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if context.method_name == "__call__" and context.module.path in with_parameters:
            called.setdefault(context.module.path)
        return next_fn(*args, **kwargs)

    # eval_shape runs the modules' Python code without computing, and the interceptor sees each call
    shape = jax.ShapeDtypeStruct(x_NYXC.shape, x_NYXC.dtype)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: apply_fn(v, x), variables, shape)
    return [*called, *(path for path in with_parameters if path not in called)]


def cascade_counts(variables: Variables, points: int) -> list[int]:
    """Numbers of layers to redraw, from none to all of them in about `points` equal steps (at least two)."""
    return sorted({round(k) for k in np.linspace(0, num_weight_layers(variables), max(points, 2))})


def num_weight_layers(variables: Variables) -> int:
    """L, the longest cascade."""
    return len({path for path in flax.traverse_util.flatten_dict(dict(variables)) if path[-1] == "kernel"})


def absent_targets(tile_label_M4: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """R3: for each mosaic a class drawn from those that no tile shows, int32 [M]; the original tiles are then scored.

    Raises:
        InputError: when a mosaic shows every class there is, which with two or three classes can happen.
    """
    tile_label_M4 = np.asarray(tile_label_M4)
    is_absent_MC = np.ones((len(tile_label_M4), num_classes), bool)
    np.put_along_axis(is_absent_MC, tile_label_M4, False, axis=1)
    full = np.flatnonzero(~is_absent_MC.any(1))
    if len(full):
        raise InputError(
            f"mosaic {full[0]} shows all {num_classes} classes ({len(full)} do), so that no absent one can be "
            "explained; this test needs more classes than a mosaic shows, five to be safe"
        )
    # the largest of independent uniform draws over the absent classes: each of them is equally likely
    draws_MC = np.random.default_rng(seed).random(is_absent_MC.shape)
    return np.argmax(np.where(is_absent_MC, draws_MC, -1.0), axis=1).astype(np.int32)


def _key_of(path: Path, key: jax.Array) -> jax.Array:
    """A key for this array, from its name alone, so that it does not depend on other layers."""
    return jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))  # not hash(), which differs between processes


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a weight that one number is connected to; the last axis holds the outputs."""
    if len(shape) == 4:  # [rows, columns, in (of a group), out]
        window = shape[0] * shape[1]
        return window * shape[2], window * shape[3]
    return math.prod(shape[:-1]), shape[-1]


def _is_weight(path: Path, value: jax.Array) -> bool:
    return path[-1] == "kernel" and value.ndim >= 2


def _fresh(path: Path, value: jax.Array, key: jax.Array) -> jax.Array:
    if path[-1] in FRESH:
        return jnp.full(value.shape, FRESH[path[-1]], value.dtype)
    if not _is_weight(path, value):
        return (0.02 * jax.random.normal(_key_of(path, key), value.shape)).astype(value.dtype)
    bound = math.sqrt(6 / sum(_fans(value.shape)))  # Glorot & Bengio 2010, Eq. 16
    return jax.random.uniform(_key_of(path, key), value.shape, jnp.float32, -bound, bound).astype(value.dtype)


def _from_the_top(path: Path, value: jax.Array, key: jax.Array) -> jax.Array:
    if not _is_weight(path, value):
        return _fresh(path, value, key)
    # He et al. 2015 by fan-out for convolutions; for dense layers N(0, 0.01^2), as torchvision's VGG has it
    std = math.sqrt(2 / _fans(value.shape)[1]) if value.ndim == 4 else 0.01
    return (std * jax.random.normal(_key_of(path, key), value.shape)).astype(value.dtype)
