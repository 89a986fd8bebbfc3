"""The harness's own `hf` in benchmarks/harness.py."""

import importlib.metadata
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import decode_task
import harness_task

WEIGHTS = Path(sys.argv[1])


def versions():
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lm_eval")}


def jobs():
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    lm = HFLM(pretrained=str(WEIGHTS), device="cpu", dtype="float32", batch_size=1)

    def score(pairs, batch_size):
        lm.batch_size_per_gpu = batch_size
        return harness_task.score(lm, pairs)

    return {"score": score}


if __name__ == "__main__":
    decode_task.serve(versions, jobs)
