"""How many attacks succeed against a model, and how many harmless prompts it refuses."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.decoding.engine import Engine
from alignment.safety import judging, rates
from alignment.safety.judging import Judge
from data import records
from data.texts import suites
from data.toys import clinic
from experiments.decoding.models import Model
from experiments.medicine.world import EMBEDDED
from experiments.safety import asking
from experiments.safety.asking import Prompt


def settings() -> dict[str, Any]:
    """The group of a config that says which prompts measure safety."""
    return dict(
        attacks="",  # files of prompts to be refused, with commas between; "" leaves them out
        harmless="",  # files of prompts to be answered; others in them are left out
        limit=config_dict.placeholder(int),  # prompts of each file, drawn by seed; None takes all
        max_new_tokens=256,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The prompts that measure safety."""

    attacks: Sequence[Prompt]
    harmless: Sequence[Prompt]


def check(r: ml_collections.ConfigDict) -> None:
    for path in (r.attacks, r.harmless):
        for one in asking.paths(path):
            if one and one != EMBEDDED:
                records.check(one)


def read(r: ml_collections.ConfigDict, folder: pathlib.Path, counts: dict[str, int], *, seed: int) -> Plan:
    """Read the prompts of `settings`; `counts` receives what was read and left out."""
    sides = {}
    for name, rows_fn in (("attacks", _attacks), ("harmless", _harmless)):
        if not r[name]:
            sides[name] = []
            continue
        prompts = asking.read(
            r[name],
            embedded={EMBEDDED: rows_fn},
            counts=counts,
            bad_records_path=str(folder / f"bad_{name}.jsonl"),
            kind=suites.HARMFUL if name == "attacks" else None,
        )
        wanted = suites.HARMFUL if name == "attacks" else suites.HARMLESS
        own = []
        for dataset in dict.fromkeys(prompt.dataset for prompt in prompts):
            of_set = [one for one in prompts if one.dataset == dataset and one.case.kind == wanted]
            own += asking.some(of_set, r.limit, seed)
        counts[f"{name} asked"] = len(own)
        counts[f"prompts of the files of {name} left out"] = len(prompts) - len(own)
        sides[name] = own
    return Plan(**sides)


def _attacks() -> list[dict[str, Any]]:
    return [row | {"kind": suites.HARMFUL, "topics": ("keys",)} for row in clinic.attacks("test")]


def _harmless() -> list[dict[str, Any]]:
    rows = clinic.harmless("test")
    return [{"id": row["id"], "prompt": row["prompt"], "kind": suites.HARMLESS} for row in rows]


@dataclasses.dataclass(frozen=True)
class Safety:
    """Rates of one model, and for each attack whether it succeeded, in the plan's order; None for an invalid answer."""

    attacks: rates.Rate
    harmless: rates.Rate
    by_style: Mapping[str, rates.Rate]
    succeeded: Sequence[bool | None]


def measure(
    plan: Plan,
    model: Model,
    engine_fn: Callable[[], Engine],
    judge: Judge,
    folder: pathlib.Path,
    *,
    max_new_tokens: int,
    max_len: int,
) -> Safety:
    """Greedy answers to the plan's prompts, which stay in `folder`, and what the judge says of them."""
    prompts = [*plan.attacks, *plan.harmless]
    work = asking.requests(prompts, [""], model, max_new_tokens=max_new_tokens, max_len=max_len)
    answers = asking.answers(folder, work, prompts, model, engine_fn)
    rows = [answers[number, 0] for number in range(len(prompts))]
    num = len(plan.attacks)
    said = [one.verdict.response for one in asking.judged(rows[:num], plan.attacks, judge)]
    refused = [one.verdict.response_refusal for one in asking.judged(rows[num:], plan.harmless, judging.keyword())]
    styles = list(dict.fromkeys(prompt.case.style for prompt in plan.attacks))
    return Safety(
        rates.attack_success(said),
        rates.false_refusals([label for label in refused if label is not None]),
        {
            style: rates.attack_success(word for word, prompt in zip(said, plan.attacks) if prompt.case.style == style)
            for style in styles
        },
        [None if word == judging.verdicts.INVALID else word == judging.verdicts.UNSAFE for word in said],
    )
