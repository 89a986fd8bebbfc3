"""Preference pairs of several objectives: which file or column says what a pair is about.

Each objective becomes a file of its own in the shape of TRL (`prompt`, `chosen`, `rejected`, `group`), which
`preferences.load` reads. Sources are

- files, named `name=path` or by their path's stem; a column `dimension` in a record says it instead;
- PKU-SafeRLHF, whose records are compared twice: by `better_response_id` (helpful) and `safer_response_id` (harmless);
- `synthetic:manners`, the embedded pairs of data/toys/manners.py.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment import files
from alignment.errors import InputError
from data import records
from data.texts import pair_formats
from data.texts.pair_formats import Comparison
from data.toys import manners

EMBEDDED = "synthetic:manners"
PKU = {"helpful": "better_response_id", "harmless": "safer_response_id"}
UNITS = ("tokens", "chars")
PLACE = "{prompt}"


def sources(path: str) -> dict[str, str]:
    """Objective -> file, of a listing with commas between.

    Raises:
        InputError: two files of one name, or one that is not there.
    """
    out: dict[str, str] = {}
    for part in records.listed(path):
        name, has_name, place = part.partition("=")
        if not has_name:
            name, place = pathlib.Path(part).name.partition(".")[0], part
        if name in out:
            raise InputError(f"data.path={path!r}: two files are called {name!r}; write name=path to tell them apart")
        if place != EMBEDDED:
            records.check(place)
        out[name] = place
    if not out:
        raise InputError(f"data.path={path!r} names no file; give a file of pairs, or name=path,name=path")
    return out


def check_template(name: str, template: str) -> None:
    """Refuse a template without a place for the prompt; "" is the tokenizer's own."""
    if template and template.count(PLACE) != 1:
        raise InputError(f"{name}={template!r} must hold {PLACE} once, such as '<|user|>\\n{PLACE}\\n<|assistant|>\\n'")


def read(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_chars: int | None = None,
    seed: int = 0,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> dict[str, list[Comparison]]:
    """The comparisons of each objective.

    Args:
        path: see `sources`.
        columns, words: see `pair_formats.read`.
        limit: comparisons of each objective; None: all.
        max_chars: pairs whose prompt and longer answer have more characters together are dropped; None: none are.
        seed: of the embedded pairs.
        counts: receives what was read and dropped.

    Raises:
        InputError: an objective has no pair left, or a prompt ends with the assistant's turn.
    """
    rows: dict[str, list[records.Record]] = {}
    for name, place in sources(path).items():
        for objective, row in _objectives(_rows(place, limit or 2_000, seed, counts, bad_records_path), counts):
            rows.setdefault(objective or name, []).append(row)
    out = {}
    for objective, own in rows.items():
        compared = pair_formats.read(own, columns=columns, words=words, limit=limit, counts=counts)
        out[objective] = [item for item in compared if _fits(item, max_chars, counts)]
        if not out[objective]:
            raise InputError(f"data.path={path!r}: no pair of {objective!r} is left to learn from; counts: {counts}")
    if not out:
        raise InputError(f"data.path={path!r}: no pair is left to learn from; counts: {counts}")
    return out


def _rows(place, num, seed, counts, bad_records_path):
    if place == EMBEDDED:
        pairs = [row for wish in manners.RULES for row in manners.preference_pairs(wish, num, seed)]
        return records.numbered(pairs, EMBEDDED, counts=counts)
    return records.read_counted(place, counts=counts, bad_records_path=bad_records_path)


def _objectives(rows: Sequence[records.Record], counts: dict[str, int]) -> Iterator[tuple[str, records.Record]]:
    """Each record with its objective, "" where it does not say; one of PKU-SafeRLHF comes twice."""
    for row in rows:
        value = row.value
        if not set(PKU.values()) <= set(value):
            value = dict(value)
            yield str(value.pop("dimension", None) or ""), records.Record(value, row.file, row.line)
            continue
        for objective, column in PKU.items():
            if value[column] not in (0, 1):
                _count(counts, f"records whose {column} is neither 0 nor 1")
                continue
            better = int(value[column])
            pair = {"chosen": value[f"response_{better}"], "rejected": value[f"response_{1 - better}"]}
            yield objective, records.Record({"question": value["prompt"], **pair}, row.file, row.line)


def _fits(item: Comparison, max_chars: int | None, counts: dict[str, int]) -> bool:
    if not isinstance(item.prompt, str):
        num_turns = sum(turn["role"] != "system" for turn in item.prompt)
        if num_turns % 2 == 0:
            raise InputError(
                f"{item.file}:{item.line}: the prompt has {num_turns} turns, so it ends with the assistant's; a prompt "
                "ends with the user's"
            )
    if len(item.answers) != 2:
        _count(counts, "records without a second answer")
    elif item.prefill or item.tools:
        _count(counts, "pairs with tools or an answer's opening")
    elif max_chars is not None and len(item.prompt_text()) + max(map(len, item.answers)) > max_chars:
        _count(counts, "pairs longer than data.max_len characters")
    else:
        return True
    return False


def prepare(path: pathlib.Path, items: Sequence[Comparison], template: str, counts: dict[str, int]) -> None:
    """Write an objective's file for models of one template.

    Args:
        template: see `check_template`; a prompt of several turns has no place in one and is dropped.
        counts: receives how many were.
    """
    rows: list[dict[str, Any]] = []
    for item in items:
        prompt: Any = item.prompt
        if item.is_chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if template:
            if not isinstance(prompt, str):
                if len(prompt) > 1:
                    _count(counts, "prompts of several turns, for which a template has no place")
                    continue
                prompt = prompt[0]["content"]
            prompt = template.replace(PLACE, prompt)
        group = item.group or item.prompt_text()
        rows.append({"prompt": prompt, "chosen": item.answers[0], "rejected": item.answers[1], "group": group})
    files.write_rows(path, rows)


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1
