"""Training a language model on rows of text, for all experiments that do it."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from alignment.models import decoder
from alignment.train import next_token, sharding, train_state
from data.texts import preferences, text


def fit(
    model: decoder.DecoderLM,
    params: Any,
    splits: Sequence[text.Texts],
    mesh: Mesh,
    folder: pathlib.Path,
    *,
    seed: int,
    batch_size: int,
    **options: Any,
) -> tuple[train_state.TrainState, dict[str, float]]:
    """`next_token.fit` on shuffled, endless batches of the first split; all of the second one is held out.

    Args:
        params: a checkpoint's parameters; None draws them from `seed`.
        splits: rows to train on, and held-out ones, which may be none.
        batch_size: rows over all hosts.
        options: the other settings of `next_token.fit`.
    """
    train, heldout = splits
    batches_fn = functools.partial(text.batches, batch_size=batch_size, seed=seed, **sharding.row_share(mesh))
    batches = batches_fn(train), batches_fn(heldout, endless=False)
    return next_token.fit(model, params, *batches, mesh, folder, seed=seed, batch_size=batch_size, **options)


def both_answers(all_pairs: Sequence[preferences.Pairs], *, max_len: int, pad_id: int) -> text.Texts:
    """Rows that pack chosen and rejected answers alike, each behind its prompt."""
    texts = [pairs.sequence(i, p) for pairs in all_pairs for i in range(len(pairs)) for p in (0, 1)]
    return text.pack(texts, max_len=max_len, pad_id=pad_id)
