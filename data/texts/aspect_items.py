"""Items of a safety benchmark by aspects: multiple choice, with variants of an item and groups of vignettes.

A file with a fault is refused as a whole, with every fault and its line: a benchmark of a thousand items that somebody
has verified is mended, not cut.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from data import fields, records

LETTERS = "ABCDEFGHIJ"
TEXTS = ("id", "principle", "aspect", "question", "language", "rationale", "canary", "variant_of")
MOST_NAMED = 20  # faults that a message lists
# What looks like data about a person: e-mail addresses, phone numbers, record numbers.
_PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.\w{2,}|(?<!\d)(?:\+\d{1,3}[ -]?)?\(?\d{3}\)?[ -]\d{3}[ -]\d{4}(?!\d)|\bMRN[ :#]*\d{5,}\b"
)


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        options: texts; the first is A.
        gold: numbers of the right options, from 0.
        group, value, pair: of a vignette that others repeat for other people: the attribute, this one's value of it,
            and what the members have in common; "" where there is none.
        variant_of: id of the plain item that this one is another form of; "" for a plain item.
        marks: what else an option is, by its number, such as {"stereotypical": 2, "disclosing": 0}.
        rationale: why the right options are right, for a judge.
        canary: a text of the question that no answer may hold; "" where there is none.
    """

    id: str
    principle: str
    aspect: str
    question: str
    options: tuple[str, ...]
    gold: tuple[int, ...]
    group: str = ""
    value: str = ""
    pair: str = ""
    variant_of: str = ""
    language: str = "en"
    marks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rationale: str = ""
    canary: str = ""

    @property
    def cluster(self) -> str:
        """What is drawn together with this item: its vignette, or the plain item with its variants."""
        return self.pair or self.variant_of or self.id


def load(
    path: str, principles: Mapping[str, Sequence[str]], *, limit: int | None = None, counts: dict[str, int]
) -> list[Item]:
    """Read and check a file of items.

    Args:
        principles: principle -> its aspects; a file's own names must be among them.
        limit: the first so many items of each aspect.

    Raises:
        InputError: with every fault of the file by its line.
    """
    rows = records.read_counted(path, counts=counts)
    items, faults = parse([row.value for row in rows], principles)
    if faults:
        listed = "\n".join(f"  {rows[n].file}:{rows[n].line}: {fault}" for n, fault in faults[:MOST_NAMED])
        more = f"\n  and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise InputError(f"{path} has {len(faults)} faults; mend them, no item is left out:\n{listed}{more}")
    if personal := [item.id for item in items if _PERSONAL.search(item.question)]:
        print(
            f"WARNING: {len(personal)} questions hold what looks like a person's data (ids {', '.join(personal[:5])}); "
            "no question is written to the report",
            flush=True,
        )
    return first(items, limit, counts)


def first(items: Sequence[Item], limit: int | None, counts: dict[str, int]) -> list[Item]:
    """The first `limit` items of each aspect; the others are counted."""
    taken: Counter[str] = Counter()
    out = []
    for item in items:
        taken[item.aspect] += 1
        if limit is None or taken[item.aspect] <= limit:
            out.append(item)
    if len(out) < len(items):
        counts["items beyond data.limit"] = len(items) - len(out)
    return out


def parse(
    values: Sequence[Mapping[str, Any]], principles: Mapping[str, Sequence[str]]
) -> tuple[list[Item], list[tuple[int, str]]]:
    """Items, and the faults with the numbers of their rows from 0."""
    faults: list[tuple[int, str]] = []
    items: list[Item] = []
    ids: set[str] = set()
    known = {aspect: principle for principle, group in principles.items() for aspect in group}
    for number, value in enumerate(values):
        own = list(_odd(value)) or list(_faults(value, known, ids))
        faults += [(number, fault) for fault in own]
        if not own:
            ids.add(fields.name(value["id"]))
            items.append(_item(value, known))
    if not faults:
        faults += [
            (number, f"variant_of={item.variant_of!r} is not an id of this file")
            for number, item in enumerate(items)
            if item.variant_of and item.variant_of not in ids
        ]
    return items, faults


def _odd(value: Mapping[str, Any]) -> Iterator[str]:
    """Fields that are not a text or an object where one is needed; the other checks then read them as they are."""
    texts = {name: value.get(name) for name in TEXTS}
    for name in ("options", "marks", "group"):
        inside = value.get(name)
        if isinstance(inside, Mapping):
            texts |= {f"{name}.{key}": one for key, one in inside.items()}
        elif inside is not None:
            yield f"{name} must be an object"
    answers = value.get("answer")
    texts |= dict(enumerate(answers)) if isinstance(answers, list) else {"answer": answers}
    for name, one in texts.items():
        try:
            fields.text(one, f"answer {name}" if isinstance(name, int) else name)
        except fields.Odd as e:
            yield str(e)


def _faults(value: Mapping[str, Any], known: Mapping[str, str], ids: set[str]):
    name, options = fields.name(value.get("id")), value.get("options")
    if not name:
        yield "it has no id"
    elif name in ids:
        yield f"id {name!r} occurs twice"
    if not fields.text(value.get("question")).strip():
        yield "its question is empty"
    if value.get("aspect") not in known:
        yield f"aspect {value.get('aspect')!r} is not one of: {', '.join(known)}"
    elif value.get("principle") not in (None, known[value["aspect"]]):
        yield f"aspect {value['aspect']!r} belongs to {known[value['aspect']]!r}, not to {value['principle']!r}"
    if not isinstance(options, Mapping) or sorted(options) != list(LETTERS[: len(options)]) or len(options) < 2:
        yield "options must be an object of 2 to 10 texts, by the letters A, B, ... without a gap"
        return
    texts = [fields.text(text).strip() for text in options.values()]
    if len(set(texts)) < len(texts) or not all(texts):
        yield "options hold a text twice or an empty one"
    answers = value.get("answer")
    for answer in answers if isinstance(answers, list) else [answers]:
        if answer not in options:
            yield f"answer {answer!r} is not a letter of its options"
    if isinstance(answers, list) and not answers:
        yield "answer is an empty list"
    for mark, letter in (value.get("marks") or {}).items():
        if letter not in options:
            yield f"marks: {mark} is {letter!r}, which is not a letter of its options"
    if fields.text(value.get("canary")) not in fields.text(value.get("question")):
        yield f"canary {value['canary']!r} is not in its question"
    group = value.get("group")
    if group is not None and not all(fields.name(group.get(part)) for part in ("attribute", "value", "pair_id")):
        yield "group must have attribute, value and pair_id"


def _item(value: Mapping[str, Any], known: Mapping[str, str]) -> Item:
    answers = value["answer"] if isinstance(value["answer"], list) else [value["answer"]]
    group = value.get("group") or {}
    return Item(
        fields.name(value["id"]),
        known[value["aspect"]],
        value["aspect"],
        fields.text(value["question"]),
        tuple(fields.text(value["options"][letter]) for letter in sorted(value["options"])),
        tuple(sorted(LETTERS.index(answer) for answer in set(answers))),
        *(fields.name(group.get(part)) for part in ("attribute", "value", "pair_id")),
        fields.name(value.get("variant_of")),
        fields.name(value.get("language")) or "en",
        {mark: LETTERS.index(letter) for mark, letter in (value.get("marks") or {}).items()},
        fields.text(value.get("rationale")),
        fields.text(value.get("canary")),
    )
