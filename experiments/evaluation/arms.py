"""Exams put to parameters that are being trained: the arms of an experiment on one another's questions.

Dimensions: N questions.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections
from jax.sharding import Mesh
from ml_collections import config_dict

from alignment import errors
from alignment.decoding import scoring
from alignment.errors import InputError
from alignment.evaluation import multiple_choice, pair_tokens
from alignment.models import decoder
from data import records
from data.texts import exams
from data.texts.exams import Exam
from data.tokens import tokenizer
from experiments.evaluation import asking


def settings() -> dict[str, Any]:
    """The group of a config that names exams."""
    return dict(
        path="",  # files of closed questions with commas between, of any shape that careqa.py reads; "": none
        limit=config_dict.placeholder(int),  # questions of each; None takes all
        protocol=multiple_choice.LETTERS,  # letters, texts, chars, bytes
    )


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse files that are not there and settings that nothing reads.

    Args:
        c: the group of `settings`.
    """
    errors.one_of("exams.protocol", c.protocol, multiple_choice.LIKELIHOODS)
    if c.limit is not None and (c.limit < 1 or not c.path):
        need = "at least 1, or None for all" if c.path else "None where exams.path names no file"
        raise InputError(f"exams.limit={c.limit} must be {need}")
    for path in records.listed(c.path):
        records.check(path)


def load(c: ml_collections.ConfigDict, counts: dict[str, int]) -> list[Exam]:
    """The exams of the group `c`.

    Raises:
        InputError: open questions, or two files of one name.
    """
    out = [exams.load(path, limit=c.limit, counts=counts) for path in records.listed(c.path)]
    for number, exam in enumerate(out):
        if exam.is_open:
            raise InputError(f"exams.path: {exam.name} has open questions; arms are compared on closed ones")
        if exam.name in {other.name for other in out[:number]}:
            raise InputError(f"exams.path has two files called {exam.name!r}; rename one")
    return out


@dataclasses.dataclass
class Arm:
    """What `asking` asks of a model, for parameters in this process."""

    model: decoder.DecoderLM
    params: Any
    tok: tokenizer.Tokenizer
    mesh: Mesh
    max_len: int
    num_cut: int = 0
    delimiter: str = " "

    def prompt(self, question: str) -> str:
        return question

    def nats(self, pairs: Sequence[tuple[str, str]]) -> scoring.Scores:
        """Log-probability of each answer after its prompt."""
        encoded = pair_tokens.encode_pairs(self.tok, pairs, add_bos=self.tok.adds_bos)
        scores = scoring.score(self.model, self.params, encoded, max_len=self.max_len, mesh=self.mesh)
        self.num_cut += scores.num_cut
        return scores


def measure(arm: Arm, sets: Sequence[Exam], protocol: str) -> dict[str, dict[str, Any]]:
    """Exam -> `right` [N] (0 or 1), its `protocol`, what naming one option always gives, and prompts that were cut."""
    out = {}
    for exam in sets:
        own, before = asking.protocol_of(exam, protocol), arm.num_cut
        chosen = asking.closed(arm, exam, exam.items, own, 0)["chosen"]
        golds = [item.gold or 0 for item in exam.items]
        row: dict[str, Any] = {"right": [int(a == b) for a, b in zip(chosen, golds, strict=True)], "protocol": own}
        row |= {"baseline": multiple_choice.one_letter(golds)[1], "cut": arm.num_cut - before}
        out[exam.name] = row
    return out
