"""Answers in the shapes of OpenAI's interface: whole ones and chunks, of both kinds of completion."""

import dataclasses
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from alignment.decoding.requests import Token
from experiments.serving.text import Part, Written

FEWEST = -9_999.0  # what OpenAI writes for a log-probability that is not a number


@dataclasses.dataclass
class Choice:
    """One answer as it is put together.

    Attributes:
        echo: the prompt's text and tokens, before the answer's, where the request asked for them.
        has_begun: whether an event has come, and with it the prompt's scores.
    """

    index: int
    echo: Part | None = None
    text: str = ""
    tokens: list[Written] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    has_begun: bool = False


@dataclasses.dataclass
class Usage:
    """Tokens read and written; of samples of one prompt, the prompt counts once."""

    prompt: int
    cached: int = 0
    completion: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Shape:
    """How one request is answered.

    Args:
        model: the name that is served.
        fingerprint: of the weights, the numerics and the slots.
        shown: a token's id -> its text.
        raw: a token's id -> its bytes.
        num_top: likeliest tokens beside each; None: no log-probabilities.
        members: names of the models that chose the tokens, where the request wants each one's log-probabilities.
    """

    prefix, name, chunk_name = "", "", ""

    def __init__(
        self,
        *,
        model: str,
        fingerprint: str,
        shown: Callable[[int], str],
        raw: Callable[[int], bytes],
        num_top: int | None,
        members: Sequence[str] = (),
    ) -> None:
        self.shown, self.raw, self.num_top, self.members = shown, raw, num_top, members
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._head["system_fingerprint"] = fingerprint

    @property
    def id(self) -> str:
        return str(self._head["id"])

    @property
    def scores_tokens(self) -> bool:
        """Whether tokens without text have something to say."""
        return self.num_top is not None or bool(self.members)

    def body(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        listed = [self.choice(choice) for choice in choices]
        return {**self._head, "object": self.name, "choices": listed, "usage": usage.body()}

    def chunk(self, choices: Sequence[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """One event of a stream; the last one of a stream with usage has no choices."""
        counted = {} if usage is None else {"usage": usage.body()}
        return {**self._head, "object": self.chunk_name, "choices": list(choices), **counted}

    def choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """What a stream begins a choice with."""
        raise NotImplementedError

    def delta(self, index: int, part: Part, finish_reason: str | None) -> dict[str, Any]:
        """What a stream adds to a choice."""
        raise NotImplementedError

    def _guidance(self, tokens: Sequence[Written]) -> dict[str, Any]:
        """For each model, the log-probability of every token of the answer."""
        if not self.members:
            return {}
        each = [[number(written.token.by_model[w]) for written in tokens] for w in range(len(self.members))]
        return {"guidance": dict(zip(self.members, each))}

    def _top(self, token: Token) -> list[tuple[int, float]]:
        return [(i, number(x)) for i, x in token.top[: self.num_top or 0]]


class TextShape(Shape):
    """Of POST /v1/completions. With echo, offsets count from the prompt's beginning."""

    prefix, name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, *, echo_chars: Sequence[int] = (), **options: Any) -> None:
        """`echo_chars`: for each choice, the length of the prompt's text, if it is echoed."""
        super().__init__(**options)
        self.echo_chars = echo_chars

    def choice(self, choice: Choice) -> dict[str, Any]:
        before = choice.echo or Part("", [])
        tokens = [*before.tokens, *self._moved(choice.index, choice.tokens)]
        return {
            "index": choice.index,
            "text": before.text + choice.text,
            "logprobs": self._logprobs(tokens),
            "finish_reason": choice.finish_reason,
            **self._guidance(choice.tokens),
        }

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        if choice.echo is None:
            return None
        logprobs = self._logprobs(choice.echo.tokens)
        return {"index": choice.index, "text": choice.echo.text, "logprobs": logprobs, "finish_reason": None}

    def delta(self, index: int, part: Part, finish_reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(self._moved(index, part.tokens))
        said = {"index": index, "text": part.text, "logprobs": logprobs, "finish_reason": finish_reason}
        return said | self._guidance(part.tokens)

    def _moved(self, index: int, tokens: Sequence[Written]) -> list[Written]:
        by = self.echo_chars[index] if self.echo_chars else 0
        return [Written(t.token, t.offset + by) for t in tokens]

    def _logprobs(self, tokens: Sequence[Written]) -> dict[str, Any] | None:
        if self.num_top is None:
            return None
        tops: list[dict[str, float] | None] = []
        for written in tokens:
            top: dict[str, float] = {}
            for i, logprob in [*self._top(written.token), (written.token.id, number(written.token.logprob))]:
                top.setdefault(self.shown(i), logprob)  # two ids may be written alike; the likelier one is there
            tops.append(None if _is_unscored(written) else top)
        return {
            "tokens": [self.shown(t.token.id) for t in tokens],
            "token_logprobs": [None if _is_unscored(t) else number(t.token.logprob) for t in tokens],
            "top_logprobs": tops if self.num_top else None,
            "text_offset": [t.offset for t in tokens],
        }


class ChatShape(Shape):
    """Of POST /v1/chat/completions."""

    prefix, name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": choice.finish_reason,
            **self._guidance(choice.tokens),
        }

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, part: Part, finish_reason: str | None) -> dict[str, Any]:
        delta = {"content": part.text} if part.text or part.tokens else {}
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(part.tokens) if delta else None,
            "finish_reason": finish_reason,
            **self._guidance(part.tokens),
        }

    def _logprobs(self, tokens: Sequence[Written]) -> dict[str, Any] | None:
        if self.num_top is None:
            return None
        content = []
        for written in tokens:
            top = [self._one(i, logprob) for i, logprob in self._top(written.token)]
            content.append({**self._one(written.token.id, number(written.token.logprob)), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _one(self, i: int, logprob: float) -> dict[str, Any]:
        return {"token": self.shown(i), "logprob": logprob, "bytes": list(self.raw(i))}


def number(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else FEWEST


def unscored(i: int) -> Token:
    """A token of a prompt that nothing comes before, so that it has no log-probability."""
    return Token(i, math.nan)


def _is_unscored(written: Written) -> bool:
    return math.isnan(written.token.logprob)
