"""What all trained scorers share: from outputs to levels, the exported folder, the score function; in numpy alone.

A folder holds `scorer.safetensors` and `scorer.json`. An objective says what the network's outputs mean:

- `softmax`: one output for each level.
- `ordinal`: one output and rising thresholds, P(level > k) = sigmoid(output - threshold k), the proportional odds of
  McCullagh 1980; with two levels, logistic regression.
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

from alignment import errors, files
from alignment.errors import InputError
from alignment.filtering.scores import calibration, chunks
from alignment.filtering.scores.calibration import Calibration

OBJECTIVES = ("softmax", "ordinal", "regression")
WEIGHTS, ABOUT = "scorer.safetensors", "scorer.json"
FORMAT = 1

# texts -> outputs of pieces [P,O], the text of each piece [P], and the character at which it begins [P]
Outputs = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class About:
    """The description of a scorer, without its weights.

    Attributes:
        kind: `linear` or `embedding`.
        name: of its scores: `<name>.score` and `<name>.level`.
        objective: one of OBJECTIVES.
        levels: their names, the mildest first.
        features: how texts become the network's inputs; the keys depend on the kind.
        pool: `max` takes a text's most severe piece, `mean` averages the pieces.
        piece: length of a piece, in words (linear) or tokens (embedding); 0 leaves texts whole.
        calibration: from logits to probabilities.
        notes: for readers: origin and measured quality.
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
    """Check a description.

    Raises:
        InputError: unknown names, fewer than two levels, or numbers out of range.
    """
    errors.one_of("objective", about.objective, OBJECTIVES)
    errors.one_of("pool", about.pool, chunks.POOLS)
    if len(about.levels) < 2 or len(set(about.levels)) < len(about.levels):
        raise InputError(f"levels={list(about.levels)} must be at least two different names")
    if about.piece < 0 or not about.name:
        raise InputError(f"piece={about.piece} must be at least 0 and name={about.name!r} must not be empty")


def num_outputs(objective: str, num_levels: int) -> int:
    """Outputs of a network with this objective."""
    return num_levels if objective == "softmax" else 1


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A score function: a batch of records -> the scores of each, whatever else is in the batch."""

    about: About
    tensors: Mapping[str, np.ndarray]
    outputs_fn: Outputs

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
        return self._rows(self.logits([record["text"] for record in batch]))

    def with_chunks(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same scores and `<name>.chunks`: [start, end, score] of each piece, in characters, in order.

        A text's score is that of its most severe piece before calibration (`max`), or of all pieces (`mean`).
        """
        texts = [record["text"] for record in batch]
        logits_PC, owners_P, starts_P = self._of_pieces(texts)
        rows = self._rows(self._pooled(logits_PC, owners_P, len(texts)))
        scores_P, _ = values(self.about, logits_PC)
        spans = chunks.spans(texts, owners_P, starts_P, scores_P.tolist())
        return [row | {f"{self.about.name}.chunks": of_text} for row, of_text in zip(rows, spans, strict=True)]

    def _rows(self, logits_NC: np.ndarray) -> list[dict[str, float]]:
        name = self.about.name
        return [
            {f"{name}.score": float(score), f"{name}.level": float(level)}
            for score, level in zip(*values(self.about, logits_NC))
        ]

    def values(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores and levels [N]; a score is the expected level, in [0, C - 1], so with two levels a probability."""
        return values(self.about, self.logits(texts))

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits before calibration [N,C] float64; for a regression, the level [N,1]."""
        logits_PC, owners_P, _ = self._of_pieces(texts)
        return self._pooled(logits_PC, owners_P, len(texts))

    def _of_pieces(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs_PO, owners_P, starts_P = self.outputs_fn(texts)
        return logits(self.about, outputs_PO.astype(np.float64), self.tensors), owners_P, starts_P

    def _pooled(self, logits_PC: np.ndarray, owners_P: np.ndarray, num_texts: int) -> np.ndarray:
        severity_P = logits_PC[:, 0] if self.about.objective == "regression" else expected(_probabilities(logits_PC))
        return chunks.pool(logits_PC, owners_P, num_texts, self.about.pool, severity_P)


def logits(about: About, outputs_PO: np.ndarray, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log-probabilities of levels up to a constant [P,C]; for a regression, the level itself [P,1]."""
    if about.objective != "ordinal":
        return outputs_PO
    if len(about.levels) == 2:  # logistic regression: the general formula would lose precision in the tails
        return np.concatenate([np.zeros_like(outputs_PO), outputs_PO - tensors["thresholds"][0]], axis=1)
    # P(level = k) = P(level > k - 1) - P(level > k), with P(level > -1) = 1 and P(level > C - 1) = 0.
    above = _sigmoid(outputs_PO - tensors["thresholds"][None].astype(np.float64))
    # The floor of 1e-12 below keeps log finite where the sigmoids of two thresholds round to the same number.
    above = np.concatenate([np.ones_like(outputs_PO), above, np.zeros_like(outputs_PO)], axis=1)
    return np.log(np.maximum(above[:, :-1] - above[:, 1:], 1e-12))


def values(about: About, logits_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores and levels [N]; a regression's level is rounded as FineWeb-Edu rounds its `int_score`."""
    if about.objective == "regression":
        scores_N = logits_NC[:, 0]
        return scores_N, np.round(np.clip(scores_N, 0, len(about.levels) - 1))
    probabilities_NC = calibration.apply(about.calibration, logits_NC)
    return expected(probabilities_NC), np.argmax(probabilities_NC, axis=1)


def expected(probabilities_NC: np.ndarray) -> np.ndarray:
    """The mean level [N]; with two levels, the probability of the second."""
    return probabilities_NC @ np.arange(probabilities_NC.shape[1], dtype=np.float64)


def save(folder: str | pathlib.Path, about: About, tensors: Mapping[str, np.ndarray]) -> None:
    """Write the two files of a scorer, each complete or absent.

    Raises:
        InputError: see `check`.
    """
    from safetensors import numpy as safetensors

    check(about)
    about_values = dataclasses.asdict(about) | {"format": FORMAT, "calibration": calibration.plain(about.calibration)}
    weights = safetensors.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    text = json.dumps(about_values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    for name, content in {WEIGHTS: weights, ABOUT: text.encode()}.items():  # the description last: it marks the end
        with files.replacing(pathlib.Path(folder, name)) as f:
            f.write(content)


def load(folder: str | pathlib.Path, kind: str) -> tuple[About, dict[str, np.ndarray]]:
    """Read the folder that `save` wrote: the description and float32 tensors.

    Raises:
        InputError: the folder is missing, damaged, or of another kind of scorer.
    """
    import safetensors
    from safetensors import numpy as reader

    folder = pathlib.Path(folder)
    for name in (ABOUT, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"scorer {folder} has no {name}; give the folder export/scorer of a run of scorer.py")
    try:
        fields = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        version = fields.pop("format")
        fields["calibration"] = calibration.from_plain(fields["calibration"])
        about = About(**fields | {"levels": tuple(fields["levels"])})
        tensors = reader.load_file(folder / WEIGHTS)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as e:
        raise InputError(f"scorer {folder} is damaged ({e!r}); take the export of its run again") from None
    if version != FORMAT or about.kind != kind:
        raise InputError(
            f"{folder} is a scorer of kind {about.kind!r}, format {version}; this needs {kind!r}, {FORMAT}"
        )
    check(about)
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.all(np.isfinite(tensor)):
            raise InputError(f"scorer {folder}: {name} must hold finite float32 numbers; train it again")
    return about, tensors


def check_shapes(about: About, tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights that do not match the description.

    Raises:
        InputError: other names or shapes than expected; an ordinal scorer has `thresholds` as well.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected = dict(expected)
    if about.objective == "ordinal":
        expected["thresholds"] = (len(about.levels) - 1,)
    if shapes != expected:
        raise InputError(
            f"the scorer's weights are {shapes}, but {ABOUT} needs {expected}; take the whole export again"
        )


def _probabilities(logits_NC: np.ndarray) -> np.ndarray:
    return calibration.apply(calibration.Calibration(), logits_NC)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # The clip keeps exp below float32's largest number.
    return 1 / (1 + np.exp(-np.clip(x, -math.log(1e30), math.log(1e30))))
