"""Egida's files beside its prompts: pairs to train on, safe answers, and answers that people have judged.

The data set (Garcia-Gasulla et al. 2025, arXiv:2502.13603) has four kinds of configurations. `Egida`, the requests in
all their renderings, is a shape of `suites`; the others are read here, from a copy of the user's or from the hub, such
as `hub:HPAI-BSC/Egida:Egida-S.json`. Their columns go by several names (ALIASES), and by those that the config gives.
No text is printed: files, lines and counts only.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from alignment import errors
from alignment.errors import InputError
from data import fields, records
from data.texts import pair_formats, suites

ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "prompt", "instruction"),
    "chosen": pair_formats.ALIASES["chosen"],
    "rejected": pair_formats.ALIASES["rejected"],
    "answer": ("answer", "safe_answer", "response", "completion", "output", *pair_formats.ALIASES["chosen"]),
    "votes": ("votes", "labels", "human_labels", "annotations", "label"),
    "uuid": ("uuid",),
    "style": ("style",),
    "topics": ("topics",),
    "target_model": ("target_model",),
    "chosen_model": ("chosen_model", "model"),
}
SAFE, UNSAFE, UNCERTAIN = VOTES = ("safe", "unsafe", "uncertain")
T = TypeVar("T")
_TARGET = re.compile(r"Egida-DPO-(.+?)\.\w+$")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A line of pairs.jsonl: a rendered request, a safe answer to it, and the answer of a model that is not.

    Attributes:
        uuid: of the request; where the file has none, a hash of the prompt.
        style, topics: "" and () where the file does not say.
        target_model: whose answer the rejected one is; chosen_model: whose the chosen one is. "" where nobody says.
    """

    uuid: str
    prompt: str
    chosen: str
    rejected: str
    style: str = ""
    topics: tuple[str, ...] = ()
    target_model: str = ""
    chosen_model: str = ""


@dataclasses.dataclass(frozen=True)
class SafeAnswer:
    """A safe answer to a request; `uuid` as in `Pair`."""

    uuid: str
    prompt: str
    text: str
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Voted:
    """An exchange that people have judged: each vote is one of VOTES."""

    id: str
    prompt: str
    response: str
    votes: tuple[str, ...]


def load_pairs(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> list[Pair]:
    """`Egida-DPO-<model>`, or pairs that a run has written.

    Args:
        path: see `records.read`.
        columns: keys of ALIASES -> names of the file's own columns.
        limit: reads the first ones only.
        counts: receives what was read and what was dropped: empty texts, and pairs of one answer.
        bad_records_path: see `records.read_counted`.

    Raises:
        InputError: a column is missing, or no pair is left.
    """
    out = []
    for row in _read(path, ("prompt", "chosen", "rejected"), columns, limit, counts, bad_records_path):
        prompt, chosen, rejected = (row.value[name] for name in ("prompt", "chosen", "rejected"))
        if chosen.strip() == rejected.strip():
            _drop("pairs of one answer", row, counts)
            continue
        named = _TARGET.search(row.file)
        value = row.value
        with fields.reading(row, "pairs"):
            out.append(
                Pair(
                    uuid=_uuid(value, prompt),
                    prompt=prompt,
                    chosen=chosen,
                    rejected=rejected,
                    style=fields.name(value.get("style"), "style"),
                    topics=suites.topics_of(value.get("topics")),
                    target_model=fields.name(value.get("target_model"), "target_model") or (named[1] if named else ""),
                    chosen_model=fields.name(value.get("chosen_model"), "chosen_model"),
                )
            )
    return _some(out, path, "pair", counts)


def load_answers(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> list[SafeAnswer]:
    """`Egida-S`, or any file of prompts and safe answers; see `load_pairs`. A request may have several answers."""
    out = []
    for row in _read(path, ("prompt", "answer"), columns, limit, counts, bad_records_path):
        prompt, value = row.value["prompt"], row.value
        with fields.reading(row, "safe answers"):
            model = fields.name(value.get("chosen_model"), "chosen_model")
            out.append(SafeAnswer(_uuid(value, prompt), prompt, value["answer"], model))
    return _some(out, path, "safe answer", counts)


def load_votes(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
    limit: int | None = None,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> list[Voted]:
    """`Egida-HSafe`: exchanges and what several people said of each; see `load_pairs`.

    Args:
        columns: `votes` may be several columns with commas between, one a person.
        words: the file's words for VOTES, such as {"0": "safe", "1": "unsafe"}; case does not matter.

    Raises:
        InputError: a vote that is none of these words; it is named with its line.
    """
    meaning = dict(zip(VOTES, VOTES))
    for word, vote in (words or {}).items():
        meaning[word.casefold()] = errors.one_of(f"the meaning of the vote {word!r}", vote, VOTES)
    out = []
    for number, row in enumerate(
        _read(path, ("prompt", "answer", "votes"), columns, limit, counts, bad_records_path), 1
    ):
        with fields.reading(row, "judged answers"):
            cast = [fields.name(vote, "votes").casefold() for vote in suites.listed(row.value["votes"])]
            name = fields.name(row.value.get("id"), "id") or str(number)
        if unknown := [vote for vote in cast if vote not in meaning]:
            raise InputError(
                f"{row.file}:{row.line}: the vote {unknown[0]!r} is not one of {', '.join(meaning)}; say what it means "
                "with words"
            )
        if not cast:
            _drop("exchanges without a vote", row, counts)
            continue
        votes = tuple(meaning[vote] for vote in cast)
        out.append(Voted(name, row.value["prompt"], row.value["answer"], votes))
    return _some(out, path, "exchange with votes", counts)


def best_answers(answers: Sequence[SafeAnswer], *, preferred: Sequence[str] = ()) -> dict[str, SafeAnswer]:
    """uuid -> its safe answer: that of the model that stands first in `preferred`, else the first one.

    Args:
        preferred: parts of models' names, whatever the case, such as ("mistral", "phi").
    """

    def rank(answer: SafeAnswer) -> int:
        places = (i for i, name in enumerate(preferred) if name.casefold() in answer.model.casefold())
        return next(places, len(preferred))

    best: dict[str, SafeAnswer] = {}
    for answer in answers:
        if answer.uuid not in best or rank(answer) < rank(best[answer.uuid]):
            best[answer.uuid] = answer
    return best


@dataclasses.dataclass(frozen=True)
class Grid:
    """How far the rows are a full grid of requests and styles.

    Attributes:
        missing: cells of a request and a style without a row.
        repeated: rows beyond the first of their cell, as a style may have several renderings of a request.
    """

    num_rows: int
    num_requests: int
    num_styles: int
    missing: int
    repeated: int


def grid(cases: Sequence[suites.Case]) -> Grid:
    """Rows = requests x styles - missing + repeated; the published file is nearly, and not wholly, such a grid."""
    cells = Counter((case.request, case.style) for case in cases)
    num_requests, num_styles = len({request for request, _ in cells}), len({style for _, style in cells})
    missing, repeated = num_requests * num_styles - len(cells), len(cases) - len(cells)
    return Grid(len(cases), num_requests, num_styles, missing, repeated)


def prompt_key(prompt: str) -> str:
    """The request's id where a file has none: equal for prompts that differ in case and spaces only."""
    return hashlib.sha256(" ".join(prompt.casefold().split()).encode()).hexdigest()[:16]


def _uuid(value: Mapping[str, Any], prompt: str) -> str:
    return fields.name(value.get("uuid"), "uuid") or prompt_key(prompt)


def _read(
    path: str,
    needed: Sequence[str],
    columns: Mapping[str, str] | None,
    limit: int | None,
    counts: dict[str, int],
    bad_records_path: str,
) -> Iterator[records.Record]:
    """The rows by the names of ALIASES; one whose field among `needed` is empty or no text is counted and left out."""
    for name in columns or {}:
        errors.one_of("a name in columns", name, ALIASES)
    rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
    for row in records.first(rows, limit, counts):
        value = _renamed(row, needed, columns or {})
        odd = ""
        for name in (name for name in needed if name != "votes"):
            try:
                value[name] = _text(value[name], name)
            except fields.Odd as e:
                odd = odd or f"rows whose {e}"
            else:
                odd = odd or ("" if value[name].strip() else f"rows with an empty {name}")
        if odd:
            _drop(odd, row, counts)
        else:
            yield dataclasses.replace(row, value=value)


def _renamed(row: records.Record, needed: Sequence[str], columns: Mapping[str, str]) -> dict[str, Any]:
    out = dict(row.value)
    for name, aliases in ALIASES.items():
        theirs = [part.strip() for part in columns[name].split(",")] if columns.get(name) else []
        if len(theirs) > 1:  # several columns, one a person
            present = theirs if set(theirs) <= set(row.value) else []
            value: Any = [row.value[one] for one in present if row.value[one] not in (None, "")]
        else:
            present = [one for one in theirs or aliases if one in row.value]
            value = next((row.value[one] for one in present if row.value[one] is not None), None)
        if (name in needed and not present) or (theirs and not present):
            raise InputError(
                f"{row.file}:{row.line}: no column for {name}, which is called {' or '.join(theirs or aliases)}; it "
                f"has {', '.join(map(str, row.value))}. Name it, such as columns.{name}=<its name>"
            )
        out[name] = value
    return out


def _text(value: Any, name: str) -> str:
    """A text, or that of a chat: of a prompt its one turn, of an answer its last turn.

    Raises:
        fields.Odd: something else, such as a prompt of several turns, of which one alone is another question.
    """
    value = fields.parsed(value) if str(value).lstrip().startswith("[{") else value
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        if name == "prompt" and len(value) > 1:
            raise fields.Odd("prompt has several turns")
        value = value[-1].get("content", value[-1].get("value"))
    return fields.text(value, name)


def _drop(what: str, row: records.Record, counts: dict[str, int]) -> None:
    counts[what] = counts.get(what, 0) + 1
    if counts[what] <= 3:
        print(f"set aside: {pathlib.Path(row.file).name}:{row.line}: one of the {what}", flush=True)


def _some(items: list[T], path: str, what: str, counts: dict[str, int]) -> list[T]:
    if not items:
        raise InputError(f"{path}: no {what} is left; counts: {counts}")
    return items
