"""Where an answer ends in its text: stop texts are looked for in bytes, so they may cross tokens and half letters."""

from collections.abc import Sequence


class Matcher:
    """Follows one answer token by token.

    Attributes:
        text: the answer's bytes so far, up to the stop text if one was met.
    """

    def __init__(self, pieces: Sequence[bytes], stops: Sequence[str]) -> None:
        self.pieces, self.text = pieces, b""
        self.stops = [(stop, stop.encode("utf-8", "surrogatepass")) for stop in stops]
        self._longest = max((len(raw) for _, raw in self.stops), default=0)

    def feed(self, token: int) -> str | None:
        """Take the answer's next token; the stop text that it completes, the one that begins first if there are
        several.
        """
        searched_to = max(len(self.text) - self._longest + 1, 0)  # a stop text may have begun there
        self.text += self.pieces[token] if token < len(self.pieces) else b""
        starts = [(at, stop) for stop, raw in self.stops if (at := self.text.find(raw, searched_to)) >= 0]
        if not starts:
            return None
        at, stop = min(starts, key=lambda pair: pair[0])
        self.text = self.text[:at]
        return stop

    @property
    def num_safe(self) -> int:
        """Bytes of the text that no stop text can take back, because it would have to begin within them."""
        for num in range(min(self._longest - 1, len(self.text)), 0, -1):
            tail = self.text[len(self.text) - num :]
            if any(raw.startswith(tail) for _, raw in self.stops):
                return len(self.text) - num
        return len(self.text)
