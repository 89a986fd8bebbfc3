"""Decoding beside transformers, on the same random weights in fp32, in turns of one run.

    python benchmarks/decode.py --output benchmarks/results/decode.md

A Llama-like model (width 512, 8 layers, 8 heads, 4 key/value heads, FFN 1408, vocabulary 32,000, tied), prompts of 64
tokens and 128 new ones. Every contestant has a process of its own and waits while another works. The floor is the
larger of bytes over the bandwidth and FLOP over the rate of a large product, both measured in this run, prefill
included. What a shape's first call takes beyond its second is called compiling. transformers' `generate` runs with a
dynamic cache, a static one, and a static one under torch.compile (which needs a C++ compiler); its best counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.peers import decode_task as task

PEERS = Path(__file__).resolve().parent / "peers"
SIZES = dict(layers=8, width=512, heads=8, kv_heads=4, ffn=1_408, vocab=32_000)
BATCHES = (1, 8, 32)
CACHES = ("dynamic", "static", "compiled")  # of transformers
SLOTS, RANK = 8, 16
NUM_ADAPTERS = 3
COPIED = (
    "The old bridge over the river was closed for repairs in spring. Engineers found that two of its pillars "
    "had moved, and that the iron railings had rusted through in many places. The town council decided to "
    "replace the railings first, and to strengthen the pillars in the following year.",
    "A slot that ends is refilled without waiting for the others. The prompt is read in chunks of one length, "
    "and a chunk that several requests share is computed once. What a request writes does not depend on its "
    "neighbours.",
)


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant; the medians count")
    parser.add_argument("--prompts", type=int, default=200, help="of the job of mixed lengths")
    parser.add_argument("--parts", default="equal,queue,steps,adapters,extras", help="what to measure")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="of the answers of equal lengths")
    parser.add_argument("--caches", default=",".join(CACHES), help="transformers' caches that take part")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--real", type=Path, help="folder of a chat model, for guesses on a copying task")


def write_weights(folder: Path) -> None:
    s = SIZES
    rng = np.random.default_rng(0)
    head_dim = s["width"] // s["heads"]
    shapes = {"model.embed_tokens.weight": (s["vocab"], s["width"])}
    for i in range(s["layers"]):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{n}_proj.weight": (s["width"], s["width"]) for n in "qo"}
        shapes |= {f"{at}.self_attn.{n}_proj.weight": (s["kv_heads"] * head_dim, s["width"]) for n in "kv"}
        shapes |= {f"{at}.mlp.{n}_proj.weight": (s["ffn"], s["width"]) for n in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (s["width"], s["ffn"])}
    tensors = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{n}_layernorm" for i in range(s["layers"]) for n in ("input", "post_attention")]
    tensors |= {f"{name}.weight": np.ones(s["width"], np.float32) for name in (*norms, "model.norm")}
    machine.write_safetensors(folder / "model.safetensors", tensors)
    config = dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        vocab_size=s["vocab"],
        hidden_size=s["width"],
        intermediate_size=s["ffn"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"],
        tie_word_embeddings=True,
        max_position_embeddings=4_096,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    (folder / "config.json").write_text(json.dumps(config))


def num_weights() -> tuple[int, int]:
    """Weights that a step reads: in all layers together, and in the head."""
    s, head_dim = SIZES, SIZES["width"] // SIZES["heads"]
    attention = 2 * s["width"] ** 2 + 2 * s["width"] * s["kv_heads"] * head_dim
    return s["layers"] * (attention + 3 * s["width"] * s["ffn"]), s["width"] * s["vocab"]


def step_floor(floors: dict, num: int, live: float, *, more_weights: int = 0) -> float:
    """The least seconds of a step of `num` rows with `live` positions each.

    Args:
        more_weights: those of adapters, which are read beside the model's and multiplied with `num` rows at most.
    """
    s, head_dim = SIZES, SIZES["width"] // SIZES["heads"]
    weights = sum(num_weights()) + more_weights
    cache_bytes = 4 * s["layers"] * 2 * s["kv_heads"] * head_dim * live
    return max((4 * weights + num * cache_bytes) / floors["gbs"], 2 * num * weights / floors["gflops"]) / 1e9


def prefill_floor(floors: dict, num_tokens: int) -> float:
    """The least seconds in which so many tokens of prompts are read; no logits are needed there."""
    return 2 * num_tokens * num_weights()[0] / floors["gflops"] / 1e9


def equal_floor(floors: dict, num: int) -> float:
    return task.NEW * step_floor(floors, num, task.PROMPT + task.NEW / 2) + prefill_floor(floors, num * task.PROMPT)


def queue_floor(floors: dict, lengths: list[tuple[int, int]]) -> float:
    """The least seconds for answers of mixed lengths, all slots busy to the end.

    Args:
        lengths: of each prompt and its answer.
    """
    written = sum(new for _, new in lengths)
    live = sum(new * (prompt + new / 2) for prompt, new in lengths) / written
    return written / SLOTS * step_floor(floors, SLOTS, live) + prefill_floor(floors, sum(p for p, _ in lengths))


def adapter_weights() -> int:
    """Weights of NUM_ADAPTERS adapters on all seven linear maps of each layer."""
    s, narrow = SIZES, SIZES["width"] * SIZES["kv_heads"] // SIZES["heads"]
    sides = 2 * (2 * s["width"]) + 2 * (s["width"] + narrow) + 3 * (s["width"] + s["ffn"])
    return NUM_ADAPTERS * s["layers"] * RANK * sides


class Contestants:
    """Both sides, started anew in each round; asks one at a time, on a machine that is otherwise quiet."""

    def __init__(self, weights: Path, folder: Path, args: argparse.Namespace):
        has_peer = subprocess.run([sys.executable, "-c", "import torch, transformers"], capture_output=True)
        packages = [machine.TORCH, ("transformers==5.23.0",), ("accelerate",)]
        peer = "" if has_peer.returncode == 0 else "decode"
        python = machine.environment(peer, packages, args.env_dir, args.python or machine.find_python())
        commands = {
            "ours": [sys.executable, str(PEERS / "decode_ours.py"), str(weights)],
            "transformers": [python, str(PEERS / "decode_transformers.py"), str(weights)],
        }
        self.workers = {name: machine.Worker(name, line, folder / f"{name}.log") for name, line in commands.items()}
        self.patience, self.others = args.patience, []

    def ask(self, who: str, **job) -> dict:
        machine.wait_until_quiet(self.patience)
        self.workers[who].ask(json.dumps(job))
        return self.workers[who].read("done")

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    weights = folder / "weights"
    weights.mkdir()
    write_weights(weights)
    parts, rows, versions = args.parts.split(","), [], {}
    for number in range(args.rounds):
        contestants = Contestants(weights, folder, args)
        versions = {name: w.versions for name, w in contestants.workers.items()}
        rows.append({"round": number, **one_round(contestants, parts, args)})
        contestants.close()
        print(f"round {number + 1} of {args.rounds}", flush=True)
    if "extras" in parts:
        rows[0]["first"] = first_answers(weights, folder)
        if args.real:
            rows[0]["copying"] = copying(args.real, folder)
    facts = {"versions": machine.versions_of(versions), "rounds": str(args.rounds)}
    return rows, facts


def one_round(contestants: Contestants, parts: list[str], args: argparse.Namespace) -> dict:
    ask, out = contestants.ask, {"floors": contestants.ask("ours", job="floors")}
    if "equal" in parts:
        for num in map(int, args.batches.split(",")):
            out[f"equal {num}"] = equal(ask, num, args.caches.split(","), out["floors"])
    if "queue" in parts:
        ask("ours", job="queue", num=8, seed=1)
        ours, theirs = (ask(who, job="queue", num=args.prompts, seed=2) for who in ("ours", "transformers"))
        same = sum(a == b for a, b in zip(ours["ids"], theirs["ids"]))
        out["queue"] = {"ours": ours["seconds"], "theirs": theirs["seconds"], "busy": ours["busy"], "same": same}
        out["queue"]["tokens"] = sum(map(len, ours["ids"]))
        lengths = [(len(prompt), new) for prompt, new in task.queue(args.prompts, SIZES["vocab"], 2)]
        out["queue"]["floor"] = queue_floor(out["floors"], lengths)
        out["queue"]["rss"] = [ours["peak_rss_mb"], theirs["peak_rss_mb"]]
        ask("transformers", job="continuous", num=8, seed=1)
        out["queue"]["continuous"] = ask("transformers", job="continuous", num=args.prompts, seed=2)["seconds"]
    if "steps" in parts:
        out["steps"] = steps(ask, out["floors"])
    if "adapters" in parts:
        out["adapters"] = adapters(ask, out["floors"])
    if "extras" in parts:
        out["best_of"] = ask("ours", job="best_of", num=16)["chunks"]
        out["programs"] = ask("ours", job="programs", num=1_000, seed=3)
    return out


def equal(ask: Callable[..., dict], num: int, caches: list[str], floors: dict) -> dict:
    """Greedy answers of one length to `num` prompts of one length, ours beside the best of transformers' caches."""
    first, ours = (ask("ours", job="equal", num=num, seed=seed) for seed in (1, 2))
    theirs, failed = {}, {}
    for cache in caches:
        theirs_first, answer = (ask("transformers", job="equal", num=num, seed=seed, cache=cache) for seed in (1, 2))
        if "failed" in answer:
            failed[cache] = answer["failed"]
        else:
            theirs[cache] = answer | {"compile": theirs_first["seconds"] - answer["seconds"]}
    best = min(theirs, key=lambda cache: theirs[cache]["seconds"])
    return {
        "ours": ours["seconds"],
        "theirs": theirs[best]["seconds"],
        "best": best,
        "caches": {cache: answer["seconds"] for cache, answer in theirs.items()},
        "failed": failed,
        "floor": equal_floor(floors, num),
        "same": sum(a == b for a, b in zip(ours["ids"], theirs[best]["ids"])),
        "compile": [first["seconds"] - ours["seconds"], theirs[best]["compile"]],
        "rss": [ours["peak_rss_mb"], theirs[best]["peak_rss_mb"]],
    }


def steps(ask: Callable[..., dict], floors: dict) -> dict:
    """Milliseconds of a step of eight rows and its floor, by what is allocated, asked for, and guided."""

    def one(num_models: int = 1, **options) -> dict:
        answer = ask("ours", job="step", num=SLOTS, **options)
        floor = 1e3 * num_models * step_floor(floors, SLOTS, answer["live"])
        return {"ms": answer["ms"], "floor": floor, "rss": answer["peak_rss_mb"]}

    filters = dict(temperature=1.0, top_k=50, top_p=0.9, min_p=0.05)
    return {
        "lengths": {n: one(max_len=n, dispatches=3) for n in (256, 1_024, 4_096)},
        "plain": one(),
        "noisy": one(temperature=1.0),
        "filtered": one(**filters),
        "guided": {k: one(1 + k, guides=k, live=64) for k in (0, 1, 2, 3)},
        "silent": ask("ours", job="silent", num=SLOTS),
    }


def adapters(ask: Callable[..., dict], floors: dict) -> dict:
    """One answer guided by adapters of its model: a step beside those of as many rows, and of the model alone."""
    kinds = {"alone": dict(num=1), "rows": dict(num=1 + NUM_ADAPTERS), "guided": dict(num=1, adapters=NUM_ADAPTERS)}
    answers = {name: ask("ours", job="step", live=64, dispatches=12, **kind) for name, kind in kinds.items()}
    more = {"alone": (1, 0), "rows": (1 + NUM_ADAPTERS, 0), "guided": (1 + NUM_ADAPTERS, adapter_weights())}
    floor = {
        name: 1e3 * step_floor(floors, rows, answers[name]["live"], more_weights=weights)
        for name, (rows, weights) in more.items()
    }
    ask("transformers", job="guided", seed=1)
    ms = {name: answer["ms"] for name, answer in answers.items()}
    return ms | {"floor": floor, "theirs": ask("transformers", job="guided", seed=2)}


def first_answers(weights: Path, folder: Path) -> dict:
    """A new process's first answer, without and with the compilation cache."""
    import os

    cache, seconds = folder / "cache", {}
    for name in ("cold", "cached"):
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
        environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        line = [sys.executable, str(PEERS / "decode_ours.py"), str(weights)]
        done = subprocess.run(
            line, input='{"job": "first", "num": 8}\n', env=environment, capture_output=True, text=True, check=True
        )
        seconds[name] = json.loads(done.stdout.splitlines()[-1])["seconds"]
    return seconds


def copying(real: Path, folder: Path) -> dict:
    """Guesses by look-up while a chat model repeats a text; greedy, one at a time."""
    from data.tokens import tokenizer

    tok = tokenizer.load(str(real))
    asks = [[{"role": "user", "content": f"Repeat this text word for word:\n{text}"}] for text in COPIED]
    ids = [tok.encode(tok.render(messages, add_generation_prompt=True)) for messages in asks]
    worker = machine.Worker("ours", [sys.executable, str(PEERS / "decode_ours.py"), str(real)], folder / "real.log")
    out = {}
    for num_draft in (0, 4, 8):
        worker.ask(
            json.dumps({"job": "speculate", "ids": ids, "new": 96, "num_draft": num_draft, "stop": tok.stop_ids})
        )
        out[str(num_draft)] = worker.read("done")
    worker.close()
    plain = out["0"]
    return {
        n: {"times": plain["seconds"] / x["seconds"], "steps": x["steps"], "same": x["ids"] == plain["ids"]}
        for n, x in out.items()
    }


def median(rows: list[dict], *path: str | int) -> float:
    values = []
    for row in rows:
        for name in path:
            row = row[name]
        values.append(row)
    return statistics.median(values)


def compared(rows: list[dict], ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """The median over rounds of how much faster ours is, and the range."""
    ratios = [median([row], *theirs) / median([row], *ours) for row in rows]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def equal_table(rows: list[dict]) -> list[str]:
    body, notes = [], []
    for name in (name for name in rows[0] if name.startswith("equal ")):
        num, first = int(name.split()[1]), rows[0][name]
        tokens = num * task.NEW
        ours, theirs, floor = (median(rows, name, key) for key in ("ours", "theirs", "floor"))
        compile_seconds = [statistics.median(row[name]["compile"][side] for row in rows) for side in (0, 1)]
        share = statistics.median(row[name]["floor"] / row[name]["ours"] for row in rows)
        body.append(
            [
                f"batch {num}",
                f"{tokens / ours:,.0f}",
                f"{tokens / theirs:,.0f} ({first['best']})",
                compared(rows, (name, "ours"), (name, "theirs")),
                f"{tokens / floor:,.0f}",
                f"{100 * share:.0f} %",
                f"{first['same']} of {num}",
                f"{compile_seconds[0]:.1f}, {compile_seconds[1]:.1f}",
                f"{first['rss'][0]:,.0f}, {first['rss'][1]:,.0f}",
            ]
        )
        caches = ", ".join(f"{cache} {tokens / seconds:,.0f}" for cache, seconds in first["caches"].items())
        notes.append(f"transformers at batch {num}, tokens/s in the first round: {caches}.")
        notes += [f"Its cache {cache} fails: {why}." for cache, why in first["failed"].items()]
    head = ["greedy", "tokens/s", "transformers' best", "ratio", "floor", "share of it", "equal rows"]
    return ["", machine.table([*head, "compiling, s", "peak MiB"], body), "", *notes]


def queue_table(rows: list[dict]) -> list[str]:
    ours, floor, tokens = (median(rows, "queue", name) for name in ("ours", "floor", "tokens"))
    rss = rows[0]["queue"]["rss"]
    body = [["the floor", f"{floor:.1f}", f"{tokens / floor:,.0f}", f"{floor / ours:.2f}", ""]]
    body += [["ours, 8 slots", f"{ours:.1f}", f"{tokens / ours:,.0f}", "1", f"{rss[0]:,.0f}"]]
    for who, name in (("generate in batches of 8", "theirs"), ("its continuous batching", "continuous")):
        seconds, ratio = median(rows, "queue", name), compared(rows, ("queue", "ours"), ("queue", name))
        peak = f"{rss[1]:,.0f}" if name == "theirs" else ""
        body.append([who, f"{seconds:.1f}", f"{tokens / seconds:,.0f}", ratio, peak])
    busy = f"Slots busy until the queue is empty: {100 * median(rows, 'queue', 'busy'):.1f} %. "
    busy += f"Equal answers: {rows[0]['queue']['same']}."
    return ["", machine.table(["mixed lengths", "s", "tokens/s", "ours is faster by", "peak MiB"], body), "", busy]


def steps_table(rows: list[dict]) -> list[str]:
    def line(label: str, *path: str, note: str = "") -> list[str]:
        ms, floor = (median(rows, "steps", *path, key) for key in ("ms", "floor"))
        return [label, f"{ms:.2f}{note}", f"{floor:.2f}", f"{100 * floor / ms:.0f} %"]

    first = rows[0]["steps"]
    plain, filtered = (median(rows, "steps", name, "ms") for name in ("plain", "filtered"))
    base = median(rows, "steps", "guided", min(first["guided"]), "ms")
    body = [line(f"{n} positions allocated, 200 live", "lengths", n) for n in first["lengths"]]
    body += [line("greedy", "plain"), line("drawn", "noisy")]
    more = f" ({100 * (filtered / plain - 1):+.0f} %)"
    body += [line("top-k, top-p and min-p on every row", "filtered", note=more)]
    for k in (k for k in first["guided"] if int(k)):
        times = median(rows, "steps", "guided", k, "ms") / (base * (int(k) + 1))
        body.append(line(f"guided by {k}", "guided", k, note=f" ({times:.2f} of {int(k) + 1} plain steps)"))
    silent, loud = (median(rows, "steps", "silent", name) for name in ("without", "with"))
    text = f"The chosen tokens' log-probabilities cost {100 * (loud / silent - 1):+.1f} % of a step: {silent:.2f} ms "
    text += f"without them, {loud:.2f} with them, in turns of one process."
    return ["", machine.table(["one step of 8 rows", "ms", "floor", "share of it"], body), "", text]


def adapters_table(rows: list[dict]) -> list[str]:
    alone, all_rows, guided = (median(rows, "adapters", name) for name in ("alone", "rows", "guided"))
    theirs = {name: median(rows, "adapters", "theirs", name) for name in ("plain", "guided")}
    floor = {name: f"{median(rows, 'adapters', 'floor', name):.2f}" for name in ("alone", "rows", "guided")}
    body = [
        ["the model alone", f"{alone:.2f}", floor["alone"], "1"],
        [f"{1 + NUM_ADAPTERS} rows of it", f"{all_rows:.2f}", floor["rows"], f"{all_rows / alone:.2f}"],
        [
            f"guided by {NUM_ADAPTERS} adapters of rank {RANK}",
            f"{guided:.2f}",
            floor["guided"],
            f"{guided / alone:.2f}",
        ],
    ]
    return [
        "",
        machine.table(["one answer, a step", "ms", "floor", "times the model alone"], body),
        "",
        f"Guided by adapters costs {guided / all_rows:.2f} times plain decoding of as many rows. In transformers, a "
        f"logits processor with a second cached model costs {theirs['guided'] / theirs['plain']:.2f} times the model "
        "alone.",
    ]


def report(rows: list[dict], facts: dict) -> str:
    gbs, gflops = median(rows, "floors", "gbs"), median(rows, "floors", "gflops")
    lines = [
        "# Decoding beside transformers",
        "",
        f"This machine reads {gbs:.1f} GB/s and multiplies {gflops:.0f} GFLOP/s.",
    ]
    if any(name.startswith("equal ") for name in rows[0]):
        lines += equal_table(rows)
    if "queue" in rows[0]:
        lines += queue_table(rows)
    if "steps" in rows[0]:
        lines += steps_table(rows)
    if "adapters" in rows[0]:
        lines += adapters_table(rows)
    if "programs" in rows[0]:
        counts = rows[0]["programs"]
        lines += ["", f"Programs: {counts['programs']}, and {counts['more']} more over 1,000 requests of all options. "]
        lines[-1] += f"Best of 16 prefills {rows[0]['best_of']} chunk."
    if "first" in rows[0]:
        first = rows[0]["first"]
        lines += [f"First answer of a new process, weights in memory: {first['cold']:.1f} s cold, "]
        lines[-1] += f"{first['cached']:.1f} s from the compilation cache."
    for num, at in rows[0].get("copying", {}).items():
        if int(num):
            lines += [f"Copying with a chat model, {num} guesses by look-up: {at['times']:.2f} times as fast, "]
            lines[-1] += f"{at['steps']} steps, {'the same' if at['same'] else 'other'} tokens."
    return "\n".join(lines) + "\n\n" + machine.notes(facts)


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
