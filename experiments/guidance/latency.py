"""Seconds for a token, one request at a time: the base, the base with its guides, and methods of many passes."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignment.decoding import reranked
from alignment.decoding.requests import Request
from experiments.guidance import methods
from experiments.guidance.writing import Writer

REPEATS = 3


def measure(writer: Writer, *, num_tokens: int) -> list[dict[str, Any]]:
    """A line for each way of writing: `method`, `seconds_per_token`, `tokens_per_second`, `seconds_per_128_tokens`.

    Every answer has `num_tokens` tokens, whatever it says; the median of three, after one that compiles.
    """
    prompt, guides = writer.prompts[0], writer.models.guides
    base = Request(prompt.base, num_tokens)
    own = [prompt.reward] * len(guides)
    guided = Request(prompt.base, num_tokens, guide_prompts=own, guide_weights=[1.0] * len(guides))
    lines = [
        _line(methods.BASE, num_tokens, _through(writer, [], [base])),
        _line(methods.GENARM, num_tokens, _through(writer, guides, [guided])),
    ]
    kinds = {method.kind for method in writer.written}
    if draws := sum(method.kind == "sample" for method in writer.written):
        samples = Request(prompt.base, num_tokens, 1.0).samples(draws)
        lines.append(
            _line(
                methods.BEST,
                num_tokens,
                _through(writer, [], samples, num_slots=min(draws, writer.c.decoding.num_slots)),
            )
        )
    if methods.ARGS in kinds:
        lines.append(_line(methods.ARGS, num_tokens, _search(writer, prompt.base, num_tokens)))
    return lines


def _through(writer: Writer, guides: Sequence[Any], requests: list[Request], *, num_slots: int = 1) -> Callable:
    engine = writer.engine(writer.models.base, guides, num_slots=num_slots)
    engine.stop_ids = ()  # so that every answer is as long
    return lambda: engine.answers(requests)


def _search(writer: Writer, prompt: Sequence[int], num_tokens: int) -> Callable:
    base, c = writer.models.base, writer.c
    return lambda: reranked.write(
        base.network,
        base.params,
        np.zeros(2 * base.network.model_dim, np.float32),
        [prompt],
        weight=0.0,
        num_candidates=min(c.args.top_k, writer.num_ids),
        max_new_tokens=num_tokens,
        num_ids=writer.num_ids,
        block=c.decoding.chunk,
    )


def _line(method: str, num_tokens: int, write_fn: Callable) -> dict[str, Any]:
    write_fn()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        write_fn()
        seconds.append((time.perf_counter() - began) / num_tokens)
    each = statistics.median(seconds)
    return {
        "method": method,
        "seconds_per_token": each,
        "tokens_per_second": 1 / each,
        "seconds_per_128_tokens": 128 * each,
    }
