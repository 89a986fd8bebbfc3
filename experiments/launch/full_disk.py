"""Report a full disk once, in one message, whatever exception a library turned it into."""

import errno
import logging
import math
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterable

TEXTS = ("No space left on device", "ENOSPC", "Disk quota exceeded", "File too large")  # the last: ulimit -f
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk, quota or file limit is behind an exception; libraries wrap it, so its text counts too."""
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        or any(text in str(e) for text in TEXTS)
        for e in _chain(error)
    )


def unusable(error: BaseException) -> str:
    """What a disk says of a path that cannot be used, such as one without permission; "" for other errors."""
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"{str(error.filename)[:300]}: {error.strerror}; give a path that can be used"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"{error} A path of the command begins with ~ and a name that is not a user's; write it out"
    return ""


def message(error: BaseException, workdir: str, folders: Iterable[str] = ()) -> str:
    """The message: what could not be written, which checkpoint is still good, what to do.

    Args:
        folders: where the run writes besides its workdir; the fullest is named where the exception names no file.
    """
    path = next((e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename), None)
    path = path or min([workdir, *folders], key=_free_bytes)
    steps = [int(p.name) for p in pathlib.Path(workdir, "checkpoints").glob("[0-9]*") if p.name.isdigit()]
    good = f"; the checkpoint of step {max(steps)} in {os.path.join(workdir, 'checkpoints')} is good" if steps else ""
    return f"no space left on the disk while writing {path}{good}. Free some space and start the same command again."


def _free_bytes(folder: str) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return math.inf


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:  # contexts may form a circle
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def say_once() -> None:
    """Keep the threads that write checkpoints from printing hundreds of lines about a full disk.

    The exception itself still reaches the launcher; what goes away is what Orbax's threads, asyncio and TensorStore's
    callbacks log about it on the side.
    """
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _is_other not in logger.filters:
            logger.addFilter(_is_other)
    for owner, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        before = getattr(owner, name)
        if not getattr(before, "is_quiet", False):
            setattr(owner, name, _quiet(before))


def _is_other(record: logging.LogRecord) -> bool:
    """A logging filter: False drops the record."""
    error = record.exc_info[1] if record.exc_info else None
    return not (is_full_disk(error) or any(text in record.getMessage() for text in TEXTS))


def _quiet(before: Callable) -> Callable:
    """A hook for uncaught exceptions that drops those of a checkpoint that could not be written."""

    def hook(unhandled) -> None:
        error = unhandled.exc_value
        if not (is_full_disk(error) or str(error) == "Event loop is closed"):  # the latter: TensorStore's callbacks
            before(unhandled)

    hook.is_quiet = True
    return hook
