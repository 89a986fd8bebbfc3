"""transformers' side of benchmarks/decode.py; see decode_task.py."""

import importlib.metadata
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))
import decode_task as task

WEIGHTS = Path(sys.argv[1])


class SecondModel(transformers.LogitsProcessor):
    """The same model once more with a cache of its own, as a reward model beside the base."""

    def __init__(self, model):
        self.model, self.cache = model, None

    @torch.no_grad()
    def __call__(self, ids, scores):
        out = self.model(ids if self.cache is None else ids[:, -1:], past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return torch.log_softmax(scores, -1) + 0.5 * torch.log_softmax(out.logits[:, -1].float(), -1)


def versions():
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers")}


def jobs():
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    vocab = model.config.vocab_size
    model.generation_config.eos_token_id = None

    @torch.no_grad()
    def generate(prompts, new, cache="dynamic"):
        """Prompts padded on the left to the longest, all continued by `new` tokens."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        options = {"cache_implementation": "static"} if cache != "dynamic" else {}
        if cache == "compiled":
            # by itself `generate` compiles on accelerators only; this mark of its own tests lets it do so on a CPU
            compiled = transformers.CompileConfig(mode="default")
            compiled._compile_all_devices = True
            options["compile_config"] = compiled
        out = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0, **options)
        return out[:, longest:].tolist()

    def equal(num, seed, cache):
        start = time.perf_counter()
        try:
            ids = generate(task.equal_prompts(num, vocab, seed), task.NEW, cache)
        except Exception as e:  # torch.compile raises what it likes where there is no C++ compiler
            if cache != "compiled":
                raise
            return {"failed": f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}"}
        return {"seconds": time.perf_counter() - start, "ids": ids}

    def queue(num, seed):
        """Batches of eight in the order of arrival, each to its longest answer."""
        pairs = task.queue(num, vocab, seed)
        start, ids = time.perf_counter(), []
        for at in range(0, num, 8):
            part = pairs[at : at + 8]
            written = generate([p for p, _ in part], max(n for _, n in part))
            ids += [row[:n] for row, (_, n) in zip(written, part)]
        return {"seconds": time.perf_counter() - start, "ids": ids}

    def continuous(num, seed):
        """Its own continuous batching: every request with its own length."""
        pairs = task.queue(num, vocab, seed)
        config = transformers.GenerationConfig(do_sample=False, max_new_tokens=256, pad_token_id=0, eos_token_id=-1)
        start = time.perf_counter()
        with model.continuous_batching_context_manager(generation_config=config) as manager:
            for number, (prompt, new) in enumerate(pairs):
                manager.add_request(prompt, request_id=str(number), max_new_tokens=new)
            done = {}
            while len(done) < num:
                result = manager.get_result(timeout=60)
                if result is not None and result.is_finished():
                    done[result.request_id] = list(result.generated_tokens)
        return {"seconds": time.perf_counter() - start, "ids": [done[str(i)] for i in range(num)]}

    @torch.no_grad()
    def guided(seed):
        """Seconds of one answer, alone and guided by a second model through a logits processor."""
        (prompt,), seconds = task.equal_prompts(1, vocab, seed), {}
        for name, processors in {"plain": [], "guided": [SecondModel(model)]}.items():
            ids = torch.tensor([prompt])
            options = dict(max_new_tokens=task.NEW, do_sample=False, pad_token_id=0, logits_processor=processors)
            start = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            seconds[name] = time.perf_counter() - start
        return seconds

    return {"equal": equal, "queue": queue, "continuous": continuous, "guided": guided}


if __name__ == "__main__":
    task.serve(versions, jobs)
