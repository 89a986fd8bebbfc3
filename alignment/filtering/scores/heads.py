"""What trained scorers share: outputs to levels, the exported folder, and the score function; numpy alone.

A folder holds `scorer.safetensors` and `scorer.json`. Objectives, by what a network's outputs mean:

- `softmax`: one output a level.
- `ordinal`: one output and rising thresholds, P(level > k) = sigmoid(output - threshold k); with two levels, logistic
  regression. Proportional odds, McCullagh 1980.
- `regression`: one output, the level itself, as FineWeb-Edu's (Penedo et al. 2024, arXiv:2406.17557).

Dimensions: N texts, P pieces of texts, C levels, O outputs.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.filtering.scores import calibration, chunks
from alignment.filtering.scores.calibration import Calibration

OBJECTIVES = ("softmax", "ordinal", "regression")
WEIGHTS, ABOUT = "scorer.safetensors", "scorer.json"
FORMAT = 1

# texts -> outputs [P,O], whose piece each is [P], and the character at which it begins [P]
Outputs = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class About:
    """What a scorer is, beside its weights.

    Attributes:
        kind: `linear` or `embedding`.
        name: what its scores are called: `<name>.score` and `<name>.level`.
        levels: their names, the mildest first.
        features: how texts become the network's inputs; of the kind.
        pool: `max` takes a text's most severe piece, `mean` the average one.
        piece: length of a piece, in words (linear) or tokens (embedding); 0: the whole text.
        notes: where it comes from and how well it does; not read.
    """

    kind: str
    name: str
    objective: str
    levels: tuple[str, ...]
    features: dict[str, Any]
    pool: str = "max"
    piece: int = 512
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def check(about: About) -> None:
    """Refuse what no scorer can be."""
    if about.objective not in OBJECTIVES:
        raise InputError(f"objective={about.objective!r}; it is one of {', '.join(OBJECTIVES)}")
    if about.pool not in chunks.POOLS:
        raise InputError(f"pool={about.pool!r}; it is one of {', '.join(chunks.POOLS)}")
    if len(about.levels) < 2 or len(set(about.levels)) < len(about.levels):
        raise InputError(f"levels={list(about.levels)} must be two different ones or more")
    if about.piece < 0 or not about.name:
        raise InputError(f"piece={about.piece} must be at least 0 and name={about.name!r} must not be empty")


def num_outputs(objective: str, num_levels: int) -> int:
    return num_levels if objective == "softmax" else 1


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Called with a batch of records it gives each one's scores; the same whatever else is in the batch."""

    about: About
    tensors: Mapping[str, np.ndarray]
    outputs_fn: Outputs

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        return self._rows(self.logits([record["text"] for record in batch]))

    def with_chunks(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same scores, and `<name>.chunks`: [start, end, score] of each piece, in characters, in order.

        With `max` a text's score is that of its most severe piece (before calibration), with `mean` of them all.
        """
        texts = [record["text"] for record in batch]
        logits_PC, owners_P, starts_P = self._of_pieces(texts)
        rows = self._rows(self._pooled(logits_PC, owners_P, len(texts)))
        scores_P, _ = values(self.about, logits_PC)
        spans = chunks.spans(texts, owners_P, starts_P, scores_P.tolist())
        return [row | {f"{self.about.name}.chunks": found} for row, found in zip(rows, spans, strict=True)]

    def _rows(self, logits_NC: np.ndarray) -> list[dict[str, float]]:
        name = self.about.name
        return [
            {f"{name}.score": float(score), f"{name}.level": float(level)}
            for score, level in zip(*values(self.about, logits_NC))
        ]

    def values(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and levels: with two levels the probability of the second, else the expected level, in [0, C - 1]."""
        return values(self.about, self.logits(texts))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text, before calibration, [N,C] float64; of a regression, the level [N,1]."""
        logits_PC, owners_P, _ = self._of_pieces(texts)
        return self._pooled(logits_PC, owners_P, len(texts))

    def _of_pieces(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs_PO, owners_P, starts_P = self.outputs_fn(texts)
        return logits(self.about, outputs_PO.astype(np.float64), self.tensors), owners_P, starts_P

    def _pooled(self, logits_PC: np.ndarray, owners_P: np.ndarray, num_texts: int) -> np.ndarray:
        severity_P = logits_PC[:, 0] if self.about.objective == "regression" else expected(_probabilities(logits_PC))
        return chunks.pool(logits_PC, owners_P, num_texts, self.about.pool, severity_P)


def logits(about: About, outputs_PO: np.ndarray, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log-probabilities of levels up to a constant, [P,C]; a regression's level as it is, [P,1]."""
    if about.objective != "ordinal":
        return outputs_PO
    if len(about.levels) == 2:
        return np.concatenate([np.zeros_like(outputs_PO), outputs_PO - tensors["thresholds"][0]], axis=1)
    above = _sigmoid(outputs_PO - tensors["thresholds"][None].astype(np.float64))
    above = np.concatenate([np.ones_like(outputs_PO), above, np.zeros_like(outputs_PO)], axis=1)
    return np.log(np.maximum(above[:, :-1] - above[:, 1:], 1e-12))


def values(about: About, logits_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores and levels, [N] each; a regression's level is rounded as FineWeb-Edu rounds its `int_score`."""
    if about.objective == "regression":
        scores_N = logits_NC[:, 0]
        return scores_N, np.round(np.clip(scores_N, 0, len(about.levels) - 1))
    probabilities_NC = calibration.apply(about.calibration, logits_NC)
    return expected(probabilities_NC), np.argmax(probabilities_NC, axis=1)


def expected(probabilities_NC: np.ndarray) -> np.ndarray:
    """The mean level, [N]; of two levels, the probability of the second."""
    return probabilities_NC @ np.arange(probabilities_NC.shape[1], dtype=np.float64)


def save(folder: str | pathlib.Path, about: About, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the two files of a scorer, each complete or absent."""
    from safetensors import numpy as safetensors

    check(about)
    about_values = dataclasses.asdict(about) | {"format": FORMAT, "calibration": calibration.plain(about.calibration)}
    weights = safetensors.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    text = json.dumps(about_values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    for name, content in {WEIGHTS: weights, ABOUT: text.encode()}.items():  # the description last: it marks the end
        with files.replacing(pathlib.Path(folder, name)) as f:
            f.write(content)


def load(folder: str | pathlib.Path, kind: str) -> tuple[About, dict[str, np.ndarray]]:
    """What `save` has written.

    Raises:
        InputError: a folder that is not there, of another kind of scorer, or damaged.
    """
    import safetensors
    from safetensors import numpy as reader

    folder = pathlib.Path(folder)
    for name in (ABOUT, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"scorer {folder} has no {name}; give the folder export/scorer of a run of scorer.py")
    try:
        told = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        found = told.pop("format")
        told["calibration"] = calibration.from_plain(told["calibration"])
        about = About(**told | {"levels": tuple(told["levels"])})
        tensors = reader.load_file(folder / WEIGHTS)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as e:
        raise InputError(f"scorer {folder} is damaged ({e!r}); take the export of its run again") from None
    if found != FORMAT or about.kind != kind:
        raise InputError(f"{folder} is a scorer of kind {about.kind!r}, format {found}; wanted {kind!r}, {FORMAT}")
    check(about)
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.all(np.isfinite(tensor)):
            raise InputError(f"scorer {folder}: {name} is not all finite float32 numbers; train it again")
    return about, tensors


def check_shapes(about: About, tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that do not go with what is told about them."""
    found = {name: tensor.shape for name, tensor in tensors.items()}
    wanted = dict(wanted)
    if about.objective == "ordinal":
        wanted["thresholds"] = (len(about.levels) - 1,)
    if found != wanted:
        raise InputError(f"the scorer's weights are {found}, and {ABOUT} says {wanted}; take the whole export again")


def _probabilities(logits_NC: np.ndarray) -> np.ndarray:
    return calibration.apply(calibration.Calibration(), logits_NC)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -math.log(1e30), math.log(1e30))))
