"""What a run reads: questions to tune on, to build examples of and to test on, conversations, and pairs."""

import dataclasses
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment.errors import InputError, within
from alignment.evaluation import options
from alignment.evaluation.examples import Question
from data import records
from data.texts import exams, pair_formats, text
from data.toys import clinic
from experiments.medicine import world
from experiments.medicine.world import EMBEDDED

QUESTIONS, CHAT = "questions", "chat"  # fine-tunes of a run on files


def settings() -> dict[str, Any]:
    """The group of a config that says what is read."""
    return dict(
        questions="medmcqa_train.jsonl",  # files of questions with options; a fine-tune is taught to reason on them
        chat="general.jsonl",  # conversations, or pairs whose chosen answers are taken, of another; "": there is none
        solved="medqa_val.jsonl",  # questions that become examples for others
        test="medqa_test.jsonl,careqa_en.jsonl",
        num_questions=config_dict.placeholder(int),  # of each file; None takes all
        num_chat=config_dict.placeholder(int),
        num_solved=config_dict.placeholder(int),
        num_test=config_dict.placeholder(int),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run asks.

    Attributes:
        train: the questions of each fine-tune that reasons, by its name.
        solved: those that may become examples.
        test: those that measure.
        subjects: of the test questions, by id: the ward or the file that they are from.
    """

    train: Mapping[str, Sequence[Question]]
    solved: Sequence[Question]
    test: Sequence[Question]
    subjects: Mapping[str, str]


def check(d: ml_collections.ConfigDict, *, is_embedded: bool) -> None:
    """Refuse files that are not there; the embedded clinic has all of its own."""
    for name in (QUESTIONS, CHAT, "solved", "test"):
        if (d[name] == EMBEDDED) != is_embedded:
            own = f"init_from={EMBEDDED!r} reads the clinic alone" if is_embedded else "it belongs to its own base"
            raise InputError(f"data.{name}={d[name]!r}: {own}; set all of init_from and data to {EMBEDDED!r}, or none")
        within("[1, inf)", **{f"data.num_{name}": d[f"num_{name}"]})
    if is_embedded:
        return
    for name in (QUESTIONS, "solved", "test"):
        if not records.listed(d[name]):
            raise InputError(f"data.{name} is empty; give a file of questions with options")
        for path in records.listed(d[name]):
            records.check(path)
    if d.chat:
        text.check(path=d.chat, max_len=2, kind="answers", limit=d.num_chat)
    elif d.num_chat is not None:
        raise InputError(f"data.num_chat={d.num_chat} is not read without data.chat; give a file, or leave it out")


def read(d: ml_collections.ConfigDict, folder: pathlib.Path, counts: dict[str, int], *, times: int, seed: int) -> Plan:
    """All questions of a run; `counts` receives what was read and left out.

    Args:
        times: how often the clinic asks each taught question, with other options.
    """
    if d.questions == EMBEDDED:
        train = {ward: world.lessons(ward, d.num_questions, times=times, seed=seed) for ward in clinic.WARDS}
        solved = [one for ward in clinic.WARDS for one in world.lessons(ward, d.num_solved, times=1, seed=seed + 1)]
        test = world.exam(clinic.WARDS, d.num_test)
        counts["questions"] = sum(map(len, train.values())) + len(solved) + len(test)
        subjects = {one.id: one.id.split("/")[1] for one in test}
        return Plan(train, solved, test, subjects)

    def of(name: str) -> list[Question]:
        return [
            one
            for path in records.listed(d[name])
            for one in questions(path, d[f"num_{name}"], counts, str(folder / f"bad_{name}.jsonl"))
        ]

    test = of("test")
    return Plan({QUESTIONS: of(QUESTIONS)}, of("solved"), test, {one.id: one.id.split("/")[0] for one in test})


def questions(path: str, limit: int | None, counts: dict[str, int], bad_records_path: str) -> list[Question]:
    """The closed questions of a file, which ids name by the file; an id that occurs again is left out and counted.

    Raises:
        InputError: the file's questions are open.
    """
    exam = exams.load(path, limit=limit, counts=counts, bad_records_path=bad_records_path)
    if exam.is_open:
        raise InputError(f"{path}: its questions have no options; give a file of closed questions")
    out: dict[str, Question] = {}
    num_alike = 0
    for item in exam.items:
        letters = options.letters(len(item.options))
        assert item.gold is not None
        num_alike += len(set(item.options)) < len(item.options)
        if item.id in out:
            counts["questions whose id occurs again"] = counts.get("questions whose id occurs again", 0) + 1
            continue
        by_letter = dict(zip(letters, item.options))
        name = f"{exam.name}/{item.id}"
        out[item.id] = Question(name, item.question, by_letter, letters[item.gold], item.context, group=name)
    if num_alike:
        print(f"{exam.name}: WARNING: {num_alike} questions have the same option twice; they stay", flush=True)
    return list(out.values())


def chat(path: str, limit: int | None, counts: dict[str, int]) -> str | list[dict[str, Any]]:
    """Conversations to tune on: the file itself, or of a file of pairs the chosen answers as records of `messages`."""
    rows = records.read_counted(path, counts={})
    if not any("chosen" in row.value or "preference" in row.value for row in rows[:20]):
        return path
    items = pair_formats.read(records.read_counted(path, counts=counts), limit=limit, counts=counts)
    out = []
    pair_formats.check_pairs(items, path)
    for item in items:
        turns = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else list(item.prompt)
        out.append({"messages": [*turns, {"role": "assistant", "content": item.answers[0].strip()}]})
    return out


def pairs(
    path: str, limit: int | None, counts: dict[str, int], *, embedded: Sequence[Mapping[str, Any]], seed: int
) -> list[Mapping[str, Any]]:
    """Rows of `uuid`, `prompt`, `chosen`, `rejected` for a stage of DPO, a sample of them where there is a limit."""
    if path == EMBEDDED:
        rows = list(embedded)
    else:
        items = pair_formats.read(records.read_counted(path, counts=counts), counts=counts)
        pair_formats.check_pairs(items, path)
        rows = [pair_formats.row_of(item, f"{i}") for i, item in enumerate(items)]
    if not rows:
        raise InputError(f"{path} has no pairs to learn from; give another file, or '' to leave the stage out")
    if limit is not None and limit < len(rows):
        counts["pairs beyond the limit"] = counts.get("pairs beyond the limit", 0) + len(rows) - limit
        rows = [rows[i] for i in sorted(random.Random(f"pairs {seed}").sample(range(len(rows)), limit))]
    return rows
