"""Processes that are started to work for this one."""

import multiprocessing
import os
import threading


def end_with_parent(*_: object) -> None:
    """In a worker process, first: it ends when its parent is gone, even if that was killed.

    Args:
        _: what a pool of workers gives to the function that begins one.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            # Returns however the parent ends: the system closes the pipe that this waits on.
            parent.join()
            # Not sys.exit, which in a thread ends this thread only.
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
