"""The language model's own loss: pretraining and supervised tuning differ only in the mask that the batch brings."""

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment import logprobs
from alignment.models import decoder
from alignment.train import step


def loss_fn(model: nn.Module, mesh: Mesh | None = None, *, chunk: int = 1024) -> step.LossFn:
    """Negative log-probability of the next token, in nats, averaged over the tokens that count.

    Batches hold `tokens`, `positions`, `groups`, `targets` `[N,T]` int32 and `mask` `[N,T]` float32.
    Metrics: `accuracy` of the most likely token is not read (it would cost a second pass over the vocabulary);
    `tokens` is the share of positions that count.
    """

    def loss(params, batch, *, rng, frozen):
        del rng, frozen  # no dropout, no reference
        hidden_NTD = model.apply({"params": params}, batch["tokens"], batch["positions"], batch["groups"])
        logps_NT = logprobs.selected(
            hidden_NTD, decoder.head(model, params), None, batch["targets"], mesh=mesh, chunk=chunk
        )
        mask_NT = batch["mask"]
        mean = step.Mean(-jnp.sum(logps_NT * mask_NT), jnp.sum(mask_NT))
        return mean, {"tokens": step.Mean(jnp.sum(mask_NT), jnp.asarray(mask_NT.size, jnp.float32))}

    return loss
