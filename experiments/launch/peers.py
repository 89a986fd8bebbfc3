"""The processes of one run watch each other: when one ends before its time the others end too, and say which it was.

JAX alone would notice after 100 seconds and then abort, with an exit code that no scheduler's script knows. Here every
process keeps a connection to the first. The kernel closes it with its process, so a death is noticed at once, and a
host that has lost its power or its network after SILENCE seconds.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from alignment.errors import InputError

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a host counts as dead
GRACE = 5.0  # seconds in which a process may end by itself after another has
LINGER = 15.0  # seconds that the first process waits for the others when it ends before its time
LOST = 75  # exit code where a process ended without a word: the run goes on from its checkpoint
FINISHED = (0, 3)  # codes of a process that is done; the others go on
KEY = "plumbline/watch"
_handlers: list[Any] = []


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, None where it did not say, and its words."""

    process: int
    code: int | None
    why: str

    def follow(self) -> int:
        """The exit code of the others."""
        return LOST if self.code is None else self.code

    def __str__(self) -> str:
        if self.code is None:
            return f"process {self.process} of this run died ({self.why})"
        return (
            f"process {self.process} of this run ended with exit code {self.code}{f': {self.why}' if self.why else ''}"
        )


class Watch:
    """Connections to the other processes, served by a thread until `end`.

    Args:
        index: number of this process; the first has a connection to each of the others, they have one to it.
        connections: process number -> connected socket.
        missing: numbers of the processes that are to connect through `listener` with `token`.
        exit_fn: ends this process where it does not end by itself, GRACE seconds after another did.

    Attributes:
        last_words: called just before `exit_fn` is.
    """

    def __init__(
        self,
        index: int,
        connections: dict[int, socket.socket],
        listener: socket.socket | None = None,
        token: str = "",
        missing: tuple[int, ...] = (),
        exit_fn: Callable[[int], Any] = os._exit,
    ):
        self._index, self._connections, self._listener, self._token = index, connections, listener, token
        self._exit_fn, self._lock = exit_fn, threading.RLock()
        self.last_words: Callable[[], Any] = lambda: None
        self._heard = dict.fromkeys((*connections, *missing), time.monotonic())
        self._rest: dict[socket.socket, bytes] = {}  # of each connection: bytes of a line that is not complete yet
        self._absent = set(missing)
        self._said: list[dict[str, Any]] = []  # ends that a process which connects later must hear of too
        self._finished: set[int] = set()
        self._trouble: Ended | None = None
        self._is_troubled = threading.Event()
        self._selector = selectors.DefaultSelector()
        for s in (*connections.values(), *([listener] if listener else [])):
            self._selector.register(s, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="plumbline-watch", daemon=True)
        self._thread.start()

    def trouble(self, wait: float = 0.0) -> Ended | None:
        """The first process that ended before its time, if one does so within `wait` seconds."""
        self._is_troubled.wait(wait)
        return self._trouble

    def end(self, code: int, why: str = "") -> None:
        """Tell the others that this process ends. The first, which JAX needs until all have left, waits for them.

        It waits for those too that have not connected yet: on a busy host it may refuse the run before they do.
        """
        self._say({"end": self._index, "code": code, "why": why[:500]})
        deadline = time.monotonic() + LINGER
        while self._index == 0 and code not in FINISHED and time.monotonic() < deadline:
            with self._lock:
                if not self._connections and not self._absent:
                    return
            time.sleep(0.02)

    def follow(self, wait: float = 0.0) -> None:
        """End this process if another ended before its time, or does so within `wait` seconds."""
        ended = self.trouble(wait)
        if ended is not None:
            print(f"stopped: {ended}", file=sys.stderr, flush=True)
            self.last_words()
            self._exit_fn(ended.follow())

    def _serve(self) -> None:
        beaten = 0.0
        troubled_at: float | None = None
        while True:
            for key, _ in self._selector.select(min(0.5, BEAT)):
                self._accept() if key.fileobj is self._listener else self._read(key.fileobj)
            now = time.monotonic()
            if now - beaten > BEAT:
                beaten = now
                self._send_all({"beat": self._index})
            for process, heard in list(self._heard.items()):
                if now - heard > SILENCE:
                    self._drop(process, f"nothing was heard of it for {SILENCE:.0f} seconds")
            if self._trouble is not None:
                troubled_at = troubled_at or now
                if now - troubled_at >= self._grace(self._trouble):
                    self.follow()
                    return

    def _grace(self, ended: Ended) -> float:
        if self._index == 0:
            return GRACE + 2.0  # JAX aborts the others once this process is gone, so they go first
        return 0.0 if ended.process == 0 and ended.code is None else GRACE

    def _accept(self) -> None:
        """Take a connection whose first line says the token and the process's number; drop any other."""
        s, _ = self._listener.accept()
        s.settimeout(5.0)
        try:
            hello = json.loads(s.makefile("rb", buffering=0).readline(200))
            is_ours = secrets.compare_digest(hello["token"], self._token)
            process = int(hello["process"])
        except (OSError, ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours:
            s.close()
            return
        with self._lock:
            self._connections[process] = s
            self._absent.discard(process)
            self._heard[process] = time.monotonic()
            for message in self._said:
                _send(s, message)
        self._selector.register(s, selectors.EVENT_READ)

    def _read(self, s: socket.socket) -> None:
        process = next(p for p, connection in self._connections.items() if connection is s)
        try:
            data = s.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(process, "its connection was closed")
            return
        self._heard[process] = time.monotonic()
        *lines, self._rest[s] = (self._rest.get(s, b"") + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "end" not in message:
            return
        ended = Ended(message["end"], message["code"], message["why"])
        self._finished.add(ended.process)
        if ended.code not in FINISHED:
            self._raise_alarm(ended)

    def _drop(self, process: int, why: str) -> None:
        self._heard.pop(process, None)
        with self._lock:
            self._absent.discard(process)
            s = self._connections.pop(process, None)
        if s is not None:
            self._selector.unregister(s)
            s.close()
        if process not in self._finished:
            self._finished.add(process)
            self._raise_alarm(Ended(process, None, why))

    def _raise_alarm(self, ended: Ended) -> None:
        if self._trouble is not None:
            return
        self._trouble = ended
        if self._index == 0:  # the others are connected to this process alone
            self._say({"end": ended.process, "code": ended.code, "why": ended.why})
        self._is_troubled.set()

    def _say(self, message: dict[str, Any]) -> None:
        """Send the word of an end to all processes, to those that connect later as they do."""
        with self._lock:
            self._said.append(message)
            self._send_all(message)

    def _send_all(self, message: dict[str, Any]) -> None:
        with self._lock:
            for s in self._connections.values():
                _send(s, message)


def _send(s: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # its reader finds out why
        s.sendall(json.dumps(message).encode() + b"\n")


def answer_abort(follow_fn: Callable[[], Any]) -> None:
    """Call `follow_fn` where JAX aborts this process because another ended, maybe before the watch has its turn.

    Python's own handlers run in the main thread, which waits inside JAX; a C handler runs in the thread that aborts.
    `follow_fn` ends the process if another has ended; if it returns, the abort stays one.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p

    def handle(number: int) -> None:
        follow_fn()
        libc.signal(number, ctypes.c_void_p(0))  # SIG_DFL; abort() raises the signal again

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _handlers.append(handler)  # C keeps only its address, so Python would free it
    libc.signal(int(signal.SIGABRT), handler)


def join(client: Any, index: int, count: int, coordinator: str) -> Watch:
    """Connect the processes of a run once JAX has brought them together.

    Args:
        client: JAX's distributed client, whose store of keys and values tells the port.
        coordinator: `host:port` of JAX's service, which runs in the first process.

    Raises:
        InputError: the first process cannot be reached on its port.
    """
    if index == 0:
        listener = socket.create_server(("", 0), family=socket.AF_INET, backlog=max(count, 16))
        token = secrets.token_hex(16)
        client.key_value_set(KEY, f"{listener.getsockname()[1]} {token}")
        return Watch(0, {}, listener, token, missing=tuple(range(1, count)))
    port, token = client.blocking_key_value_get(KEY, 60_000).split()
    address = coordinator.rsplit(":", 1)[0].strip("[]")
    try:
        s = socket.create_connection((address, int(port)), timeout=30)
    except OSError as e:
        raise InputError(
            f"process {index} cannot reach process 0 at {address}:{port} ({e}); the hosts of a run must be able to "
            "connect to each other on any port, as their collectives do too"
        ) from e
    s.settimeout(None)
    s.sendall(json.dumps({"process": index, "token": token}).encode() + b"\n")
    return Watch(index, {0: s})
