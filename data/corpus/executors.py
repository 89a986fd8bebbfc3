"""A function run over tasks: in this process, in worker processes, or on Ray, with the same results.

Results come in the order in which tasks complete. When a worker dies (killed, out of memory), another one gets its
task; when the function raises, the run ends. So a task must leave the same files behind however often it is started, as
stages that write with `data/corpus/shards.py` do.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import InputError, one_of
from data.corpus import worker_processes
from data.corpus.worker_processes import WorkerDied

__all__ = ["WorkerDied", "opened", "run", "share"]

EXECUTORS = ("local", "process", "ray")


@contextlib.contextmanager
def opened(
    fn: Callable[[Any], Any],
    *,
    executor: str = "local",
    workers: int = 0,
    retries: int = 2,
    address: str = "",
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    resources: Mapping[str, float] | None = None,
    actors: bool = False,
) -> Iterator[Callable[[Iterable[Any]], Iterator[tuple[int, Any]]]]:
    """A function `run_tasks(tasks)` that may be called several times with the same workers; they end with the block.

    `run_tasks` yields (position, fn(task)) as tasks complete; `position` counts tasks from 0. A worker has one task at
    a time. Closing the iterator, or any exception, kills the workers that are busy.

    Args:
        fn: for `process` and `ray` a function of a module (not of the script that was started), or a
            `functools.partial` of one. It may keep what is costly to set up, such as a model, in its module.
        executor: "local" in this process, "process" in processes of this machine, "ray" on a Ray cluster.
        workers: processes, or tasks at a time on Ray; 0 is one a CPU core (on Ray: as many as its resources allow).
        retries: how often a task is tried again after its worker died.
        address: of a running Ray cluster ("auto", "host:6379"); "" starts one here and ends it.
        num_cpus, num_gpus, resources: what a task (or actor) requests of Ray, such as {"TPU": 4}.
        actors: on Ray, keep `workers` processes that run all tasks, for functions that keep a model.

    Raises:
        InputError: an unknown executor, a negative number, a function that cannot be sent, or no Ray.
        WorkerDied: the workers of one task died more than `retries` times.
        Exception: what fn raised, with a note that names the task.
    """
    check(executor, workers, retries)
    if executor == "local":
        yield functools.partial(_local, fn)
        return
    pool: Any
    if executor == "process":
        number = workers or worker_processes.available_cpus()
        pool = worker_processes.Pool(fn, workers=number, retries=retries)
    else:
        from data.corpus import on_ray  # imports Ray, which is an extra

        needs = {"num_cpus": num_cpus, "num_gpus": num_gpus, "resources": dict(resources or {})}
        pool = on_ray.Pool(fn, workers=workers, retries=retries, address=address, needs=needs, actors=actors)
    with contextlib.closing(pool):
        yield pool.run


def run(
    fn: Callable[[Any], Any], tasks: Iterable[Any], *, executor: str = "local", workers: int = 0, **options: Any
) -> Iterator[tuple[int, Any]]:
    """`opened` for one list of tasks: yield (position, fn(task)) as tasks complete."""
    check(executor, workers, options.get("retries", 0))  # at the call; the generator below starts with its first item

    def results() -> Iterator[tuple[int, Any]]:
        with opened(fn, executor=executor, workers=workers, **options) as run_tasks:
            yield from run_tasks(tasks)

    return results()


def check(executor: str, workers: int = 0, retries: int = 0) -> None:
    """Refuse an unknown executor, negative numbers, and Ray where it is not installed."""
    one_of("executor", executor, EXECUTORS)
    if workers < 0 or retries < 0:
        raise InputError(f"workers={workers}, retries={retries}: both are 0 or more")
    if executor == "ray":
        from data.corpus import on_ray

        on_ray.import_ray()


def share(tasks: Sequence[Any], index: int, count: int) -> list[Any]:
    """The tasks of job `index` in an array of `count` jobs: every `count`-th task, beginning with its own index.

    Raises:
        InputError: `index` is not one of 0 to count - 1.
    """
    if not 0 <= index < count:
        raise InputError(f"shard_index={index} of shard_count={count}: indices go from 0 to shard_count - 1")
    return list(tasks[index::count])


def _local(fn: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    for position, task in enumerate(tasks):
        try:
            result = fn(task)
        except Exception as e:
            e.add_note(f"in task {position}: {task!r:.500}")
            raise
        yield position, result
