"""A GGUF model as a Hugging Face checkpoint: its config.json, and its tensors under transformers' names.

Dimensions: H heads, K head width, D model width.
"""

import numpy as np

from alignment import gguf
from alignment.errors import InputError
from alignment.models import rope

ARCHITECTURES = {  # of GGUF: architecture of transformers. A Mistral model is a llama with a window, or just a llama
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides the frequencies by, in Llama 3.1's scaling
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config(model: gguf.Model) -> dict:
    """What config.json of the same model would say.

    Raises:
        InputError: another architecture, experts, layers of different sizes, or a rope that we do not compute.
    """
    if model.architecture not in ARCHITECTURES:
        raise InputError(
            f"{model.file} is a {model.architecture or 'nameless'} model; of GGUF files these architectures are read: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if model.get(".expert_count"):
        raise InputError(
            f"{model.file} is a mixture of {model.get('.expert_count')} experts; only dense models are read"
        )
    heads, width = model.need(".attention.head_count"), model.need(".embedding_length")
    sizes = {
        "num_hidden_layers": model.need(".block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.get(".attention.head_count_kv") or heads,
        "hidden_size": width,
        "intermediate_size": model.need(".feed_forward_length"),
    }
    if uneven := [name for name, size in sizes.items() if isinstance(size, list)]:
        raise InputError(
            f"{model.file} has layers of different sizes ({uneven[0]} {sizes[uneven[0]]}); all must be alike"
        )
    head_dim = model.get(".attention.key_length") or width // heads
    theta = float(model.get(".rope.freq_base") or 10_000.0)
    if (turned := model.get(".rope.dimension_count", head_dim)) != head_dim:
        raise InputError(
            f"{model.file} turns {turned} of a head's {head_dim} dimensions; only all of them are supported"
        )
    architecture, window = ARCHITECTURES[model.architecture], model.get(".attention.sliding_window")
    if window and architecture == "LlamaForCausalLM":
        architecture = "MistralForCausalLM"
    ids = {name: model.get(f"tokenizer.ggml.{key}_token_id") for name, key in
           {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}.items()}  # fmt: skip
    return {
        "architectures": [architecture],
        "model_type": architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": _tensor(model, "token_embd.weight").shape[0],
        **sizes,
        "head_dim": head_dim,
        "hidden_act": "silu",
        # GGUF keeps it as float32; the shortest decimal that rounds to it is what config.json had
        "rms_norm_eps": float(str(np.float32(model.need(".attention.layer_norm_rms_epsilon")))),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(model, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "max_position_embeddings": model.get(".context_length", 4096),
        "sliding_window": window if architecture == "MistralForCausalLM" else None,
        **{name: number for name, number in ids.items() if number is not None},
    }


def tensors(model: gguf.Model) -> dict[str, "Renamed"]:
    """The model's tensors by their names in transformers; a tensor that has none keeps its own."""
    heads = model.need(".attention.head_count")
    kv_heads = model.get(".attention.head_count_kv") or heads
    renamed = {}
    for name, tensor in model.tensors.items():
        if name == ROPE_FACTORS:  # `config` has turned them into a rope_scaling
            continue
        theirs = OUTER.get(name, name)
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            theirs = f"model.layers.{number}.{LAYER[rest]}" if rest in LAYER else name
        # llama.cpp's converter interleaves a head's two rotary halves for the llama architecture alone
        num_heads = {"q_proj": heads, "k_proj": kv_heads}.get(theirs.split(".")[-2], 0)
        renamed[theirs] = Renamed(tensor, num_heads if model.architecture in ("llama", "mistral") else 0)
    return renamed


class Renamed:
    """A tensor with a file, a type and a shape like a stored one of safetensors; `array()` dequantises it."""

    def __init__(self, tensor: gguf.Quantised, num_interleaved_heads: int = 0):
        self.file, self.dtype, self.shape = tensor.file, tensor.dtype, tensor.shape
        self._tensor, self._num_heads = tensor, num_interleaved_heads

    def array(self) -> np.ndarray:
        """The values in transformers' order of rows, float32."""
        values = self._tensor.array()
        if self._num_heads:
            halves = values.reshape(self._num_heads, -1, 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        return values


def _tensor(model: gguf.Model, name: str) -> gguf.Quantised:
    if name not in model.tensors:
        raise InputError(f"{model.file} lacks the tensor {name}; it has {', '.join(list(model.tensors)[:5])} ...")
    return model.tensors[name]


def _rope_scaling(model: gguf.Model, head_dim: int, theta: float) -> dict | None:
    if ROPE_FACTORS in model.tensors:
        return _llama3(model, head_dim, theta)
    kind = model.get(".rope.scaling.type") or "none"
    factor = float(model.get(".rope.scaling.factor") or model.get(".rope.scale_linear") or 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = int(model.need(".rope.scaling.original_context_length"))
        options = {"attention_factor": "attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        options_of_file = {ours: model.get(f".rope.scaling.{theirs}") for ours, theirs in options.items()}
        chosen = {name: float(value) for name, value in options_of_file.items() if value is not None}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **chosen}
    raise InputError(
        f"{model.file} scales its rope by {kind!r}; supported are none, linear, yarn and Llama 3's factors"
    )


def _llama3(model: gguf.Model, head_dim: int, theta: float) -> dict:
    """The `rope_scaling` of Llama 3.1 and later whose divisors the file holds.

    The file has the divisors alone; the largest is the factor, and the other three arguments are the same in every
    released Llama. That they give these divisors is checked.
    """
    divisors_J = model.tensors[ROPE_FACTORS].array().astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(divisors_J.max()), **LLAMA3}
    expected_J = rope.frequencies(head_dim, theta)[0] / rope.frequencies(head_dim, theta, scaling)[0]
    if divisors_J.shape != expected_J.shape or not np.allclose(divisors_J, expected_J, rtol=1e-4):
        raise InputError(
            f"{model.file}: {ROPE_FACTORS} holds divisors that are not Llama 3's; this rope is not supported"
        )
    return scaling
