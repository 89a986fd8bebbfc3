"""The public shapes of medical questions, closed and open, which their columns give away.

A shape's reader makes an Item of a row, or raises Unusable with the reason why the row is left out. Shapes that count
options from 1 and shapes that count from 0 look alike, so each has its own reader.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from data import fields

LETTERS = "ABCDEFGHIJ"
CHOICES, PLAIN, SUBJECT, ABSTRACT, TEXT = CLOSED = ("choices", "plain", "subject", "abstract", "text")
PRESCRIBED, OPEN = "prescribed", "open"
ABSTRACT_CLASSES = (
    "neoplasms",
    "digestive system diseases",
    "nervous system diseases",
    "cardiovascular diseases",
    "general pathological conditions",
)


class Unusable(Exception):
    """Why a row cannot be asked."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        options: of a closed question, with the number of the right one, `gold`; () and None where it is open.
        answers: accepted answers of an open question, the reference first.
        context: what is read before the question.
        task: what is asked of an open item, a key of `exams.INSTRUCTIONS`.
        paraphrases: the question in other words.
    """

    id: str
    question: str
    options: tuple[str, ...] = ()
    gold: int | None = None
    answers: tuple[str, ...] = ()
    context: str = ""
    category: str = ""
    year: str = ""
    task: str = ""
    paraphrases: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, str]:
        return {name: value for name, value in (("category", self.category), ("year", self.year)) if value}


Row = Mapping[str, Any]


def _text(row: Row, name: str) -> str:
    text = _said(row, name)
    if not text.strip():
        raise Unusable(f"{name} is empty")
    return text


def _said(row: Row, *names: str) -> str:
    """The text of the first of these columns that has one, "" where none has."""
    try:
        return next((text for name in names if (text := fields.text(row.get(name), name))), "")
    except fields.Odd as e:
        raise Unusable(str(e)) from None


def _named(row: Row, *names: str) -> str:
    """The id, label or number in the first of these columns that has one, "" where none has."""
    try:
        return next((text for name in names if (text := fields.name(row.get(name), name))), "")
    except fields.Odd as e:
        raise Unusable(str(e)) from None


def _closed(row: Row, question: str, options: Sequence[Any], gold: int, **more: Any) -> Item:
    try:
        texts = tuple(fields.text(option, f"option {i}") for i, option in enumerate(options, 1))
    except fields.Odd as e:
        raise Unusable(str(e)) from None
    if empty := [i for i, text in enumerate(texts, 1) if not text.strip()]:
        raise Unusable(f"option {empty[0]} is empty")
    about = dict(category=_named(row, "category", "subject_name", "subject"), year=_named(row, "year"))
    about |= dict(id=_named(row, "unique_id", "id", "ID", "pmid", "PMID"))
    return Item(question=question, options=texts, gold=gold, **{**about, **more})


def _number(row: Row, name: str, first: int, num: int) -> int:
    """The number of an option, which the shape counts from `first`.

    Raises:
        InputError: another number, so that something is wrong with the file and not with a row.
    """
    try:
        number = fields.whole(row[name], name)
    except fields.Odd as e:
        raise InputError(f"{e}, as the number of an option is") from None
    if not first <= number < first + num:
        raise InputError(f"{name}={number} is not from {first} to {first + num - 1}, as this shape counts its options")
    return number - first


def _letter(value: Any, name: str, num: int) -> int:
    letter = str(value).strip().upper()
    if len(letter) != 1 or letter not in LETTERS[:num]:
        raise InputError(f"{name}={value!r} is not one of the letters {', '.join(LETTERS[:num])}")
    return LETTERS.index(letter)


def _careqa(row: Row) -> Item:
    gold = _number(row, "cop", 1, 4)
    return _closed(row, _text(row, "question"), [row[f"op{i}"] for i in range(1, 5)], gold)


def _medmcqa(row: Row) -> Item:
    gold = _number(row, "cop", 0, 4)
    return _closed(row, _text(row, "question"), [row[f"op{c}"] for c in "abcd"], gold)


def _medqa_hub(row: Row) -> Item:
    question = " ".join(text for name in ("sent1", "sent2") if (text := _said(row, name)))
    if not question.strip():
        raise Unusable("sent1 is empty")
    return _closed(row, question, [row[f"ending{i}"] for i in range(4)], _number(row, "label", 0, 4))


def _lettered(row: Row) -> Item:
    """Options by letter, as prompt_engine and MedQA's own files have them."""
    options = fields.parsed(row["options"])
    if isinstance(options, list) and all(
        isinstance(entry, Mapping) and {"key", "value"} <= set(entry) for entry in options
    ):
        options = {str(entry["key"]): entry["value"] for entry in options}
    if not isinstance(options, Mapping):
        raise InputError(
            f"options={str(row['options'])[:40]} must be an object of texts by letter, {{'A': ..., 'B': ...}}"
        )
    letters = sorted(options)
    if letters != list(LETTERS[: len(letters)]) or len(letters) < 2:
        raise InputError(f"options are called {', '.join(map(str, letters))}; they must be A, B, ... without a gap")
    name = "correct_answer" if "correct_answer" in row else "answer_idx"
    gold = _letter(row[name], name, len(letters))
    return _closed(row, _text(row, "question"), [options[letter] for letter in letters], gold)


def _mmlu(row: Row) -> Item:
    options = fields.sequence(row["choices"], "choices")
    answer = row["answer"]
    is_letter = isinstance(answer, str) and not answer.strip().isdigit()
    gold = _letter(answer, "answer", len(options)) if is_letter else _number(row, "answer", 0, len(options))
    return _closed(row, _text(row, "question"), options, gold)


def _arc(row: Row) -> Item:
    """ARC's and EXAMS's: choices with labels, which EXAMS puts into the question."""
    question, choices = fields.parsed(row["question"]), fields.parsed(row.get("choices"))
    if isinstance(question, Mapping):
        question, choices = question["stem"], question["choices"]
    if isinstance(choices, Mapping):
        texts, labels = (fields.sequence(choices[name], f"choices.{name}") for name in ("text", "label"))
        if len(texts) != len(labels):
            raise InputError(f"choices has {len(texts)} texts and {len(labels)} labels")
    else:
        choices = fields.sequence(choices, "choices")
        texts, labels = [c["text"] for c in choices], [c["label"] for c in choices]
    key, names = fields.name(row["answerKey"], "answerKey"), [fields.name(label, "a label") for label in labels]
    if names.count(key) != 1:
        raise InputError(f"answerKey={row['answerKey']!r} is not one of the labels {', '.join(names)}")
    return _closed(row, _text({"question": question}, "question"), texts, names.index(key))


def _pubmedqa(row: Row) -> Item:
    words = ("yes", "no", "maybe")
    long_answer = _said(row, "LONG_ANSWER")
    answers = (long_answer,) if long_answer.strip() else ()
    if row["final_decision"] not in words:
        raise InputError(f"final_decision={row['final_decision']!r} is not one of {', '.join(words)}")
    gold = words.index(row["final_decision"])
    contexts = fields.parsed(row["CONTEXTS"])
    context = "\n".join(fields.text(c, "CONTEXTS") for c in (contexts if isinstance(contexts, list) else [contexts]))
    if not context.strip():
        raise Unusable("CONTEXTS is empty")
    more = dict(context=context, year=_named(row, "YEAR"), answers=answers)
    return _closed(row, _text(row, "QUESTION"), words, gold, **more)


def _arabic_mmlu(row: Row) -> Item:
    options = _first([_said(row, f"Option {i}") for i in range(1, 6)])
    gold = _letter(row["Answer Key"], "Answer Key", len(options))
    context, subject = _said(row, "Context"), _named(row, "Subject")
    return _closed(row, _text(row, "Question"), options, gold, context=context, category=subject)


def _aratrust(row: Row) -> Item:
    options = _first([_said(row, letter) for letter in "ABCD"])
    gold = _letter(row["Answer"], "Answer", len(options))
    return _closed(row, _text(row, "Question"), options, gold, category=_named(row, "Category"))


def _first(texts: Sequence[str]) -> list[str]:
    """The options of a row that may have fewer than there are columns.

    Raises:
        Unusable: an empty one before others, which would move up and take its letter.
    """
    num = max((i for i, text in enumerate(texts, 1) if text.strip()), default=0)
    if empty := [i for i, text in enumerate(texts[:num], 1) if not text.strip()]:
        raise Unusable(f"option {empty[0]} is empty")
    return list(texts[:num])


TRUTHS = {"صح": ("صح", "خطأ"), "خطأ": ("صح", "خطأ"), "true": ("True", "False"), "false": ("True", "False")}


def _acva(row: Row) -> Item:
    said = fields.name(row["answer"], "answer")
    options = TRUTHS[said.lower()]
    gold = [option.lower() for option in options].index(said.lower())
    return _closed(row, _text(row, "question"), options, gold)


def _abstracts(row: Row) -> Item:
    name = "class" if "class" in row else "condition_label"
    text = _text(row, "text" if "text" in row else "medical_abstract")
    return _closed(row, text, ABSTRACT_CLASSES, _number(row, name, 1, len(ABSTRACT_CLASSES)))


def _named_class(text: str, label: str) -> Callable[[Row], Item]:
    """A class by its name; all names of the file are the options, which `exams` fills in."""

    def read(row: Row) -> Item:
        return Item(id=_named(row, "id"), question=_text(row, text), options=(_class(row, label),), gold=0)

    return read


def _class(row: Row, name: str) -> str:
    if not (label := _named(row, name)):
        raise Unusable(f"{name} is empty")
    return label


def _relation(row: Row) -> Item:
    question = f"{_text(row, 'text')}\nWhat relation has {_text(row, 'head')} to {_text(row, 'tail')}?"
    return Item(id=_named(row, "id"), question=question, options=(_class(row, "relation"),), gold=0)


def _open(question: str, answer: str, task: str) -> Callable[[Row], Item]:
    def read(row: Row) -> Item:
        listed = row[answer] if isinstance(row.get(answer), list) else [row.get(answer)]
        answers = [text for one in listed if (text := _said({answer: one}, answer)).strip()]
        if not answers:
            raise Unusable(f"{answer} is empty")
        name = _named(row, "unique_id", "id", "ID")
        about = dict(category=_named(row, "category", "section_header"), year=_named(row, "year"))
        return Item(id=name, question=_text(row, question), answers=tuple(answers), task=task, **about)

    return read


def _mediqa(row: Row) -> Item:
    question = row["QUESTION"]
    if not question["AnswerList"]:
        raise Unusable("AnswerList is empty")
    # the public task compares with the first answer of the list only
    answer = _text(question["AnswerList"][0]["Answer"], "AnswerText")
    return Item(_named(question, "QID"), _text(question, "QuestionText"), answers=(answer,), task="patient")


def _meddialog(row: Row) -> Item:
    said = fields.parsed(row["utterances"])
    said = fields.sequence(said["utterance"] if isinstance(said, Mapping) else said, "utterances")
    if len(said) < 2:
        raise Unusable("utterances has no answer of a doctor")
    answer = _text({"utterances": said[1]}, "utterances")
    return Item(_named(row, "id"), _text(row, "description"), answers=(answer,), task="patient")


def _meqsum(row: Row) -> Item:
    text = _text(row, "CHQ")
    at = text.find("MESSAGE")
    return Item("", text[at + 9 :] if at >= 0 else text, answers=(_text(row, "Summary"),), task="summary")


def _mimic(row: Row) -> Item:
    if "findings" in row:
        return Item("", _text(row, "findings"), answers=(_text(row, "impression"),), task="report")
    parts = re.split("IMPRESSION", _text(row, "extractive_notes_summ"), maxsplit=1, flags=re.I)
    if len(parts) < 2 or not all(part.strip(" :\n") for part in parts):
        raise Unusable("it has no findings or no impression")
    return Item("", parts[0].strip(), answers=(parts[1].strip(" :\n"),), task="report")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A format: the columns that it is known by, how a row is read, and how it is asked."""

    columns: frozenset[str]
    read: Callable[[Row], Item]
    style: str


def _shape(columns: str, read: Callable[[Row], Item], style: str) -> Shape:
    return Shape(frozenset(name.strip() for name in columns.split(",")), read, style)


# Looked up in this order: a shape comes before those whose columns it has as well.
SHAPES = {
    "careqa": _shape("question, op1, op2, op3, op4, cop", _careqa, CHOICES),
    "medmcqa": _shape("question, opa, opb, opc, opd, cop", _medmcqa, CHOICES),
    "medqa_hub": _shape("sent1, ending0, ending1, ending2, ending3, label", _medqa_hub, PLAIN),
    "lettered": _shape("question, options, correct_answer", _lettered, CHOICES),
    "medqa": _shape("question, options, answer_idx", _lettered, PLAIN),
    "pubmedqa": _shape("QUESTION, CONTEXTS, final_decision", _pubmedqa, ABSTRACT),
    "arc": _shape("question, choices, answerKey", _arc, CHOICES),
    "exams": _shape("question, answerKey", _arc, CHOICES),
    "mmlu": _shape("question, choices, answer", _mmlu, SUBJECT),
    "arabic_mmlu": _shape("Question, Option 1, Option 2, Answer Key", _arabic_mmlu, CHOICES),
    "aratrust": _shape("Question, A, B, Answer", _aratrust, CHOICES),
    "abstracts": _shape("text, class", _abstracts, TEXT),
    "abstracts_hub": _shape("medical_abstract, condition_label", _abstracts, TEXT),
    "transcriptions": _shape(
        "transcription, medical_specialty", _named_class("transcription", "medical_specialty"), TEXT
    ),
    "relations": _shape("text, head, tail, relation", _relation, TEXT),
    "classes": _shape("text, label", _named_class("text", "label"), TEXT),
    "mediqa": _shape("QUESTION", _mediqa, OPEN),
    "meddialog": _shape("description, utterances", _meddialog, OPEN),
    "meqsum": _shape("CHQ, Summary", _meqsum, OPEN),
    "medtext": _shape("Prompt, Completion", _open("Prompt", "Completion", "diagnosis"), OPEN),
    "mts_dialog": _shape("dialogue, section_text", _open("dialogue", "section_text", "note"), OPEN),
    "aci_bench": _shape("dialogue, note", _open("dialogue", "note", "note"), OPEN),
    "olaph": _shape("Question, Free_form_answer", _open("Question", "Free_form_answer", "long"), OPEN),
    "mimic": _shape("findings, impression", _mimic, OPEN),
    "mimic_notes": _shape("extractive_notes_summ", _mimic, OPEN),
    "qsumm": _shape("src, tgt", _open("src", "tgt", "summary"), OPEN),
    "own": _shape("prompt, reference", _open("prompt", "reference", ""), OPEN),
    "open": _shape("question, answer", _open("question", "answer", "question"), OPEN),
}
ACVA = "acva"  # its columns are those of `open`; all its answers are true or false
SHAPES[ACVA] = _shape("question, answer", _acva, CHOICES)
