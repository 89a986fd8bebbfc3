"""Perplexity of documents under a language model of the trunk, in windows of static shapes.

    score = perplexity.load("hf:Qwen/Qwen2.5-0.5B", encode_fn=lambda texts: [tok.encode(text) for text in texts])
    score([{"text": "..."}])  # [{"perplexity.score": 41.7, "perplexity.tokens": 312.0, ...}]

A long document is read in overlapping windows. Each token counts once, in the first window that holds it; the overlap
gives the tokens at a window's start their context.

Dimensions: N rows, T time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError

EncodeFn = Callable[[Sequence[str]], Sequence[Sequence[int]]]
SHORTEST = 32  # tokens of the shortest rows; longer rows have 64, 128, ... so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A score function: a batch of records -> `<name>.score`, `.tokens` and `.nats_per_byte` of each.

    A text without a predicted token, such as an empty one, has `.tokens` alone.
    """

    name: str
    encode_fn: EncodeFn
    logps_fn: Callable[[Mapping[str, np.ndarray]], np.ndarray]  # rows -> sums of log-probabilities [N], in nats
    batch_size: int
    max_len: int
    overlap: int
    bos_id: int | None
    num_tokens: int

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        texts = [record["text"] for record in batch]
        rows = []
        for text, total, count in zip(texts, *self.sums(texts)):
            row = {f"{self.name}.tokens": float(count)}
            if count:
                row[f"{self.name}.score"] = math.exp(min(-total / count, 700.0))  # exp(710) is inf
                row[f"{self.name}.nats_per_byte"] = float(-total / len(text.encode("utf-8", "replace")))
            rows.append(row)
        return rows

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each text; nan for a text without a predicted token."""
        sums, counts = self.sums(texts)
        return [math.exp(min(-s / n, 700.0)) if n else math.nan for s, n in zip(sums, counts)]

    def sums(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability of each text [N] in nats, and the number of predicted tokens [N]."""
        totals_N, counts_N = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        waiting: dict[int, list] = {}  # length of a row -> windows of that length that wait for a full batch
        for i, ids in enumerate(self._encoded(texts)):
            for window, first in windows(ids, self.max_len, self.overlap):
                counts_N[i] += len(window) - 1 - first
                length = min(_length(len(window) - 1), self.max_len)
                waiting.setdefault(length, []).append((i, window, first))
                if len(waiting[length]) == self.batch_size:
                    self._add(totals_N, waiting.pop(length), length)
        for length in sorted(waiting):
            self._add(totals_N, waiting[length], length)
        return totals_N, counts_N

    def _encoded(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), 64):
            for ids in self.encode_fn(texts[start : start + 64]):
                ids_T = np.asarray(ids, np.int64)
                if ids_T.size and not 0 <= ids_T.min() <= ids_T.max() < self.num_tokens:
                    raise InputError(
                        f"the tokenizer gives ids up to {ids_T.max()}, but the model has {self.num_tokens} tokens; use "
                        "the tokenizer that belongs to it"
                    )
                yield ids_T if self.bos_id is None else np.concatenate([[self.bos_id], ids_T])

    def _add(self, totals_N: np.ndarray, rows: list, length: int) -> None:
        # Always a full batch: rows without a window have the mask 0, and one program serves each length.
        shape = (self.batch_size, length)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "groups", "targets")}
        batch["mask"] = np.zeros(shape, np.float32)
        for r, (_, window, first) in enumerate(rows):
            n = len(window) - 1
            batch["tokens"][r, :n], batch["targets"][r, :n] = window[:-1], window[1:]
            batch["groups"][r, :n], batch["mask"][r, first:n] = 1, 1
        logps_N = self.logps_fn(batch)
        for r, (i, _, _) in enumerate(rows):
            totals_N[i] += float(logps_N[r])


def windows(ids: np.ndarray, max_len: int, overlap: int) -> Iterator[tuple[np.ndarray, int]]:
    """(tokens of a window, number of its predictions that an earlier window counted), over all tokens but the first."""
    start = 0
    while start + 1 < len(ids):
        # max_len predictions need max_len + 1 tokens: inputs are all but the last, targets all but the first.
        yield ids[start : start + max_len + 1], overlap if start else 0
        if start + max_len + 1 >= len(ids):
            return
        start += max_len - overlap


def build(
    model: Any,
    params: Any,
    encode_fn: EncodeFn,
    *,
    name: str = "perplexity",
    max_len: int = 512,
    overlap: int | None = None,
    batch_size: int = 8,
    bos_id: int | None = None,
    mesh: Any = None,
    chunk: int = 512,
) -> Scorer:
    """A score function from a model in this process.

    Args:
        model, params: a `DecoderLM` and its parameters, placed on the mesh.
        encode_fn: texts to token ids, without a BOS.
        max_len: tokens of a window; a power of 2 times 32.
        overlap: tokens of a window that only give context to the others; None: half of them.
        batch_size: rows of a step, over all devices.
        bos_id: a token to put before each text, so that the text's first token is predicted too; None puts none.
        mesh: None takes all devices.
        chunk: positions whose logits exist together on one device; logits of all positions would fill the memory.

    Raises:
        InputError: windows of other lengths, or a batch that does not split over the mesh.
    """
    import jax
    import jax.numpy as jnp

    from alignment import logprobs
    from alignment.models import decoder
    from alignment.train import sharding

    overlap = max_len // 2 if overlap is None else overlap
    if max_len < SHORTEST or _length(max_len) != max_len or not 0 <= overlap < max_len:
        raise InputError(
            f"max_len={max_len}, overlap={overlap}: windows are 32, 64, 128, ... tokens long and overlap by fewer"
        )
    mesh = sharding.make_mesh() if mesh is None else mesh
    sharding.check_batch(batch_size, mesh)

    @jax.jit
    def sums(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        # `selected` goes from hidden states to the log-probabilities of the targets chunk by chunk, so that the logits
        # [N,T,V] never exist as a whole.
        hidden_NTD = model.apply({"params": params}, batch["tokens"], None, batch["groups"])
        logps_NT = logprobs.selected(
            hidden_NTD,
            decoder.head(model, params),
            None,
            batch["targets"],
            mask_NM=batch["mask"],
            mesh=mesh,
            chunk=chunk,
        )
        return jnp.sum(logps_NT * batch["mask"], axis=-1)

    def logps_fn(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with sharding.activations(mesh):
            return np.asarray(sharding.to_host(sums(params, sharding.to_devices(dict(batch), mesh))))

    return Scorer(name, encode_fn, logps_fn, batch_size, max_len, overlap, bos_id, model.vocab_size)


def load(
    path: str, *, encode_fn: EncodeFn | None = None, dtype: str = "float32", mesh: Any = None, **options: Any
) -> Scorer:
    """A score function from a checkpoint: a Hugging Face folder, `hf:<folder or hub id>`, or `run:<workdir>`.

    Args:
        encode_fn: texts to token ids, by the checkpoint's own tokenizer.
        dtype: of the computation.
        options: of `build`.

    Raises:
        InputError: no `encode_fn`, or a checkpoint that is missing or not of a known kind.
    """
    from alignment.train import language_model, sharding

    if encode_fn is None:
        raise InputError("a perplexity scorer needs encode_fn, texts to token ids, of the model's own tokenizer")
    path = path if path.startswith(("hf:", "run:")) else f"hf:{path}"
    mesh = sharding.make_mesh() if mesh is None else mesh
    compute = dict(dtype=dtype, remat="none", attention="auto", unroll=1)
    model = language_model.network(language_model.settings(path, {}, compute, vocab_size=0), rows_are_plain=True)
    return build(model, language_model.params(path, model, mesh), encode_fn, mesh=mesh, **options)


@functools.cache
def _length(num_tokens: int) -> int:
    """The length of the row for so many tokens: the next of 32, 64, 128, ..."""
    return SHORTEST << max(0, math.ceil(math.log2(max(num_tokens, 1) / SHORTEST)))
