"""The decoding engine: requests in, answers out, a fixed number of slots always busy.

A request takes a slot, its prompt is prefilled there chunk by chunk, and then it writes beside the others; when it
ends, the next request takes the slot, and nobody waits for the slowest. Chunks of a prompt that some slot has computed
are copied and not computed again.

A request's tokens and log-probabilities are the same bits whatever else is served, in any slot, in any order, whether
it was pre-empted or its prompt was cached, on one device, with one number of slots, without speculation. Chunks begin
at multiples of one length, and the prompt's own length decides their shapes (all of that length, but for a rest of at
most half of it); a cached prefix ends where a chunk does, attention walks fixed blocks, and tokens of an answer are
only ever written by decode steps, even where an evicted answer is computed again. Another kernel of attention
(`kernels`) gives other bits; the promise holds for each by itself where the kernel computes a row from that row alone,
as the walk over blocks and the paged kernel do. cuDNN's is a closed library, and nobody has tested it for that.

Other models or adapters of the base may guide the choice of each token: see `guided`.
"""

import dataclasses
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from alignment import errors
from alignment.decoding import (
    ahead,
    guided,
    kernels,
    layout,
    network,
    prefixes,
    programs,
    requests,
    sampling,
    speculation,
    stacks,
    stopping,
)
from alignment.decoding.jobs import Job
from alignment.decoding.requests import Answer, News, Request, Token
from alignment.errors import InputError
from alignment.models import decoder, lora

ORDERS = ("arrival", "longest")


@dataclasses.dataclass
class _Slot:
    """Who writes in a slot, and when it last began."""

    job: Job | None = None
    last_used: int = 0
    is_proven: bool = True  # the last step's logits were numbers, and so is all in the cache that they come from


class Engine:
    """Serves requests with one model, guided by others if there are any.

    Args:
        model, params: a decoder and its parameters.
        num_slots: answers written at the same time.
        max_len: positions of a row, prompt and answer; rounded up to a multiple of `chunk`.
        chunk, block: tokens of a prefill, and positions of a block of the cache. A prompt's last tokens are prefilled
            by a program of half the length where they fit in it: short prompts are mostly filling otherwise.
        num_steps: steps between two looks of the host.
        chunks_per_turn: chunks prefilled in one `advance`; None: as many as free slots want, which is the most
            throughput, while 1 or 2 keeps the writers' latency low and lets the caller cancel in mid-prompt.
        guides: (model, params) over the same vocabulary, whose size may differ beyond `num_ids`; or (adapter, its tree)
            of the base's own weights.
        draft: a smaller (model, params) that guesses `num_draft` tokens; without it, and `num_draft` > 0, the row's own
            repetitions do. See `speculation`.
        processors, processor_states: pure functions on the logits (`programs.Processor`), and for each a tree of arrays
            [num_slots,...] from which its slots begin; None: they have no state.
        pieces: the bytes of every token, b"" for special ones; needed for stop texts and for `Answer.text`.
        num_ids: tokens from this id on are never chosen, because the tokenizer has none there: many checkpoints fill
            their vocabulary up to a round number. None: all may be. Log-probabilities are the model's own, over all.
        stop_ids: added to those of every request.
        seed: for requests without one.
        weights_dtype, cache_dtype: "int8" for eight bits, "" for the model's dtype; see `network`. They save memory and
            its reading on accelerators, and are refused on CPUs, where XLA's products of them are many times slower.
        frees_params: the engine copies the layers' parameters and deletes the originals; see `layout.prepare`.
        attention: the kernel; see `kernels.choose`. `plan.attention` is what was chosen.
        order: "longest" serves long answers first, which leaves fewer slots idle at the end; "arrival" as they come.

    Parameters that lie on a mesh are split over its axis `tensor` by heads, features and vocabulary.

    Raises:
        InputError: lengths that do not fit one another, or vocabularies that differ.

    A request whose logits are not numbers (damaged weights, an overflow, a processor) ends with an `Answer.error`, and
    the others go on. After any exception but the refusals of `check`, the slots may be in the middle of anything: make
    a new engine.
    """

    def __init__(
        self,
        model: decoder.DecoderLM,
        params: Any,
        *,
        num_slots: int = 8,
        max_len: int = 1_024,
        chunk: int = 64,
        block: int = 64,
        num_steps: int = 16,
        chunks_per_turn: int | None = None,
        guides: Sequence[tuple[decoder.DecoderLM | lora.Adapter, Any]] = (),
        draft: tuple[decoder.DecoderLM, Any] | None = None,
        num_draft: int = 0,
        processors: Sequence[programs.Processor] = (),
        processor_states: Sequence[Any] | None = None,
        pieces: Sequence[bytes] | None = None,
        num_ids: int | None = None,
        stop_ids: Sequence[int] = (),
        seed: int = 0,
        order: str = "arrival",
        weights_dtype: str = "",
        cache_dtype: str = "",
        frees_params: bool = False,
        attention: str = "auto",
    ) -> None:
        sizes: dict[str, Any] = dict(num_slots=num_slots, max_len=max_len, chunk=chunk, block=block)
        programs.check_sizes(**sizes, num_draft=num_draft, num_steps=num_steps, chunks_per_turn=chunks_per_turn)
        max_len = -(-max_len // chunk) * chunk
        network.check_dtypes(weights_dtype, cache_dtype)
        errors.one_of("order", order, ORDERS)
        others, adapters, places = guided.lay_out(model, guides, num_ids)
        networks = [(model, params), *others, *([draft] if draft is not None else [])]
        speculation.check(model, draft, num_draft, num_ids)
        mesh = network.mesh_of(params)
        limits: dict[str, Any] = dict(max_len=max_len, block=block, chunk=chunk, cache_dtype=cache_dtype)
        limits |= dict(
            num_draft=num_draft, num_rows=num_slots * (1 + len(adapters)), num_devices=mesh.size if mesh else 1
        )
        self.plan = programs.Plan(
            models=tuple(m for m, _ in networks[: 1 + len(others)]),
            num_slots=num_slots,
            max_len=max_len,
            block=block,
            chunk=chunk,
            num_steps=num_steps,
            draft=draft[0] if draft is not None else None,
            num_draft=num_draft,
            num_ids=num_ids,
            processors=tuple(processors),
            mesh=mesh,
            cache_dtype=cache_dtype,
            attention=kernels.choose(attention, [m for m, _ in networks], **limits),
            guides=places,
        )
        place = network.place_of(params)
        self._compiling = ahead.start(self.plan, nn.meta.unbox(params), weights_dtype, place)
        options: dict[str, Any] = dict(dtype=weights_dtype, frees_params=frees_params)
        self.weights = tuple(layout.prepare(m, p, self.plan.mesh, **options) for m, p in networks)
        if adapters:
            self.weights[0]["adapters"] = stacks.prepare(model, adapters, self.plan.mesh)
        states = tuple(() for _ in processors) if processor_states is None else tuple(processor_states)
        if num_ids is not None and not 1 <= num_ids <= model.vocab_size:
            raise InputError(f"num_ids={num_ids} must be from 1 to {model.vocab_size}, the model's vocabulary")
        programs.check_states(states, len(processors), num_slots)
        self.state = programs.init_state(self.plan, states)
        if place is not None:  # a state that nobody placed would be compiled for once more when it meets the weights
            self.weights, self.state = jax.device_put((self.weights, self.state), place)
        self._first_rows = tuple(jax.tree.map(lambda x: np.asarray(x)[0], s) for s in states)
        self.pieces, self.stop_ids, self.seed, self.order = pieces, tuple(stop_ids), seed, order
        self.chunks_per_turn = chunks_per_turn
        self._slots = [_Slot() for _ in range(num_slots)]
        ring_lengths = [[layer["keys"].shape[0] for layer in cache] for cache in self.state["caches"]]
        self.prefixes = prefixes.Prefixes(self.plan, ring_lengths)
        self._waiting: dict[int, Job] = {}  # by number
        self._queue: list[tuple[float, int]] = []  # a heap of (rank, number); numbers that no longer wait are stale
        self._prefilling: dict[int, Iterator[None]] = {}  # slot -> the rest of its prefill
        self._next_number, self._turn = 0, 0
        self.counts = {"prompt_tokens": 0, "cached_tokens": 0, "chunks": 0, "tokens": 0, "steps": 0, "live_rows": 0}
        self.counts |= {"full_steps": 0, "full_live_rows": 0, "dispatches": 0, "failed": 0}

    @property
    def max_len(self) -> int:
        """Tokens of a row that requests may use; guesses need places behind its end."""
        return self.plan.max_len - self.plan.num_draft

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_busy(self) -> int:
        return sum(slot.job is not None for slot in self._slots)

    def check(self, request: Request) -> None:
        """Refuse what `submit` would refuse."""
        requests.check(
            request,
            vocab_size=min(m.vocab_size for m in self.plan.all_models),  # a draft reads the prompt as well
            max_len=self.max_len,
            num_guides=len(self.plan.guides),
            has_bytes=self.pieces is not None,
        )
        if request.processor_rows is not None:
            programs.check_rows(tuple(request.processor_rows), self._first_rows)

    def submit(self, request: Request) -> int:
        """Queue a request; its number, which its `News` carry.

        Raises:
            InputError: a field is out of range; nothing is queued.
        """
        self.check(request)
        return self._submit_checked(request)

    def _submit_checked(self, request):
        number = self._next_number
        self._next_number += 1
        matcher = stopping.Matcher(self.pieces, request.stop) if self.pieces is not None else None
        seed = sampling.row_key_bits(request.seed, self.seed, number)
        rank = -request.max_new_tokens if self.order == "longest" else 0
        self._enqueue(Job(number, request, Answer(number, request), seed, matcher), rank)
        return number

    def cancel(self, number: int) -> Answer | None:
        """Take a request out; what it has written so far, or None if it is not here."""
        job = self._waiting.pop(number, None) or self._released(number)
        return None if job is None else job.finish("cancelled")

    def preempt(self, number: int) -> bool:
        """Put a running request back to the head of the queue; its answer so far is decoded again, to the same bits."""
        job = self._released(number)
        if job is None:
            return False
        job.num_replayed, job.scores = len(job.answer.tokens), []
        self._enqueue(job, -math.inf)
        return True

    def _released(self, number):
        """The job of a running request, whose slot is free then; None where it does not run."""
        for i, slot in enumerate(self._slots):
            if slot.job is not None and slot.job.number == number:
                job, slot.job = slot.job, None
                self._prefilling.pop(i, None)
                self._clean(i)
                return job
        return None

    def advance(self) -> list[News]:
        """Admit, prefill and decode once; what is new.

        It may be nothing while prompts are read or an evicted answer is decoded again.
        """
        news = self._fill()
        is_live_B = np.array([s.job is not None and i not in self._prefilling for i, s in enumerate(self._slots)])
        if is_live_B.any():
            news += self._decode(is_live_B)
        return news

    def run(self, all_requests: Iterable[Request]) -> Iterator[Answer]:
        """Serve these requests; answers in the order in which they end, with those of requests submitted before.

        Raises:
            InputError: a request is refused; then none of them is queued.
        """
        all_requests = list(all_requests)
        for request in all_requests:
            self.check(request)
        for request in all_requests:
            self._submit_checked(request)
        while self.num_waiting or self.num_busy:
            for news in self.advance():
                if news.is_done:
                    yield news.answer

    def answers(self, all_requests: Iterable[Request]) -> list[Answer]:
        """Serve these requests; answers in the requests' order.

        Raises:
            FloatingPointError: the logits of a request were not numbers; all others have been served.
        """
        answers = sorted(self.run(all_requests), key=lambda answer: answer.number)
        if failed := [answer for answer in answers if answer.error]:
            raise FloatingPointError(f"{failed[0].error} ({len(failed)} of {len(answers)} requests failed)")
        return answers

    def _enqueue(self, job, rank):
        """Let the job wait behind all of lower or equal rank."""
        self._waiting[job.number] = job
        heapq.heappush(self._queue, (rank, job.number))

    def _next_job(self):
        while (number := heapq.heappop(self._queue)[1]) not in self._waiting:
            pass  # cancelled while it waited
        return self._waiting.pop(number)

    def _fill(self):
        """Admit while a slot is free, and prefill; requests that end without writing are news.

        A queue of such requests is not read to its end in one go: the caller gets some, and may cancel the others.
        """
        news: list[News] = []
        left = self.chunks_per_turn
        while (left is None or left > 0) and len(news) < len(self._slots):
            free = [i for i, slot in enumerate(self._slots) if slot.job is None]
            if not self._prefilling and free and self._waiting:
                self._admit(self._next_job(), free)
            if not self._prefilling:
                break
            slot = next(iter(self._prefilling))
            if next(self._prefilling[slot], "done") == "done":
                del self._prefilling[slot]
                news += self._end_unwritten(slot)
            elif left is not None:
                left -= 1
        return news

    def _end_unwritten(self, i):
        """A request for no tokens ends when its prompt is through."""
        job = self._slots[i].job
        if job.request.max_new_tokens:
            return []
        # a prompt whose scores are numbers needs no further look at what it left, if nobody else read it
        self._slots[i].is_proven = job.read_scores() and bool(job.answer.prompt) and not self.plan.guides
        return [News(self._end(i, "length"), [], True)]

    def _admit(self, job, free):
        """Give the request a free slot, with what other slots know of its prompts."""
        request, plan = job.request, self.plan
        prompts = [list(map(int, prompt)) for prompt in self._prompts(request)]
        wanted = [self.prefixes.whole_chunks(prompt) for prompt in prompts]
        if request.prompt_logprobs:
            wanted[0] = []  # every token of this prompt is read again, since its score was not kept
        slots = range(len(self._slots))
        shared = [[self.prefixes.num_shared(s, m, chunks) for s in slots] for m, chunks in enumerate(wanted)]
        i = max(free, key=lambda s: (sum(counts[s] for counts in shared), -self._slots[s].last_used))
        copies, starts = np.zeros((len(prompts), 2), np.int32), []
        for model, counts in enumerate(shared):
            source = max(slots, key=lambda s: (counts[s], s == i))
            if source != i:
                copies[model] = source, counts[source] * plan.chunk // plan.block
            self.prefixes.start(i, model, wanted[model][: counts[source]], source)
            starts.append(counts[source] * plan.chunk)
        slot = self._slots[i]
        if not job.was_admitted:
            job.was_admitted, job.answer.num_cached = True, starts[0]
            self.counts["prompt_tokens"] += len(prompts[0])
            self.counts["cached_tokens"] += starts[0]
        slot.job, self._turn = job, self._turn + 1
        slot.last_used, slot.is_proven = self._turn, False
        row = programs.row(
            plan,
            request,
            prompts,
            starts,
            written=job.answer.ids[: job.num_replayed],
            seed=job.seed,
            stop_ids=self.stop_ids,
            processors=self._first_rows if request.processor_rows is None else tuple(request.processor_rows),
        )
        self.state = programs.admit(plan, self.state, np.int32(i), row, copies)
        self._prefilling[i] = self._prefill(i, job, prompts, starts)

    def _prefill(self, i, job, prompts, starts):
        """Prefill one chunk after the other, yielding after each; the last token of a prompt is left to decoding."""
        C = self.plan.chunk
        for which, (place, prompt, start) in enumerate(zip(self.plan.places, prompts, starts)):
            wants_scores = job.request.prompt_logprobs and which == 0
            last = len(prompt) - 1
            for at in range(start, last, C):
                part = prompt[at : min(at + C, last)]
                tokens_C = np.zeros(C if len(part) > C // 2 else C // 2, np.int32)
                tokens_C[: len(part)] = part
                end = at + len(part)
                self.state, scored = programs.prefill(
                    self.plan,
                    self.weights[place.model],
                    self.state,
                    np.int32(i),
                    tokens_C,
                    np.int32(at),
                    np.int32(end),
                    np.bool_(wants_scores),
                    np.int32(which),
                    np.int32(place.part),
                    model=place.model,
                )
                self.counts["chunks"] += 1
                self.prefixes.add(i, which, part)
                if wants_scores:
                    job.scores.append((scored, part, prompt[at + 1 : end + 1]))
                yield

    def _decode(self, is_live_B):
        """One dispatch, and what it wrote."""
        plan = self.plan
        may_leave = np.bool_(bool(self._waiting) or bool(self._prefilling))
        self._compiling.join()
        self.state, out = programs.decode(plan, self.weights, self.state, is_live_B, may_leave)
        jobs = [slot.job for slot in self._slots]
        wants_top = any(job is not None and job.request.logprobs for job in jobs)
        fetched = {name: out[name] for name in out if name != "top"}
        fetched = jax.device_get(fetched | ({"top": out["top"]} if wants_top else {}))
        self.counts["dispatches"] += 1
        self.counts["steps"] += int(fetched["num_steps"])
        self.counts["live_rows"] += int(fetched["num_live"])
        if self._waiting:
            self.counts["full_steps"] += int(fetched["num_steps"])
            self.counts["full_live_rows"] += int(fetched["num_live"])
        return [
            news
            for i, job in enumerate(jobs)
            if is_live_B[i] and job is not None and (news := self._take(i, job, fetched)) is not None
        ]

    def _take(self, i, job, fetched):
        """A row's new tokens, up to what ends it."""
        request, plan = job.request, self.plan
        ids = fetched["tokens"][i]
        num = int(np.sum(ids >= 0))
        for model, prompt in enumerate(self._prompts(job.request)):
            self.prefixes.wrote(i, model, len(prompt) + len(job.answer.tokens) - job.num_replayed + num)
        by_model = fetched["by_model"][:, i, :num] if plan.guides else np.zeros(0)  # a guide of weight 0 may fail alone
        self._slots[i].is_proven = not (np.any(ids >= plan.models[0].vocab_size) or np.any(np.isnan(by_model)))
        skipped = min(num, job.num_replayed)
        job.num_replayed -= skipped
        stop_ids = {*self.stop_ids, *request.stop_ids}
        new: list[Token] = []
        reason = "" if job.read_scores() else "error"
        for k in range(skipped, 0 if reason else num):
            token = int(ids[k])
            if token >= plan.models[0].vocab_size:
                reason = "error"
                break
            top = job.best(*(x[i, k] for x in fetched["top"])) if request.logprobs else []
            said = tuple(by_model[:, k].tolist()) if plan.guides else ()
            new.append(Token(token, float(fetched["logprobs"][i, k]), top, said))
            if token in stop_ids:
                reason, job.answer.stop = "stop", token
            elif job.matcher is not None and (text := job.matcher.feed(token)) is not None:
                reason, job.answer.stop = "stop", text
            elif len(job.answer.tokens) + len(new) >= request.max_new_tokens:
                reason = "length"
            if reason:
                break
        job.answer.tokens += new
        self.counts["tokens"] += len(new)
        if job.matcher is not None:
            job.answer.text = job.matcher.text
        if reason:
            self._end(i, reason)
        return News(job.answer, new, bool(reason)) if new or reason else None

    def _prompts(self, request):
        """What each model reads; a draft reads the base's, and so do guides without prompts of their own."""
        own = request.guide_prompts or [request.prompt] * len(self.plan.guides)
        return [request.prompt, *own, *([request.prompt] if self.plan.draft is not None else [])]

    def _end(self, i, reason):
        """Free a slot whose request is through."""
        job, self._slots[i].job = self._slots[i].job, None
        answer = job.finish(reason if job.read_scores() else "error")
        self.counts["failed"] += bool(answer.error)
        self._clean(i)
        return answer

    def _clean(self, i):
        """Clean a free slot if its request left NaN in its cache, whether or not anybody has seen it.

        Hidden keys have weight 0 for the slot's next request, and 0 times NaN is NaN.
        """
        if self._slots[i].is_proven or programs.is_clean(self.plan, self.state, np.int32(i)):
            return
        self.state = programs.clean(self.plan, self.state, np.int32(i))
        for model in range(len(self.plan.places)):
            self.prefixes.start(i, model, [], i)


def write(
    model: decoder.DecoderLM,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    num_slots: int = 8,
) -> list[list[int]]:
    """The tokens written after each prompt, for a handful of samples; a prompt's draws follow from its place.

    Raises:
        InputError: an option or a prompt is out of range.
    """
    if not prompts:
        return []
    options: dict[str, Any] = dict(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    longest = max(map(len, prompts)) + max_new_tokens
    engine = Engine(model, params, num_slots=min(num_slots, len(prompts)), max_len=longest, stop_ids=stop_ids)
    answers = engine.answers(Request(prompt, sample=i, **options) for i, prompt in enumerate(prompts))
    return [answer.ids for answer in answers]
