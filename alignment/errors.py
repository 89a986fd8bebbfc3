"""The exceptions that speak to a person."""

import contextlib
import contextvars
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class InputError(ValueError):
    """Something a person can put right: a config value, a file, a checkpoint, a mesh.

    The message names the value, the need and a way out. The launcher prints it without a traceback and exits with
    code 2; any other exception is a crash (exit code 1).
    """


class Stopped(Exception):
    """Work that ended early with all it had done saved: the same command goes on from there (exit code 75)."""


def one_of(name: str, value: Any, known: Iterable[Any], *, hint: str = "") -> Any:
    """Return `value` if it is among `known`; the project's one wording for unknown names.

    Args:
        name: what the message calls the value, such as "loss" or "data.source".
        hint: a way out beyond the list, such as a flag; it follows after a semicolon.

    Raises:
        InputError: with the value, the nearest known name and the list.
    """
    known = list(known)
    if value in known:
        return value
    near = difflib.get_close_matches(str(value), [str(k) for k in known], 1)
    listing = ", ".join(str(k) or "''" for k in known) or "nothing"
    nearest = f"; the nearest is {near[0]!r}" if near else ""
    raise InputError(f"{name}={value!r} is not one of: {listing}{nearest}{f'; {hint}' if hint else ''}")


def few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names, and how many more there are, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def within(bounds: str, *, hint: str = "", **values: float | None) -> None:
    """Refuse a number outside of an interval; the project's one wording for that.

    Args:
        bounds: such as "[0, 1)"; "[1, inf)" is at least 1, and "(0, inf)" above 0.
        hint: a way out beyond the need, with the punctuation before it.
        values: the numbers by what the message calls them; None is unset and passes.

    Raises:
        InputError: with the value and the need.
    """
    low, high = bounds[1:-1].split(", ")
    for name, value in values.items():
        if value is None:
            continue
        is_above = value >= float(low) if bounds[0] == "[" else value > float(low)
        is_below = high == "inf" or (value <= float(high) if bounds[-1] == "]" else value < float(high))
        if not is_above or not is_below:
            need = f"in {bounds}" if high != "inf" else f"at least {low}" if bounds[0] == "[" else f"above {low}"
            raise InputError(f"{name}={value} must be {need}{hint}")


_FILES_NEEDED = contextvars.ContextVar("files needed", default=True)


@contextlib.contextmanager
def files_may_be_absent() -> Iterator[None]:
    """Let checks pass over files, folders and packages that this machine lacks: the config is for another one."""
    token = _FILES_NEEDED.set(False)
    try:
        yield
    finally:
        _FILES_NEEDED.reset(token)


def files_needed() -> bool:
    """Whether a check must refuse what does not lie on this machine."""
    return _FILES_NEEDED.get()
