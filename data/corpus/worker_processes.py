"""Tasks in worker processes of this machine.

Workers are fresh interpreters, not forks: a fork of a process with threads (JAX's, BLAS's) can deadlock. They import
what the function needs and nothing of the script that started them. Each has a socket to the parent and one task at a
time, so when one dies the parent knows its task. A thread of the worker reads the socket; when the parent ends, however
it ends, the socket closes, and that thread ends the worker in the middle of its task.
"""

import collections
import contextlib
import functools
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

from alignment.errors import InputError

START = (
    "import pickle, sys; sys.path[:] = pickle.loads(bytes.fromhex(sys.argv[2])); "
    "from data.corpus import worker_processes; worker_processes.serve(int(sys.argv[1]))"
)


class WorkerDied(RuntimeError):
    """A task ended more workers than `retries` allows."""


def available_cpus() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(fn: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    """(fn(task), None), or (None, the exception) in a form that can be pickled: its traceback becomes a note."""
    try:
        return fn(task), None
    except Exception as e:
        trace = "".join(traceback.format_exception(e))
        try:
            error = pickle.loads(pickle.dumps(e))  # an exception may pickle and still not unpickle, so try both here
        except Exception:
            error = RuntimeError(f"{type(e).__name__}: {e}")
        error.add_note(f"in a worker:\n{trace}")
        return None, error


def failure(error: Exception, position: int, task: Any) -> Exception:
    """The error of a task, with a note that names it."""
    error.add_note(f"in task {position}: {task!r:.500}")
    return error


def died(position: int, task: Any, how: str, times: int) -> WorkerDied:
    """The error of a task whose workers died.

    Args:
        how: how the last of them ended, such as "signal 9".
        times: how many they were.
    """
    return WorkerDied(
        f"task {position} ({task!r:.500}) ended its worker {times} times ({how}); where memory is short, use fewer "
        "workers or smaller slices"
    )


class Pool:
    """Workers that stay between calls of `run`; see `executors.opened`."""

    def __init__(self, fn: Callable[[Any], Any], *, workers: int, retries: int):
        self._payload, self._workers, self._retries = _pickled(fn), workers, retries
        self._busy: dict[connection.Connection, _Worker] = {}
        self._idle: list[_Worker] = []

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (position, result) as tasks complete; closing the iterator kills the workers that are busy."""
        waiting = enumerate(tasks)
        again: collections.deque[tuple[int, Any]] = collections.deque()  # tasks whose worker died
        deaths: collections.Counter[int] = collections.Counter()
        busy = self._busy
        try:
            while True:
                while (
                    len(busy) < self._workers
                    and (task := again.popleft() if again else next(waiting, None)) is not None
                ):
                    worker = self._idle.pop() if self._idle else _Worker(self._payload)
                    busy[worker.link] = worker
                    worker.give(*task)
                if not busy:
                    return
                for link in connection.wait(list(busy)):
                    worker = busy.pop(link)  # type: ignore[call-overload]  # only links of `busy` come back
                    position, task = worker.task
                    try:
                        result, error = pickle.loads(worker.link.recv_bytes())
                    except (EOFError, OSError):  # the worker died
                        how = worker.end()
                        deaths[position] += 1
                        if deaths[position] > self._retries:
                            raise died(position, task, how, deaths[position]) from None
                        again.append((position, task))
                        continue
                    self._idle.append(worker)
                    if error is not None:
                        raise failure(error, position, task)
                    yield position, result
        finally:  # whoever asked for the results is gone, or an error ends the run: nobody wants those of busy workers
            while busy:
                busy.popitem()[1].end()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().end()


def serve(descriptor: int) -> None:
    """Serve the parent from within a worker process: receive the function, then tasks, and send back results.

    Args:
        descriptor: of this worker's end of the socket.
    """
    # A terminal sends Ctrl-C to the whole process group; the parent alone decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, link = os.getppid(), connection.Connection(descriptor)
    payload = link.recv_bytes()
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                # The end of the socket says that the parent is gone, except where another process inherited the
                # parent's end of it; so look at the parent, too, once a second.
                while not link.poll(1.0):
                    if os.getppid() != parent:
                        os._exit(1)
                tasks.put(pickle.loads(link.recv_bytes()))
        except (EOFError, OSError):
            os._exit(1)  # sys.exit would end this thread alone

    threading.Thread(target=receive, daemon=True).start()
    fn, error = attempt(pickle.loads, payload)
    while True:
        task = tasks.get()
        answer = (None, error) if error is not None else attempt(fn, task)
        try:
            content = pickle.dumps(answer)
        except Exception as e:
            content = pickle.dumps((None, TypeError(f"the result cannot be sent: {e}")))
        try:
            link.send_bytes(content)
        except OSError:
            os._exit(1)


class _Worker:
    """One worker process, the parent's end of its socket, and its task with its position."""

    def __init__(self, payload: bytes):
        self.task: tuple[int, Any] = (-1, None)
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            path = pickle.dumps([p or os.getcwd() for p in sys.path]).hex()  # "" is where this process stands
            command = [sys.executable, "-c", START, str(number), path]
            self.process = subprocess.Popen(command, pass_fds=[number], stdin=subprocess.DEVNULL)
        self.link = connection.Connection(ours.detach())
        self.send(payload)

    def send(self, content: bytes) -> None:
        with contextlib.suppress(OSError):  # the worker died; the next read reports it
            self.link.send_bytes(content)

    def give(self, position: int, task: Any) -> None:
        self.task = (position, task)
        self.send(pickle.dumps(task))

    def end(self) -> str:
        """Kill the process if it lives, and return how it ended: a signal or an exit code."""
        self.process.kill()
        code = self.process.wait()
        self.link.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _pickled(fn: Callable[[Any], Any]) -> bytes:
    """The function by its module and name, as pickle writes it and workers import it."""
    inner: Any = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    # Such a function would pickle as __main__.NAME, and a worker's __main__ is another module.
    if getattr(inner, "__module__", None) == "__main__":
        raise InputError(
            f"{inner.__qualname__} is a function of the script that was started; workers need it in a module"
        )
    try:
        return pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError, TypeError) as e:
        raise InputError(f"{fn!r:.200} cannot be sent to worker processes: {e}. Use a function of a module") from e
