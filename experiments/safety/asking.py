"""Prompts of safety suites answered by a model, and what judges say of the answers.

An answer never depends on when a run was killed: see `experiments.decoding.journal`. No prompt's text is in its rows.
"""

import dataclasses
import hashlib
import json
import pathlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.decoding.engine import Engine
from alignment.decoding.requests import Answer, Request
from alignment.errors import InputError
from alignment.safety import verdicts
from alignment.safety.judging import Judge, Judged
from data.texts import suites
from experiments.decoding import answering, journal
from experiments.decoding.journal import Key
from experiments.decoding.models import Model

_SUFFIX = re.compile(r"\.(csv|tsv|jsonl?|ndjson|parquet|txt)(\.\w+)?$")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a data set, with the SHA-256 of the set's files."""

    dataset: str
    sha256: str
    case: suites.Case

    @property
    def text(self) -> str:
        """What the model reads."""
        return self.case.text


def paths(path: str) -> list[str]:
    """A path, or several with commas between."""
    return [path] if pathlib.Path(path).exists() else [part.strip() for part in path.split(",")]


def read(
    path: str,
    *,
    embedded: Mapping[str, Callable[[], Sequence[Mapping[str, Any]]]],
    counts: dict[str, int],
    bad_records_path: str,
    limit: int | None = None,
    draw_seed: int | None = None,
    **options: Any,
) -> list[Prompt]:
    """The prompts of all files of a path; it says how many of each class, and whether a file is a published one.

    Args:
        embedded: a name such as synthetic:house_rules -> a function that makes rows of a case's fields.
        counts: receives what was read and what was left out.
        limit: prompts of each file; None takes all.
        draw_seed: of the draw of `limit` prompts; None takes the first ones.
        options: of `suites.load`.
    """
    out: list[Prompt] = []
    for one in paths(path):
        if one in embedded:
            cases = [suites.Case(**row) for row in embedded[one]()]
            suite = suites.Suite(tuple(cases), one, "", ())
            counts["records"] = counts.get("records", 0) + len(cases)
        else:
            suite = suites.load(one, counts=counts, bad_records_path=bad_records_path, **options)
            say_version(one, suite)
        name = one.partition(":")[2] if one in embedded else _SUFFIX.sub("", pathlib.Path(one).name)
        if name in {prompt.dataset for prompt in out}:
            raise InputError(f"{path}: two files are called {name!r}; rename one of them")
        cases = some(suite.cases, limit, draw_seed)
        if len(cases) < len(suite.cases):
            what = "records beyond data.limit"
            counts[what] = counts.get(what, 0) + len(suite.cases) - len(cases)
        out += [Prompt(name, suite.sha256, case) for case in cases]
    return out


def some(cases: Sequence[suites.Case], limit: int | None, seed: int | None) -> Sequence[suites.Case]:
    """The first `limit` of them (None: all), or with a seed as many at random, in their order."""
    if limit is None or seed is None or limit >= len(cases):
        return cases[:limit]
    places = random.Random(f"prompts {seed}").sample(range(len(cases)), limit)
    return [cases[i] for i in sorted(places)]


def say_version(path: str, suite: suites.Suite) -> None:
    """How many prompts of each kind a file has, and whether these are the numbers of a published one."""
    num = ", ".join(f"{num:,} {kind}" for kind, num in suite.num_read.items())
    known = suite.version or "WARNING: these are not the numbers of a published file"
    print(f"{path}: {num}; {known}; sha256 {suite.sha256}", flush=True)


def requests(
    prompts: Sequence[Prompt], systems: Sequence[str], model: Model, *, max_new_tokens: int, max_len: int
) -> list[tuple[Key, Request]]:
    """A greedy request for each prompt and system turn, "" for none.

    Raises:
        InputError: a prompt is too long for the engine; the message has its id and not its text.
    """
    work = []
    for number, prompt in enumerate(prompts):
        for sample, system in enumerate(systems):
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": prompt.text})
            ids = model.tok.encode(model.tok.render(messages, add_generation_prompt=True))
            if len(ids) + max_new_tokens > max_len:
                raise InputError(
                    f"prompt {prompt.case.id} of {prompt.dataset} has {len(ids)} tokens, which with max_new_tokens="
                    f"{max_new_tokens} is more than engine.max_len={max_len}; set a larger one"
                )
            work.append(((number, sample), Request(ids, max_new_tokens)))
    return work


def answers(
    folder: pathlib.Path,
    work: Sequence[tuple[Key, Request]],
    prompts: Sequence[Prompt],
    model: Model,
    engine_fn: Callable[[], Engine],
    *,
    source: pathlib.Path | None = None,
) -> dict[Key, dict[str, Any]]:
    """The rows of `folder/generations.jsonl`, by prompt and system turn; what is there already is not written again.

    Args:
        model: with its weights.
        engine_fn: makes its engine; it is called only where an answer is missing.
        source: a folder of another run's answers by the same model to the same prompts, which are taken over.
    """
    made_from = {"weights": model.digest, "prompts": digest(work, prompts)}
    if source is not None:
        journal.take_over(folder, source, made_from)
    return answering.rows(
        folder, made_from, work, engine_fn, lambda key, answer: row_of(prompts[key[0]], model, answer)
    )


def digest(work: Sequence[tuple[Key, Request]], prompts: Sequence[Prompt]) -> str:
    """Of everything in the prompts that an answer depends on, and their ids."""
    content = hashlib.sha256()
    for (number, _), request in work:
        fields = [prompts[number].dataset, prompts[number].case.id, list(request.prompt), request.max_new_tokens]
        content.update(json.dumps(fields).encode())
    return content.hexdigest()[:16]


def row_of(prompt: Prompt, model: Model, answer: Answer) -> dict[str, Any]:
    """A line of generations.jsonl; the prompt's text is not in it."""
    if answer.error:  # a judge would class what there is of it as an answer
        raise FloatingPointError(f"{answer.error} It is prompt {prompt.case.id}")
    return {
        "prompt_id": prompt.case.id,
        "dataset": prompt.dataset,
        "dataset_sha256": prompt.sha256,
        "harmfulness": prompt.case.kind,
        "category": prompt.case.category,
        "model_id": model.name,
        "decoding": {"temperature": 0.0, "max_new_tokens": answer.request.max_new_tokens},
        "response": model.text(answer.text, is_alone=True),
        "finish_reason": answer.finish_reason,
    }


def judged(rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt], judge: Judge) -> list[Judged]:
    """What a judge says of each row's answer; an empty answer is invalid, whoever judges."""
    exchanges = [
        {"prompt": prompt.case.prompt, "response": row["response"]}
        | ({"context": prompt.case.context} if prompt.case.context else {})
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    invalid = verdicts.Verdict(response_refusal=verdicts.INVALID, response_harmfulness=verdicts.INVALID)
    out = [Judged(invalid)] * len(rows)
    places = [i for i, row in enumerate(rows) if row["response"].strip()]
    for i, said in zip(places, judge.classify([exchanges[i] for i in places]), strict=True):
        out[i] = said
    return out
