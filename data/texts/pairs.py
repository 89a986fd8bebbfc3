"""Tokenised comparisons, as `preferences` reads them and every layout of their batches takes them.

Dimensions: n pairs, P = (chosen, rejected).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from data import loader
from data.texts import trees
from data.texts.pair_formats import Comparison


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokenised comparisons; sequence 2i is the chosen side of pair i, 2i + 1 the rejected one.

    Attributes:
        tokens: all sequences end to end, int32.
        starts: [2n + 1] where each sequence begins.
        prompt_len_NP: [n, 2] tokens before the answer.
        trunk_len_N: [n] tokens at the start of the prompt that both sequences share.
        label_N: [n] 1 desirable, 0 not, for unpaired data; there side 0 is the record's own answer, and side 1 another
            record's answer after this record's prompt. None for pairs.
        items: the comparisons, for tables and samples.
        limits: longest `sequence`, `row` (trunk and both branches) and `answer` over all splits, in tokens.
        pad_id: fills rows.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompt_len_NP: np.ndarray
    trunk_len_N: np.ndarray
    label_N: np.ndarray | None
    items: tuple[Comparison, ...]
    limits: Mapping[str, int]
    pad_id: int

    def __len__(self) -> int:
        return len(self.items)

    def sequence(self, i: int, p: int) -> np.ndarray:
        """Token ids of side p of pair i."""
        return self.tokens[self.starts[2 * i + p] : self.starts[2 * i + p + 1]]

    def sides(self, i: int) -> tuple[trees.Answer, trees.Answer]:
        """Both sequences of pair i, each with the length of its prompt."""
        chosen, rejected = (trees.Answer(self.sequence(i, p), int(self.prompt_len_NP[i, p])) for p in (0, 1))
        return chosen, rejected

    def prompt(self, i: int) -> np.ndarray:
        """Token ids of the prompt of pair i, from which generation starts."""
        return self.sequence(i, 0)[: self.prompt_len_NP[i, 0]]

    def subset(self, places: Sequence[int]) -> "Pairs":
        """The pairs at these places, in their order; rows stay as long as those of all."""
        ends = [slice(self.starts[2 * i + p], self.starts[2 * i + p + 1]) for i in places for p in (0, 1)]
        index = np.asarray(places, int)
        return dataclasses.replace(
            self,
            tokens=np.concatenate([self.tokens[:0], *(self.tokens[end] for end in ends)]),
            starts=np.cumsum([0, *(end.stop - end.start for end in ends)]),
            prompt_len_NP=self.prompt_len_NP[index],
            trunk_len_N=self.trunk_len_N[index],
            label_N=None if self.label_N is None else self.label_N[index],
            items=tuple(self.items[i] for i in places),
        )

    @functools.cached_property
    def prompt_N(self) -> np.ndarray:
        """[n] a number for each pair's prompt, equal for equal ones."""
        numbers: dict[bytes, int] = {}
        prompts = (self.prompt(i).tobytes() for i in range(len(self)))
        return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], int)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the tokens and of which of them answer what: what a stored reference and a position belong to."""
        labels = np.zeros(0) if self.label_N is None else self.label_N
        return loader.digest(self.tokens, self.starts, self.prompt_len_NP, labels)
