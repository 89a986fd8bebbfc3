"""Ask a judge about exchanges: its keywords, a model on the decoding engine, or one behind an endpoint.

Every judge is one call, `classify([{"prompt", "response"}, ...])`, in the order given. What a judge said is kept under
the content and the judge, so that no restart asks twice.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from alignment.decoding import backends, cache
from alignment.decoding.requests import Request, Token
from alignment.errors import InputError
from alignment.safety import refusals, verdicts
from alignment.safety.rubrics import WORDS, Exchange, Messages, Rubric

if TYPE_CHECKING:  # a judge by keywords or behind an endpoint needs no JAX
    from alignment.decoding.engine import Engine

KEYWORD = "keyword"
PAIR, TOKEN = FORMS = ("pair", "token")
RETRIES = 2  # further tries for an answer that the parser does not know
TOP = 20  # likeliest tokens that come with each one
AT_ONCE = 64  # exchanges between two times that verdicts are stored


@dataclasses.dataclass(frozen=True)
class Judged:
    """A verdict, and what the judge wrote; "" where it wrote nothing or needs no words."""

    verdict: verdicts.Verdict
    raw: str = ""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who judges.

    Attributes:
        name: it stands on every table.
        classify: exchanges -> what was judged of each, in their order.
    """

    name: str
    classify: Callable[[Sequence[Exchange]], list[Judged]]


@dataclasses.dataclass(frozen=True)
class Said:
    """A model's answer: its text, None where there is none, and the probability of its first of two words."""

    text: str | None
    probability: float | None = None


AskFn = Callable[[Sequence[Messages]], list[Said]]


def keyword() -> Judge:
    """Refusals by the words that an answer begins with; see `refusals.judge`."""
    return Judge(KEYWORD, lambda exchanges: [Judged(refusals.judge(exchange["response"])) for exchange in exchanges])


def asking(
    name: str,
    rubric: Rubric,
    ask_fn: AskFn,
    *,
    answers: cache.Cache,
    made_from: str = "",
    retries: int = 0,
    threshold: float | None = None,
) -> Judge:
    """A judge that a model is.

    Args:
        name: on tables.
        rubric: what it is asked and how its answer is read.
        ask_fn: chats -> answers.
        answers: where they are kept.
        made_from: what the answers depend on beside the chat: weights, template, options.
        retries: how often an answer that cannot be read is asked for again. It is 0 where the answer would be the same.
        threshold: of the probability of the first of the parser's two words (rubrics.WORDS), from which on the judge
            is taken to have said it, whatever it wrote; None: what it wrote decides.
    """

    def classify(exchanges: Sequence[Exchange]) -> list[Judged]:
        chats = [rubric.messages(exchange) for exchange in exchanges]
        used = {"made_from": made_from, "rubric": rubric.sha256}
        keys = [cache.key(chat, model=name, sampling=used) for chat in chats]
        chat_of = {key: chat for key, chat in zip(keys, chats) if answers.get(key) is None}
        said: dict[str, Said] = {}

        def ask(part: Sequence[str]) -> None:
            """Ask for some keys; what can be read is stored at once, also where the service goes down midway."""
            try:
                got = ask_fn([chat_of[key] for key in part])
            except backends.Down as e:
                store(dict(zip(part, map(Said, e.answers))))
                raise
            store(dict(zip(part, got, strict=True)))

        def store(got: dict[str, Said]) -> None:
            said.update(got)
            for key, answer in got.items():
                if is_readable(answer):
                    answers.put(key, _stored(answer))

        def is_readable(answer: Said) -> bool:
            text = _text(rubric, answer, threshold)
            return text is not None and rubric.is_known(rubric.read(text))

        waiting = list(chat_of)
        for _ in range(1 + retries):
            for start in range(0, len(waiting), AT_ONCE):
                ask(waiting[start : start + AT_ONCE])
            waiting = [key for key in waiting if not is_readable(said[key])]
        for key in waiting:  # what no try made readable; without any answer a later start asks again
            if said[key].text is not None:
                answers.put(key, _stored(said[key]))
        return [_judged(rubric, answers.get(key), said.get(key), threshold) for key in keys]

    return Judge(name, classify)


def _stored(said: Said) -> str:
    return json.dumps({"text": said.text, "probability": said.probability})


def _text(rubric: Rubric, said: Said, threshold: float | None) -> str | None:
    """What the judge wrote, or under a threshold the one of its two words that its probability says."""
    if threshold is None or said.probability is None:
        return said.text
    return WORDS[rubric.parser][0 if said.probability >= threshold else 1]


def _judged(rubric: Rubric, stored: str | None, said: Said | None, threshold: float | None) -> Judged:
    said = Said(**json.loads(stored)) if stored is not None else said or Said(None)
    verdict = rubric.read(_text(rubric, said, threshold) or "")
    probability = said.probability if rubric.is_known(verdict) else None
    return Judged(dataclasses.replace(verdict, probability=probability), said.text or "")


def on_engine(
    engine: "Engine",
    *,
    encode: Callable[[Messages], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    max_new_tokens: int,
    words: tuple[int, int] | None = None,
    form: str = PAIR,
) -> AskFn:
    """Ask a model on the engine: the answer is greedy, the probability that of its first word.

    A chat that is too long for the engine has no answer.

    Args:
        encode: a chat -> token ids, including the opening of the answer.
        decode: token ids of an answer, without its stop token -> text.
        words: ids of the two first tokens, such as those of Yes and No; None: there is no probability.
        form: `pair` for the softmax over both, `token` for the plain probability of the first.
    """

    def ask(chats: Sequence[Messages]) -> list[Said]:
        prompts = [encode(chat) for chat in chats]
        fits = [i for i, ids in enumerate(prompts) if 0 < len(ids) <= engine.max_len - max_new_tokens - 1]
        logprobs = None if words is None else TOP
        wanted = [Request(prompts[i], max_new_tokens, logprobs=logprobs) for i in fits]
        out = [Said(None)] * len(chats)
        for i, answer in zip(fits, engine.answers(wanted), strict=True):
            likely = None
            if words is not None:
                likely = _probability(engine, prompts[i], answer.tokens, words, form)
            out[i] = Said(decode(answer.answer_ids), likely)
        return out

    return ask


def _probability(
    engine: "Engine", prompt: Sequence[int], tokens: Sequence[Token], words: tuple[int, int], form: str
) -> float:
    """Where the answer says one of the words, else at its first token: guards may begin with empty lines."""
    place = next((i for i, token in enumerate(tokens) if token.id in words), 0)
    known = dict(tokens[place].top) | {tokens[place].id: tokens[place].logprob}
    before = [*prompt, *(token.id for token in tokens[:place])]
    yes, no = (known[word] if word in known else _logprob(engine, before, word) for word in words)
    return verdicts.pair_probability(yes, no) if form == PAIR else math.exp(yes)


def _logprob(engine: "Engine", before: Sequence[int], word: int) -> float:
    """The log-probability of a word that is not among the likeliest ones: the model reads it."""
    (answer,) = engine.answers([Request([*before, word], 0, prompt_logprobs=True)])
    return answer.prompt[-1].logprob


def at_endpoint(complete: backends.Complete, *, max_new_tokens: int) -> AskFn:
    """Ask a service; see `backends.openai`. It gives no probability.

    Raises:
        backends.Down: the service no longer answers.
    """

    def ask(chats: Sequence[Messages]) -> list[Said]:
        return [Said(text) for text in complete(chats, [max_new_tokens] * len(chats))]

    return ask


def first_words(rubric: Rubric, encode_fn: Callable[[str], Sequence[int]], given: Sequence[str] = ()) -> Any:
    """Ids of the two words whose first tokens give the probability; None where the parser has no such words.

    Args:
        encode_fn: a text -> ids.
        given: the two words; () takes the parser's.

    Raises:
        InputError: not two of them, or two that begin with the same token.
    """
    words = tuple(given) or WORDS.get(rubric.parser, ())
    if not words:
        return None
    if len(words) != 2:
        raise InputError(f"words={words!r} must be two, such as ('Yes', 'No')")
    ids = tuple(encode_fn(word)[0] for word in words)
    if ids[0] == ids[1]:
        raise InputError(f"words={words!r} begin with the same token; give others")
    return ids
