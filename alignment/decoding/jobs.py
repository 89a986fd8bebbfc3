"""A request on its way through the engine."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from alignment.decoding import stopping
from alignment.decoding.requests import Answer, Request, Token


@dataclasses.dataclass
class Job:
    """A request with its answer so far.

    Attributes:
        seed: of its draws.
        matcher: finds its stop texts; None where the tokens' bytes are not known.
        num_replayed: tokens of an evicted answer that are still to be decoded again.
        was_admitted: its prompt is counted; an evicted one takes a slot more than once.
        scores: of the prompt's chunks, on the device until they are read.
    """

    number: int
    request: Request
    answer: Answer
    seed: np.uint32
    matcher: stopping.Matcher | None
    num_replayed: int = 0
    was_admitted: bool = False
    scores: list[Any] = dataclasses.field(default_factory=list)

    def read_scores(self) -> bool:
        """Put the prompt's scores into the answer, which gets them once its prompt is through; are they numbers?"""
        prompt = []
        for scored, part, targets in self.scores:
            logprob_C, (ids_CE, top_CE) = jax.device_get(scored)
            for k, target in enumerate(targets[: len(part)]):
                prompt.append(Token(int(target), float(logprob_C[k]), self.best(ids_CE[k], top_CE[k])))
        if any(math.isnan(token.logprob) for token in prompt):
            return False
        # an evicted request has read its prompt again, to the same bits
        self.answer.prompt, self.scores = prompt or self.answer.prompt, []
        return True

    def best(self, ids_E: np.ndarray, logprobs_E: np.ndarray) -> list[tuple[int, float]]:
        """As many of the likeliest tokens as the request wants, with their log-probabilities."""
        num = self.request.logprobs or 0
        return [(int(i), float(x)) for i, x in zip(ids_E[:num], logprobs_E[:num])]

    def finish(self, reason: str) -> Answer:
        """The answer, which ends here."""
        if reason == "error":
            self.answer.error = (
                f"request {self.number}: after {len(self.answer.tokens)} tokens the logits are not numbers, or every "
                "token's is -inf; are the weights damaged, does half precision overflow, or do models and processors "
                "rule all tokens out together?"
            )
        self.answer.finish_reason = reason
        return self.answer
