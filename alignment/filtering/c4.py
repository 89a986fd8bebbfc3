"""Placeholder: the checks follow."""

from alignment.filtering.batch import Batch, Findings


def clean(batch: Batch) -> Findings:
    raise NotImplementedError
