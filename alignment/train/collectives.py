"""Collectives of a compiled program: how often each sort is called in one run, and what a device sends for it.

Read from the program's text. What stands in the body of a loop counts as often as the loop turns, where XLA knows that
number (it does for the scans over layers and over parts of a batch), and once where the number depends on data.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

SORTS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0}  # bytes; of the others the name says the bits

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(SORTS)})(-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_LIMIT = re.compile(r" = s32\[\][^ ]* constant\((\d+)\)")
_TURNS = re.compile(r'known_trip_count"?:\{"n":"(\d+)"\}')
_CALLS = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_WAITS = re.compile(r" async-(?:done|update)\(")
_DEVICES = re.compile(r"(?:num_partitions|replica_count)=(\d+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class _Call(NamedTuple):
    """A call of a computation; `times` is None for a loop whose condition alone decides how often it turns."""

    computation: str
    times: int | None
    condition: str = ""


def count(text: str) -> dict[str, tuple[int, float]]:
    """For each sort that a program has: the number of calls in one run, and the bytes that one device sends in all.

    Args:
        text: of a compiled program, `as_text()`. A ring is assumed: g devices gather n bytes by sending n (g - 1) / g
            each, and add up n bytes by sending twice as much.
    """
    bodies, entry = _computations(text)
    sent: dict[str, tuple[int, float]] = {}
    if entry:
        sizes = map(int, _DEVICES.findall(text.partition("\n\n")[0]))  # of the header
        _add(entry, 1, bodies, {}, sent, math.prod(sizes))
    return sent


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that the program begins with."""
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            bodies[name] = []
            entry = name if start[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _add(
    name: str,
    times: int,
    bodies: Mapping[str, list[str]],
    known: dict[str, tuple[list[tuple[str, float]], list[_Call]]],
    sent: dict[str, tuple[int, float]],
    num_devices: int,
) -> None:
    if name not in known:
        lines = bodies.get(name, [])
        known[name] = (
            [one for line in lines if (one := _collective(line, num_devices))],
            [call for line in lines for call in _calls(line)],
        )
    own, calls = known[name]
    for sort, size in own:
        number, total = sent.get(sort, (0, 0.0))
        sent[sort] = (number + times, total + times * size)
    for call in calls:
        turns = _turns(bodies.get(call.condition, [])) if call.times is None else call.times
        _add(call.computation, times * turns, bodies, known, sent, num_devices)


def _turns(condition: list[str]) -> int:
    """How often a loop turns that counts up to a constant; 1 where its condition compares with something else."""
    limits = [int(hit[1]) for line in condition if (hit := _LIMIT.search(line))]
    is_counted = any(" compare(" in line and "direction=LT" in line for line in condition)
    return limits[0] if is_counted and len(limits) == 1 else 1


def _calls(line: str) -> Iterator[_Call]:
    if loop := _WHILE.search(line):
        turns = _TURNS.search(line)
        yield _Call(loop[2], int(turns[1]) if turns else None, loop[1])
    elif branches := _BRANCHES.search(line):
        for name in branches[1].split(","):
            yield _Call(name.strip().lstrip("%"), 1)
    elif not _COLLECTIVE.search(line) and not _WAITS.search(line):  # what a sum applies has no collective
        yield from (_Call(name, 1) for name in _CALLS.findall(line))


def _collective(line: str, num_devices: int) -> tuple[str, float] | None:
    """The sort of a line's collective and the bytes that a device sends for it; None for any other line."""
    hit = _COLLECTIVE.search(line)
    if hit is None:
        return None
    sort = hit[2]
    sizes = [_bytes(kind, dims) for kind, dims in _SHAPE.findall(hit[1])]
    if hit[3] and sort in ("all-gather", "collective-permute"):  # a pair of what goes in and what comes out, and marks
        size = max(sizes, default=0.0)
    else:
        size = sum(sizes)
    group = _group(line, num_devices)
    share = (group - 1) / group
    if sort == "all-reduce":
        return sort, 2 * size * share
    if sort == "reduce-scatter":  # its output is one piece of what is added up
        return sort, size * (group - 1)
    return sort, size if sort.startswith("collective") else size * share


def _bytes(kind: str, dims: str) -> float:
    bits = re.search(r"\d+", kind)
    width = WIDTHS.get(kind, int(bits[0]) / 8 if bits else 1)
    return width * math.prod(map(int, filter(None, dims.split(","))))


def _group(line: str, num_devices: int) -> int:
    """How many devices take part in one collective; all where its line lists none."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return max(len(listed[1].split(",")), 1)
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", named[2]))
    return num_devices
