"""Training a scorer's head in JAX, on the loop that every training run shares.

Batches hold `labels` [N] int32 levels, `weights` [N] float32 (0 for rows that fill up a batch), and either `ids` and
`values` [N,K], for a head on hashed n-grams, or `inputs` [N,D], for a head on embeddings.

Dimensions: N texts, K entries of a row, D width of an embedding, F of the hidden layer, B buckets, C levels, O outputs.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from alignment import programs
from alignment.filtering.scores import heads
from alignment.train import loop, optimizer, sharding, step, train_state

INPUTS = ("ids", "values", "inputs")


class Hashed(nn.Module):
    """A row of weights for each bucket; a text's outputs are the weighted sum of the rows of its entries."""

    buckets: int
    num_outputs: int
    num_thresholds: int = 0

    @nn.compact
    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kernel_BO = self.param("kernel", _boxed(nn.initializers.zeros, "vocab", "classes"), self._shape())
        bias_O = self.param("bias", _boxed(nn.initializers.zeros, "classes"), (self.num_outputs,))
        entries_NKO = jnp.take(kernel_BO, batch["ids"], axis=0)
        return jnp.einsum("NK,NKO->NO", batch["values"], entries_NKO) + bias_O[None], _thresholds(self)

    def _shape(self) -> tuple[int, int]:
        return self.buckets, self.num_outputs


class Dense(nn.Module):
    """One layer on an embedding, or two with a GELU between them."""

    width: int
    num_outputs: int
    num_thresholds: int = 0
    hidden: int = 0  # width of the hidden layer; 0: none

    @nn.compact
    def __call__(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x_ND, width = batch["inputs"], self.width
        if self.hidden:
            init = nn.initializers.lecun_normal()
            hidden_DF = self.param("hidden_kernel", _boxed(init, "embed", "mlp"), (width, self.hidden))
            hidden_bias_F = self.param("hidden_bias", _boxed(nn.initializers.zeros, "mlp"), (self.hidden,))
            x_ND, width = nn.gelu(x_ND @ hidden_DF + hidden_bias_F[None]), self.hidden
        init = nn.initializers.lecun_normal() if self.hidden else nn.initializers.zeros
        kernel_DO = self.param("kernel", _boxed(init, "embed", "classes"), (width, self.num_outputs))
        bias_O = self.param("bias", _boxed(nn.initializers.zeros, "classes"), (self.num_outputs,))
        return x_ND @ kernel_DO + bias_O[None], _thresholds(self)


def _boxed(init: nn.initializers.Initializer, *names: str) -> Callable[..., Any]:
    """An initialiser whose parameter carries the names of its logical axes."""
    return nn.with_partitioning(init, names)


def _thresholds(module: nn.Module) -> jax.Array:
    """Thresholds that rise whatever the parameters are; empty for the other objectives."""
    if not module.num_thresholds:
        return jnp.zeros((0,))
    raw_C = module.param("thresholds_bias", _boxed(nn.initializers.zeros, "classes"), (module.num_thresholds,))
    return rising(raw_C)


def rising(raw_C: jax.Array) -> jax.Array:
    """The first number as it is, then steps of softplus, which are above 0, from each to the next."""
    return jnp.cumsum(jnp.concatenate([raw_C[:1], jax.nn.softplus(raw_C[1:])]))


def network(about: heads.About, *, num_inputs: int, hidden: int = 0) -> nn.Module:
    """The head of a scorer: `num_inputs` is the number of buckets, or the embedding's width."""
    outputs = heads.num_outputs(about.objective, len(about.levels))
    thresholds = len(about.levels) - 1 if about.objective == "ordinal" else 0
    if about.kind == "linear":
        return Hashed(buckets=num_inputs, num_outputs=outputs, num_thresholds=thresholds)
    return Dense(width=num_inputs, hidden=hidden, num_outputs=outputs, num_thresholds=thresholds)


def losses(
    objective: str, outputs_NO: jax.Array, thresholds_C: jax.Array, labels_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss of each text (in nats, or squared levels for a regression) and its predicted level [N]."""
    if objective == "softmax":
        losses_N = optax.softmax_cross_entropy_with_integer_labels(outputs_NO, labels_N)
        return losses_N, jnp.argmax(outputs_NO, axis=-1)
    if objective == "regression":
        return jnp.square(outputs_NO[:, 0] - labels_N), jnp.round(outputs_NO[:, 0]).astype(jnp.int32)
    # Ordinal from here on.
    above_NC = outputs_NO - thresholds_C[None]  # logits of being above each threshold
    is_first_N, is_last_N = labels_N == 0, labels_N == len(thresholds_C)
    low_N = jnp.take_along_axis(above_NC, jnp.maximum(labels_N - 1, 0)[:, None], axis=1)[:, 0]
    high_N = jnp.take_along_axis(above_NC, jnp.minimum(labels_N, len(thresholds_C) - 1)[:, None], axis=1)[:, 0]
    # P(label) = sigmoid(low) - sigmoid(high) with low > high. The difference would cancel for large logits; it equals
    # sigmoid(low) sigmoid(-high) (1 - exp(high - low)), whose logarithm is a sum of stable terms. The gap is set to 1
    # where the formula is not used, or its gradient would be nan there.
    gap_N = jnp.where(is_first_N | is_last_N, 1.0, low_N - high_N)
    middle_N = jax.nn.log_sigmoid(low_N) + jax.nn.log_sigmoid(-high_N) + jnp.log(-jnp.expm1(-gap_N))
    logps_N = jnp.where(is_last_N, jax.nn.log_sigmoid(low_N), middle_N)
    logps_N = jnp.where(is_first_N, jax.nn.log_sigmoid(-high_N), logps_N)
    return -logps_N, jnp.sum(above_NC > 0, axis=-1)


def loss_fn(model: nn.Module, objective: str) -> step.LossFn:
    """The weighted mean of `losses`, and `accuracy`, in which every text counts alike."""
    return programs.Computation(_loss, dict(model=model, objective=objective))


def _loss(params, batch, *, model, objective, rng, frozen):  # no dropout, no reference: rng and frozen go unused
    outputs_NO, thresholds_C = model.apply({"params": params}, {k: batch[k] for k in INPUTS if k in batch})
    labels_N, weights_N = batch["labels"], batch["weights"]
    losses_N, levels_N = losses(objective, outputs_NO, thresholds_C, labels_N)
    is_real_N = (weights_N > 0).astype(jnp.float32)
    right = step.Mean(jnp.sum((levels_N == labels_N) * is_real_N), jnp.sum(is_real_N))
    return step.Mean(jnp.sum(losses_N * weights_N), jnp.sum(weights_N)), {"accuracy": right}


def fit(
    about: heads.About,
    train: loop.Loader,
    heldout: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    workdir: str | pathlib.Path,
    *,
    num_inputs: int,
    hidden: int = 0,
    tx: optax.GradientTransformation,
    seed: int,
    steps: int,
    batch_size: int,
    pace: loop.Pace,
    logging: loop.Logging,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Train a head; a second start resumes, as every run of `loop.fit` does.

    Args:
        num_inputs: buckets, or the width of the embedding.
        pace, logging: of `loop.fit`; the unit is texts.

    Returns:
        The tensors that `heads.save` writes, on the host, and the summary of `loop.fit`.
    """
    sharding.check_batch(batch_size, mesh)
    model = network(about, num_inputs=num_inputs, hidden=hidden)
    example: Any  # `create` passes it on to the model, for which a batch is a mapping
    if about.kind == "linear":
        example = {"ids": jnp.zeros((1, 1), jnp.int32), "values": jnp.zeros((1, 1))}
    else:
        example = {"inputs": jnp.zeros((1, num_inputs))}
    objective = loss_fn(model, about.objective)
    state, summary = loop.fit(
        step.build(objective, tx, rate_fn=optimizer.learning_rate),
        train_state.create(model, tx, example, seed=seed, mesh=mesh),
        train,
        {"heldout": loop.evaluator(objective, heldout)},
        mesh,
        workdir,
        steps=steps,
        pace=pace,
        logging=dataclasses.replace(logging, unit="texts", units_per_step=batch_size),
    )
    tensors = {name: np.asarray(value, np.float32) for name, value in sharding.to_host(state.params).items()}
    if "thresholds_bias" in tensors:
        tensors["thresholds"] = np.asarray(rising(jnp.asarray(tensors.pop("thresholds_bias"))), np.float32)
    return tensors, summary
