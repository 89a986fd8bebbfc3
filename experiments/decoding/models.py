"""The model that a door of the decoder opens on: its config group, the refusals before weights are read, the engine."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh
from ml_collections import config_dict

from alignment import errors, files
from alignment.decoding import engine as engines
from alignment.decoding import kernels, network, programs
from alignment.errors import InputError
from alignment.models import decoder, huggingface
from alignment.train import language_model, loop, optimizer, sharding, train_state
from data.texts import text, text_formats
from data.tokens import learning, pieces, tokenizer
from experiments.launch import text_training

RANDOM, TOY, GUARDED, OBEDIENT = "random", "toy", "guarded", "obedient"  # models that come with the code
TOYS = {  # and what `open_model` trains them on
    TOY: "synthetic:conversations",
    GUARDED: "synthetic:house_rules",
    OBEDIENT: "synthetic:guest_rules",
}
WRITER = "synthetic:house_questions"  # what a toy learns that writes prompts
OWN = (RANDOM, *TOYS)
KINDS = ("hf", "run", "gguf")
RANDOM_SIZES = dict(num_layers=2, model_dim=32, num_heads=2, num_kv_heads=1, ffn_dim=64)
TOY_SIZES = dict(num_layers=2, model_dim=128, num_heads=4, num_kv_heads=2, ffn_dim=384)
TOY_STEPS = 200
LEARNED = {TOYS[GUARDED]: (640, (TOYS[GUARDED], WRITER))}  # toys that read words: tokens, and the texts they come from
TOY_LENGTHS = {TOYS[GUARDED]: 96, WRITER: 96}  # of a row, in tokens; of the others 256, in bytes
SMOL = "hf:models/smollm2"  # what `make models` leaves
LEAST = {"num_slots": 1, "max_len": 1, "chunk": 1, "block": 1, "num_steps": 1, "num_draft": 0}


def settings(arg: str = "") -> dict[str, Any]:
    """The part of a door's config that says which model answers and how the engine is sized.

    Args:
        arg: `tiny`: a small model with random weights; `laptop`: one that `load` trains in a minute on the embedded
            museum's conversations; `smol`: SmolLM2-135M-Instruct where `make models` left it.
    """
    engine = dict(
        num_slots=16,  # answers written at the same time
        max_len=2_048,  # tokens of prompt and answer
        chunk=64,  # tokens of a prompt that are read at once
        block=64,  # positions of a block of the cache
        num_steps=16,  # tokens of every answer between two looks of the host
        num_draft=0,  # tokens guessed ahead
        weights_dtype="",  # "int8": eight bits on accelerators; "": that of the model
        cache_dtype="",
        attention="auto",  # the accelerator's own kernel where it fits and is right, else "blocks"
    )
    out = dict(
        init_from="hf:Qwen/Qwen2.5-1.5B-Instruct",  # hf:<folder or id>, run:<workdir>, gguf:<file>; or one of OWN
        tokenizer="",  # "" takes that of init_from
        dtype=config_dict.placeholder(str),  # None: bfloat16 on accelerators, float32 on a CPU
        draft_from="",  # a smaller model that guesses num_draft tokens; "": the row's own repetitions do
        mesh=dict(tensor=1),  # devices that share the model; -1 takes all
        engine=engine,
    )
    if arg == "tiny":
        out |= dict(init_from=RANDOM, dtype="float32")
        engine |= dict(num_slots=4, max_len=128, chunk=16, block=16, num_steps=4)
    elif arg == "laptop":
        out |= dict(init_from=TOY, dtype="float32")
        engine |= dict(num_slots=8, max_len=512)
    elif arg == "smol":
        out |= dict(init_from=SMOL, dtype="float32")
        engine |= dict(max_len=1_024)
    return out


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse a model that is not there and sizes out of range; no weights are read and no device is started."""
    _check_init_from("init_from", c.init_from)
    if c.draft_from:
        _check_init_from("draft_from", c.draft_from)
    if c.tokenizer or c.init_from not in OWN:
        tokenizer.check(c.tokenizer or language_model.tokenizer_of(c.init_from))
    check_engine(c)
    if c.draft_from and not c.engine.num_draft:
        raise InputError("draft_from is set and engine.num_draft=0, so it would guess nothing; 4 is a usual number")
    if c.draft_from and c.init_from in OWN:
        raise InputError(f"init_from={c.init_from!r} is small and gains nothing from draft_from; leave it out")


def over_models(c: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """What a sweep sets for each model that `c.models` lists; [{}] where it lists none."""
    return [{"init_from": init_from, "models": ()} for init_from in c.models] or [{}]


def of_another(c: ml_collections.ConfigDict, init_from: str) -> ml_collections.ConfigDict:
    """A copy of the config that opens another model, with that one's own tokenizer and without a draft model."""
    own = ml_collections.ConfigDict(c.to_dict())
    own.update(init_from=init_from, tokenizer="", draft_from="")
    own.engine.num_draft = 0
    return own


def check_models(c: ml_collections.ConfigDict) -> None:
    """Refuse a list of models where one is measured."""
    if c.models:
        raise InputError(f"models={tuple(c.models)} is what --sweep goes over; give --sweep, or one model as init_from")


def check_engine(c: ml_collections.ConfigDict) -> None:
    """Refuse sizes and types of an engine that cannot be, whatever model it reads."""
    if c.dtype is not None:
        errors.one_of("dtype", c.dtype, language_model.COMPUTE_DTYPES, hint="None takes the machine's own")
    for name, least in LEAST.items():
        errors.within(f"[{least}, inf)", **{f"engine.{name}": c.engine[name]})
    programs.check_sizes(**{name: c.engine[name] for name in LEAST if name != "num_steps"})
    for name in ("weights_dtype", "cache_dtype"):
        errors.one_of(f"engine.{name}", c.engine[name], ("", "int8"))
    errors.one_of("engine.attention", c.engine.attention, kernels.KERNELS)


def check_room(c: ml_collections.ConfigDict) -> None:
    """Refuse answers as long as all that the engine holds of one prompt."""
    if c.max_new_tokens >= c.engine.max_len:
        raise InputError(
            f"max_new_tokens={c.max_new_tokens} leaves no room for a prompt in engine.max_len={c.engine.max_len}, "
            "which counts both; set a larger one"
        )


def _check_init_from(name: str, value: str) -> None:
    if name == "init_from" and value in OWN:
        return
    if value == SMOL and errors.files_needed() and not pathlib.Path(SMOL.removeprefix("hf:")).is_dir():
        raise InputError(f"{name}={value!r}: the model is not there; run: make models")
    kind, _, place = value.partition(":")
    if kind not in KINDS or not place:
        own = f", {', '.join(OWN[:-1])} or {OWN[-1]}" if name == "init_from" else ""
        raise InputError(f"{name}={value!r} must be hf:<folder or hub id>, run:<workdir>, gguf:<file>{own}")
    language_model.check_init_from(value)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that answers.

    Attributes:
        params: None until `with_weights`.
        init_from: where the weights lie.
        name: for people and for the `model` field of what it writes.
        digest: of the weights and of the types of weights and cache; what is stored of its answers carries it. It is ""
            until `with_weights`.
        pieces: the bytes of every token.
        drops_first_space: whether a text that stands alone begins without the space of its first token.
        draft: the guessing model and its parameters.
    """

    network: decoder.DecoderLM
    tok: tokenizer.Tokenizer
    init_from: str
    name: str
    pieces: list[bytes]
    drops_first_space: bool
    mesh: Mesh
    params: Any = None
    digest: str = ""
    draft: tuple[decoder.DecoderLM, Any] | None = None

    def text(self, raw: bytes, *, is_alone: bool) -> str:
        """An answer's bytes as text; `is_alone`: it is a turn of a chat and not the rest of its prompt."""
        raw = raw.removeprefix(b" ") if is_alone and self.drops_first_space else raw
        return raw.decode("utf-8", "replace")


def load(c: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> Model:
    """The model of a config with its weights."""
    return with_weights(open_model(c, workdir), c)


def open_model(c: ml_collections.ConfigDict, workdir: str | pathlib.Path, *, toy_seed: int = 0) -> Model:
    """The model of a config without its weights, for what is to be refused before they are read.

    A toy is trained first, in `workdir/toy`, unless an earlier start has done so.

    Args:
        toy_seed: of a toy's first weights and of the order of what it learns from.
    """
    if jax.process_count() > 1:
        raise InputError("a decoder runs in one process: start it without --distributed, on one host for each model")
    mesh = _mesh(c.mesh.tensor)
    dtype = c.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype == "bfloat16" and jax.default_backend() == "cpu":
        print("dtype=bfloat16 is slow on a CPU, which has no arithmetic for it; float32 is faster", flush=True)
    network.check_dtypes(c.engine.weights_dtype, c.engine.cache_dtype)
    init_from = c.init_from
    if init_from in TOYS:
        init_from = f"run:{train_toy(pathlib.Path(workdir) / 'toy', TOYS[init_from], seed=toy_seed)}"
    tok = tokenizer.load(c.tokenizer or ("bytes" if init_from == RANDOM else language_model.tokenizer_of(init_from)))
    table = pieces.pieces(tok)
    net = network_of(init_from, tok, dtype)
    _check_attention(c, [net, *([network_of(c.draft_from, tok, dtype)] if c.draft_from else [])], mesh)
    return Model(
        network=net,
        tok=tok,
        init_from=init_from,
        name=c.init_from,
        pieces=table,
        drops_first_space=pieces.drops_first_space(tok, table),
        mesh=mesh,
    )


def _check_attention(c, networks, mesh):
    """Refuse a kernel that is asked for by name where it cannot run or is wrong."""
    if c.engine.attention == "auto":
        return  # the engine chooses, and takes another where it has to
    needs = {name: c.engine[name] for name in ("block", "chunk", "num_draft", "cache_dtype")}
    max_len = -(-(c.engine.max_len + c.engine.num_draft) // c.engine.chunk) * c.engine.chunk
    needs |= dict(num_rows=c.engine.num_slots, max_len=max_len, num_devices=mesh.size)
    kernels.refuse(c.engine.attention, networks, **needs)


def with_weights(model: Model, c: ml_collections.ConfigDict) -> Model:
    """The model of `open_model` with its parameters, and those of the one that guesses."""
    draft = None
    if c.draft_from:
        guesser = network_of(c.draft_from, model.tok, model.network.dtype)
        draft = guesser, params_of(c.draft_from, guesser, model.mesh)
    params = params_of(model.init_from, model.network, model.mesh)
    numerics = f"{model.network.dtype} {c.engine.weights_dtype} {c.engine.cache_dtype}"
    return dataclasses.replace(model, params=params, digest=_digest(model.init_from, numerics), draft=draft)


def engine(model: Model, c: ml_collections.ConfigDict, **options: Any) -> engines.Engine:
    """The engine of `c.engine` for this model, with `c.engine.max_len` tokens for a row whatever is guessed ahead.

    Args:
        options: more of `Engine`'s arguments.
    """
    sizes = {**c.engine, "max_len": c.engine.max_len + c.engine.num_draft}
    known = {
        "pieces": model.pieces,
        "num_ids": model.tok.vocab_size,
        "stop_ids": model.tok.stop_ids,
        "draft": model.draft,
    }
    return engines.Engine(model.network, model.params, **{**sizes, **known, **options})


def one_device() -> Mesh:
    """A mesh for small models that are trained here."""
    return _mesh(1)


def _mesh(tensor: int) -> Mesh:
    """The first `tensor` devices. The others stay idle: rows are not split, and copies would compute the same."""
    devices = jax.devices()
    num = len(devices) if tensor == -1 else tensor
    if not 1 <= num <= len(devices):
        raise InputError(f"mesh.tensor={tensor} and there are {len(devices)} devices; -1 takes all")
    return Mesh(np.array(devices[:num]).reshape(1, 1, num), sharding.AXES)


def network_of(init_from: str, tok: tokenizer.Tokenizer, dtype: str) -> decoder.DecoderLM:
    """The network of a checkpoint, as decoding computes it."""
    is_random = init_from == RANDOM
    options = dict(model=RANDOM_SIZES if is_random else {}, compute=_compute(dtype), rows_are_plain=True)
    return language_model.build("" if is_random else init_from, tok, **options)


def params_of(init_from: str, net: decoder.DecoderLM, mesh: Mesh) -> Any:
    """Parameters in the type of the arithmetic: decoding, unlike training, needs no wider copy."""
    if init_from == RANDOM:
        return train_state.draw(net, 0, mesh)
    if init_from.startswith("run:"):
        return language_model.params(init_from, net, mesh)
    shardings = train_state.param_shardings(net, jnp.zeros((1, 4), jnp.int32), mesh)
    return huggingface.load(huggingface.resolve(init_from), net, shardings=shardings, dtype=net.dtype)


def _compute(dtype: str) -> dict[str, Any]:
    return dict(dtype=dtype, remat="none", attention="blocked", unroll=1)


def _digest(init_from: str, numerics: str) -> str:
    content = json.dumps(RANDOM_SIZES) if init_from == RANDOM else language_model.digest(init_from)
    return hashlib.sha256(f"{content} {numerics}".encode()).hexdigest()[:16]


def settings_digest(model: Model) -> str:
    """A hash of what its answers depend on beside weights: the network's settings, tokenizer, template, stop tokens."""
    content = hashlib.sha256(f"{model.network!r} {model.tok.stop_ids}".encode())
    for name, value in sorted(model.tok.files.items()):
        content.update(name.encode() + value)
    return content.hexdigest()[:16]


def context_of(init_from: str) -> int | None:
    """The tokens that a checkpoint was made to read; None where it does not say."""
    if init_from.partition(":")[0] not in ("hf", "gguf"):
        return None
    return huggingface.read_config(huggingface.resolve(init_from)).get("max_position_embeddings")


def warn_of_length(model: Model, max_len: int) -> None:
    """Say where rows may become longer than what the checkpoint was made for."""
    longest = context_of(model.init_from)
    if longest and longest < max_len:
        print(
            f"engine.max_len={max_len} is longer than the checkpoint's context of {longest} tokens, beyond which "
            "answers get worse",
            flush=True,
        )


def train_toy(
    folder: pathlib.Path, path: str = TOYS[TOY], tok: tokenizer.Tokenizer | None = None, *, seed: int = 0
) -> pathlib.Path:
    """A small model that answers as embedded conversations do: a minute on two cores.

    A finished or a killed training in `folder` is taken up where it ended.

    Args:
        tok: its tokenizer; None: bytes, or for some toys one that is learned from their words.
        seed: of its first weights and of the order of the conversations.
    """
    if loop.latest_step(folder) == TOY_STEPS:
        return folder
    tok = tok or _toy_tokenizer(folder, path)
    options = dict(max_len=TOY_LENGTHS.get(path, 256), limit=4_000, heldout_fraction=0.01)
    *splits, _ = text.load(kind="answers", path=path, tokenizer=tok, **options)
    net = language_model.build(
        "", tok, model=TOY_SIZES, compute=_compute("float32") | dict(unroll=2), rows_are_plain=False, workdir=folder
    )
    text_training.fit(
        net,
        None,
        splits,
        one_device(),
        folder,
        tx=optimizer.adamw(peak_lr=3e-3, warmup_steps=TOY_STEPS // 10, total_steps=TOY_STEPS),
        seed=seed,
        steps=TOY_STEPS,
        batch_size=16,
        pace=loop.Pace(save_every=50),
        logging=loop.Logging(sinks=()),
    )
    return folder


def _toy_tokenizer(folder: pathlib.Path, path: str) -> tokenizer.Tokenizer:
    """Bytes, or byte pairs of the toy's own words, which stay in its folder."""
    if path not in LEARNED:
        return tokenizer.load("bytes")
    num, paths = LEARNED[path]
    file = folder / "learned/tokenizer.json"
    if not file.is_file():
        rows = [row for one in paths for row in text_formats.EMBEDDED[one.partition(":")[2]](4_000, 0)]
        turns = (f"{turn['role'].capitalize()}: {turn['content']}" for row in rows for turn in row["messages"])
        files.write_text(file, learning.byte_pairs(turns, num))
    return tokenizer.load(str(file))
