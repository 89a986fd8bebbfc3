"""Exams of medical knowledge: files of closed and open questions, and the prompts in which they are asked.

Prompts of closed questions are those of lm-evaluation-harness, word for word, so that log-likelihoods agree with it.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from alignment import errors, files
from alignment.errors import InputError
from data import fields, hub, records
from data.texts import exam_shapes, prescriptions
from data.texts.exam_shapes import ABSTRACT, ACVA, CHOICES, LETTERS, OPEN, PLAIN, PRESCRIBED, SUBJECT, TEXT, Item, Shape

# A shape comes before those whose columns it has as well.
SHAPES = exam_shapes.SHAPES | {
    "prescriptions": Shape(frozenset(("diagnosis", "medicines")), prescriptions.read, PRESCRIBED),
    "prescriptions_hub": Shape(frozenset(("results",)), prescriptions.read, PRESCRIBED),
}
MMLU = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics")
MMLU += ("professional_medicine",)
INSTRUCTIONS = {  # of open questions, by what is asked
    "question": "Instructions: The following text is a medical question. Answer it in the most factual, concise and "
    'informative way possible"',  # with the stray quote of the public task, which belongs to its numbers
    "patient": "Instructions: The following text is a question asked by a patient. Answer how a doctor would.",
    "diagnosis": "Instructions: The following text is a patient's record. Answer how a doctor would: what is the "
    "likely diagnosis, and what is the treatment?",
    "note": "Instructions: The following text is a dialogue between doctor and patient. Write a note with its relevant "
    "information.",
    "long": "Instructions: Answer the following question as concisely as possible without omitting relevant "
    "information.",
    "summary": "Instructions: The following text contains a medical question. Extract and summarize the question.",
    "report": "Instructions: Summarize the findings of the following report into diagnostic statements.",
    "": "",
}
LEAST_LETTERS = {"note": 5, "report": 5, "long": 10}  # characters below which the public tasks score nothing
MIMIC = "mimic"  # in the name of a file of reports, which nobody may hand on
ACCESS = (
    "MIMIC's reports are given by PhysioNet alone, to readers who have finished its training and signed the data use "
    "agreement (physionet.org/content/mimiciii), so they are never fetched; name a file of your own copy, with the "
    "columns findings and impression, or extractive_notes_summ"
)
_SUFFIX = re.compile(r"\.(csv|tsv|jsonl?|ndjson|parquet|txt)(\.\w+)?$")


@dataclasses.dataclass(frozen=True)
class Exam:
    """A set of questions of one shape.

    Attributes:
        name: of the file, without its ending.
        style: how it is asked: one of exam_shapes.CLOSED, PRESCRIBED, OPEN.
        subject: of MMLU's sentence before a question; "" for other styles.
        sha256: of the file; "" for embedded questions.
        repeated: numbers of items whose question an earlier one has as well.
    """

    name: str
    items: tuple[Item, ...]
    shape: str
    style: str
    subject: str = ""
    sha256: str = ""
    repeated: tuple[int, ...] = ()

    @property
    def is_open(self) -> bool:
        return self.style == OPEN

    @property
    def digest(self) -> str:
        """Digest of all that a model reads and is compared with."""
        content = hashlib.sha256(repr((self.style, self.subject, self.items)).encode())
        return content.hexdigest()[:16]


def load(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    limit: int | None = None,
    style: str | None = None,
    counts: dict[str, int],
    bad_records_path: str = "",
) -> Exam:
    """Read one file of questions.

    Args:
        path: see `records.read`.
        columns: our names of columns to the file's.
        overrides: id -> columns to put in place of the file's own, for rows with a fault that somebody has looked at.
        limit: the first so many questions; None: all.
        style: how a closed set is asked; None: by its shape and, where the shape is not enough, its name.
        counts: receives what was read and left out.

    Raises:
        InputError: no known shape, or a gold answer that is not among the options.
    """
    rows = records.read_counted(path, counts=counts, bad_records_path=bad_records_path)
    rows = list(records.first(rows, limit, counts))
    columns = _there(columns or {}, rows, path)
    values = []
    for row in rows:
        with fields.reading(row, "an exam"):
            values.append(_overridden(fields.renamed(row, columns), overrides or {}))
    shape = _shape_of(values, path)
    items, refused, ids = [], [], set()
    for number, (row, value) in enumerate(zip(rows, values, strict=True), 1):
        try:
            with fields.reading(row, f"the shape {shape!r}"):
                item = SHAPES[shape].read(value)
                more = _paraphrases(value)
        except exam_shapes.Unusable as e:
            refused.append(records.BadRecord(row.file, row.line, f"{value.get('unique_id') or number}: {e}"))
            continue
        name = item.id or str(number)
        if name in ids:  # what is stored and looked up goes by the id, as of files joined into one
            what = "ids that occur twice, with the number of their row added"
            counts[what] = counts.get(what, 0) + 1
            name = f"{name} ({number})"
        ids.add(name)
        items.append(dataclasses.replace(item, id=name, paraphrases=more))
    if refused:
        counts["questions left out"] = counts.get("questions left out", 0) + len(refused)
        listed = "; ".join(f"{bad.file}:{bad.line}: {bad.reason}" for bad in refused[:5])
        print(f"data: {len(refused)} questions of {path} are left out: {listed}", flush=True)
    if not items:
        raise InputError(f"{path} has no question that can be asked")
    name = name_of(path)
    if SHAPES[shape].style == PRESCRIBED:
        items = prescriptions.as_questions(items, hard="hard" in name.lower())
    elif {len(item.options) for item in items} == {1}:
        items = _with_classes(items)
    keys: set[tuple[str, str]] = set()
    repeated = [i for i, item in enumerate(items) if (key := (item.question, item.context)) in keys or keys.add(key)]
    style = style or _style_of(shape, name)
    subject = next((subject for subject in MMLU if subject in name), name) if style == SUBJECT else ""
    return Exam(name, tuple(items), shape, style, subject.replace("_", " "), _sha256(path), tuple(repeated))


def lacks_mimic(path: str) -> bool:
    """Whether a path names MIMIC's reports and no copy of them lies here; those of a hub are not taken."""
    if MIMIC not in path.lower():
        return False
    if hub.is_spec(path):
        return True
    try:
        return not records.find(path)
    except InputError:
        return True


def read_overrides(path: str) -> dict[str, dict[str, Any]]:
    """A JSON file of id -> columns to put in place of the file's own; {} of "".

    Raises:
        InputError: the file is not there or holds something else.
    """
    overrides = files.read_object(path, "give a JSON object of ids and columns") if path else {}
    if odd := next((name for name, columns in overrides.items() if not isinstance(columns, dict)), None):
        raise InputError(f"{path}: {odd!r} must be an object of columns, such as {{'op1': 'a text'}}")
    return overrides


def name_of(path: str) -> str:
    """A set's name on tables: the file's without its ending."""
    return _SUFFIX.sub("", pathlib.PurePath(path).name).replace("/", "_") or path


def opened(exam: Exam) -> Exam:
    """A closed set as open questions: the reference is the row's long answer, else the right option's text.

    Raises:
        InputError: the set is open already.
    """
    if exam.is_open:
        raise InputError(f"{exam.name} is open already; leave it out of data.opened")
    items = [
        dataclasses.replace(
            item, options=(), gold=None, answers=item.answers or (item.options[item.gold or 0],), task="question"
        )
        for item in exam.items
    ]
    return dataclasses.replace(exam, name=f"{exam.name}_open", items=tuple(items), style=OPEN)


def check_style(style: str | None) -> None:
    """Refuse a way of asking that nobody knows."""
    if style is not None:
        errors.one_of("data.style", style, exam_shapes.CLOSED)


def has_letters(style: str) -> bool:
    """Whether a question of this style is answered by a letter; others are answered by the option's text."""
    return style in (CHOICES, PLAIN, SUBJECT)


def prompt(exam: Exam, item: Item, *, by_letter: bool) -> str:
    """The text before the answer of a closed question.

    Args:
        by_letter: the options are listed and the answer is a letter; else the question stands alone, and the answer is
            an option's text.
    """
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, item.options))
    before = f"{item.context}\n\n" if item.context and exam.style != ABSTRACT else ""
    if exam.style == ABSTRACT:
        return f"Abstract: {item.context}\nQuestion: {item.question}\nAnswer:"
    if exam.style == PRESCRIBED:
        listed = lines.replace("\n", " \n")  # blanks before line ends as the public task has them
        return f"{question_of(exam, item)} \nChoices: \n{listed}Answer:"
    if exam.style == TEXT:
        listed = ", ".join(item.options)
        return f"Which of these fits the following text: {listed}?\nText: {item.question}\nAnswer:"
    if not by_letter:
        return f"{before}Question: {item.question}\nAnswer:"
    if exam.style == SUBJECT:
        about = f"The following are multiple choice questions (with answers) about {exam.subject}.\n\n"
        return f"{about}{before}{item.question.strip()}\n{lines}Answer:"
    choices = "Choices:\n" if exam.style == CHOICES else ""
    return f"{before}Question: {item.question}\n{choices}{lines}Answer:"


def written_prompt(exam: Exam, item: Item) -> str:
    """A closed question with its options, which a model answers in words: by letter, and by text where letters end."""
    if has_letters(exam.style):
        return prompt(exam, item, by_letter=True).removesuffix("Answer:")
    before = prompt(exam, item, by_letter=False).removesuffix("Answer:")
    if exam.style == PRESCRIBED or len(item.options) > len(LETTERS):
        return before  # it lists the options already
    return before + "Choices:\n" + "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, item.options))


def question_of(exam: Exam, item: Item) -> str:
    """What is asked of a closed item, without context and options: its question, or what a text is shown for."""
    if exam.style == PRESCRIBED:
        return f"{_complaint(item)} What would you prescribe in this case?"
    return f"Which of these fits the following text?\n{item.question}" if exam.style == TEXT else item.question


def _complaint(item: Item) -> str:
    return f"You are a medical doctor. A patient presents the following diagnosis or complains: {item.question}."


def open_prompt(item: Item) -> str:
    """The text of an open question: what is asked on a line, and the question."""
    instruction = INSTRUCTIONS[item.task]
    question = f"{item.context}\n\n{item.question}" if item.context else item.question
    return f"{instruction}\n{question}" if instruction else question


def _paraphrases(value: Mapping[str, Any]) -> tuple[str, ...]:
    """The question in other words: a list, the list that a cell of a table writes, or one text."""
    stated = fields.parsed(value.get("paraphrases"))
    stated = stated if isinstance(stated, (list, tuple)) else [stated]
    return tuple(text for one in stated if (text := fields.text(one, "paraphrases")).strip())


def _there(columns: Mapping[str, str], rows: Sequence[records.Record], path: str) -> dict[str, str]:
    """The columns that some row has: one run reads several sets, and not each has columns of other names."""
    has = {name for row in rows for name in row.value}
    for own, column in columns.items():
        if column and column not in has:
            print(f"data: {path} has no column {column!r}, which columns.{own} names", flush=True)
    return {own: column for own, column in columns.items() if column in has}


def _overridden(value: dict[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ids = [written for name in ("unique_id", "id") if (written := fields.name(value.get(name), name))]
    return value | dict(overrides.get(ids[0] if ids else "", {}))


def _shape_of(values: Sequence[Mapping[str, Any]], path: str) -> str:
    there = set(values[0])
    for name, shape in SHAPES.items():
        if shape.columns <= there:
            if name == "open" and all(str(v.get("answer")).strip().lower() in exam_shapes.TRUTHS for v in values):
                return ACVA
            if name == "mediqa" and not isinstance(values[0]["QUESTION"], Mapping):
                continue
            return name
    raise InputError(
        f"{path} has the columns {', '.join(sorted(there))}, which are not those of a known exam; the plainest one is "
        "question, options (by letter) and correct_answer, or question and answer. --config.data.columns renames"
    )


def _style_of(shape: str, name: str) -> str:
    """Sets that share a shape are told apart by their names, as each has its own prompt in the harness."""
    if shape == "lettered":
        lowered = name.lower()
        if any(subject in lowered for subject in MMLU) or "mmlu" in lowered:
            return SUBJECT
        return PLAIN if "medqa" in lowered else CHOICES
    return SHAPES[shape].style


def _with_classes(items: Sequence[Item]) -> list[Item]:
    """Items whose one option is their class, with all classes of the file as options."""
    classes = tuple(label for label, _ in sorted(Counter(item.options[0] for item in items).items()))
    return [dataclasses.replace(item, options=classes, gold=classes.index(item.options[0])) for item in items]


def _sha256(path: str) -> str:
    content = hashlib.sha256()
    for file in records.find(path):
        content.update(pathlib.Path(file).read_bytes())
    return content.hexdigest()
