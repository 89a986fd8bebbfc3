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
ROWS = 8  # texts that the model reads in a call: more are no faster on a CPU


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
    """Texts under a model and the lists of any keys and schemes: the model reads each text once.

    Rows are padded to one length and calls to one number of rows, so one program serves all texts.
    """

    def __init__(self, model: models.Model, max_len: int) -> None:
        self._model, self._max_len = model, max_len
        self._fn = jax.jit(functools.partial(_score, model.network))

    def score(self, texts: Sequence[Sequence[int]], marks: Sequence[Mark]) -> list[list[Scored]]:
        """For each text its tokens from the second on under each mark.

        The random baseline's masks differ from place to place in `texts`.
        """
        lists, places = self._lists(marks)
        limit = hashing.threshold(marks[0].of("gamma"))
        out = []
        for at in range(0, len(texts), ROWS):
            rows = [list(ids)[: self._max_len] for ids in texts[at : at + ROWS]]
            padded_BS = np.zeros((ROWS, self._max_len), np.int32)
            for row_S, ids in zip(padded_BS, rows):
                row_S[: len(ids)] = ids
            salts_B = np.arange(at, at + ROWS, dtype=np.uint32)
            *shared, of_scheme = jax.device_get(self._fn(self._model.params, padded_BS, salts_B, lists, limit))
            for b, ids in enumerate(rows):
                n = len(ids) - 1
                logps_T, rivals_T2 = (x[b, :n].astype(np.float64) for x in shared)
                own = [[x[b, k, :n] for x in of_scheme[scheme]] for scheme, k in places]
                out.append([Scored(logps_T, green, mass.astype(float), *sums, rivals_T2) for green, mass, *sums in own])
        return out

    def _lists(self, marks: Sequence[Mark]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
        """What the program needs of each scheme, its keys and masks, and where in it each mark is."""
        by_scheme: dict[str, list[Mark]] = {}
        places = []
        for mark in marks:
            assert mark.vocab_size == self._model.network.vocab_size
            assert mark.of("gamma") == marks[0].of("gamma")
            by_scheme.setdefault(mark.scheme, []).append(mark)
            places.append((mark.scheme, len(by_scheme[mark.scheme]) - 1))
        lists = {}
        for scheme, own in by_scheme.items():
            masks = [green.unigram_mask(mark) if scheme == text_marks.UNIGRAM else np.zeros(1, bool) for mark in own]
            lists[scheme] = np.stack([hashing.split_key(m.key) for m in own]), np.stack(masks)  # type: ignore[arg-type]
        return lists, places

    def logps(self, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Clean log-probabilities of each text's tokens from the second on."""
        mark = Mark(text_marks.RANDOM, 0, self._model.network.vocab_size)
        return [scored.logps_T for (scored,) in self.score(texts, [mark])]


def _score(net, params, ids_BS, salts_B, lists, limit):
    hidden_BSD = net.apply(decoder.variables(params), ids_BS)

    def one_text(text):
        hidden_SD, ids_S, salt = text
        logp_TV = jax.nn.log_softmax(decoder.logits(net, params, hidden_SD[None])[0, :-1])
        p_TV = jnp.exp(logp_TV)
        # each sum below would otherwise make the softmax anew
        logp_TV, p_TV = jax.lax.optimization_barrier((logp_TV, p_TV))
        of_scheme = {
            scheme: jax.lax.map(functools.partial(_of_key, scheme, logp_TV, p_TV, ids_S, salt, limit), own)
            for scheme, own in lists.items()
        }
        targets_T1 = ids_S[1:, None]
        logps_T = jnp.take_along_axis(logp_TV, targets_T1, axis=1)[:, 0]
        is_target_TV = jnp.arange(logp_TV.shape[1], dtype=ids_S.dtype)[None] == targets_T1
        least_T = jnp.min(jnp.where(is_target_TV, jnp.inf, logp_TV), axis=1)
        most_T = jnp.max(jnp.where(is_target_TV, -jnp.inf, logp_TV), axis=1)
        return logps_T, jnp.stack([least_T, most_T], axis=1) - logps_T[:, None], of_scheme

    return jax.lax.map(one_text, (hidden_BSD, ids_BS, salts_B))  # one at a time: probabilities of all would be large


def _of_key(scheme, logp_TV, p_TV, ids_S, salt, limit, key_and_mask):
    """Whether each target is green, the list's mass, and the sums of `Scored` over red and green tokens."""
    key_2, mask_X = key_and_mask
    T, V = logp_TV.shape
    context_T1 = ids_S[:-1, None]
    if scheme == text_marks.RANDOM:  # a mask for every position of every text
        context_T1 = (jnp.arange(T, dtype=jnp.uint32) + salt * np.uint32(65_537))[:, None]
    if scheme == text_marks.UNIGRAM:
        mask_TV = jnp.broadcast_to(mask_X[None], (T, V))
    else:
        ids_TV = jnp.broadcast_to(jnp.arange(V, dtype=jnp.uint32)[None], (T, V))
        mask_TV = hashing.values(hashing.LEFT, jnp.broadcast_to(key_2[None], (T, 2)), context_T1, ids_TV) < limit
    is_green_T = jnp.take_along_axis(mask_TV, ids_S[1:, None], axis=1)[:, 0]
    green_TV = jax.lax.optimization_barrier(jnp.where(mask_TV, p_TV, 0.0))  # the hash is taken once, not for each sum
    parts = [jnp.stack([jnp.sum((p_TV - green_TV) * x, 1), jnp.sum(green_TV * x, 1)], 1) for x in (logp_TV, logp_TV**2)]
    return is_green_T, jnp.sum(green_TV, axis=1), *parts


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
