"""Documents through a rewriter: cut into chunks, asked in batches, answers cached, put together again.

Chunks end where paragraphs do, or lines, sentences, words, in this order of preference. The white space between them is
kept aside and put back, so that a rewriter which changes nothing gives back the identical text.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from alignment.decoding import backends
from alignment.decoding import cache as caches
from alignment.errors import InputError
from alignment.filtering.rewriting import conduct

_BORDERS = (  # white space after which a chunk may begin, the best first
    re.compile(r"\s*\n\s*\n\s*"),
    re.compile(r"\s*\n\s*"),
    re.compile(r"(?<=[.!?؟…。])\s+|(?<=[.!?؟…][\"'»”)\]])\s+"),
    re.compile(r"\s+"),
)
CountTokens = Callable[[str], int]


def count_tokens(text: str) -> int:
    """A guess where no tokenizer is given: 1.3 a word, and at least one every eight characters."""
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
    """The records' texts in the model's words, in their order; None where a part of one got no answer.

    What is in the cache is not asked again. When the backend is `Down` all answers so far are in the cache, and the
    same call later goes on from there. White space around an answer is dropped, that of the original returns.

    Args:
        records: `{"text": ...}` each.
        complete: a backend.
        code: the code of conduct that the prompts carry.
        kind: a key of conduct.KINDS. "educate" and "refuse" write a new text, from the first chunk alone.
        count_tokens: of a text, by the backend's tokenizer.
        max_tokens: of a chunk. An answer may have 1.3 times the tokens of its chunk, plus 64.
        batch_size: requests given to the backend at once.
        model, sampling: what else an answer depends on; part of the cache's key.
    """
    if max_tokens < 1 or batch_size < 1:
        raise InputError(f"max_tokens={max_tokens} and batch_size={batch_size} must be at least 1")
    documents = [split(record["text"], count_tokens=count_tokens, max_tokens=max_tokens) for record in records]
    if kind != "rewrite":
        documents = [(["", ""] if bodies else [""], bodies[:1]) for _, bodies in documents]
    bodies = [body for _, document in documents for body in document]
    requests: dict[str, tuple[list, int]] = {}
    keys = []
    for body in bodies:
        messages = conduct.prompt(code, body, kind)
        max_new = int(1.3 * count_tokens(body)) + 64
        settings = {**(sampling or {}), "max_new": max_new}
        keys.append(caches.key(messages, model=model, sampling=settings))
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


def _ask(requests: Mapping[str, tuple[list, int]], complete, cache, batch_size) -> dict[str, str | None]:
    """An answer for each key, from the cache or from the backend; each request once."""
    answers = {key: cache.get(key) for key in requests}
    missing = [key for key, answer in answers.items() if answer is None]
    for at in range(0, len(missing), batch_size):
        batch = missing[at : at + batch_size]
        messages, max_new = zip(*(requests[key] for key in batch))
        try:
            found = complete(list(messages), list(max_new))
        except backends.Down as e:
            _store(cache, batch, e.answers, answers)
            raise
        _store(cache, batch, found, answers)
    return answers


def _store(cache, keys, found, answers) -> None:
    for key, answer in zip(keys, found):
        if answer is not None:
            cache.put(key, answer)
            answers[key] = answer


def _joined(gaps: Sequence[str], answers: Sequence[str | None]) -> str | None:
    if any(answer is None for answer in answers):
        return None
    bodies = [conduct.unwrapped(answer).strip() for answer in answers]
    return "".join(part for pair in zip(gaps, [*bodies, ""]) for part in pair)


def split(text: str, *, count_tokens: CountTokens = count_tokens, max_tokens: int = 1_500) -> tuple[list, list]:
    """A text as chunks of at most `max_tokens` and the white space around them.

    Returns:
        gaps: the white space before, between and after the chunks, one more than there are chunks.
        bodies: the chunks; none is empty, begins or ends with white space. `gaps[0] + bodies[0] + gaps[1] + ...` is
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
    """(chunk, white space after it); pieces between borders of this level, as many together as fit."""
    if count_tokens(text) <= max_tokens:
        return [(text, "")]
    if level == len(_BORDERS):
        return _hard(text, count_tokens, max_tokens)
    out: list[tuple[str, str]] = []
    size = 0  # tokens of the last chunk; a sum over its pieces, white space counted with them
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
    out, start = [], 0
    for found in border.finditer(text):
        if found.start() > start:
            out.append((text[start : found.start()], found[0]))
            start = found.end()
    return [*out, (text[start:], "")]


def _hard(text: str, count_tokens: CountTokens, max_tokens: int) -> list[tuple[str, str]]:
    """A word that is too long, cut by characters: as many as fit, at least one."""
    out = []
    while text:
        fits, fails = 1, len(text) + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if count_tokens(text[:middle]) <= max_tokens else (fits, middle)
        out.append((text[:fits], ""))
        text = text[fits:]
    return out
