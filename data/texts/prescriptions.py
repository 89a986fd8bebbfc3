"""Prescription writing as multiple choice: what a doctor prescribed, beside medicines or doses that were not.

The public task (med_prescriptions of lm-evaluation-harness) draws its wrong options with the global random generator
and from a list of its own; here they are drawn from the file's other rows, by the row's id, so that a file always gives
the same questions. Numbers compare with others of this project, not with the public task's.
"""

import ast
import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError
from data import fields
from data.texts.exam_shapes import Item, Unusable

DURATIONS = ("1 week", "1 month", "3 days", "5 days", "2 weeks", "10 days", "3 weeks", "2 months", "once")
FREQUENCIES = ("before breakfast", "before breakfast and dinner", "after food", "before food")
WRONG = 3  # options beside the right one
EMPTY = ("", "na", "n/a", "not specified", "not provided")


def read(row: Mapping[str, Any]) -> Item:
    """A row of `diagnosis` and `medicines`, or of the hub's `results`; all its medicines are options for now.

    Raises:
        Unusable: no diagnosis or no medicine.
    """
    diagnosis, medicines = _of_results(row["results"]) if "results" in row else (row["diagnosis"], row["medicines"])
    try:
        texts = [fields.text(one, "a medicine").strip() for one in fields.sequence(medicines, "medicines")]
        named, diagnosis = fields.name(row.get("id"), "id"), fields.text(diagnosis, "diagnosis").strip()
    except fields.Odd as e:
        raise Unusable(str(e)) from None
    texts = [text for text in texts if text.lower() not in EMPTY]
    if diagnosis.lower() in EMPTY or not texts:
        raise Unusable("it has no diagnosis or no medicine")
    return Item(named, diagnosis, options=tuple(texts))


def as_questions(items: Sequence[Item], *, hard: bool) -> list[Item]:
    """Four options each, one of them a medicine of the row.

    Args:
        hard: wrong options are the same drug at another frequency and for another time; else other rows' medicines.

    Raises:
        InputError: too few medicines in the file for wrong options.
    """
    all_medicines = list(dict.fromkeys(medicine for item in items for medicine in item.options))
    out = []
    for item in items:
        rng = random.Random(f"prescription {item.id} {item.question}")
        right = rng.choice(item.options)
        if hard:
            drug = right.partition(",")[0]
            others = [f"{drug}, {often}, {long}" for often in FREQUENCIES for long in DURATIONS]
        else:
            others = [medicine for medicine in all_medicines if medicine not in item.options]
        others = [other for other in others if other.casefold() != right.casefold()]
        if len(others) < WRONG:
            raise InputError(f"row {item.id} has {len(others)} medicines of other rows, and {WRONG} are needed")
        options = rng.sample([right, *rng.sample(others, WRONG)], WRONG + 1)
        out.append(dataclasses.replace(item, options=tuple(options), gold=options.index(right)))
    return out


def _of_results(text: Any) -> tuple[str, list[str]]:
    """Diagnosis and medicines of the hub's column, a Python literal."""
    try:
        results = ast.literal_eval(str(text))  # it evaluates literals alone
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Unusable("results is not a literal") from None
    if not isinstance(results, dict):
        raise Unusable("results is not a table")
    procedure, details = results.get("procedure") or {}, results.get("prescription_details") or {}
    diagnosis = procedure.get("chief_complaints_diagnosis") or details.get("disease_diagnosis") or ""
    if not diagnosis and procedure.get("chief_complaints") and procedure.get("diagnosis"):
        diagnosis = f"Complains: {procedure['chief_complaints']}. Diagnosis: {procedure['diagnosis']}"
    diagnosis = diagnosis or ", ".join(map(str, results.get("Symptoms/Complaints") or ()))
    keys = ("medicine_name", "medicine_frequency", "course_duration", "medicine_dosage", "Name", "Duration", "Dosage")
    medicines = []
    for entry in results.get("medicine_details") or results.get("Medicines Prescribed") or ():
        parts = [str(entry[key]) for key in keys if str(entry.get(key) or "").strip().lower() not in EMPTY]
        if len(parts) > 1:
            medicines.append(", ".join([parts[0], *(part.lower() for part in parts[1:])]))
    return str(diagnosis), medicines
