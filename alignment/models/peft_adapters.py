"""Adapters in the folders of peft: adapter_config.json and adapter_model.safetensors, in both directions.

What a config asks for beyond plain LoRA on linear layers is refused by name, because an adapter that is loaded without
it computes something else.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.models import decoder, huggingface, lora, tensors

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
READ = (
    *("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "peft_type", "bias"),
)
HARMLESS = (  # they say where an adapter comes from or how it was trained, and change nothing that it computes
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    *("lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size", "runtime_config", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "arrow_config", "ensure_weight_tying"),
)
COPIES = ("lm_head.base_layer.weight", "embed_tokens.weight")
WHY = {
    "use_dora": "DoRA rescales every column of the merged weights; train the adapter without it",
    "modules_to_save": "it holds whole layers beside the adapter, which vLLM refuses as well; name them in "
    "target_modules, or merge the adapter into its model with peft",
    "lora_bias": "biases in the adapter are not read; merge it into its model with peft",
}


def check(folder: str | pathlib.Path) -> None:
    """Refuse a folder that holds no adapter, or one that is more than LoRA.

    Raises:
        InputError: see above.
    """
    settings(folder)
    if not (pathlib.Path(folder) / tensors.ADAPTER).is_file():
        raise InputError(f"{pathlib.Path(folder) / tensors.ADAPTER} is missing; pickled *.bin adapters are not read")


def settings(folder: str | pathlib.Path) -> lora.Settings:
    """What adapter_config.json says.

    Raises:
        InputError: the file is missing or no JSON object, or asks for what we do not compute.
    """
    file = pathlib.Path(folder) / CONFIG
    if not file.is_file():
        raise InputError(f"{file} does not exist; an adapter's folder has {CONFIG} and {tensors.ADAPTER}")
    return of_config(files.read_object(file, "copy it again"), str(file))


def of_config(config: Mapping[str, Any], where: str) -> lora.Settings:
    """`settings` of an adapter_config.json that was read already; `where` is for the messages."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where} has peft_type={config.get('peft_type')!r}, and only LORA is supported")
    if config.get("bias", "none") != "none":
        raise InputError(f"{where} has bias={config['bias']!r}, and only 'none' is supported")
    for key, value in config.items():
        if value and key not in READ and key not in HARMLESS:
            raise InputError(f"{where} has {key}={value!r}, which is not supported: {WHY.get(key, 'plain LoRA only')}")
    if config.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        raise InputError(f"{where} has layers_pattern={config['layers_pattern']!r}, and the layers are 'layers' here")
    if not config.get("target_modules"):
        raise InputError(f"{where} has no target_modules; name the layers that the adapter changes")
    for key in ("r", "lora_alpha"):
        number = config.get(key, 1)
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 < number < 1 << 31:
            raise InputError(f"{where} has {key}={str(number)[:80]!r}, which must be a positive number; copy it again")
    try:
        layers = config.get("layers_to_transform")
        return lora.Settings(
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=_words(config["target_modules"]),
            use_rslora=bool(config.get("use_rslora")),
            rank_pattern=tuple((config.get("rank_pattern") or {}).items()),
            alpha_pattern=tuple((config.get("alpha_pattern") or {}).items()),
            exclude=_words(config.get("exclude_modules") or ()),
            layers=None if layers in (None, []) else tuple(layers) if isinstance(layers, list) else (layers,),
        )
    except KeyError as e:
        raise InputError(f"{where} lacks {e.args[0]!r}, which a LoRA adapter needs") from None
    except (TypeError, ValueError, AttributeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{where} has a value of another type than peft writes ({e}); copy it again") from None


def config_for(settings: lora.Settings, base: str = "") -> dict[str, Any]:
    """adapter_config.json of these settings; `base` is the name of the weights they go with."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.numerator,
        "lora_dropout": 0.0,
        "target_modules": _listed(settings.targets),
        "exclude_modules": _listed(settings.exclude) or None,
        "layers_to_transform": None if settings.layers is None else list(settings.layers),
        "use_rslora": settings.use_rslora,
        "rank_pattern": dict(settings.rank_pattern),
        "alpha_pattern": dict(settings.alpha_pattern),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }


def load(folder: str | pathlib.Path, model: decoder.DecoderLM) -> tuple[lora.Adapter, dict[str, Any]]:
    """An adapter of this network, and its tree in float32 on the host.

    Raises:
        InputError: the patterns hit no layer, or the tensors are not those that the config asks for.
    """
    check(folder)
    adapter = lora.lay_out(settings(folder), model)
    file = pathlib.Path(folder) / tensors.ADAPTER
    stored = tensors.header(file)
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), adapter.form())
    flat = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = {}
    for name, place, layer, rank in _places(adapter):
        for which, letter in (("a", "A"), ("b", "B")):
            wanted[f"{PREFIX}{name}.lora_{letter}.weight"] = ((*place, which), layer, rank)
    if missing := [name for name in wanted if name not in stored]:
        raise InputError(f"{file} lacks {missing[0]}, which target_modules of {CONFIG} asks for")
    if copies := [name for name in stored if name.endswith(COPIES)]:  # peft adds them where the head has an adapter
        print(f"{file}: {', '.join(copies)} belong to the base model: not read", flush=True)
    stored = {name: place for name, place in stored.items() if name not in copies}
    if extra := [name for name in stored if name not in wanted]:
        raise InputError(f"{file} has {extra[0]}, for which {CONFIG} and the model have no place")
    for name, (path, layer, rank) in wanted.items():
        target = flat[path] if layer is None else flat[path][layer]  # a view
        target = target[..., :rank] if path[-1] == "a" else target[:rank]
        shape = (rank, target.size // rank) if path[-1] == "a" else (target.size // rank, rank)
        if stored[name].shape != shape:
            raise InputError(f"{name} in {file} has shape {stored[name].shape}; {CONFIG} and the model ask for {shape}")
        target[...] = tensors.view(name, stored[name]).astype(np.float32).T.reshape(target.shape)
        if not np.isfinite(target).all():
            raise InputError(f"{name} in {file} holds values that are no numbers; copy the adapter again")
    return adapter, tree


def save(folder: str | pathlib.Path, adapter: lora.Adapter, params: Mapping, *, base: str = "") -> None:
    """Write an adapter's folder that peft loads, in float32; it appears whole, or not at all.

    Args:
        params: the adapter's tree; every process of a multi-host run must call this.
        base: the name of the weights that it goes with; "" leaves it out.
    """
    host = jax.tree.map(huggingface.on_host, params)
    arrays = {}
    for name, place, layer, rank in _places(adapter):
        low: Any = host
        for key in place:
            low = low[key]
        a, b = (x if layer is None else x[layer] for x in (low["a"], low["b"]))
        arrays[f"{PREFIX}{name}.lora_A.weight"] = a[..., :rank].reshape(-1, rank).T.astype(np.float32)
        arrays[f"{PREFIX}{name}.lora_B.weight"] = b[:rank].reshape(rank, -1).T.astype(np.float32)
    if not files.is_first_process():
        return
    with files.replacing_folder(folder) as unfinished:
        shapes = {name: array.shape for name, array in arrays.items()}
        tensors.write(unfinished / tensors.ADAPTER, shapes, np.dtype(np.float32), iter(arrays.values()))
        config = json.dumps(config_for(adapter.settings, base), indent=2)
        (unfinished / CONFIG).write_text(config + "\n")
    print(
        f"{folder}: {adapter.describe()}. It has no modules_to_save, which vLLM would refuse; peft and vLLM load it "
        "beside its base model",
        flush=True,
    )


def _places(adapter: lora.Adapter):
    """For every layer with an adapter: its name, its path in the tree, its number in the stack, and its rank."""
    for name, (ours, layer) in lora.modules(adapter.model).items():
        rank = adapter.ranks.get(ours, (0,) * adapter.model.num_layers)[layer or 0]
        if rank:
            yield name, ("head",) if ours == "head" else ("layers", ours), layer, rank


def _words(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def _listed(words: str | tuple[str, ...]) -> str | list[str]:
    return words if isinstance(words, str) else list(words)
