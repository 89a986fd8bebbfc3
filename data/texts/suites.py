"""Prompts for measuring safety: requests that should be refused, and requests that only look like it.

Public sets are read in their own shapes, which their columns give away. None of their text lies in this repository, and
nothing here prints any: counts and places only.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment import errors
from alignment.errors import InputError
from data import fields, records

HARMFUL, HARMLESS, CONTROVERSIAL = KINDS = ("harmful", "harmless", "controversial")
# name -> (shape, prompts of each kind as published, with those that occur twice)
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "PHTest v0.1": ("phtest", {HARMLESS: 2_069, CONTROVERSIAL: 1_191}),
    "PHTest of the hub": ("phtest", {HARMLESS: 2_077, CONTROVERSIAL: 1_192}),
    "XSTest": ("xstest", {HARMLESS: 250, HARMFUL: 200}),
    "FalseReject, its test part": ("falsereject", {HARMLESS: 1_187}),
    "FalseReject, its training part": ("falsereject", {HARMLESS: 14_624}),
}
EXACT, NORMALISED, NO_DEDUP = DEDUP = ("exact", "normalised", "off")
PLAIN = "BaseInstruction"  # Egida's name of a request without an attack


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt.

    Attributes:
        id: unique in its suite.
        prompt: the text that the model gets.
        kind: one of KINDS.
        category: as the set names it; "" where it does not.
        request: what the renderings of one request have in common; its own id where it is the only one.
        style: of the attack that it is rendered in.
        topics: of the request.
        context: a text that belongs to the prompt (HarmBench's contextual behaviours).
    """

    id: str
    prompt: str
    kind: str
    category: str = ""
    request: str = ""
    style: str = PLAIN
    topics: tuple[str, ...] = ()
    context: str = ""

    @property
    def text(self) -> str:
        """The prompt behind its context."""
        return f"{self.context}\n\n{self.prompt}" if self.context else self.prompt


@dataclasses.dataclass(frozen=True)
class Suite:
    """The prompts of a path.

    Attributes:
        shape: the name of the format, a key of SHAPES.
        sha256: of the files' bytes, in the order of their names; "" for a source that is not a file.
        duplicates: ids that were dropped, because an earlier prompt has the same text and style.
        num_read: how many of each kind, with the duplicates.
    """

    cases: tuple[Case, ...]
    shape: str
    sha256: str
    duplicates: tuple[str, ...]
    num_read: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def version(self) -> str:
        """Which published file has these numbers of prompts, "" for none that is known here."""
        return next(
            (name for name, (shape, num) in PUBLISHED.items() if (shape, num) == (self.shape, self.num_read)), ""
        )


def load(
    path: str,
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    dedup: str = EXACT,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> Suite:
    """Read a set of prompts.

    Args:
        path: see `records.read`.
        kind: of all prompts, for sets whose columns do not say it, such as OR-Bench's, whose toxic part looks like the
            others; None takes what the shape says.
        columns: names of a file's own columns for those of a shape, such as {"prompt": "Text"}.
        limit: reads the first ones only.
        dedup: of one text and style only the first stays; `normalised` compares letters and digits, whatever the case.
        counts: receives what was read and what was dropped.
        bad_records_path: see `records.read_counted`.

    Raises:
        InputError: no known shape, a label that is not one, an id twice, or a kind that nobody says.
    """
    if kind is not None:
        errors.one_of("kind", kind, KINDS)
    errors.one_of("dedup", dedup, DEDUP)
    rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
    rows = list(records.first(rows, limit, counts))
    renamed = [dataclasses.replace(row, value=fields.renamed(row, columns or {})) for row in rows]
    shape = _shape(renamed, path)
    read = SHAPES[shape][1]
    cases, ids, texts, duplicates, repeated = [], set(), set(), [], []
    empty: list[records.BadRecord] = []
    odd: list[records.BadRecord] = []
    num_read: Counter[str] = Counter()
    for number, row in enumerate(renamed, 1):
        try:
            case = read(row, number, kind)
        except fields.Odd as e:
            odd.append(records.BadRecord(row.file, row.line, str(e)))
            continue
        if not case.prompt.strip():
            empty.append(records.BadRecord(row.file, row.line, "an empty prompt"))
            continue
        if case.id in ids and shape in NAMED_BY_CONTENT:
            repeated.append(f"{row.file}:{row.line}")
            continue
        if case.id in ids:
            raise InputError(f"{row.file}:{row.line}: id {case.id!r} occurs twice; every prompt needs its own")
        ids.add(case.id)
        num_read[case.kind] += 1
        text = (_letters(case.prompt) if dedup == NORMALISED else case.prompt), case.style
        if dedup != NO_DEDUP and text in texts:
            duplicates.append(case.id)
            continue
        texts.add(text)
        cases.append(dataclasses.replace(case, request=case.request or case.id))
    records.set_aside(empty, len(rows), counts, "prompts that are empty")
    records.set_aside(odd, len(rows), counts, "prompts with a field that cannot be read")
    if repeated:
        counts["rows that occur twice"] = counts.get("rows that occur twice", 0) + len(repeated)
        print(f"{path}: {len(repeated)} rows occur twice, the first stays: {', '.join(repeated[:20])}")
    if duplicates:
        counts["prompts that occur twice"] = counts.get("prompts that occur twice", 0) + len(duplicates)
        print(f"{path}: {len(duplicates)} prompts occur twice, the first stays: ids {', '.join(duplicates[:20])}")
    return Suite(tuple(cases), shape, _digest(path), tuple(duplicates), dict(num_read))


def without_near_duplicates(
    cases: Sequence[Case], removed_fn: Callable[[Sequence[str]], Mapping[int, int]], counts: dict[str, int]
) -> list[Case]:
    """The cases without requests that are nearly another one; of two the smaller id stays, with all its renderings.

    Args:
        removed_fn: texts -> place of each that goes -> place of the one that stays for it.
        counts: receives how many requests and prompts went.
    """
    texts: dict[str, tuple[bool, str]] = {}
    for case in cases:  # the plain request speaks for its renderings; without one, the first rendering does
        if case.request not in texts or (case.style == PLAIN and not texts[case.request][0]):
            texts[case.request] = (case.style == PLAIN, case.prompt)
    requests = sorted(texts)
    gone = {requests[place] for place in removed_fn([texts[request][1] for request in requests])}
    staying = [case for case in cases if case.request not in gone]
    if gone:
        for what, num in (("requests", len(gone)), ("prompts", len(cases) - len(staying))):
            name = f"{what} that are nearly others"
            counts[name] = counts.get(name, 0) + num
    return staying


def _letters(text: str) -> str:
    """The text without case and punctuation; of a text that has no letters, all of it."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(words) or text


def _shape(rows: list[records.Record], path: str) -> str:
    """The first shape whose columns all rows have."""
    present = set.intersection(*(set(row.value) for row in rows))
    for name, (wanted, _) in SHAPES.items():
        if set(wanted) <= present:
            return name
        lacking = next((row for row in rows if not set(wanted) <= set(row.value)), None)
        if lacking is not None and set(wanted) <= set(rows[0].value):
            missing = next(column for column in wanted if column not in lacking.value)
            raise InputError(f"{lacking.file}:{lacking.line}: no column {missing!r}, which the rows before it have")
    known = "; ".join(f"{name}: {', '.join(wanted)}" for name, (wanted, _) in SHAPES.items())
    raise InputError(
        f"{path} has the columns {', '.join(sorted(present)) or '(none in all rows)'}, which are not those of a set of "
        f"prompts that is known here. Name its columns, such as columns.prompt=<name>, or give one of: {known}"
    )


def _digest(path: str) -> str:
    if ":" in path and not pathlib.Path(path).exists():
        return ""
    content = hashlib.sha256()
    for file in sorted(records.find(path)):
        content.update(pathlib.Path(file).read_bytes())
    return content.hexdigest()


def _said(row: records.Record, name: str, value: Any, words: Mapping[str, str]) -> str:
    """The kind that a label means."""
    word = fields.name(value, name)
    if word not in words:
        raise InputError(f"{row.file}:{row.line}: {name}={word!r} is not one of {', '.join(words)}")
    return words[word]


def _given(row: records.Record, kind: str | None) -> str:
    if kind is None:
        raise InputError(
            f"{row.file}: its columns do not say whether its prompts are harmful; say kind=harmless, harmful or "
            "controversial"
        )
    return kind


def _phtest(row: records.Record, number: int, kind: str | None) -> Case:
    words = {HARMLESS: HARMLESS, CONTROVERSIAL: CONTROVERSIAL}
    harmfulness = _said(row, "Harmfulness", row.value["Harmfulness"], words)
    return Case(_id(row, "ID", number), fields.text(row.value["Request"], "Request"), kind or harmfulness)


def _xstest(row: records.Record, number: int, kind: str | None) -> Case:
    label = _said(row, "label", row.value["label"], {"safe": HARMLESS, "unsafe": HARMFUL})
    prompt, category = fields.text(row.value["prompt"], "prompt"), fields.name(row.value["type"], "type")
    return Case(_id(row, "id", number), prompt, kind or label, category=category)


def _egida(row: records.Record, number: int, kind: str | None) -> Case:
    value = row.value
    request, style = _id(row, "uuid", number), fields.name(value["style"], "style")
    question, source = fields.text(value["question"], "question"), fields.name(value.get("source"), "source")
    # one style may have several renderings of a request
    case_id = f"{request}/{style}/{hashlib.sha256(question.encode()).hexdigest()[:8]}"
    return Case(case_id, question, kind or HARMFUL, source, request, style, topics_of(value["topics"]))


def _id(row: records.Record, name: str, number: int) -> str:
    """The row's own id, or its number where the field is empty."""
    return fields.name(row.value.get(name), name) or str(number)


def topics_of(value: Any) -> tuple[str, ...]:
    """The topics of a map of topic -> bool, a list, or either as a cell of a table writes it; sorted.

    Raises:
        fields.Odd: lists or objects among them.
    """
    value = listed(value)
    topics = value.items() if isinstance(value, Mapping) else ((topic, True) for topic in value)
    return tuple(sorted({fields.name(topic, "a topic") for topic, is_on in topics if is_on} - {""}))


def listed(value: Any) -> Any:
    """A list or a map as it is; of a text what it writes, else its parts between commas; () of nothing."""
    value = fields.parsed(value)
    if fields.is_empty(value):
        return ()
    if not isinstance(value, str):
        return value if isinstance(value, (list, tuple, Mapping)) else () if fields.is_absent(value) else (value,)
    if value.strip()[:1] in ("[", "{"):
        raise fields.Odd("a list or an object is written in a way that is not read")
    return [part.strip().strip('"') for part in value.split(",") if part.strip()]


def _harmbench(row: records.Record, number: int, kind: str | None) -> Case:
    value = row.value
    category = fields.name(value.get("SemanticCategory"), "SemanticCategory")
    context = fields.text(value.get("ContextString"), "ContextString")
    return Case(
        _id(row, "BehaviorID", number),
        fields.text(value["Behavior"], "Behavior"),
        kind or HARMFUL,
        category,
        topics=(category,) if category else (),
        context=context,
    )


def _sorry_bench(row: records.Record, number: int, kind: str | None) -> Case:
    turns = fields.parsed(row.value["turns"])
    if isinstance(turns, (list, tuple)):
        if len(turns) > 1:
            raise fields.Odd("turns has several turns, of which the first alone is another request")
        turns = turns[0] if turns else None
    text, style = fields.text(turns, "turns"), fields.name(row.value["prompt_style"], "prompt_style")
    name, category = _id(row, "question_id", number), fields.name(row.value.get("category"), "category")
    return Case(f"{name}/{style}", text, kind or HARMFUL, category, name, PLAIN if style == "base" else style)


def _column(name: str, default: str | None, category: str = "") -> Callable[..., Case]:
    """A shape with one column of text: its kind is the shape's, or must be said where `default` is None."""

    def read(row: records.Record, number: int, kind: str | None) -> Case:
        ids = (fields.name(row.value.get(key), key) for key in ("id", "ID", "Index"))
        topic = fields.name(row.value.get(category), category) if category else ""
        topics = (topic,) if topic else ()
        case_id, text = next(filter(None, ids), str(number)), fields.text(row.value[name], name)
        return Case(case_id, text, kind or default or _given(row, kind), topic, topics=topics)

    return read


NAMED_BY_CONTENT = ("egida",)  # shapes whose ids say all of a row, so that an id twice is a row twice
# name -> (columns that all rows have, a reader of one row); the first that fits is taken
SHAPES: dict[str, tuple[tuple[str, ...], Callable[..., Case]]] = {
    "phtest": (("ID", "Request", "Harmfulness"), _phtest),
    "egida": (("uuid", "style", "question", "topics"), _egida),
    "xstest": (("id", "prompt", "type", "label"), _xstest),
    "harmbench": (("Behavior", "BehaviorID"), _harmbench),
    "jailbreakbench": (("Goal", "Behavior", "Category"), _column("Goal", None, "Category")),
    "sorry_bench": (("turns", "prompt_style"), _sorry_bench),
    "strongreject": (("forbidden_prompt",), _column("forbidden_prompt", HARMFUL, "category")),
    "do_not_answer": (("risk_area", "question"), _column("question", HARMFUL, "risk_area")),
    "advbench": (("goal",), _column("goal", HARMFUL)),
    "falsereject": (("prompt", "category_text"), _column("prompt", HARMLESS, "category_text")),
    "prompts": (("prompt",), _column("prompt", None, "category")),
}
