"""A model that learns the member texts by heart, and the scores of texts under it, marked and unmarked."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment import files
from alignment.models import decoder
from alignment.train import language_model, loop, optimizer
from alignment.watermark import green, hashing, text_marks
from alignment.watermark.text_marks import Mark
from alignment.watermark.verbatim import Scored
from data.texts import text as rows_of
from data.tokens import tokenizer
from experiments.decoding import models
from experiments.launch import text_training
from experiments.text_watermarks.texts import Text

BATCH_SIZE, PEAK_LR = 16, 2e-5  # where the config leaves them open


def learn(c: Any, texts: Sequence[Text], folder: pathlib.Path) -> str:
    """Train on the members; `run:<folder>` of the result. A finished or killed training is taken up."""
    steps, path = c.memorise.steps, folder / "members.jsonl"
    if loop.latest_step(folder) == steps:
        return f"run:{folder}"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_rows(path, [{"text": text.text} for text in texts if text.is_member])
    is_random = c.init_from == models.RANDOM
    init_from = "" if is_random else c.init_from
    tok = tokenizer.load(c.tokenizer or language_model.tokenizer_of(init_from))
    train, _, _ = rows_of.load(
        kind="documents", path=str(path), tokenizer=tok, max_len=c.data.max_len, heldout_fraction=0.0, packed=False
    )
    compute = dict(dtype="float32", remat="none", attention="blocked", unroll=1)
    net = language_model.build(
        init_from,
        tok,
        model=models.TOY_SIZES if is_random else {},
        compute=compute,
        rows_are_plain=True,
        workdir=folder,
    )
    mesh, size = models.one_device(), min(c.memorise.batch_size or BATCH_SIZE, len(train))
    text_training.fit(
        net,
        language_model.params(init_from, net, mesh),
        (train, train),
        mesh,
        folder,
        tx=optimizer.adamw(
            peak_lr=PEAK_LR if c.memorise.peak_lr is None else c.memorise.peak_lr,
            warmup_steps=max(steps // 10, 1),
            total_steps=steps,
        ),
        seed=c.seed,
        steps=steps,
        batch_size=size,
        pace=loop.Pace(log_every=max(steps // 10, 1), eval_every=0, save_every=max(steps // 2, 1)),
        logging=loop.Logging(sinks=()),
    )
    return f"run:{folder}"


class Scorer:
    """Texts under a model and the lists of several keys, all from one pass for each text.

    Rows are padded to one length, so one program serves all texts.
    """

    def __init__(self, model: models.Model, max_len: int) -> None:
        self._model, self._max_len = model, max_len
        self._fn = jax.jit(functools.partial(_score, model.network), static_argnames="scheme")

    def score(self, ids: Sequence[int], marks: Sequence[Mark], salt: int = 0) -> list[Scored]:
        """The tokens from the second on under each mark; all marks are of one scheme.

        Args:
            salt: of the random baseline, whose masks differ from text to text.
        """
        ids = list(ids)[: self._max_len]
        padded_S = np.zeros(self._max_len, np.int32)
        padded_S[: len(ids)] = ids
        scheme, V = marks[0].scheme, self._model.network.vocab_size
        masks_KV = (
            np.stack([green.unigram_mask(m) for m in marks])
            if scheme == text_marks.UNIGRAM
            else np.zeros((len(marks), 1), bool)
        )
        keys_K2 = np.stack([hashing.split_key(m.key) for m in marks])  # type: ignore[arg-type]
        limit = hashing.threshold(marks[0].of("gamma"))
        assert all(m.vocab_size == V for m in marks)
        args = (self._model.params, padded_S, keys_K2, masks_KV, limit, np.uint32(salt))
        logps_T, rivals_T2, out = self._fn(*args, scheme=scheme)
        n = len(ids) - 1
        logps_T, rivals_T2 = (np.asarray(x, np.float64)[:n] for x in (logps_T, rivals_T2))
        out = [np.asarray(x)[:, :n] for x in out]
        is_green_KT, mass_KT, means_KT2, squares_KT2 = out
        return [
            Scored(logps_T, is_green_KT[k], mass_KT[k].astype(np.float64), means_KT2[k], squares_KT2[k], rivals_T2)
            for k in range(len(marks))
        ]

    def logps(self, ids: Sequence[int]) -> np.ndarray:
        """Clean log-probabilities of the tokens from the second on."""
        mark = Mark(text_marks.RANDOM, 0, self._model.network.vocab_size)
        return self.score(ids, [mark])[0].logps_T


def _score(net, params, ids_S, keys_K2, masks_KV, limit, salt, *, scheme):
    hidden_1SD = net.apply(decoder.variables(params), ids_S[None])
    logp_TV = jax.nn.log_softmax(decoder.logits(net, params, hidden_1SD)[0, :-1])
    targets_T = ids_S[1:]
    T, V = logp_TV.shape
    p_TV = jnp.exp(logp_TV)
    ids_TV = jnp.broadcast_to(jnp.arange(V, dtype=jnp.uint32)[None], (T, V))
    context_T1 = ids_S[:-1, None]
    if scheme == text_marks.RANDOM:  # a mask for every position of every text
        context_T1 = (jnp.arange(T, dtype=jnp.uint32) + salt * np.uint32(65_537))[:, None]

    def one_key(key_and_mask):
        key_2, mask_X = key_and_mask
        if scheme == text_marks.UNIGRAM:
            mask_TV = jnp.broadcast_to(mask_X[None], (T, V))
        else:
            key_T2 = jnp.broadcast_to(key_2[None], (T, 2))
            mask_TV = hashing.values(hashing.LEFT, key_T2, context_T1, ids_TV) < limit
        is_green_T = jnp.take_along_axis(mask_TV, targets_T[:, None], axis=1)[:, 0]
        green_TV = jnp.where(mask_TV, p_TV, 0.0)
        parts = [
            jnp.stack([jnp.sum((p_TV - green_TV) * x, 1), jnp.sum(green_TV * x, 1)], 1) for x in (logp_TV, logp_TV**2)
        ]
        return is_green_T, jnp.sum(green_TV, axis=1), *parts

    logps_T = jnp.take_along_axis(logp_TV, targets_T[:, None], axis=1)[:, 0]
    is_target_TV = ids_TV == targets_T[:, None].astype(jnp.uint32)
    least_T = jnp.min(jnp.where(is_target_TV, jnp.inf, logp_TV), axis=1)
    most_T = jnp.max(jnp.where(is_target_TV, -jnp.inf, logp_TV), axis=1)
    rivals_T2 = jnp.stack([least_T, most_T], axis=1) - logps_T[:, None]
    return logps_T, rivals_T2, jax.lax.map(one_key, (keys_K2, masks_KV))


def marked_moments(scored: Scored, delta: float) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the vocabulary of p_w log p_w and of p_w log^2 p_w, for Min-K%++ under the mark.

    Red tokens have p_w = p / Z and green ones e^delta p / Z, so both follow from the clean sums over the two lists.
    """
    log_z_T = np.log1p(np.expm1(delta) * scored.green_mass_T)
    assert scored.means_T2 is not None
    assert scored.squares_T2 is not None
    mass_T2 = np.stack([1 - scored.green_mass_T, scored.green_mass_T], axis=1)
    shift_T2 = np.array([[0.0, delta]]) - log_z_T[:, None]
    scale_T2 = np.exp(shift_T2)
    means_T = (scale_T2 * (scored.means_T2 + shift_T2 * mass_T2)).sum(1)
    squares_T = (scale_T2 * (scored.squares_T2 + 2 * shift_T2 * scored.means_T2 + shift_T2**2 * mass_T2)).sum(1)
    return means_T, squares_T
