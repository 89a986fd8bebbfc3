"""Answers of a model that a run keeps, so that a later start of the same run asks nothing twice."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from alignment import files

Ask = Callable[..., Any]


def answers(folder: pathlib.Path, made_from: Mapping[str, Any], label: str) -> Ask:
    """A function `ask(stage, fn, **settings)` that calls `fn` once and keeps its value, which JSON can hold.

    Args:
        folder: of the run.
        made_from: what all values depend on: digests of weights and questions, and the like.
        label: what is printed before a stage that is asked, such as the model.
    """

    def ask(stage: str, fn: Callable[[], Any], **settings: Any) -> Any:
        key = json.dumps({**made_from, "stage": stage, **settings}, sort_keys=True, default=str)
        path = folder / "answers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
        if path.is_file():
            stored = files.read_note(path)
            if stored["key"] == key:
                return stored["value"]
        print(f"{label}: {stage}", flush=True)
        value = json.dumps({"key": key, "value": fn()}, ensure_ascii=False)
        files.write_text(path, value)
        return json.loads(value)["value"]

    return ask
