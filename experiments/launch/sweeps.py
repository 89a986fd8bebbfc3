"""Sweeps: from the override sets an experiment yields to points with a stable id and a folder each."""

import copy
import dataclasses
import difflib
import hashlib
import json
import os
import re
import signal
import subprocess
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import files
from alignment.errors import InputError
from experiments.launch import host
from experiments.launch import workdir as workdirs

SHAPING = ("model", "adapter", "compute", "mesh", "batch", "accumulate")  # parts of a config that shape its programs
CODES = "PLUMBLINE_SWEEP_CODES"  # the end of a pipe into which points of one process write their exit codes


@dataclasses.dataclass(frozen=True)
class Point:
    """One set of overrides; `id` names its folder and depends on the overrides alone, not on its place in the list."""

    index: int
    id: str
    overrides: dict[str, Any]

    def workdir(self, folder: str) -> str:
        return os.path.join(folder, self.id)


def point_id(overrides: Mapping[str, Any]) -> str:
    """`objective.beta=0.05,seed=0`; what a file name cannot hold becomes `-`, and a hash then keeps ids apart."""
    text = ",".join(f"{key}={_value(value)}" for key, value in overrides.items()) or "default"
    safe = re.sub(r"[^A-Za-z0-9._=,+-]", "-", text)[:120]
    if safe == text:
        return text
    exact = json.dumps(workdirs.plain(dict(overrides)), sort_keys=True)
    return f"{safe},{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _value(value: Any) -> str:
    return "x".join(_value(v) for v in value) if isinstance(value, (list, tuple)) and value else str(value)


def points(yielded: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Number the override sets of `sweep()`; the same set twice would share a folder and is refused."""
    by_id: dict[str, Point] = {}
    for index, overrides in enumerate(yielded):
        if not isinstance(overrides, Mapping):
            raise InputError(f"sweep() yielded {overrides!r}; it must yield dicts such as {{'objective.beta': 0.1}}")
        point = Point(index, point_id(overrides), dict(overrides))
        if point.id in by_id:
            raise InputError(f"sweep() yields {point.id} twice (points {by_id[point.id].index} and {index})")
        by_id[point.id] = point
    if not by_id:
        raise InputError("sweep() yields no point")
    return list(by_id.values())


def apply(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A locked copy of the config with the overrides in; a key it does not have, or a wrong type, is refused."""
    changed = copy.deepcopy(config).lock()  # ConfigDict(config) would share the nested parts
    for key, value in overrides.items():
        require_key(config, key, "sweep()")
        if value is None and not may_be_unset(config, key):
            raise InputError(f"sweep() sets {key}=None: {key} cannot be unset; give it a value")
        value = tuple(value) if isinstance(value, list) else value
        try:
            changed.update_from_flattened_dict({key: value})
        except (TypeError, ValueError, KeyError) as e:
            raise InputError(f"sweep() sets {key}={value!r}: {e.args[0]}") from e
    return changed


def require_key(config: ml_collections.ConfigDict, key: str, who: str) -> None:
    """Refuse a dotted key that the config does not have, naming the nearest one it has."""
    known = list(_every_key(config))
    if key in known:
        return
    near = difflib.get_close_matches(key, known, 1, 0.6)
    hint = f'did you mean "{near[0]}"?' if near else f"the config has {', '.join(k for k in known if '.' not in k)}"
    raise InputError(f"{who} names {key}, which is not in the config; {hint}")


def may_be_unset(config: ml_collections.ConfigDict, key: str) -> bool:
    """Whether None is a value of this leaf: its default is None, or it was made by `config_dict.placeholder`."""
    leaves = dict(_references(config))
    leaf = leaves[key]
    if isinstance(leaf, config_dict.FieldReference):
        return sum(other is leaf for other in leaves.values()) == 1  # one that others follow is a value with a name
    return leaf is None or isinstance(leaf, str)


def _references(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and leaves, a reference or placeholder as itself and not as its value."""
    for key, leaf in config.items(preserve_field_references=True):
        if isinstance(leaf, ml_collections.ConfigDict):
            yield from _references(leaf, f"{prefix}{key}.")
        else:
            yield prefix + key, leaf


def _every_key(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    for key in config:
        yield prefix + key
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict):
            yield from _every_key(value, f"{prefix}{key}.")


def listing(points: list[Point], folder: str) -> Iterable[str]:
    """One JSON object for each point: index, id, overrides, workdir, whether it is done."""
    for point in points:
        place = point.workdir(folder)
        row = dataclasses.asdict(point) | {"workdir": place, "is_done": workdirs.is_done(place)}
        yield json.dumps(workdirs.plain(row))


def check_index(points: list[Point], folder: str, experiment: str) -> None:
    """Refuse a folder that holds another sweep; one whose points are all among these is joined and grows.

    Raises:
        InputError: with the points that only one of the two has.
    """
    there = workdirs.read_json(os.path.join(folder, "sweep.json"))
    if there is None:
        return
    lines = []
    if there.get("experiment", experiment) != experiment:
        lines.append(f"experiment: {there['experiment']!r} there, {experiment!r} now")
    ids, old = [point.id for point in points], [point["id"] for point in there.get("points", [])]
    was_begun = any(os.path.exists(os.path.join(folder, name, "config.json")) for name in old)
    missing = [name for name in old if name not in ids]
    if (missing or lines) and was_begun:
        new = [name for name in ids if name not in old]
        lines += [f"{name}: a point there, not now" for name in missing]
        lines += [f"{name}: a point now, not there" for name in new]
        listing = "\n".join(f"  {line}" for line in lines[:20]) + ("\n  ..." if len(lines) > 20 else "")
        raise InputError(
            f"{folder} already holds another sweep:\n{listing}\n"
            "Give this sweep a --workdir of its own, or keep the points there among its points."
        )


def write_index(points: list[Point], folder: str, experiment: str) -> None:
    """Write sweep.json, from which the report knows a sweep's folder and the order of its points."""
    workdirs.make(folder)
    rows = [{"index": p.index, "id": p.id, "overrides": p.overrides} for p in points]
    files.write_json(os.path.join(folder, "sweep.json"), workdirs.plain({"experiment": experiment, "points": rows}))


def check_batched(points: list[Point], configs: list[ml_collections.ConfigDict]) -> None:
    """Refuse points that cannot be steps of one program, as far as their configs show it.

    Args:
        configs: of the points, in their order.

    Raises:
        InputError: with a point, the key in which it differs from the first, and both values.
    """
    flat = [workdirs.flatten(workdirs.plain(config)) for config in configs]
    for point, own in zip(points[1:], flat[1:]):
        for key in own.keys() | flat[0].keys():
            first, value = flat[0].get(key), own.get(key)
            is_number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (first, value))
            if first != value and (not is_number or key.split(".")[0] in SHAPING):
                raise InputError(
                    f"--sweep_batched: point {point.id} has {key}={value!r} and point {points[0].id} {first!r}, which "
                    "makes them different programs; points of one program differ in numbers that it takes as "
                    "arguments, such as seed, optimizer.peak_lr or objective.beta. Leave --sweep_batched out, or let "
                    "sweep() yield such points only"
                )


def run_all(
    points: list[Point],
    folder: str,
    argv: list[str],
    say: Callable[[str], None],
    finished: Collection[str] = (),
    *,
    at_once: int | None = None,
    are_batched: bool = False,
) -> int:
    """Run every unfinished point, in one process for all or in one for every `at_once` points.

    A point that ends the process which it shares, by a signal or for want of memory, has failed; those behind it go on
    in a new one. Of points that `are_batched` all have failed that had not ended by then.

    Args:
        argv: the launcher's arguments without `--sweep`; each process adds the `--sweep_index` of its points.
        finished: ids of points in which nothing is left to do.

    Returns:
        0 if all are done; 75 if stopped; else 1 if a point crashed and 2 if every failure was bad input.
    """
    codes: dict[str, int] = {}
    stopped: list[int] = []
    waiting = []
    for point in points:
        if point.id in finished:
            say(f"{place(point, len(points))}: done already")
            codes[point.id] = 0
        else:
            waiting.append(point)
    while waiting:
        here = waiting[:at_once]
        if len(here) == 1:
            say(f"{place(here[0], len(points))}: starting")
        ended, code = _run_together(here, argv, stopped)
        if stopped or code == host.STOPPED:
            return host.STOPPED
        lost = [point for point in here if point.index not in ended]
        for point in lost if are_batched else lost[:1]:
            ended[point.index] = code
            say(f"{place(point, len(points))}: {outcome(code)}")
        codes |= {point.id: ended[point.index] for point in here if point.index in ended}
        waiting = [point for point in waiting if point.id not in codes]
    failed = {name: code for name, code in codes.items() if code}
    for name, code in failed.items():
        say(f"failed with exit code {code}: {name}")
    say(f"{len(codes) - len(failed)} of {len(points)} points are done")
    return overall(codes.values())


def overall(codes: Iterable[int]) -> int:
    """The exit code of several points: 0 if all are done, 2 if every failure was bad input, else 1."""
    failed = {code for code in codes if code}
    return 0 if not failed else 2 if failed == {2} else 1


def chosen(points: list[Point], wanted: list[str] | None) -> list[Point]:
    """The points of `--sweep_index`, in order; all of them for None.

    Raises:
        InputError: one that the sweep does not have, or that is not a number.
    """
    if wanted is None:
        return points
    known = {str(point.index): point for point in points}
    for number in wanted or [""]:
        if number not in known:
            raise InputError(f"--sweep_index={','.join(wanted)}: the sweep has points 0 to {len(points) - 1}")
    return [point for number, point in known.items() if number in wanted]


def without_flags(argv: list[str]) -> list[str]:
    """The launcher's arguments without those that choose points of a sweep."""
    rest, is_value = [], False
    for argument in argv:
        name, equals, _ = argument.lstrip("-").partition("=")
        is_flag = argument.startswith("-") and name in ("sweep", "sweep_apart", "sweep_index")
        if not is_flag and not is_value:
            rest.append(argument)
        is_value = is_flag and name == "sweep_index" and not equals
    return rest


def place(point: Point, num: int) -> str:
    """How messages name one of `num` points."""
    return f"[{point.index + 1}/{num}] {point.id}"


def outcome(code: int) -> str:
    return "done" if code == 0 else f"exit code {code}"


def open_report() -> int | None:
    """Where a process of several points reports them to the one that runs the sweep; None if a person started it."""
    end = os.environ.pop(CODES, None)
    return None if end is None else int(end)


def report(end: int | None, point: Point, code: int) -> None:
    """Say with which code a point has ended."""
    if end is not None:
        os.write(end, f"{point.index} {code}\n".encode())


def _run_together(points: list[Point], argv: list[str], stopped: list[int]) -> tuple[dict[int, int], int]:
    """Run points in one process; the exit codes of those of several that it has come to the end of, and its own."""
    command = [*host.python_command(), *argv, f"--sweep_index={','.join(str(point.index) for point in points)}"]
    if len(points) == 1:
        return {}, _run(command, stopped)
    # A pipe, because the process may die at any point; what it writes, a few bytes a point, fits into the pipe.
    read_end, write_end = os.pipe()
    try:
        code = _run(command, stopped, pass_fds=(write_end,), env={**os.environ, CODES: str(write_end)})
        os.set_blocking(read_end, False)  # a process that the points left behind may hold the other end
        try:
            lines = os.read(read_end, 1 << 16).decode().splitlines()
        except BlockingIOError:
            lines = []
    finally:
        os.close(read_end)
        os.close(write_end)
    return {int(index): int(code) for index, code in (line.split() for line in lines)}, code


def _run(command: list[str], stopped: list[int], **options: Any) -> int:
    """Run a child to its end, passing a SIGTERM on to it so that it can save; `options` of `subprocess.Popen`."""
    child: subprocess.Popen | None = None

    def pass_on(number: int, frame: types.FrameType | None) -> None:
        stopped.append(number)
        if child is not None:
            child.send_signal(signal.SIGTERM)

    # The handler is in place before the child is: a SIGTERM between the two is kept in `stopped` and passed on below.
    before = {number: signal.getsignal(number) for number in host.STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(command, **options)
        if stopped:  # while the child was being started
            child.send_signal(signal.SIGTERM)
        return child.wait()
    except KeyboardInterrupt:  # the terminal sent it to the child as well
        child.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
