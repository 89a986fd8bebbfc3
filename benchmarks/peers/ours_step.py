"""Our own step: batch assembly, transfer and compiled update; one optimiser step per command (see channel.py).

Variants: "tree" packs all pairs into one row in which every token stands once; "shared" keeps a pair in one row, prompt
once and both answers as branches; "separate" gives each answer a row with its own copy of the prompt; "adapter" trains
an adapter of rank 16 on all linear layers, on the rows of "shared"; "tree-adapter" does so on those of "tree", and
"devices-adapter" on two such rows, one on each of two simulated devices, which share the cores.
In each the reference is scored once, before the first step, and kept.
"""

import os
import sys
from pathlib import Path

from channel import Channel, arguments, best_gflops

args = arguments()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if args.variant.startswith("devices"):
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
sys.path.append(str(Path(__file__).resolve().parents[2]))

import importlib.metadata  # noqa: E402

import dpo_task  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import ours_pairs  # noqa: E402

from alignment.models import decoder, huggingface, lora, peft_adapters  # noqa: E402
from alignment.preference import pairs  # noqa: E402
from alignment.train import adapters, optimizer, sharding, step, train_state  # noqa: E402
from data.texts import preferences  # noqa: E402


def peak_gflops(size: int = 3072) -> float:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return best_gflops(lambda: product(left, right).block_until_ready(), size)


def load_pairs(path: Path, layout: str):
    """A function that assembles the batch anew, as a loader does for each step."""
    tokenised = ours_pairs.tokenised(dpo_task.read(path))
    num_pairs = len(tokenised)
    if layout == "tree":
        # One pass over the pairs again and again: the loader's own lengths, here of the only batch.
        options = dict(layout="tree", num_rows=jax.device_count(), endless=False, num_threads=0)
        loader = preferences.batches(tokenised, batch_size=num_pairs, **options)
        return lambda: next(iter(loader))
    num_time, num_answer = preferences.shape(tokenised, layout=layout)
    shape = dict(layout=layout, num_time=num_time, num_answer=num_answer)
    return lambda: preferences.assemble(tokenised, np.arange(num_pairs), **shape)


LAYOUTS = {  # of a variant: the rows, and whether an adapter is trained
    "tree": ("tree", False),
    "shared": ("shared", False),
    "separate": ("separate", False),
    "adapter": ("shared", True),
    "tree-adapter": ("tree", True),
    "devices-adapter": ("tree", True),
}


def main() -> None:
    channel = Channel(peak_gflops)
    settings = huggingface.config_of(args.weights)
    model = decoder.DecoderLM(**settings, unroll=settings["num_layers"])  # small enough to unroll, as our settings do
    params = huggingface.load(args.weights, model)
    mesh = sharding.make_mesh()
    layout, is_adapter = LAYOUTS[args.variant]
    batch_fn = load_pairs(args.ids, layout)
    batch = batch_fn()
    reference = jax.jit(lambda params, batch: pairs.token_logps(model, params, batch, mesh))
    stored = np.asarray(reference(params, sharding.to_devices(batch, mesh)))

    tx = optimizer.adamw(args.lr, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, beta=args.beta)
    if is_adapter:
        adapter, start = peft_adapters.load(args.weights / dpo_task.ADAPTER, model)
        start = jax.tree.map(jnp.asarray, start)
        state = adapters.create(adapter, tx, params, seed=0, mesh=mesh, params=start)
        loss_fn = lora.loss_fn(loss_fn, adapter)
    else:
        state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=0, mesh=mesh, params=params)
    del params
    update = step.compile_update(step.build(loss_fn, tx, rate_fn=optimizer.learning_rate), state)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    is_real = batch["ends" if layout == "tree" else "groups"] > 0
    channel.send("ready", versions=versions, places=is_real.size, tokens=int(is_real.sum()))
    while channel.next_step():
        batch = batch_fn() | {"reference": stored}
        state, metrics = update(state, sharding.to_devices(batch, mesh))
        jax.block_until_ready(state)
        channel.end_step(step.value(metrics["loss"]))


if __name__ == "__main__":
    main()
