"""Functions that the tests of the executors run in other processes."""

import functools
import os
import pathlib
import sys
import threading
import time

from alignment import files
from alignment.errors import InputError
from data.corpus import executors, shards, slices


class Odd(Exception):
    """Cannot be made again from its message."""

    def __init__(self, first, second):
        super().__init__(f"made of {first} and {second}")


def shout(task):
    return task.upper()


def modules(task):
    return sorted(sys.modules)


def pid(task):
    return os.getpid()


def say_and_sleep(task):
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(task)


def pid_or_refuse(task):
    if task == 5:
        raise InputError("five is one too many")
    return os.getpid()


def note_and_sleep(folder, task):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(task)
    return task


def refuse_three(task):
    if task == 3:
        raise InputError("three is no number for this")
    return task


def odd_error(task):
    raise Odd("two", "parts")


def unsendable(task):
    return threading.Lock()


def killed_at_first(folder, task):
    mark = pathlib.Path(folder, str(task))
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return task


def exit_at_c(task):
    if task == "c":
        os._exit(7)
    return task


def node(task):
    """The Ray node that runs this."""
    import ray

    time.sleep(0.2)
    return ray.get_runtime_context().get_node_id()


def stage(folder, part):
    """A slice's documents in capitals, as a shard, with a note of what is done."""
    items = list(slices.read(part))
    rows = [{**row, "text": row["text"].upper()} for row in items if isinstance(row, dict)]
    name = f"clean/{part.index:05d}.jsonl.zst"
    outputs = {name: shards.write(pathlib.Path(folder, name), slowly(rows))}
    row = {"config_hash": "c0ffee", "outputs": outputs, "bad": len(items) - len(rows)}
    shards.finish(folder, "upper", part.index, row)
    return part.index


def slowly(rows):
    """So that there is a moment at which a writer can be killed."""
    for i, row in enumerate(rows):
        if i % 20 == 0:
            time.sleep(0.004)
        yield row


def run_stage(inputs, folder, executor):
    """What is not done of the stage, resumable."""
    plan = slices.plan(inputs, slice_bytes=3000)
    files.sweep(folder)
    done = shards.finished(folder, "upper", "c0ffee")
    left = [part for part in plan if part.index not in done]
    os.write(1, b"started\n")
    for _ in executors.run(functools.partial(stage, folder), left, executor=executor, workers=2):
        pass
    files.sweep(folder)
