"""Our own step: batch assembly, transfer and compiled update; one optimiser step per command (see channel.py).

Variants: "shared" keeps a pair in one row, prompt once and both answers as branches; "separate" gives each answer a row
with its own copy of the prompt; "adapter" trains an adapter of rank 16 on all linear layers, on the rows of "shared".
In each the reference is scored once, before the first step, and kept.
"""

import os
import sys
from pathlib import Path

from channel import Channel, arguments, best_gflops

args = arguments()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).resolve().parents[2]))

import importlib.metadata  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from alignment.models import decoder, huggingface, lora  # noqa: E402
from alignment.preference import pairs  # noqa: E402
from alignment.train import adapters, optimizer, sharding, step, train_state  # noqa: E402
from data.texts import preferences  # noqa: E402


def peak_gflops(size: int = 3072) -> float:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return best_gflops(lambda: product(left, right).block_until_ready(), size)


def load_pairs(path: Path, layout: str):
    """A function that assembles the batch anew, as a loader does for each step."""
    ids = np.load(path)
    rows = [np.concatenate([ids["prompts"], ids[side]], axis=1) for side in ("chosen", "rejected")]
    (num_pairs, num_time), prompt_len = rows[0].shape, ids["prompts"].shape[1]
    tokenised = preferences.Pairs(
        tokens=np.stack(rows, axis=1).reshape(-1).astype(np.int32),
        starts=np.arange(2 * num_pairs + 1) * num_time,
        prompt_len_NP=np.full((num_pairs, 2), prompt_len),
        trunk_len_N=np.full(num_pairs, prompt_len),
        label_N=None,
        items=(None,) * num_pairs,
        limits={"sequence": num_time, "row": 2 * num_time - prompt_len, "answer": num_time - prompt_len},
        pad_id=0,
    )
    num_time, num_answer = preferences.shape(tokenised, layout=layout)
    shape = dict(layout=layout, num_time=num_time, num_answer=num_answer)
    return lambda: preferences.assemble(tokenised, np.arange(num_pairs), **shape)


def main() -> None:
    channel = Channel(peak_gflops)
    settings = huggingface.config_of(args.weights)
    model = decoder.DecoderLM(**settings, unroll=settings["num_layers"])  # small enough to unroll, as our settings do
    params = huggingface.load(args.weights, model)
    mesh = sharding.make_mesh()
    is_adapter = args.variant == "adapter"
    batch_fn = load_pairs(args.ids, "shared" if is_adapter else args.variant)
    batch = batch_fn()
    stored_NPA = pairs.score(model, params, [batch], len(batch["weights"]), batch["mask"].shape[-1], mesh)

    tx = optimizer.adamw(args.lr, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, beta=args.beta)
    if is_adapter:
        adapter = lora.lay_out(lora.Settings(rank=16), model)
        state = adapters.create(adapter, tx, params, seed=0, mesh=mesh)
        loss_fn = lora.loss_fn(loss_fn, adapter)
    else:
        state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh, params=params)
    del params
    update = step.compile_update(step.build(loss_fn, tx, rate_fn=optimizer.learning_rate), state)
    channel.send("ready", versions={name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")})
    while channel.next_step():
        batch = batch_fn() | {"reference": stored_NPA}
        state, metrics = update(state, sharding.to_devices(batch, mesh))
        jax.block_until_ready(state)
        channel.end_step(step.value(metrics["loss"]))


if __name__ == "__main__":
    main()
