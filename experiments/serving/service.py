"""What the server does with a request that has been read: prompts to ids, ids to the engine, news to an answer."""

import asyncio
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from alignment.decoding.requests import Request
from alignment.errors import InputError
from data.tokens.tokenizer import Tokenizer
from experiments.decoding.guides import BASE, Guides
from experiments.serving import answers, schema, text
from experiments.serving.answers import Choice, Usage
from experiments.serving.driving import Driver, Engine, Event, Job
from experiments.serving.failures import Failure, Refused
from experiments.serving.metrics import Metrics
from experiments.serving.text import Part, Writer, Written

QUIET = 15.0  # seconds without an event after which a stream sends a comment


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        queue: answers that may wait for a slot; more are refused with 429.
        max_bytes: of a body.
        body_seconds: in which a body must have come.
        seconds: from a request to its answer's end, waiting included.
        max_tokens: of an answer that names no limit; None: what the cache has room for.
    """

    queue: int = 64
    max_bytes: int = 1 << 20
    body_seconds: float = 20.0
    seconds: float = 600.0
    max_tokens: int | None = None


@dataclasses.dataclass
class Work:
    """A request as the engine gets it, and the shape of its answer.

    Attributes:
        echoes: for each choice, the prompt that its answer begins with.
        echo_waits: whether the echoes are scored; the scores come with the answer's first tokens.
        writing: see `Writer`.
    """

    requests: list[Request]
    shape: answers.Shape
    usage: Usage
    echoes: list[Part | None]
    echo_waits: bool = False
    writing: dict[str, bool] = dataclasses.field(default_factory=dict)


class Service:
    """One model behind a driver.

    Args:
        pieces: the bytes of every token.
        drops_space: whether an answer in a chat begins without its space; see `data.tokens.pieces`.
        name: of the model.
        fingerprint: of weights, numerics and slots.
        num_slots: of the engine.
        max_len: tokens of a prompt and its answer.
        guides: of the engine; requests name their weights.
    """

    def __init__(
        self,
        engine: Engine,
        tok: Tokenizer,
        pieces: Sequence[bytes],
        *,
        name: str,
        fingerprint: str,
        num_slots: int,
        max_len: int,
        limits: Limits,
        drops_space: bool = False,
        guides: Guides | None = None,
    ) -> None:
        self.tok, self.pieces, self.name, self.fingerprint = tok, pieces, name, fingerprint
        self.max_len, self.limits, self.drops_space = max_len, limits, drops_space
        self.num_slots, self.guides = num_slots, guides or Guides()
        special = [tok.decode([i], skip_special=False).encode() for i in tok.encoder.special_ids]
        self._longest = max(map(len, [*pieces, *special]))  # bytes of a text that one token can stand for
        self.driver = Driver(engine, max_open=num_slots + limits.queue)
        self.metrics = Metrics(
            model=name,
            fingerprint=fingerprint,
            slots=num_slots,
            busy=lambda: self.driver.num_busy,
            waiting=lambda: self.driver.num_waiting,
        )
        self.driver.on_event = self.metrics.count_event
        self.is_draining = False
        self.started = int(time.time())
        self._jobs: set[Job] = set()
        self._seconds = 1.0  # that a choice takes, a moving mean
        # One thread, so that requests reach the engine in the order in which they came.
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "prompts")

    def start(self) -> None:
        self.driver.start()

    def stop(self) -> None:
        self.driver.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def state(self) -> str:
        return "broken" if self.driver.fault else "draining" if self.is_draining else "ok"

    async def drain(self, grace: float) -> None:
        """Take no more requests, and wait until those that are here have ended or `grace` seconds are over."""
        self.is_draining = True
        end = time.monotonic() + grace
        while (self._jobs or self.driver.num_open) and time.monotonic() < end and self.driver.fault is None:
            await asyncio.sleep(0.02)
        for job in list(self._jobs):
            job.events.put_nowait(Failure("the server is ending and gave this request up", 503))
            self.driver.cancel(job)

    # ---- from a body to work ----

    async def prepare(self, body: Any) -> Work:
        """Tokens and options of a body.

        Raises:
            Failure: the request cannot be served, or not now.
        """
        if body.model is not None and body.model != self.name:
            raise Refused(
                f"model={body.model[:100]!r} is not served here; {self.name!r} is", "model", status=404,
                code="model_not_found",
            )  # fmt: skip
        self._need_room(1)
        make_fn = self._completion if isinstance(body, schema.Completion) else self._chat
        work = await asyncio.get_running_loop().run_in_executor(self._pool, make_fn, body)
        if len(work.requests) > self.driver.max_open:
            raise Refused(
                f"the request wants {len(work.requests)} answers (prompts times n); this server takes at most "
                f"{self.driver.max_open} at once",
                "n",
            )
        return work

    def _need_room(self, num_choices: int) -> None:
        if self.is_draining:
            raise Failure("the server is ending", 503, retry_after=5)
        if not self.driver.has_room(num_choices):
            waits = math.ceil(self._seconds * max(self.driver.num_open - self.num_slots, 1) / self.num_slots)
            raise Failure(
                f"{self.driver.num_open} answers are being written or wait, and {self.driver.max_open} is the most",
                429,
                code="queue_full",
                retry_after=min(max(waits, 1), 60),
            )

    def _completion(self, body: schema.Completion) -> Work:
        prompts = body.prompts
        ids = [p if isinstance(p, list) else self._encode(p, "prompt", add_bos=self.tok.adds_bos) for p in prompts]
        limit = 16 if body.max_tokens is None else body.max_tokens
        wants_scores = bool(body.echo) and body.logprobs is not None
        extra = {"logprobs": body.logprobs, "prompt_logprobs": wants_scores}
        led = [self.guides.prompts(p, i) if isinstance(p, str) else {} for p, i in zip(prompts, ids)]
        wanted = [self._requests(body, i, limit, **extra, **own) for i, own in zip(ids, led)]
        n = body.n or 1
        echoes: list[Part | None] = [None] * (len(ids) * n)
        if body.echo:
            parts = [self._echo(p, i) for p, i in zip(prompts, ids)]
            echoes = [part for part in parts for _ in range(n)]
        shape = answers.TextShape(
            echo_chars=[len(echo.text) if echo else 0 for echo in echoes],
            num_top=body.logprobs,
            **self._shape_options(body),
        )
        usage = Usage(sum(map(len, ids)))
        all_requests = [request for group in wanted for request in group]
        # A stop token stands among the scored tokens: lm-evaluation-harness takes off one token, whatever it was.
        return Work(all_requests, shape, usage, echoes, echo_waits=wants_scores, writing={"keeps_stop": True})

    def _chat(self, body: schema.Chat) -> Work:
        messages = [m.plain() for m in body.messages]
        try:
            ids = self._encode(self.tok.render(messages, add_generation_prompt=True), "messages")
            led = self.guides.chats(messages, ids)
        except InputError as e:
            raise Refused(str(e), "messages") from e
        longest = max(map(len, [ids, *led.get("guide_prompts", ())]))
        room = max(self.max_len - longest, 1)
        limit = min(room, self.limits.max_tokens or room) if body.limit is None else body.limit
        num_top = (body.top_logprobs or 0) if body.logprobs else None
        shape = answers.ChatShape(num_top=num_top, **self._shape_options(body))
        wanted = self._requests(body, ids, limit, logprobs=num_top, **led)
        return Work(wanted, shape, Usage(len(ids)), [None] * len(wanted), writing={"drops_space": self.drops_space})

    def _encode(self, prompt: str, field: str, *, add_bos: bool = False) -> list[int]:
        """Token ids of a text; one that cannot fit is refused before time is spent on it."""
        num_bytes = len(prompt.encode())
        if num_bytes > self.max_len * self._longest:
            raise Refused(
                f"{field} has {num_bytes} bytes, more than {self.max_len} tokens can hold, the cache's length",
                field,
                code="context_length_exceeded",
            )
        return self.tok.encode(prompt, add_bos=add_bos)

    def _requests(self, body: Any, ids: list[int], limit: int, **extra: Any) -> list[Request]:
        """The samples of one prompt, as the engine lets them through."""
        request = Request(ids, max_new_tokens=limit, **body.options(), **extra, **self._weights(body))
        try:
            self.driver.engine.check(request)
        except InputError as e:
            message = str(e).replace("max_new_tokens", "max_tokens").replace("stop_ids", "stop_token_ids")
            message = message.removesuffix(": shorten one of them, or set a larger max_len")
            name = next(iter(message.replace("[", " ").replace("=", " ").split()), "")
            field = "messages" if name == "prompt" and isinstance(body, schema.Chat) else name
            code = "context_length_exceeded" if "together they must" in message else None
            raise Refused(message, field, code=code) from e
        return request.samples(body.n or 1)

    def _weights(self, body: Any) -> dict[str, Any]:
        if body.guidance is None:
            return {"guide_weights": self.guides.weights}
        if not self.guides.all:
            raise Refused("guidance is set and this server has no guides; start it with --config.guides", "guidance")
        try:
            return self.guides.weights_of(body.guidance)
        except InputError as e:
            raise Refused(str(e), "guidance") from e

    def _shape_options(self, body: Any) -> dict[str, Any]:
        members = () if body.guidance is None else (BASE, *self.guides.names)
        return dict(model=self.name, fingerprint=self.fingerprint, shown=self.shown, raw=self.raw, members=members)

    def _echo(self, prompt: str | list[int], ids: list[int]) -> Part:
        """The prompt as it was sent, and its tokens, not scored yet, with their places."""
        tokens = list(map(answers.unscored, ids))
        if isinstance(prompt, str):  # special tokens have no bytes, and some tokenizers add a space: neither counts
            starts = [start for start, _ in self.tok.encode_with_offsets(prompt)[1]]
            starts = [0] * (len(ids) - len(starts)) + starts  # BOS stands before the text
            return Part(prompt, [Written(token, start) for token, start in zip(tokens, starts)])
        raw = b"".join(map(self.raw, ids))
        return Writer(self.pieces, ()).take(Event(0, tokens, raw, is_done=True))

    def shown(self, i: int) -> str:
        return text.shown(self.raw(i), lambda: self.tok.decode([i], skip_special=False))

    def raw(self, i: int) -> bytes:
        return self.pieces[i] if i < len(self.pieces) else b""

    # ---- from news to an answer ----

    def submit(self, work: Work) -> Job:
        """Hand the work to the engine, if it has room; `release` must follow, however the request ends."""
        self._need_room(len(work.requests))
        job = self.driver.submit(work.requests)
        self._jobs.add(job)
        return job

    def release(self, job: Job, began: float) -> None:
        """Forget a job; what it still holds is free before the engine's next dispatch."""
        self.driver.cancel(job)
        self._jobs.discard(job)
        self._seconds += 0.1 * (time.monotonic() - began - self._seconds)

    async def whole(self, work: Work, job: Job, began: float) -> dict[str, Any]:
        """The answer when it is complete."""
        choices = [Choice(i, echo) for i, echo in enumerate(work.echoes)]
        async for news in self._parts(work, job, began):
            if news is not None:
                self._grow(work, choices[news[0].index], *news)
        return work.shape.body(choices, work.usage)

    async def chunks(
        self, work: Work, job: Job, began: float, *, wants_usage: bool
    ) -> AsyncIterator[dict[str, Any] | None]:
        """The answer in parts, as they come; None where nothing has come for a while."""
        shape, choices = work.shape, [Choice(i, echo) for i, echo in enumerate(work.echoes)]
        openings = [] if work.echo_waits else [shape.opening(choice) for choice in choices]
        for opening in filter(None, openings):
            yield shape.chunk([opening])
        async for news in self._parts(work, job, began):
            if news is None:
                yield None
                continue
            event, part = news
            choice = choices[event.index]
            is_first = not choice.has_begun
            self._grow(work, choice, event, part)
            if is_first and work.echo_waits:
                yield shape.chunk([shape.opening(choice)])  # type: ignore[list-item]
            if part.text or event.is_done or (part.tokens and shape.scores_tokens):
                yield shape.chunk([shape.delta(event.index, part, choice.finish_reason)])
        if wants_usage:
            yield shape.chunk([], work.usage)

    async def _parts(self, work: Work, job: Job, began: float) -> AsyncIterator[tuple[Event, Part] | None]:
        """Each event with the text that it makes safe to send."""
        writers = [Writer(self.pieces, r.stop, **work.writing) for r in job.requests]
        num_left, has_token = len(writers), False
        while num_left:
            left = began + self.limits.seconds - time.monotonic()
            try:
                # not wait_for, which in Python 3.11 may swallow the cancellation of a client that goes
                async with asyncio.timeout(min(QUIET, max(left, 0))):
                    event = await job.events.get()
            except TimeoutError:
                if left <= QUIET:
                    raise Failure(f"the answer took longer than {self.limits.seconds:g} seconds", 504) from None
                yield None
                continue
            if isinstance(event, Failure):
                raise event
            if event.error:
                raise Failure(f"the model failed on this request: {event.error}", 500, code="not_a_number")
            if event.tokens and not has_token:
                has_token = True
                self.metrics.first_token.observe(time.monotonic() - began)
            num_left -= event.is_done
            yield event, writers[event.index].take(event)

    def _grow(self, work: Work, choice: Choice, event: Event, part: Part) -> None:
        """Add what is new to a choice and to the counts."""
        request = work.requests[event.index]
        if not choice.has_begun and work.echo_waits and choice.echo is not None:
            tokens = [answers.unscored(request.prompt[0]), *event.prompt]
            scored = [Written(token, old.offset) for token, old in zip(tokens, choice.echo.tokens)]
            choice.echo = Part(choice.echo.text, scored)
        choice.has_begun = True
        choice.text += part.text
        choice.tokens += part.tokens
        work.usage.completion += len(event.tokens)
        if not event.is_done:
            return
        choice.finish_reason = event.finish_reason
        self.metrics.count_prompt(len(request.prompt), event.num_cached)
        work.usage.cached += event.num_cached if request.sample == 0 else 0
