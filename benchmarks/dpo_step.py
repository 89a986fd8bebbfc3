"""One DPO training step beside TRL and Tunix: the same weights, the same token ids, the same machine, in one run.

Run:    python benchmarks/dpo_step.py                                (about 10 minutes on two cores, plus installing)
One:    python benchmarks/dpo_step.py --profiles hh --rounds 2 --steps 1 \
            --peers ours-tree,ours-tree-adapter,trl-precomputed,trl-adapter,tunix
Ranks:  python benchmarks/dpo_step.py --profiles hh,ultrafeedback,long --answers 4 --peers ours-tree,ours-shared
Growth: python benchmarks/dpo_step.py --growth                       (ours alone, no peers; see growth.py)
Look:   python benchmarks/dpo_step.py --quick --rounds 2             (a toy model, to see that everything works)
Keep:   python benchmarks/dpo_step.py --output benchmarks/results/dpo_step.md

Each peer runs in an environment of its own, made by this script with venv and pip on first use (about 2 GB under
~/.cache/plumbline/bench, or --env-dir), through its own trainer's loop (benchmarks/peers/*.py). All contestants start
first and compile on uncounted steps; then they take turns, A B C A B C, so that a machine that drifts hits all alike,
and only one works at any moment; with --one-by-one, for machines whose memory they would fill together (the natural
lengths take about 30 GB), each has all its turns before the next one starts. The task: a Llama-like policy in float32,
pairs of one prompt and two answers, AdamW without decay or clipping, a constant rate, beta 0.1. Every contestant trains
on the same batch again and again, so the losses must agree step by step; the table says by how much they do not. The
profiles are those of `peers/dpo_task.py`: `even` has answers and prompts of one length, the others a natural spread
around the means of real sets. With --answers 4 each prompt has four answers, all of one length, and the batch all six
pairs of them; the limit of what sharing between them can give is then the count of tokens, 6 (P + 2 R) / (P + 4 R).
With --keep-freed every contestant's process keeps the memory that it frees, which glibc's allocator otherwise gives
back after each step, so that the system fills it with zeros again in the next one; docs/runs.md has the settings.
Contestants whose name ends in -adapter train an adapter of rank 16; all of them start with the same one.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import growth
import machine
import numpy as np

sys.path.append(str(Path(__file__).resolve().parent / "peers"))
sys.path.append(str(Path(__file__).resolve().parents[1]))
import dpo_task

from data.texts import orders, trees

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = {  # pip command lines, in order; a tuple of them: the first that works
    "trl": [
        machine.TORCH,
        ("torch==2.13.0 trl==1.16.0 transformers peft==0.21.2",),
    ],
    "tunix": [("google-tunix==0.1.7",)],
}
CONTESTANTS = {  # name: (environment, "" being the one that runs this script; worker; variant; what it is)
    "ours-tree": ("", "ours_step.py", "tree", "all pairs in one row, every token once, reference kept"),
    "ours-shared": ("", "ours_step.py", "shared", "prompt once per pair, reference kept"),
    "ours-separate": ("", "ours_step.py", "separate", "prompt once per answer, reference kept"),
    "ours-adapter": ("", "ours_step.py", "adapter", "rank 16 on all linear layers; rows as shared, reference kept"),
    "ours-tree-adapter": ("", "ours_step.py", "tree-adapter", "rank 16, rows as tree, reference kept"),
    "ours-devices-adapter": ("", "ours_step.py", "devices-adapter", "the same, a row on each of two simulated devices"),
    "trl-online": ("trl", "trl_step.py", "", "reference model in every step"),
    "trl-precomputed": ("trl", "trl_step.py", "precomputed", "reference kept"),
    "trl-checkpointing": (
        "trl",
        "trl_step.py",
        "checkpointing",
        "as online, with TRL's default gradient checkpointing",
    ),
    "trl-adapter": ("trl", "trl_step.py", "adapter", "peft, rank 16 on all linear layers, reference kept"),
    "tunix": ("tunix", "tunix_step.py", "", "reference model in every step"),
}
PEERS = "ours-tree,ours-shared,trl-precomputed,tunix"  # which fit into 16 GB together
SHAPE = {"model_dim": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "ffn_dim": 1408, "vocab_size": 32_000}
WARMUP = {"": 2, "trl": 1, "tunix": 2}  # uncounted steps; Tunix compiles again in its second
RANK = 16  # of adapters
KEEP_FREED = {  # of glibc's allocator: all of a process's memory in one heap, of which nothing goes back
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
}
EPOCH = 64 * 32  # pairs of the epoch whose packing is counted, 64 to a step
QUICK_SHAPE = {"model_dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 160, "vocab_size": 512}
QUICK = 8  # times shorter


# The task -----------------------------------------------------------------------------------------------------------


def write_weights(folder: Path, shape: dict, seed: int = 0) -> None:
    """A random Llama as a Hugging Face folder: normal with deviation 0.02, output scaled down with depth, tied."""
    rng = np.random.default_rng(seed)
    D, F, L, V = shape["model_dim"], shape["ffn_dim"], shape["num_layers"], shape["vocab_size"]
    head_dim = D // shape["num_heads"]
    widths = {"q_proj": D, "k_proj": shape["num_kv_heads"] * head_dim, "v_proj": shape["num_kv_heads"] * head_dim}

    def normal(*dims, scale=0.02):
        return (scale * rng.standard_normal(dims)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(V, D), "model.norm.weight": 1 + normal(D)}
    for i in range(L):
        at, out = f"model.layers.{i}.", 0.02 / (2 * L) ** 0.5
        tensors |= {f"{at}self_attn.{name}.weight": normal(width, D) for name, width in widths.items()}
        tensors[f"{at}self_attn.o_proj.weight"] = normal(D, D, scale=out)
        tensors[f"{at}mlp.gate_proj.weight"] = normal(F, D)
        tensors[f"{at}mlp.up_proj.weight"] = normal(F, D)
        tensors[f"{at}mlp.down_proj.weight"] = normal(D, F, scale=out)
        tensors[f"{at}input_layernorm.weight"] = 1 + normal(D)
        tensors[f"{at}post_attention_layernorm.weight"] = 1 + normal(D)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": shape["num_heads"],
        "num_key_value_heads": shape["num_kv_heads"],
        "head_dim": head_dim,
        "vocab_size": V,
        "max_position_embeddings": 4096,
        "rope_theta": 1_000_000.0,  # the only base Tunix's Llama 3 rotates with
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    machine.write_safetensors(folder / "model.safetensors", tensors)
    write_adapter(folder / dpo_task.ADAPTER, tensors, rng)


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """A fresh peft adapter on all linear layers of these weights: A uniform, B zero."""
    folder.mkdir(exist_ok=True)
    kernels = {name.removesuffix(".weight"): x.shape for name, x in tensors.items() if "_proj" in name}
    low = {}
    for name, (num_out, num_in) in kernels.items():
        a = rng.uniform(-1, 1, (RANK, num_in)) / num_in**0.5
        low[f"base_model.model.{name}.lora_A.weight"] = a.astype(np.float32)
        low[f"base_model.model.{name}.lora_B.weight"] = np.zeros((num_out, RANK), np.float32)
    targets = sorted({name.rsplit(".", 1)[1] for name in kernels})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    machine.write_safetensors(folder / "adapter_model.safetensors", low)


def floor_gflop(shape: dict, ids: dict[str, list], layout: str) -> float:
    """Arithmetic a step cannot avoid, GFLOP: forward and backward of the policy, none of the reference.

    Six operations per weight and token; attention over visible positions only; the head on answer positions only. In
    layout "tree" a prompt and an answer that several pairs have in common count once.
    """
    D, L = shape["model_dim"], shape["num_layers"]
    kv_width = D // shape["num_heads"] * shape["num_kv_heads"]
    weights = L * (2 * D * D + 2 * D * kv_width + 3 * D * shape["ffn_dim"])
    prompts, answers = [], []  # their lengths, an answer's with that of its prompt
    seen = set()
    for prompt, *both in zip(*(ids[name] for name in dpo_task.NAMES)):
        for answer in both:
            keys = ((prompt.tobytes(),), (prompt.tobytes(), answer.tobytes()))
            if layout == "separate" or (layout == "shared" and answer is both[0]) or keys[0] not in seen:
                prompts.append(len(prompt))
            if layout != "tree" or keys[1] not in seen:
                answers.append((len(answer), len(prompt)))
            seen |= set(keys)
    tokens = sum(prompts) + sum(R for R, _ in answers)
    sees = sum(P * (P + 1) // 2 for P in prompts) + sum(R * P + R * (R + 1) // 2 for R, P in answers)
    head = D * shape["vocab_size"] * sum(R for R, _ in answers)
    return (6 * weights * tokens + 12 * L * D * sees + 6 * head) / 1e9


def epoch_of(profile: dict, order: str, seed: int = 0) -> dict:
    """How packed rows of an epoch of this profile fill: 64 pairs a step in one row, in the trainer's order."""
    rng = np.random.default_rng(seed)
    P, A = (dpo_task.lengths(profile[part], dpo_task.SPREAD[part], EPOCH * n, rng) for part, n in WITH)
    sizes = (P + A.reshape(EPOCH, 2).sum(axis=1)).astype(int)
    shuffled = rng.permutation(EPOCH)
    index = orders.balanced(sizes, batch_size=64, seed=seed)(0) if order == "balanced" else shuffled
    rows = sizes[index].reshape(-1, 64).sum(axis=1)
    levels = trees.levels(rows)
    places = [trees.level_of(int(size), levels) for size in rows]
    return {"empty": 1 - rows.sum() / sum(places), "shapes": len(set(places))}


WITH = (("prompt", 1), ("answer", 2))  # lengths that a pair draws


# Measuring ----------------------------------------------------------------------------------------------------------


class Contestant(machine.Worker):
    """One side of the comparison: its steps, and the wall times of each round."""

    def __init__(self, name: str, python: str, folder: Path, threads: int):
        self.steps: list[dict] = []
        self.rounds: list[list[float]] = []
        self.others: list[float] = []  # cores that other processes kept busy meanwhile, at each command
        _, script, variant, _ = CONTESTANTS[name]
        command = [python, str(HERE / "peers" / script), "--weights", str(folder), "--ids", str(folder / "ids.npz")]
        command += ["--variant", variant, "--threads", str(threads)]
        super().__init__(name, command, folder / f"{name}.log")

    def step(self, count: int) -> list[float]:
        """Take `count` optimiser steps; their wall times in seconds."""
        self.ask(f"step {count}")
        before = machine.busy_cpu_seconds()
        new = [self.read("step") for _ in range(count)]
        others = machine.busy_cpu_seconds() - before - sum(s["cpu_seconds"] for s in new)
        self.others.append(max(others, 0.0) / sum(s["seconds"] for s in new))
        self.steps += new
        return [s["seconds"] for s in new]

    def peak(self) -> float:
        self.ask("peak")
        return self.read("peak")["gflops"]


def take_turns(
    names: list[str], pythons: dict[str, str], folder: Path, args: argparse.Namespace
) -> tuple[list[Contestant], float]:
    """Start and compile all, then let them take turns; the contestants and their best matrix rate, GFLOP/s."""
    if args.one_by_one and len(names) > 1:
        apart = [take_turns([name], pythons, folder, args) for name in names]
        return [c for contestants, _ in apart for c in contestants], max(peak for _, peak in apart)
    contestants, peaks = [], []
    try:
        for name in names:
            contestants.append(contestant := Contestant(name, pythons[CONTESTANTS[name][0]], folder, args.threads))
            warm = ", ".join(f"{seconds:.2f}" for seconds in contestant.step(WARMUP[CONTESTANTS[name][0]]))
            print(f"{name}: first steps {warm} s", flush=True)
        peaks += [c.peak() for c in contestants]
        for r in range(args.rounds):
            for contestant in contestants:
                machine.wait_until_quiet(args.patience)
                contestant.rounds.append(contestant.step(args.steps))
            seconds = (f"{c.name} {statistics.median(c.rounds[-1]):.2f} s" for c in contestants)
            print(f"round {r + 1}/{args.rounds}: " + ", ".join(seconds), flush=True)
        peaks += [c.peak() for c in contestants]
    finally:
        for contestant in contestants:
            contestant.close()
    return contestants, max(peaks)


# Reporting ----------------------------------------------------------------------------------------------------------


def ratios(contestant: Contestant, base: Contestant) -> list[float]:
    """How many times longer than `base` this contestant took, round by round."""
    return [statistics.median(a) / statistics.median(b) for a, b in zip(contestant.rounds, base.rounds)]


def summarise(contestants: list[Contestant]) -> list[dict]:
    bases = [c for c in contestants if c.name.startswith("ours")]
    rows = []
    for c in contestants:
        times = [t for one_round in c.rounds for t in one_round]
        losses = [s["loss"] for s in c.steps]
        row = {"contestant": c.name, "what": CONTESTANTS[c.name][3], "versions": c.versions, "step_seconds": times}
        row |= {"median": statistics.median(times), "min": min(times), "max": max(times)}
        row |= {"warmup": [s["seconds"] for s in c.steps[: -len(times)]], "others_busy_cores": c.others[1:]}
        row |= {"peak_rss_mb": c.steps[-1]["peak_rss_mb"], "losses": losses}
        row |= {"places": c.ready.get("places"), "tokens": c.ready.get("tokens")}  # of ours alone
        row |= {"cpu_seconds": [s["cpu_seconds"] for s in c.steps[-len(times) :]]}
        row["ratios"] = {base.name: ratios(c, base) for base in bases}
        same = [one for one in bases or contestants if is_adapter(one.name) == is_adapter(c.name)]
        base_losses = [s["loss"] for s in (same or [c])[0].steps]
        row["loss_difference"] = max(abs(a - b) for a, b in zip(losses, base_losses))
        rows.append(row)
    return rows


def is_adapter(name: str) -> bool:
    return name.endswith("adapter")


def table(rows: list[dict]) -> str:
    """Of the contestants of one profile."""
    bases = list(rows[0]["ratios"])
    head = ["contestant", "", "step, s", "pairs/s", "min", "max", *(f"x {b} (range)" for b in bases)]
    head += ["empty places", "CPU time, s", "first steps, s", "peak memory, MiB", "losses 1-4"]
    head += ["greatest difference to ours"]
    lines = []
    for row in rows:
        cells = [row["contestant"], row["what"], f"{row['median']:.2f}", f"{row['pairs'] / row['median']:.2f}"]
        cells += [f"{row['min']:.2f}", f"{row['max']:.2f}"]
        for r in row["ratios"].values():
            cells.append(f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})")
        cells += [
            f"{1 - row['tokens'] / row['places']:.1%}" if row["places"] else "",
            f"{statistics.median(row['cpu_seconds']):.2f}",
            " + ".join(f"{seconds:.1f}" for seconds in row["warmup"]),
            f"{row['peak_rss_mb']:.0f}",
        ]
        cells += [", ".join(f"{loss:.5f}" for loss in row["losses"][:4]), f"{row['loss_difference']:.1e}"]
        lines.append(cells)
    return machine.table(head, lines)


def measures(rows: list[dict], profile: dict, answers: int, floors: dict[str, float]) -> dict[str, str]:
    """What one profile's run says of each aim, by name."""
    of = {row["contestant"]: row for row in rows}
    out = {}

    def over(a: str, b: str) -> float:
        return statistics.median(of[a]["ratios"][b])

    adapters = ("ours-tree-adapter", "ours-devices-adapter")
    for base, peers in {"ours-tree": ("trl-precomputed", "tunix"), **dict.fromkeys(adapters, ("trl-adapter",))}.items():
        for peer in peers:
            if {base, peer} <= of.keys():
                out[f"pairs/s of {base} over {peer}"] = f"{over(peer, base):.2f}"
                memory = of[base]["peak_rss_mb"] / of[peer]["peak_rss_mb"]
                out[f"peak memory of {base} over {peer}"] = f"{memory:.2f}"
    for base in adapters:
        if {"ours-tree", base} <= of.keys():
            out[f"pairs/s of {base} over ours-tree"] = f"{over('ours-tree', base):.2f}"
    for layout in ("tree", "shared", "separate"):
        if row := of.get(f"ours-{layout}"):
            share = floors[layout] / row["median"] / floors["peak_gflops"]
            out[f"operations that ours-{layout} needs, over the matrix peak"] = f"{share:.0%}"
    if answers > 2 and {"ours-tree", "ours-shared"} <= of.keys():
        P, R = profile["prompt"], profile["answer"]
        limit = answers * (answers - 1) / 2 * (P + 2 * R) / (P + answers * R)
        faster = over("ours-shared", "ours-tree")
        out["ours-tree over ours-shared"] = f"{faster:.2f}, {faster / limit:.0%} of the count's limit {limit:.2f}"
    if answers == 2:
        for order, counts in profile.get("epoch", {}).items():
            words = f"{counts['empty']:.1%} of places empty, {counts['shapes']} shapes"
            out[f"an epoch of {EPOCH} pairs, 64 to a step, {order}"] = words
    return out


def floor_words(floors: dict[str, float]) -> str:
    peak = floors["peak_gflops"]
    each = ", ".join(f"{k} {v:.0f} GFLOP = {v / peak:.2f} s" for k, v in floors.items() if k != "peak_gflops")
    return f"{each} at the {peak:.0f} GFLOP/s the best matrix product reached in this run"


def task_words(profile: dict, rows: list[dict], answers: int) -> str:
    means = ", ".join(f"{part} {profile[part]} tokens" for part in ("prompt", "answer"))
    return f"{rows[0]['pairs']} pairs, {means} on average, {answers} answers a prompt"


def report(rows: list[dict], facts: dict) -> str:
    if "base" in facts:
        return growth.report(rows, facts)
    parts = []
    for name, profile in facts["profiles"].items():
        own = [row for row in rows if row["profile"] == name]
        floors = facts["floor_gflop"][name]
        about = {"Task": task_words(profile, own, facts["answers"]), "Floor": floor_words(floors)}
        about |= measures(own, profile, facts["answers"], floors)
        parts.append(f"### {name}\n\n{table(own)}\n\n{machine.notes(about)}")
    versions = {CONTESTANTS[row["contestant"]][0] or "ours": row["versions"] for row in rows}
    others = [x for row in rows for x in row["others_busy_cores"]]
    notes = {
        "Command": f"`{facts['command']}`",
        "Model": ", ".join(f"{k} {v}" for k, v in facts["shape"].items()) + "; float32, AdamW",
        "Hardware": f"{facts['hardware']}; {facts['threads']} threads each; {machine.noise(others)}",
        "Versions": machine.versions_of(versions),
        "When": f"{facts['date']}, commit {facts['commit']}, {facts['rounds']} rounds of {facts['steps']} steps",
    }
    return "\n".join(parts) + "\n" + machine.notes(notes)


# Command line -------------------------------------------------------------------------------------------------------


def check_profiles(names: str) -> None:
    if unknown := [name for name in names.split(",") if name not in dpo_task.PROFILES]:
        raise SystemExit(f"--profiles knows {', '.join(dpo_task.PROFILES)}; got {unknown[0]!r}")


def contestants_of(peers: str) -> list[str]:
    """`trl` means all of TRL's variants, and so for the others; a full name means that one."""
    names: list[str] = []
    for word in peers.split(","):
        new = [word] if "-" in word else [name for name in CONTESTANTS if name.split("-")[0] == word]
        if not set(new) <= set(CONTESTANTS) or not new:
            raise SystemExit(f"--peers knows {', '.join(CONTESTANTS)} and the groups ours, trl, tunix; got {word!r}")
        names += [name for name in new if name not in names]
    return names


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", default=PEERS, help="comma-separated contestants or groups of them")
    parser.add_argument("--profiles", default="even", help=f"comma-separated, of {', '.join(dpo_task.PROFILES)}")
    parser.add_argument("--answers", type=int, default=2, help="to each prompt; the batch has all their pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps of each contestant in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a toy model; of --growth three sizes")
    parser.add_argument("--growth", action="store_true", help="our step alone, over pairs, lengths, words and layers")
    parser.add_argument(
        "--pythons", default="", help="environments that are there: trl=PATH,tunix=PATH to their python"
    )
    parser.add_argument("--keep-freed", action="store_true", help="contestants keep the memory that they free (Linux)")
    parser.add_argument(
        "--one-by-one", action="store_true", help="one contestant after the other, where memory is too short for all"
    )


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    if args.keep_freed:
        os.environ.update(KEEP_FREED)  # which the contestants inherit
    if args.growth:
        return growth.measure(args.rounds, args.threads, args.patience, is_quick=args.quick)
    names = contestants_of(args.peers)
    check_profiles(args.profiles)
    shape = QUICK_SHAPE if args.quick else SHAPE
    python = args.python or machine.find_python()
    pythons = dict(pair.split("=", 1) for pair in filter(None, args.pythons.split(",")))
    for e in dict.fromkeys(CONTESTANTS[n][0] for n in names):
        pythons[e] = pythons.get(e) or machine.environment(e, ENVIRONMENTS.get(e, []), args.env_dir, python)
    write_weights(folder, shape)
    rows, floors, profiles = [], {}, {}
    for name in args.profiles.split(","):
        profile = profiles[name] = dict(dpo_task.PROFILES[name])
        if args.quick:
            profile |= {part: profile[part] // QUICK for part in ("prompt", "answer")}
        is_even = name == "even" or args.answers > 2
        if not is_even:
            profile["epoch"] = {order: epoch_of(profile, order) for order in ("shuffled", "balanced")}
        ids = dpo_task.draw(profile, shape["vocab_size"], is_even=is_even, answers=args.answers)
        dpo_task.write(folder / "ids.npz", ids)
        print(f"profile {name}: {len(ids['prompts'])} pairs", flush=True)
        contestants, peak = take_turns(names, pythons, folder, args)
        floors[name] = {"peak_gflops": peak}
        floors[name] |= {layout: floor_gflop(shape, ids, layout) for layout in ("separate", "shared", "tree")}
        rows += [{"profile": name, "pairs": len(ids["prompts"]), **row} for row in summarise(contestants)]
    facts = {"shape": shape, "profiles": profiles, "answers": args.answers, "floor_gflop": floors}
    return rows, facts | {"rounds": args.rounds, "steps": args.steps, "threads": args.threads}


def keep(path: Path, rows: list[dict]) -> None:
    """What stands beside the report: of --growth a picture."""
    if rows and "growing" in rows[0]:
        growth.draw(path, rows)


if __name__ == "__main__":
    machine.main(__doc__, add_flags, measure, report, keep)
