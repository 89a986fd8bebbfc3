"""Watermarked generation and detection beside transformers, in one process each and one after the other.

python benchmarks/watermark.py --output benchmarks/results/watermark.md

The model has random weights (width 512, 8 layers, vocabulary 32,000), prompts of 16 tokens, one answer at a time and
several together. Ours: the decoding engine without a processor, with KGW `fast`, with KGW as transformers draws it
(`parity`), and with SynthID of 30 keys. Theirs: `generate` with the same marks. Rounds are interleaved and medians
count: compare ratios of one run. Bars: KGW `fast` at most 1.05 times plain generation, SynthID at most 1.5 times;
detection at least 20 times transformers' tokens a second. Two cores take about ten minutes.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flax import linen as nn

from alignment import files
from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.models import decoder
from alignment.watermark import detect, processors
from alignment.watermark.text_marks import Mark

VOCAB, WIDTH, LAYERS, HEADS, FFN = 32_000, 512, 8, 8, 1_408
PROMPT = 16
KEYS = tuple(range(100, 3_100, 100))  # 30 of SynthID
MARKS = {
    "plain": None,
    "kgw fast": Mark("kgw", 15_485_863, VOCAB, gamma=0.25),
    "kgw parity": Mark("kgw", 15_485_863, VOCAB, gamma=0.25, parity="hf"),
    "synthid": Mark("synthid", KEYS, VOCAB),
}
BARS = {"kgw fast": 1.05, "synthid": 1.5}
DETECTION_BAR = 20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="benchmarks/results/watermark.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--batch", type=int, default=8, help="answers written together, beside one alone")
    return parser.parse_args()


def prompts(num: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, VOCAB, (num, PROMPT))


def ours(batch: int, tokens: int) -> dict[str, Any]:
    """{mark: a function that writes once}."""
    model = decoder.DecoderLM(
        vocab_size=VOCAB,
        num_layers=LAYERS,
        model_dim=WIDTH,
        num_heads=HEADS,
        ffn_dim=FFN,
        dtype="float32",
        remat="none",
    )
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    out = {}
    for name, mark in MARKS.items():
        options: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if mark is not None:
            fn, row = processors.build(mark)
            options = dict(processors=(fn,), processor_states=(processors.stack(row, batch),))
            more = dict(processor_rows=(row,))
        engine = Engine(model, params, num_slots=batch, max_len=128, **options)
        work = [
            Request(list(map(int, p)), max_new_tokens=tokens, temperature=1.0, seed=i, **more)
            for i, p in enumerate(prompts(batch))
        ]
        out[name] = lambda engine=engine, work=work: engine.answers(work)
    return out


def theirs(batch: int, tokens: int) -> dict[str, Any]:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor(prompts(batch))
    settings = {
        "plain": None,
        "kgw fast": None,
        "kgw parity": transformers.WatermarkingConfig(greenlist_ratio=0.25, bias=2.0),
        "synthid": transformers.SynthIDTextWatermarkingConfig(keys=list(KEYS), ngram_len=5),
    }
    options: dict[str, Any] = dict(
        do_sample=True, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
    )

    def write(mark: Any) -> None:
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), watermarking_config=mark, **options)

    return {name: lambda mark=mark: write(mark) for name, mark in settings.items() if name != "kgw fast"}


def medians(fns: dict[str, Any], rounds: int) -> dict[str, float]:
    """Seconds of each, after a first call that is not counted; rounds are interleaved."""
    for fn in fns.values():
        fn()
    seconds: dict[str, list[float]] = {name: [] for name in fns}
    for _ in range(rounds):
        for name, fn in fns.items():
            start = time.perf_counter()
            fn()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in seconds.items()}


def detection(rounds: int) -> dict[str, float]:
    """Tokens a second over 40 texts of 200 tokens that no cache has met."""
    import torch
    import transformers

    texts = np.random.default_rng(1).integers(3, VOCAB, (40, 200))
    config = transformers.LlamaConfig(vocab_size=VOCAB, bos_token_id=1)
    out: dict[str, list[float]] = {"ours, fast": [], "ours, parity": [], "transformers": []}
    for k in range(rounds):
        marks = {"ours, fast": Mark("kgw", k, VOCAB, gamma=0.25)}
        marks["ours, parity"] = Mark("kgw", 15_485_863 + k, VOCAB, gamma=0.25, parity="hf")
        for name, mark in marks.items():
            start = time.perf_counter()
            for ids in texts:
                detect.detect(mark, ids)
            out[name].append(time.perf_counter() - start)
        peer_config = transformers.WatermarkingConfig(greenlist_ratio=0.25, hashing_key=15_485_863 + k)
        peer = transformers.WatermarkDetector(config, "cpu", peer_config, ignore_repeated_ngrams=True)
        start = time.perf_counter()
        for ids in texts:
            peer(torch.tensor(ids[None]))
        out["transformers"].append(time.perf_counter() - start)
    return {name: texts.size / statistics.median(x) for name, x in out.items()}


def main() -> None:
    args = parse()
    lines = ["# Watermarks beside transformers", "", f"{jax.__version__=}, {args.rounds} rounds, medians.", ""]
    lines += ["| answers | who | mark | tokens/s | times plain | bar |", "|---|---|---|---|---|---|"]
    for batch in (1, args.batch):
        for who, build in (("ours", ours), ("transformers", theirs)):
            seconds = medians(build(batch, args.tokens), args.rounds)
            for name, value in seconds.items():
                bar = BARS.get(name, "") if who == "ours" else ""
                rate, ratio = batch * args.tokens / value, value / seconds["plain"]
                lines.append(f"| {batch} | {who} | {name} | {rate:.0f} | {ratio:.3f} | {bar} |")
                print(lines[-1], flush=True)
    rates = detection(args.rounds)
    lines += ["", "| detector | tokens/s | times transformers | bar |", "|---|---|---|---|"]
    for name, rate in rates.items():
        bar = DETECTION_BAR if name == "ours, fast" else ""
        lines.append(f"| {name} | {rate:,.0f} | {rate / rates['transformers']:.1f} | {bar} |")
        print(lines[-1], flush=True)
    files.write_text(args.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
