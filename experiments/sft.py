"""Supervised tuning: a language model on conversations, the loss on the assistant's answers only.

Run:     python -m experiments.run --config experiments/sft.py --config.data.path=conversations.jsonl
Laptop:  python -m experiments.run --config experiments/sft.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop: held-out loss 0.073 nats an answer byte, in 84 s on two cores of an AMD EPYC (commit bfe4bea)
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from alignment import files
from alignment.decoding import sample
from alignment.models import decoder
from alignment.train import language_model, loop, next_token, optimizer, sharding
from data.texts import text
from data.tokens import tokenizer

SETTINGS = ("", "laptop", "tiny")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 1_000
    c.init_from = "hf:Qwen/Qwen2.5-1.5B"  # hf:<folder or hub id>, run:<workdir>, "" for nothing
    c.tokenizer = ""  # "" takes that of init_from, and bytes where there is none
    c.model = dict(  # read where init_from is ""
        num_layers=12,
        model_dim=768,
        num_heads=12,
        num_kv_heads=4,
        ffn_dim=2_048,
        qk_norm=False,
    )
    c.compute = dict(
        dtype="bfloat16",
        remat="full",
        attention="auto",
        unroll=1,
    )
    c.data = dict(
        path="conversations.jsonl",
        heldout_path="",
        split="train",
        heldout_split="",
        heldout_fraction=0.05,
        max_len=2_048,  # tokens of a row
        limit=config_dict.placeholder(int),  # conversations; None takes all
        packed=True,
        turns="all",  # "last" trains on the last answer only
        truncation="keep_start",
        columns=dict(  # "" takes the usual names
            messages="",
            prompt="",
            completion="",
            conversations="",
            input="",
            system="",
            history="",
            tools="",
        ),
    )
    c.batch_size = 64  # rows over all hosts
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = dict(
        peak_lr=1e-5,
        warmup_steps=50,
        total_steps=c.get_ref("steps"),
        schedule="cosine",
        weight_decay=0.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    c.loop = dict(  # in steps
        log_every=10,
        eval_every=200,
        save_every=200,
        keep=2,  # checkpoints
    )
    c.sinks = ("tensorboard",)  # beside metrics.jsonl: tensorboard, wandb, trackio
    c.mesh = dict(  # -1 takes the devices left over
        data=-1,
        fsdp=1,
        tensor=1,
    )
    c.samples = dict(  # held-out prompts answered
        num=4,
        max_new_tokens=128,
        temperature=0.0,
    )
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        _small(c)
        {"tiny": _tiny, "laptop": _laptop}[arg](c)
    return c


def _small(c: ml_collections.ConfigDict) -> None:
    """A model from nothing, in float32, on embedded conversations."""
    c.init_from = ""
    c.export = "float32"
    c.compute.dtype = "float32"
    c.compute.remat = "none"
    c.data.path = "synthetic:conversations"


def _tiny(c: ml_collections.ConfigDict) -> None:
    c.steps = 4
    c.model.num_layers = 1
    c.model.model_dim = 32
    c.model.num_heads = 2
    c.model.num_kv_heads = 1
    c.model.ffn_dim = 64
    c.data.limit = 64
    c.data.max_len = 64
    c.batch_size = 8
    c.optimizer.peak_lr = 1e-2
    c.optimizer.warmup_steps = 1
    c.loop.log_every = 1
    c.loop.eval_every = 2
    c.loop.save_every = 2
    c.samples.num = 2
    c.samples.max_new_tokens = 8


def _laptop(c: ml_collections.ConfigDict) -> None:
    c.steps = 300
    c.model.num_layers = 2
    c.model.model_dim = 128
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.ffn_dim = 384
    c.compute.unroll = 2  # layers per iteration of the scan: all of them, which is faster on a CPU
    c.data.limit = 4_000
    c.data.max_len = 256
    c.batch_size = 16
    c.optimizer.peak_lr = 3e-3
    c.optimizer.warmup_steps = 20
    c.loop.eval_every = 50
    c.loop.save_every = 100


def sweep() -> Iterator[dict[str, float]]:
    for peak_lr in (3e-6, 1e-5, 3e-5):
        yield {"optimizer.peak_lr": peak_lr}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    sample.check_options(c.samples.max_new_tokens, c.samples.temperature)
    language_model.check_dtypes(c.compute.dtype, c.export)
    optimizer.adamw(**c.optimizer)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh, c.accumulate)
    tok = tokenizer.load(c.tokenizer or language_model.tokenizer_of(c.init_from))
    train, heldout, counts = text.load(
        kind="answers", tokenizer=tok, seed=c.seed, bad_records_path=str(workdir / "bad_records.jsonl"), **c.data
    )
    files.report_counts(workdir, counts)
    model = language_model.build(
        c.init_from,
        tok,
        model=c.model,
        compute=c.compute,
        rows_are_plain=not c.data.packed,
        export=c.export,
        workdir=workdir,
    )

    batches_fn = functools.partial(text.batches, batch_size=c.batch_size, seed=c.seed, **sharding.row_share(mesh))
    state, summary = next_token.fit(
        model,
        language_model.params(c.init_from if loop.latest_step(workdir) is None else "", model, mesh),
        batches_fn(train),
        batches_fn(heldout, endless=False),
        mesh,
        workdir,
        tx=optimizer.adamw(**c.optimizer),
        seed=c.seed,
        steps=c.steps,
        batch_size=c.batch_size,
        accumulate=c.accumulate,
        sinks=c.sinks,
        **c.loop,
    )
    files.write_rows(workdir / "tables/samples.jsonl", answers(c, model, tok, heldout, state.params))
    language_model.export(workdir / "export/hf", state.params, model, tok, dtype=c.export, init_from=c.init_from)
    return summary


def answers(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    heldout: text.Texts,
    params: Any,
) -> list[dict[str, str]]:
    """What the model answers to the first held-out prompts, beside the answers of the data."""
    options = dict(max_new_tokens=c.samples.max_new_tokens, temperature=c.samples.temperature)
    turns = [heldout.first_answer(i) for i in range(min(c.samples.num, heldout.num_texts))]
    prompts = [prompt for prompt, _ in turns]
    written = sample.answers(
        model, params, prompts, **options, rng=jax.random.PRNGKey(c.seed), stop_ids=tok.stop_ids, pad_id=tok.pad_id
    )
    return [
        {"prompt": tok.decode(prompt), "model": tok.decode(new).strip(), "text": tok.decode(ids).strip()}
        for (prompt, ids), new in zip(turns, written)
    ]


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    if "heldout/loss" not in summary:
        return f"After {summary['steps']:.0f} updates; nothing was held out to measure the model on."
    return (
        f"After {summary['steps']:.0f} updates the model's perplexity on held-out answers is "
        f"{summary['heldout/perplexity']:.4g} per answer token (loss {summary['heldout/loss']:.4g} nats)."
    )
