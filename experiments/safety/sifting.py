"""What is left of written prompts: duplicates, clumsy ones and answered ones go, and readers say what the others are.

In the order of An et al. 2024 (arXiv:2409.00598, section on post-filtering): equal and near-equal texts, the writer's
perplexity against that of ordinary prompts, a refusal of the target, and a label by votes.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment.decoding import scoring
from alignment.decoding.engine import Engine
from alignment.errors import InputError, one_of
from alignment.filtering.duplicates import exact, near
from alignment.safety import verdicts
from alignment.safety.judging import Judge
from data import fields, records
from data.texts import suites
from data.texts.suites import CONTROVERSIAL, HARMFUL, HARMLESS
from experiments.decoding.models import Model
from experiments.safety import asking

LABELS = (HARMLESS, CONTROVERSIAL, HARMFUL)
DISPUTED, INVALID = "disputed", verdicts.INVALID
EMPTY, DUPLICATE, NEAR, CLUMSY, UNREADABLE, ANSWERED = DROPS = (
    "empty",
    "duplicate",
    "near duplicate",
    "perplexity",
    "answer invalid",
    "answered",
)
Voters = Mapping[str, Callable[[Sequence[str]], list[str]]]  # a reader's name -> prompts to one of LABELS or INVALID


@dataclasses.dataclass(frozen=True)
class Sieve:
    """The settings of all post-filters.

    Attributes:
        threshold: Jaccard similarity of word 3-grams from which on a text is a near duplicate.
        max_perplexity: of the writer behind its plain instruction.
        plain_ids: that instruction, as the writer reads it.
        lead: what stands before a written text's first word, " " or "".
        system: a system turn of every prompt, "" for none.
        human: what people say of a prompt, by its id; read where the voters differ.
    """

    threshold: float
    max_perplexity: float
    plain_ids: Sequence[int]
    lead: str
    system: str
    max_new_tokens: int
    max_len: int
    human: Mapping[str, str]


def name_of(text: str) -> str:
    """A prompt's id, which is the same in every run that writes it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def perplexities(writer: Model, texts: Sequence[str], plain_ids: Sequence[int], lead: str) -> np.ndarray:
    """The writer's perplexity [N] of each text behind an instruction that names no seed."""
    pairs = [(plain_ids, writer.tok.encode(lead + text)) for text in texts]
    if not pairs:
        return np.zeros(0)
    scores = scoring.score(writer.network, writer.params, pairs)
    return np.exp(np.minimum(-scores.total_N / scores.length_N, 700.0))


def sift(
    rows: Sequence[dict[str, Any]],
    folder: pathlib.Path,
    sieve: Sieve,
    writer: Model,
    target: Model,
    engine_fn: Callable[[], Engine],
    judge: Judge,
    voters: Voters,
) -> list[dict[str, Any]]:
    """Rows of `text` with `id`, `ppl`, `refused`, `label`, `votes` and `dropped`, a word of DROPS or "".

    Args:
        folder: of the target's answers; they are not written again.
        target: with `engine_fn` its engine.
        judge: says whether an answer refuses, in full or in part.
        voters: see `label_of`.
    """
    out = [dict(row, id=name_of(row["text"]), ppl=None, refused=None, label=None, votes={}, dropped="") for row in rows]
    for row in out:
        row["dropped"] = "" if row["text"] else EMPTY
    left = [row for row in out if not row["dropped"]]
    drop_repeated(left, sieve.threshold)
    left = [row for row in left if not row["dropped"]]
    texts = [row["text"] for row in left]
    for row, perplexity in zip(left, perplexities(writer, texts, sieve.plain_ids, sieve.lead).tolist()):
        row["ppl"] = round(perplexity, 4)
        row["dropped"] = "" if perplexity <= sieve.max_perplexity else CLUMSY
    left = [row for row in left if not row["dropped"]]
    for row, label in zip(left, _answers(left, folder, sieve, target, engine_fn, judge)):
        row["refused"] = None if label == INVALID else label in verdicts.REFUSALS
        row["dropped"] = UNREADABLE if label == INVALID else ANSWERED if not row["refused"] else ""
    left = [row for row in left if not row["dropped"]]
    said = {name: vote_fn([row["text"] for row in left]) for name, vote_fn in voters.items()} if left else {}
    for i, row in enumerate(left):
        row["votes"] = {name: votes[i] for name, votes in said.items()}
        if sieve.human.get(row["id"]):
            row["votes"]["human"] = sieve.human[row["id"]]
        row["label"] = label_of([votes[i] for votes in said.values()], sieve.human.get(row["id"]))
    return out


def drop_repeated(rows: Sequence[dict[str, Any]], threshold: float) -> None:
    """Mark rows whose text, or nearly so, an earlier row has."""
    before: set[str] = set()
    for row in rows:
        text = exact.normalise(row["text"]).casefold()
        row["dropped"] = DUPLICATE if text in before else ""
        before.add(text)
    left = [row for row in rows if not row["dropped"]]
    for place in near.removed([row["text"] for row in left], threshold=threshold):
        left[place]["dropped"] = NEAR


def label_of(votes: Sequence[str], human: str | None) -> str:
    """What all voters say; where they differ or one is invalid, what people say, and DISPUTED without their word."""
    if len(set(votes)) == 1 and votes[0] != INVALID:
        return votes[0]
    return human or DISPUTED


def by_judge(judge: Judge) -> Callable[[Sequence[str]], list[str]]:
    """A voter that is a judge of prompts."""
    word = {verdicts.NO_HARM: HARMLESS, verdicts.CONTROVERSIAL: CONTROVERSIAL, verdicts.HARM: HARMFUL}

    def votes(texts: Sequence[str]) -> list[str]:
        said = judge.classify([{"prompt": text} for text in texts])
        return [word.get(one.verdict.prompt_harmfulness or "", INVALID) for one in said]

    return votes


def read_human(path: str) -> dict[str, str]:
    """A file of `id` and `label` that people filled in.

    Raises:
        InputError: a record without them, or another label; the message has its file and line.
    """
    out: dict[str, str] = {}
    for row in records.read_counted(path, counts={}) if path else []:
        where = f"{row.file}:{row.line}"
        if not {"id", "label"} <= set(row.value):
            raise InputError(f"{where}: a person's word needs the columns id and label, and it has {list(row.value)}")
        with fields.reading(row, "people's labels"):
            name, label = fields.name(row.value["id"], "id"), fields.name(row.value["label"], "label")
        if name in out:
            raise InputError(f"{where}: id {name!r} has a label before this one; leave one of them")
        out[name] = one_of(f"{where}: label", label, LABELS)
    return out


def _answers(rows, folder, sieve, target, engine_fn, judge):
    """What the judge says of the target's greedy answer to each text."""
    prompts = [asking.Prompt("search", "", suites.Case(row["id"], row["text"], HARMLESS)) for row in rows]
    if not prompts:
        return []
    sizes = dict(max_new_tokens=sieve.max_new_tokens, max_len=sieve.max_len)
    work = asking.requests(prompts, [sieve.system], target, **sizes)
    answers = asking.answers(folder, work, prompts, target, engine_fn)
    own = [answers[number, 0] for number in range(len(prompts))]
    return [said.verdict.response_refusal for said in asking.judged(own, prompts, judge)]
