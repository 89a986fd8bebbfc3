"""A batch of documents of one language, and what a rule finds in it.  Dimensions: N documents.

A rule is a function of a `Batch` and named thresholds that returns `Findings`. What several rules need (lines, words)
is computed once a batch and follows the documents that are still in the running.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from alignment.filtering.rules import locales, words


@dataclasses.dataclass
class Findings:
    """What a rule found, a list a field in document order.

    Fields:
        reasons: "" where the document passes, else the code of the first check that it failed.
        values: what that check measured; 0 where the document passes.
        thresholds: what it was compared with; 0 where the document passes.
        texts: the new text of documents that pass with another text than they came with, by position.
        counters: events that are no decision, such as lines removed; they add up over batches.
        attributes: measurements kept beside the document, a name to one number a document.
    """

    reasons: list[str]
    values: list[float]
    thresholds: list[float]
    texts: dict[int, str] = dataclasses.field(default_factory=dict)
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    attributes: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @classmethod
    def passing(cls, num_documents: int) -> "Findings":
        """Every document passes; `fail` takes them out."""
        return cls([""] * num_documents, [0.0] * num_documents, [0.0] * num_documents)

    def fail(self, position: int, reason: str, value: float = 0.0, threshold: float = 0.0) -> None:
        """Drop one document, unless an earlier check dropped it: the first reason stands."""
        if not self.reasons[position]:
            self.reasons[position] = reason
            self.values[position], self.thresholds[position] = float(value), float(threshold)

    def fail_where(self, is_failing_N: np.ndarray, reason: str, value_N: np.ndarray, threshold: float) -> None:
        """`fail` for every document that a boolean array names."""
        for position in np.flatnonzero(is_failing_N).tolist():
            self.fail(position, reason, value_N[position], threshold)

    def count(self, name: str, amount: int = 1) -> None:
        if amount:
            self.counters[name] = self.counters.get(name, 0) + amount


class Batch:
    """Columns of some documents that share a locale pack; nothing in it changes once made.

    Args:
        records: {"id", "text", "source", "metadata"} each; only "text", and "metadata" for `urls`, are read here.
        pack: the locale pack of their language: stop words, punctuation, phrases.
        texts: the documents' present texts; default: the records'.
        languages, probabilities: what identification said of each document, where it ran; else "" and 0.
    """

    def __init__(
        self,
        records: Sequence[Mapping],
        pack: locales.Pack,
        *,
        texts: Sequence[str] | None = None,
        languages: Sequence[str] | None = None,
        probabilities: Sequence[float] | None = None,
    ):
        self.records = list(records)
        self.pack = pack
        self.texts = [record["text"] for record in self.records] if texts is None else list(texts)
        self.languages = [""] * len(self.records) if languages is None else list(languages)
        self.probabilities = [0.0] * len(self.records) if probabilities is None else list(probabilities)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def urls(self) -> list[str | None]:
        """Each document's address; None where its metadata has none."""
        return [(record.get("metadata") or {}).get("url") or None for record in self.records]

    @functools.cached_property
    def lines(self) -> list[list[str]]:
        """Each text's lines, by every line break that Unicode knows, without the breaks."""
        return [text.splitlines() for text in self.texts]

    @functools.cached_property
    def words(self) -> words.Columns:
        """The words of all documents in flat arrays."""
        return words.columns(self.texts, english=self.pack.name == "en")

    def take(self, positions: Sequence[int]) -> "Batch":
        """The documents at these positions, with whatever was computed of them."""
        positions = list(positions)
        if positions == list(range(len(self))):
            return self
        part = Batch(
            [self.records[i] for i in positions],
            self.pack,
            texts=[self.texts[i] for i in positions],
            languages=[self.languages[i] for i in positions],
            probabilities=[self.probabilities[i] for i in positions],
        )
        if "lines" in self.__dict__:
            part.lines = [self.lines[i] for i in positions]
        if "words" in self.__dict__:
            part.words = self.words.take(positions)
        return part

    def with_texts(self, texts: Mapping[int, str]) -> "Batch":
        """The same documents with other texts at some positions; lines and words are then found anew."""
        if not texts:
            return self
        changed = [texts.get(i, text) for i, text in enumerate(self.texts)]
        return Batch(self.records, self.pack, texts=changed, languages=self.languages, probabilities=self.probabilities)
