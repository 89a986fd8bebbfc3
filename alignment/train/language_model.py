"""Where a run begins: from nothing, from a Hugging Face folder, or from an earlier run."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignment import files
from alignment.errors import InputError
from alignment.models import attention, decoder, huggingface
from alignment.train import checkpoint, sharding, train_state

MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"
COMPUTE_DTYPES = ("float32", "bfloat16")  # no float16: nothing here scales a loss to keep its gradients in range
EXPORT_DTYPES = (*COMPUTE_DTYPES, "float16")


class Tokenizer(Protocol):
    """What a start needs of a tokenizer."""

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def save(self, folder: str) -> None: ...


def settings(
    init_from: str, model: Mapping[str, Any], compute: Mapping[str, Any], *, vocab_size: int
) -> dict[str, Any]:
    """Keyword arguments of `DecoderLM` for the network to train.

    Args:
        init_from: "" trains from nothing with the architecture `model`; `hf:<folder or hub id>` and `run:<workdir>`
            bring their own.
        compute: how it is computed (dtype, remat, attention), whatever the start.
        vocab_size: of the tokenizer, for a model from nothing.
    """
    return {**_architecture(init_from, {"vocab_size": vocab_size, **model}), **compute}


def _architecture(init_from: str, model: Mapping[str, Any]) -> dict[str, Any]:
    if not init_from:
        return dict(model)
    kind, _, name = init_from.partition(":")
    if kind == "hf" and name:
        return huggingface.config_of(huggingface.resolve(name))
    if kind == "run" and name:
        path = pathlib.Path(name) / MODEL_FILE
        if not path.is_file():
            raise InputError(f"init_from={init_from!r}: {path} is not there; name the workdir of an earlier run")
        found = json.loads(path.read_text())
        if isinstance(found.get("layer_types"), list):
            found["layer_types"] = tuple(found["layer_types"])
        return found
    raise InputError(f"init_from={init_from!r} must be '', hf:<folder or hub id> or run:<workdir>")


def network(model_settings: Mapping[str, Any], *, rows_are_plain: bool) -> decoder.DecoderLM:
    """The network, its attention kernel chosen and compared with plain attention on this machine.

    Args:
        model_settings: keyword arguments of `DecoderLM`; attention "auto" takes the fused kernel of a GPU where it is
            right and fits, and `blocked` elsewhere.
        rows_are_plain: whether every row of a batch is one sequence, padded on the right, as fused kernels want it.
    """
    chosen = dict(model_settings)
    _check_dtype("dtype", chosen.get("dtype", "float32"), COMPUTE_DTYPES)
    is_free = chosen.get("attention") == "auto"
    if is_free:
        fits = rows_are_plain and chosen.get("dtype") == "bfloat16" and not chosen.get("sliding_window")
        chosen["attention"] = "cudnn" if fits and jax.default_backend() == "gpu" else "blocked"
    model = decoder.DecoderLM(**chosen)
    if model.attention == "cudnn":
        try:
            kv_heads = model.num_kv_heads or model.num_heads
            head_dim = model.head_dim or model.model_dim // model.num_heads
            attention.self_test("cudnn", num_heads=model.num_heads, num_kv_heads=kv_heads, head_dim=head_dim)
        except InputError as error:
            if not is_free:
                raise
            print(f"{error}, as this run now does", flush=True)
            model = model.clone(attention="blocked")
    return model


def tokenizer_of(init_from: str) -> str:
    """Which tokenizer goes with a start, as `data.tokenizer.load` names them; bytes where there is nothing to go by."""
    kind, _, name = init_from.partition(":")
    return {"hf": init_from, "run": str(pathlib.Path(name) / TOKENIZER_FOLDER)}.get(kind, "bytes")


def remember(workdir: str | pathlib.Path, model: decoder.DecoderLM, tok: Tokenizer) -> None:
    """Leave architecture and tokenizer in the workdir, for `run:<workdir>`."""
    if jax.process_index() == 0:
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        found = {name: value for name, value in fields.items() if name not in ("parent", "name")}
        content = json.dumps(found, indent=2, sort_keys=True, default=dict).encode()
        files.write(pathlib.Path(workdir) / MODEL_FILE, lambda f: f.write(content))
        tok.save(str(pathlib.Path(workdir) / TOKENIZER_FOLDER))


def params(init_from: str, model: decoder.DecoderLM, mesh: Mesh) -> Any:
    """A checkpoint's parameters in their places on the mesh; None for a run from nothing."""
    if not init_from:
        return None
    kind, _, name = init_from.partition(":")
    example_BT = jnp.zeros((1, 4), jnp.int32)
    shardings = train_state.param_shardings(model, example_BT, mesh)
    if kind == "hf":
        return huggingface.load(huggingface.resolve(name), model, shardings=shardings)
    return checkpoint.load_params(name, sharding.abstract(model, example_BT, shardings))


def check_export(model: decoder.DecoderLM, dtype: str) -> None:
    """Refuse before training what `export` would refuse after it."""
    if dtype:
        _check_dtype("export", dtype, EXPORT_DTYPES)
        huggingface.config_for(model, jnp.dtype(dtype))


def _check_dtype(name: str, dtype: str, known: tuple[str, ...]) -> None:
    if dtype not in known:
        raise InputError(f"{name}={dtype!r}; it is one of {', '.join(known)}")


def export(
    folder: str | pathlib.Path,
    params: Any,
    model: decoder.DecoderLM,
    tok: Tokenizer,
    *,
    dtype: str,
    init_from: str = "",
) -> None:
    """Leave a Hugging Face folder that `transformers` loads: weights, config, tokenizer and chat template.

    Args:
        dtype: of the weights in the files; "" leaves no folder.
        init_from: where the run began; a checkpoint's token ids and context length are kept.
    """
    if not dtype:
        return
    kind, _, name = init_from.partition(":")
    earlier = pathlib.Path(name) / "export/hf"
    if kind == "run" and (earlier / "config.json").is_file():  # whose own start may have been a checkpoint
        kind, name = "hf", str(earlier)
    like, ids = None, {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
    if kind == "hf":
        like, ids = huggingface.read_config(huggingface.resolve(name)), None
    extra = dict(dtype=dtype, like=like, token_ids=ids, extra_fn=lambda unfinished: tok.save(str(unfinished)))
    huggingface.save(params, model, folder, **extra)
