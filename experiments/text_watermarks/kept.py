"""Parts of a run that are measured once: a later start of the same model and settings reads them again."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from alignment import files


def kept(path: pathlib.Path, made_from: Mapping[str, Any], measure_fn: Callable[[], Any]) -> Any:
    """What `measure_fn` returned to the start that measured it; the file at `path` removed, it is measured again.

    Args:
        made_from: all that the result depends on, of JSON's types. Another content of it is measured anew.
        measure_fn: its result is of JSON's types.
    """
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    if path.exists() and (stored := files.read_note(path)).get("made_from") == digest:
        return stored["results"]
    results = measure_fn()
    files.write_text(path, json.dumps({"made_from": digest, "results": results}, indent=1) + "\n")
    return results
