"""The exact bilevel problem, slowly: weights and labels of a fixed augmented set by gradients through all of training.

SAFLEX replaces it by one linear step; here every training step is unrolled, so it is for toys alone.

Dimensions: N training rows, M augmented rows, V validation rows, K classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def solve(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    train: tuple[jax.Array, jax.Array],
    augmented: tuple[jax.Array, jax.Array],
    validation: tuple[jax.Array, jax.Array],
    *,
    steps: int,
    lr: float,
    outer_steps: int = 30,
    outer_lr: float = 0.3,
) -> tuple[jax.Array, jax.Array]:
    """Weights [M] in [0, 1], divided by M, and labels [M,K] that make the validation loss after training small.

    Args:
        train, augmented, validation: inputs and labels as shares [.,K].
        steps, lr: of the inner training, full-batch gradient descent on mean loss(train) + sum w loss(augmented).
        outer_steps, outer_lr: Adam on the weights' and labels' logits, which begin at 0.9 and near the upstream's.
    """
    num = len(augmented[1])
    outer = {"w": jnp.full((num,), 2.2), "y": jnp.log(0.9 * augmented[1] + 0.1 / augmented[1].shape[-1])}
    tx = optax.adam(outer_lr)

    def loss(params, x, y_BK, w_B):
        return -jnp.sum(w_B * jnp.sum(y_BK * jax.nn.log_softmax(logits_fn(params, x)), axis=-1))

    def uniform(y_BK):
        return jnp.full((len(y_BK),), 1 / len(y_BK))

    def inner(outer):
        w_M, y_MK = jax.nn.sigmoid(outer["w"]) / num, jax.nn.softmax(outer["y"])

        def step(params, _):
            total = lambda p: loss(p, *train, uniform(train[1])) + loss(p, augmented[0], y_MK, w_M)  # noqa: E731
            return jax.tree.map(lambda p, g: p - lr * g, params, jax.grad(total)(params)), None

        # rematerialised: of each step only the parameters are kept for the way back
        trained, _ = jax.lax.scan(jax.checkpoint(step), params, None, length=steps)
        return loss(trained, *validation, uniform(validation[1]))

    def outer_step(carry, _):
        outer, opt_state = carry
        changes, opt_state = tx.update(jax.grad(inner)(outer), opt_state, outer)
        return (optax.apply_updates(outer, changes), opt_state), None

    (outer, _), _ = jax.lax.scan(outer_step, (outer, tx.init(outer)), None, length=outer_steps)
    return jax.nn.sigmoid(outer["w"]) / num, jax.nn.softmax(outer["y"])
