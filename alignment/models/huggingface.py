"""Hugging Face checkpoint folders, in both directions, without torch.

A family is what one `model_type` of transformers calls the same network. `LAYER` and `OUTER` are the name tables;
`config_of` and `config_for` the two directions of config.json; `load` and `save` those of the weights.
"""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment import errors, files, gguf
from alignment.errors import InputError
from alignment.models import decoder, gguf_names, huggingface_config, rope, tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Hugging Face name: (our name, how many of our leading dimensions are a linear layer's input; torch keeps [out, in]).
# None: the same array; 0: flattened.
LAYER = {
    "input_layernorm.weight": ("attention_norm", None),
    "self_attn.q_proj.weight": ("query", 1),
    "self_attn.k_proj.weight": ("key", 1),
    "self_attn.v_proj.weight": ("value", 1),
    "self_attn.o_proj.weight": ("out", 2),
    "post_attention_layernorm.weight": ("mlp_norm", None),
    "mlp.gate_proj.weight": ("gate", 1),
    "mlp.up_proj.weight": ("up", 1),
    "mlp.down_proj.weight": ("down", 1),
}
BIASES = {f"self_attn.{x[0]}_proj.bias": (f"{x}_bias", 0) for x in ("query", "key", "value")}
HEAD_NORMS = {f"self_attn.{x[0]}_norm.weight": (f"{x}_norm", None) for x in ("query", "key")}
OUTER = {EMBEDDING: ("embedding", None), "model.norm.weight": ("final_norm", None)}
UNTIED = {HEAD: ("head", 1)}


def names(model: decoder.DecoderLM) -> dict[str, tuple[tuple[str, ...], int | None, int | None]]:
    """Every tensor of the checkpoint: its path in the parameters, its layer, and its number of input dimensions."""
    layer = LAYER | (BIASES if model.qkv_bias else {}) | (HEAD_NORMS if model.qk_norm else {})
    outer = OUTER | ({} if model.tie_embeddings else UNTIED)
    table: dict[str, tuple[tuple[str, ...], int | None, int | None]]
    table = {name: ((ours,), None, inputs) for name, (ours, inputs) in outer.items()}
    for i in range(model.num_layers):
        table |= {f"model.layers.{i}.{name}": (("layers", ours), i, inputs) for name, (ours, inputs) in layer.items()}
    return table


def check_source(spec: str) -> None:
    """Refuse a spec that `resolve` could not find, without opening a file or asking the hub.

    Raises:
        InputError: no such folder or file, or a package that reads it is missing.
    """
    if not errors.files_needed():
        return
    if spec.startswith("gguf:"):
        gguf.check(spec.removeprefix("gguf:"))
        return
    name = spec.removeprefix("hf:")
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{folder / 'config.json'} does not exist; a checkpoint folder has config.json and *.safetensors"
            )
        return
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name} is neither a folder here nor a hub id (owner/name); give one of the two")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(
            f"{name} is not a folder here, and reading the hub needs: pip install 'plumbline[hub]'; or give a folder"
        )


def resolve(spec: str) -> pathlib.Path:
    """The folder of `hf:<folder or hub id>` (or just what follows the colon), or the file of `gguf:<file>`.

    A hub id is downloaded.
    """
    spec = spec.removeprefix("hf:")
    if spec.startswith("gguf:"):
        return gguf.read(spec.removeprefix("gguf:")).file
    folder = pathlib.Path(spec).expanduser()
    if folder.is_dir():
        return folder
    check_source(spec)
    import huggingface_hub

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return pathlib.Path(huggingface_hub.snapshot_download(spec, allow_patterns=patterns))
    except Exception as e:  # the hub's error classes differ between its versions; all of them mean: no such folder
        raise InputError(
            f"{spec} is not a folder here and could not be downloaded from the hub ({type(e).__name__}: {e}); "
            "check the name, the network and `hf auth login`, or give a folder"
        ) from None


def read_config(folder: str | pathlib.Path) -> dict:
    """config.json as it stands; of a GGUF file, what config.json of the same model would say."""
    if pathlib.Path(folder).suffix == ".gguf":
        return gguf_names.config(gguf.read(str(folder)))
    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist; a checkpoint folder has config.json and *.safetensors")
    return files.read_object(file, "download it again")


GENERATION = "generation_config.json"


def read_generation(folder: str | pathlib.Path) -> bytes:
    """generation_config.json as it stands; nothing where there is none, as in a GGUF file."""
    file = pathlib.Path(folder) / GENERATION
    return file.read_bytes() if file.is_file() else b""


def ends(eos_token_id: int | list[int] | None) -> list[int]:
    """`eos_token_id` of a config, which may be one id, several or none, as a list."""
    return [] if eos_token_id is None else list(eos_token_id) if isinstance(eos_token_id, list) else [eos_token_id]


def write_generation(folder: pathlib.Path, content: bytes, *, stop_ids: Sequence[int] = ()) -> None:
    """Write generation_config.json, and its ends into config.json, beside which it lies.

    Args:
        folder: has config.json, whose token ids stand where `content` has none.
        content: generation_config.json of the checkpoint that training started from; it stays as it is unless an end is
            missing from it.
        stop_ids: where an answer ends besides.
    """
    config = read_config(folder)
    try:
        generation = json.loads(content) if content else {}
        if not isinstance(generation, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise InputError(f"{GENERATION} of the checkpoint is not a JSON object ({e}); download it again") from None
    own = ends(generation.get("eos_token_id"))
    union = list(dict.fromkeys([*own, *ends(config.get("eos_token_id")), *stop_ids]))
    eos = union[0] if len(union) == 1 else union or None
    if not content:
        generation = {key: config[key] for key in KEPT[:3] if config.get(key) is not None}
    if not content or set(union) != set(own):
        generation |= {"eos_token_id": eos} if union else {}
        content = (json.dumps(generation, indent=2, ensure_ascii=False) + "\n").encode()
    (folder / GENERATION).write_bytes(content)
    if set(union) != set(ends(config.get("eos_token_id"))):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}, indent=2) + "\n")


def config_of(folder: str | pathlib.Path) -> dict:
    """Keyword arguments of `DecoderLM` for a checkpoint folder; what we do not compute exactly is refused."""
    config = {key: value for key, value in read_config(folder).items() if value is not None}
    where = pathlib.Path(folder) / "config.json"
    huggingface_config.check_types(config, where)
    family = huggingface_config.family(config, where)
    huggingface_config.refuse(config, where, family)
    try:
        kwargs = dict(
            vocab_size=config["vocab_size"],
            num_layers=config["num_hidden_layers"],
            model_dim=config["hidden_size"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim") or huggingface_config.default_head_dim(config, family),
            ffn_dim=config["intermediate_size"],
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=bool(config.get("tie_word_embeddings")) and not _has_head_of_its_own(folder),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            **huggingface_config.rope_of(config),
            **huggingface_config.windows_of(config, family),
        )
    except KeyError as e:
        raise InputError(f"{where} lacks {e.args[0]!r}, which a {family} model needs") from None
    rope.frequencies(kwargs["head_dim"], kwargs["rope_theta"], kwargs["rope_scaling"])
    return kwargs


def _stored(folder):
    """The tensors of a checkpoint by the names of a whole language model.

    transformers saves a body without its head (`LlamaModel`) under names that lack the leading `model.`, and a tied
    matrix under either of its two names.
    """
    if pathlib.Path(folder).suffix == ".gguf":
        return gguf_names.tensors(gguf.read(str(folder)))
    stored = tensors.index(folder)
    if not any(name.startswith("model.") for name in stored):
        stored = {name if name.startswith("lm_head.") else f"model.{name}": place for name, place in stored.items()}
    return stored


def _has_head_of_its_own(folder):
    """Whether a checkpoint that says it is tied holds another output matrix than its embedding.

    transformers and vLLM then load both, whatever config.json says.
    """
    if pathlib.Path(folder).suffix == ".gguf" or not any(pathlib.Path(folder).glob("*.safetensors")):
        return False
    stored = _stored(folder)
    if HEAD not in stored or EMBEDDING not in stored or tensors.same_values(HEAD, stored[HEAD], stored[EMBEDDING]):
        return False
    print(
        f"{folder}: config.json has tie_word_embeddings=true, but {HEAD} differs from {EMBEDDING}; both are loaded, "
        "and the model is untied",
        flush=True,
    )
    return True


def load(
    folder: str | pathlib.Path, model: decoder.DecoderLM, shardings: Mapping | None = None, dtype: Any = None
) -> dict:
    """The parameters in a checkpoint folder, in the tree that `model.init` gives (without boxes).

    Args:
        folder: see `tensors.index`; or a GGUF file, whose tensors are dequantised one at a time.
        model: `DecoderLM(**config_of(folder))`, or with other settings that keep the shapes.
        shardings: a tree like the parameters; each device's part is read from the files by itself. None: one device.
        dtype: of the parameters; None: the model's `param_dtype`.
    """
    stored = _stored(folder)
    if model.tie_embeddings and EMBEDDING not in stored and HEAD in stored:
        stored = {**stored, EMBEDDING: stored[HEAD]}
    table = names(model)
    shapes = param_shapes(model)
    _check_names(folder, stored, table, model)
    parts: dict[tuple[str, ...], list] = {}  # path: functions that read its layers (or itself alone) in our shape
    for name, (path, layer, inputs) in table.items():
        shape = shapes[path] if layer is None else shapes[path][1:]
        if stored[name].shape != _hf_shape(shape, inputs):
            raise InputError(
                f"{name} in {stored[name].file} has shape {stored[name].shape}; "
                f"config.json asks for {_hf_shape(shape, inputs)}"
            )
        parts.setdefault(path, []).append(functools.partial(_read, name, stored[name], shape, inputs))
    dtype = jnp.dtype(dtype or model.param_dtype)
    tree: dict[str, Any] = {"layers": {}}
    for path, readers in parts.items():
        sharding = None if shardings is None else _at(shardings, path)
        leaf = _assemble(readers, shapes[path], path[0] == "layers", dtype, sharding)
        (tree["layers"] if path[0] == "layers" else tree)[path[-1]] = leaf
    return tree


def param_shapes(model: decoder.DecoderLM) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path in the parameters: shape; nothing is computed."""
    params = nn.meta.unbox(decoder.boxed_params(model))
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def _check_names(folder, stored, table, model):
    missing = [name for name in table if name not in stored]
    if missing:
        raise InputError(f"{folder} lacks {errors.few(missing)}; it has {errors.few(list(stored))}")
    ignored = ("rotary_emb.inv_freq",) + ((HEAD,) if model.tie_embeddings else ())
    extra = [name for name in stored if name not in table and not name.endswith(ignored)]
    if extra:
        file = stored[extra[0]].file
        raise InputError(
            f"{file} has {errors.few(extra)}, which config.json gives no place; is it another architecture's?"
        )


def _at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _hf_shape(shape, inputs):
    if inputs is None:
        return tuple(shape)
    out = int(np.prod(shape[inputs:]))
    return (out, int(np.prod(shape[:inputs]))) if inputs else (out,)


def _read(name, stored, shape, inputs):
    """A stored tensor in our shape: a view of a safetensors file, or the dequantised values of a GGUF file."""
    is_quantised = isinstance(stored, gguf_names.Renamed)
    return _from_hf(stored.array() if is_quantised else tensors.view(name, stored), shape, inputs)


def _from_hf(view, shape, inputs):
    """A view of a stored tensor in our shape; numpy splits and swaps dimensions without copying."""
    return (view.T if inputs else view).reshape(shape)


def _to_hf(array, inputs):
    hf_shape = _hf_shape(array.shape, inputs)
    return array.reshape(hf_shape[::-1]).T if inputs else array.reshape(hf_shape)


def _assemble(readers, shape, is_stacked, dtype, sharding):
    """One array of the parameters: layers are copied in one at a time, and only the slices a device holds are read."""

    def part(index):
        if not is_stacked:
            return np.array(readers[0]()[index], dtype)
        out = None
        for i, read in enumerate(layers := readers[index[0]]):  # one layer's tensor exists at a time
            layer = read()[index[1:]]
            out = np.empty((len(layers), *layer.shape), dtype) if out is None else out
            out[i] = layer
        return out

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, part)


def config_for(model: decoder.DecoderLM, dtype: Any = "float32", like: Mapping | None = None) -> dict:
    """config.json for a model: its family by its features, in the layout that transformers 4 and 5 both read.

    Args:
        model: the network.
        dtype: of the stored weights.
        like: config.json of the checkpoint that training started from; its entries that do not describe the network
            (token ids, context length) stay.
    """
    family = _family_for(model)
    copied = {key: value for key, value in (like or {}).items() if key in KEPT}
    shapes = param_shapes(model)
    config = {
        "architectures": [next(name for name, kind in huggingface_config.FAMILIES.items() if kind == family)],
        "model_type": family,
        "vocab_size": model.vocab_size,
        "hidden_size": model.model_dim,
        "intermediate_size": shapes["layers", "gate"][-1],
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": shapes["layers", "key"][-2],
        "head_dim": shapes["layers", "key"][-1],
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": dict(model.rope_scaling) if model.rope_scaling else None,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": 4096,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(jnp.dtype(dtype)),
        "bos_token_id": None,
        "eos_token_id": None,
        **_windows_for(model, family),
        **copied,
    }
    if family == "qwen2":
        del config["attention_bias"]  # this family has biases on query, key and value without a key for them
    return config


KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "initializer_range")


def _family_for(model):
    if model.qkv_bias and model.qk_norm:
        raise InputError("qkv_bias with qk_norm is in none of the exported families; switch one of them off")
    family = "qwen3" if model.qk_norm else "qwen2" if model.qkv_bias else "mistral" if model.sliding_window else "llama"
    if family == "mistral" and "full_attention" in (model.layer_types or ()):
        raise InputError("layer_types that mix windows and full attention are exported only with qkv_bias or qk_norm")
    return family


def _windows_for(model, family):
    if family == "mistral":
        return {"sliding_window": model.sliding_window}
    if family == "llama":
        return {}
    if model.sliding_window is None:
        return {"use_sliding_window": False, "sliding_window": None, "max_window_layers": model.num_layers}
    types = list(model.layer_types or ["sliding_attention"] * model.num_layers)
    full = types.index("sliding_attention") if "sliding_attention" in types else model.num_layers
    return {
        "use_sliding_window": True,
        "sliding_window": model.sliding_window,
        "max_window_layers": full,
        "layer_types": types,
    }


def save(
    params: Mapping,
    model: decoder.DecoderLM,
    folder: str | pathlib.Path,
    *,
    dtype: Any = "float32",
    max_shard_bytes: int = 5_000_000_000,
    like: Mapping | None = None,
    token_ids: Mapping | None = None,
    extra_fn: Callable[[pathlib.Path], None] | None = None,
) -> None:
    """Write a checkpoint folder that transformers loads; it appears whole, or not at all.

    Args:
        params: the tree of `model.init`, without boxes; every process of a multi-host run must call this.
        model: the network.
        folder: replaced if it exists.
        dtype: of the weights in the files: float32, bfloat16 or float16.
        max_shard_bytes: a new file is begun rather than exceed this.
        like: see `config_for`.
        token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`, where they differ from those in `like`.
        extra_fn: called with the unfinished folder, to put a tokenizer in.
    """
    dtype, folder = jnp.dtype(dtype), pathlib.Path(folder)
    config = config_for(model, dtype, like) | dict(token_ids or {})
    table, shapes = names(model), param_shapes(model)
    stored = {
        name: _hf_shape(shapes[path] if layer is None else shapes[path][1:], inputs)
        for name, (path, layer, inputs) in table.items()
    }
    shards = tensors.plan(stored, dtype, max_shard_bytes)
    if jax.process_index() == 0:
        _write_folder(folder, params, table, stored, shards, dtype, config, extra_fn)
    else:  # gathering a sharded array takes all processes
        for names_in_file in shards.values():
            for _ in _arrays(params, table, names_in_file, dtype):
                pass


def _write_folder(folder, params, table, stored, shards, dtype, config, extra_fn):
    with files.replacing_folder(folder) as unfinished:
        for file, names_in_file in shards.items():
            shapes = {name: stored[name] for name in names_in_file}
            tensors.write(unfinished / file, shapes, dtype, _arrays(params, table, names_in_file, dtype))
        tensors.write_index(unfinished, shards, sum(int(np.prod(s)) for s in stored.values()) * dtype.itemsize)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_generation(unfinished, b"")
        if extra_fn is not None:
            extra_fn(unfinished)


def _arrays(params, table, names_in_file, dtype):
    """The tensors of one file in Hugging Face's shapes, one on the host at a time."""
    for name in names_in_file:
        path, layer, inputs = table[name]
        leaf = _at(params, path)
        yield _to_hf(on_host(leaf if layer is None else leaf[layer]), inputs).astype(dtype)


def on_host(array: Any) -> np.ndarray:
    """A whole array; every process of a multi-host run must call this."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
