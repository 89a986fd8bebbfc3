"""Scoring choices in lm-evaluation-harness: `flax` beside `hf`, the same random weights in fp32, in turns of one run.

    python benchmarks/harness.py --output benchmarks/results/harness.md

The model of decode.py. Questions have contexts of 60 to 140 tokens and four choices, of one token or of 4 to 12; both
sides read texts, so that encoding them counts. `hf` runs at each batch size of --batches, and its best one counts. The
floor is the FLOP of every token read once and of logits where they are needed, over the rate of a large product that
was measured in the same round.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import decode, machine

PEERS = Path(__file__).resolve().parent / "peers"
KINDS = {"one token": (1, 1), "4 to 12 tokens": (4, 12)}
CONTEXT, CHOICES = (60, 140), 4
TOLERANCE = 1e-3  # nats


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant; the medians count")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--batches", default="1,8,32", help="batch sizes of hf")


def write_tokenizer(folder: Path) -> None:
    """A word is a token, so that a text has as many tokens as the benchmark says."""
    vocab = {f"w{i}": i for i in range(decode.SIZES["vocab"] - 2)}
    vocab |= {"<s>": len(vocab), "</s>": len(vocab) + 1}
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    content = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[name], "content": name, **special} for name in ("<s>", "</s>")],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "</s>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="</s>", add_bos_token=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "PreTrainedTokenizerFast"}))


def pairs(num: int, kind: str, seed: int) -> list[tuple[str, str]]:
    """A context and a continuation for each choice of each question, as texts."""
    rng = np.random.default_rng(seed)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(1, decode.SIZES["vocab"] - 2, size=rng.integers(least, most + 1)))

    out = []
    for _ in range(num):
        context = words(*CONTEXT)
        out += [(context, " " + words(*KINDS[kind])) for _ in range(CHOICES)]
    return out


def floor_seconds(asked: list[tuple[str, str]], floors: dict) -> float:
    """The least seconds for pairs whose contexts are read once, with logits once for each state that needs them."""
    layer_weights, head_weights = decode.num_weights()
    contexts = {context: len(context.split()) for context, _ in asked}
    inner = sum(len(rest.split()) - 1 for _, rest in asked)  # the last token of a continuation is never read
    flop = 2 * layer_weights * (sum(contexts.values()) + inner) + 2 * head_weights * (len(contexts) + inner)
    return flop / floors["gflops"] / 1e9


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    weights = folder / "weights"
    weights.mkdir()
    decode.write_weights(weights)
    write_tokenizer(weights)
    has_peer = subprocess.run([sys.executable, "-c", "import torch, accelerate, lm_eval"], capture_output=True)
    packages = [machine.TORCH, ("transformers==5.23.0",), ("accelerate",), ("lm_eval==0.4.13",)]
    peer = "" if has_peer.returncode == 0 else "harness"
    python = machine.environment(peer, packages, args.env_dir, args.python or machine.find_python())
    commands = {
        "flax": [sys.executable, str(PEERS / "harness_flax.py"), str(weights)],
        "hf": [python, str(PEERS / "harness_hf.py"), str(weights)],
    }
    rows, versions = [], {}
    for number in range(args.rounds):
        workers = {name: machine.Worker(name, line, folder / f"{name}.log") for name, line in commands.items()}
        versions = {name: worker.versions for name, worker in workers.items()}
        rows += one_round(workers, number, args)
        for worker in workers.values():
            worker.close()
        print(f"round {number + 1} of {args.rounds}", flush=True)
    return rows, {"versions": machine.versions_of(versions), "questions": str(args.questions)}


def one_round(workers: dict[str, machine.Worker], number: int, args: argparse.Namespace) -> list[dict]:
    def ask(who: str, **job) -> dict:
        machine.wait_until_quiet(args.patience)
        workers[who].ask(json.dumps({"job": "score", **job}))
        return workers[who].read("done")

    out, floors = [], ask("flax", job="floors")
    for kind in KINDS:
        asked = pairs(args.questions, kind, number)
        ask("flax", pairs=asked)  # compiles
        busy = machine.busy_cpu_seconds()
        ours = ask("flax", pairs=asked)
        others = max(0.0, machine.busy_cpu_seconds() - busy - ours["cpu_seconds"]) / ours["seconds"]
        theirs = {}
        for size in map(int, args.batches.split(",")):
            ask("hf", pairs=asked[: 4 * CHOICES], batch_size=size)  # warms up
            theirs[size] = ask("hf", pairs=asked, batch_size=size)
        best = min(theirs, key=lambda size: theirs[size]["seconds"])
        gap = max(abs(a[0] - b[0]) for a, b in zip(ours["answers"], theirs[best]["answers"]))
        flags_differ = sum(a[1] != b[1] for a, b in zip(ours["answers"], theirs[best]["answers"]))
        if gap > TOLERANCE or flags_differ:
            raise SystemExit(f"{kind}: log-likelihoods differ by {gap:.1e} nats and {flags_differ} greedy flags")
        out.append(
            {
                "kind": kind,
                "round": number,
                "flax": len(asked) / ours["seconds"],
                "hf": len(asked) / theirs[best]["seconds"],
                "batch": best,
                "floor": len(asked) / floor_seconds(asked, floors),
                "gap": gap,
                "rss": [ours["peak_rss_mb"], theirs[best]["peak_rss_mb"]],
                "others": others,
            }
        )
    return out


def report(rows: list[dict], facts: dict) -> str:
    body = []
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        ratios = [row["flax"] / row["hf"] for row in mine]
        body.append(
            [
                kind,
                f"{statistics.median(row['flax'] for row in mine):,.0f}",
                f"{statistics.median(row['hf'] for row in mine):,.1f} (batch {mine[0]['batch']})",
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})",
                f"{statistics.median(row['floor'] for row in mine):,.0f}",
                f"{100 * statistics.median(row['flax'] / row['floor'] for row in mine):.0f} %",
                f"{max(row['gap'] for row in mine):.0e}",
                f"{mine[0]['rss'][0]:,.0f}, {mine[0]['rss'][1]:,.0f}",
            ]
        )
    head = [
        "choices of",
        "flax, requests/s",
        "hf, its best",
        "ratio",
        "floor",
        "share of it",
        "largest difference, nats",
        "peak MiB",
    ]
    noise = f"While flax worked, {machine.noise([row['others'] for row in rows])}."
    title = "# Scoring choices in lm-evaluation-harness"
    return "\n".join([title, "", machine.table(head, body), "", noise, "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
