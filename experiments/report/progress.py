"""Progress of work that is not training: a bar with rate and time left on a terminal, a line now and then otherwise."""

import datetime
import math
import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Call `advance` as parts of a whole of known size are done, and `close` at the end.

    Args:
        label: what is going on; it comes first in the line.
        total: size of the whole, in any unit, such as bytes.
        items: name of what is counted beside it.
        every_seconds: time between two lines where the stream is not a terminal.
    """

    def __init__(
        self,
        label: str,
        total: float,
        *,
        items: str = "documents",
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._label, self._total, self._done = label, max(total, 1), 0.0
        self._items, self._items_name, self._clock, self._start = 0, items, clock, clock()
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._every = 0.1 if self._is_terminal else every_seconds
        self._drawn = -math.inf if self._is_terminal else self._start

    def advance(self, size: float, items: float = 0, said: str = "") -> None:
        """Count `size` more of the whole and `items` more items; `said` is a word about how it stands."""
        self._done += size
        self._items += items
        if self._clock() - self._drawn >= self._every:
            self._drawn = self._clock()
            self._show(said)

    def close(self, said: str = "") -> None:
        self._show(said)
        if self._is_terminal:
            print(file=self._stream, flush=True)

    def erase(self) -> None:
        """Remove the bar; for use instead of `close` where a line of another kind says how it ended."""
        if self._is_terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def _show(self, said: str) -> None:
        seconds = max(self._clock() - self._start, 1e-9)
        share = min(1.0, self._done / self._total)
        text = f"{self._label} {100 * share:.0f} %"
        if self._items:
            rate = self._items / seconds
            text += f"  {self._items:,.0f} {self._items_name}, {rate:{',.0f' if rate >= 1 else '.2g'}}/s"
        if 0 < share < 1:
            text += f"  {datetime.timedelta(seconds=round(seconds * (1 - share) / share))} left"
        text += f"  {said}" if said else ""
        if self._is_terminal:
            bar = "█" * int(24 * share) + "░" * (24 - int(24 * share))
            print(f"\r{bar} {text}\x1b[K", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)
