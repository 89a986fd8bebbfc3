"""Supervised tuning: a language model on conversations, the loss on the assistant's answers only.

Run:     python -m experiments.run --config experiments/sft.py --config.data.path=conversations.jsonl
Laptop:  python -m experiments.run --config experiments/sft.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop: held-out loss 0.073 nats an answer byte, in 84 s on two cores of an AMD EPYC (commit bfe4bea)
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.models import decoder
from data.texts import text
from data.tokens import tokenizer
from experiments.launch import groups, lm, planning

SETTINGS = ("", "laptop", "tiny")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 1_000
    c.init_from = "hf:Qwen/Qwen2.5-1.5B"  # hf:<folder or hub id>, run:<workdir>, "" for nothing
    c.tokenizer = ""  # "" takes that of init_from, and bytes where there is none
    c.model = groups.decoder()
    c.adapter = groups.adapter()
    c.compute = groups.compute()
    c.data = dict(
        path="conversations.jsonl",
        shares=(),  # of the rows, one for each of several paths with commas between, such as (0.7, 0.3)
        heldout_path="",
        split="train",
        heldout_split="",
        heldout_fraction=0.05,
        max_len=2_048,  # tokens of a row
        limit=config_dict.placeholder(int),  # conversations; None takes all
        packed=True,
        share_prefixes=False,  # what conversations of a row begin with in common stands there once
        turns="all",  # "last" trains on the last answer only
        truncation="keep_start",
        columns=groups.columns(
            *("messages", "prompt", "completion", "conversations", "input", "system", "history", "tools")
        ),
    )
    c.stream = groups.stream()
    c.batch_size = 64  # rows over all hosts
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = groups.adamw(c, peak_lr=1e-5, warmup_steps=50)
    c.loop = groups.loop()
    c.sinks = groups.SINKS
    c.mesh = groups.mesh() | {"sequence": 1}  # devices that share the places of a row of prefix trees
    c.samples = dict(  # held-out prompts answered
        num=4,
        max_new_tokens=128,
        temperature=0.0,
    )
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        _small(c)
        {"tiny": groups.tiny_rows, "laptop": groups.laptop_rows}[arg](c)
    return c


def _small(c: ml_collections.ConfigDict) -> None:
    """A model from nothing, in float32, on embedded conversations."""
    groups.small_decoder(c)
    c.data.path = "synthetic:conversations"


def sweep() -> Iterator[dict[str, float]]:
    for peak_lr in (3e-6, 1e-5, 3e-5):
        yield {"optimizer.peak_lr": peak_lr}


check = functools.partial(lm.check_rows, kind="answers")


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    lm.check_planned(c)
    return [planning.of_config(c, wanted, rows_are_plain=not c.data.packed)]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    return lm.run(c, pathlib.Path(workdir), kind="answers", rows_are_plain=not c.data.packed, samples_fn=answers)


def answers(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    heldout: text.Texts,
    params: Any,
) -> list[dict[str, str]]:
    """What the model answers to the first held-out prompts, beside the answers of the data."""
    turns = [heldout.first_answer(i) for i in range(min(c.samples.num, heldout.num_texts))]
    prompts = [prompt for prompt, _ in turns]
    written = lm.complete(c, model, params, tok, prompts)
    return [
        {"prompt": tok.decode(prompt), "model": tok.decode(new).strip(), "text": tok.decode(ids).strip()}
        for (prompt, ids), new in zip(turns, written)
    ]


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    return lm.headline(summary, "held-out answers", "answer token")
