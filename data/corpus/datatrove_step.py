"""Our rules and scorers as a step of a datatrove pipeline; datatrove is imported with the first step.

    [JsonlReader("raw/"), datatrove_step.step(rules=functools.partial(rules.apply, chain=...)), JsonlWriter("clean/")]

Kept documents go on, with the rules' attributes and the scores in their metadata and the text as the rules left it;
dropped ones go to the exclusion writer with `filter_reason`. A step is sent to datatrove's worker processes as it is,
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
):
    """A datatrove step.

    Args:
        score: of a batch of documents, a dict of name to number each; documents that the rules drop are not scored.
        rules: of a batch of documents, a verdict each, with `reason` ("" keeps), `text`, `language`, `attributes`.
        exclusion_writer: a datatrove writer for what is dropped.
        batch_size: documents given to `rules` and `score` at a time.
        source: of documents whose metadata name none.
    """
    if score is None and rules is None:
        raise InputError("a datatrove step needs score=, rules=, or both")
    return _step_class()(score, rules, exclusion_writer, batch_size, source)


def __getattr__(name: str):
    if name == "Step":  # where a worker process looks for the class of the step it is sent
        return _step_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _step_class():
    try:
        from datatrove.pipeline.filters.base_filter import BaseFilter
    except ImportError as e:
        raise InputError("steps for datatrove need it; pip install 'plumbline[datatrove]'") from e

    class Step(BaseFilter):
        name = "Plumbline"

        def __init__(self, score, rules, exclusion_writer, batch_size: int, source: str):
            super().__init__(exclusion_writer, batch_size)
            self.score, self.rules, self.source = score, rules, source

        def filter(self, doc):
            return self.filter_batch([doc])[0]

        def filter_batch(self, batch):
            found = [True] * len(batch)
            if self.rules is not None:
                verdicts = self.rules([_record(doc, self.source) for doc in batch])
                found = [_judged(doc, verdict) for doc, verdict in zip(batch, verdicts, strict=True)]
            kept = [doc for doc, result in zip(batch, found) if result is True]
            if self.score is not None and kept:
                scores = self.score([_record(doc, self.source) for doc in kept])
                for doc, named in zip(kept, scores, strict=True):
                    doc.metadata.update({k: _number(v) for k, v in named.items()})
            return found

    Step.__qualname__ = "Step"
    return Step


def _record(doc, source: str) -> Record:
    named = doc.metadata.get("source") or doc.metadata.get("dataset") or source
    return {"id": doc.id, "text": doc.text, "source": str(named), "metadata": dict(doc.metadata)}


def _judged(doc, verdict) -> bool | tuple[bool, str]:
    """Writes a verdict to its document; what datatrove's filters return."""
    doc.metadata.update({k: _number(v) for k, v in verdict.attributes.items()})
    if verdict.language:
        doc.metadata["language"] = verdict.language
    if verdict.reason:
        return False, verdict.reason
    if verdict.text is not None:
        doc.text = verdict.text
    return True


def _number(value):
    return value.item() if hasattr(value, "item") else value
