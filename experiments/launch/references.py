"""Log-probabilities of a preference run's answers under the policy that it starts from.

A run keeps them in its workdir, so that it goes on with the same numbers however often it is started. Runs may share a
store besides, from which each takes what another has computed.
"""

import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from alignment import files
from alignment.errors import InputError
from alignment.models import attention, decoder
from alignment.preference import pairs, reference_store
from alignment.train import sharding
from data import loader
from data.texts import preferences, strands, trees

LAYOUT = (trees, strands, sys.modules[__name__])  # the modules that place answers in rows


def stored(
    model: decoder.DecoderLM,
    params: Any,
    split: preferences.Pairs,
    mesh: Mesh,
    path: pathlib.Path,
    made_from: Mapping[str, str],
    *,
    batch_size: int,
    folder: str | pathlib.Path = "",
) -> np.ndarray:
    """Log-probabilities [n,2,R] of a split's answers under the untouched policy, which stay in `path` for this run.

    Args:
        params: the untouched policy's.
        made_from: digests of what it began with.
        batch_size: pairs over all hosts; sizes the batches.
        folder: of a `reference_store`, which other runs share: answers that it has are not computed; "" has none.
    """
    num_answer = preferences.round_up(split.limits["answer"])
    if not len(split):  # nothing is held out
        return np.zeros((0, 2, num_answer), np.float32)
    made_from = {"pairs": split.digest, **made_from}
    if path.is_file():
        return read(path, (len(split), 2, num_answer), made_from)
    sides = [split.sides(i) for i in range(len(split))]
    answers = {answer.key: answer for pair in sides for answer in pair}
    logps = dict(zip(answers, _of(model, params, list(answers.values()), mesh, split, path.stem, batch_size, folder)))
    scores = np.zeros((len(split), 2, num_answer), np.float32)
    for i, pair in enumerate(sides):
        for p, answer in enumerate(pair):
            scores[i, p, : len(answer.ids) - answer.prompt_len] = logps[answer.key]
    files.write_json(path.with_suffix(".json"), made_from)  # first: scores without it would not be checked
    files.write(path, lambda f: np.save(f, scores, allow_pickle=False))
    return scores


def folder_of(workdir: pathlib.Path, wanted: str) -> str:
    """Where runs share their references: the folder that a config names, or else that of the sweep that this run is in.

    "" where there is neither.
    """
    if wanted or not (workdir.parent / "sweep.json").is_file():
        return wanted
    return str(workdir.parent / "references")


def _of(
    model: decoder.DecoderLM,
    params: Any,
    answers: Sequence[trees.Answer],
    mesh: Mesh,
    split: preferences.Pairs,
    name: str,
    batch_size: int,
    folder: str | pathlib.Path,
) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each answer, from the store where it has them."""
    store = reference_store.Store(folder, reference_store.made_from(model, params, mesh, LAYOUT)) if folder else None
    keys = [reference_store.key(*answer) for answer in answers] if store else []
    lengths = [len(answer.ids) - answer.prompt_len for answer in answers]
    known = _agreed(store.read(keys), lengths) if store else [None] * len(answers)
    missing = [i for i, logps in enumerate(known) if logps is None]
    where = f", {len(answers) - len(missing)} of them from {folder}" if folder else ""
    print(f"reference log-probabilities of {len(answers)} answers of the {len(split)} {name} pairs{where}", flush=True)
    if missing:
        batches = _batches(model, [answers[i] for i in missing], mesh, batch_size, split.pad_id)
        computed = pairs.score_answers(model, params, batches, [lengths[i] for i in missing], mesh)
        if store:
            store.write([keys[i] for i in missing], computed)
        known = [*known]
        for i, logps in zip(missing, computed):
            known[i] = logps
    return [logps for logps in known if logps is not None]


def _agreed(known: Sequence[np.ndarray | None], lengths: Sequence[int]) -> list[np.ndarray | None]:
    """What the first process has read, on every process.

    Another run may write between two processes' reads. Those would then compute different batches, and wait for each
    other for ever.
    """
    if jax.process_count() == 1:
        return list(known)
    is_known = np.array([logps is not None for logps in known])
    flat = [np.zeros(n, np.float32) if logps is None else logps for logps, n in zip(known, lengths)]
    is_known, values = multihost_utils.broadcast_one_to_all((is_known, np.concatenate(flat)))
    parts = np.split(np.asarray(values), np.cumsum(lengths)[:-1])
    return [part if one else None for part, one in zip(parts, np.asarray(is_known))]


def _batches(
    model: decoder.DecoderLM, answers: Sequence[trees.Answer], mesh: Mesh, batch_size: int, pad_id: int
) -> Iterator[tuple[dict[str, np.ndarray], list[list[int]]]]:
    """Batches of about `2 batch_size` answers, as prefix trees where the attention kernel takes these."""
    num_devices = math.prod(mesh.shape[axis] for axis in sharding.ROWS[0])
    longest, mean = (int(fn([len(answer.ids) for answer in answers])) for fn in (np.max, np.mean))
    if attention.takes_trees(model.attention):
        num_rows, num_places = num_devices, max(longest, 2 * batch_size * mean // num_devices)
    else:  # a row each: the fused kernel takes nothing else, and the dense one has all scores in memory
        num_rows, num_places = -(-2 * batch_size // num_devices) * num_devices, 0
    mine = loader.share(num_rows, **sharding.row_share(mesh))
    options = dict(num_places=num_places, num_rows=num_rows, pad_id=pad_id, expand=expand_for(model))
    for batch, numbers in trees.scoring_batches(answers, **options):
        if not num_places:
            batch["groups"] = (batch.pop("ends") > 0).astype(np.int32)
            batch["branches"] = np.zeros_like(batch["groups"])
            del batch["owners"]
        yield {key: values[mine] for key, values in batch.items()}, numbers


def expand_for(model: decoder.DecoderLM) -> str:
    """How the rows' strands stand beside them for the network's kernel (`trees.EXPANDS`); "" where it reads none."""
    if model.attention not in attention.EXPANDED:
        return ""
    return "single" if model.attention == "expanded_cudnn" else "packed"


def read(path: pathlib.Path, shape: tuple[int, int, int], made_from: Mapping[str, str]) -> np.ndarray:
    """The log-probabilities that an earlier start of this run stored.

    Args:
        made_from: digests of the pairs and of the weights as they are now. Runs begun before there were digests have
            none beside the file; of these the shape alone is checked.

    Raises:
        InputError: the file is damaged, or pairs or weights have changed since.
    """
    beside = path.with_suffix(".json")
    earlier = files.read_note(beside) if beside.is_file() else made_from
    if changed := [name for name, digest in made_from.items() if earlier.get(name) != digest]:
        raise InputError(
            f"{path} was computed from other {' and '.join(changed)} than this run has now. Put them back as they "
            "were, or start over in another --workdir"
        )
    try:
        scores = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as e:
        raise InputError(f"{path} is damaged ({e}); remove it, and it is computed again") from e
    if scores.shape != shape or not np.isfinite(scores).all():
        what = f"has shape {scores.shape}" if scores.shape != shape else "holds numbers that are not finite"
        raise InputError(
            f"{path} {what}, and the pairs of {path.stem} need {shape}: were the data changed since this run began? "
            "Put them back, or start over in another --workdir; if the file alone is wrong, remove it"
        )
    return scores
