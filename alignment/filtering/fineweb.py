"""Placeholder: the checks follow."""

from alignment.filtering.batch import Batch, Findings


def check(batch: Batch) -> Findings:
    raise NotImplementedError
