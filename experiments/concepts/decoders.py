"""A decoder with a low-rank adapter as a classifier: it is tuned to answer with a label and answers with one token.

Zhou et al. 2024 (arXiv:2311.08648), Section 5, with this project's decoder in place of theirs.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.train import adapters, language_model, loop, optimizer, sharding
from data.texts import text
from experiments.concepts import in_context
from experiments.concepts.sets import Training
from experiments.decoding import models
from experiments.decoding.models import Model
from experiments.launch import checks, text_training

FORBIDDEN = (models.RANDOM, *models.TOYS)


def settings() -> dict[str, Any]:
    """The group `tuning` of the config."""
    return dict(
        rank=8,  # of the adapter
        alpha=16.0,
        epochs=3,
        batch_size=32,
        peak_lr=2e-4,
        warmup=0.03,  # share of the updates
        clip_norm=0.3,
        max_len=512,  # tokens of a row
        instruction="What is the sentiment of this text?",
    )


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs no weights to be seen."""
    t = c.tuning
    checks.within(c, "[1, inf)", "tuning.rank", "tuning.epochs", "tuning.batch_size", "tuning.max_len")
    checks.within(c, "[0, 1)", "tuning.warmup")
    adapters.Options(rank=t.rank, alpha=t.alpha)
    optimizer.adamw(peak_lr=t.peak_lr, clip_norm=t.clip_norm)
    if c.decoder.init_from in FORBIDDEN:
        raise InputError(
            f"decoder.init_from={c.decoder.init_from!r} has no weights on disk that an adapter could stand beside; "
            "give hf:, run: or gguf:"
        )


class DecoderLearner:
    """Trains adapters beside one decoder; `folder` holds a folder for each training."""

    def __init__(self, c: ml_collections.ConfigDict, model: Model, num_labels: int, folder: pathlib.Path) -> None:
        self._c, self._model, self._folder = c, model, folder
        self._labels = in_context.names(num_labels)
        self.digest = f"{model.digest} {json.dumps(c.tuning.to_dict(), sort_keys=True)}"

    def fit(self, training: Training, *, seed: int, groups_N: np.ndarray | None = None) -> "Answerer":
        if groups_N is not None:
            raise InputError("group_dro is not offered for models=decoder; leave it out of methods")
        t, model = self._c.tuning, self._model
        name = hashlib.sha256(f"{training.digest} {seed} {self.digest}".encode()).hexdigest()[:16]
        folder = self._folder / name
        splits = [self._rows(path, seed) for path in self._write(folder, training)]
        steps = max(1, round(t.epochs * len(splits[0]) / t.batch_size))
        compute = dict(dtype=model.network.dtype, remat="none", attention="auto", unroll=1)
        net = language_model.build(model.init_from, model.tok, model={}, compute=compute, rows_are_plain=True)
        mesh = sharding.make_mesh()
        base = language_model.base_params(model.init_from, net, mesh, seed=seed)
        adapter, params = adapters.begin(adapters.Options(rank=t.rank, alpha=t.alpha), net, mesh)
        tx = optimizer.adamw(
            peak_lr=t.peak_lr,
            warmup_steps=round(t.warmup * steps),
            total_steps=steps,
            schedule="constant",
            clip_norm=t.clip_norm,
        )
        state = adapters.create(adapter, tx, base, seed=seed, mesh=mesh, params=params)
        state, _ = text_training.fit(
            net,
            None,
            splits,
            mesh,
            folder,
            tx=tx,
            seed=seed,
            steps=steps,
            batch_size=t.batch_size,
            state=state,
            adapter=adapter,
            pace=loop.Pace(save_every=max(1, steps // 4), keep=1),
            logging=loop.Logging(sinks=(), label=name),
        )
        tuned = dataclasses.replace(model, params=adapters.policy(adapter, state))
        return Answerer(tuned, self._c, self._labels)

    def _write(self, folder: pathlib.Path, training: Training) -> list[pathlib.Path]:
        instruction = self._c.tuning.instruction
        sides = {"train": (training.texts, training.labels_N), "heldout": training.heldout}
        for side, (texts, labels_N) in sides.items():
            rows = [
                {"prompt": prompt(instruction, one, self._labels), "completion": f" {self._labels[label]}"}
                for one, label in zip(texts, labels_N)
            ]
            files.write_rows(folder / f"{side}.jsonl", rows)
        return [folder / f"{side}.jsonl" for side in sides]

    def _rows(self, path: pathlib.Path, seed: int) -> text.Texts:
        options = dict(max_len=self._c.tuning.max_len, packed=False, truncation="error", heldout_fraction=0.0)
        return text.load(kind="answers", path=str(path), tokenizer=self._model.tok, seed=seed, **options)[0]


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A tuned decoder, whose first token is the label."""

    model: Model
    c: ml_collections.ConfigDict
    labels: tuple[str, ...]

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The label of each text; -1, which is never right, where the first token names none."""
        engine = models.engine(self.model, self.c.decoder)
        tok = self.model.tok
        write = in_context.of_engine(
            engine, lambda one: tok.encode(one, add_bos=tok.adds_bos), self.c.decoder.engine.max_len
        )
        said = write([prompt(self.c.tuning.instruction, one, self.labels) for one in texts], 2)
        read = [in_context.parse(answer, self.labels) for answer in said]
        return np.array([-1 if label is None else label for label in read])


def prompt(instruction: str, one: str, labels: Sequence[str]) -> str:
    return f"{' '.join(one.split())}\n{instruction} One of {', '.join(labels)}:"
