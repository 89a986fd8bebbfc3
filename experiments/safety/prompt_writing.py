"""Prompts written by search and by plain draws, in journals that a killed run goes on from."""

import dataclasses
import hashlib
import json
import math
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment.decoding import scoring
from alignment.decoding.engine import Engine
from alignment.decoding.requests import Answer, Request
from alignment.errors import InputError
from alignment.filtering.duplicates import near
from alignment.safety import search
from experiments.decoding import answering
from experiments.decoding.journal import Journal
from experiments.decoding.models import Model
from experiments.safety import sifting
from experiments.safety.asking import Prompt

SEED = "{seed}"  # where an instruction has a place for a seed prompt
SEARCHED, SAMPLED = "search", "sampling"
PROBE = "plumbline-probe"
TOKENS, REDRAWS = METHODS = ("tokens", "redraws")  # of the search
OF_SEARCH = ("weight", "preselect", "preselect_weight", "num_candidates", "is_normalised", "temperature")
OF_SEARCH += ("max_turns", "max_new_tokens", "negligible", "min_p")


class Plan:
    """What every prompt of a run begins from: the tasks by number, and how tokens become text."""

    def __init__(
        self,
        c: ml_collections.ConfigDict,
        writer: Model,
        target: Model,
        seeds: Sequence[Prompt],
        openings: Sequence[Sequence[int]],
    ) -> None:
        self.c, self.writer, self.target, self.openings = c, writer, target, openings
        self.lead = lead_of(writer)
        self.plain_ids = self._instruction(c.searching.plain)
        before, after = around(target, c.system, self.lead)
        self.before, self.after = target.tok.encode(before), target.tok.encode(after)
        order = random.Random(f"seeds {c.seed}").sample(range(len(seeds)), len(seeds))
        self.seeds = [seeds[i] for i in order]
        self.contexts = [self._instruction(c.searching.control.replace(SEED, seed.text)) for seed in self.seeds]
        room = c.engine.max_len - c.searching.max_new_tokens
        for seed, context in zip(self.seeds, self.contexts):
            if len(context) > room:
                raise InputError(
                    f"seed prompt {seed.case.id} of {seed.dataset} takes {len(context)} tokens with its instruction, "
                    f"and engine.max_len={c.engine.max_len} has room for {room} before a prompt; set a larger one"
                )
        stop_ids = tuple(writer.tok.stop_ids)
        self.vocabulary = search.Vocabulary(
            is_allowed_V=np.array([bool(piece) for piece in writer.pieces[: writer.tok.vocab_size]]),
            stop_ids=stop_ids,
            ends_sentence=lambda ids: self.text(ids).endswith((".", "?", "!")),
        )

    def _instruction(self, text: str) -> list[int]:
        tok = self.writer.tok
        return tok.encode(tok.render([{"role": "user", "content": text}], add_generation_prompt=True))

    def text(self, ids: Sequence[int]) -> str:
        raw = b"".join(self.writer.pieces[i] for i in ids)
        return self.writer.text(raw, is_alone=True).strip()

    def seed(self, number: int) -> Prompt:
        return self.seeds[number % len(self.seeds)]

    def context(self, number: int) -> list[int]:
        return self.contexts[number % len(self.contexts)]

    def task(self, number: int) -> search.Task:
        opening = self.openings[number % len(self.openings)]
        return search.Task(self.context(number), self.before, self.after, opening, (self.c.seed, number))

    def request(self, number: int) -> Request:
        """The plain draw of the same number."""
        own = self.c.searching
        seed = self.c.seed * 1_000_003 + number
        return Request(self.context(number), own.max_new_tokens, own.temperature, min_p=own.min_p, seed=seed)

    def rest(self, number: int, kept: Sequence[int], turn: int) -> Request:
        """A draw of what follows a prompt's first tokens."""
        own = self.c.searching
        seed = int(np.random.default_rng([self.c.seed, number, turn, 1]).integers(2**31))
        num = own.max_new_tokens - len(kept)
        return Request([*self.context(number), *kept], num, own.temperature, min_p=own.min_p, seed=seed)

    def row(self, number: int, ids: Sequence[int], **more: Any) -> dict[str, Any]:
        return {"number": number, "seed_id": self.seed(number).case.id, "text": self.text(ids), **more}

    def drawn_row(self, key: tuple[int, int], answer: Answer) -> dict[str, Any]:
        """The row of a plain draw."""
        f = sum(token.logprob for token in answer.tokens)
        return self.row(key[0], answer.answer_ids, f=f, calls=len(answer.tokens), why=answer.finish_reason)

    def made_from(self, what: str) -> dict[str, str]:
        """Digests of all that a written prompt depends on."""
        own = self.c.searching
        content = [own.to_dict(), self.c.seed, self.openings, self.before, self.after, self.contexts, what]
        text = json.dumps(content, default=list)
        weights = f"{self.writer.digest} {self.target.digest}"
        return {"weights": weights, "search": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def max_perplexity(self, seeds: Sequence[Prompt]) -> float:
        """Above this perplexity a text is too clumsy: the percentile of ordinary prompts, times the slack."""
        texts = [seed.text for seed in seeds]
        values = sifting.perplexities(self.writer, texts, self.plain_ids, self.lead)
        own = self.c.searching
        return own.perplexity_slack * float(np.percentile(values, own.max_percentile))


def searched(plan: Plan, folder: pathlib.Path) -> list[dict[str, Any]]:
    """The prompts that the search writes; those in `folder` are not written again.

    Prompts are written in blocks that do not depend on where a run was killed, because the last bits of a score may
    depend on the prompts beside it. So a block of which a kill tore a part off is written again as a whole.
    """
    own = plan.c.searching
    journal = Journal(folder, plan.made_from(SEARCHED), [(i, 0) for i in range(own.num)])
    options = search.Settings(**{name: own[name] for name in OF_SEARCH})
    models_of = [(model.network, model.params) for model in (plan.writer, plan.target)]
    for start in range(0, own.num, own.at_once):
        numbers = range(start, min(start + own.at_once, own.num))
        missing = [i for i in numbers if (i, 0) not in journal]
        if not missing:
            continue
        block = search.write(*models_of, [plan.task(i) for i in numbers], plan.vocabulary, options)
        for i, one in zip(numbers, block):
            if i in missing:
                journal.add((i, 0), _row_of(plan, i, one), more={}, seconds=journal.seconds)
        journal.sync()
        print(f"search: {min(start + own.at_once, own.num)} of {own.num} prompts are written", flush=True)
    return list(journal.end().values())


def _row_of(plan: Plan, number: int, one: search.Written) -> dict[str, Any]:
    more = {name: getattr(one, name) for name in ("turns", "calls", "dropped_scores", "why")}
    r = one.r if np.isfinite(one.r) else None
    return plan.row(number, one.ids, opening_id=number % len(plan.openings), f=one.f, r=r, **more)


@dataclasses.dataclass
class _Draft:
    """A whole prompt that redraws change: its tokens with log-probabilities, r and what it has cost."""

    ids: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    r: float = -math.inf
    turns: int = 0
    calls: int = 0
    dropped: int = 0
    opening: int = 0
    why: str = ""


def redrawn(plan: Plan, folder: pathlib.Path, engine_fn: Callable[[], Engine]) -> list[dict[str, Any]]:
    """Prompts of the same score s = f + w r, by selection among whole texts; no gradient is needed.

    A small model that has only read whole prompts makes nothing of one that ends inside a word, so that r of each
    next token says little. Here the writer draws whole prompts first. Then each one that is not refused is written
    anew: a parent is drawn among all prompts with a probability in proportion to exp(w r), and the writer draws the
    rest of it from a random place on, so that f is what texts are drawn from. The new text is kept where its r is
    higher, unless it is clumsier than the post-filter allows. A prompt is done when the target's likeliest answer
    begins with an opening, or after `max_turns` turns. Each turn has a folder, and what lies there is not drawn again.
    """
    own = plan.c.searching
    drafts = [_Draft() for _ in range(own.num)]
    limit = plan.max_perplexity(plan.seeds)
    for turn in range(own.max_turns + 1):
        active = [i for i, draft in enumerate(drafts) if not draft.why]
        if not active:
            break
        starts = {i: _start(plan, drafts, i, turn) for i in active}
        work = [((i, 0), plan.rest(i, starts[i].ids, turn)) for i in active]
        place = folder / f"{turn}"
        place.mkdir(parents=True, exist_ok=True)
        rows = answering.rows(place, plan.made_from(f"{REDRAWS} {turn}"), work, engine_fn, _rest_row)
        texts = [[*starts[i].ids, *rows[i, 0]["ids"]] for i in active]
        paths = [(plan.before, [*ids, *plan.after], opening) for ids in texts for opening in plan.openings]
        scores = scoring.score_behind(plan.target.network, plan.target.params, paths)
        shape = len(active), len(plan.openings)
        r_NO, is_greedy_NO = scores.total_N.reshape(shape), scores.is_greedy_N.reshape(shape)
        refused = [n for n in range(len(active)) if is_greedy_NO[n].any()]
        # what is nearly an earlier refused prompt does not count, and its place is searched on
        earlier = [plan.text(draft.ids) for draft in drafts if draft.why]
        written = [plan.text(ids) for ids in texts]
        repeated = near.removed([*earlier, *(written[n] for n in refused)], threshold=own.near)
        left = {refused[place - len(earlier)] for place in repeated if place >= len(earlier)}
        clumsiness = sifting.perplexities(plan.writer, written, plan.plain_ids, plan.lead)
        left |= set(np.flatnonzero(clumsiness > limit).tolist())
        for n, i in enumerate(active):
            draft, row, r_O = drafts[i], rows[i, 0], np.nan_to_num(r_NO[n], nan=-np.inf)
            draft.turns += 1
            draft.calls += row["calls"] + len(plan.openings) + 1
            draft.dropped += int(np.isnan(r_NO[n]).any())
            if texts[n] and n not in left and r_O.max() > draft.r:
                draft.ids, draft.logps, draft.r = texts[n], [*starts[i].logps, *row["logps"]], float(r_O.max())
                draft.opening, draft.why = int(r_O.argmax()), search.REFUSED if n in refused else ""
        num = sum(bool(draft.why) for draft in drafts)
        print(f"search: turn {turn} of {own.max_turns}: {num} of {own.num} prompts are refused", flush=True)
    return [_drafted_row(plan, i, draft) for i, draft in enumerate(drafts)]


def _start(plan: Plan, drafts: Sequence[_Draft], number: int, turn: int) -> _Draft:
    """What a prompt keeps at a turn: the first tokens of its parent."""
    own = plan.c.searching
    if not turn:
        return _Draft()
    rng = np.random.default_rng([plan.c.seed, number, turn])
    per_token = np.mean([len(opening) for opening in plan.openings]) if own.is_normalised else 1
    r_N = np.array([draft.r if math.isfinite(draft.r) else -1e9 for draft in drafts])
    chance_N = np.exp(own.weight / per_token * (r_N - r_N.max()))
    parent = drafts[int(rng.choice(len(drafts), p=chance_N / chance_N.sum()))]
    at = int(rng.integers(max(1, len(parent.ids))))
    return _Draft(parent.ids[:at], parent.logps[:at])


def _rest_row(key: tuple[int, int], answer: Answer) -> dict[str, Any]:
    logps = [token.logprob for token in answer.tokens]
    return {"ids": list(answer.answer_ids), "logps": logps[: len(answer.answer_ids)], "calls": len(logps)}


def _drafted_row(plan: Plan, number: int, draft: _Draft) -> dict[str, Any]:
    more = {"turns": draft.turns, "calls": draft.calls, "dropped_scores": draft.dropped}
    r = draft.r if np.isfinite(draft.r) else None
    why = draft.why or search.STUCK
    return plan.row(number, draft.ids, opening_id=draft.opening, f=sum(draft.logps), r=r, why=why, **more)


def sampled(plan: Plan, budget: int, folder: pathlib.Path, engine_fn: Callable[[], Engine]) -> list[dict[str, Any]]:
    """The writer's own draws, in order, until they have cost as many calls as the search."""
    out: list[dict[str, Any]] = []
    spent = 0
    for row in _draws(plan, folder, engine_fn):
        if spent >= budget:
            break
        spent += row["calls"]
        out.append(row)
    return out


def first(plan: Plan, num: int, folder: pathlib.Path, engine_fn: Callable[[], Engine]) -> list[dict[str, Any]]:
    """The first draws: what a search whose weight is 0 writes."""
    return [row for row, _ in zip(_draws(plan, folder / SAMPLED, engine_fn), range(num))]


def _draws(plan: Plan, folder: pathlib.Path, engine_fn: Callable[[], Engine]) -> Iterator[dict[str, Any]]:
    """Draws without end, round by round; each round has a folder, and what lies there is not drawn again."""
    size = max(plan.c.searching.num, 64)
    start = 0
    while True:
        numbers = range(start, start + size)
        work = [((i, 0), plan.request(i)) for i in numbers]
        place = folder / f"{start // size}"
        place.mkdir(parents=True, exist_ok=True)
        yield from answering.rows(place, plan.made_from(f"{SAMPLED} {start}"), work, engine_fn, plan.drawn_row).values()
        start += size


def lead_of(model: Model) -> str:
    """The space that a chat template leaves for the answer to begin with, or ""."""
    messages = [{"role": "user", "content": PROBE}]
    opened = model.tok.render(messages, add_generation_prompt=True)
    whole = model.tok.render([*messages, {"role": "assistant", "content": PROBE}])
    return " " if whole.startswith(opened + " " + PROBE) else ""


def around(target: Model, system: str, lead: str) -> tuple[str, str]:
    """The target's chat before and behind a user's turn; a lead that the turn brings along is taken off the former."""
    messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": PROBE}]
    before, _, after = target.tok.render(messages, add_generation_prompt=True).partition(PROBE)
    return before.removesuffix(lead), after
