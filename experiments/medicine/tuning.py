"""Stages that train: supervised tuning on conversations, and DPO; each leaves export/hf in a folder of its own."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from jax.sharding import Mesh
from ml_collections import config_dict

from alignment import files
from alignment.errors import InputError, within
from alignment.train import language_model, loop, optimizer, sharding
from data.texts import text
from data.tokens import tokenizer
from experiments.decoding import models
from experiments.launch import groups, planning, text_training
from experiments.safety import tuning

Numbers = Mapping[str, float]


def settings() -> dict[str, Any]:
    """The group of a config for supervised tuning."""
    return dict(
        epochs=4.0,  # passes over the rows
        batch_size=128,  # rows over all hosts; conversations are packed into rows
        accumulate=1,  # parts that a batch is taken in
        max_len=4_096,  # tokens of a row
        peak_lr=2e-5,
        warmup=0.03,  # share of the steps
        schedule="cosine",
    )


def check(name: str, s: ml_collections.ConfigDict) -> None:
    """Refuse a group of `settings` that cannot be; `name`: of the group in the config."""
    within("(0, inf)", **{f"{name}.epochs": s.epochs})
    within("[0, 1)", **{f"{name}.warmup": s.warmup})
    if s.max_len < 2:
        raise InputError(f"{name}.max_len={s.max_len}; a row needs at least 2 tokens")
    _adamw(s, 10)


def _adamw(s: ml_collections.ConfigDict, steps: int) -> Any:
    rate = dict(peak_lr=s.peak_lr, schedule=s.schedule, warmup_steps=round(s.warmup * steps), total_steps=steps)
    return optimizer.adamw(**rate, clip_norm=1.0, weight_decay=0.0)


def plan(
    s: ml_collections.ConfigDict, init_from: str, compute: Mapping[str, Any], wanted: planning.Wanted
) -> planning.Training:
    """Supervised tuning for the launcher's `--plan`; how many steps its conversations make is not known yet."""
    return planning.rows(
        "supervised tuning",
        wanted.checkpoint(init_from, compute, rows_are_plain=False),
        tx=_adamw(s, 1),
        batch_size=s.batch_size,
        max_len=s.max_len,
        steps=None,
        accumulate=s.accumulate,
        accumulate_key="sft.accumulate",
    )


@dataclasses.dataclass(frozen=True)
class Places:
    """What all stages of a run share: the devices, how a network is computed and exported, the seed."""

    mesh: Mesh
    compute: Mapping[str, Any]
    export: str
    seed: int
    save_every: int


def finished(folder: pathlib.Path, made_from: Mapping[str, Any]) -> Numbers | None:
    """The numbers of a stage that an earlier start has ended; None where it is to be done, or to go on with.

    Raises:
        InputError: the folder was made from something else.
    """
    note = folder / "made_from.json"
    wanted = json.loads(json.dumps(made_from))
    if note.is_file() and files.read_note(note) != wanted:
        raise InputError(
            f"{folder} was made from other data, weights or settings than this run has now. Put them back as they "
            "were, or start over in another --workdir"
        )
    if not note.is_file():
        files.write_json(note, wanted)
    numbers = folder / "numbers.json"
    return files.read_note(numbers) if numbers.is_file() else None


def supervised(
    folder: pathlib.Path,
    source: str | Sequence[Mapping[str, Any]],
    init_from: str,
    tokenizer_from: str,
    s: ml_collections.ConfigDict,
    places: Places,
    *,
    model: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> Numbers:
    """Tune on the assistant's tokens of conversations, several packed into a row; returns what training cost.

    Args:
        source: a file of conversations, or records of `messages`, which are left in the folder.
        init_from: hf: or run:; "" for a network from nothing of the sizes `model`.
        tokenizer_from: see `tokenizer.load`.
        limit: conversations of a file; None takes all.
    """
    path = folder / "conversations.jsonl"
    if isinstance(source, str):
        path = pathlib.Path(source)
    else:
        files.write_rows(path, source)
    tok = tokenizer.load(tokenizer_from)
    *splits, counts = text.load(
        kind="answers",
        path=str(path),
        tokenizer=tok,
        max_len=s.max_len,
        heldout_fraction=0.0,
        limit=limit,
        seed=places.seed,
        bad_records_path=str(folder / "bad_records.jsonl"),
    )
    made_from = {"init": language_model.digest(init_from), "rows": splits[0].digest, "settings": s.to_dict()}
    if (numbers := finished(folder, made_from | {"seed": places.seed})) is not None:
        return numbers
    files.report_counts(folder, counts)
    sharding.check_batch(s.batch_size, places.mesh, s.accumulate)
    net = language_model.build(
        init_from,
        tok,
        model=model or {},
        compute=places.compute,
        rows_are_plain=False,
        export=places.export,
        workdir=folder,
    )
    params = None if loop.latest_step(folder) is not None else language_model.params(init_from, net, places.mesh)
    steps = max(1, round(len(splits[0]) * s.epochs / s.batch_size))
    state, summary = text_training.fit(
        net,
        params,
        splits,
        places.mesh,
        folder,
        tx=_adamw(s, steps),
        seed=places.seed,
        steps=steps,
        batch_size=s.batch_size,
        accumulate=s.accumulate,
        pace=loop.Pace(log_every=max(1, steps // 20), save_every=places.save_every),
        logging=loop.Logging(sinks=(), label=folder.name),
    )
    language_model.export(folder / "export/hf", state.params, net, tok, dtype=places.export, init_from=init_from)
    return _note(folder, summary, steps, s.batch_size, "rows_per_second")


def _note(folder: pathlib.Path, summary: Numbers, steps: int, batch_size: int, speed: str) -> Numbers:
    """numbers.json, which says that the stage has ended."""
    numbers = {"steps": float(steps)}
    if summary.get(speed):
        numbers["seconds"] = steps * batch_size / summary[speed]
    files.write_json(folder / "numbers.json", numbers)
    return numbers


def dpo_settings(**changes: Any) -> dict[str, Any]:
    """The group of a config for a stage of DPO."""
    return dict(
        path="",  # pairs; "" leaves the stage out
        limit=config_dict.placeholder(int),  # pairs, drawn by seed; None takes all
    ) | {**tuning.settings(), **changes}


def stage_config(
    c: ml_collections.ConfigDict, group: ml_collections.ConfigDict, init_from: str
) -> ml_collections.ConfigDict:
    """The config of `experiments.safety.tuning` for one stage of DPO."""
    return ml_collections.ConfigDict(
        dict(
            seed=c.seed,
            init_from=init_from,
            tokenizer="",
            draft_from="",
            dtype=c.dtype,
            mesh=c.mesh.to_dict(),
            engine=c.engine.to_dict(),
            tuning=group.to_dict(),
            adapter=groups.adapter(),
            compute=c.compute.to_dict(),
            loop=groups.loop(log_every=1, save_every=c.save_every, eval_every=0),
            sinks=(),
            export=c.export,
        )
    )


def preferences(
    c: ml_collections.ConfigDict,
    group: ml_collections.ConfigDict,
    folder: pathlib.Path,
    start: pathlib.Path,
    pairs: Sequence[Mapping[str, Any]],
) -> Numbers:
    """A stage of DPO from a checkpoint folder, whose weights are the reference; returns what training cost.

    Args:
        pairs: rows of `uuid`, `prompt`, `chosen`, `rejected`.
    """
    init_from = f"hf:{start}"
    files.write_rows(folder / "pairs.jsonl", pairs)
    digest = language_model.digest(init_from)
    made_from = {"init": digest, "pairs": list(map(dict, pairs)), "settings": group.to_dict(), "seed": c.seed}
    if (numbers := finished(folder, made_from)) is not None:
        return numbers
    own = stage_config(c, group, init_from)
    target = models.load(own, folder)
    counts: dict[str, int] = {}
    done = tuning.align(own, target, folder / "pairs.jsonl", folder, counts)
    return _note(folder, done.summary, done.num_steps, done.batch_size, "pairs_per_second")
