"""One thread owns the engine; the event loop hands it requests and gets their news.

The engine is not made for several threads, and a dispatch holds its caller for milliseconds. So the loop only puts
commands in a queue, which the thread empties between two dispatches, and news come back by `call_soon_threadsafe`.
"""

import asyncio
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from alignment.decoding.requests import Request, Token
from experiments.serving.failures import Failure


class Engine(Protocol):
    """What the thread uses of `alignment.decoding.engine.Engine`."""

    num_waiting: int
    num_busy: int

    def check(self, request: Request) -> None: ...
    def submit(self, request: Request) -> int: ...
    def cancel(self, number: int) -> Any: ...
    def advance(self) -> Sequence[Any]: ...


@dataclasses.dataclass(frozen=True)
class Event:
    """What is new of one choice of a job: the engine's `News`, copied, because the engine goes on with the original.

    Attributes:
        index: of the choice in the job.
        text: the answer's bytes so far; behind a stop text there are none.
        prompt: the prompt's scores, where the choice asked for them.
        error: what the model did wrong, where the choice ended by that.
    """

    index: int
    tokens: list[Token]
    text: bytes
    is_done: bool
    finish_reason: str = ""
    stop: str | int | None = None
    prompt: list[Token] = dataclasses.field(default_factory=list)
    num_cached: int = 0
    error: str = ""


class Job:
    """The choices of one HTTP request, and the queue in which their events arrive."""

    def __init__(self, all_requests: Sequence[Request]) -> None:
        self.requests = list(all_requests)
        self.events: asyncio.Queue[Event | Failure] = asyncio.Queue()
        self.num_open = len(self.requests)  # choices that hold a place; the loop's count
        self.numbers: dict[int, int] = {}  # the engine's number -> choice; the thread's own
        self.is_cancelled = False


class Driver:
    """The thread, and the loop's side of it.

    Args:
        engine: nobody else may call it from `start` on, but for `check`, which reads nothing that changes.
        max_open: choices that may be in slots or waiting; more are refused.

    Attributes:
        fault: why the engine is out of use; None while it works.
    """

    def __init__(self, engine: Engine, *, max_open: int) -> None:
        self.engine, self.max_open = engine, max_open
        self.num_open = 0
        self.fault: str | None = None
        self._commands: queue.SimpleQueue[tuple[str, Job | None]] = queue.SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.on_event: Callable[[Event], None] = lambda event: None

    def start(self) -> None:
        """Start the thread; from a coroutine of the loop that is to get the news."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, wait: float = 60.0) -> None:
        """End the thread after the dispatch that it is in; blocks."""
        self._commands.put(("stop", None))
        if self._thread.is_alive():
            self._thread.join(wait)

    @property
    def num_busy(self) -> int:
        return self.engine.num_busy

    @property
    def num_waiting(self) -> int:
        return self.engine.num_waiting

    def has_room(self, num_choices: int) -> bool:
        return self.num_open + num_choices <= self.max_open

    def submit(self, all_requests: Sequence[Request]) -> Job:
        """Queue the choices of one HTTP request, behind those of all earlier ones.

        Raises:
            Failure: the engine is out of use.
        """
        if self.fault is not None:
            raise Failure(f"the engine has failed ({self.fault}); the server has to be started again", 500)
        job = Job(all_requests)
        self.num_open += job.num_open
        self._commands.put(("submit", job))
        return job

    def cancel(self, job: Job) -> None:
        """Give up the job's slots and places; events that are on their way are dropped."""
        if job.num_open and not job.is_cancelled:
            job.is_cancelled = True
            self._commands.put(("cancel", job))

    # ---- the thread ----

    def _work(self) -> None:
        try:
            while self._obey():
                news = self.engine.advance()
                if news:
                    self._post([(self._jobs[n.answer.number], n) for n in news if n.answer.number in self._jobs])
        except Exception as e:  # the engine's arrays were given away to the step that failed: nothing can go on
            traceback.print_exc()
            self._outlive(_words(e))

    def _outlive(self, fault: str) -> None:
        """Answer whoever waits, and whoever had not noticed yet, until the end."""
        self.fault = fault
        jobs = {id(job): job for job in self._jobs.values()}
        while True:
            if jobs:
                self._call(self._fail_all, list(jobs.values()), fault)
            command, job = self._commands.get()
            if command == "stop" or job is None:
                return
            jobs = {id(job): job}

    def _obey(self) -> bool:
        """Take all commands; wait for one while the engine has nothing to do. False: the thread is to end."""
        while True:
            is_idle = not (self.engine.num_busy or self.engine.num_waiting)
            try:
                command, job = self._commands.get(block=is_idle)
            except queue.Empty:
                return True
            if command == "stop" or job is None:
                return False
            {"submit": self._submit, "cancel": self._cancel}[command](job)

    def _submit(self, job: Job) -> None:
        if job.is_cancelled:  # the command that says so follows, and gives the places back
            return
        try:
            for index, request in enumerate(job.requests):
                number = self.engine.submit(request)
                job.numbers[number] = index
                self._jobs[number] = job
        except Exception as e:  # `check` let it through, so the fault is here; this job alone ends
            self._release(job)
            traceback.print_exc()
            self._call(self._fail_all, [job], _words(e))

    def _cancel(self, job: Job) -> None:
        self._release(job)
        self._call(self._give_back, job, len(job.requests))

    def _release(self, job: Job) -> None:
        for number in job.numbers:
            if self._jobs.pop(number, None) is not None:
                self.engine.cancel(number)

    def _post(self, all_news: list[tuple[Job, Any]]) -> None:
        events = []
        for job, news in all_news:
            answer = news.answer
            last: dict[str, Any] = {}
            if news.is_done:
                last = {"finish_reason": answer.finish_reason, "stop": answer.stop}
                last |= {"num_cached": answer.num_cached, "error": answer.error}
            last["prompt"] = answer.prompt  # a list that the engine replaces and never changes
            index = job.numbers[answer.number]
            events.append((job, Event(index, list(news.tokens), answer.text, news.is_done, **last)))
            if news.is_done:
                del self._jobs[answer.number]
        self._call(self._deliver, events)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[union-attr]
        except RuntimeError:  # the loop has ended, and with it everybody who waits
            self._commands.put(("stop", None))

    # ---- back in the loop ----

    def _deliver(self, events: list[tuple[Job, Event]]) -> None:
        for job, event in events:
            self.on_event(event)
            if event.is_done and job.num_open:
                self._give_back(job, 1)
            job.events.put_nowait(event)

    def _give_back(self, job: Job, num: int) -> None:
        num = min(num, job.num_open)
        job.num_open -= num
        self.num_open -= num

    def _fail_all(self, jobs: list[Job], fault: str) -> None:
        for job in jobs:
            self._give_back(job, job.num_open)
            job.events.put_nowait(Failure(f"the engine failed: {fault}", 500))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
