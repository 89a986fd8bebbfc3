"""Decoding beside transformers, on the same random weights in fp32, in turns of one run.

    python benchmarks/decode.py --output benchmarks/results/decode.md

A Llama-like model (width 512, 8 layers, 8 heads, 4 key/value heads, FFN 1408, vocabulary 32,000, tied), prompts of 64
tokens and 128 new ones. Every contestant has a process of its own and waits while another works. The floor is the
larger of bytes over the bandwidth and FLOP over the rate of a large product, both measured in this run, prefill
included.
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


def floor_seconds(num: int, floors: dict) -> float:
    """The least that prompts and steps of `num` rows can take here."""
    s, head_dim = SIZES, SIZES["width"] // SIZES["heads"]
    attention = 2 * s["width"] ** 2 + 2 * s["width"] * s["kv_heads"] * head_dim
    layer_weights = s["layers"] * (attention + 3 * s["width"] * s["ffn"])
    head_weights = s["width"] * s["vocab"]
    cache_bytes = 4 * s["layers"] * 2 * s["kv_heads"] * head_dim * (task.PROMPT + task.NEW / 2)
    step_bytes = 4 * (layer_weights + head_weights) + num * cache_bytes
    step_flop = 2 * num * (layer_weights + head_weights)
    prefill_flop = 2 * num * task.PROMPT * layer_weights
    step = max(step_bytes / floors["gbs"] / 1e9, step_flop / floors["gflops"] / 1e9)
    return task.NEW * step + prefill_flop / floors["gflops"] / 1e9


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
        for num in BATCHES:
            ask("ours", job="equal", num=num, seed=1)  # compiles
            ask("transformers", job="equal", num=num, seed=1, cache="dynamic")
            theirs = {c: ask("transformers", job="equal", num=num, seed=2, cache=c) for c in ("dynamic", "static")}
            ours = ask("ours", job="equal", num=num, seed=2)
            best = min(theirs.values(), key=lambda answer: answer["seconds"])
            same = sum(a == b for a, b in zip(ours["ids"], best["ids"]))
            floor = floor_seconds(num, out["floors"])
            out[f"equal {num}"] = {
                "ours": ours["seconds"],
                "theirs": best["seconds"],
                "share": floor / ours["seconds"],
                "same": same,
                "rss": [ours["peak_rss_mb"], best["peak_rss_mb"]],
            }
    if "queue" in parts:
        ask("ours", job="queue", num=8, seed=1)
        ours, theirs = (ask(who, job="queue", num=args.prompts, seed=2) for who in ("ours", "transformers"))
        same = sum(a == b for a, b in zip(ours["ids"], theirs["ids"]))
        out["queue"] = {"ours": ours["seconds"], "theirs": theirs["seconds"], "busy": ours["busy"], "same": same}
        out["queue"]["tokens"] = sum(map(len, ours["ids"]))
        ask("transformers", job="continuous", num=8, seed=1)
        out["queue"]["continuous"] = ask("transformers", job="continuous", num=args.prompts, seed=2)["seconds"]
    if "steps" in parts:
        lengths = {n: ask("ours", job="step", num=8, max_len=n, dispatches=3)["ms"] for n in (256, 1_024, 4_096)}
        plain = ask("ours", job="step", num=8)["ms"]
        noisy = ask("ours", job="step", num=8, temperature=1.0)["ms"]
        filters = dict(temperature=1.0, top_k=50, top_p=0.9, min_p=0.05)
        filtered = ask("ours", job="step", num=8, **filters)["ms"]
        guided = {k: ask("ours", job="step", num=8, guides=k, live=64)["ms"] for k in (0, 1, 2, 3)}
        out["steps"] = {"lengths": lengths, "plain": plain, "noisy": noisy, "filtered": filtered, "guided": guided}
    if "adapters" in parts:
        out["adapters"] = adapters(ask)
    if "extras" in parts:
        out["best_of"] = ask("ours", job="best_of", num=16)["chunks"]
        out["programs"] = ask("ours", job="programs", num=1_000, seed=3)
    return out


def adapters(ask: Callable[..., dict]) -> dict:
    """One answer guided by adapters of its model: a step beside those of as many rows, and of the model alone."""
    kinds = {"alone": dict(num=1), "rows": dict(num=1 + NUM_ADAPTERS), "guided": dict(num=1, adapters=NUM_ADAPTERS)}
    out = {name: ask("ours", job="step", live=64, dispatches=12, **kind)["ms"] for name, kind in kinds.items()}
    ask("transformers", job="guided", seed=1)
    return out | {"theirs": ask("transformers", job="guided", seed=2)}


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


def median(rows: list[dict], *path: str) -> float:
    values = []
    for row in rows:
        for name in path:
            row = row[name]
        values.append(row)
    return statistics.median(values)


def adapters_table(rows: list[dict]) -> list[str]:
    alone, all_rows, guided = (median(rows, "adapters", name) for name in ("alone", "rows", "guided"))
    theirs = {name: median(rows, "adapters", "theirs", name) for name in ("plain", "guided")}
    body = [
        ["the model alone", f"{alone:.2f}", "1"],
        [f"{1 + NUM_ADAPTERS} rows of it", f"{all_rows:.2f}", f"{all_rows / alone:.2f}"],
        [f"guided by {NUM_ADAPTERS} adapters of rank 16", f"{guided:.2f}", f"{guided / alone:.2f}"],
    ]
    return [
        "",
        machine.table(["one answer, a step", "ms", "times the model alone"], body),
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
    if "equal 1" in rows[0]:
        body = []
        for num in BATCHES:
            name, tokens = f"equal {num}", num * task.NEW
            ours, theirs = median(rows, name, "ours"), median(rows, name, "theirs")
            ratios = [row[name]["theirs"] / row[name]["ours"] for row in rows]
            body.append(
                [
                    f"batch {num}",
                    f"{tokens / ours:,.0f}",
                    f"{tokens / theirs:,.0f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                    f"{100 * median(rows, name, 'share'):.0f} %",
                    f"{rows[0][name]['same']} of {num}",
                    f"{rows[0][name]['rss'][0]:,.0f}, {rows[0][name]['rss'][1]:,.0f}",
                ]
            )
        head = ["greedy", "tokens/s", "transformers' best", "ratio", "share of the floor", "equal rows", "peak MiB"]
        lines += ["", machine.table(head, body)]
    if "queue" in rows[0]:
        ours = median(rows, "queue", "ours")
        tokens = rows[0]["queue"]["tokens"]
        body = [["ours, 8 slots", f"{ours:.1f}", f"{tokens / ours:,.0f}", "1"]]
        for who, name in (("generate in batches of 8", "theirs"), ("its continuous batching", "continuous")):
            ratios = [row["queue"][name] / row["queue"]["ours"] for row in rows]
            seconds = median(rows, "queue", name)
            body.append([who, f"{seconds:.1f}", f"{tokens / seconds:,.0f}", f"{statistics.median(ratios):.2f}"])
        lines += ["", machine.table(["mixed lengths", "s", "tokens/s", "ours is faster by"], body)]
        lines += ["", f"Slots busy until the queue is empty: {100 * median(rows, 'queue', 'busy'):.1f} %. "]
        lines[-1] += f"Equal answers: {rows[0]['queue']['same']}."
    if "steps" in rows[0]:
        lengths = {n: median(rows, "steps", "lengths", n) for n in rows[0]["steps"]["lengths"]}
        plain, noisy, filtered = (median(rows, "steps", name) for name in ("plain", "noisy", "filtered"))
        guided = {k: median(rows, "steps", "guided", k) for k in rows[0]["steps"]["guided"]}
        base = guided[min(guided)]
        body = [[f"{n} positions allocated, 200 live", f"{ms:.2f}"] for n, ms in lengths.items()]
        body += [["greedy", f"{plain:.2f}"], ["drawn", f"{noisy:.2f}"]]
        body += [["top-k, top-p and min-p on every row", f"{filtered:.2f} (+{100 * (filtered / plain - 1):.0f} %)"]]
        body += [
            [f"guided by {k}", f"{ms:.2f} ({ms / (base * (int(k) + 1)):.2f} of {int(k) + 1} plain steps)"]
            for k, ms in guided.items()
            if int(k)
        ]
        lines += ["", machine.table(["one step of 8 rows", "ms"], body)]
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
