"""GradCAM and GradCAM++: a layer's channels weighted by the gradient of the score.

The forward pass runs once; only the network after the layer is differentiated, once for each target. The layer is an
activation that the network returns, or the path of a linen module. A layer of tokens (ViT) becomes a grid of patches;
tokens in front of them, such as the class token, are dropped.

Dimensions: N images, K targets an image, Y X rows and columns of the image, I J those of the layer, C channels,
T tokens.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignment.errors import InputError, one_of
from alignment.explain import activations, gradients, graph, steps


def default_layer(forward: graph.Graph) -> str:
    """The last activation with rows and columns, in order of computation.

    Of a network that returns activations it is one of those ("attention..." are weights between tokens, not maps);
    otherwise the last module whose output is [N,I,J,C]. Where blocks of tokens come after it (ViT), it is the last
    block but one: only the class token of the last block's output reaches the logits, so its patches have no gradient.

    Raises:
        InputError: there is none.
    """
    names = graph.named(forward)
    returned = {name: value for name, value in names.items() if name in forward.activations}
    for candidates in (returned, names):
        shapes = {n: forward.shapes[v].shape for n, v in candidates.items() if not n.startswith("attention")}
        spatial = [name for name, shape in shapes.items() if len(shape) == 4 and shape[1] * shape[2] > 1]
        after = list(shapes)[list(shapes).index(spatial[-1]) + 1 :] if spatial else list(shapes)
        tokens = [name for name in after if len(shapes[name]) == 3 and name in returned]
        if len(tokens) > 1:
            return tokens[-2]
        if spatial:
            return spatial[-1]
    named = f"name one with layer=: {', '.join(names)}" if names else ""
    raise InputError(
        "no layer of this network has rows and columns; "
        + (named or "return one beside the logits: (logits, {'feature': h}), with h [N, I, J, C] or tokens [N, T, C]")
    )


def value_of(forward: graph.Graph, layer: str) -> int:
    """The value of a layer; "" is `default_layer` after its nonlinearity, or the last of the numbered activations.

    Raises:
        InputError: an unknown layer, with the known ones; no layer with rows and columns.
    """
    names, numbered = graph.named(forward), activations.numbered(forward)
    if layer:
        return {**numbered, **names}[one_of("layer", layer, [*names, *numbered])]
    try:
        name = default_layer(forward)
    except InputError:
        if not numbered:
            raise
        return list(numbered.values())[-1]
    # what a network returns is taken as it is; a module's output may still have its relu before it, as a function
    return names[name] if name in forward.activations else activations.after_nonlinearity(forward, names[name])


def grid(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image, from the number of tokens (patches are square)."""
    for extra in range(min(num_tokens, 6)):  # a class token, a distillation token, up to four registers
        patch = (height * width / (num_tokens - extra)) ** 0.5
        rows, columns = round(height / patch), round(width / patch)
        if rows * columns == num_tokens - extra and abs(height / rows - width / columns) < 1e-6:
            return rows, columns
    raise InputError(
        f"{num_tokens} tokens do not form a grid of square patches of an image of {height} x {width} pixels"
    )


def as_grid(tokens: jax.Array, height: int, width: int, axis: int) -> jax.Array:
    """The token axis as rows and columns; tokens in front of the patches are dropped."""
    rows, columns = grid(tokens.shape[axis], height, width)
    patches = jax.lax.slice_in_dim(tokens, tokens.shape[axis] - rows * columns, None, axis=axis)
    return patches.reshape(*tokens.shape[:axis], rows, columns, *tokens.shape[axis + 1 :])


def resize(maps_NKIJ: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear, with half-pixel centres and no antialiasing: maps_NKYX."""
    shape = (*maps_NKIJ.shape[:2], height, width)
    # As OpenCV and torch resize, with which published maps were made.
    return jax.image.resize(maps_NKIJ.astype(jnp.float32), shape, "bilinear", antialias=False)


def mean_weights(gradients_NKIJC: jax.Array) -> jax.Array:
    """GradCAM, Eq. 1 of Selvaraju et al. 2017 (arXiv:1610.02391): the mean gradient, weights_NKC."""
    return gradients_NKIJC.mean((2, 3))


def plus_plus_weights(activation_NIJC: jax.Array, gradients_NKIJC: jax.Array) -> jax.Array:
    """GradCAM++, Eq. 19 of Chattopadhay et al. 2018 (arXiv:1710.11063): sum of alpha ReLU(g), weights_NKC.

    alpha = g^2 / (2 g^2 + (sum of A) g^3 + 1e-6), and 0 where g is 0.
    """
    # for the exponential of the score, whose higher derivatives are powers of its gradient
    square, cube = gradients_NKIJC**2, gradients_NKIJC**3
    sum_N11 = activation_NIJC.sum((1, 2))[:, None, None, None]
    alpha_NKIJC = jnp.where(gradients_NKIJC != 0, square / (2 * square + sum_N11 * cube + 1e-6), 0.0)
    return (jnp.maximum(gradients_NKIJC, 0) * alpha_NKIJC).sum((2, 3))


def weighted(activation_NIJC: jax.Array, weights_NKC: jax.Array) -> jax.Array:
    """Channels summed with their weights, maps_NKIJ."""
    return jnp.einsum("nijc,nkc->nkij", activation_NIJC, weights_NKC)


@functools.partial(jax.jit, static_argnames=("apply_fn", "layer"))
def _at_layer(
    apply_fn: Callable, variables: Any, x_NYXC: jax.Array, targets_NK: jax.Array, layer: str
) -> tuple[jax.Array, jax.Array]:
    """activation_NIJC of a layer and gradients_NKIJC of the targets' logits there, in float32."""
    height, width = x_NYXC.shape[1:3]
    # a second trace for the layer alone costs no arithmetic
    forward = graph.trace(apply_fn, variables, x_NYXC, keep_custom=True)
    value = value_of(forward, layer)
    activations.check_grid(forward, value, layer, height, width)
    activation, head_fn = graph.split(apply_fn, variables, x_NYXC, value)

    def score_fn(activation):
        return head_fn(activation).astype(jnp.float32)  # seeds and sums of the backward pass in full precision

    # what follows the layer is short, so the targets' backward passes run together
    _, gradients_NK = gradients.of_targets(score_fn, activation, targets_NK, together=True)
    if activation.ndim == 3:
        activation, gradients_NK = as_grid(activation, height, width, 1), as_grid(gradients_NK, height, width, 2)
    if activation.ndim != 4:
        raise InputError(f"layer {layer!r} is {activation.shape}; GradCAM needs [N, I, J, C], or tokens [N, T, C]")
    return activation.astype(jnp.float32), gradients_NK.astype(jnp.float32)


def gradcam(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    layer: str = "",
    relu: bool = True,
    scale: bool = True,
) -> jax.Array:
    """GradCAM, ReLU(sum_c w_c A_c), Eq. 2 of Selvaraju et al. 2017 (arXiv:1610.02391), resized to the image: maps_NKYX.

    Args:
        layer: name of an activation, path of a module, or "activation0", "activation1", ... after each convolution; ""
            is `default_layer` after its nonlinearity, or where layers have no names the last activation.
        relu: keep only what speaks for the class.
        scale: to [0, 1] by each map's smallest and largest value, after resizing.

    Raises:
        InputError: an unknown layer, or one that is not a map of the image.
    """
    activation_NIJC, gradients_NKIJC = _at_layer(steps.hashable(apply_fn), variables, x_NYXC, targets_NK, layer)
    cam_NKIJ = weighted(activation_NIJC, mean_weights(gradients_NKIJC))
    maps_NKYX = resize(jnp.maximum(cam_NKIJ, 0) if relu else cam_NKIJ, *x_NYXC.shape[1:3])
    return gradients.min_max(maps_NKYX) if scale else maps_NKYX


def gradcam_plus_plus(
    apply_fn: Callable,
    variables: Any,
    x_NYXC: jax.Array,
    targets_NK: jax.Array,
    *,
    layer: str = "",
    relu: bool = False,
    scale: bool = True,
) -> jax.Array:
    """GradCAM++ of Chattopadhay et al. 2018 (arXiv:1710.11063), as the Focus paper ran it: maps_NKYX.

    The weighted sum is scaled to [0, 1] by each map's smallest and largest value, without a rectifier before it, and
    then resized. `relu=True` is the order of the GradCAM++ paper and of pytorch-grad-cam. The order matters to Focus:
    without the rectifier, cells that speak against the class become positive relevance.

    Args:
        layer: as for `gradcam`.
        relu: rectify before scaling.
        scale: False leaves the weighted sum as it is.

    Raises:
        InputError: as for `gradcam`.
    """
    activation_NIJC, gradients_NKIJC = _at_layer(steps.hashable(apply_fn), variables, x_NYXC, targets_NK, layer)
    cam_NKIJ = weighted(activation_NIJC, plus_plus_weights(activation_NIJC, gradients_NKIJC))
    cam_NKIJ = jnp.maximum(cam_NKIJ, 0) if relu else cam_NKIJ
    return resize(gradients.min_max(cam_NKIJ) if scale else cam_NKIJ, *x_NYXC.shape[1:3])
