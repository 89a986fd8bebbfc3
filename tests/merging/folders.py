"""Checkpoint folders of a made-up network, small enough to merge in milliseconds."""

import json

import numpy as np

from alignment.models import tensors

SHAPES = {
    "model.embed_tokens.weight": (12, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.layers.1.self_attn.q_proj.weight": (4, 4),
    "model.layers.1.mlp.up_proj.weight": (6, 4),
    "model.layers.2.self_attn.q_proj.weight": (4, 4),
    "model.layers.2.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (12, 4),
}
CONFIG = {"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 3, "torch_dtype": "float32"}


def write(folder, seed, *, shapes=SHAPES, config=CONFIG, dtype=np.float32, change_fn=lambda arrays: None):
    """A folder of random tensors; `change_fn` may change them by name first."""
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    change_fn(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {name: array.shape for name, array in arrays.items()}
    tensors.write(folder / tensors.MAIN, shapes, np.dtype(dtype), arrays.values())
    return arrays


def read(folder):
    return {name: np.array(tensors.view(name, place)) for name, place in tensors.index(folder).items()}
