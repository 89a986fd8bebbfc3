"""A run's language model: built from nothing, a Hugging Face folder or an earlier run, and exported at the end."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
import xxhash
from jax.sharding import Mesh

from alignment import errors, files
from alignment.errors import InputError
from alignment.models import attention, decoder, huggingface, lora
from alignment.train import adapters, checkpoint, sharding, train_state

MODEL_FILE = "model.json"
TOKENIZER_FOLDER = "tokenizer"
COMPUTE_DTYPES = ("float32", "bfloat16")  # no float16: nothing here scales a loss to keep its gradients in range
EXPORT_DTYPES = (*COMPUTE_DTYPES, "float16")


class Tokenizer(Protocol):
    """What this module reads of a tokenizer; data/tokens/tokenizer.py has one."""

    name: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]

    def save(self, folder: str) -> None: ...


def build(
    init_from: str,
    tok: Tokenizer,
    *,
    model: Mapping[str, Any],
    compute: Mapping[str, Any],
    rows_are_plain: bool,
    rows_are_trees: bool = False,
    export: str = "",
    workdir: str | pathlib.Path | None = None,
) -> decoder.DecoderLM:
    """The network of a run, checked against its tokenizer, its machine and its export before any training.

    Args:
        init_from: "" for a network from nothing with the architecture `model`; `hf:<folder or hub id>`,
            `gguf:<file>` and `run:<workdir>` bring their own architecture. `params` reads the weights.
        model: keyword arguments of `DecoderLM` but for `vocab_size`, which the tokenizer gives.
        compute: how it is computed wherever it comes from: dtype, remat, attention, unroll.
        rows_are_plain, rows_are_trees: see `network`.
        export: the dtype that `export` will write at the end; "" for none.
        workdir: where architecture and tokenizer are left, for a later `run:<workdir>`; None leaves nothing.

    Raises:
        InputError: the checkpoint is missing, its embedding has fewer rows than the tokenizer has ids, its
            architecture cannot be exported, or a dtype is unknown.
    """
    model_settings = settings(init_from, model, compute, vocab_size=tok.vocab_size)
    _check_vocab(tok, model_settings["vocab_size"])
    net = network(model_settings, rows_are_plain=rows_are_plain, rows_are_trees=rows_are_trees)
    if export:
        errors.one_of("export", export, EXPORT_DTYPES)
        huggingface.config_for(net, jnp.dtype(export))  # raises for what Hugging Face has no architecture for
    if workdir is not None:
        leave(workdir, net, tok)
    return net


def leave(workdir: str | pathlib.Path, model: decoder.DecoderLM, tok: Tokenizer) -> None:
    """Architecture and tokenizer in a workdir, for a later `run:<workdir>`."""
    if jax.process_index() == 0:
        _save_architecture(pathlib.Path(workdir), model)
        tok.save(str(pathlib.Path(workdir) / TOKENIZER_FOLDER))


def check(init_from: str, *, model: Mapping[str, Any], compute: Mapping[str, Any], export: str = "") -> None:
    """Refuse what `build` would refuse and no file has to be opened for; the arguments are those of `build`.

    Raises:
        InputError: an unknown dtype, weights that are not there, or an architecture that cannot be.
    """
    errors.one_of("dtype", compute["dtype"], COMPUTE_DTYPES)
    errors.one_of("export", export, ("", *EXPORT_DTYPES))
    check_init_from(init_from)
    if not init_from:
        kernel = "blocked" if compute["attention"] == "auto" else compute["attention"]
        decoder.DecoderLM(**{"vocab_size": 2, **model, **compute, "attention": kernel})


def source(init_from: str) -> str:
    """What `init_from` stands for: of a run that trained nothing and left weights, such as a merge, their folder."""
    kind, _, name = init_from.partition(":")
    folder = pathlib.Path(name) / "export/hf"
    if kind == "run" and not (pathlib.Path(name) / MODEL_FILE).is_file() and (folder / "config.json").is_file():
        return f"hf:{folder}"
    return init_from


def check_init_from(init_from: str) -> None:
    """Refuse weights that are not there, before anything is loaded; an id of the hub is looked up later.

    Raises:
        InputError: another spelling than '', hf:, gguf: or run:, no such folder or file, or a missing package.
    """
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    if kind in ("hf", "gguf") and name:
        huggingface.check_source(init_from)
    elif kind == "run" and name:
        path = pathlib.Path(name) / MODEL_FILE
        if errors.files_needed() and not path.is_file():
            raise InputError(f"init_from={init_from!r}: {path} is not there; name the workdir of an earlier run")
    elif init_from:
        raise InputError(f"init_from={init_from!r} must be '', hf:<folder or hub id>, gguf:<file> or run:<workdir>")


def settings(
    init_from: str, model: Mapping[str, Any], compute: Mapping[str, Any], *, vocab_size: int
) -> dict[str, Any]:
    """Keyword arguments of `DecoderLM`; see `build`, of which this is the first step."""
    return {**_architecture(init_from, {"vocab_size": vocab_size, **model}), **compute}


def _architecture(init_from: str, model: Mapping[str, Any]) -> dict[str, Any]:
    if not init_from:
        return dict(model)
    check_init_from(init_from)
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    if kind == "run":
        architecture = files.read_object(pathlib.Path(name) / MODEL_FILE, "name another run")
        if (note := adapters.read_note(name)) and adapters.has_head(note):
            architecture["tie_embeddings"] = False
        return architecture
    return huggingface.config_of(huggingface.resolve(init_from))


def _check_vocab(tok: Tokenizer, vocab_size: int) -> None:
    if tok.vocab_size > vocab_size:
        raise InputError(
            f"tokenizer {tok.name!r} has token ids up to {tok.vocab_size - 1} but the model's vocabulary has "
            f"{vocab_size} rows; use the tokenizer of that checkpoint, or a model with vocab_size >= {tok.vocab_size}"
        )


def _save_architecture(workdir: pathlib.Path, model: decoder.DecoderLM) -> None:
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}  # linen's own two
    files.write_text(workdir / MODEL_FILE, json.dumps(fields, indent=2, sort_keys=True, default=dict))


def network(
    model_settings: Mapping[str, Any], *, rows_are_plain: bool, rows_are_trees: bool = False
) -> decoder.DecoderLM:
    """The network, with an attention kernel that was compared with plain attention on this machine.

    Args:
        model_settings: keyword arguments of `DecoderLM`; attention "auto" takes the fused kernel of a GPU where it is
            right and fits, and `blocked` elsewhere; "expanded" takes the fused kernel of the machine.
        rows_are_plain: whether every row of a batch is one sequence, padded on the right, as fused kernels want it.
        rows_are_trees: whether rows hold prefix trees, with their strands where the kernel takes these.

    Raises:
        InputError: the kernel is wrong here, does not run here, or takes other rows.
    """
    model_settings = dict(model_settings)
    errors.one_of("dtype", model_settings.get("dtype", "float32"), COMPUTE_DTYPES)
    is_auto = model_settings.get("attention") == "auto"
    model_settings["attention"] = _kernel(model_settings, rows_are_plain, rows_are_trees)
    model = decoder.DecoderLM(**model_settings)
    if model.attention in attention.EXPANDED and not rows_are_trees:
        raise InputError(f"attention={model.attention!r} takes rows of prefix trees, which this run has none of")
    if model.attention == "cudnn" or rows_are_trees:
        try:
            sizes = dict(num_heads=model.num_heads, num_kv_heads=model.num_kv_heads or model.num_heads)
            sizes["head_dim"] = model.head_dim or model.model_dim // model.num_heads
            attention.self_test(model.attention, **sizes, has_trees=rows_are_trees)
        except InputError as error:
            if not is_auto:
                raise
            print(f"{error}, as this run now does", flush=True)
            model = model.clone(attention="blocked")
    return model


def _kernel(model_settings: Mapping[str, Any], rows_are_plain: bool, rows_are_trees: bool) -> str:
    """The kernel that a config's word stands for on this machine."""
    wanted, backend = model_settings.get("attention", "blocked"), jax.default_backend()
    fused = {"gpu": "expanded_cudnn", "tpu": "expanded_splash"}
    if wanted == "expanded":
        return fused.get(backend, "expanded")
    if wanted != "auto":
        return wanted
    # cuDNN's kernel takes half precision and right-padded rows only, and no sliding window.
    has_window = bool(model_settings.get("sliding_window"))
    is_cudnn = model_settings.get("dtype") == "bfloat16" and not has_window and backend == "gpu"
    if rows_are_trees:
        return fused[backend] if is_cudnn or (backend == "tpu" and not has_window) else "blocked"
    return "cudnn" if rows_are_plain and is_cudnn else "blocked"


def tokenizer_of(init_from: str) -> str:
    """The name under which `data.tokens.tokenizer.load` finds the tokenizer of `init_from`; bytes for no checkpoint."""
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    return {"hf": init_from, "gguf": init_from, "run": str(pathlib.Path(name) / TOKENIZER_FOLDER)}.get(kind, "bytes")


def params(init_from: str, model: decoder.DecoderLM, mesh: Mesh) -> Any:
    """A checkpoint's parameters in their places on the mesh; None for a run from nothing.

    Those of a run that trained an adapter are its base with the adapter folded in.
    """
    if not init_from:
        return None
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    example_BT = jnp.zeros((1, 4), jnp.int32)
    shardings = train_state.param_shardings(model, example_BT, mesh)
    if kind in ("hf", "gguf"):
        return huggingface.load(huggingface.resolve(init_from), model, shardings=shardings)
    if note := adapters.read_note(name):
        return _merged(name, note, model, mesh)
    return checkpoint.load_params(name, sharding.abstract(model, example_BT, shardings))


def base_params(init_from: str, model: decoder.DecoderLM, mesh: Mesh, *, seed: int) -> Any:
    """`params`, or those that a run from nothing draws from its seed."""
    base = params(init_from, model, mesh)
    if base is None:
        tx, example_BT = optax.identity(), jnp.zeros((1, 4), jnp.int32)
        base = train_state.create(model, tx, example_BT, seed=seed, mesh=mesh).params
    return base


def _merged(workdir: str, note: Mapping[str, Any], model: decoder.DecoderLM, mesh: Mesh) -> Any:
    # in float32 as they were trained, and rounded once, after the sum
    base_model = model.clone(tie_embeddings=note["tie_embeddings"], param_dtype="float32")
    if digest(note["base"]) != note["weights"]:
        raise InputError(
            f"run:{workdir} holds an adapter of {note['base']!r}, whose weights have changed since; put them back"
        )
    adapter, own = adapters.load(workdir, base_model, mesh)
    merged = lora.fold(adapter.attach(base_params(note["base"], base_model, mesh, seed=note["seed"]), own))
    return jax.tree.map(lambda leaf: leaf.astype(model.param_dtype), merged)


def digest(init_from: str) -> str:
    """A hash of the files that a run's first weights come from; "" for a run from nothing.

    What a run stores of its first weights, such as a reference's log-probabilities, carries it: the same path may hold
    other weights when the run is started again. xxHash reads some gigabytes a second.

    Raises:
        InputError: the weights are not there.
    """
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    if not init_from:
        return ""
    if kind == "run":
        # Other names are of checkpoints that are still being written, and of their hashes.
        steps = [path for path in checkpoint.result_folder(name).glob("*") if path.name.isdigit()]
        if not steps:
            raise InputError(f"init_from={init_from!r}: {name} has no checkpoint; name the workdir of an earlier run")
        places = sorted(path for path in max(steps, key=lambda path: int(path.name)).rglob("*") if path.is_file())
        places += [path for path in [pathlib.Path(name) / adapters.NOTE] if path.is_file()]  # it names the base
    else:
        folder = huggingface.resolve(init_from)
        places = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]
    content = xxhash.xxh3_64()
    for place in places:
        content.update(place.name.encode())
        for block in files.blocks(place):
            content.update(block)
    return content.hexdigest()


def export(
    folder: str | pathlib.Path,
    params: Any,
    model: decoder.DecoderLM,
    tok: Tokenizer,
    *,
    dtype: str,
    init_from: str = "",
    card: str = "",
) -> None:
    """Leave a Hugging Face folder that `transformers` loads: weights, config, tokenizer and chat template.

    An answer of the exported model ends where the checkpoint ended one, and where the run's tokenizer does: config.json
    and generation_config.json say the union of both. What else generation_config.json says (temperature and the like)
    stays, byte for byte where no end is added.

    Args:
        dtype: of the weights in the files; "" leaves no folder.
        init_from: where the run began; a checkpoint's token ids and context length are kept.
        card: the text of README.md; "" leaves none.
    """
    if not dtype:
        return
    init_from = source(init_from)
    kind, _, name = init_from.partition(":")
    earlier = pathlib.Path(name) / "export/hf"
    while kind == "run" and not earlier.is_dir() and (note := adapters.read_note(name)):  # its base may have a config
        init_from = note["base"]
        kind, _, name = init_from.partition(":")
        earlier = pathlib.Path(name) / "export/hf"
    if kind == "run" and (earlier / "config.json").is_file():  # that run may itself have begun from a checkpoint
        kind, init_from = "hf", f"hf:{earlier}"
    like, generation = None, b""
    if kind in ("hf", "gguf"):
        folder_before = huggingface.resolve(init_from)
        like, generation = huggingface.read_config(folder_before), huggingface.read_generation(folder_before)
    ids = {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
    if like is not None:
        ids = {}
        _say_ends(like, tok)

    def add_files(unfinished: pathlib.Path) -> None:
        tok.save(str(unfinished))
        if card:
            files.write_text(unfinished / "README.md", card)
        # the tokenizer may come from another folder, and bring that one's generation_config.json
        huggingface.write_generation(unfinished, generation, stop_ids=tok.stop_ids)

    huggingface.save(params, model, folder, dtype=dtype, like=like, token_ids=ids, extra_fn=add_files)


def _say_ends(like: Mapping[str, Any], tok: Tokenizer) -> None:
    ends = huggingface.ends(like.get("eos_token_id"))
    if ends and tok.eos_id is not None and tok.eos_id not in ends:
        print(
            f"the checkpoint's config.json ends a text at {ends} and tokenizer {tok.name!r} at {tok.eos_id}; the "
            "export names both",
            flush=True,
        )
