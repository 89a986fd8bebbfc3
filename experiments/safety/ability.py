"""What a model can do beside being safe: questions with several answers, and perplexity on text."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files, intervals
from alignment.decoding import scoring
from alignment.errors import InputError
from data import fields, loader, records
from data.texts import answers, text_formats
from data.texts.pair_formats import Comparison
from experiments.decoding.models import Model

COLUMNS = ("question", "choices", "answerKey")


def read_questions(path: str, limit: int | None, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Questions in the shape of ARC's, also where a file has those of MMLU's and MedQA's copies.

    The one has `question`, `choices` (`text` and `label`) and `answerKey`, the other `question`, `options` (label ->
    text) and `correct_answer`.

    Raises:
        InputError: a column is missing, or the key is not a label.
    """
    out = []
    for row in records.first(records.read_counted(path, counts=counts), limit, counts):
        value = row.value
        if isinstance(value.get("options"), Mapping) and "correct_answer" in value:
            choices = {"label": list(value["options"]), "text": list(value["options"].values())}
            value = value | {"choices": choices, "answerKey": value["correct_answer"]}
        if missing := [name for name in COLUMNS if name not in value]:
            raise InputError(f"{row.file}:{row.line}: no column {missing[0]!r}; a question has {', '.join(COLUMNS)}")
        with fields.reading(row, "questions"):
            choices = fields.parsed(value["choices"])
            labels, texts = (fields.sequence(choices[name], f"choices.{name}") for name in ("label", "text"))
            labels, key = [fields.name(label) for label in labels], fields.name(value["answerKey"], "answerKey")
            texts = [fields.text(text, "choices.text") for text in texts]
            if len(labels) != len(texts) or not all(text.strip() for text in texts):
                raise ValueError(f"choices has {len(labels)} labels and {len(texts)} texts, and every label needs one")
            question = fields.text(value["question"], "question")
        if key not in labels:
            raise InputError(f"{row.file}:{row.line}: answerKey={value['answerKey']!r} is not a label of its choices")
        out.append(value | {"question": question, "choices": {"label": labels, "text": texts}, "answerKey": key})
    return out


def read_texts(path: str, limit: int | None, counts: dict[str, int]) -> list[str]:
    """The documents of a path."""
    options: dict[str, Any] = dict(split="test", kind="documents", columns={}, seed=0, bad_records_path="")
    return [item.answers[0] for item in text_formats.read(path, limit=limit, report=counts, **options)]


def measure(
    model: Model,
    questions: Sequence[dict[str, Any]],
    texts: Sequence[str],
    path: pathlib.Path,
    *,
    max_len: int,
) -> dict[str, Any]:
    """Accuracy of the likeliest choice with its interval, and perplexity per token; None where nothing measures it.

    Args:
        model: with its weights.
        path: of a JSON file, from which a later start takes the numbers, if they are of this model and these texts.
        max_len: tokens that the model reads at once.
    """
    content = [json.dumps([row[name] for name in COLUMNS]) for row in questions] + ["", *texts]
    made_from = {"weights": model.digest, "content": loader.digest(np.array([max_len]), texts=content)}
    if path.is_file() and (stored := files.read_note(path))["made_from"] == made_from:
        return stored["numbers"]
    numbers = _choices(model, questions, max_len) | _perplexity(model, texts, max_len)
    files.write_json(path, {"made_from": made_from, "numbers": numbers})
    return numbers


def _choices(model: Model, questions: Sequence[dict[str, Any]], max_len: int) -> dict[str, Any]:
    if not questions:
        return {"accuracy": None, "interval": None, "questions": 0}
    comparisons = [Comparison(row["question"], (choice,)) for row in questions for choice in row["choices"]["text"]]
    pairs = []
    for encoded in answers.encode(model.tok, comparisons, [item.answers[0] for item in comparisons], mode="always"):
        if isinstance(encoded, records.BadRecord):
            raise InputError(f"a question cannot be asked: {encoded.reason}")
        pairs.append((encoded.ids[: encoded.prompt_len], encoded.ids[encoded.prompt_len :]))
    total_N = scoring.score(model.network, model.params, pairs, max_len=max_len, mesh=model.mesh).total_N
    at, hits = 0, 0
    for row in questions:
        labels = row["choices"]["label"]
        hits += labels[int(np.argmax(total_N[at : at + len(labels)]))] == row["answerKey"]
        at += len(labels)
    return {
        "accuracy": hits / len(questions),
        "interval": intervals.wilson(hits, len(questions)),
        "questions": len(questions),
    }


def _perplexity(model: Model, texts: Sequence[str], max_len: int) -> dict[str, Any]:
    if not texts:
        return {"perplexity": None, "tokens": 0}
    tok = model.tok
    ids = [tok.encode(text) for text in texts]
    prefix = tok.bos_id if tok.bos_id is not None else tok.stop_ids[0]
    scores = scoring.rolling(model.network, model.params, ids, prefix_id=prefix, max_len=max_len, mesh=model.mesh)
    num = int(scores.length_N.sum())
    return {"perplexity": math.exp(min(-float(scores.total_N.sum()) / num, 700.0)), "tokens": num}
