"""Products with kernels that an adapter changes: x (W + A B), where W + A B is made anew for each pass.

Beside a product with W, those with A and B are thin: each reads or writes a whole activation for a few columns, and
their result is added in one pass more. Added to the kernel instead, A B costs what a few rows of x would, and neither
the forward pass nor the gradient of x sees an adapter. The gradients of A and B come from thin products as before, and
no gradient of W's size is made unless somebody differentiates by W. The sum is not kept for the backward pass, which
would take a second copy of all weights.

In half precision W + A B would round away what an adapter learns, so this is for float32.

Dimensions: N rows, X inputs and Y outputs of a kernel, R rank.
"""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Kernels = Mapping[str, jax.Array]


@jax.custom_vjp
def products(x_NX: jax.Array, kernels: Kernels, a: Kernels, b: Kernels) -> dict[str, jax.Array]:
    """`x (W + A B)` [N,Y] by name.

    Args:
        kernels: [X,Y] of each name, either side split over several axes or not. They are made two-sided in here,
            because what the backward pass keeps of a scan's arrays is a copy unless it is the array itself.
        a, b: [X,R] and [R,Y] of each name, with B scaled.
    """
    return {name: x_NX @ _merged(kernels[name], a[name], b[name]) for name in kernels}


def _merged(kernel, a_XR, b_RY):
    return kernel.reshape(a_XR.shape[0], -1) + a_XR @ b_RY


def beside(x_NX: jax.Array, kernels: Kernels, a: Kernels, b: Kernels) -> dict[str, jax.Array]:
    """`x W + x A B`, with products of its own for A and B; the arguments are those of `products`."""
    ends = list(itertools.accumulate(a[name].shape[1] for name in kernels))
    each_NR = jnp.split(x_NX @ jnp.concatenate([a[name] for name in kernels], axis=1), ends[:-1], axis=1)
    X = x_NX.shape[1]
    return {name: x_NX @ kernels[name].reshape(X, -1) + low_NR @ b[name] for name, low_NR in zip(kernels, each_NR)}


def _forward(x, kernels, a, b):
    values = jax.tree.map(lambda leaf: leaf.value, (x, kernels, a, b), is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    # what differs is the tree alone, so that it is known when the backward pass is traced
    is_kernel_wanted = any(kernel.perturbed for kernel in kernels.values())
    return products(*values), (values, {"kernels": ()} if is_kernel_wanted else {})


def _backward(residuals, gradients):
    (x_NX, kernels, a, b), wanted = residuals
    num = x_NX.shape[0]
    g = {
        name: jnp.zeros((num, b[name].shape[1]), x_NX.dtype) if isinstance(g_NY, SymbolicZero) else g_NY
        for name, g_NY in gradients.items()
    }
    names = list(kernels)
    x_gradient_NX = sum(g[name] @ _merged(kernels[name], a[name], b[name]).T for name in names)
    # One product for all A: those of a few columns each run at a fraction of the speed.
    low_NR = x_NX @ jnp.concatenate([a[name] for name in names], axis=1)
    back_NR = jnp.concatenate([g[name] @ b[name].T for name in names], axis=1)
    # On a CPU a product over a side of the activations is fast where its result has few columns, and one over their
    # rows where it has few rows; transposed each takes several times as long. The compiler, which transposes products
    # to spare a transpose of what comes after, does not look through a barrier.
    low_NR, back_NR = jax.lax.optimization_barrier((low_NR, back_NR))
    a_gradient_RX = jax.lax.optimization_barrier(back_NR.T @ x_NX)
    a_gradients, b_gradients, end = {}, {}, 0
    for name in names:
        start, end = end, end + a[name].shape[1]
        a_gradients[name] = a_gradient_RX[start:end].T
        b_gradients[name] = low_NR[:, start:end].T @ g[name]
    kernel_gradients = {name: (x_NX.T @ g[name]).reshape(kernels[name].shape) for name in names} if wanted else None
    return x_gradient_NX, kernel_gradients, a_gradients, b_gradients


products.defvjp(_forward, _backward, symbolic_zeros=True)  # so that `_forward` learns what is differentiated
