"""The first phase of a run, such as a pretraining, which the points of a sweep train once where they begin alike.

A phase has a folder in the workdir, with metrics and checkpoints of its own. The first point to finish it leaves a copy
in the sweep's folder, `phases/DIGEST`, named for everything that the phase depends on; a point that comes later takes
the copy into its own workdir and goes on from there without a step. Its checkpoints and metrics are those that it would
have made itself. TensorBoard's events are not copied, because they hold the config of their run.
"""

import json
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import xxhash
from jax.sharding import Mesh

from alignment import files, programs
from alignment.models import decoder
from alignment.preference import reference_store
from alignment.train import language_model, loop, next_token, optimizer, sharding, step, train_state
from data import loader
from data.texts import packing, preferences, text
from data.tokens import tokenizer
from experiments.launch import text_training

NOTE = "made_from.json"
OF_ONE_RUN = ("events.out.tfevents.*", "run_id")  # which name the run to TensorBoard and to trackers
TRAINING = (loop, next_token, optimizer, programs, sharding, step, train_state, loader, packing, text, text_training)


def pretrain(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    splits: tuple[preferences.Pairs, preferences.Pairs],
    mesh: Mesh,
    workdir: pathlib.Path,
) -> Any:
    """Language modelling from nothing on the texts of the pairs, both answers alike, so that DPO has a policy.

    Args:
        splits: pairs to train on, and held-out ones.
        workdir: of the phase, in that of the run.

    Returns:
        The parameters after `c.pretrain.steps` steps.
    """
    if model.attention not in ("blocked", "dense"):  # it takes other rows than these, which pack texts
        model = model.clone(attention="blocked")
    options = dict(c.pretrain)
    made_from = {
        "pairs": [split.digest for split in splits],
        "options": {**options, "pad_id": tok.pad_id, "save_every": c.loop.save_every},
        "seed": c.seed,
        **_numerics(model, mesh),
    }
    _take(workdir, made_from)
    steps, batch_size, max_len = (options.pop(name) for name in ("steps", "batch_size", "max_len"))
    if c.adapter.rank or c.adapter.init_from:  # a later run finds the adapter's base here
        language_model.leave(workdir, model, tok)
    state, _ = text_training.fit(
        model,
        None,
        [text_training.both_answers([split], max_len=max_len, pad_id=tok.pad_id) for split in splits],
        mesh,
        workdir,
        tx=optimizer.adamw(**options, total_steps=steps),
        seed=c.seed,
        steps=steps,
        batch_size=batch_size,
        pace=loop.Pace(log_every=max(steps // 20, 1), save_every=c.loop.save_every),
        logging=loop.Logging(sinks=c.sinks, label="pretrain"),
    )
    _leave(workdir, made_from)
    return state.params


def _take(workdir: pathlib.Path, made_from: Mapping[str, Any]) -> bool:
    """Put the phase that another point of the sweep has finished into `workdir`; whether there was one.

    A phase that this run has begun stays. A run of several processes trains its own: they would have to wait for each
    other around the copy.

    Args:
        workdir: of the phase, in the workdir of the run.
        made_from: all that the phase's result depends on, as JSON can hold it.
    """
    place = _place(workdir, made_from)
    if place is None or workdir.exists() or not place.is_dir():
        return False
    with files.replacing_folder(workdir) as unfinished:
        shutil.copytree(place, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(NOTE))
    print(f"{workdir.name}: another point of the sweep has trained it already ({place})", flush=True)
    return True


def _leave(workdir: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    """Leave a copy of a finished phase for the other points of the sweep, where there is none yet.

    Two points that finish at the same time write the same numbers, of which one stays.
    """
    place = _place(workdir, made_from)
    if place is None or place.exists():
        return
    try:
        with files.replacing_folder(place) as unfinished:
            shutil.copytree(workdir, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*OF_ONE_RUN))
            files.write_json(unfinished / NOTE, dict(made_from))
    except OSError:
        if not place.is_dir():  # otherwise another point has put its copy there in the meantime
            raise


def _numerics(model: decoder.DecoderLM, mesh: Mesh) -> dict[str, Any]:
    """What the numbers of a training depend on beside its data, options and first weights."""
    kept = {"remat": model.remat, "unroll": model.unroll, "whole mesh": dict(mesh.shape)}
    return reference_store.numerics(model, mesh, (*TRAINING, sys.modules[__name__])) | kept


def _place(workdir: pathlib.Path, made_from: Mapping[str, Any]) -> pathlib.Path | None:
    """The folder of the copy; None outside a sweep."""
    sweep = workdir.absolute().parent.parent
    if jax.process_count() > 1 or not (sweep / "sweep.json").is_file():
        return None
    note = json.dumps(made_from, sort_keys=True)
    return sweep / "phases" / xxhash.xxh3_128(note.encode()).hexdigest()
