"""What config.json of a Hugging Face checkpoint says of the network; what we do not compute exactly is refused."""

import pathlib
from collections.abc import Mapping
from typing import Any

from alignment.errors import InputError

FAMILIES = {  # architecture: model_type
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
}
BODIES = {"LlamaModel": "llama", "Qwen2Model": "qwen2", "Qwen3Model": "qwen3", "MistralModel": "mistral"}  # no head


def family(config: Mapping[str, Any], where: pathlib.Path) -> str:
    """The `model_type` of a config, by its architectures; an architecture without a head counts as its family."""
    architectures = config.get("architectures") or [config.get("model_type")]
    for architecture in architectures:
        name = (FAMILIES | BODIES).get(architecture, architecture)
        if name in FAMILIES.values():
            return name
    raise InputError(
        f"{where} is a {', '.join(map(str, architectures))}; supported architectures: {', '.join(FAMILIES)}"
    )


def refuse(config: Mapping[str, Any], where: pathlib.Path, family: str) -> None:
    """Refuse features that would silently change what the network computes."""
    rope_config = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in rope_config.values()):
        raise InputError(f"{where} has another rope for each kind of layer, {rope_config}; only one is supported")
    problems = {
        "hidden_act": config.get("hidden_act", "silu") != "silu" and "only silu",
        "attention_bias": bool(config.get("attention_bias")) and family != "qwen2" and "only false",
        "mlp_bias": bool(config.get("mlp_bias")) and "only false",
        "quantization_config": config.get("quantization_config") is not None and "only unquantised weights",
        "partial_rotary_factor": (config.get("partial_rotary_factor") or rope_config.get("partial_rotary_factor", 1.0))
        != 1.0
        and "only 1.0",
    }
    for key, need in problems.items():
        if need:
            raise InputError(f"{where} has {key}={config.get(key, rope_config.get(key))!r}, and {need} is supported")


def default_head_dim(config: Mapping[str, Any], family: str) -> int:
    """The width of a head where the config does not give it."""
    return 128 if family == "qwen3" else config["hidden_size"] // config["num_attention_heads"]


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which stand side by side, or in transformers 5 together in `rope_parameters`."""
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    scaling.pop("partial_rotary_factor", None)
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", None) or kind or "default"
    if kind == "default":
        return {"rope_theta": float(theta), "rope_scaling": None}
    if kind in ("llama3", "yarn"):
        original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
        scaling["original_max_position_embeddings"] = original or config["max_position_embeddings"]
    return {"rope_theta": float(theta), "rope_scaling": {"rope_type": kind, **scaling}}


def windows_of(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The sliding window, and which layers have one where not all do."""
    window = config.get("sliding_window") if family != "llama" else None
    if family in ("qwen2", "qwen3"):
        window = window if config.get("use_sliding_window") else None
        default = ["full_attention"] * min(config.get("max_window_layers", 28), config["num_hidden_layers"])
        default += ["sliding_attention"] * (config["num_hidden_layers"] - len(default))
        types = tuple(config.get("layer_types") or default)
    else:
        types = ("sliding_attention",) * config["num_hidden_layers"]
    if window is None or "sliding_attention" not in types:
        return {"sliding_window": None, "layer_types": None}
    return {"sliding_window": window, "layer_types": types if "full_attention" in types else None}
