"""One training step of a BERT classifier beside transformers on torch: the same weights, batches and settings, one run.

    python benchmarks/concept_bias.py --output benchmarks/results/concept_bias.md     (about four minutes)
    python benchmarks/concept_bias.py --quick                       (a toy model, to see that everything works)

A BERT of MiniLM's size (6 layers, 384 wide) with BERT's own classification head, five labels, float32, AdamW with
weight decay, no dropout, clipping at norm 1. Both take ten steps on the same batches from the same weights first, and
their losses must agree to 1e-4; then they take turns, step by step, each compiled and warm, and medians count. One
process and as many threads as there are cores for each. The head reads the first token, so ours computes no other in
the last layer: a seventh of the products of six layers, which a head over all tokens would need. Needs torch and
transformers, as `make parity` installs them.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import jax
import jax.numpy as jnp

from alignment.concepts import encoder
from alignment.models import bert, bert_classifier
from alignment.train import step, train_state
from benchmarks import machine

SHAPE = dict(vocab_size=30_522, num_layers=6, model_dim=384, num_heads=12, ffn_dim=1_536, max_positions=512)
QUICK = dict(vocab_size=200, num_layers=2, model_dim=32, num_heads=2, ffn_dim=64, max_positions=64)
LABELS, EQUAL_STEPS, AGREE = 5, 10, 1e-4
RATE, DECAY = 2e-5, 0.01


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=16, help="texts of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each")
    parser.add_argument("--quick", action="store_true")


def batches(shape: dict, size: int, length: int, num: int) -> list[dict[str, np.ndarray]]:
    """Random texts of random lengths, at least half of `length`."""
    rng, out = np.random.default_rng(0), []
    for _ in range(num):
        mask = np.arange(length) < rng.integers(length // 2, length + 1, size=(size, 1))
        tokens = np.where(mask, rng.integers(5, shape["vocab_size"], size=(size, length)), 0).astype(np.int32)
        labels = rng.integers(LABELS, size=size).astype(np.int32)
        out.append({"tokens": tokens, "mask": mask, "labels": labels, "rows": np.ones(size, np.float32)})
    return out


class Theirs:
    """transformers' BertForSequenceClassification with torch's AdamW."""

    def __init__(self, shape: dict) -> None:
        import torch
        import transformers

        self.torch = torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["model_dim"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            intermediate_size=shape["ffn_dim"],
            max_position_embeddings=shape["max_positions"],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=LABELS,
        )
        self.model = transformers.BertForSequenceClassification(config).train()
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=1e-8)
        self.done, self.total = 0, 10**6

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """One update at the rate of a linear schedule; returns the loss before it."""
        torch = self.torch
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * (self.total - self.done) / self.total
        out = self.model(
            input_ids=torch.from_numpy(batch["tokens"].astype(np.int64)),
            attention_mask=torch.from_numpy(batch["mask"].astype(np.int64)),
            labels=torch.from_numpy(batch["labels"].astype(np.int64)),
        )
        self.optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return float(out.loss.detach())


class Ours:
    """`alignment.concepts.encoder`'s update from the same weights."""

    def __init__(self, shape: dict, theirs: Theirs) -> None:
        tensors = {name: p.detach().numpy().copy() for name, p in theirs.model.state_dict().items()}
        trunk = bert.Bert(**shape)
        self.model = bert_classifier.Classifier(trunk, LABELS, "first")
        params = {
            "trunk": trunk_params(trunk, tensors),
            "pooler": dense(tensors, "bert.pooler.dense"),
            "head": dense(tensors, "classifier"),
        }
        options = encoder.Options(peak_lr=RATE, weight_decay=DECAY, dropout=0.0, pooling="first")
        tx = options.adamw(theirs.total)
        self.state = train_state.TrainState(
            jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.PRNGKey(0), {}
        )
        self.update = jax.jit(step.build(encoder.loss_fn(self.model), tx), donate_argnums=0)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        self.state, metrics = self.update(self.state, batch)
        return float(step.value(metrics["loss"]))


def dense(tensors: dict[str, np.ndarray], name: str) -> dict[str, jax.Array]:
    return {"kernel": jnp.asarray(tensors[f"{name}.weight"].T), "bias": jnp.asarray(tensors[f"{name}.bias"])}


def trunk_params(model: bert.Bert, tensors: dict[str, np.ndarray]) -> dict:
    """transformers' tensors under our names."""

    def norm(name: str) -> dict[str, jax.Array]:
        return {"scale": jnp.asarray(tensors[f"{name}.weight"]), "bias": jnp.asarray(tensors[f"{name}.bias"])}

    out: dict = {ours: jnp.asarray(tensors[f"bert.embeddings.{name}.weight"]) for ours, name in bert.TABLES.items()}
    out["norm"] = norm("bert.embeddings.LayerNorm")
    for i in range(model.num_layers):
        for part, names in bert.PARTS.items():
            name = f"bert.encoder.layer.{i}.{names[0]}"
            out[f"layer_{i}_{part}"] = norm(name) if part.endswith("norm") else dense(tensors, name)
    return out


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    import torch
    import transformers

    shape = QUICK if args.quick else SHAPE
    length, rounds = (32, 2) if args.quick else (args.length, args.rounds)
    work = batches(shape, args.batch, length, EQUAL_STEPS)
    theirs = Theirs(shape)
    ours = Ours(shape, theirs)
    rows = []
    for number, batch in enumerate(work):
        rows.append({"kind": "loss", "step": number, "ours": ours.step(batch), "peer": theirs.step(batch)})
    worst = max(abs(row["ours"] - row["peer"]) for row in rows)
    if worst > AGREE:
        raise SystemExit(f"the losses differ by {worst:.2e}, more than {AGREE:g}: the two do not train the same model")
    for number in range(rounds):
        machine.wait_until_quiet(args.patience)
        row = {"kind": "time", "round": number}
        for name, one in (("ours", ours), ("peer", theirs)):
            busy, used, start = machine.busy_cpu_seconds(), time.process_time(), time.perf_counter()
            one.step(work[number % len(work)])
            row[name] = time.perf_counter() - start
            row[f"{name} others"] = max(0.0, machine.busy_cpu_seconds() - busy - (time.process_time() - used)) / max(
                row[name], 1e-9
            )
        rows.append(row)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    facts = {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    facts |= {"batch": f"{args.batch} texts of {length} tokens", "cores": str(len(os.sched_getaffinity(0)))}
    return rows, facts | {"worst difference of a loss": f"{worst:.2e}"}


def report(rows: list[dict], facts: dict) -> str:
    times = [row for row in rows if row["kind"] == "time"]
    body = []
    for name, what in (("ours", "alignment.concepts.encoder"), ("peer", "transformers on torch")):
        seconds = [row[name] for row in times]
        spread = f"{1_000 * min(seconds):.0f}-{1_000 * max(seconds):.0f}"
        body.append([what, f"{1_000 * statistics.median(seconds):.0f}", spread])
    ratios = [row["peer"] / row["ours"] for row in times]
    head = ["who", "ms a step", "from, to"]
    said = f"Ours is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}; aim: 1)."
    agree = f"Over {EQUAL_STEPS} steps the losses differ by at most {facts['worst difference of a loss']}."
    noise = f"While ours worked, {machine.noise([row['ours others'] for row in times])}."
    title = "# A training step of a BERT classifier"
    return "\n".join([title, "", machine.table(head, body), "", said, "", agree, noise, "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
