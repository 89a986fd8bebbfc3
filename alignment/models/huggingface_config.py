"""What config.json of a Hugging Face checkpoint says of the network; what we do not compute exactly is refused."""

import math
import numbers
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


WHOLE: tuple[str, ...] = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
WHOLE += ("head_dim", "vocab_size", "max_position_embeddings", "original_max_position_embeddings", "sliding_window")
POSITIVE = ("rms_norm_eps", "rope_theta", "partial_rotary_factor")
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
OBJECTS = ("rope_scaling", "rope_parameters")
OF_ROPE: tuple[str, ...] = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
)
OF_ROPE += ("attention_factor", "mscale", "mscale_all_dim")
MAY_BE_OFF = ("mscale", "mscale_all_dim")  # which 0 turns off
LARGEST = 1 << 31  # of whole numbers


def check_types(config: Mapping[str, Any], where: pathlib.Path) -> None:
    """Refuse values of another type than their key has; "false", as a text, would count as true.

    Raises:
        InputError: with the key, its value and the need.
    """

    def refuse(key: str, value: Any, need: str) -> None:
        raise InputError(f"{where} has {key}={str(value)[:80]!r}, which must be {need}; download it again, or mend it")

    for key, value in config.items():
        least = int(key != "max_window_layers")
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is None or (key == "sliding_window" and config.get("use_sliding_window") is False):
            continue
        if key in (*WHOLE, "max_window_layers") and not (is_whole and least <= value < LARGEST):
            refuse(key, value, "a positive whole number")
        elif key in POSITIVE and not _is_positive(value):
            refuse(key, value, "a positive number")
        elif key in SWITCHES and not isinstance(value, bool):
            refuse(key, value, "true or false")
        elif key in ("architectures", "layer_types") and not _are_texts(value):
            refuse(key, value, "a list of names")
        elif key in OBJECTS and not isinstance(value, Mapping):
            refuse(key, value, "an object")
        elif key in OBJECTS:
            for name, one in value.items():
                if name in ("type", "rope_type") and not isinstance(one, (str, type(None))):
                    refuse(f"{key}.{name}", one, "a name")
                is_off = name in MAY_BE_OFF and one == 0
                if name in OF_ROPE and one is not None and not is_off and not _is_positive(one):
                    refuse(f"{key}.{name}", one, "a positive number")


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


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
    scaling = {name: value for name, value in scaling.items() if value is not None}
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
