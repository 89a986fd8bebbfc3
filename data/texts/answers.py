"""Prompt and answer to token ids, within limits of length.

Tokenising a prompt and an answer apart doubles BOS and splits tokens that belong together. So a prompt and its answer
are tokenised as one text, and the tokens' character offsets say where the answer begins. A token that straddles this
boundary belongs to the prompt: the model reads it and is not trained on it.
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alignment.errors import InputError, one_of
from data import records
from data.texts.pair_formats import Comparison, Message
from data.tokens import chat
from data.tokens.tokenizer import Tokenizer

CHAT = ("auto", "always", "never")
TRUNCATION = ("keep_end", "keep_start", "drop", "error")


@dataclasses.dataclass(frozen=True)
class Answered:
    """The tokens of a prompt and its answer.

    Attributes:
        ids: [L] int32, prompt then answer, with BOS and end-of-turn.
        prompt_len: tokens of the prompt; the first token of the answer follows.
        is_merged: whether the prompt's last token holds letters of the answer too.
        is_cut: whether the answer was shortened; a shortened answer has no end-of-turn.
    """

    ids: np.ndarray
    prompt_len: int
    is_merged: bool
    is_cut: bool = False

    @property
    def answer_len(self) -> int:
        return len(self.ids) - self.prompt_len


def texts(tokenizer: Tokenizer, item: Comparison, answer: str, mode: str = "auto") -> tuple[str, int, bool]:
    """The whole text, the character where the answer begins, and whether a template wrote it.

    Args:
        mode: 'auto' renders message lists and questions with the chat template, and appends the answer to plain
            prompts; 'always' makes a plain prompt a user turn; 'never' renders messages with the plain template of
            chat.py.
    """
    messages: list[Message]
    answer = chat.without_end(answer, tokenizer.ends)
    if isinstance(item.prompt, str):
        if (mode == "never" or (mode == "auto" and not item.is_chat)) and not item.tools:
            return item.prompt + answer, len(item.prompt), False
        messages = [{"role": "user", "content": item.prompt}]
    else:
        messages = list(item.prompt)
    template = tokenizer.chat_template
    if mode == "never":
        template = chat.default_template(with_bos=tokenizer.adds_bos)
    whole = [*messages, {"role": "assistant", "content": item.prefill + answer}]
    options = {"tokens": tokenizer.tokens, **({"tools": item.tools} if item.tools else {})}
    text = chat.render(template, whole, **options)
    chat.check_shown(text, messages, item.tools)
    prefix = chat.prefix_of(template, whole, len(messages), text, **options)
    start = len(prefix)
    if item.prefill:  # the model reads the opening, which a template may have trimmed, and goes on from it
        opening = item.prefill.strip()
        start += len(text[start:]) - len(text[start:].lstrip())
        if not text.startswith(opening, start):
            raise chat.Refused("the chat template rewrites the opening of the answer")
        start += len(opening)
    mark = chat.end_of_turn(template, tokens=tokenizer.tokens)
    if mark and text.rstrip().endswith(mark):  # a model stops at its mark; the line end after it is not learned
        text = text.rstrip()
    return text, start, True


def encode(
    tokenizer: Tokenizer, items: Sequence[Comparison], answers: Sequence[str], *, mode: str = "auto"
) -> list[Answered | records.BadRecord]:
    """Each item's prompt followed by its answer, with one BOS where the tokenizer adds it, and an end of turn.

    A conversation that the chat template refuses, or does not show in full, comes as the record to set aside.

    Raises:
        InputError: an unknown mode.
    """
    one_of("data.chat", mode, CHAT)
    out: list[Answered | records.BadRecord] = []
    for at in range(0, len(items), 1024):
        written = [_texts(tokenizer, i, a, mode) for i, a in zip(items[at : at + 1024], answers[at : at + 1024])]
        encoded = iter(tokenizer.encode_batch([w[0] for w in written if not isinstance(w, records.BadRecord)]))
        for w in written:
            out.append(w if isinstance(w, records.BadRecord) else _bounded(tokenizer, *next(encoded), *w[1:]))
    return out


def _texts(tokenizer: Tokenizer, item: Comparison, answer: str, mode: str) -> tuple[str, int, bool] | records.BadRecord:
    try:
        return texts(tokenizer, item, answer, mode)
    except chat.Refused as e:
        return records.BadRecord(item.file, item.line, str(e))


def _bounded(
    tokenizer: Tokenizer, ids: list[int], offsets: list[tuple[int, int]], boundary: int, is_rendered: bool
) -> Answered:
    """The tokens of a text whose answer begins at character `boundary`, with BOS and EOS if they are missing."""
    start = bisect.bisect_left(offsets, boundary, key=lambda offset: offset[0])
    is_merged = start > 0 and offsets[start - 1][1] > boundary
    ids = list(ids)
    if tokenizer.bos_id is not None and tokenizer.adds_bos and not is_rendered and ids[:1] != [tokenizer.bos_id]:
        ids.insert(0, tokenizer.bos_id)
        start += 1
    if tokenizer.eos_id is not None and (not is_rendered or not ids or ids[-1] not in tokenizer.stop_ids):
        ids.append(tokenizer.eos_id)
    return Answered(np.array(ids, np.int32), start, is_merged)


def fit(
    group: Sequence[Answered],
    *,
    max_len: int | None,
    max_prompt_len: int | None,
    truncation: str,
    bos_id: int | None,
    where: str,
    count: Callable[[str], None],
) -> tuple[Answered, ...] | None:
    """The answers to one prompt, cut to the limits, all with the same part of the prompt; None if they are dropped.

    The prompt is cut first, down to `max_prompt_len` (or half of `max_len`), then the answers.

    Args:
        max_len: tokens of prompt and answer together; None sets no limit.
        max_prompt_len: tokens of the prompt; None sets no limit.
        truncation: 'keep_end' cuts a prompt from the left, 'keep_start' from the right; 'drop'; 'error'.
        where: file and line, for messages.
        count: is called with what was cut or dropped, a text.

    Raises:
        InputError: 'error' and something is too long, or no token of an answer is left.
    """
    prompt_len = max(a.prompt_len for a in group)
    answer_len = max(a.answer_len for a in group)
    if min(a.answer_len for a in group) < 1:
        count("answer without a token of its own")
        return None
    if min(a.prompt_len for a in group) < 1:
        count("prompt without a token")
        return None
    room = _prompt_room(prompt_len, answer_len, max_len, max_prompt_len)
    if room == prompt_len and (max_len is None or prompt_len + answer_len <= max_len):
        return tuple(group)
    lengths = (
        f"prompt {prompt_len} and answer {answer_len} tokens; limits max_len={max_len}, max_prompt_len={max_prompt_len}"
    )
    if truncation == "error":
        raise InputError(f"{where}: {lengths}. Raise the limit, or set truncation to keep_end, keep_start or drop")
    if truncation == "drop":
        count("longer than the limit, dropped")
        return None
    if room < prompt_len:
        count("prompts cut")
    # Each side loses as many tokens of the prompt, so that both go on from the same one.
    cut = tuple(_cut(a, prompt_len - room, max_len, truncation, bos_id) for a in group)
    if any(a.is_cut for a in cut):
        count("answers cut")
    if min(a.answer_len for a in cut) < 1 or min(a.prompt_len for a in cut) < 1:
        raise InputError(f"{where}: no token of the answer is left within {lengths}; raise max_len")
    if len(cut) == 2 and np.array_equal(cut[0].ids, cut[1].ids):
        count("identical answers after cutting")
        return None
    return cut


def _prompt_room(prompt_len: int, answer_len: int, max_len: int | None, max_prompt_len: int | None) -> int:
    room = min(prompt_len, max_prompt_len or prompt_len)
    if max_len is not None and room + answer_len > max_len:
        floor = min(room, max_prompt_len or max_len // 2, max_len - 1)
        room = max(floor, max_len - answer_len)
    return room


def _cut(a: Answered, num_cut: int, max_len: int | None, truncation: str, bos_id: int | None) -> Answered:
    prompt, answer = a.ids[: a.prompt_len], a.ids[a.prompt_len :]
    is_merged = a.is_merged
    if num_cut and truncation == "keep_start":
        prompt, is_merged = prompt[: max(len(prompt) - num_cut, 0)], False
    elif num_cut:  # the answer replies to the end of the prompt, so keep that; BOS stays in front
        head = prompt[:1] if len(prompt) and prompt[0] == bos_id and len(prompt) > num_cut + 1 else prompt[:0]
        prompt = np.concatenate([head, prompt[len(head) + num_cut :]])
    is_cut = False
    if max_len is not None and len(prompt) + len(answer) > max_len:
        answer, is_cut = answer[: max_len - len(prompt)], True
    return Answered(np.concatenate([prompt, answer]), len(prompt), is_merged, is_cut)
