"""The line between benchmarks/decode.py and one contestant: a JSON object a line on stdin, one back on what was stdout.

    driver: {"job": "equal", ...}   contestant: {"event": "done", "seconds", "ids", ...}

Only numpy and the standard library: every contestant may have another environment.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from channel import answering, forget_peak, limit_threads, peak_rss_mb

PROMPT, NEW = 64, 128  # tokens, where all are alike


def equal_prompts(num: int, vocab: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(1, vocab, size=(num, PROMPT)).tolist()


def queue(num: int, vocab: int, seed: int) -> list[tuple[list[int], int]]:
    """Prompts of 16 to 128 tokens, and answers of 4 to 256 tokens, geometric with mean 64."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.geometric(1 / 64, size=num), 4, 256)
    return [(rng.integers(1, vocab, size=rng.integers(16, 129)).tolist(), int(n)) for n in lengths]


def serve(start_fn: Callable[[], dict[str, str]], jobs_fn: Callable[[], Mapping[str, Callable[..., dict[str, Any]]]]):
    """Answer the driver until it closes the pipe."""
    send = answering()
    limit_threads(int(os.environ.get("THREADS", "2")))
    send(event="ready", versions=start_fn())
    jobs = jobs_fn()
    for line in sys.stdin:
        request = json.loads(line)
        forget_peak()
        answer = jobs[request.pop("job")](**request)
        send(**{"event": "done", "peak_rss_mb": peak_rss_mb(), **answer})
