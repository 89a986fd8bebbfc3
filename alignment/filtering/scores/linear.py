"""A linear classifier of hashed n-grams: trained in JAX, run in numpy.

    score = linear.load("export/scorer")
    score([{"text": "..."}])  # [{"toxicity.score": 0.93, "toxicity.level": 1.0}]

Scoring imports no JAX, so that a worker process starts at once. Training goes through `fitting`, with batches from
`batch_fn`.

Dimensions: N texts, P pieces of texts, B buckets, O outputs, K entries of a row, D width.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alignment.filtering.scores import chunks, heads, ngrams

MAX_WIDTH = 8_192  # entries of a row in training


def load(path: str | pathlib.Path, *, name: str = "") -> heads.Scorer:
    """A scorer that a run of `experiments/scorer.py` exported; `name` replaces the exported name of its scores."""
    about, tensors = heads.load(path, "linear")
    return build(about, tensors, name=name)


def build(about: heads.About, tensors: Mapping[str, np.ndarray], *, name: str = "") -> heads.Scorer:
    """A scorer from weights: `kernel` [B,O], `bias` [O], and `thresholds` for the ordinal objective."""
    about = dataclasses.replace(about, name=name or about.name)
    chosen = ngrams.settings(about.features)
    num = heads.num_outputs(about.objective, len(about.levels))
    heads.check_shapes(about, tensors, {"kernel": (chosen.buckets, num), "bias": (num,)})

    def outputs(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pieces, owners_P = chunks.of_texts(texts, about.piece)
        outputs_PO = ngrams.dot(ngrams.features(pieces, chosen), tensors["kernel"]) + tensors["bias"]
        return outputs_PO, owners_P, chunks.starts(pieces, owners_P)

    return heads.Scorer(about, tensors, outputs)


def width(texts: Sequence[str], chosen: ngrams.Settings, *, piece: int, most: int = MAX_WIDTH) -> int:
    """The number of entries of the longest row, rounded up to a multiple of 64; at most `most`."""
    longest = 1
    for start in range(0, len(texts), 1_024):
        part = [chunks.first(text, piece) for text in texts[start : start + 1_024]]
        longest = max(longest, int(np.diff(ngrams.features(part, chosen).offsets).max()))
    return min(-(-longest // 64) * 64, most)


def batch_fn(
    texts: Sequence[str],
    labels_N: np.ndarray,
    weights_N: np.ndarray,
    *,
    chosen: ngrams.Settings,
    width: int,
    piece: int,
) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """`(index, weight) -> batch` for a loader: `ids` and `values` [N,K], `labels`, `weights`, `index`.

    Of a long text only the first piece is used.

    Args:
        weights_N: of the texts, such as their class's.
        width: K; longer rows are thinned out, see `ngrams.padded`.
    """

    def make(index_N: np.ndarray, weight_N: np.ndarray) -> dict[str, np.ndarray]:
        sparse = ngrams.features([chunks.first(texts[i], piece) for i in index_N], chosen)
        ids_NK, values_NK = ngrams.padded(sparse, width)
        weights = (weight_N * weights_N[index_N]).astype(np.float32)
        rest = {"labels": labels_N[index_N].astype(np.int32), "weights": weights, "index": index_N.astype(np.int32)}
        return {"ids": ids_NK, "values": values_NK, **rest}

    return make
