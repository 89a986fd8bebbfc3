"""Placeholder: the checks follow."""

from alignment.filtering.batch import Batch, Findings


def quality(batch: Batch) -> Findings:
    raise NotImplementedError
