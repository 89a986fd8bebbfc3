"""Log-probabilities of a preference run's answers under the policy that it starts from, stored once in its workdir."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from alignment import files
from alignment.errors import InputError
from alignment.models import decoder
from alignment.preference import pairs
from alignment.train import sharding
from data.texts import preferences


def stored(
    model: decoder.DecoderLM,
    params: Any,
    split: preferences.Pairs,
    mesh: Mesh,
    path: pathlib.Path,
    made_from: Mapping[str, str],
    *,
    batch_size: int,
    layout: str,
) -> np.ndarray:
    """Log-probabilities [n,2,R] of a split's answers under the untouched policy: computed once, stored in `path`.

    Args:
        params: the untouched policy's.
        made_from: digests of what it began with.
        batch_size: pairs over all hosts.
        layout: of the rows; see `preferences.batches`.
    """
    _, num_answer = preferences.shape(split, layout=layout)
    if not len(split):  # nothing is held out
        return np.zeros((0, 2, num_answer), np.float32)
    made_from = {"pairs": split.digest, **made_from}
    if path.is_file():
        return read(path, (len(split), 2, num_answer), made_from)
    batches = preferences.batches(
        split, batch_size=batch_size, layout=layout, endless=False, **sharding.row_share(mesh)
    )
    print(f"reference log-probabilities of the {len(split)} {path.stem} pairs", flush=True)
    scores = pairs.score(model, params, batches, len(split), num_answer, mesh)
    files.write_json(path.with_suffix(".json"), made_from)  # first: scores without it would not be checked
    files.write(path, lambda f: np.save(f, scores, allow_pickle=False))
    return scores


def read(path: pathlib.Path, shape: tuple[int, int, int], made_from: Mapping[str, str]) -> np.ndarray:
    """The log-probabilities that an earlier start of this run stored.

    Args:
        made_from: digests of the pairs and of the weights as they are now. Runs begun before there were digests have
            none beside the file; of these the shape alone is checked.

    Raises:
        InputError: the file is damaged, or pairs or weights have changed since.
    """
    beside = path.with_suffix(".json")
    earlier = json.loads(beside.read_text()) if beside.is_file() else made_from
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
