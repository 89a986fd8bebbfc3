"""Watermarked generation and detection beside transformers, in one process, one after the other.

    python benchmarks/watermark.py --output benchmarks/results/watermark.md
    python benchmarks/watermark.py --quick                            (a toy model, to see that everything works)
    python benchmarks/watermark.py --parts detection lists            (some of it)

The model has random weights (width 512, 8 layers, vocabulary 32,000), prompts of 16 tokens, one answer at a time
("one") and several together ("several"). Ours: the decoding engine without a processor, with KGW `fast`, with KGW as
transformers draws it (`parity`), and with SynthID of 30 keys. Theirs: `generate` with the same marks, and as many
threads as there are cores. All take turns within a round; ratios are those of one round, and their medians count. Bars:
KGW `fast` at most 1.05 times plain generation, SynthID at most 1.5 times; detection at least 20 times transformers'
tokens a second. "lists" says what a list of `parity` costs the host. Needs torch and transformers, as `make parity`
installs them.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flax import linen as nn

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Request
from alignment.models import decoder
from alignment.watermark import detect, processors
from alignment.watermark.text_marks import Mark
from benchmarks import machine

WHOLE = dict(vocab_size=32_000, model_dim=512, num_layers=8, num_heads=8, ffn_dim=1_408)
QUICK = dict(vocab_size=2_000, model_dim=64, num_layers=2, num_heads=2, ffn_dim=128)
PROMPT = 16
KEY, GAMMA, DELTA = 15_485_863, 0.25, 2.0  # transformers' own
KEYS = tuple(range(100, 3_100, 100))  # 30 of SynthID
PARTS = ("one", "several", "detection", "lists")
BARS = {"kgw fast": 1.05, "synthid": 1.5}
DETECTION_BAR = 20
TEXTS, TEXT = 40, 200  # that are read, and tokens of each
Write = Callable[[], Any]


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--batch", type=int, default=8, help='answers of "several"')
    parser.add_argument("--quick", action="store_true", help="a toy model, 8 tokens, one round")


def marks(vocab_size: int) -> dict[str, Mark | None]:
    kgw: dict[str, Any] = dict(gamma=GAMMA, delta=DELTA)
    return {
        "plain": None,
        "kgw fast": Mark("kgw", KEY, vocab_size, **kgw),
        "kgw parity": Mark("kgw", KEY, vocab_size, parity="hf", **kgw),
        "synthid": Mark("synthid", KEYS, vocab_size),
    }


def prompts(num: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocab_size, (num, PROMPT))


def ours(shape: dict[str, int], batch: int, tokens: int) -> dict[str, Write]:
    """{mark: a function that writes `batch` answers}."""
    model = decoder.DecoderLM(**shape, dtype="float32", remat="none")
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    out = {}
    for name, mark in marks(shape["vocab_size"]).items():
        options: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if mark is not None:
            fn, row = processors.build(mark)
            options = dict(processors=(fn,), processor_states=(processors.stack(row, batch),))
            more = dict(processor_rows=(row,))
        engine = Engine(model, params, num_slots=batch, max_len=128, **options)
        work = [
            Request(list(map(int, p)), max_new_tokens=tokens, temperature=1.0, seed=i, **more)
            for i, p in enumerate(prompts(batch, shape["vocab_size"]))
        ]
        out[name] = lambda engine=engine, work=work: engine.answers(work)
    return out


def theirs(shape: dict[str, int], batch: int, tokens: int) -> dict[str, Write]:
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["model_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        intermediate_size=shape["ffn_dim"],
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.tensor(prompts(batch, shape["vocab_size"]))
    settings = {
        "plain": None,
        "kgw parity": transformers.WatermarkingConfig(greenlist_ratio=GAMMA, bias=DELTA),
        "synthid": transformers.SynthIDTextWatermarkingConfig(keys=list(KEYS), ngram_len=5),
    }
    options: dict[str, Any] = dict(
        do_sample=True, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
    )

    def write(mark: Any) -> None:
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), watermarking_config=mark, **options)

    return {name: lambda mark=mark: write(mark) for name, mark in settings.items()}


def timed(fn: Write) -> dict[str, float]:
    """Seconds of a call, and how many cores other processes kept busy meanwhile."""
    busy, used, start = machine.busy_cpu_seconds(), time.process_time(), time.perf_counter()
    fn()
    seconds = time.perf_counter() - start
    others = machine.busy_cpu_seconds() - busy - (time.process_time() - used)
    return {"seconds": seconds, "others": max(0.0, others) / seconds}


def writing(part: str, shape: dict[str, int], batch: int, args: argparse.Namespace) -> list[dict]:
    """A row for each round, side and mark, after a first call that is not counted."""
    rows = []
    for who, build in (("ours", ours), ("transformers", theirs)):
        fns = build(shape, batch, args.tokens)
        for fn in fns.values():
            fn()
        for number in range(args.rounds):
            machine.wait_until_quiet(args.patience)
            for name, fn in fns.items():
                row = {"part": part, "who": who, "what": name, "round": number, "tokens": batch * args.tokens}
                rows.append(row | timed(fn))
    return rows


def detection(vocab_size: int, args: argparse.Namespace) -> list[dict]:
    """Texts that no cache has met: every round has a key of its own."""
    import torch
    import transformers

    texts = np.random.default_rng(1).integers(3, vocab_size, (TEXTS, TEXT))
    config = transformers.LlamaConfig(vocab_size=vocab_size, bos_token_id=1)
    rows = []
    for number in range(args.rounds):
        machine.wait_until_quiet(args.patience)
        fast = Mark("kgw", KEY + number, vocab_size, gamma=GAMMA)
        parity = Mark("kgw", KEY + number, vocab_size, gamma=GAMMA, parity="hf")
        peer_config = transformers.WatermarkingConfig(greenlist_ratio=GAMMA, hashing_key=KEY + number)
        peer = transformers.WatermarkDetector(config, "cpu", peer_config, ignore_repeated_ngrams=True)
        fns = {
            "ours, fast": lambda mark=fast: [detect.detect(mark, ids) for ids in texts],
            "ours, parity": lambda mark=parity: [detect.detect(mark, ids) for ids in texts],
            "transformers": lambda peer=peer: [peer(torch.tensor(ids[None])) for ids in texts],
        }
        for name, fn in fns.items():
            row = {"part": "detection", "who": name, "what": "reading", "round": number, "tokens": texts.size}
            rows.append(row | timed(fn))
    return rows


def lists(vocab_size: int, args: argparse.Namespace) -> list[dict]:
    """A list of `parity` that is drawn, and one that is there already."""
    kept = processors.TorchLists(Mark("kgw", KEY, vocab_size, gamma=GAMMA, parity="hf"))
    rows, num = [], 20
    for number in range(args.rounds):
        for name in ("drawn", "there already"):
            fn = lambda number=number: [kept.packed((number * num + i,)) for i in range(num)]  # noqa: E731
            row = {"part": "lists", "who": "ours", "what": name, "round": number, "tokens": num}
            rows.append(row | timed(fn))
    return rows


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    shape = WHOLE
    if args.quick:
        shape, args.rounds, args.tokens, args.batch, args.patience = QUICK, 1, 8, 2, 0
    rows: list[dict] = []
    facts: dict[str, str] = {}
    for part in args.parts:
        start = time.perf_counter()
        if part in ("one", "several"):
            rows += writing(part, shape, 1 if part == "one" else args.batch, args)
        else:
            rows += {"detection": detection, "lists": lists}[part](shape["vocab_size"], args)
        facts[f"seconds of {part}"] = f"{time.perf_counter() - start:.0f}"
        print(f"{part}: {facts[f'seconds of {part}']} s", flush=True)
    import torch
    import transformers

    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    V = shape["vocab_size"]
    facts |= {"model": ", ".join(f"{k} {v}" for k, v in shape.items()), "answers of several": str(args.batch)}
    facts["lists of parity"] = (
        f"at most {processors.LIST_BYTES >> 20} MiB stay; V^2 / 8 bytes would be {V * V / 8 / 2**20:.1f}"
    )
    return rows, facts


def report(rows: list[dict], facts: dict) -> str:
    text = ["# Watermarks beside transformers", "", *tables(rows)]
    text += [f"Over all rounds, {machine.noise([row['others'] for row in rows])}.", "", machine.notes(facts)]
    return "\n".join(text)


def tables(rows: list[dict]) -> list[str]:
    """A table for writing, one for reading and one for lists, of those that were measured."""
    out: list[str] = []
    written = [row for row in rows if row["part"] in ("one", "several")]
    body = []
    for part, who, what in dict.fromkeys((row["part"], row["who"], row["what"]) for row in written):
        mine = [row for row in written if (row["part"], row["who"], row["what"]) == (part, who, what)]
        plain = [row for row in written if (row["part"], row["who"], row["what"]) == (part, who, "plain")]
        bar = f"{BARS[what]:.2f}" if who == "ours" and what in BARS else ""
        body.append([part, who, what, f"{rate(mine):,.0f}", spread(mine, plain), bar])
    if body:
        out += [machine.table(["answers", "who", "mark", "tokens/s", "times plain's time", "at most"], body), ""]
    read = [row for row in rows if row["part"] == "detection"]
    peer = [row for row in read if row["who"] == "transformers"]
    body = []
    for who in dict.fromkeys(row["who"] for row in read):
        mine = [row for row in read if row["who"] == who]
        bar = str(DETECTION_BAR) if who == "ours, fast" else ""
        body.append([who, f"{rate(mine):,.0f}", spread(peer, mine), bar])
    if body:
        out += [machine.table(["detector", "tokens/s", "times transformers' tokens/s", "at least"], body), ""]
    drawn = [row for row in rows if row["part"] == "lists"]
    body = [
        [what, f"{1_000 / rate([row for row in drawn if row['what'] == what]):.3f}"]
        for what in dict.fromkeys(row["what"] for row in drawn)
    ]
    return out + ([machine.table(["list of parity", "ms"], body), ""] if body else [])


def rate(rows: list[dict]) -> float:
    return statistics.median(row["tokens"] / row["seconds"] for row in rows)


def spread(rows: list[dict], others: list[dict]) -> str:
    """By how many times the seconds are the others', round by round: median, least and largest."""
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows, others, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})"


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
