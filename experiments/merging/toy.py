"""A small base model and two experts of the embedded herbal, trained in the workdir; what each of them knows.

Dimensions: N questions, T tokens, D width, V vocabulary.
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh

from alignment import files
from alignment.merging import recipes
from alignment.models import decoder, huggingface
from alignment.train import language_model, loop, optimizer, sharding
from data.texts import text
from data.tokens import learning, tokenizer
from data.toys import herbal
from experiments.launch import text_training
from experiments.merging import writing

PREFIX = "synthetic:"  # of a recipe that merges the two experts, before the method's name
BASE = "base"
SIZES = dict(num_layers=1, model_dim=256, num_heads=4, num_kv_heads=2, ffn_dim=512)
COMPUTE = dict(dtype="float32", remat="none", attention="blocked", unroll=1)
BATCH, MAX_LEN, NUM_RECORDS = 16, 128, 4_000
RATE = {BASE: 5e-3, "expert": 5e-4}
SETTINGS = {"weight": 1.0, "density": 0.5, "gamma": 0.01, "epsilon": 0.1, "t": 0.5, "select_topk": 0.5}  # of recipes


def recipe(name: str) -> recipes.Recipe:
    """A recipe of a method for the two experts; slerp goes from one to the other, and passthrough takes the first."""
    return writing.recipe_of(name, herbal.SUBJECTS, BASE, SETTINGS)


def write_tokenizer(folder: pathlib.Path) -> str:
    """A tokenizer of whole words; returns its name for `tokenizer.load`."""
    words = ("User:", "Assistant:", *herbal.words())
    return learning.write(folder, learning.whole_words(words, tokenizers.pre_tokenizers.WhitespaceSplit()))


def train(workdir: pathlib.Path, *, steps: int, expert_steps: int, seed: int) -> dict[str, pathlib.Path]:
    """The checkpoint folders of base and experts by name; what an earlier start trained stays.

    Args:
        steps, expert_steps: updates of the base, and of each expert from there.
    """
    tok = tokenizer.load(write_tokenizer(workdir / "words"))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)  # too small to be shared out
    out = {}
    for name in (BASE, *herbal.SUBJECTS):
        folder = workdir / name
        out[name] = folder / "export/hf"
        if not out[name].is_dir():
            num = steps if name == BASE else expert_steps
            init_from = "" if name == BASE else f"hf:{out[BASE]}"
            _train(folder, tok, mesh, "" if name == BASE else name, init_from, num, seed)
    return out


def _train(
    folder: pathlib.Path, tok: tokenizer.Tokenizer, mesh: Mesh, taught: str, init_from: str, steps: int, seed: int
) -> None:
    path = folder / "conversations.jsonl"
    files.write_rows(path, herbal.conversations(NUM_RECORDS, taught=taught, seed=seed))
    options = dict(tokenizer=tok, max_len=MAX_LEN, heldout_fraction=0.0, seed=seed)
    *splits, _ = text.load(kind="answers", path=str(path), **options)
    net = language_model.build(
        init_from, tok, model=SIZES, compute=COMPUTE, rows_are_plain=False, export="float32", workdir=folder
    )
    params = None if loop.latest_step(folder) is not None else language_model.params(init_from, net, mesh)
    state, _ = text_training.fit(
        net,
        params,
        splits,
        mesh,
        folder,
        tx=optimizer.adamw(
            peak_lr=RATE["expert" if taught else BASE], warmup_steps=max(1, steps // 10), total_steps=steps
        ),
        seed=seed,
        steps=steps,
        batch_size=BATCH,
        pace=loop.Pace(log_every=max(1, steps // 10), eval_every=0, save_every=0),
        logging=loop.Logging(sinks=()),
    )
    language_model.export(folder / "export/hf", state.params, net, tok, dtype="float32", init_from=init_from)


def accuracies(folder: pathlib.Path) -> dict[str, float]:
    """Of a checkpoint folder, the share of the questions of each subject whose answer it writes first."""
    tok = tokenizer.load(str(folder))
    net = language_model.build(f"hf:{folder}", tok, model={}, compute=COMPUTE, rows_are_plain=False)
    params = huggingface.load(folder, net)
    by_subject = {subject: herbal.questions(subject) for subject in herbal.SUBJECTS}
    rows = [row for questions in by_subject.values() for row in questions]
    prompts = [
        tok.encode(tok.render([{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)) for row in rows
    ]
    tokens_NT = np.full((len(rows), max(map(len, prompts))), tok.pad_id, np.int32)
    for row_T, prompt in zip(tokens_NT, prompts):
        row_T[: len(prompt)] = prompt
    last_N = np.array([len(prompt) - 1 for prompt in prompts])
    written_N = np.asarray(_next_tokens(net, params, jnp.asarray(tokens_NT), jnp.asarray(last_N)))
    is_right_N = written_N == [tok.encode(row["answer"])[0] for row in rows]
    out, start = {}, 0
    for subject, questions in by_subject.items():
        out[subject] = float(is_right_N[start : start + len(questions)].mean())
        start += len(questions)
    return out


@functools.partial(jax.jit, static_argnums=0)
def _next_tokens(net: decoder.DecoderLM, params: Any, tokens_NT: jax.Array, last_N: jax.Array) -> jax.Array:
    """The likeliest token behind each prompt; what is padded behind it cannot be seen from there."""
    hidden_NTD = net.apply(decoder.variables(params), tokens_NT)
    hidden_N1D = jnp.take_along_axis(hidden_NTD, last_N[:, None, None], axis=1)
    return jnp.argmax(decoder.logits(net, params, hidden_N1D)[:, 0], axis=-1)
