"""careqa.py's own path beside lm-evaluation-harness's `flax` on real exams, and what Relaxed Perplexity costs.

    python benchmarks/evaluate.py --model hf:models/smollm2 --data careqa_en_a.jsonl,medqa_4opt_val.jsonl \
        --output benchmarks/results/evaluate.md

Both paths score the letters of the same questions with the same weights, in turns of one run; their log-likelihoods
must agree. Relaxed Perplexity of --targets references, 16 continuations of 64 tokens, stands beside the time inside the
compiled passes of the network that it is made of: those that write the continuations and those that score the targets
behind them. The defaults take three to four minutes on two cores; --targets 32 --questions 50 --rounds 3 takes a
quarter of an hour.
"""

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from alignment.decoding import programs, scoring
from benchmarks import machine
from data.texts import exams
from experiments import careqa
from experiments.decoding import harness_models
from experiments.evaluation import asking, subjects

TOLERANCE = 1e-3  # nats
SAMPLES, N_MAX, STRIDE = 16, 64, 8
# the compiled passes: of prompts and of tokens that are written, and of rows that are scored
PASSES = ((programs, "prefill", "writing"), (programs, "decode", "writing"), (scoring, "_scored", "scoring"))


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="hf:models/smollm2")
    parser.add_argument("--data", required=True, help="files of closed questions, with commas between")
    parser.add_argument("--questions", type=int, default=16, help="of each file")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="of the letters; Relaxed Perplexity is measured once")


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    from lm_eval.api.instance import Instance

    c = careqa.get_config("smol")
    subject = subjects.Local("model", args.model, ml_collections.ConfigDict(c.to_dict()), folder, is_chat=False)
    lm = harness_models.flax_lm(subject.model, subject.c)
    sets = [exams.load(path, limit=args.questions, counts={}) for path in args.data.split(",")]
    rows = []
    for number in range(args.rounds + 1):  # the first compiles
        for exam in sets:
            by_letter = exams.has_letters(exam.style)
            pairs = [
                (exams.prompt(exam, item, by_letter=by_letter), f" {answer}")
                for item in exam.items
                for answer in ("ABCDEFGHIJ"[: len(item.options)] if by_letter else item.options)
            ]
            asked = [Instance(request_type="loglikelihood", doc={}, arguments=p, idx=0) for p in pairs]
            machine.wait_until_quiet(args.patience)
            theirs, seconds = timed(lambda asked=asked: [total for total, _ in lm.loglikelihood(asked)])
            own, own_seconds = timed(lambda e=exam, b=by_letter: asking.options_nats(subject, e, e.items, by_letter=b))
            gap = float(np.abs(np.array([x for row in own for x in row]) - theirs).max())
            if gap > TOLERANCE:
                raise SystemExit(f"{exam.name}: log-likelihoods differ by {gap:.1e} nats")
            rows.append({"what": exam.name, "round": number, "own": own_seconds, "harness": seconds, "gap": gap})
    items = [item for exam in sets for item in exams.opened(exam).items]
    asked, answers = [exams.open_prompt(item) for item in items], [item.answers[0] for item in items]
    items = [items[i] for i in subject.fitting(asked, answers, N_MAX)][: args.targets]
    relaxed(subject, items[:1], 0)  # it compiles
    rows.append(relaxed(subject, items, 1))
    return [row for row in rows if row["round"]], {
        "model": args.model,
        "questions": f"{args.questions} of each set",
        "Relaxed Perplexity": f"{SAMPLES} continuations of {N_MAX} tokens, offsets {STRIDE} apart",
    }


def relaxed(subject, items, number: int) -> dict:
    """Seconds of Relaxed Perplexity, and those inside the compiled passes of its sampling and its scoring."""
    spent = {"writing": 0.0, "scoring": 0.0}

    def watched(fn, what):
        def call(*args, **kwargs):
            out, seconds = timed(lambda: jax.block_until_ready(fn(*args, **kwargs)))
            spent[what] += seconds
            return out

        return call

    with contextlib.ExitStack() as stack:
        for module, name, what in PASSES:
            stack.enter_context(mock.patch.object(module, name, watched(getattr(module, name), what)))
        prompts, answers = [exams.open_prompt(i) for i in items], [i.answers[:1] for i in items]
        options = dict(num_samples=SAMPLES, n_max=N_MAX, stride=STRIDE, with_variants=False, seed=number)
        _, seconds = timed(lambda: subject.curves(prompts, answers, **options))
    name = f"Relaxed Perplexity of {len(items)} targets"
    return {"what": name, "round": number, "own": seconds, "forward": sum(spent.values()), **spent}


def timed(fn):
    begun = time.perf_counter()
    out = fn()
    return out, time.perf_counter() - begun


def report(rows: list[dict], facts: dict) -> str:
    body = []
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        other = "harness" if "harness" in mine[0] else "forward"
        ratios = [row["own"] / row[other] for row in mine]
        seconds = [f"{statistics.median(row[name] for row in mine):.2f}" for name in ("own", other)]
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        body.append([what, seconds[0], f"{seconds[1]} ({other})", span])
    (last,) = [row for row in rows if "writing" in row]
    facts = facts | {"of that": f"writing {last['writing']:.1f} s, scoring {last['scoring']:.1f} s"}
    table = machine.table(["what", "careqa.py, s", "beside, s", "ratio"], body)
    return "\n".join(["# Exams through careqa.py", "", table, "", machine.notes(facts)])


if __name__ == "__main__":
    machine.main(__doc__, flags, measure, report)
