"""Functions that the tests of the executors run in other processes."""

import os
import pathlib
import sys
import threading
import time

from alignment.errors import InputError


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
