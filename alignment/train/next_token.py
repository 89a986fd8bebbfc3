"""The language model's own loss: pretraining and supervised tuning differ only in the mask that the batch brings."""

import dataclasses
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from alignment import logprobs, programs
from alignment.models import decoder, lora
from alignment.train import loop, optimizer, sharding, step, train_state, utilisation


def loss_fn(model: decoder.DecoderLM, mesh: Mesh | None = None, *, chunk: int = 512) -> step.LossFn:
    """Negative log-probability of the next token, in nats, averaged over the tokens that count.

    Batches hold `tokens`, `positions`, `groups`, `targets` `[N,T]` int32 and `mask` `[N,T]` float32; those of prefix
    trees `ends` in place of groups, and `sources`, the place in the row that predicts each target.
    The one metric, `tokens`, is the number of targets that count over that of places.
    """
    return programs.Computation(_loss, dict(model=model, mesh=mesh, chunk=chunk))


def _loss(params, batch, *, model, mesh, chunk, rng, frozen):  # no dropout, no reference: rng and frozen go unused
    mask_NT = batch["mask"]
    places = (batch["tokens"], batch["positions"], batch.get("groups"))
    hidden_NTD = model.apply(decoder.variables(params), *places, ends_BT=batch.get("ends"))
    head_DV, sources_NT = decoder.head(model, params), batch.get("sources")
    logps_NT = logprobs.selected(
        hidden_NTD, head_DV, sources_NT, batch["targets"], mask_NM=mask_NT, mesh=mesh, chunk=chunk
    )
    # Total and count, not a mean: rows have different numbers of tokens that count, and each token counts alike.
    mean = step.Mean(-jnp.sum(logps_NT * mask_NT), jnp.sum(mask_NT))
    return mean, {"tokens": step.Mean(jnp.sum(mask_NT), jnp.asarray(mask_NT.size, jnp.float32))}


def fit(
    model: decoder.DecoderLM,
    params: Any,
    train: loop.Loader,
    heldout: Any,
    mesh: Mesh,
    workdir: str | pathlib.Path,
    *,
    tx: optax.GradientTransformation,
    seed: int,
    steps: int,
    batch_size: int,
    accumulate: int = 1,
    state: train_state.TrainState | None = None,
    adapter: lora.Adapter | None = None,
    pace: loop.Pace,
    logging: loop.Logging,
) -> tuple[train_state.TrainState, dict[str, float]]:
    """Train a language model on next tokens; resumes like every run of `loop.fit`.

    Args:
        params: a checkpoint's parameters, or None to draw them from `seed`.
        state, adapter: of `adapters.create`, to train an adapter; `params` is not read then.
        train, heldout: endless and finite batches.
        batch_size: rows of a batch over all hosts, for checking it against the mesh.
        pace, logging: of `loop.fit`; the unit is rows.

    Returns:
        As `loop.fit`, with `heldout/perplexity`, the exponential of the held-out loss per token.
    """
    sharding.check_batch(batch_size, mesh, accumulate)
    objective = loss_fn(model, mesh)
    if adapter is not None:
        objective = lora.loss_fn(objective, adapter)
    if state is None:
        state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=seed, mesh=mesh, params=params)
    state, summary = loop.fit(
        step.build(objective, tx, accumulate=accumulate, rate_fn=optimizer.learning_rate),
        state,
        train,
        {"heldout": loop.evaluator(objective, heldout)},
        mesh,
        workdir,
        steps=steps,
        pace=pace,
        logging=dataclasses.replace(
            logging, unit="rows", units_per_step=batch_size, flops_fn=utilisation.counter(model, adapter)
        ),
    )
    if "heldout/loss" in summary:  # absent where nothing was held out
        summary = {**summary, "heldout/perplexity": math.exp(min(summary["heldout/loss"], 700.0))}
    return state, summary
