"""Training a scorer of documents: levels of safety or quality, from n-grams or from an embedding.

Paper:   Maini et al. 2025, arXiv:2504.16980 (safety from 0 to 5); Penedo et al. 2024, arXiv:2406.17557 (FineWeb-Edu)
Run:     python -m experiments.run --config experiments/scorer.py --config.data.path=labelled.jsonl
Laptop:  python -m experiments.run --config experiments/scorer.py:laptop   (CPU, a minute; `tiny`: seconds)
Expect:  laptop, held-out AUC 0.936 (0.914 to 0.956), calibration error 0.049; 11 s on two cores of an AMD EPYC,
         Python 3.11, JAX 0.10.2, commit 3101771

Texts fall in three parts: the first trains, the second calibrates, the third is held out, and every number named
`heldout` is of it. The scorer that is measured is the exported one, as a filter loads it.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.evaluation import classification
from alignment.filtering.scores import calibration, embedding, fitting, heads, linear, ngrams
from alignment.train import loop, optimizer, sharding
from data import loader, records
from data.texts import labels
from experiments.launch import checks, groups
from experiments.report import pictures

SETTINGS = ("", "laptop", "tiny")
BINS = 15


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 20_000
    c.kind = "linear"  # or "embedding"
    c.name = "safety"  # of the scores: safety.score, safety.level
    c.objective = "auto"  # softmax, ordinal or regression; auto: ordinal for two levels (logistic), softmax for more
    c.data = dict(
        path="labels.jsonl",  # also chosen/rejected pairs
        limit=config_dict.placeholder(int),  # records; None takes all
        levels=(),  # labels of each level, the mildest first: ("2", "0,1"); () takes them as they are
        columns=dict(text="", label=""),  # "": text, label
    )
    c.split = dict(  # shares of the texts
        calibration=0.1,
        heldout=0.1,
    )
    c.unsafe = dict(
        level=1,  # the first that is unsafe
        weight=1.0,  # how many times an unsafe text counts in training
    )
    c.features = dict(  # of linear
        words=(1, 2),
        characters=(3, 5),
        buckets=1 << 20,
        lower=True,
    )
    c.embedding = dict(
        model="embedding",  # model2vec folder
        hidden=config_dict.placeholder(int),  # width of a hidden layer; None: there is none
    )
    c.pool = "max"  # a document is as its worst piece; "mean": as its average one
    c.piece = 512  # words (linear) or tokens (embedding) of a piece; training sees the first piece of a text
    c.calibration = "platt"  # temperature, platt, isotonic, none
    c.batch_size = 256  # texts over all hosts
    c.optimizer = dict(
        peak_lr=0.01,
        warmup_steps=100,
        total_steps=c.get_ref("steps"),
        schedule="cosine",
        weight_decay=0.0,
        clip_norm=0.0,
    )
    c.loop = groups.loop(log_every=50, eval_every=1_000, save_every=2_000)
    c.samples = 10  # mistakes shown, the most certain first; 0 for none
    c.sinks = groups.SINKS
    c.mesh = groups.mesh()
    if arg:
        c.data.path = "synthetic"
        c.split.calibration = 0.2
        c.split.heldout = 0.2
        c.features.buckets = 1 << 16
        c.batch_size = 64
        c.optimizer.warmup_steps = 10
    if arg == "tiny":
        c.steps = 6
        c.data.limit = 200
        c.features.buckets = 1 << 12
        c.features.characters = (3, 3)
        c.batch_size = 16
        c.optimizer.peak_lr = 0.1
        c.optimizer.warmup_steps = 1
        c.loop.log_every = 1
        c.loop.eval_every = 3
        c.loop.save_every = 3
    elif arg == "laptop":
        c.steps = 400
        c.data.limit = 4_000
        c.loop.log_every = 10
        c.loop.eval_every = 50
        c.loop.save_every = 100
    return c


def sweep():
    for peak_lr, weight in itertools.product((0.003, 0.01, 0.03), (1.0, 10.0, 100.0)):
        yield {"optimizer.peak_lr": peak_lr, "unsafe.weight": weight}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    check(c)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh)
    labelled, counts = labels.load(
        c.data.path,
        columns=dict(c.data.columns),
        levels=c.data.levels,
        limit=c.data.limit or 0,
        seed=c.seed,
        bad_records_path=str(workdir / "bad_records.jsonl"),
    )
    parts = labels.split(labelled, fractions=(c.split.calibration, c.split.heldout), seed=c.seed)
    names = ("train", "calibration", "heldout")
    counts |= {
        f"{name}: {level}": int(np.sum(part.labels_N == i))
        for name, part in zip(names, parts)
        for i, level in enumerate(labelled.levels)
    }
    files.report_counts(workdir, counts)
    about, make_fn, build_fn, options = KIND_FNS[c.kind](c, labelled, parts)
    heads.check(about)
    num_levels = len(labelled.levels)
    if not 0 < c.unsafe.level < num_levels:
        raise InputError(f"unsafe.level={c.unsafe.level}: with {num_levels} levels it must be 1 to {num_levels - 1}")
    batches_fn = functools.partial(loader.build, batch_size=c.batch_size, seed=c.seed, **sharding.row_share(mesh))
    tensors, summary = fitting.fit(
        about,
        batches_fn(make_fn(parts[0]), num_examples=len(parts[0]), content=content_of(about, labelled)),
        batches_fn(make_fn(parts[2]), num_examples=len(parts[2]), endless=False),
        mesh,
        workdir,
        tx=optimizer.adamw(**c.optimizer),
        seed=c.seed,
        steps=c.steps,
        batch_size=c.batch_size,
        pace=loop.Pace(**c.loop),
        logging=loop.Logging(sinks=c.sinks),
        **options,
    )
    if jax.process_index() == 0:
        about = calibrated(c, about, build_fn(about, tensors), parts[1])
        heads.save(workdir / "export/scorer", about, tensors)
        summary |= judge(c, workdir, build_fn(about, tensors), parts[2])
    return summary


# What goes in


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    errors.one_of("kind", c.kind, KIND_FNS)
    errors.one_of("calibration", c.calibration, calibration.METHODS)
    if c.data.path != "synthetic":
        records.check(c.data.path)
    labels.check_fractions((c.split.calibration, c.split.heldout))
    heads.check(about_of(c, tuple(c.data.levels) or ("0", "1"), {}))
    if c.unsafe.level < 1 or (c.data.levels and c.unsafe.level >= len(c.data.levels)):
        most = f" to {len(c.data.levels) - 1}" if c.data.levels else " or more"
        raise InputError(f"unsafe.level={c.unsafe.level}: it must be 1{most}, the first level that is unsafe")
    if c.kind == "linear":
        ngrams.settings(dict(c.features))
    else:
        embedding.check(c.embedding.model)
    optimizer.adamw(**c.optimizer)
    checks.check_least(c, {"embedding.hidden": 1})
    loop.Pace(**c.loop)
    checks.within(c, "(0, inf)", "unsafe.weight")
    if c.calibration != "none" and c.objective == "regression":
        raise InputError("a regression has no probabilities to calibrate; set calibration=none")


def about_of(c: ml_collections.ConfigDict, levels: tuple[str, ...], features: dict) -> heads.About:
    objective = c.objective
    if objective == "auto":
        objective = "ordinal" if len(levels) == 2 else "softmax"
    return heads.About(c.kind, c.name, objective, levels, features, pool=c.pool, piece=c.piece)


def content_of(about: heads.About, labelled: labels.Labelled) -> str:
    """A digest of all texts and of what makes them into inputs, kept with the position of a run in them."""
    return loader.digest(texts=(labelled.digest, json.dumps(about.features, sort_keys=True, default=str)))


def weights_of(c: ml_collections.ConfigDict, part: labels.Labelled) -> np.ndarray:
    """How often each text counts."""
    return np.where(part.labels_N >= c.unsafe.level, c.unsafe.weight, 1.0)


class Kind(NamedTuple):
    """A kind of scorer: its description, its batches of a part, its scorer from weights, options of `fitting.fit`."""

    about: heads.About
    make_fn: Callable[[labels.Labelled], Callable]
    build_fn: Callable[[heads.About, Any], heads.Scorer]
    options: dict[str, Any]


def linear_kind(c: ml_collections.ConfigDict, labelled: labels.Labelled, parts: list[labels.Labelled]) -> Kind:
    """A head on n-grams."""
    features = ngrams.settings(dict(c.features))
    about = about_of(c, labelled.levels, {**c.features})
    width = linear.width(parts[0].texts, features, piece=c.piece)

    def make_fn(part: labels.Labelled) -> Callable:
        shape = dict(chosen=features, width=width, piece=c.piece)
        return linear.batch_fn(part.texts, part.labels_N, weights_of(c, part), **shape)

    return Kind(about, make_fn, linear.build, dict(num_inputs=features.buckets))


def embedding_kind(c: ml_collections.ConfigDict, labelled: labels.Labelled, parts: list[labels.Labelled]) -> Kind:
    """A head on a static embedding."""
    static = embedding.static(c.embedding.model)
    features = dict(model=static.folder, sha256=static.sha256, width=static.width)

    def make_fn(part: labels.Labelled) -> Callable:
        inputs_ND, *_ = static.pieces(part.texts, c.piece, first=True)
        return embedding.batch_fn(inputs_ND, part.labels_N, weights_of(c, part))

    def build_fn(about: heads.About, tensors: Any) -> heads.Scorer:
        return embedding.build(about, tensors, lambda texts: static.pieces(texts, about.piece))

    options = dict(num_inputs=static.width, hidden=c.embedding.hidden or 0)
    return Kind(about_of(c, labelled.levels, features), make_fn, build_fn, options)


KIND_FNS = {"linear": linear_kind, "embedding": embedding_kind}


# What comes out


def calibrated(
    c: ml_collections.ConfigDict, about: heads.About, scorer: heads.Scorer, part: labels.Labelled
) -> heads.About:
    if c.calibration == "none":
        return about
    fitted = calibration.fit(c.calibration, scorer.logits(part.texts), part.labels_N)
    return dataclasses.replace(about, calibration=fitted)


def judge(
    c: ml_collections.ConfigDict, workdir: pathlib.Path, scorer: heads.Scorer, part: labels.Labelled
) -> dict[str, float]:
    """Write tables, figures and findings of the held-out texts; returns the numbers of the summary."""
    started = time.perf_counter()
    logits_NC = scorer.logits(part.texts)
    seconds = time.perf_counter() - started
    scores_N, levels_N = heads.values(scorer.about, logits_NC)
    is_unsafe_N = part.labels_N >= c.unsafe.level
    # texts are ranked by their probability of being unsafe; a regression has none, so by its level
    ranks_N, before_N = scores_N, None
    if scorer.about.objective != "regression":
        plain = calibration.Calibration()
        kinds = (scorer.about.calibration, plain)
        ranks_N, before_N = (calibration.apply(kind, logits_NC)[:, c.unsafe.level :].sum(axis=1) for kind in kinds)
    counts_CC = classification.confusion(part.labels_N, levels_N.astype(np.int64), len(part.levels))
    groups = [group or f"text {i}" for i, group in enumerate(part.groups)]
    low, high = calibration.auc_interval(ranks_N, is_unsafe_N, groups_N=groups, seed=c.seed)
    numbers = {"heldout_auc": calibration.auc(ranks_N, is_unsafe_N), "heldout_auc_low": low, "heldout_auc_high": high}
    if before_N is not None:
        rows = calibration.reliability(ranks_N, is_unsafe_N, BINS)
        rows_before = calibration.reliability(before_N, is_unsafe_N, BINS)
        numbers["heldout_ece"] = calibration.expected_error(rows)
        numbers["heldout_ece_uncalibrated"] = calibration.expected_error(rows_before)
        files.write_rows(workdir / "tables/reliability.jsonl", rows)
        draw_reliability(workdir, rows, rows_before)
    numbers |= {"accuracy": classification.overall(counts_CC), "macro_f1": calibration.macro_f1(counts_CC)}
    numbers["most_frequent_level"] = float(np.max(np.sum(counts_CC, axis=1)) / np.sum(counts_CC))
    numbers |= {f"recall_at_{k}": calibration.recall_at(counts_CC, k) for k in range(1, len(part.levels))}
    numbers["texts_scored_per_second"] = len(part) / max(seconds, 1e-9)
    write_findings(c, workdir, part, counts_CC, numbers)
    draw(workdir, part, ranks_N, is_unsafe_N, counts_CC)
    files.write_rows(workdir / "tables/mistakes.jsonl", mistakes(part, scores_N, levels_N, c.samples))
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def write_findings(
    c: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    part: labels.Labelled,
    counts_CC: np.ndarray,
    numbers: dict[str, float],
) -> None:
    """A table of the levels, and the numbers in words."""
    f1_C = calibration.f1(counts_CC)
    rows = [
        {"level": name, "texts": int(counts_CC[i].sum()), "found": int(counts_CC[i, i]), "f1": _number(f1_C[i])}
        for i, name in enumerate(part.levels)
    ]
    files.write_rows(workdir / "tables/levels.jsonl", rows)
    words = f"Of {len(part)} held-out texts, {numbers['accuracy']:.3f} are given their level (always naming the most "
    words += f"frequent one: {numbers['most_frequent_level']:.3f}); macro-F1 {numbers['macro_f1']:.3f}.\n"
    words += f"An unsafe text (from level {part.levels[c.unsafe.level]} on) is ranked above another with chance "
    words += f"{numbers['heldout_auc']:.3f} ({numbers['heldout_auc_low']:.3f} to {numbers['heldout_auc_high']:.3f}).\n"
    if "heldout_ece" in numbers:
        words += f"The probability that it gives is off by {numbers['heldout_ece']:.3f} on average, by "
        words += f"{numbers['heldout_ece_uncalibrated']:.3f} before calibration ({c.calibration}).\n"
    files.write_text(workdir / "findings.txt", words)


def draw_reliability(workdir: pathlib.Path, rows: Sequence[dict], rows_before: Sequence[dict]) -> None:
    lines = {"perfect": [(0.0, 0.0), (1.0, 1.0)]}
    for name, kind in (("calibrated", rows), ("before", rows_before)):
        lines[name] = [(row["confidence"], row["share"]) for row in kind]
    axes = dict(x_label="probability of being unsafe", y_label="share that is")
    caption = "Held-out texts in parts of equal width by their probability of being unsafe."
    pictures.curves(workdir / "figures/reliability.png", lines, caption=caption, **axes)


def draw(
    workdir: pathlib.Path,
    part: labels.Labelled,
    ranks_N: np.ndarray,
    is_unsafe_N: np.ndarray,
    counts_CC: np.ndarray,
) -> None:
    """ROC, histograms of the levels' scores, and the confusion of three levels and more."""
    points = calibration.roc(ranks_N, is_unsafe_N)
    points = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, 60).astype(int))]
    axes = dict(x_label="share of safe texts above the threshold", y_label="share of unsafe texts above it")
    lines = {"scorer": points, "chance": [(0.0, 0.0), (1.0, 1.0)]}
    caption = "Held-out texts: shares of unsafe and of safe ones above each threshold."
    pictures.curves(workdir / "figures/roc.png", lines, caption=caption, **axes)
    edges = np.linspace(np.min(ranks_N), max(np.max(ranks_N), np.min(ranks_N) + 1e-6), 21)
    lines = {}
    for i, name in enumerate(part.levels):
        counts = np.histogram(ranks_N[part.labels_N == i], edges)[0]
        shares = counts / max(counts.sum(), 1)
        lines[f"level {name}"] = list(zip(((edges[1:] + edges[:-1]) / 2).tolist(), shares.tolist()))
    caption = "How the scores of each level's held-out texts are spread."
    axes = dict(x_label="score", y_label="share of the level's texts")
    pictures.curves(workdir / "figures/scores.png", lines, caption=caption, **axes)
    if len(part.levels) > 2:
        shares_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
        kwargs = dict(caption="Of each true level, the share given each level.", rows="true level", columns="given")
        pictures.matrix(workdir / "figures/confusion.png", shares_CC, list(part.levels), **kwargs)


def mistakes(part: labels.Labelled, scores_N: np.ndarray, levels_N: np.ndarray, num: int) -> list[dict]:
    """The texts placed furthest from their level."""
    distance_N = np.where(levels_N != part.labels_N, np.abs(scores_N - part.labels_N), -1.0)
    order = [i for i in np.argsort(-distance_N, kind="stable")[:num] if distance_N[i] >= 0]
    return [
        {"level": part.levels[part.labels_N[i]], "score": float(scores_N[i]), "text": part.texts[i][:300]}
        for i in order
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


METRICS = {
    "heldout_auc": ("chance that an unsafe text is ranked above another; 0.5 is guessing", "higher"),
    "heldout_auc_low": ("lower end of its 95 % interval",),
    "heldout_auc_high": ("upper end of its 95 % interval",),
    "heldout_ece": ("how far the probabilities are off on average, after calibration", "lower"),
    "heldout_ece_uncalibrated": ("the same before calibration", "lower"),
    "accuracy": ("share of texts given their level", "higher"),
    "macro_f1": ("F1 of each level, averaged over the levels, rare ones too", "higher"),
    "most_frequent_level": ("accuracy of always naming the most frequent level, which the scorer should beat",),
    "recall_at_*": ("share of the texts at or above this level that are scored so", "higher"),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    words = f"The scorer gives {100 * summary['accuracy']:.1f} % of held-out texts their level (always naming the most "
    words += f"frequent one: {100 * summary['most_frequent_level']:.1f} %)"
    auc = summary.get("heldout_auc")
    if auc is None:
        return f"{words}."
    interval = f"{summary['heldout_auc_low']:.3f} to {summary['heldout_auc_high']:.3f}"
    return f"{words}, and ranks an unsafe text above another with chance {auc:.3f} ({interval})."
