"""From an answer's bytes to text that may be sent: whole characters that no stop text can take back."""

import codecs
import dataclasses
from collections.abc import Callable, Sequence

from alignment.decoding import stopping
from alignment.decoding.requests import Token
from experiments.serving.driving import Event


@dataclasses.dataclass
class Written:
    """A token of the answer that has a place in its text.

    Attributes:
        offset: characters of the answer's text before it; a token in the middle of a character counts those before that
            character.
    """

    token: Token
    offset: int


@dataclasses.dataclass
class Part:
    """What an event adds: its text, and the tokens that lie in it."""

    text: str
    tokens: list[Written]


class Writer:
    """Follows one choice. The parts' texts, joined, are the answer's text; so are their tokens, up to a stop text.

    Args:
        pieces: the bytes of every token.
        stops: texts that end the answer.
        drops_space: a space at the very beginning is left out; see `data.tokens.pieces.drops_first_space`.
        keeps_stop: whether a stop token is among the tokens; its text is not.
    """

    def __init__(
        self, pieces: Sequence[bytes], stops: Sequence[str], *, drops_space: bool = False, keeps_stop: bool = False
    ) -> None:
        self.pieces, self._drops_space, self._keeps_stop = pieces, drops_space, keeps_stop
        self._matcher = stopping.Matcher(pieces, stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[tuple[Token, int, int]] = []  # with the bytes [start, end) of the answer that it writes
        self._end = 0  # bytes of all tokens so far
        self._num_chars = 0

    def take(self, event: Event) -> Part:
        """The part that this event makes safe to send."""
        for token in event.tokens:
            start = self._end
            self._end += len(self.pieces[token.id]) if token.id < len(self.pieces) else 0
            self._pending.append((token, start, self._end))
        self._matcher.text = event.text
        safe = len(event.text) if event.is_done else self._matcher.num_safe
        if event.is_done and self._pending:
            if isinstance(event.stop, int):
                del self._pending[len(self._pending) - (not self._keeps_stop) :]
            elif event.stop is not None:
                self._pending = [entry for entry in self._pending if entry[1] < safe]
        parts, tokens = [], []
        while self._pending and (event.is_done or self._pending[0][2] <= safe):
            token, start, end = self._pending.pop(0)
            tokens.append(Written(token, self._num_chars))
            start += self._drops_space and start == 0 and event.text[:1] == b" " and end > 0
            parts.append(self._decoder.decode(event.text[start:end]))
            self._num_chars += len(parts[-1])
        if event.is_done:
            parts.append(self._decoder.decode(b"", final=True))
        return Part("".join(parts), tokens)


def shown(piece: bytes, special: Callable[[], str]) -> str:
    """A token as text, where text is wanted: bytes that are not UTF-8 as OpenAI writes them, special ones by name."""
    if not piece:
        return special()
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
