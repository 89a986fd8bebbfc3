"""What is asked of the decoding engine, and what it answers. This module imports no JAX."""

import dataclasses
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.errors import InputError

NUM_STOP_IDS = 16  # stop tokens that the device compares with; the host compares with the rest
NUM_BIASES = 512
MAX_LOGPROBS = 20
# The device computes in float32: beyond these, products with logits overflow, and one request's NaN would end the run.
MAX_TEMPERATURE = MAX_PENALTY = MAX_WEIGHT = 1e4


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer to write.

    Attributes:
        prompt: token ids, at least one.
        max_new_tokens: the answer's longest length; 0 only reads the prompt.
        temperature: 0 takes the most likely token.
        top_k, top_p, min_p: filters of a draw; see `sampling.keep`. 0, 1 and 0 switch them off.
        repetition_penalty, frequency_penalty, presence_penalty: see `sampling.adjust`. 1, 0 and 0 switch them off.
        logit_bias: token id -> what is added to its logit.
        stop_ids: tokens that end the answer; the token itself is the answer's last one.
        stop: texts that end the answer, also across tokens; the engine needs the tokens' bytes for them.
        seed: of the draws, modulo 2^32; None takes one from the engine's seed and the number of the request.
        sample: which of several samples of one prompt this is.
        logprobs: how many of the best tokens come with every token of the answer, 0 to 20; None: none, and the chosen
            token's log-probability comes all the same.
        prompt_logprobs: whether the prompt's tokens are scored as well.
        guide_prompts: a prompt for each guiding model, in its own template; see `Engine`. (): they read `prompt`.
        guide_weights, base_weight: the weights of each guiding model's log-probabilities and of the base model's.
        processor_rows: what each processor's state begins with, in the engine's order; None: its default.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    stop_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    seed: int | None = None
    sample: int = 0
    logprobs: int | None = None
    prompt_logprobs: bool = False
    guide_prompts: Sequence[Sequence[int]] = ()
    guide_weights: Sequence[float] = ()
    base_weight: float = 1.0
    processor_rows: Sequence[Any] | None = None

    def samples(self, n: int) -> list["Request"]:
        """`n` requests that differ in their draws; their prompt is computed once."""
        return [dataclasses.replace(self, sample=self.sample + i) for i in range(n)]


@dataclasses.dataclass
class Token:
    """One token with its log-probability under the model (before penalties, filters and temperature), in nats.

    Attributes:
        top: the likeliest tokens and their log-probabilities, best first.
        by_model: the token's log-probability under the base and under each guide, which makes the trace of a reward
            model; () without guides, and then `logprob` is the base's.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    by_model: Sequence[float] = ()


@dataclasses.dataclass
class Answer:
    """What was written.

    Attributes:
        number: of the request, as `submit` gave it.
        tokens: the answer with its stop token, if it has one.
        text: the bytes before the stop token or text; b"" where the engine does not know the tokens' bytes.
        finish_reason: "stop", "length", "cancelled" or "error".
        error: why there is no more of the answer, where that is a fault of the model; "" for none.
        stop: the stop text or id that ended the answer.
        prompt: the prompt's tokens from the second on, where the request wanted them scored; from the first `News` on.
        num_cached: tokens of the prompt whose keys and values were there already.
    """

    number: int
    request: Request
    tokens: list[Token] = dataclasses.field(default_factory=list)
    text: bytes = b""
    finish_reason: str = ""
    error: str = ""
    stop: str | int | None = None
    prompt: list[Token] = dataclasses.field(default_factory=list)
    num_cached: int = 0

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def answer_ids(self) -> list[int]:
        """The ids without a stop token at the end."""
        ids = self.ids
        return ids[:-1] if isinstance(self.stop, int) and self.finish_reason == "stop" else ids


@dataclasses.dataclass
class News:
    """New tokens of one request; the answer is complete where `is_done`."""

    answer: Answer
    tokens: list[Token]
    is_done: bool


def check(request: Request, *, vocab_size: int, max_len: int, num_guides: int = 0, has_bytes: bool = True) -> None:
    """Refuse what the engine cannot serve.

    Args:
        vocab_size: ids are in [0, vocab_size).
        max_len: positions of a row of the cache.
        num_guides: guiding models of the engine.
        has_bytes: whether the engine knows the tokens' bytes, which stop texts need.

    Raises:
        InputError: the message begins with the field's name.
    """
    _check_prompt("prompt", request.prompt, vocab_size)
    check_options(request, vocab_size=vocab_size)
    if len(request.prompt) + request.max_new_tokens > max_len:
        raise InputError(
            f"prompt has {len(request.prompt)} tokens and max_new_tokens={request.max_new_tokens}; together they must "
            f"be at most {max_len}, the cache's length: shorten one of them, or set a larger max_len"
        )
    if request.stop and not has_bytes:
        raise InputError(f"stop={list(request.stop)} needs an engine that knows the tokens' bytes; give it `pieces`")
    if len(request.guide_prompts) not in (0, num_guides) or len(request.guide_weights) != num_guides:
        raise InputError(
            f"guide_prompts has {len(request.guide_prompts)} entries and guide_weights {len(request.guide_weights)}; "
            f"the engine has {num_guides} guiding models: give one of each for every model, or no guide_prompts where "
            "all read `prompt`"
        )
    for number, prompt in enumerate(request.guide_prompts):
        _check_prompt(f"guide_prompts[{number}]", prompt, vocab_size)
        if len(prompt) + request.max_new_tokens > max_len:
            raise InputError(
                f"guide_prompts[{number}] has {len(prompt)} tokens and max_new_tokens={request.max_new_tokens}; "
                f"together they must be at most {max_len}, the cache's length"
            )
    _check_range("base_weight", request.base_weight, -MAX_WEIGHT, MAX_WEIGHT)
    if not num_guides and request.base_weight != 1:
        raise InputError(f"base_weight={request.base_weight} means nothing without a guiding model; leave it at 1")
    for number, weight in enumerate(request.guide_weights):
        _check_range(f"guide_weights[{number}]", weight, -MAX_WEIGHT, MAX_WEIGHT)


def check_options(request: Request, *, vocab_size: int | None = None) -> None:
    """The part of `check` that does not read the prompt; for the start of a run, before any weights are read."""
    _check_count("max_new_tokens", request.max_new_tokens, 0)
    _check_range("temperature", request.temperature, 0, MAX_TEMPERATURE)
    _check_count("top_k", request.top_k, 0)
    if not (_is_number(request.top_p) and 0 < request.top_p <= 1):
        raise InputError(f"top_p={request.top_p!r} must be above 0 and at most 1; 1 keeps all tokens")
    _check_range("min_p", request.min_p, 0, 1)
    if not (_is_number(request.repetition_penalty) and 1 / MAX_PENALTY <= request.repetition_penalty <= MAX_PENALTY):
        raise InputError(
            f"repetition_penalty={request.repetition_penalty!r} must be from {1 / MAX_PENALTY:g} to {MAX_PENALTY:g}; 1 "
            "switches it off"
        )
    _check_range("frequency_penalty", request.frequency_penalty, -100, 100)
    _check_range("presence_penalty", request.presence_penalty, -100, 100)
    if request.logprobs is not None and not (_is_int(request.logprobs) and 0 <= request.logprobs <= MAX_LOGPROBS):
        raise InputError(f"logprobs={request.logprobs!r} must be a whole number from 0 to {MAX_LOGPROBS}")
    if request.seed is not None and not _is_int(request.seed):
        raise InputError(f"seed={request.seed!r} must be a whole number")
    _check_count("sample", request.sample, 0)
    if request.sample >= 1 << 32:
        raise InputError(f"sample={request.sample} must be below 2^32")
    if isinstance(request.stop, str):
        raise InputError(f"stop={request.stop!r} is one text; give a list of texts, or every letter would be one")
    for text in request.stop:
        if not isinstance(text, str) or not text:
            raise InputError(f"stop={list(request.stop)!r} has an entry that is not a text of at least one letter")
    _check_ids("stop_ids", request.stop_ids, vocab_size)
    _check_ids("logit_bias", list(request.logit_bias), vocab_size)
    if len(request.logit_bias) > NUM_BIASES:
        raise InputError(f"logit_bias has {len(request.logit_bias)} entries; it may have {NUM_BIASES}")
    for token, bias in request.logit_bias.items():
        _check_range(f"logit_bias of token {token}", bias, -1e4, 1e4)


def _check_prompt(name: str, prompt: Sequence[int], vocab_size: int) -> None:
    if not len(prompt):
        raise InputError(f"{name} is empty; it needs at least one token")
    _check_ids(name, prompt, vocab_size)


def _check_ids(name: str, ids: Sequence[int], vocab_size: int | None) -> None:
    end = math.inf if vocab_size is None else vocab_size
    for i in ids:
        if isinstance(i, bool) or not _is_index(i) or not 0 <= i < end:
            limit = "a token id" if vocab_size is None else f"a token id from 0 to {vocab_size - 1}"
            raise InputError(f"{name} has {i!r}, which is not {limit}")


def _check_count(name: str, value: Any, least: int) -> None:
    if not _is_int(value) or value < least:
        raise InputError(f"{name}={value!r} must be a whole number, at least {least}")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if not _is_number(value) or not low <= value <= high:
        raise InputError(f"{name}={value!r} must be a number from {low:g} to {high:g}")


def _is_index(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's integers as well


def _is_number(value: Any) -> bool:
    """NaN is one too; the comparisons with a range that follow are false for it."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
