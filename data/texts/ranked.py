"""Records with several scored answers to a prompt, taken apart into all their pairs.

    {"prompt": ..., "answers": ["...", "...", "..."], "scores": [8.5, 7, 3]}           texts, and a score for each
    {"instruction": ..., "completions": [{"response": "...", "overall_score": 8.5}]}   UltraFeedback
    {"prompt": ..., "answers": [{"answer": "...", "rank": 1}]}                         Nectar: rank 1 is the best

Each pair of answers with different scores becomes a record of its own, `chosen` and `rejected` beside the other
columns, which `pair_formats` reads. In rows of prefix trees (`trees`) prompt and answers stand once all the same.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data import records

ANSWERS = ("answers", "responses", "completions")
SCORES = ("scores", "ratings")
TEXTS = ("response", "answer", "text", "content")  # keys of an answer that is an object
NUMBERS = ("overall_score", "score", "rating")
RANK = "rank"


def expand(
    rows: Sequence[records.Record], columns: Mapping[str, str], counts: dict[str, int]
) -> Iterator[records.Record]:
    """The records, those of several scored answers as one for each pair.

    Args:
        columns: our name of a column (`answers`, `scores`) to the file's.
        counts: receives the pairs made, pairs of equal scores, and records whose answers have no usable scores.
    """
    answers_names = (columns["answers"],) if columns.get("answers") else ANSWERS
    scores_names = (columns["scores"],) if columns.get("scores") else SCORES
    for row in rows:
        answers_name = next((name for name in answers_names if _is_list(row.value.get(name))), None)
        if answers_name is None or any(row.value.get(name) is not None for name in ("chosen", "rejected")):
            yield row
            continue
        scores_name = next((name for name in scores_names if isinstance(row.value.get(name), list)), None)
        scored = _scored(row.value[answers_name], row.value[scores_name] if scores_name else None)
        if scored is None:
            _count(counts, "several answers without a score each")
            continue
        rest = {name: value for name, value in row.value.items() if name not in (answers_name, scores_name)}
        for (one, one_score), (other, other_score) in itertools.combinations(scored, 2):
            if one_score == other_score:
                _count(counts, "pairs of answers with equal scores")
                continue
            _count(counts, "pairs of scored answers")
            chosen, rejected = (one, other) if one_score > other_score else (other, one)
            yield records.Record({**rest, "chosen": chosen, "rejected": rejected}, row.file, row.line)


def _is_list(answers: Any) -> bool:
    """Whether this is a list of answers, rather than of the turns of a dialogue."""
    if not isinstance(answers, list) or len(answers) < 2:
        return False
    return all(isinstance(one, str) or (isinstance(one, dict) and "role" not in one) for one in answers)


def _scored(answers: Sequence[Any], scores: Sequence[Any] | None) -> list[tuple[str, float]] | None:
    """Texts and scores, larger ones better; None where an answer has no text or no finite number."""
    if scores is not None and len(scores) != len(answers):
        return None
    out = []
    for i, answer in enumerate(answers):
        own = answer if isinstance(answer, dict) else {}
        text = answer if isinstance(answer, str) else next((own[key] for key in TEXTS if key in own), None)
        score = scores[i] if scores is not None else next((own[key] for key in NUMBERS if key in own), None)
        if score is None and isinstance(own.get(RANK), int | float):
            score = -own[RANK]
        is_number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if not isinstance(text, str) or not is_number:
            return None
        out.append((text, float(score)))
    return out


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1
