"""Our engine's side of benchmarks/decode.py; see decode_task.py."""

import importlib.metadata
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from alignment.decoding import engine, programs, sampling
from alignment.decoding.requests import Request
from alignment.models import decoder, huggingface, lora
from benchmarks.peers import decode_task as task

WEIGHTS = Path(sys.argv[1])


def versions():
    return {name: importlib.metadata.version(name) for name in ("jax", "flax")}


class Ours:
    """The jobs, and what they share: the model and one engine at a time."""

    def __init__(self):
        self.model = decoder.DecoderLM(**huggingface.config_of(WEIGHTS))
        self.params = huggingface.load(WEIGHTS, self.model)
        self.vocab_size, self.engines = self.model.vocab_size, {}

    def server(self, num_slots, max_len=1_024, **options):
        key = (num_slots, max_len, *sorted(options))
        if key not in self.engines:
            self.engines.clear()  # one engine's weights and cache at a time
            self.engines[key] = self.made(num_slots, max_len, **options)
        return self.engines[key]

    def made(self, num_slots, max_len=1_024, **options):
        return engine.Engine(self.model, self.params, num_slots=num_slots, max_len=max_len, **options)

    def equal(self, num, seed, **options):
        requests = [Request(p, task.NEW, **options) for p in task.equal_prompts(num, self.vocab_size, seed)]
        answers, seconds = timed(self.server(num), requests)
        return {"seconds": seconds, "ids": [a.ids for a in answers]}

    def queue(self, num, seed):
        served = self.server(8, order="longest")
        before = dict(served.counts)
        answers, seconds = timed(served, [Request(p, n) for p, n in task.queue(num, self.vocab_size, seed)])
        counts = {name: served.counts[name] - before[name] for name in before}
        busy = counts["full_live_rows"] / (8 * max(counts["full_steps"], 1))
        return {"seconds": seconds, "ids": [a.ids for a in answers], "busy": busy}

    def adapter(self, seed):
        """An adapter of rank 16 on every linear layer, as if it had been trained."""
        adapter = lora.lay_out(lora.Settings(rank=16), self.model)
        rng = np.random.default_rng(seed)
        return adapter, jax.tree.map(lambda leaf: jnp.float32(rng.normal(0, 0.02, leaf.shape)), adapter.form())

    def step(self, num, max_len=1_024, live=200, guides=0, adapters=0, dispatches=4, **options):
        """Milliseconds of a step of `num` rows at `live` positions and beyond, prefill apart."""
        led_by = [self.adapter(seed) for seed in range(adapters)] or [(self.model, self.params)] * guides
        guides = len(led_by)
        served = self.made(num, max_len, **({"guides": led_by} if guides else {}))
        more = {"guide_prompts": [[1, 2, 3]] * guides, "guide_weights": [0.5] * guides} if guides else {}
        for prompt in np.random.default_rng(0).integers(1, self.vocab_size, size=(num, live)).tolist():
            served.submit(Request(prompt, max_len - live, **more, **options))
        served.advance()  # prefill, compile and the first dispatch
        jax.block_until_ready(served.state)
        before = served.counts["steps"]
        ms = self.dispatched(served, dispatches)
        return {"ms": ms, "live": live + (before + served.counts["steps"]) / 2}

    def dispatched(self, served, dispatches):
        """Milliseconds of a step in some dispatches."""
        start, before = time.perf_counter(), served.counts["steps"]
        for _ in range(dispatches):
            if served.num_busy:
                served.advance()
        return 1e3 * (time.perf_counter() - start) / max(served.counts["steps"] - before, 1)

    def silent(self, num, live=200, turns=6):
        """Milliseconds of a step as it is, and in a program that has no log-probabilities, in turns; medians."""

        def nothing(logits_BV, chosen_B, wants_top):
            zeros_BE = jnp.zeros((len(chosen_B), sampling.NUM_TOP))
            return jnp.zeros(len(chosen_B)), (zeros_BE.astype(jnp.int32), zeros_BE)

        # that no id is ruled out makes a plan of its own, which compiles anew, and changes nothing else
        kept, served = sampling.logprobs, {}
        for name, fn in {"with": kept, "without": nothing}.items():
            sampling.logprobs = fn
            served[name] = self.made(num, **({"num_ids": self.vocab_size} if name == "without" else {}))
            for prompt in np.random.default_rng(0).integers(1, self.vocab_size, size=(num, live)).tolist():
                served[name].submit(Request(prompt, 800))
            served[name].advance()
        sampling.logprobs = kept
        ms = {name: [] for name in served}
        for _ in range(turns):
            for name in served:
                ms[name].append(self.dispatched(served[name], 2))
        return {name: statistics.median(values) for name, values in ms.items()}

    def speculate(self, ids, new, num_draft, stop):
        served = self.made(1, num_draft=num_draft, stop_ids=stop)
        served.answers([Request(ids[0], 4)])
        before = served.counts["steps"]
        answers, seconds = timed(served, [Request(prompt, new) for prompt in ids])
        return {"seconds": seconds, "ids": [a.ids for a in answers], "steps": served.counts["steps"] - before}

    def best_of(self, num):
        served = self.server(8)
        before = served.counts["chunks"]
        prompt = task.equal_prompts(1, self.vocab_size, 0)[0] + [1]
        served.answers(Request(prompt, 16, temperature=1.0, seed=0).samples(num))
        return {"chunks": served.counts["chunks"] - before}

    def programs(self, num, seed):
        """Programs compiled while many requests with all options are served, after a warm-up."""
        served, rng = self.server(8), np.random.default_rng(seed)
        compiled = (programs.admit, programs.prefill, programs.decode)
        # a whole chunk and half a one, which are programs of their own
        served.answers([Request(p[:n], 4) for n, p in zip((64, 20), task.equal_prompts(2, self.vocab_size, 1))])
        before, own = [p._cache_size() for p in compiled], len(compiled)
        served.answers(
            [
                Request(
                    prompt[: rng.integers(1, 100)],
                    int(rng.integers(1, 6)),
                    temperature=float(rng.choice([0, 0.7])),
                    top_k=int(rng.choice([0, 20])),
                    top_p=float(rng.choice([1, 0.9])),
                    frequency_penalty=float(rng.choice([0, 0.5])),
                    stop_ids=rng.integers(0, self.vocab_size, size=rng.integers(0, 20)).tolist(),
                    logprobs=int(rng.integers(0, 5)),
                )
                for prompt, _ in task.queue(num, self.vocab_size, seed)
            ]
        )
        return {"programs": own, "more": sum(p._cache_size() for p in compiled) - sum(before)}

    def first(self, num):
        """Seconds from weights in memory to the first whole answer of a new engine."""
        self.engines.clear()
        start = time.perf_counter()
        self.made(num).answers([Request([1, 2, 3], 1)])
        return {"seconds": time.perf_counter() - start}


def timed(served, requests):
    start = time.perf_counter()
    answers = served.answers(requests)
    return answers, time.perf_counter() - start


def floors():
    """What this machine reads and multiplies at best: GB/s and GFLOP/s."""
    x, a = jnp.ones(100_000_000), jnp.ones((2_048, 2_048))
    total, product = jax.jit(jnp.sum), jax.jit(jnp.matmul)

    def best(call):
        call().block_until_ready()
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            call().block_until_ready()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    return {"gbs": 0.4 / best(lambda: total(x)), "gflops": 2 * 2.048**3 / best(lambda: product(a, a))}


def jobs():
    ours = Ours()
    names = ("equal", "queue", "step", "silent", "speculate", "best_of", "programs", "first")
    return {name: getattr(ours, name) for name in names} | {"floors": floors}


if __name__ == "__main__":
    task.serve(versions, jobs)
