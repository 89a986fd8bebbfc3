"""Prompts that a model refuses, written token by token: fluent under a writer, and likely to begin a refusal.

The generator of An et al. 2024 (arXiv:2409.00598, PHTest) on AutoDAN's search (Zhu et al. 2023, arXiv:2310.15140). A
prompt grows from left to right. A candidate v for its next token has the score

    s(v) = f(v) + w r(v),   f(v) = log p_writer(v | context, prompt),   r(v) = log p_target(R | chat(prompt, v))

with R a refusal's opening, and the chat closed behind v. r of all tokens would take as many passes of the target, so
one backward pass gives r's slope by the one-hot token first, and only the best of f + w1 slope are scored exactly. A
token is drawn from softmax(s / temperature), and the search goes on from it until the best candidate repeats. We depart
in one thing: r is at most 0, so that f bounds s, and a token that could not be drawn whatever its r is never scored.

Prompts are written several at a time. The candidates of one prompt are branches of a prefix tree (`scoring`): what
stands before them is read once for all of them, which is why no cache of its keys is kept from token to token.

Dimensions: N prompts, T time, R tokens of an opening, D model width, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment import errors, logprobs
from alignment.decoding import scoring
from alignment.errors import InputError
from alignment.models import decoder

GRADIENT, FLUENCY = PRESELECT = ("gradient", "fluency")
EOS, LENGTH, REFUSED, STUCK = "stop", "length", "refused", "stuck"  # why a prompt ends
BUCKET = 32  # rows are as long as a multiple of this, so that few programs are compiled
Model = tuple[decoder.DecoderLM, Any]  # a network and its parameters


@dataclasses.dataclass(frozen=True)
class Settings:
    """How prompts are written.

    Attributes:
        weight: w of r in the score, > 0. At 0 nothing is searched: draw from the writer instead.
        preselect_weight: w1 of the slope, >= 0.
        num_candidates: B, tokens whose r is computed at each turn.
        preselect: `gradient`, or `fluency`: the likeliest tokens of the writer, for a target without gradients.
        is_normalised: r is divided by the tokens of R; False: sums, as AutoDAN has them (w1 = 3, w = 100, B = 512).
        temperature: of the draws, > 0.
        max_turns: turns for one token.
        max_new_tokens: of a prompt.
        negligible: a candidate is not scored where even r = 0 would leave it less likely than this share of the best
            one so far; 0 scores all B.
        min_p: a token is not a candidate where the writer gives it less than this share of the likeliest one's
            probability, in [0, 1]: a large weight would otherwise jump to a word that is refused on its own.
    """

    weight: float = 1.0
    preselect_weight: float = 1.0
    num_candidates: int = 256
    preselect: str = GRADIENT
    is_normalised: bool = True
    temperature: float = 1.0
    max_turns: int = 8
    max_new_tokens: int = 64
    negligible: float = 1e-3
    min_p: float = 0.0

    def __post_init__(self):
        errors.one_of("preselect", self.preselect, PRESELECT)
        errors.within("[1, inf)", num_candidates=self.num_candidates, max_turns=self.max_turns)
        errors.within("[1, inf)", max_new_tokens=self.max_new_tokens)
        for name in ("weight", "temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value} must be a finite number above 0")
        if not (math.isfinite(self.preselect_weight) and self.preselect_weight >= 0):
            raise InputError(f"preselect_weight={self.preselect_weight} must be a finite number of at least 0")
        errors.within("[0, 1)", negligible=self.negligible)
        errors.within("[0, 1]", min_p=self.min_p)


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt to be written.

    Attributes:
        context: what the writer reads before it: an instruction with a seed prompt in it (content control).
        before, after: the target's chat around it.
        opening: R.
        seed: of its draws.
    """

    context: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    opening: Sequence[int]
    seed: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a prompt may be made of.

    Attributes:
        is_allowed_V: tokens that may stand in it.
        stop_ids: of the writer, which end it.
        ends_sentence: ids -> whether the text may end there.
    """

    is_allowed_V: np.ndarray
    stop_ids: tuple[int, ...]
    ends_sentence: Callable[[Sequence[int]], bool]


@dataclasses.dataclass(frozen=True)
class Written:
    """A prompt that was written.

    Attributes:
        ids: without a stop token.
        f: nats, summed over its tokens.
        r: nats of R behind the whole prompt, a sum.
        turns: over all tokens.
        calls: passes of one sequence through either model; a backward pass counts as two.
        dropped_scores: candidates whose score was not a number.
        why: it ends: `stop` (the writer's), `length`, `refused` (the target's likeliest answer begins with R, and a
            sentence ends), `stuck` (no candidate had a score).
    """

    ids: tuple[int, ...]
    f: float
    r: float
    turns: int
    calls: int
    dropped_scores: int
    why: str


@functools.partial(jax.jit, static_argnames="model")
def next_logprobs(model: decoder.DecoderLM, params: Any, tokens_NT: jax.Array, last_N: jax.Array) -> jax.Array:
    """Log-probabilities [N,V] of the token behind place `last` of each row; what is filled up behind it is not seen."""
    hidden_NTD: Any = model.apply(decoder.variables(params), tokens_NT)
    hidden_N1D = jnp.take_along_axis(hidden_NTD, last_N[:, None, None], axis=1)
    return jax.nn.log_softmax(decoder.logits(model, params, hidden_N1D)[:, 0], axis=-1)


@functools.partial(jax.jit, static_argnames="model")
def slopes(
    model: decoder.DecoderLM,
    params: Any,
    tokens_NT: jax.Array,
    places_N: jax.Array,
    sources_NR: jax.Array,
    targets_NR: jax.Array,
    wanted_NR: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """r [N] of each row, and its slope [N,V] by the one-hot token at one place.

    Args:
        places_N: where the token stands.
        sources_NR, targets_NR, wanted_NR: see `logprobs.selected`.
    """
    params = nn.meta.unbox(params)
    embedding_VD, rows_N = params["embedding"], jnp.arange(len(tokens_NT))
    # Each row's token gets a row of the table for itself, because the slope by the token's own row would add up over
    # all its places in the text. The head stays the model's own, also where it is the transposed table.
    wide = model.clone(vocab_size=model.vocab_size + len(tokens_NT), tie_embeddings=True)
    own_tokens_NT = tokens_NT.at[rows_N, places_N].set(model.vocab_size + rows_N)
    head_DV = decoder.head(model, params)
    rest = {name: value for name, value in params.items() if name not in ("embedding", "head")}

    def total(own_ND):
        table = {**rest, "embedding": jnp.concatenate([embedding_VD, own_ND])}
        hidden_NTD: Any = wide.apply(decoder.variables(table), own_tokens_NT)
        logps_NR = logprobs.selected(hidden_NTD, head_DV, sources_NR, targets_NR, mask_NM=wanted_NR)
        r_N = jnp.sum(logps_NR, axis=1)
        return jnp.sum(r_N), r_N

    slope_ND, r_N = jax.grad(total, has_aux=True)(embedding_VD[tokens_NT[rows_N, places_N]])
    return r_N, jnp.einsum("ND,VD->NV", slope_ND, embedding_VD)


class _Prompt:
    """A prompt in the making, and what is known of its next token."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task, self.settings = task, settings
        self.per_token = len(task.opening) if settings.is_normalised else 1  # by which r is divided
        self.ids: list[int] = []
        self.f, self.r = 0.0, -math.inf
        self.turns = self.calls = self.dropped = 0
        self.why = ""
        self.logps_V: np.ndarray | None = None  # f; None before the next token's is computed

    def begin_token(self, logps_V: np.ndarray) -> None:
        self.calls += 1
        self.logps_V = logps_V
        self.current = int(np.argmax(logps_V))
        self.explored: dict[int, tuple[float, bool]] = {}  # token -> r, and whether the target's likeliest answer is R
        self.bests: set[int] = set()
        self.turn = 0

    def scores(self) -> tuple[list[int], np.ndarray]:
        """The explored tokens and s of each."""
        tokens = sorted(self.explored)
        r_C = np.array([self.explored[v][0] for v in tokens]) / self.per_token
        return tokens, self.logps_V[tokens] + self.settings.weight * r_C  # type: ignore[index]  # there is a token

    def open_tokens(self) -> np.ndarray:
        """Tokens that are not explored and that a draw could still take: r is at most 0, so f bounds s from above."""
        assert self.logps_V is not None
        best = self.scores()[1].max()
        least = -np.inf
        if self.settings.negligible and np.isfinite(best):
            least = best + self.settings.temperature * math.log(self.settings.negligible)
        if self.settings.min_p:
            least = max(least, self.logps_V.max() + math.log(self.settings.min_p))
        is_open_V = np.isfinite(self.logps_V) & (self.logps_V >= least)
        is_open_V[list(self.explored)] = False
        return np.flatnonzero(is_open_V)

    def written(self) -> Written:
        return Written(tuple(self.ids), self.f, self.r, self.turns, self.calls, self.dropped, self.why)


def write(
    writer: Model, target: Model, tasks: Sequence[Task], vocabulary: Vocabulary, settings: Settings
) -> list[Written]:
    """Prompts written by search, all of them at the same time.

    The draws of a prompt depend on its own seed alone; the last bits of its numbers may depend on the prompts beside
    it, so that whoever resumes a run calls this again with the same tasks.

    Args:
        writer, target: of one vocabulary.
        tasks: see `Task`.

    Raises:
        InputError: the vocabularies differ, or an opening without tokens.
    """
    if writer[0].vocab_size != target[0].vocab_size:
        raise InputError(
            f"the writer has {writer[0].vocab_size} tokens and the target {target[0].vocab_size}; the search needs "
            "models of one vocabulary"
        )
    if any(not len(task.opening) for task in tasks):
        raise InputError("an opening of a refusal has no token; the search needs one to look for")
    prompts = [_Prompt(task, settings) for task in tasks]
    while active := [prompt for prompt in prompts if not prompt.why]:
        fresh = [prompt for prompt in active if prompt.logps_V is None]
        for prompt, logps_V in zip(fresh, _fluency(writer, fresh, len(tasks), vocabulary)):
            prompt.begin_token(logps_V)
        # the writer's own choice goes first: what it scores rules most other tokens out before any slope is computed
        _score(target, fresh, [[prompt.current] for prompt in fresh], vocabulary)
        chosen = _candidates(target, active, len(tasks), vocabulary)
        _score(target, active, chosen, vocabulary)
        for prompt in active:
            _draw(prompt, vocabulary)
    return [prompt.written() for prompt in prompts]


def _fluency(writer, prompts, num_rows, vocabulary):
    """f of every token behind each prompt, [V] each; -inf for what may not follow."""
    if not prompts:
        return []
    rows = [[*prompt.task.context, *prompt.ids] for prompt in prompts]
    logps_NV = np.array(next_logprobs(*writer, _filled(rows, num_rows), _padded([len(r) - 1 for r in rows], num_rows)))
    out = []
    for prompt, logps_V in zip(prompts, logps_NV.astype(np.float64)):
        may_follow_V = vocabulary.is_allowed_V.copy()
        if prompt.ids:  # a prompt has at least one token
            may_follow_V[list(vocabulary.stop_ids)] = True
        logps_V = logps_V[: len(may_follow_V)]  # an embedding may have more rows than the vocabulary has tokens
        out.append(np.where(may_follow_V & ~np.isnan(logps_V), logps_V, -np.inf))
    return out


def _candidates(target, prompts, num_rows, vocabulary):
    """Tokens of each prompt whose r is computed next: all that are open, or the best B of them by f + w1 slope."""
    open_tokens = [prompt.open_tokens() for prompt in prompts]
    too_many = [i for i, tokens in enumerate(open_tokens) if len(tokens) > prompts[i].settings.num_candidates]
    sloped = [i for i in too_many if prompts[i].settings.preselect == GRADIENT]
    # of a stop token, which puts no token there, no slope is known
    sloped = [i for i in sloped if prompts[i].current not in vocabulary.stop_ids]
    slope_of = dict(zip(sloped, _slopes(target, [prompts[i] for i in sloped], num_rows)))
    out = [tokens.tolist() for tokens in open_tokens]
    for i in too_many:
        prompt, tokens = prompts[i], open_tokens[i]
        rank_C = prompt.logps_V[tokens]
        if i in slope_of:
            # a stop token that is a candidate leaves the current one's place empty: its f counts alone
            change_C = np.nan_to_num(slope_of[i][tokens] - slope_of[i][prompt.current])
            change_C[np.isin(tokens, vocabulary.stop_ids)] = 0.0
            rank_C = rank_C + prompt.settings.preselect_weight * change_C / prompt.per_token
        out[i] = tokens[np.argsort(-rank_C, kind="stable")[: prompt.settings.num_candidates]].tolist()
    return out


def _slopes(target, prompts, num_rows):
    """r's slope [V] of each prompt at its current token."""
    if not prompts:
        return []
    rows, places, sources, targets = [], [], [], []
    for prompt in prompts:
        task = prompt.task
        before = [*task.before, *prompt.ids, prompt.current]
        row = [*before, *task.after, *task.opening]
        places.append(len(before) - 1)
        sources.append(list(range(len(row) - len(task.opening) - 1, len(row) - 1)))
        targets.append(list(task.opening))
        rows.append(row)
        prompt.calls += 3
    longest = max(map(len, targets))
    wanted = [[1] * len(one) + [0] * (longest - len(one)) for one in targets]
    filled = [_filled(x, num_rows, multiple=1) for x in (sources, targets, wanted)]
    _, slope_NV = slopes(*target, _filled(rows, num_rows), _padded(places, num_rows), *filled)
    return list(np.asarray(slope_NV, np.float64)[: len(prompts)])


def _score(target, prompts, chosen, vocabulary):
    """r of each prompt's new candidates, exactly."""
    paths = []
    for prompt, tokens in zip(prompts, chosen):
        task = prompt.task
        context = [*task.before, *prompt.ids]
        for token in tokens:
            own = [] if token in vocabulary.stop_ids else [token]
            paths.append((context, [*own, *task.after], task.opening))
        prompt.calls += len(tokens)
    if not paths:
        return
    scores = scoring.score_behind(*target, paths)
    values = iter(zip(scores.total_N.tolist(), scores.is_greedy_N.tolist()))
    for prompt, tokens in zip(prompts, chosen):
        for token in tokens:
            r, is_greedy = next(values)
            prompt.dropped += math.isnan(r)
            prompt.explored[token] = (-math.inf if math.isnan(r) else r), is_greedy


def _draw(prompt, vocabulary):
    """Draw a token among all that were explored, and keep it where the best one repeats or no other is left."""
    settings = prompt.settings
    tokens, s_C = prompt.scores()
    prompt.turns += 1
    prompt.turn += 1
    if not np.isfinite(s_C).any():
        prompt.why = STUCK
        return
    # noise by the token's id, so that a draw does not depend on which other tokens were explored
    noise_V = np.random.default_rng([*prompt.task.seed, len(prompt.ids), prompt.turn]).gumbel(size=len(prompt.logps_V))
    best = tokens[int(np.argmax(s_C))]
    drawn = tokens[int(np.argmax(s_C / settings.temperature + noise_V[tokens]))]
    is_last = best in prompt.bests or prompt.turn >= settings.max_turns or settings.preselect == FLUENCY
    if not is_last and len(prompt.open_tokens()):
        prompt.bests.add(best)
        prompt.current = drawn
        return
    prompt.f += float(prompt.logps_V[drawn])
    prompt.r, is_greedy = prompt.explored[drawn]
    prompt.logps_V = None
    if drawn in vocabulary.stop_ids:
        prompt.why = EOS
        return
    prompt.ids.append(drawn)
    if is_greedy and vocabulary.ends_sentence(prompt.ids):
        prompt.why = REFUSED
    elif len(prompt.ids) >= settings.max_new_tokens:
        prompt.why = LENGTH


def _filled(rows, num_rows, *, multiple=BUCKET):
    """Rows as one array [num_rows, T], zeros behind; rows that are missing hold zeros."""
    out_NT = np.zeros((num_rows, -(-max(map(len, rows)) // multiple) * multiple), np.int32)
    for row, values in zip(out_NT, rows):
        row[: len(values)] = values
    return out_NT


def _padded(values, num_rows):
    return np.array([*values, *[0] * (num_rows - len(values))], np.int32)


def openings(answers: Sequence[Sequence[int]], *, num_tokens: int, num: int) -> list[tuple[int, ...]]:
    """How a model begins its refusals: the most frequent first tokens of its own ones, the commonest first.

    Args:
        answers: token ids of answers that refuse.
        num_tokens: of an opening; a shorter answer is one as a whole.
        num: openings at most.
    """
    counts: dict[tuple[int, ...], int] = {}
    for ids in answers:
        opening = tuple(ids[:num_tokens])
        if opening:
            counts[opening] = counts.get(opening, 0) + 1
    return sorted(counts, key=lambda opening: -counts[opening])[:num]  # of equal counts the first that came
