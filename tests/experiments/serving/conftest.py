"""A service over an engine that repeats what it is told, and a client that calls the application without a socket."""

import asyncio
import collections
import contextlib
import json
import threading
import time

import pytest

from alignment.decoding import requests, stopping
from alignment.decoding.requests import Answer, News, Token
from data.tokens import pieces, tokenizer
from experiments.serving import app
from experiments.serving.service import Limits, Service

TOK = tokenizer.load("bytes")
PIECES = pieces.pieces(TOK)
MAX_LEN = 256


class Parrot:
    """An engine in the shape of the real one: it answers with the prompt, one token a step, again and again.

    Attributes:
        seconds: that a step takes.
        fault: raised by the next step.
        order: the prompts in the order in which they were submitted.
    """

    def __init__(self, num_slots=2, max_len=MAX_LEN, seconds=0.0, stop_ids=(), num_guides=0):
        self.num_slots, self.max_len, self.seconds, self.stop_ids = num_slots, max_len, seconds, stop_ids
        self.num_guides = num_guides
        self.waiting, self.busy, self.order = collections.deque(), [], []
        self.fault, self.number, self.thread = None, 0, None
        self.gate = threading.Event()  # cleared, the engine stands still
        self.gate.set()

    @property
    def num_waiting(self):
        return len(self.waiting)

    @property
    def num_busy(self):
        return len(self.busy)

    def check(self, request):
        requests.check(request, vocab_size=len(PIECES), max_len=self.max_len, num_guides=self.num_guides)

    def submit(self, request):
        assert self.thread in (None, threading.get_ident()), "two threads call the engine"
        self.thread = threading.get_ident()
        if request.prompt[-1:] == [ord("\x07")]:
            raise RuntimeError("this prompt is too much")
        number = self.number
        self.number += 1
        self.order.append(bytes(i for i in request.prompt if i < 256))
        answer = Answer(number, request)
        self.waiting.append((answer, stopping.Matcher(PIECES, request.stop)))
        return number

    def cancel(self, number):
        for jobs in (self.waiting, self.busy):
            for job in list(jobs):
                if job[0].number == number:
                    jobs.remove(job)
                    return job[0]
        return None

    def advance(self):
        time.sleep(self.seconds)
        if not self.gate.wait(10):
            raise AssertionError("nobody opened the gate")
        if self.fault:
            raise self.fault
        while self.waiting and len(self.busy) < self.num_slots:
            self.busy.append(self.waiting.popleft())
        news = []
        for job in list(self.busy):
            answer, matcher = job
            prompt, new = [i for i in answer.request.prompt if i < 256] or [46], []
            if answer.request.max_new_tokens:
                new = [self.token(prompt[len(answer.tokens) % len(prompt)], answer.request)]
            answer.tokens += new
            ids = {*self.stop_ids, *answer.request.stop_ids}
            if new and new[0].id in ids:
                answer.finish_reason, answer.stop = "stop", new[0].id
            elif new and (text := matcher.feed(new[0].id)) is not None:
                answer.finish_reason, answer.stop = "stop", text
            elif len(answer.tokens) >= answer.request.max_new_tokens:
                answer.finish_reason = "length"
            answer.text = matcher.text
            if answer.request.prompt_logprobs:
                answer.prompt = [self.token(i, answer.request) for i in answer.request.prompt[1:]]
            if answer.finish_reason:
                self.busy.remove(job)
            news.append(News(answer, new, bool(answer.finish_reason)))
        return news

    def token(self, i, request):
        top = [(i, -0.5), ((i + 1) % 256, -1.5), (257, -2.5)][: request.logprobs or 0]
        return Token(i, -0.5, top)


class Reply:
    """What the application sent."""

    def __init__(self, status, headers, body, is_complete):
        self.status, self.body, self.is_complete = status, body, is_complete
        self.headers = {k.decode(): v.decode() for k, v in headers}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        lines = [line for line in self.body.decode().split("\n\n") if line]
        return [line.removeprefix("data: ") for line in lines if not line.startswith(":")]

    @property
    def chunks(self):
        *rest, done = self.events
        assert done == "[DONE]"
        return [json.loads(line) for line in rest]


async def call(asgi, method, path, body=b"", headers=(), parts=None, leaves=None, on_send=None):
    """One request as a server would hand it over.

    Args:
        parts: chunks of the body, with the seconds before each; instead of `body`.
        leaves: an event, or a number of body messages after which the client has gone.
    """
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    names = {name.lower() for name, _ in headers}
    headers = [*headers, *([] if "content-type" in names else [("content-type", "application/json")])]
    headers = [*headers, *([] if "host" in names else [("host", "localhost:1")])]
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 1),
    }
    queue = [(0, body)] if parts is None else list(parts)
    gone = leaves if isinstance(leaves, asyncio.Event) else asyncio.Event()
    sent, status, sent_headers, is_complete = [], 0, [], False

    async def receive():
        if queue:
            seconds, part = queue.pop(0)
            await asyncio.sleep(seconds)
            if part is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": part, "more_body": bool(queue)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal status, sent_headers, is_complete
        if message["type"] == "http.response.start":
            status, sent_headers = message["status"], message["headers"]
        else:
            sent.append(message["body"])
            is_complete = not message.get("more_body", False)
            if leaves == len(sent):
                gone.set()
        if on_send is not None:
            await on_send(message)

    await asgi(scope, receive, send)
    return Reply(status, sent_headers, b"".join(sent), is_complete)


class Door:
    """A service at work in the running loop."""

    def __init__(self, service, **options):
        self.service, self.app = service, app.build(service, **options)

    async def get(self, path, **options):
        return await call(self.app, "GET", path, **options)

    async def post(self, path, body, **options):
        return await call(self.app, "POST", path, body, **options)

    async def complete(self, prompt="hello", **fields):
        return await self.post("/v1/completions", {"prompt": prompt, **fields})

    async def chat(self, content="hello", **fields):
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        return await self.post("/v1/chat/completions", {"messages": messages, **fields})

    async def settled(self, seconds=5.0):
        """Wait until no place is taken; True if that comes."""
        engine, end = self.service.driver.engine, time.monotonic() + seconds
        while self.service.driver.num_open or engine.num_busy or engine.num_waiting:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.002)
        return True


@contextlib.asynccontextmanager
async def opened(engine=None, *, limits=None, tok=TOK, all_pieces=PIECES, service_options=None, **options):
    """A door over an engine, a parrot by default; it is closed again."""
    engine = Parrot() if engine is None else engine
    num_slots = getattr(engine, "num_slots", 2)
    shared = dict(name="parrot", fingerprint="fp_test", num_slots=num_slots, max_len=engine.max_len)
    service = Service(engine, tok, all_pieces, limits=limits or Limits(), **shared, **(service_options or {}))
    service.start()
    try:
        yield Door(service, **options)
    finally:
        if hasattr(engine, "gate"):
            engine.gate.set()
        await asyncio.to_thread(service.stop)


@pytest.fixture
def run():
    """Run a coroutine that must end within half a minute."""

    def run_it(work):
        async def bounded():
            async with asyncio.timeout(30):
                return await work

        return asyncio.run(bounded())

    return run_it
