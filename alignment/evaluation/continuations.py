"""How likely a model finds given continuations of given prompts.

Dimensions: N sequences, T time, B sequences of a batch, C choices of a question.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignment import logprobs
from alignment.errors import InputError
from alignment.models import decoder
from alignment.train import sharding

STEP = 32  # lengths are rounded up to multiples of this, so that few programs are compiled

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of its continuation


def logps(
    model: decoder.DecoderLM,
    params: Any,
    pairs: Sequence[Pair],
    mesh: Mesh,
    *,
    pad_id: int = 0,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each continuation after its prompt.

    Args:
        pairs: a prompt of at least one token and a continuation of at least one.
        batch_size: rows of a batch, a multiple of what the mesh splits them over.

    Returns:
        total_N: nats, summed over the tokens of the continuation; length_N: its tokens. Neither depends on how the
        sequences are batched.
    """
    for n, (prompt, rest) in enumerate(pairs):
        if not len(prompt) or not len(rest):
            raise InputError(f"sequence {n} has {len(prompt)} tokens of prompt and {len(rest)} after it; both need one")
    lengths_N = np.array([len(prompt) + len(rest) - 1 for prompt, rest in pairs], np.int64)
    shapes_N = -(-lengths_N // STEP) * STEP
    total_N = np.zeros(len(pairs))
    share = sharding.row_share(mesh)
    num_mine = batch_size // share["process_count"]
    mine = slice(share["process_index"] * num_mine, (share["process_index"] + 1) * num_mine)
    sharding.check_batch(batch_size, mesh)
    with sharding.activations(mesh):
        for num_time in sorted(set(shapes_N.tolist())):
            alike = np.flatnonzero(shapes_N == num_time)
            for at in range(0, len(alike), batch_size):
                index = alike[at : at + batch_size]
                rows = _batch([pairs[i] for i in index], num_time, batch_size, pad_id)
                batch = sharding.to_devices({name: values[mine] for name, values in rows.items()}, mesh)
                total_N[index] = sharding.to_host(_totals(model, params, batch, mesh))[: len(index)]
    return total_N, np.array([len(rest) for _, rest in pairs])


def best(total_NC: np.ndarray, length_NC: np.ndarray | None = None) -> np.ndarray:
    """The most likely choice of each question, [N]; of equals the first.

    Args:
        length_NC: tokens of each choice, to compare means per token in place of sums.
    """
    scores_NC = total_NC if length_NC is None else total_NC / length_NC
    return np.argmax(scores_NC, axis=1)


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def _totals(model: decoder.DecoderLM, params: Any, batch: dict[str, jax.Array], mesh: Mesh) -> jax.Array:
    """Log-probability of each row's masked tokens, summed."""
    hidden_BTD: Any = model.apply(decoder.variables(params), batch["tokens"], batch["positions"], batch["groups"])
    head_DV = decoder.head(model, params)
    logps_BT = logprobs.selected(hidden_BTD, head_DV, None, batch["targets"], mask_NM=batch["mask"], mesh=mesh)
    return (logps_BT * batch["mask"]).sum(axis=1)


def _batch(pairs: Sequence[Pair], num_time: int, num_rows: int, pad_id: int) -> dict[str, np.ndarray]:
    batch = {name: np.zeros((num_rows, num_time), np.int32) for name in ("tokens", "positions", "groups", "targets")}
    batch["tokens"][:] = pad_id
    batch["mask"] = np.zeros((num_rows, num_time), np.float32)
    for n, (prompt, rest) in enumerate(pairs):
        ids = np.concatenate([np.asarray(prompt, np.int32), np.asarray(rest, np.int32)])
        here = slice(0, len(ids) - 1)
        batch["tokens"][n, here], batch["targets"][n, here] = ids[:-1], ids[1:]
        batch["positions"][n, here] = np.arange(len(ids) - 1)
        batch["groups"][n, here] = 1
        batch["mask"][n, len(prompt) - 1 : len(ids) - 1] = 1
    return batch
