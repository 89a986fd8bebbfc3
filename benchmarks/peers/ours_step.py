"""Our own step, through the library as an experiment uses it; one optimiser step per command (see channel.py).

Variants: "shared" keeps a pair in one row, prompt once and both answers as branches; "separate" gives each answer a row
with its own copy of the prompt.  Either way the reference is scored once, before the first step, and kept.
"""

import os
import sys
from pathlib import Path

from channel import Channel, arguments, best_gflops

args = arguments()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).resolve().parents[2]))

import importlib.metadata  # noqa: E402
import json  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from alignment.models import decoder  # noqa: E402
from alignment.preference import pairs  # noqa: E402
from alignment.train import optimizer, sharding, step, train_state  # noqa: E402
from data import preferences  # noqa: E402


def peak_gflops(size: int = 3072) -> float:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size))
    product = jax.jit(jnp.matmul)
    return best_gflops(lambda: product(left, right).block_until_ready(), size)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    table = json.loads(raw[8:start].tobytes())
    table.pop("__metadata__", None)
    return {
        name: raw[start:][slice(*at["data_offsets"])].view("<f4").reshape(at["shape"]) for name, at in table.items()
    }


def load(folder: Path):
    """The model of a Hugging Face Llama folder, and its parameters."""
    c = json.loads((folder / "config.json").read_text())
    D, H, G, K = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    model = decoder.DecoderLM(
        vocab_size=c["vocab_size"],
        num_layers=c["num_hidden_layers"],
        model_dim=D,
        num_heads=H,
        num_kv_heads=G,
        head_dim=K,
        ffn_dim=c["intermediate_size"],
        rope_theta=c["rope_theta"],
        norm_eps=c["rms_norm_eps"],
        tie_embeddings=True,
    )
    tensors = read_safetensors(folder / "model.safetensors")

    def stacked(name, *shape):
        each = [tensors[f"model.layers.{i}.{name}.weight"].T for i in range(model.num_layers)]
        return jnp.stack([x.reshape(shape) if shape else x for x in each])

    layers = {
        "query": stacked("self_attn.q_proj", D, H, K),
        "key": stacked("self_attn.k_proj", D, G, K),
        "value": stacked("self_attn.v_proj", D, G, K),
        "out": stacked("self_attn.o_proj", H, K, D),
        "gate": stacked("mlp.gate_proj"),
        "up": stacked("mlp.up_proj"),
        "down": stacked("mlp.down_proj"),
        "attention_norm": stacked("input_layernorm"),
        "mlp_norm": stacked("post_attention_layernorm"),
    }
    ends = {"embedding": tensors["model.embed_tokens.weight"], "final_norm": tensors["model.norm.weight"]}
    return model, {"layers": layers} | {name: jnp.asarray(x) for name, x in ends.items()}


def load_batch(path: Path, layout: str) -> dict[str, np.ndarray]:
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
    return preferences.assemble(
        tokenised, np.arange(num_pairs), layout=layout, num_time=num_time, num_answer=num_answer
    )


def main() -> None:
    channel = Channel(peak_gflops)
    model, params = load(args.weights)
    mesh = sharding.make_mesh()
    batch = load_batch(args.ids, args.variant)
    stored_NPA = pairs.score(model, params, [batch], len(batch["weights"]), batch["mask"].shape[-1], mesh)
    batch = sharding.to_devices(batch | {"reference": stored_NPA[batch["index"]]}, mesh)

    tx = optimizer.adamw(args.lr, schedule="constant", weight_decay=0.0, clip_norm=0.0)
    state = train_state.create(model, tx, batch["tokens"], seed=0, mesh=mesh, params=params)
    del params
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, beta=args.beta)
    update = step.compile_update(step.build(loss_fn, tx, rate_fn=optimizer.learning_rate), state)
    channel.send("ready", versions={name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")})
    while channel.next_step():
        state, metrics = update(state, batch)
        jax.block_until_ready(state)
        channel.end_step(step.value(metrics["loss"]))


if __name__ == "__main__":
    main()
