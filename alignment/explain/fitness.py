"""Whether a network can be explained: it must return logits, and each image's must not depend on the others.

Both are read from the traced program, so nothing is computed.  Dimensions: N images, C classes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alignment.errors import InputError
from alignment.explain import graph

# A prime that no layer has as its width: an axis whose length is a multiple of it holds the images of the batch.
IMAGES = 1009
READ_NO_LOGITS = ("attention_rollout",)  # methods that need no logits
_PASSED = {"convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "slice", "rev", "copy"}
_PASSED |= {"broadcast_in_dim", "clamp", "min", "max", "stop_gradient", "reduce_precision", "concatenate", "gather"}
_SCALED = {"add", "sub", "mul", "neg", "div"}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin", "cumsum", "cumprod"}
_REDUCTIONS |= {"reduce_and", "reduce_or", "cummax", "cummin", "cumlogsumexp", "sort"}


def check(apply_fn: Callable, variables: Any, image_shape: tuple[int, ...], *, method: str) -> None:
    """Refuses networks whose maps would mean something else than the caller thinks; each program is read once.

    Args:
        apply_fn: hashable.
        variables: its parameters and statistics.
        image_shape: [N, Y, X, C] of the images.
        method: a key of `explaining.METHODS`.

    Raises:
        InputError: for probabilities in place of logits, and for statistics over the batch.
    """
    leaves, structure = jax.tree.flatten(variables)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.result_type(leaf)) for leaf in leaves)
    ending, mixing = _read(apply_fn, structure, shapes, tuple(image_shape))
    if mixing:
        raise InputError(
            f"the logits of one image depend on the other images of its batch ({mixing}); use the running statistics "
            "of batch norm (use_running_average=True, or the module's evaluation mode), without mutable=['batch_stats']"
        )
    if ending and method not in READ_NO_LOGITS:
        raise InputError(
            f"apply_fn returns probabilities, not logits: its last step is a {ending}. Explanations are of logits; "
            f"return what enters the {ending}"
        )


@functools.lru_cache(maxsize=64)
def _read(apply_fn: Callable, structure: Any, shapes: tuple, image_shape: tuple[int, ...]) -> tuple[str, str]:
    """The function that ends the network in probabilities, and what mixes the images; "" where there is none."""
    variables = jax.tree.unflatten(structure, shapes)
    try:
        traced = _traced(apply_fn, variables, (IMAGES, *image_shape[1:]))
    except Exception:  # the user's own code may insist on a batch size: then only its end is read
        try:
            return _ending(_traced(apply_fn, variables, image_shape)), ""
        except Exception:  # the method itself says what is wrong
            return "", ""
    return _ending(traced), _mixing(traced)


def _traced(apply_fn: Callable, variables: Any, image_shape: tuple[int, ...]) -> graph.Graph:
    return graph.trace(apply_fn, variables, jax.ShapeDtypeStruct(image_shape, np.float32), allow_control=True)


def _ending(traced: graph.Graph) -> str:
    """'sigmoid' or 'softmax' where the logits come out of one, perhaps reshaped, cast, clipped or scaled after it."""
    made = {value: equation for equation in traced.equations for value in equation.outputs}

    def own(value: int) -> list[int]:
        return [v for v in made[value].inputs if v in traced.reads_x] if value in made else []

    def is_exponential(value: int) -> bool:
        while value in made and (made[value].op in _PASSED - {"max", "min"}) and len(own(value)) == 1:
            (value,) = own(value)
        return value in made and made[value].op in ("exp", "exp2")

    value = traced.logits
    while value in made:
        equation, inputs = made[value], own(value)
        if equation.op == "logistic":
            return "sigmoid"
        if equation.op in ("exp", "exp2"):
            return "softmax"
        if equation.op == "div" and inputs:
            if equation.inputs[0] in inputs and is_exponential(equation.inputs[0]):
                return "softmax"
            # 1 / (1 + exp(-z)), written out
            below = made.get(equation.inputs[1])
            if below is not None and below.op == "add" and any(map(is_exponential, below.inputs)):
                return "sigmoid"
        if not inputs or equation.op not in _PASSED | _SCALED:
            return ""
        if len(inputs) > 1 and equation.op != "concatenate":
            return ""
        value = inputs[-1]  # of (1 - p, p) side by side, either
    return ""


def _mixing(traced: graph.Graph) -> str:
    """Where the way to the logits reduces over the images of the batch; "" where it does not."""
    for equation in graph.needed(traced.equations, [traced.logits]):
        if not equation.reads_x:
            continue
        shapes = [traced.shapes[value].shape for value in equation.inputs]
        axes: list[int] = []
        if equation.op in _REDUCTIONS:
            named = equation.params.get("axes", equation.params.get("axis", equation.params.get("dimension", ())))
            axes = [shapes[0][axis] for axis in (named if isinstance(named, tuple) else (named,))]
        elif equation.op == "dot_general":
            axes = [shapes[0][axis] for axis in equation.params["dimension_numbers"][0][0]]
        if any(size and size % IMAGES == 0 for size in axes):
            return f"{equation.op} over the batch" + (f" in {equation.path}" if equation.path else "")
    return ""
