"""BLEURT: an encoder of the BERT family that was trained to grade a candidate beside a reference.

Sellam et al. 2020 (arXiv:2004.04696). The weights are a folder of safetensors as transformers saves a
BertForSequenceClassification of one label, such as a conversion of BLEURT's base-512 checkpoint; none comes with this
project. The score has no fixed range: the published checkpoints give about 0 for unrelated and 1 for equal texts.

Dimensions: B batch, T time, D width, N pairs.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.errors import InputError
from alignment.models import bert, tensors

HEAD = {  # ours -> (its name, of how many outputs; None: as wide as the network)
    "pooler": ("pooler.dense", None),
    "grade": ("classifier", 1),
}


@dataclasses.dataclass(frozen=True)
class Scorer:
    """An encoder with a head that grades pairs of texts."""

    encoder: bert.Encoder
    head: Any

    def score(self, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """A grade of each candidate [N] float32; the longer text of a pair loses its end where both do not fit."""
        pairs = list(zip(references, candidates, strict=True))
        out_N = np.zeros(len(pairs), np.float32)
        encoded = self.encoder.tokenizer.encode_batch(pairs)
        for index, shape in bert.batches([len(one.ids) for one in encoded], self.encoder.max_len):
            tokens_BT, types_BT, mask_BT = (np.zeros(shape, kind) for kind in (np.int32, np.int32, bool))
            for row, i in enumerate(index):
                num = len(encoded[i].ids)
                tokens_BT[row, :num], types_BT[row, :num] = encoded[i].ids, encoded[i].type_ids
                mask_BT[row, :num] = True
            arrays = (self.encoder.params, self.head, tokens_BT, types_BT, mask_BT)
            out_N[index] = np.asarray(_grades(self.encoder.model, *arrays))[: len(index)]
        return out_N


@functools.partial(jax.jit, static_argnames="model")
def _grades(model: bert.Bert, params: Any, head: Any, tokens_BT: Any, types_BT: Any, mask_BT: Any) -> jax.Array:
    states: Any = model.apply({"params": params}, tokens_BT, mask_BT, types_BT)
    pooled_BD = jnp.tanh(states[-1][:, 0] @ head["pooler"]["kernel"] + head["pooler"]["bias"][None])
    return (pooled_BD @ head["grade"]["kernel"] + head["grade"]["bias"][None])[:, 0]


def check(folder: str | pathlib.Path) -> pathlib.Path:
    """The folder, if it has an encoder and the head that grades; no weights are read.

    Raises:
        InputError: a file or a tensor is missing.
    """
    folder = bert.check(folder)
    names = {bert.plain(name) for name in tensors.index(folder)}
    missing = [f"{name}.{part}" for name, _ in HEAD.values() for part in ("weight", "bias")]
    if missing := [name for name in missing if name not in names]:
        raise InputError(f"{folder} lacks {missing[0]}, so it grades nothing; give a BertForSequenceClassification")
    return folder


def load(folder: str | pathlib.Path) -> Scorer:
    """Read a folder; see `check`.

    Raises:
        InputError: as `check`, or a head of more labels than one.
    """
    folder = check(folder)
    encoder = bert.load(folder)
    stored = {bert.plain(name): place for name, place in tensors.index(folder).items()}
    head = {}
    for ours, (name, outputs) in HEAD.items():
        weight, bias = (
            np.asarray(tensors.view(f"{name}.{part}", stored[f"{name}.{part}"]), np.float32)
            for part in ("weight", "bias")
        )
        wanted = (outputs or encoder.width, encoder.width)
        if weight.shape != wanted:
            raise InputError(f"{folder}: {name}.weight is {weight.shape}, and a grade needs {wanted}")
        head[ours] = {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}
    return Scorer(encoder, head)
