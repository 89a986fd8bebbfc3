"""Send documents through a rewriter: cut into chunks, request in batches, cache the answers, join them.

Chunks end at the end of a paragraph, or else of a line, a sentence, a word. The white space between them is stored and
put back, so that a rewriter which changes nothing returns the identical text.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from alignment.decoding import backends
from alignment.decoding import cache as caches
from alignment.errors import within
from alignment.filtering.rewriting import conduct

_BORDERS = (  # white space between chunks, the best kind first
    re.compile(r"\s*\n\s*\n\s*"),
    re.compile(r"\s*\n\s*"),
    re.compile(r"(?<=[.!?؟…。])\s+|(?<=[.!?؟…][\"'»”)\]])\s+"),
    re.compile(r"\s+"),
)
CountTokens = Callable[[str], int]


def count_tokens(text: str) -> int:
    """An estimate without a tokenizer: 1.3 tokens a word, and at least one every eight characters."""
    return max(math.ceil(1.3 * len(text.split())), len(text) // 8)


def rewrite(
    records: Sequence[Mapping],
    complete: backends.Complete,
    code: conduct.Conduct,
    cache: caches.Cache,
    *,
    kind: str = "rewrite",
    count_tokens: CountTokens = count_tokens,
    max_tokens: int = 1_500,
    batch_size: int = 64,
    model: str = "",
    sampling: Mapping | None = None,
) -> list[str | None]:
    """The records' texts in the model's words, in order; None for a text of which any chunk has no answer.

    Requests with an answer in the cache are not sent. When the backend is `Down`, all answers so far are in the cache,
    and the same call continues from there later. White space around an answer is replaced by the original's.

    Args:
        records: `{"text": ...}` each.
        complete: a backend; see `backends`.
        code: the code of conduct in the prompts.
        cache: answers of earlier calls.
        kind: one of conduct.KINDS; "educate" and "refuse" write a new text from the first chunk alone.
        count_tokens: the number of tokens of a text, by the backend's tokenizer.
        max_tokens: of a chunk. An answer may have 1.3 times the tokens of its chunk, plus 64.
        batch_size: requests of one call of the backend.
        model, sampling: what else an answer depends on; they are part of the cache's key.

    Raises:
        InputError: numbers below 1.
        Down: the backend no longer answers.
    """
    within("[1, inf)", max_tokens=max_tokens, batch_size=batch_size)
    documents = [split(record["text"], count_tokens=count_tokens, max_tokens=max_tokens) for record in records]
    if kind != "rewrite":
        # A new text needs only the gist, and the first chunk has it; none of the original's white space applies.
        documents = [(["", ""] if bodies else [""], bodies[:1]) for _, bodies in documents]
    bodies = [body for _, document in documents for body in document]
    requests: dict[str, tuple[backends.Messages, int]] = {}
    keys = []
    for body in bodies:
        messages = conduct.prompt(code, body, kind)
        max_new = int(1.3 * count_tokens(body)) + 64
        settings = {**(sampling or {}), "max_new": max_new}
        keys.append(caches.key(messages, model=model, sampling=settings))
        # Equal chunks, such as notices, are one request.
        requests.setdefault(keys[-1], (messages, max_new))
    answers = iter(map(_ask(requests, complete, cache, batch_size).get, keys))
    return [_joined(gaps, [next(answers) for _ in document]) for gaps, document in documents]


def echo(edit_fn: Callable[[str], str] = lambda text: text, *, retries: int = 3) -> backends.Complete:
    """A backend without a model: it answers each prompt with the prompt's own text, changed by `edit_fn`.

    `edit_fn` may raise TimeoutError (tried again, after the last try the answer is None) and `backends.Down` (raised
    again with the answers before it).
    """

    def answer(text: str) -> str | None:
        for _ in range(1 + retries):
            try:
                return edit_fn(text)
            except TimeoutError:
                continue
        return None

    def complete(chats: Sequence[backends.Messages], max_new: Sequence[int]) -> list[str | None]:
        answers: list[str | None] = []
        for chat in chats:
            try:
                answers.append(answer(conduct.text_of(chat)))
            except backends.Down as e:
                raise backends.Down(str(e), answers) from e
        return answers

    return complete


def _ask(
    requests: Mapping[str, tuple[backends.Messages, int]],
    complete: backends.Complete,
    cache: caches.Cache,
    batch_size: int,
) -> dict[str, str | None]:
    """An answer for each key, from the cache or from the backend; equal requests are sent once."""
    answers = {key: _usable(cache.get(key), messages) for key, (messages, _) in requests.items()}
    missing = [key for key, answer in answers.items() if answer is None]
    for at in range(0, len(missing), batch_size):
        batch = missing[at : at + batch_size]
        messages, max_new = zip(*(requests[key] for key in batch))
        try:
            fresh = complete(list(messages), list(max_new))
        except backends.Down as e:
            _store(cache, requests, batch, e.answers, answers)
            raise
        _store(cache, requests, batch, fresh, answers)
    return answers


def _store(
    cache: caches.Cache,
    requests: Mapping[str, tuple[backends.Messages, int]],
    keys: Sequence[str],
    fresh: Sequence[str | None],
    answers: dict[str, str | None],
) -> None:
    """Put fresh answers into the cache and into `answers`; one that cannot be stored is none."""
    for key, answer in zip(keys, fresh):
        answer = _usable(answer, requests[key][0])
        if answer is not None:
            cache.put(key, answer)
            answers[key] = answer


def _usable(answer: str | None, messages: backends.Messages) -> str | None:
    """The answer, or None if it cannot be stored and its prompt could."""
    if answer is None or backends.is_storable(answer) or not backends.is_storable(messages[-1]["content"]):
        return answer
    return None


def _joined(gaps: Sequence[str], answers: Sequence[str | None]) -> str | None:
    """The answers with the original's white space around them; None if one is missing."""
    bodies = [conduct.unwrapped(answer).strip() for answer in answers if answer is not None]
    if len(bodies) < len(answers):
        return None
    return "".join(part for pair in zip(gaps, [*bodies, ""]) for part in pair)


def split(text: str, *, count_tokens: CountTokens = count_tokens, max_tokens: int = 1_500) -> tuple[list, list]:
    """Cut a text into chunks of at most `max_tokens`, and the white space around them.

    Returns:
        gaps: the white space before, between and after the chunks; one more than chunks.
        bodies: the chunks, not empty and without white space at their ends. `gaps[0] + bodies[0] + gaps[1] + ...` is
            the text.
    """
    start, stop = len(text) - len(text.lstrip()), len(text.rstrip())
    gaps, bodies = [text[:start] if start < len(text) else text], []
    if stop > start:
        for body, gap in _chunks(text[start:stop], 0, count_tokens, max_tokens):
            bodies.append(body)
            gaps.append(gap)
        gaps[-1] = text[stop:]
    return gaps, bodies


def _chunks(text: str, level: int, count_tokens: CountTokens, max_tokens: int) -> list[tuple[str, str]]:
    """(chunk, white space after it): pieces between borders of this level, joined as long as they fit.

    A piece that does not fit is cut at the borders of the next level.
    """
    if count_tokens(text) <= max_tokens:
        return [(text, "")]
    if level == len(_BORDERS):
        return _hard(text, count_tokens, max_tokens)
    out: list[tuple[str, str]] = []
    # The size of the last chunk, as a sum over its pieces: counting the joined text anew for each piece would take time
    # quadratic in the number of pieces.
    size = 0
    for piece, gap in _pieces(text, _BORDERS[level]):
        num = count_tokens(piece + gap)
        if out and size + num <= max_tokens:
            out[-1] = (out[-1][0] + out[-1][1] + piece, gap)
            size += num
        elif num <= max_tokens:
            out.append((piece, gap))
            size = num
        else:
            parts = _chunks(piece, level + 1, count_tokens, max_tokens)
            out += [*parts[:-1], (parts[-1][0], gap)]
            size = count_tokens(parts[-1][0] + gap)
    return out


def _pieces(text: str, border: re.Pattern) -> list[tuple[str, str]]:
    """(piece, white space after it) between the borders of a text without white space around it."""
    out: list[tuple[str, str]] = []
    start = 0
    for gap in border.finditer(text):
        if gap.start() > start:
            out.append((text[start : gap.start()], gap[0]))
            start = gap.end()
    return [*out, (text[start:], "")]


def _hard(text: str, count_tokens: CountTokens, max_tokens: int) -> list[tuple[str, str]]:
    """A word that is too long, cut by binary search into as many characters as fit, at least one."""
    out = []
    while text:
        fits, fails = 1, len(text) + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if count_tokens(text[:middle]) <= max_tokens else (fits, middle)
        out.append((text[:fits], ""))
        text = text[fits:]
    return out
