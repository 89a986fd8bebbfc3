"""Tasks on a Ray cluster, as Ray tasks or in actors that keep a model between tasks."""

import collections
import math
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from alignment.errors import InputError, Stopped
from data.corpus import worker_processes

WAIT = 1.0  # seconds in Ray's compiled code at a time; Python handles signals only between such calls
OBJECTS_BYTES = 128 << 20  # shared memory of a cluster that we start; Ray would take about 30 % of the machine's
TOO_SLOW = "timed out during startup"  # Ray raises a bare Exception with these words, and its limit cannot be set


class Pool:
    """A connection to Ray, and actors where they are wanted; see `executors.opened`.

    Args:
        needs: num_cpus, num_gpus and resources of a task or actor.

    Raises:
        InputError: Ray is not installed, no cluster answers, or it lacks the resources.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        workers: int,
        retries: int,
        address: str,
        needs: Mapping[str, Any],
        actors: bool,
    ):
        self._ray = ray = import_ray()
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _start(ray, address, workers, needs)
        try:
            at_once = workers or _room(ray, needs)
            # An actor takes one task; of plain tasks twice as many are submitted, so that none of Ray's workers waits.
            self._most = at_once if actors else 2 * at_once
            self._pool: Any = _Actors(ray, fn, at_once, retries, needs) if actors else _Tasks(ray, fn, retries, needs)
        except BaseException:
            self.close()
            raise

    def run(self, tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (position, result) as tasks complete; closing the iterator cancels the tasks that run."""
        return _in_flight(self._ray, tasks, self._pool, self._most)

    def close(self) -> None:
        if hasattr(self, "_pool"):
            self._pool.close()
        if self._is_ours:
            self._ray.shutdown()


def _in_flight(ray: Any, tasks: Iterable[Any], pool: Any, most: int) -> Iterator[tuple[int, Any]]:
    """Submit tasks while fewer than `most` are submitted, and yield results as they come."""
    waiting = enumerate(tasks)
    out: dict[Any, tuple[int, Any]] = {}  # Ray's reference to a result: (position, task)
    try:
        while True:
            while len(out) < most and (numbered := next(waiting, None)) is not None:
                out[pool.submit(numbered[1])] = numbered
            if not out:
                return
            try:
                done, _ = ray.wait(list(out), num_returns=1, timeout=WAIT)
            except SystemError as e:  # a signal's handler raised inside Ray's compiled code, which wraps the exception
                raise e.__cause__ or e from None
            for reference in done:
                position, task = out.pop(reference)
                pool.release(reference)
                try:
                    result, error = ray.get(reference)
                except ray.exceptions.RayTaskError as e:  # the worker could not import fn; `attempt` returns fn's own
                    raise worker_processes.failure(getattr(e, "cause", None) or e, position, task) from e
                except ray.exceptions.RayError as e:
                    raise worker_processes.died(position, task, _first_line(e), pool.retries + 1) from e
                if error is not None:
                    raise worker_processes.failure(error, position, task)
                yield position, result
    finally:
        for reference in out:
            pool.cancel(reference)


class _Tasks:
    """Ray tasks. Ray itself tries a task again when its worker dies, and decides how many run at a time."""

    def __init__(self, ray: Any, fn: Callable[[Any], Any], retries: int, needs: Mapping[str, Any]):
        self.ray, self.retries, self.fn = ray, retries, ray.put(fn)
        self.remote = ray.remote(**needs, max_retries=retries)(worker_processes.attempt)

    def submit(self, task: Any) -> Any:
        return self.remote.remote(self.fn, task)

    def release(self, reference: Any) -> None:
        pass

    def cancel(self, reference: Any) -> None:
        self.ray.cancel(reference, force=True)

    def close(self) -> None:
        pass


class _Actors:
    """Processes that stay, with one task each at a time. When one dies, Ray starts it and its task again."""

    def __init__(self, ray: Any, fn: Callable[[Any], Any], num: int, retries: int, needs: Mapping[str, Any]):
        self.ray, self.retries = ray, retries
        make = ray.remote(**needs, max_restarts=-1, max_task_retries=retries)(_Actor)
        self.actors = [make.remote(fn) for _ in range(num)]
        self.idle = collections.deque(self.actors)
        self.busy: dict[Any, Any] = {}  # reference of a task: its actor

    def submit(self, task: Any) -> Any:
        actor = self.idle.popleft()
        reference = actor.attempt.remote(task)
        self.busy[reference] = actor
        return reference

    def release(self, reference: Any) -> None:
        """The actor of a task that is done takes another."""
        self.idle.append(self.busy.pop(reference))

    def cancel(self, reference: Any) -> None:
        pass  # the task ends with its actor, which `close` kills

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)


class _Actor:
    def __init__(self, fn: Callable[[Any], Any]):
        self.fn = fn

    def attempt(self, task: Any) -> tuple[Any, Exception | None]:
        return worker_processes.attempt(self.fn, task)


def import_ray() -> Any:
    """The package, with its usage reports switched off.

    Raises:
        InputError: Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task that requests no accelerator sees none
    try:
        import ray
        import ray.exceptions
    except ImportError as e:
        raise InputError("executor='ray' needs Ray; pip install 'plumbline[ray]', or use executor='process'") from e
    return ray


def _start(ray: Any, address: str, workers: int, needs: Mapping[str, Any]) -> None:
    """Connect to a cluster, or start one on this machine; in both cases our signal handler stays."""
    root = str(pathlib.Path(__file__).resolve().parents[2])  # workers import this package from where the driver has it
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    options = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    address = address or os.environ.get("RAY_ADDRESS", "")  # which Ray sets in jobs that it runs
    if address:
        _check_answers(address)
        options["address"] = address
    else:
        options |= {"address": "local", "_node_ip_address": "127.0.0.1", "include_dashboard": False}
        cpus = max(math.ceil(workers * needs["num_cpus"]), 1) if workers else worker_processes.available_cpus()
        options |= {"num_cpus": cpus, "object_store_memory": OBJECTS_BYTES}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as e:
        where = f"Ray cluster at {address!r}" if address else "Ray on this machine"
        raise InputError(
            f"{where}: {_first_line(e)}. Start one with `ray start --head`, or leave the address out"
        ) from e
    except Exception as e:
        if TOO_SLOW not in str(e):
            raise
        raise Stopped("Ray did not start within its 30 s, for which this machine may be too busy") from e
    except SystemExit as e:  # Ray turns a SIGTERM during its start into this
        raise Stopped("stopped while Ray was starting") from e
    finally:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the process without a word


def _check_answers(address: str, timeout: float = 10.0) -> None:
    """Refuse an address at which nobody answers; Ray itself would wait there for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", or one that Ray refuses at once
    try:
        socket.create_connection((host, int(port)), timeout).close()
    except OSError as e:
        raise InputError(
            f"no Ray cluster answers at address={address!r}: {e}. Start one with `ray start --head`, or leave it out"
        ) from e


def _room(ray: Any, needs: Mapping[str, Any]) -> int:
    """How many tasks the cluster's resources allow at a time."""
    resources = ray.cluster_resources()
    request = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"], **needs["resources"]}
    rooms = [int(resources.get(name, 0) / amount) for name, amount in request.items() if amount > 0]
    room = min(rooms, default=int(resources.get("CPU", 1)))
    if room < 1:
        raise InputError(
            f"the Ray cluster has {resources}, and a task requests {request}; request less, or add such a node"
        )
    return room


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
