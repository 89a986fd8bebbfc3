"""What the points of a sweep in one process make once and share: data that was read and tokenised.

Outside `shared` nothing is kept, so that a run of its own frees what it no longer needs. A file that changes while the
process runs is not read again.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from alignment import files
from experiments.launch import workdir as workdirs

_kept: dict[str, tuple[str, Any]] | None = None


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Keep the last value of each name within the context."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def made(name: str, made_from: Mapping[str, Any], make_fn: Callable[[], Any]) -> Any:
    """What `make_fn` gives, or has given under this name for an equal `made_from`; nobody may change it."""
    if _kept is None:
        return make_fn()
    key = json.dumps(workdirs.plain(made_from), sort_keys=True)
    if name not in _kept or _kept[name][0] != key:
        _kept.pop(name, None)  # first: two sets of data may not fit into memory
        _kept[name] = key, make_fn()
    return _kept[name][1]


def load_pairs(c: ml_collections.ConfigDict, tok: Any, workdir: pathlib.Path, *, unpair: bool) -> tuple[Any, Any, dict]:
    """`preferences.load` of a config's group `data`; what was set aside is left in each point's workdir.

    Args:
        tok: of `lm.load_tokenizer`.
        unpair: of `preferences.load`.
    """
    from data.texts import preferences  # not above: the launcher imports this module for every experiment

    bad = workdir / "bad_records.jsonl"

    def load() -> tuple[Any, Any, dict, pathlib.Path]:
        options = dict(seed=c.seed, unpair=unpair, bad_records_path=str(bad), **c.data)
        return *preferences.load(tokenizer=tok, **options), bad

    made_from = dict(data=c.data, seed=c.seed, unpair=unpair, tokenizer=c.tokenizer, init_from=c.init_from)
    train, heldout, counts, first = made("pairs", made_from, load)
    if first != bad and first.is_file():
        files.write(bad, lambda f: f.write(first.read_bytes()))
    return train, heldout, dict(counts)
