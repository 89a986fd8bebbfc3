"""A journal's missing answers, written by the engine."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Answer, Request
from alignment.train import writers
from experiments.decoding.journal import Journal, Key
from experiments.report import progress

LOG_SECONDS = 5.0  # between two lines of metrics.jsonl
Row = Mapping[str, Any]
METRICS = {  # what `write_all` logs, for an experiment's METRICS
    "seconds": ("spent on answering over all starts, without reading weights and compiling", "lower"),
    "tokens_per_second": ("tokens written in a second of answering", "higher"),
    "answer_tokens": ("tokens of an answer, mean over those written so far", ""),
}


def rows(
    folder: pathlib.Path,
    made_from: Mapping[str, Any],
    work: Sequence[tuple[Key, Request]],
    engine_fn: Callable[[], Engine],
    row_fn: Callable[[Key, Answer], Row],
) -> dict[Key, dict[str, Any]]:
    """The rows of `folder/generations.jsonl`, by their keys; what is there already is not written again.

    Args:
        made_from: see `Journal`.
        engine_fn: makes the engine; it is called only where an answer is missing.
        row_fn: a key and its answer -> the row.
    """
    journal = Journal(folder, made_from, [key for key, _ in work])
    if len(journal) < len(work):
        write_all(engine_fn(), work, journal, folder, row_fn=lambda key, answer: (row_fn(key, answer), {}))
    return journal.end()


def write_all(
    engine: Engine,
    work: Sequence[tuple[Key, Request]],
    journal: Journal,
    folder: pathlib.Path,
    *,
    row_fn: Callable[[Key, Answer], tuple[Row, Row]],
) -> None:
    """Write what is not in the journal yet, the longest answers first: then few slots stay idle at the end.

    Args:
        folder: where metrics.jsonl lies.
        row_fn: a key and its answer -> the journal's line, and what the page needs beside it.
    """
    compile_programs(engine)
    work = sorted((item for item in work if item[0] not in journal), key=lambda item: -item[1].max_new_tokens)
    keys = {engine.submit(request): key for key, request in work}
    numbers = writers.jsonl(str(folder), restored=len(journal))
    bar = progress.Progress("answers", len(work), items="tokens", every_seconds=LOG_SECONDS)
    start, before, num_tokens, logged = time.perf_counter(), journal.seconds, 0, -LOG_SECONDS
    while keys:
        ended = [news.answer for news in engine.advance() if news.is_done]
        seconds = time.perf_counter() - start
        for answer in ended:
            key = keys.pop(answer.number)
            if answer.error:
                print(f"{answer.error} Its row says finish_reason error", flush=True)
            row, more = row_fn(key, answer)
            journal.add(key, row, more=more, seconds=before + seconds)
            bar.advance(1, len(answer.tokens))
            num_tokens += len(answer.tokens)
        if ended and (seconds - logged >= LOG_SECONDS or not keys):
            logged = seconds
            journal.sync()
            values = {"seconds": before + seconds, "tokens_per_second": num_tokens / seconds}
            numbers.write_scalars(len(journal), values | {"answer_tokens": num_tokens / (len(work) - len(keys))})
    numbers.close()
    bar.close()


def compile_programs(engine: Engine) -> None:
    """Two requests through all programs, so that the clock counts no compiling."""
    prompt = [0] * min(engine.plan.chunk + 2, engine.max_len - 1)
    guides: dict[str, Any] = dict(guide_weights=(0.0,) * len(engine.plan.guides))
    scored = Request(prompt, max_new_tokens=1, temperature=1.0, logprobs=1, prompt_logprobs=True, **guides)
    engine.answers([scored, Request(prompt, max_new_tokens=1, **guides)])
