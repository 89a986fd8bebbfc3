"""Texts with a label and the concepts that they mention, in three shapes that their columns give away.

CEBaB (arXiv:2205.14140): `description`, `review_majority`, `food_aspect_majority`, ...; the files that the authors of
Bias@C released (arXiv:2311.08648): `text` (or `passage` and `question`), `label`, `concepts` as one text; your own:
`text`, `label`, `concepts` as a list or a text with commas. `concepts` may be missing, and is then to be annotated.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from alignment.errors import InputError
from data import fields, loader, records

CEBAB_ASPECTS = ("food", "service", "ambiance", "noise")
NO_MAJORITY = "no majority"
MENTIONED = ("Positive", "Negative")
NOTHING = ("", "none")
MOST_WORDS = 4  # a concept with more words is a sentence, which models write at times
NAME_OF_RELEASED = re.compile(r"_cf_.+_(?P<concept>[^_]+)_explicit\.jsonl")


@dataclasses.dataclass(frozen=True)
class Row:
    """One text.

    Attributes:
        label: from 0.
        concepts: that it mentions; None: nobody has said so yet.
        group: texts of one group stay on one side of a split: those of one original review, or the text itself.
        injects: the concept that somebody wrote into this text or rewrote in it; "" for a text that is nobody's edit.
        source: the group that its source is of; "" for a text that is nobody's edit.
        source_id: the id of its source; "" where the source is not among the texts.
    """

    id: str
    text: str
    label: int
    concepts: frozenset[str] | None
    group: str
    injects: str = ""
    source: str = ""
    source_id: str = ""


@dataclasses.dataclass(frozen=True)
class ConceptSet:
    """Texts of one task.

    Attributes:
        rows: all texts; in CEBaB some are edits, with `injects`.
        counterfactuals: texts that only `upsample` may add; each has `injects` and `source`.
        num_labels: labels are 0 to this, less 1.
    """

    rows: tuple[Row, ...]
    counterfactuals: tuple[Row, ...]
    num_labels: int

    @property
    def digest(self) -> str:
        """Digest of all that a training or a test reads."""
        every = [*self.rows, *self.counterfactuals]
        parts = (
            part
            for row in every
            for part in (row.id, row.text, ",".join(sorted(row.concepts or ())), row.injects, row.source)
        )
        return loader.digest(np.array([row.label for row in every], np.int64), texts=parts)

    def concepts(self) -> dict[str, int]:
        """How many texts mention each concept, the most frequent first."""
        counts = Counter(concept for row in self.rows for concept in row.concepts or ())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class _Unusable(Exception):
    """Why a record is left out; it is counted under these words."""


def load(
    path: str,
    *,
    counterfactuals: str = "",
    num_labels: int | None = None,
    limit: int | None = None,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> ConceptSet:
    """The texts of a path, and written counterfactuals from another.

    Args:
        path: JSONL, JSON, CSV or parquet files as `records.find` finds them.
        counterfactuals: files of `cf_text`, `ori_text`, `label`, and `concept`, or the concept in the file's name as
            the authors released them; "": none.
        num_labels: None: 5 of CEBaB, else one more than the largest label.
        limit: the first so many records; None takes all.
        counts: receives the numbers of records that were read, left out and set aside.
        bad_records_path: where to write the lines set aside; "" writes nothing.

    Raises:
        InputError: a label that is not a whole number from 0, with its file and line; columns that are missing; ids
            that occur twice.
    """
    loaded = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
    loaded = records.first(loaded, limit, counts)
    is_cebab = "description" in loaded[0].value
    read_fn: Callable[[records.Record, dict[str, int]], Row] = _cebab if is_cebab else _plain
    rows = [row for record in loaded if (row := _try(read_fn, record, counts)) is not None]
    if not rows:
        raise InputError(f"{path} leaves no text; counts: {counts}")
    if twice := [name for name, num in Counter(row.id for row in rows).items() if num > 1]:
        raise InputError(f"{path}: id {twice[0]!r} occurs twice, and {len(twice) - 1} others; membership goes by id")
    most = max(row.label for row in rows)
    if num_labels is None and not is_cebab and most >= len(rows):
        raise InputError(f"{path}: label {most} of {len(rows):,} texts; number labels from 0, or set data.num_labels")
    num_labels = num_labels or (5 if is_cebab else most + 1)
    check_labels(rows, loaded, num_labels)
    if is_cebab:
        rows = _checked_edits(rows, counts)
    written = read_counterfactuals(counterfactuals, rows, counts=counts) if counterfactuals else []
    return ConceptSet(tuple(rows), tuple(written), num_labels)


def _try(read_fn: Callable[..., Row], record: records.Record, counts: dict[str, int]) -> Row | None:
    try:
        return read_fn(record, counts)
    except _Unusable as reason:
        counts[str(reason)] = counts.get(str(reason), 0) + 1
        return None


def _cebab(record: records.Record, counts: dict[str, int]) -> Row:
    value = record.value
    if str(value.get("review_majority")) == NO_MAJORITY:
        raise _Unusable("reviews without a majority for their stars, set aside")
    text = _text(value, "description")
    aspects = {name: _name(record, f"{name}_aspect_majority", "") for name in CEBAB_ASPECTS}
    if unsure := sum(said == NO_MAJORITY for said in aspects.values()):
        what = "aspects without a majority, which count as not mentioned"
        counts[what] = counts.get(what, 0) + unsure
    concepts = frozenset(name for name, said in aspects.items() if said in MENTIONED)
    edited = _name(record, "edit_type", "")
    injects = edited if edited in concepts and _name(record, "edit_goal", "") in MENTIONED else ""
    name = _name(record, "id", f"{record.file}:{record.line}")
    group = _name(record, "original_id", name)
    label = _label(record, "review_majority") - 1
    return Row(name, text, label, concepts, group, injects, group if injects else "")


def _plain(record: records.Record, counts: dict[str, int]) -> Row:
    value = record.value
    if "passage" in value and "question" in value:
        text = f"{_text(value, 'passage')} {_text(value, 'question')}"
    elif "text" in value:
        text = _text(value, "text")
    else:
        raise InputError(
            f"{record.file}:{record.line}: columns found: {', '.join(map(str, value))}. Needed are text and label; or "
            "CEBaB's description, review_majority and its aspects; or passage, question and label"
        )
    name = _name(record, "id", f"{record.file}:{record.line}")
    concepts = None if fields.is_absent(stated := fields.parsed(value.get("concepts"))) else stated
    if isinstance(concepts, Mapping):
        raise InputError(f"{record.file}:{record.line}: concepts is an object; give a list, or a text with commas")
    concepts = None if concepts is None else parse_concepts(concepts, counts)
    return Row(name, text, _label(record, "label"), concepts, _name(record, "group", name))


def _name(record: records.Record, column: str, otherwise: str) -> str:
    """A cell as a name; tables and JSON write an absent one as an empty text or null."""
    try:
        return fields.name(record.value.get(column), column) or otherwise
    except fields.Odd as e:
        raise InputError(f"{record.file}:{record.line}: {e}") from None


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise _Unusable("empty texts, left out")
    return text


def _label(record: records.Record, name: str) -> int:
    value: Any = record.value.get(name)
    try:
        label = int(value)
        if not isinstance(value, str) and label != value:
            raise ValueError("a fraction")
        return label
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"{record.file}:{record.line}: {name}={value!r} must be a whole number; labels count from 0 (CEBaB's stars "
            "from 1)"
        ) from None


def parse_concepts(value: Any, counts: dict[str, int], known: Sequence[str] = ()) -> frozenset[str]:
    """The names in a list or in a text with commas; sentences and names that are not known are counted and left out.

    Args:
        known: the names that may occur; (): all may.
    """
    names = value if isinstance(value, (list, tuple)) else str(value).split(",")
    out = set()
    for name in (_concept(name) for name in names):
        if name in NOTHING:
            continue
        if len(name.split()) > MOST_WORDS or (known and name not in known):
            what = "concepts that are sentences or not known, ignored"
            counts[what] = counts.get(what, 0) + 1
        else:
            out.add(name)
    return frozenset(out)


def _concept(name: Any) -> str:
    try:
        return fields.name(name).lower().rstrip(".")
    except fields.Odd:
        return "a list or an object, which is ignored"  # more words than a concept has


def check_labels(rows: Sequence[Row], loaded: Sequence[records.Record], num_labels: int) -> None:
    """Refuse labels outside 0 to K-1, with the place of the first."""
    wrong = {row.id: row.label for row in rows if not 0 <= row.label < num_labels}
    for record in loaded if wrong else ():
        name = _name(record, "id", f"{record.file}:{record.line}")
        if name in wrong:
            raise InputError(
                f"{record.file}:{record.line}: label {wrong[name]} is outside 0 to {num_labels - 1}; labels count from "
                f"0 (CEBaB's stars from 1), and data.num_labels={num_labels} is their number"
            )
    if num_labels < 2:
        raise InputError(f"all texts have label 0; two labels are needed, or data.num_labels is {num_labels}")


def _checked_edits(rows: Sequence[Row], counts: dict[str, int]) -> list[Row]:
    """CEBaB's rows without edits whose label is not that of their original: not the concept alone was changed.

    Most edits stand in these files without their original; their own label is what five people gave the edited text.
    """
    originals = {row.group: row for row in rows if row.id.endswith("_000000")}
    out = []
    for row in rows:
        original = originals.get(row.group)
        if row.injects and original is not None and original.label != row.label:
            what = "edits whose label differs from their source's, which stand in for no counterfactual"
            counts[what] = counts.get(what, 0) + 1
            row = dataclasses.replace(row, injects="", source="")
        elif row.injects and original is not None:
            row = dataclasses.replace(row, source_id=original.id)
        out.append(row)
    return out


def read_counterfactuals(path: str, rows: Sequence[Row], *, counts: dict[str, int]) -> list[Row]:
    """Written counterfactuals; those without a source among the rows, or with another label than it, are left out.

    Of several rows with the source's text, the first one with the counterfactual's label is its source.

    Raises:
        InputError: columns are missing, or nothing says which concept was written in.
    """
    sources: dict[str, dict[int, Row]] = {}  # text -> label -> its first row
    for row in rows:
        sources.setdefault(row.text, {}).setdefault(row.label, row)
    out = []
    for record in records.read_counted(path, counts=counts):
        value = record.value
        if "cf_text" not in value or "ori_text" not in value:
            raise InputError(
                f"{record.file}:{record.line}: columns found: {', '.join(map(str, value))}. A counterfactual has "
                "cf_text, ori_text, label, and concept unless the file's name says it"
            )
        named = NAME_OF_RELEASED.search(record.file)
        concept = str(value.get("concept") or (named["concept"] if named else "")).strip().lower()
        if not concept:
            raise InputError(
                f"{record.file}:{record.line}: nothing says which concept was written in; add a column concept"
            )
        there, reason = sources.get(str(value["ori_text"]), {}), ""
        source = there.get(_label(record, "label")) if there else None
        if not isinstance(value["cf_text"], str) or not value["cf_text"].strip():
            reason = "empty counterfactuals, left out"
        elif not there:
            reason = "counterfactuals whose source is not among the texts, left out"
        elif source is None:
            reason = "counterfactuals whose label differs from their source's, left out"
        if source is None or reason:
            counts[reason] = counts.get(reason, 0) + 1
            continue
        out.append(counterfactual(source, concept, str(value["cf_text"])))
    return out


def counterfactual(source: Row, concept: str, text: str) -> Row:
    """A text that was made of `source` by writing a concept in."""
    name = f"{source.id}+{concept}+{xxhash.xxh64_hexdigest(text.encode())[:8]}"
    concepts = (source.concepts or frozenset()) | {concept}
    return Row(name, text, source.label, concepts, source.group, concept, source.group, source.id)


def with_training_sources(rows: Sequence[Row], written: Sequence[Row], train: np.ndarray) -> list[Row]:
    """Counterfactuals, made those of a training row where their own source is another row of its text and label."""
    groups = {rows[i].group for i in train}
    by_id = {row.id: row for row in rows}
    twins = {(rows[i].text, rows[i].label): rows[i] for i in reversed(train)}
    out = []
    for row in written:
        source = by_id.get(row.source_id)
        twin = twins.get((source.text, source.label)) if source and row.source not in groups else None
        out.append(counterfactual(twin, row.injects, row.text) if twin else row)
    return out


GROUPS, RELEASED = SPLITS = ("groups", "released")


def split(
    rows: Sequence[Row], *, how: str = GROUPS, test: float, validation: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of training, validation and test rows; with `groups` a group is on one side.

    Args:
        how: `released` shuffles rows as the authors' program does (scikit-learn's `train_test_split`, whose seed is 10
            there); validation rows then come from the end of the training rows. Every group must then be one row.
        test, validation: a share below 1 or a number of rows; of a number a side may miss a few rows where groups are
            larger than one.

    Raises:
        InputError: a side that is left without rows; `released` with groups of several rows.
    """
    if how == RELEASED:
        if more := [name for name, num in Counter(row.group for row in rows).items() if num > 1]:
            raise InputError(
                f"data.split={RELEASED} shuffles texts one by one, and {len(more)} groups, such as {more[0]!r}, have "
                f"several, which would stand on both sides; give data.split={GROUPS}"
            )
        out = _released(len(rows), test, validation, seed)
    else:
        out = _by_groups(rows, test, validation, seed)
    if not len(out[0]) or not len(out[2]):
        raise InputError(
            f"{len(rows)} texts leave {len(out[0])} to train and {len(out[2])} to test on; give more texts, or another "
            "data.test"
        )
    return out


def _by_groups(
    rows: Sequence[Row], test: float, validation: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = Counter(row.group for row in rows)
    names = sorted(sizes)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    side: dict[str, int] = {}
    for number, wanted in ((2, test), (1, validation)):
        room = _number(wanted, len(rows))
        for name in order:
            if name not in side and sizes[name] <= room:
                side[name] = number
                room -= sizes[name]
            if not room:
                break
    sides_N = np.array([side.get(row.group, 0) for row in rows])
    return np.flatnonzero(sides_N == 0), np.flatnonzero(sides_N == 1), np.flatnonzero(sides_N == 2)


def _released(num: int, test: float, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # takes a second to import

    num_test = _number(test, num)
    num_train = num - num_test - _number(validation, num)
    if num_train < 1 or num_test < 1:
        raise InputError(
            f"data.test={test:g} and data.validation={validation:g} of {num} texts leave {max(num_train, 0)} to train "
            f"on and {num_test} to test on; give more texts, or other shares"
        )
    train, tested = train_test_split(np.arange(num), test_size=num_test, random_state=seed)
    return train[:num_train], train[num_train:], tested


def _number(wanted: float, num: int) -> int:
    return round(wanted * num) if wanted < 1 else int(wanted)


def num_shared_texts(rows: Sequence[Row], train: np.ndarray, test: np.ndarray) -> int:
    """Test texts that are, word by word, training texts as well."""
    texts = {rows[i].text for i in train}
    return sum(rows[i].text in texts for i in test)
