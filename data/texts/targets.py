"""Which tokens of a text a model learns to write: all of a document's, of a conversation those of its answers."""

import bisect
from typing import Any

import numpy as np

from data.texts.pair_formats import Comparison
from data.tokens import chat as chats
from data.tokens.tokenizer import Tokenizer

Spans = list[tuple[int, int]]  # of characters, [start, end)


def spans_of(tokenizer: Tokenizer, item: Comparison, turns: str) -> tuple[str, Spans, bool]:
    """The whole text, the spans of characters that are targets, and whether a template wrote it."""
    if isinstance(item.prompt, str):  # text to continue; a document's prompt is empty, so all of it is target
        is_answer = item.prompt != ""
        answer = item.answers[0]
        text = item.prompt + (chats.without_end(answer, tokenizer.ends) if is_answer else answer)
        return text, [(len(item.prompt), len(text))], False
    template, tokens = tokenizer.chat_template, tokenizer.tokens
    messages = [*item.prompt, {"role": "assistant", "content": item.answers[0], **item.answer_keys}]
    options: dict[str, Any] = {"tokens": tokens, **({"tools": item.tools} if item.tools else {})}
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            messages[i] = {**message, "content": chats.without_end(message["content"], tokenizer.ends)}
    is_learned = [bool(m.get("weight", 1)) for m in messages if m["role"] == "assistant"]
    if turns == "all":
        text, spans = chats.assistant_spans(template, messages, **options)
        chats.check_shown(text, messages, item.tools)
        if len(spans) != len(is_learned) and not all(is_learned):
            raise chats.Refused("the chat template marks other turns than those with a weight")
        return text, [span for span, keep in zip(spans, is_learned) if keep] if not all(is_learned) else spans, True
    if not is_learned[-1]:
        raise chats.Refused("the last answer has weight 0, and data.turns='last' learns no other")
    text = chats.render(template, messages, **options)
    chats.check_shown(text, messages, item.tools)
    prefix = chats.prefix_of(tokenizer.chat_template, messages, len(messages) - 1, text, **options)
    return text, [(len(prefix), len(text.rstrip()))], True


def refusal(tokenizer: Tokenizer, item: Comparison, turns: str) -> str:
    """Why the chat template does not write this conversation; "" where it does."""
    try:
        spans_of(tokenizer, item, turns)
    except chats.Refused as e:
        return str(e)
    return ""


def encode(
    tokenizer: Tokenizer, token_ids: list[int], offsets: Spans, spans: Spans, is_rendered: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and which of them are targets: those that begin inside a span and do not straddle its start."""
    counts = np.zeros(len(token_ids), np.int8)
    for start, end in spans:
        # Offsets rise, so a search finds the first token that begins in the span; a token that straddles its start
        # began before.
        first = bisect.bisect_left(offsets, start, key=lambda offset: offset[0])
        counts[first : bisect.bisect_left(offsets, end, key=lambda offset: offset[0])] = 1
    ids = np.array(token_ids, np.int32)
    if (
        tokenizer.bos_id is not None
        and tokenizer.adds_bos
        and not is_rendered
        and ids[:1].tolist() != [tokenizer.bos_id]
    ):
        ids, counts = np.insert(ids, 0, tokenizer.bos_id), np.insert(counts, 0, 0)
    if tokenizer.eos_id is not None and (not is_rendered or not _ends(ids, offsets, spans, tokenizer)):
        ids, counts = np.append(ids, np.int32(tokenizer.eos_id)), np.append(counts, np.int8(1))
    return ids, counts


def _ends(ids: np.ndarray, offsets: Spans, spans: Spans, tokenizer: Tokenizer) -> bool:
    """Whether the last token of the last span is an end of turn."""
    last = bisect.bisect_left(offsets, spans[-1][1], key=lambda offset: offset[0]) - 1
    return last >= 0 and int(ids[last]) in tokenizer.stop_ids
