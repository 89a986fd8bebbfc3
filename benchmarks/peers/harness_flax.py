"""Our side of benchmarks/harness.py."""

import importlib.metadata
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import decode_ours, decode_task, harness_task

WEIGHTS = Path(sys.argv[1])


def versions():
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "lm_eval")}


def jobs():
    from alignment.evaluation import harness
    from alignment.models import decoder, huggingface
    from data.tokens import tokenizer

    model = decoder.DecoderLM(**huggingface.config_of(WEIGHTS))
    params = huggingface.load(WEIGHTS, model)
    lm = harness.flax_lm(model, params, tokenizer.load(str(WEIGHTS)), digest="benchmark")
    return {"score": lambda pairs: harness_task.score(lm, pairs), "floors": decode_ours.floors}


if __name__ == "__main__":
    decode_task.serve(versions, jobs)
