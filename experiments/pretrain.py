"""Pretraining: a language model on documents, packed into rows without attention across them.

Run:     python -m experiments.run --config experiments/pretrain.py --config.data.path='corpus/*.jsonl.zst'
Laptop:  python -m experiments.run --config experiments/pretrain.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop: held-out loss 0.141 nats a byte, in 82 s on two cores of an AMD EPYC (commit bfe4bea)
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
    c.steps = 20_000
    c.init_from = ""  # "" for nothing, hf:<folder or hub id>, run:<workdir>
    c.tokenizer = "hf:Qwen/Qwen2.5-0.5B"  # "" takes that of init_from, and bytes where there is none
    c.model = groups.decoder(
        num_layers=24,
        model_dim=1_024,
        num_heads=16,
        ffn_dim=2_816,
        qk_norm=True,
    )
    c.compute = groups.compute()
    c.data = dict(
        path="corpus/*.jsonl.zst",
        shares=(),  # of the rows, one for each of several paths with commas between, such as (0.7, 0.3)
        heldout_path="",
        split="train",
        heldout_split="",
        heldout_fraction=0.01,
        max_len=2_048,  # tokens of a row
        limit=config_dict.placeholder(int),  # texts; None takes all
        share_prefixes=False,  # what texts of a row begin with in common stands there once
        columns=groups.columns("text"),
    )
    c.stream = groups.stream()
    c.batch_size = 256  # rows over all hosts
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = groups.adamw(c, peak_lr=1e-3, warmup_steps=500, weight_decay=0.1)
    c.loop = groups.loop(eval_every=1_000, save_every=1_000)
    c.sinks = groups.SINKS
    c.mesh = groups.mesh() | {"sequence": 1}  # devices that share the places of a row of prefix trees
    c.samples = dict(  # held-out texts continued
        num=4,
        prompt_tokens=32,
        max_new_tokens=64,
        temperature=0.0,
    )
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        _small(c)
        {"tiny": groups.tiny_rows, "laptop": groups.laptop_rows}[arg](c)
    return c


def _small(c: ml_collections.ConfigDict) -> None:
    """A byte model in float32, on embedded documents."""
    c.tokenizer = ""
    groups.small_decoder(c)
    c.model.qk_norm = False
    c.data.path = "synthetic:documents"
    c.data.heldout_fraction = 0.05
    c.samples.prompt_tokens = 24


def sweep() -> Iterator[dict[str, float]]:
    for peak_lr in (3e-4, 1e-3, 3e-3):
        yield {"optimizer.peak_lr": peak_lr}


check = functools.partial(lm.check_rows, kind="documents")


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    lm.check_planned(c)
    return [planning.of_config(c, wanted, rows_are_plain=False)]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    return lm.run(c, pathlib.Path(workdir), kind="documents", rows_are_plain=False, samples_fn=continuations)


def continuations(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    heldout: text.Texts,
    params: Any,
) -> list[dict[str, str]]:
    """How the model continues the openings of the first held-out texts."""
    texts = [tok.encode(t, add_bos=tok.adds_bos) for t in heldout.samples[: c.samples.num]]
    prompts = [ids[: max(c.samples.prompt_tokens, 1)] for ids in texts]
    written = lm.complete(c, model, params, tok, prompts)
    return [
        {"opening": tok.decode(prompt), "model": tok.decode(new), "text": tok.decode(ids[len(prompt) :])}
        for prompt, new, ids in zip(prompts, written, texts)
    ]


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    return lm.headline(summary, "held-out text", "token")
