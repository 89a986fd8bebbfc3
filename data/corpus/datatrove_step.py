"""Rules and scorers as a step of a datatrove pipeline; the first step imports datatrove.

    [JsonlReader("raw/"), datatrove_step.step(rules=functools.partial(rules.apply, chain=...)), JsonlWriter("clean/")]

Documents that pass go on with the text as the rules left it, and with the rules' attributes and the scores in their
metadata; the others go to the exclusion writer with `filter_reason`. datatrove pickles a step for its worker processes,
so `score` and `rules` are functions of a module, or partials of them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignment.errors import InputError

Record = dict[str, Any]


def step(
    score: Callable[[list[Record]], list[Mapping[str, float]]] | None = None,
    rules: Callable[[list[Record]], Sequence[Any]] | None = None,
    *,
    exclusion_writer: Any = None,
    batch_size: int = 256,
    source: str = "",
) -> Any:
    """A datatrove step: an instance of datatrove's `BaseFilter`.

    Args:
        score: of a batch of documents, a dict of name to number each; documents that the rules drop are not scored.
        rules: of a batch of documents, a verdict each, with `reason` ("" keeps), `text`, `language`, `attributes`.
        exclusion_writer: a datatrove writer for what is dropped.
        batch_size: documents that `rules` and `score` receive at a time.
        source: of documents whose metadata name none.

    Raises:
        InputError: neither `score` nor `rules`, or datatrove is not installed.
    """
    if score is None and rules is None:
        raise InputError("a datatrove step needs score=, rules=, or both")
    return _step_class()(score, rules, exclusion_writer, batch_size, source)


def __getattr__(name: str) -> Any:
    if name == "Step":  # unpickling a step looks for its class here, in a process that may not have made it yet
        return _step_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _step_class() -> Any:
    try:
        from datatrove.pipeline.filters.base_filter import BaseFilter
    except ImportError as e:
        raise InputError("steps for datatrove need it; pip install 'plumbline[datatrove]'") from e

    class Step(BaseFilter):
        name = "Plumbline"

        def __init__(self, score: Any, rules: Any, exclusion_writer: Any, batch_size: int, source: str):
            super().__init__(exclusion_writer, batch_size)
            self.score, self.rules, self.source = score, rules, source

        def filter(self, doc: Any) -> bool | tuple[bool, str]:
            return self.filter_batch([doc])[0]

        def filter_batch(self, batch: list[Any]) -> list[bool | tuple[bool, str]]:
            results: list[bool | tuple[bool, str]] = [True] * len(batch)
            if self.rules is not None:
                verdicts = self.rules([_record(doc, self.source) for doc in batch])
                results = [_judged(doc, verdict) for doc, verdict in zip(batch, verdicts, strict=True)]
            passing = [doc for doc, result in zip(batch, results) if result is True]
            if self.score is not None and passing:
                scores = self.score([_record(doc, self.source) for doc in passing])
                for doc, scores_of_doc in zip(passing, scores, strict=True):
                    doc.metadata.update({k: _number(v) for k, v in scores_of_doc.items()})
            return results

    Step.__qualname__ = "Step"
    return Step


def _record(doc: Any, source: str) -> Record:
    source = doc.metadata.get("source") or doc.metadata.get("dataset") or source
    return {"id": doc.id, "text": doc.text, "source": str(source), "metadata": dict(doc.metadata)}


def _judged(doc: Any, verdict: Any) -> bool | tuple[bool, str]:
    """Write a verdict to its document, and return it as datatrove's filters do: True, or (False, reason)."""
    doc.metadata.update({k: _number(v) for k, v in verdict.attributes.items()})
    if verdict.language:
        doc.metadata["language"] = verdict.language
    if verdict.reason:
        return False, verdict.reason
    if verdict.text is not None:
        doc.text = verdict.text
    return True


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value  # of numpy or JAX, which datatrove's writers cannot write
