"""A batch of documents of one language, and a rule's findings about them.  Dimensions: N documents.

A rule is a function of a `Batch` and named thresholds that returns `Findings`. Lines and words, which several rules
need, are computed once for a batch and carried on with the documents that pass.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.filtering.rules import locales, words


@dataclasses.dataclass
class Findings:
    """The result of a rule; the lists have an entry for each document, in order.

    Fields:
        reasons: "" where the document passes, else the code of the first check that it failed.
        values: the number that this check measured; 0 where the document passes.
        thresholds: the limit that it was compared with; 0 where the document passes.
        texts: position -> new text, for documents that pass with an edited text.
        counters: events that decide nothing, such as removed lines; they add up over batches.
        attributes: measurements to store beside the documents: name -> one number for each document.
    """

    reasons: list[str]
    values: list[float]
    thresholds: list[float]
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    attributes: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def passing(cls, num_documents: int) -> "Findings":
        """Findings under which every document passes, until `fail` drops it."""
        return cls([""] * num_documents, [0.0] * num_documents, [0.0] * num_documents)

    def fail(self, position: int, reason: str, value: float = 0.0, threshold: float = 0.0) -> None:
        """Drop one document, unless an earlier check dropped it: the first reason stands."""
        if not self.reasons[position]:
            self.reasons[position] = reason
            self.values[position], self.thresholds[position] = float(value), float(threshold)

    def fail_where(self, is_failing_N: np.ndarray, reason: str, value_N: np.ndarray, threshold: float) -> None:
        """`fail` for every document where the boolean array is true."""
        for position in np.flatnonzero(is_failing_N).tolist():
            self.fail(position, reason, value_N[position], threshold)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        if amount:
            self.counters[name] = self.counters.get(name, 0) + amount


class Batch:
    """Documents that share a locale pack; a batch does not change once it is made.

    Args:
        records: {"id", "text", "source", "metadata"} each; "text" is read here, and "metadata" by `urls`.
        pack: the locale pack of their language: stop words, punctuation, phrases.
        texts: the documents' texts after earlier rules; None takes the records'.
        languages, probabilities: result of the language identification; None: it did not run, and they are "" and 0.
    """

    def __init__(
        self,
        records: Sequence[Mapping],
        pack: locales.Pack,
        *,
        texts: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        probabilities: Sequence[float] | None = None,
    ) -> None:
        self.records = list(records)
        self.pack = pack
        self.texts = [record["text"] for record in self.records] if texts is None else list(texts)
        self.languages = [""] * len(self.records) if languages is None else list(languages)
        self.probabilities = [0.0] * len(self.records) if probabilities is None else list(probabilities)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def urls(self) -> list[str | None]:
        """Each document's address; None if its metadata has none."""
        return [(record.get("metadata") or {}).get("url") or None for record in self.records]

    @functools.cached_property
    def lines(self) -> list[list[str]]:
        """Each text's lines without the line breaks, where any of Unicode's line breaks counts."""
        return [text.splitlines() for text in self.texts]

    @functools.cached_property
    def words(self) -> words.Columns:
        """The words of all documents in flat arrays."""
        return words.columns(self.texts, english=self.pack.name == "en")

    def take(self, positions: Sequence[int]) -> "Batch":
        """The documents at these positions, with their lines and words if those were computed already."""
        positions = list(positions)
        if positions == list(range(len(self))):
            return self  # the usual case, in which all pass: nothing is copied
        part = Batch(
            [self.records[i] for i in positions],
            self.pack,
            texts=[self.texts[i] for i in positions],
            languages=[self.languages[i] for i in positions],
            probabilities=[self.probabilities[i] for i in positions],
        )
        # A cached property that was computed stands in __dict__; otherwise the part computes its own.
        if "lines" in self.__dict__:
            part.lines = [self.lines[i] for i in positions]
        if "words" in self.__dict__:
            part.words = self.words.take(positions)
        return part

    def with_texts(self, texts: Mapping[int, str]) -> "Batch":
        """The same documents with other texts at some positions; lines and words are then computed again."""
        if not texts:
            return self
        changed = [texts.get(i, text) for i, text in enumerate(self.texts)]
        return Batch(self.records, self.pack, texts=changed, languages=self.languages, probabilities=self.probabilities)
