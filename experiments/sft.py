"""Supervised tuning: a language model on conversations, the loss on the assistant's answers only.

Run:     python -m experiments.run --config experiments/sft.py --config.data.path=conversations.jsonl
Laptop:  python -m experiments.run --config experiments/sft.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit
"""

import functools
import pathlib

import jax
import ml_collections

from alignment import files
from alignment.decoding import sample
from alignment.train import language_model, loop, next_token, optimizer, sharding
from data.texts import text
from data.tokens import tokenizer

SETTINGS = ("", "laptop", "tiny")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 1_000
    c.init_from = "hf:Qwen/Qwen2.5-1.5B"  # hf:<folder or hub id>, run:<workdir>, "" for nothing
    c.tokenizer = ""  # "": that of init_from, and bytes where there is none
    c.model = dict(num_layers=12, model_dim=768, num_heads=12, num_kv_heads=4, ffn_dim=2_048, qk_norm=False)  # for ""
    c.compute = dict(dtype="bfloat16", remat="full", attention="auto", unroll=1)
    c.data = dict(path="conversations.jsonl", heldout_path="", split="train", heldout_split="", heldout_fraction=0.05)
    c.data.update(max_len=2_048, limit=0, packed=True)  # tokens of a row; conversations, 0 takes all
    c.data.update(turns="all", truncation="keep_start")  # turns: "last" trains on the last answer only
    c.data.columns = dict(messages="", prompt="", completion="")  # "": usual names
    c.batch_size = 64  # rows over all hosts
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = dict(peak_lr=1e-5, warmup_steps=50, total_steps=c.get_ref("steps"), schedule="cosine")
    c.optimizer.update(weight_decay=0.0, clip_norm=1.0, b1=0.9, b2=0.95)
    c.loop = dict(log_every=10, eval_every=200, save_every=200, keep=2)  # in steps; checkpoints kept
    c.sinks = ("tensorboard",)  # beside metrics.jsonl: tensorboard, wandb, trackio
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1 takes the devices left over
    c.samples = dict(num=4, max_new_tokens=128, temperature=0.0)  # held-out prompts answered
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        c.export = "float32"
        c.init_from = ""
        c.compute = dict(dtype="float32", remat="none", attention="auto", unroll=1)
        c.data.update(path="synthetic:conversations", heldout_fraction=0.05)
    if arg == "tiny":
        c.steps = 4
        c.model = dict(num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64, qk_norm=False)
        c.data.update(limit=64, max_len=64)
        c.batch_size = 8
        c.optimizer.update(peak_lr=1e-2, warmup_steps=1)
        c.loop = dict(log_every=1, eval_every=2, save_every=2, keep=2)
        c.samples.update(num=2, max_new_tokens=8)
    elif arg == "laptop":
        c.steps = 300
        c.model = dict(num_layers=2, model_dim=128, num_heads=4, num_kv_heads=2, ffn_dim=384, qk_norm=False)
        c.compute.unroll = 2  # layers a turn of the scan: all of a small model's, for speed on a CPU
        c.data.update(limit=4_000, max_len=256)
        c.batch_size = 16
        c.optimizer.update(peak_lr=3e-3, warmup_steps=20)
        c.loop = dict(log_every=10, eval_every=50, save_every=100, keep=2)
    return c


def sweep():
    for peak_lr in (3e-6, 1e-5, 3e-5):
        yield {"optimizer.peak_lr": peak_lr}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    sample.check_options(c.samples.max_new_tokens, c.samples.temperature)
    tok = tokenizer.load(c.tokenizer or language_model.tokenizer_of(c.init_from))
    train, heldout, counts = text.load(
        kind="answers", tokenizer=tok, seed=c.seed, bad_records_path=str(workdir / "bad_records.jsonl"), **c.data
    )
    files.report_counts(workdir, counts)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh, c.accumulate)
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


def answers(c, model, tok, heldout, params):
    """What the model answers to the first held-out prompts, beside what it was shown."""
    options = dict(max_new_tokens=c.samples.max_new_tokens, temperature=c.samples.temperature)
    shown = [heldout.first_answer(i) for i in range(min(c.samples.num, heldout.num_texts))]
    prompts = [prompt for prompt, _ in shown]
    written = sample.answers(
        model, params, prompts, **options, rng=jax.random.PRNGKey(c.seed), stop_ids=tok.stop_ids, pad_id=tok.pad_id
    )
    return [
        {"prompt": tok.decode(prompt), "model": tok.decode(new).strip(), "text": tok.decode(ids).strip()}
        for (prompt, ids), new in zip(shown, written)
    ]


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    return (
        f"After {summary['steps']:.0f} updates the model's perplexity on held-out answers is "
        f"{summary['heldout/perplexity']:.4g} per answer token (loss {summary['heldout/loss']:.4g} nats)."
    )
