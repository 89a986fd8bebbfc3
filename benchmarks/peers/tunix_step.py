"""Tunix's DPOTrainer with its Llama 3 model, its own training loop, one optimiser step per command (see channel.py).

Tunix pads prompts on the left and answers on the right to fixed widths, here those of the longest in the batch. It
scores the reference model in every step and has no way to keep the values.
"""

import os

from channel import Channel, arguments, best_gflops

args = arguments()
os.environ.update(HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu")

import importlib.metadata  # noqa: E402
import json  # noqa: E402

import dpo_task  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.models.llama3 import model as llama3  # noqa: E402
from tunix.models.llama3 import params as llama3_params  # noqa: E402
from tunix.sft.dpo import dpo_trainer  # noqa: E402


def peak_gflops(size: int = 3072) -> float:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return best_gflops(lambda: product(left, right).block_until_ready(), size)


def load(folder, dtype=jnp.float32):
    c = json.loads((folder / "config.json").read_text())
    # Tunix 0.1.7 rotates with a base of 1,000,000 whatever its config says, so the benchmark's weights use that base.
    config = llama3.ModelConfig(
        num_layers=c["num_hidden_layers"],
        vocab_size=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"],
        rope_theta=int(c["rope_theta"]),
        norm_eps=c["rms_norm_eps"],
        weight_tying=c["tie_word_embeddings"],
    )
    return llama3_params.create_model_from_safe_tensors(str(folder), config, dtype=dtype)


def batches(channel: Channel, trainer, batch):
    """The training set: yields the same batch whenever the driver asks, and closes the clock when it is trained on."""
    while channel.next_step():
        yield batch
        jax.block_until_ready(nnx.state(trainer.model))
        # Tunix writes a step's loss down one step late; the newest sits in one of two buffers.
        channel.end_step(np.asarray(trainer._prev_buffered_train_metrics.losses[-1]))


def main() -> None:
    channel = Channel(peak_gflops)
    ids = dpo_task.read(args.ids)
    longest = {name: max(map(len, ids[name])) for _, name in PARTS}
    longest["chosen"] = longest["rejected"] = max(longest["chosen"], longest["rejected"])  # Tunix stacks the two
    rows = {key: dpo_task.padded(ids[name], longest[name], on_left=key == "prompt") for key, name in PARTS}
    batch = dpo_trainer.TrainingInput(
        **{f"{key}_ids": of_key for key, (of_key, _) in rows.items()},
        **{f"{key}_mask": mask for key, (_, mask) in rows.items()},
    )
    settings = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1_000_000, beta=args.beta, pbar_description=None)
    optimizer = optax.adamw(args.lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
    trainer = dpo_trainer.DPOTrainer(load(args.weights), load(args.weights), optimizer, settings)
    names = ("google-tunix", "jax", "flax")
    channel.send("ready", versions={name: importlib.metadata.version(name) for name in names})
    trainer.train(batches(channel, trainer, batch))


PARTS = (("prompt", "prompts"), ("chosen", "chosen"), ("rejected", "rejected"))

if __name__ == "__main__":
    main()
