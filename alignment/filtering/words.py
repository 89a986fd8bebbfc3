"""Words in flat columns (placeholder: the splitter follows)."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass
class Columns:
    """Words of a batch: `ids_W` into a vocabulary, `starts_N1` where each document's begin."""

    ids_W: np.ndarray
    starts_N1: np.ndarray

    def take(self, positions: Sequence[int]) -> "Columns":
        raise NotImplementedError


def columns(texts: Sequence[str], *, contractions: bool = True) -> Columns:
    raise NotImplementedError
