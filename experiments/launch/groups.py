"""Groups of a config that several experiments have: each is the keyword arguments of one callable.

An experiment takes a group by name and passes what it sets otherwise, so that its own file shows what is its own.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

TINY = dict(num_layers=1, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64)  # of a decoder
SINKS = ("tensorboard",)  # beside metrics.jsonl: tensorboard, wandb, trackio


def mesh() -> dict[str, int]:
    """Of `sharding.make_mesh`: devices along each axis; -1 takes the devices left over."""
    return dict(
        data=-1,
        fsdp=1,
        tensor=1,
    )


def decoder(**changes: Any) -> dict[str, Any]:
    """Of `DecoderLM`, read where init_from is ""."""
    return (
        dict(
            num_layers=12,
            model_dim=768,
            num_heads=12,
            num_kv_heads=4,
            ffn_dim=2_048,
            qk_norm=False,
        )
        | changes
    )


def compute() -> dict[str, Any]:
    """How a decoder is computed, wherever its weights come from."""
    return dict(
        dtype="bfloat16",
        remat="full",
        attention="auto",
        unroll=1,  # layers per iteration of the scan over layers
    )


def adapter() -> dict[str, Any]:
    """Of `adapters.Options`: low-rank adapters beside frozen weights."""
    return dict(
        rank=0,  # 0 trains all weights
        alpha=config_dict.placeholder(float),  # None: twice the rank
        targets=config_dict.placeholder(str),  # None: all-linear; names with commas between, or a regular expression
        use_rslora=config_dict.placeholder(bool),  # divide alpha by the rank's square root
        rank_pattern="",  # <expression>=<number>, with commas between
        alpha_pattern="",
        init_from="",  # peft:<folder> or run:<workdir> of an adapter to go on with
        merge=False,  # leave merged weights in export/hf, beside export/peft
    )


def adamw(c: ml_collections.ConfigDict, **changes: Any) -> dict[str, Any]:
    """Of `optimizer.adamw`, for a run of `c.steps` steps."""
    return (
        dict(
            total_steps=c.get_ref("steps"),
            schedule="cosine",
            weight_decay=0.0,
            clip_norm=1.0,
            b1=0.9,
            b2=0.95,
            average=config_dict.placeholder(float),  # kept by a moving average of the weights, which is the result
        )
        | changes
    )


def loop(**changes: int) -> dict[str, Any]:
    """Of `loop.Pace`, in steps."""
    return (
        dict(
            log_every=10,
            eval_every=200,
            save_every=200,
            keep=2,  # checkpoints
            save_minutes=config_dict.placeholder(float),  # saves besides, after so many minutes
            best=config_dict.placeholder(str),  # a held-out metric, such as heldout/loss: the run's result is the best
            patience=config_dict.placeholder(int),  # evaluations without a better value, after which the run ends
        )
        | changes
    )


def stream() -> dict[str, Any]:
    """Of `streams.Stream`: training records read from many files as they are needed, instead of into memory."""
    return dict(
        on=False,
        window=256,  # records that are packed together
        lanes=8,  # parts that a batch is read in, the most processes that can share out the reading
        index=config_dict.placeholder(str),  # folder of the records' places; None: in the workdir or the sweep's folder
    )


def columns(*names: str) -> dict[str, str]:
    """The table's own names of these columns; "" takes the usual ones."""
    return dict.fromkeys(names, "")


def unset(kind: type, *names: str) -> dict[str, Any]:
    """Values that are None until somebody sets them."""
    return {name: config_dict.placeholder(kind) for name in names}


def small_decoder(c: ml_collections.ConfigDict) -> None:
    """A decoder from nothing, in float32: what `tiny` and `laptop` of every language model share."""
    c.init_from = ""
    small_compute(c)


def small_compute(c: ml_collections.ConfigDict) -> None:
    """Float32 throughout, and nothing computed twice: for networks that fit easily."""
    c.compute.dtype = "float32"
    c.compute.remat = "none"
    c.export = "float32"


def tiny_decoder(c: ml_collections.ConfigDict) -> None:
    """A decoder, a few texts and four steps, so that a run takes seconds."""
    c.steps = 4
    c.model.update(TINY)
    c.data.limit = 64
    c.loop.log_every = 1
    c.loop.eval_every = 2
    c.loop.save_every = 2


def laptop_decoder(c: ml_collections.ConfigDict) -> None:
    """A decoder that learns the embedded texts in minutes on two cores."""
    c.model.num_layers = 2
    c.model.model_dim = 128
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.ffn_dim = 384
    c.compute.unroll = 2  # all layers in one iteration, which is faster on a CPU


def tiny_rows(c: ml_collections.ConfigDict) -> None:
    """What `tiny` of pretraining and of supervised tuning share."""
    tiny_decoder(c)
    c.data.max_len = 64
    c.batch_size = 8
    c.optimizer.peak_lr = 1e-2
    c.optimizer.warmup_steps = 1
    c.samples.num = 2
    c.samples.max_new_tokens = 8


def laptop_rows(c: ml_collections.ConfigDict) -> None:
    """What `laptop` of pretraining and of supervised tuning share."""
    laptop_decoder(c)
    c.steps = 300
    c.data.limit = 4_000
    c.data.max_len = 256
    c.batch_size = 16
    c.optimizer.peak_lr = 3e-3
    c.optimizer.warmup_steps = 20
    c.loop.eval_every = 50
    c.loop.save_every = 100
