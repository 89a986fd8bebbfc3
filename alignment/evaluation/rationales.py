"""Chains of thought to train on, written by a model and kept where they end at the right answer.

The rule of the Aloe recipe (Gururajan et al. 2025, arXiv:2505.04388): the writer is told the right answer, and writes
again until its own last line names it.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError, within
from alignment.evaluation import options, prompting
from alignment.evaluation.examples import Example, Question
from alignment.evaluation.prompting import Messages, RespondFn

TOLD = "The right answer is {answer}. Explain step by step why, as if you had not been told."


@dataclasses.dataclass(frozen=True)
class Written:
    """What a writer left: one right chain of thought for each question that has one.

    Attributes:
        num_replies: written in all.
        num_wrong: of them, those that name another option.
        num_unparsed: of them, those that name none.
        num_unsolved: questions without a right reply after all tries.
    """

    examples: tuple[Example, ...]
    num_replies: int
    num_wrong: int
    num_unparsed: int
    num_unsolved: int

    @property
    def counts(self) -> dict[str, int]:
        return {
            "chains of thought written": self.num_replies,
            "chains of thought that end at another answer, dropped": self.num_wrong,
            "chains of thought without an answer, dropped": self.num_unparsed,
            "questions without a right chain of thought": self.num_unsolved,
        }


def write(
    questions: Sequence[Question],
    respond_fn: RespondFn,
    *,
    tries: int = 3,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
    by_text: bool = False,
) -> Written:
    """Ask for a chain of thought to every question; those whose reply is not right are asked again.

    Args:
        respond_fn: the writer; it reads the question with its right answer.
        tries: replies to a question at most, at least 1.
        by_text: see `prompting.Scheme`.
        temperature: of the writer; above 0 where there are several tries, or each try would be the same.
    """
    within("[1, inf)", tries=tries)
    if tries > 1 and not temperature > 0:
        raise InputError(f"tries={tries} with temperature={temperature} writes the same reply each time; raise it")
    right: dict[str, Example] = {}
    num_replies = num_wrong = num_unparsed = 0
    todo = list(questions)
    for attempt in range(tries):
        work = [
            prompting.Request(
                with_answer(question, by_text=by_text), temperature, max_new_tokens, f"{seed} {question.id} {attempt}"
            )
            for question in todo
        ]
        for question, reply in zip(todo, respond_fn(work), strict=True):
            order = options.letters(len(question.options))
            answer = prompting.answer_of(reply.text, question, order, by_text=by_text)
            num_replies += 1
            num_unparsed += answer is None
            num_wrong += answer not in (None, question.answer)
            if answer == question.answer:
                right[question.id] = Example(question, order, reply.text.strip())
        todo = [question for question in todo if question.id not in right]
        if not todo:
            break
    right_ones = tuple(right[question.id] for question in questions if question.id in right)
    return Written(right_ones, num_replies, num_wrong, num_unparsed, len(todo))


def with_answer(question: Question, *, by_text: bool = False) -> Messages:
    """The question as a writer of chains of thought reads it."""
    order = options.letters(len(question.options))
    prompt = prompting.displayed(question, order, reasons=True, by_text=by_text)
    answer = question.options[question.answer] if by_text else f"[{question.answer}]"
    return [{"role": "user", "content": f"{TOLD.format(answer=answer)}\n{prompt}"}]


def conversations(
    examples: Sequence[Example],
    num: int,
    *,
    direct_share: float,
    most_turns: int = 1,
    seed: int = 0,
    by_text: bool = False,
) -> list[Mapping[str, Any]]:
    """Records of `messages` to tune on: questions without the hint, with their chains of thought or answers alone.

    Args:
        examples: drawn evenly, in shuffled rounds.
        num: of conversations.
        direct_share: of the turns that ask for the answer alone, in [0, 1].
        most_turns: questions of a conversation at most; each has 1 to so many, so that a prompt with solved questions
            is nothing new.
    """
    if not examples:
        raise InputError("no question has a right chain of thought, so there is nothing to tune on; raise the tries")
    rng = random.Random(f"conversations {seed}")
    queue: list[Example] = []
    out: list[Mapping[str, Any]] = []
    for _ in range(num):
        messages: Messages = []
        for _ in range(rng.randint(1, most_turns)):
            if not queue:
                queue = rng.sample(list(examples), len(examples))
            example = queue.pop()
            reasons = rng.random() >= direct_share
            own = prompting.messages_of(example.question, example.order, [], reasons=reasons, by_text=by_text)
            alone = prompting.answer_alone(example.question, example.order, by_text=by_text)
            reply = example.reply if reasons else alone
            messages += [*own, {"role": "assistant", "content": reply}]
        out.append({"messages": messages})
    return out
