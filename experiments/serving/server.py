"""The application behind a socket: uvicorn, signals, and an end that leaves nobody without an answer."""

import asyncio
import contextlib
import json
import logging.handlers
import os
import pathlib
import signal
import socket
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from alignment import files
from alignment.decoding import backends
from alignment.errors import InputError
from experiments.launch import host
from experiments.serving import app as apps
from experiments.serving.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "PLUMBLINE_API_KEY"  # the variable of the environment that holds the key clients must send
LOG_BYTES, LOG_FILES = 10_000_000, 3
SIGNALS = (*host.STOP_SIGNALS, signal.SIGINT)


def protocol(header_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, with an end to connections on which no request comes; uvicorn itself waits for ever."""

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def _wait(self) -> None:
            self._deadline = self.loop.call_later(header_seconds, self._close)

        def _close(self) -> None:
            if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
                self.transport.close()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self._deadline is not None and self.cycle is not before:
                self._deadline.cancel()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and self.cycle.response_complete:
                self._wait()  # the next request's headers may come as slowly

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

    return Protocol


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: it would raise each signal again once it has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, on which nobody listens yet: clients are refused until the server is ready.

    Raises:
        InputError: the address is taken, or is not this machine's.
    """
    sock = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also while the last server's connections fade
        sock.bind(address)
        return sock
    except (OSError, OverflowError) as e:
        if sock is not None:
            sock.close()
        raise InputError(f"host={host!r}, port={port} cannot be listened on ({e}); port=0 takes a free one") from e


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def request_log(workdir: pathlib.Path) -> Iterator[None]:
    """A line a request in `requests.jsonl`, in files of bounded size; no prompt and no answer stands there."""
    handler = logging.handlers.RotatingFileHandler(
        workdir / "requests.jsonl", maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"
    )
    apps.LOG.addHandler(handler)
    apps.LOG.setLevel(logging.INFO)
    apps.LOG.propagate = False
    try:
        yield
    finally:
        apps.LOG.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _on_signal(call: Callable[[], None]) -> Iterator[None]:
    """Call back in the loop at a signal that asks to stop; afterwards the handlers are those from before.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return
    loop, before = asyncio.get_running_loop(), {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def serve(
    service: Service,
    sock: socket.socket,
    workdir: pathlib.Path,
    *,
    grace: float,
    header_seconds: float,
    connections: int,
    until: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Serve until a signal or `until` ends it; then drain.

    Args:
        grace: seconds in which requests may still end after the first signal; a second signal ends them at once.
        header_seconds: in which a request's headers must have come.
        connections: the most at a time; further ones get 503.
        until: what to do with the server's address before it ends by itself; None serves on.
    """
    hosts = (*LOOPBACK, "[::1]") if sock.getsockname()[0] in LOOPBACK else ()
    config = uvicorn.Config(
        apps.build(service, key=backends.key_in(KEY), hosts=hosts),
        http=protocol(header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # it would write a line for every client that does not speak HTTP
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=5,
    )
    server, over, at_once = _Uvicorn(config), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (at_once if over.is_set() else over).set()

    service.start()
    with _on_signal(on_signal), request_log(workdir):
        task = asyncio.create_task(server.serve([sock]))
        try:
            while not server.started and not task.done():
                await asyncio.sleep(0.005)
            place = {"url": url_of(sock), "pid": os.getpid(), "model": service.name}
            files.write_json(workdir / "server.json", place | {"system_fingerprint": service.fingerprint})
            print(f"serving {service.name} at {url_of(sock)} (a page; OpenAI's interface at /v1)", flush=True)
            await _until_over(over, task, until(url_of(sock)) if until else None)
            print(f"ending: {service.driver.num_open} answers have {grace:g} seconds", flush=True)
            await _first(service.drain(grace), at_once.wait())
            await service.drain(0)
        finally:
            (workdir / "server.json").unlink(missing_ok=True)
            server.should_exit = True
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(service.stop)


async def _until_over(over: asyncio.Event, task: asyncio.Task[None], work: Awaitable[None] | None) -> None:
    """Until a signal, the end of uvicorn's task, or that of the work, whose exception is raised."""
    waits = [asyncio.ensure_future(over.wait()), *([asyncio.ensure_future(work)] if work is not None else [])]
    done, rest = await asyncio.wait([*waits, task], return_when=asyncio.FIRST_COMPLETED)
    for wait in rest - {task}:
        wait.cancel()
    for wait in done:
        wait.result()


async def _first(*works: Awaitable[Any]) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


async def ask(url: str) -> None:
    """One question to the server itself, as a client would put it.

    Raises:
        RuntimeError: it is not answered.
    """
    key = backends.key_in(KEY)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)

    def fetch() -> Any:
        # without proxies: the environment's would be asked for a loopback address too
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as response:
            return json.loads(response.read())

    answer = await asyncio.to_thread(fetch)
    if not answer["choices"]:
        raise RuntimeError(f"the server answered {answer}")
    print(f"asked itself: {answer['usage']['completion_tokens']} tokens came back", flush=True)
