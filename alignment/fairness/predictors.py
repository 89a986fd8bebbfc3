"""Small predictors, and what they learn from: losses and scores of each place.

Networks map [N, ...] to outputs [N,O] and the encoding before the last layer [N,E]. A single output is the logit of
class 1, or a number; several are the logits of classes.

Dimensions: N samples, S places, Q samples of a place, T time, D features, O outputs, E width of the encoding.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alignment import errors
from alignment.errors import InputError

LOGISTIC, SOFTMAX, DICE, SQUARED = "logistic", "softmax", "dice", "squared"
LOSSES = (LOGISTIC, SOFTMAX, DICE, SQUARED)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": jnp.tanh, "relu": nn.relu}
MLP, LSTM = "mlp", "lstm"
NETWORKS = (MLP, LSTM)


class Mlp(nn.Module):
    """Dense layers; `init_std` draws kernels from a normal of that deviation cut at two, None scales them by width."""

    outputs: int
    widths: Sequence[int] = (16,)
    activation: str = "tanh"
    init_std: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.reshape(len(x), -1)
        draws = nn.initializers.lecun_normal()
        if self.init_std is not None:
            draws = nn.initializers.truncated_normal(self.init_std)
        for i, width in enumerate(self.widths):
            x = ACTIVATIONS[self.activation](nn.Dense(width, name=f"hidden_{i}", kernel_init=draws)(x))
        return nn.Dense(self.outputs, name="out", kernel_init=draws)(x), x


class Lstm(nn.Module):
    """The last state of an LSTM over [N,T,D]."""

    outputs: int
    width: int = 64

    @nn.compact
    def __call__(self, x_NTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        states_NTE: jax.Array = nn.RNN(nn.OptimizedLSTMCell(self.width), name="lstm")(x_NTD)  # type: ignore[assignment]  # without its carry
        return nn.Dense(self.outputs, name="out")(states_NTE[:, -1]), states_NTE[:, -1]


def build(
    name: str, outputs: int, *, widths: Sequence[int], activation: str = "tanh", init_std: float | None = None
) -> Mlp | Lstm:
    """A network of NETWORKS.

    Raises:
        InputError: an unknown name or activation, or widths that the network cannot have.
    """
    errors.one_of("predictor", name, NETWORKS)
    errors.one_of("activation", activation, ACTIVATIONS)
    if not widths or min(widths) < 1 or (name == LSTM and len(widths) > 1):
        raise InputError(f"widths={tuple(widths)}: a width each layer, at least 1; an lstm has a single layer")
    if name == LSTM:
        return Lstm(outputs, widths[0])
    return Mlp(outputs, tuple(widths), activation, init_std)


def num_outputs(loss: str, num_classes: int) -> int:
    """Outputs of a network that learns by this loss."""
    return num_classes if loss in (SOFTMAX, DICE) else 1


def place_losses(outputs_SQO: jax.Array, y_SQ: jax.Array, weight_SQ: jax.Array, *, loss: str) -> jax.Array:
    """The loss of each place, [S]: a mean over its samples, or for `dice` 1 - 2 sum(p y) / (sum p + sum y), averaged
    over classes, which is one number for all samples of the place (Xie et al. 2022).

    Args:
        weight_SQ: 0 for filling, 1 otherwise.
    """
    if loss == DICE:
        share_SQO = jax.nn.softmax(outputs_SQO) * weight_SQ[..., None]
        is_class_SQO = jax.nn.one_hot(y_SQ, outputs_SQO.shape[-1]) * weight_SQ[..., None]
        both_SO = jnp.sum(share_SQO * is_class_SQO, axis=1)
        whole_SO = jnp.sum(share_SQO + is_class_SQO, axis=1)
        return jnp.mean(1 - 2 * both_SO / jnp.maximum(whole_SO, 1e-12), axis=-1)
    if loss == SOFTMAX:
        losses_SQ = optax.softmax_cross_entropy_with_integer_labels(outputs_SQO, y_SQ)
    elif loss == LOGISTIC:
        # -log sigmoid of the margin: one logarithm and one exponential, where the usual formula has two of each.
        losses_SQ = jax.nn.softplus(outputs_SQO[..., 0] * (1.0 - 2.0 * y_SQ))
    else:
        losses_SQ = (outputs_SQO[..., 0] - y_SQ) ** 2
    return jnp.sum(losses_SQ * weight_SQ, axis=1) / jnp.maximum(jnp.sum(weight_SQ, axis=1), 1)


def predictions(outputs: jax.Array, *, loss: str) -> jax.Array:
    """Classes as int32, or numbers, from outputs [..., O]."""
    if loss == SQUARED:
        return outputs[..., 0]
    if loss == LOGISTIC:
        return (outputs[..., 0] > 0).astype(jnp.int32)
    return jnp.argmax(outputs, axis=-1).astype(jnp.int32)


def place_scores(outputs_SQO: jax.Array, y_SQ: jax.Array, weight_SQ: jax.Array, *, loss: str) -> jax.Array:
    """Quality of each place without gradients, [S]: accuracy, or minus the root mean squared error."""
    predicted_SQ = predictions(outputs_SQO, loss=loss)
    right_SQ = -((predicted_SQ - y_SQ) ** 2) if loss == SQUARED else (predicted_SQ == y_SQ).astype(jnp.float32)
    mean_S = jnp.sum(right_SQ * weight_SQ, axis=1) / jnp.maximum(jnp.sum(weight_SQ, axis=1), 1)
    return -jnp.sqrt(-mean_S) if loss == SQUARED else mean_S


def overall_score(score_S: jax.Array, weight_S: jax.Array, *, loss: str) -> jax.Array:
    """The quality on all samples of places with equally many samples each, from `place_scores`."""
    total = jnp.sum(weight_S)
    if loss == SQUARED:
        return -jnp.sqrt(jnp.sum(score_S**2 * weight_S) / total)
    return jnp.sum(score_S * weight_S) / total
