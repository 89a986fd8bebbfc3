"""Networks that a cell reads, once in a process: those that were trained here, and a user's own file of functions."""

import functools
import importlib.util
import pathlib
import types
from typing import Any

from alignment.errors import InputError


@functools.lru_cache(maxsize=2)
def user_file(path: str, setting: str) -> types.ModuleType:
    """A user's Python file of functions.

    Args:
        setting: its name, for people.

    Raises:
        InputError: no Python file.
    """
    spec = importlib.util.spec_from_file_location(f"user_{pathlib.Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{setting}={path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function(path: str, name: str, setting: str, need: str) -> Any:
    """A function of a user's file.

    Args:
        need: what needs which functions, for people.

    Raises:
        InputError: the file has none of that name.
    """
    function = getattr(user_file(path, setting), name, None)
    if not callable(function):
        raise InputError(f"{setting}={path!r} has no function {name!r}; {need}")
    return function


@functools.lru_cache(maxsize=16)
def small(path: str, what: str) -> Any:
    """A small network as a function of its input: `Surrogate`, or the auto-encoder's method."""
    from alignment.watermark import learned

    if what == "Surrogate":
        model: Any = learned.Surrogate()
        return functools.partial(model.apply, learned.load(path, model))
    model = learned.AutoEncoder()
    return functools.partial(model.apply, learned.load(path, model), method=what)
