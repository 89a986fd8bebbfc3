"""Asking a model questions with options: few-shot, self-consistent chains of thought, Medprompt.

Nori et al. 2023, arXiv:2311.16452 (Medprompt); Wang et al. 2022, arXiv:2203.11171 (self-consistency). A responder is
a function from requests to replies, so that all draws of all questions are written together.
"""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignment import intervals
from alignment.decoding import requests as decoding
from alignment.errors import InputError, within
from alignment.evaluation import options
from alignment.evaluation.examples import Example, Question

if TYPE_CHECKING:  # it takes JAX along, which asking somebody else's model does not need
    from alignment.decoding import engine

Messages = list[dict[str, str]]
ASK = "Think step by step. Then end with a line that says Answer: and the letter in brackets, as in Answer: [A]"
ASK_DIRECTLY = "Say Answer: and the letter in brackets, as in Answer: [A], and nothing else."
ASK_TEXT = "Think step by step. Then end with the text of the right option."
ASK_TEXT_DIRECTLY = "Say the text of the right option, and nothing else."
HOTTER, HOTTEST, LONGER = 0.05, 1.0, 100  # of a retry: temperature, its limit, and tokens


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a question is asked.

    Attributes:
        num_examples: solved questions in the prompt.
        num_draws: replies that vote.
        shuffles: whether each draw has an order of the options of its own.
        temperature: of the draws; 0 is greedy.
        reasons: whether a chain of thought is asked for.
        retries: of a draw whose reply names no option; each is hotter and longer than the one before.
        ties: of the vote, see `options.vote`.
        compatible: parse and reuse orders as the reference does, see `options`.
        by_text: the reply names an option by its text, not by its letter, which very small models do not learn.
    """

    num_examples: int = 0
    num_draws: int = 1
    shuffles: bool = False
    temperature: float = 0.0
    reasons: bool = False
    retries: int = 10
    ties: str = options.FIRST_SEEN
    compatible: bool = False
    by_text: bool = False

    def __post_init__(self) -> None:
        if self.by_text and self.compatible:
            raise InputError("by_text=True reads the options' texts, and compatible=True letters; set one")
        within("[0, inf)", num_examples=self.num_examples, retries=self.retries, temperature=self.temperature)
        within("[1, inf)", num_draws=self.num_draws)
        if self.num_draws > 1 and not self.shuffles and self.temperature == 0:
            raise InputError(
                f"num_draws={self.num_draws} with temperature=0 and shuffles=False writes the same reply each time; "
                "set a temperature, or shuffle"
            )


SCHEMES = {
    "zero_shot": Scheme(),
    "few_shot": Scheme(num_examples=5),
    "sc_cot": Scheme(num_examples=3, num_draws=5, temperature=0.7, reasons=True),
    "medprompt": Scheme(num_examples=5, num_draws=5, shuffles=True, temperature=0.7, reasons=True),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a responder is asked; requests of a question share their messages' beginning."""

    messages: Messages
    temperature: float
    max_new_tokens: int
    key: str  # of the draw, which a responder seeds its sampling with


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a responder writes; `logprob` is the mean over its tokens, in nats, where it is known."""

    text: str
    logprob: float = float("nan")
    num_tokens: int = 0
    num_prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Draw:
    """A reply as an answer; `answer` is None where it names no option, whatever was retried."""

    order: str
    reply: Reply
    answer: str | None
    retries: int


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question with its draws and what they chose.

    Attributes:
        answer: of the vote; None where no draw names an option.
        is_tied: whether others had as many votes.
        num_dropped: examples that did not fit into the context.
        similarity: mean cosine of the examples; NaN without any.
    """

    question: Question
    draws: tuple[Draw, ...]
    answer: str | None
    is_tied: bool
    num_examples: int
    num_dropped: int
    similarity: float

    @property
    def is_right(self) -> bool:
        return self.answer == self.question.answer


RespondFn = Callable[[Sequence[Request]], Sequence[Reply]]
ExamplesFn = Callable[[Question], tuple[Sequence[Example], float]]  # in the prompt's order, with their mean cosine


def displayed(question: Question, order: str, *, reasons: bool, by_text: bool = False) -> str:
    """A question as a user's turn, its options in an order."""
    lines = [f"{letter}. {question.options[own]}" for letter, own in zip(options.letters(len(order)), order)]
    context = [question.context] if question.context else []
    ask = (ASK_TEXT if reasons else ASK_TEXT_DIRECTLY) if by_text else (ASK if reasons else ASK_DIRECTLY)
    return "\n".join([*context, question.text, *lines, ask])


def answer_alone(question: Question, order: str, *, by_text: bool = False) -> str:
    """The right reply without a chain of thought."""
    if by_text:
        return question.options[question.answer]
    return f"Answer: [{options.shuffle(question.answer, order)}]"


def answer_of(
    reply: str, question: Question, order: str, *, compatible: bool = False, by_text: bool = False
) -> str | None:
    """The option that a reply chooses, by its own letter; None where it names none."""
    if by_text:
        return options.parse_text(reply, question.options)
    return options.parse(reply, order, compatible=compatible)


def messages_of(
    question: Question, order: str, examples: Sequence[Example], *, reasons: bool, by_text: bool = False
) -> Messages:
    """A conversation that ends with the question; each example is a question in its own order and its reply.

    Without a chain of thought an example's reply is its answer alone.
    """
    out: Messages = []
    for example in examples:
        reply = example.reply if reasons else answer_alone(example.question, example.order, by_text=by_text)
        prompt = displayed(example.question, example.order, reasons=reasons, by_text=by_text)
        out += [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return [*out, {"role": "user", "content": displayed(question, order, reasons=reasons, by_text=by_text)}]


def fitting(
    question: Question,
    order: str,
    examples: Sequence[Example],
    fits_fn: Callable[[Messages], bool],
    *,
    reasons: bool,
    by_text: bool = False,
) -> list[Example]:
    """The examples that fit beside the question; the least similar, which come first, go first.

    Raises:
        InputError: the question alone does not fit.
    """
    for first in range(len(examples) + 1):
        left = list(examples[first:])
        if fits_fn(messages_of(question, order, left, reasons=reasons, by_text=by_text)):
            return left
    raise InputError(f"question {question.id} does not fit into the context even without examples; set a larger one")


def ask(
    questions: Sequence[Question],
    scheme: Scheme,
    respond_fn: RespondFn,
    *,
    examples_fn: ExamplesFn = lambda question: ((), float("nan")),
    fits_fn: Callable[[Messages], bool] = lambda messages: True,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[Asked]:
    """Ask every question as a scheme says; all that is unanswered is asked again together.

    Args:
        examples_fn: solved questions for a question, the nearest last.
        fits_fn: whether a conversation fits into the context.
        max_new_tokens: of a reply at its first try.
    """
    examples, similarities, orders = {}, {}, {}
    how = dict(reasons=scheme.reasons, by_text=scheme.by_text)
    for question in questions:
        own, similarities[question.id] = examples_fn(question)
        drawn = options.orders(len(question.options), f"{seed} {question.id}", repeats_identity=scheme.compatible)
        identity = options.letters(len(question.options))
        orders[question.id] = list(itertools.islice(drawn, scheme.num_draws)) if scheme.shuffles else []
        orders[question.id] = orders[question.id] or [identity] * scheme.num_draws
        examples[question.id] = list(own), fitting(question, identity, own, fits_fn, **how)
    draws: dict[tuple[int, int], Draw] = {}
    todo = [(i, draw) for i in range(len(questions)) for draw in range(scheme.num_draws)]
    for retry in range(scheme.retries + 1):
        requests = [
            Request(
                messages_of(
                    questions[i],
                    orders[questions[i].id][draw],
                    examples[questions[i].id][1],
                    **how,
                ),
                heated(scheme.temperature, retry),
                max_new_tokens + LONGER * retry,
                f"{seed} {questions[i].id} {draw} {retry}",
            )
            for i, draw in todo
        ]
        for (i, draw), reply in zip(todo, respond_fn(requests), strict=True):
            order = orders[questions[i].id][draw]
            answer = answer_of(reply.text, questions[i], order, compatible=scheme.compatible, by_text=scheme.by_text)
            draws[i, draw] = Draw(order, reply, answer, retry)
        todo = [key for key in todo if draws[key].answer is None]
        if not todo:
            break
    out = []
    for i, question in enumerate(questions):
        own_draws = tuple(draws[i, draw] for draw in range(scheme.num_draws))
        answers, logprobs = [one.answer for one in own_draws], [one.reply.logprob for one in own_draws]
        answer, is_tied = options.vote(answers, ties=scheme.ties, logprobs=logprobs)
        every, fit = examples[question.id]
        dropped = len(every) - len(fit)
        out.append(Asked(question, own_draws, answer, is_tied, len(fit), dropped, similarities[question.id]))
    return out


def heated(temperature: float, retry: int) -> float:
    """The temperature of a retry: a little more each time, up to 1 or where it began."""
    return max(temperature, min(HOTTEST, temperature + HOTTER * retry))


def responder(
    server: "engine.Engine",
    encode_fn: Callable[[Messages], Sequence[int]],
    text_fn: Callable[[decoding.Answer], str],
    stop: Sequence[str] = (),
) -> RespondFn:
    """A responder that writes with a decoding engine, which computes what prompts share once.

    Args:
        encode_fn: a conversation as the token ids that an answer follows.
        text_fn: an answer as text.
        stop: texts that end an answer.
    """

    def respond(requests: Sequence[Request]) -> list[Reply]:
        work = [
            decoding.Request(
                encode_fn(request.messages),
                request.max_new_tokens,
                request.temperature,
                stop=stop,
                seed=int.from_bytes(hashlib.sha256(request.key.encode()).digest()[:4], "little"),
            )
            for request in requests
        ]
        out = []
        for answer in server.answers(work):
            mean = float(np.mean([token.logprob for token in answer.tokens])) if answer.tokens else float("nan")
            out.append(Reply(text_fn(answer), mean, len(answer.tokens), len(answer.request.prompt)))
        return out

    return respond


def solved(asked: Sequence[Asked]) -> dict[str, list[Example]]:
    """The right replies of each question, as examples for others."""
    return {
        one.question.id: [
            Example(one.question, draw.order, draw.reply.text)
            for draw in one.draws
            if draw.answer == one.question.answer
        ]
        for one in asked
    }


def summary(asked: Sequence[Asked]) -> dict[str, Any]:
    """Accuracy of the votes with Wilson's interval, and counts of draws, letters and tokens."""
    draws = [(one, draw) for one in asked for draw in one.draws]
    right = sum(one.is_right for one in asked)
    low, high = intervals.wilson(right, len(asked))
    similarities = [one.similarity for one in asked if np.isfinite(one.similarity)]
    parsed = [draw for _, draw in draws if draw.answer is not None]
    shown_letters = Counter(options.shuffle(str(draw.answer), draw.order) for draw in parsed)
    return {
        "count": len(asked),
        "accuracy": right / len(asked) if asked else None,
        "low": low,
        "high": high,
        "draws": len(draws),
        "draws_correct": sum(draw.answer == one.question.answer for one, draw in draws),
        "draws_incorrect": sum(draw.answer not in (None, one.question.answer) for one, draw in draws),
        "unparsed": len(draws) - len(parsed),
        "unanswered": sum(one.answer is None for one in asked),
        "ties": sum(one.is_tied for one in asked),
        "retries": sum(draw.retries for _, draw in draws),
        "distinct_answers": float(np.mean([len({draw.answer for draw in one.draws} - {None}) for one in asked]))
        if asked
        else None,
        "similarity": float(np.mean(similarities)) if similarities else None,
        "examples_dropped": sum(one.num_dropped for one in asked),
        "shown_letters": dict(sorted(shown_letters.items())),
        "reply_tokens": sum(draw.reply.num_tokens for _, draw in draws),
        "prompt_tokens": sum(draw.reply.num_prompt_tokens for _, draw in draws),
    }


def rows(asked: Sequence[Asked]) -> list[Mapping[str, Any]]:
    """A line of a log for each question."""
    return [
        {
            "id": one.question.id,
            "answer": one.answer,
            "original_answer": one.question.answer,
            "result": one.is_right,
            "similarity": one.similarity if np.isfinite(one.similarity) else None,
            "generations": [
                {
                    "response": draw.reply.text,
                    "answer": draw.answer,
                    "order": draw.order,
                    "retries": draw.retries,
                    "logprob": draw.reply.logprob if np.isfinite(draw.reply.logprob) else None,
                    "tokens": {"prompt": draw.reply.num_prompt_tokens, "generated": draw.reply.num_tokens},
                }
                for draw in one.draws
            ],
        }
        for one in asked
    ]
