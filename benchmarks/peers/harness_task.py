"""What both contestants of benchmarks/harness.py do with a job: {"pairs": [[context, continuation], ...]}."""

import time
from types import SimpleNamespace
from typing import Any


def score(lm: Any, pairs: list) -> dict[str, Any]:
    """Time the harness's own call, texts in and log-likelihoods out."""
    requests = [SimpleNamespace(args=(context, continuation), task_name="") for context, continuation in pairs]
    cpu, start = time.process_time(), time.perf_counter()
    answers = lm.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    answers = [[float(total), bool(greedy)] for total, greedy in answers]
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu, "answers": answers}
