"""What a run of concept_bias.py leaves behind: tables, pictures, findings and its summary."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance

from alignment import files
from alignment.concepts import bag, bias
from experiments.concepts import asking, cells, in_context, sets
from experiments.concepts.classifiers import FEATURED, IN_CONTEXT
from experiments.concepts.sets import BIASED, ORIGINAL, UP, Task
from experiments.report import charts, pictures

MARGIN = 8.0  # points by which `biased` should exceed `original`
# Bias@C of (original, biased) on CEBaB: published for a fine-tuned DistilBERT (arXiv:2311.08648), and of a bag of words
# like ours on the authors' file, which has four times as many training texts as the public ones.
CEBAB_LABELS = 5
DISTILBERT = {"food": (-0.71, 14.94), "service": (-0.34, 13.06), "ambiance": (-0.90, 7.02)}
BAG_OF_WORDS = {"food": (4.61, 19.22), "service": (-1.33, 11.12), "ambiance": (0.54, 9.81)}
AUDITED = 50  # counterfactuals on the sheet for a person
WORDS = 10  # of a concept, in the picture
METRICS = {
    "bias/*": ("Bias@C in points: above 0 the concept pushes predictions to larger labels, 0 is no shortcut", ""),
    "*/bias/*": ("the same for another classifier, in points", ""),
    "mean_abs_bias/*": ("mean of |Bias@C| over concepts, in points", "lower"),
    "*/mean_abs_bias/*": ("mean of |Bias@C| over concepts for another classifier, in points", "lower"),
    "acc_c/*": ("accuracy on texts with a concept, labels counting alike, in percent, mean over concepts", "higher"),
    "*/acc_c/*": ("the same for another classifier, in percent", "higher"),
    "acc_no_c/*": ("accuracy on texts without it, labels counting alike, in percent, mean over concepts", "higher"),
    "*/acc_no_c/*": ("the same for another classifier, in percent", "higher"),
    "cell_accuracy": ("share of test texts that the newest classifier gets right", "higher"),
}


def write(
    folder: pathlib.Path, c: ml_collections.ConfigDict, task: Task, rows: Sequence[dict[str, Any]], learners: Any
) -> dict[str, float | None]:
    """Tables, pictures and the summary."""
    lines = cells.results(list(rows), task, c)
    files.write_table(folder, "bias", [_line(line) for line in lines])
    files.write_rows(folder / "tables/labels.jsonl", label_counts(task))
    files.write_rows(folder / "tables/training_sets.jsonl", [_set_line(line) for line in lines])
    for name in dict.fromkeys(flag for line in lines for flag in _flags(line)):
        print(f"WARNING: {name}", flush=True)
    files.write_text(folder / "findings.txt", "\n".join(findings(list(rows), lines, task, c)) + "\n")
    _audit(folder / "audit.csv", task)
    _draw(folder / "figures", lines, task)
    model = next((name for name in reversed(FEATURED) if name in c.models), "")
    if model:
        _draw_words(folder / "figures/words.png", c, task, learners[model].once, model)
    return summary(lines, c)


def _points(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    measured: bias.Measured = line["measured"]
    low, high = measured.ends.get("bias", (None, None))
    out = {
        "model": line["model"],
        "concept": line["concept"],
        "method": line["method"],
        "bias": _points(measured.bias),
        "bias, 95 % from": _points(low),
        "bias, 95 % to": _points(high),
        "acc_c": _points(measured.acc_with),
        "acc_no_c": _points(measured.acc_without),
        "accuracy": _points(line["accuracy"]),
        "accuracy where the concept misleads": _points(line["misled"]),
    }
    gap_K = measured.accuracy_GK[1] - measured.accuracy_GK[0]
    out |= {f"gap of label {k}": None if np.isnan(gap) else _points(float(gap)) for k, gap in enumerate(gap_K)}
    return out | {"bias by seed": ", ".join(f"{b:.2f}" for b in line["by seed"]), "flags": len(measured.flags)}


def _set_line(line: Mapping[str, Any]) -> dict[str, Any]:
    out = {name: line[name] for name in ("model", "concept", "method", "texts", "with the concept", "seconds")}
    notes = ", ".join(f"{name}: {value}" for name, value in line["notes"].items())
    return out | {"notes": notes, "masked": " ".join(line["masked"])}


def _flags(line: Mapping[str, Any]) -> list[str]:
    return [f"{line['concept']}: {flag}" for flag in line["measured"].flags]


def label_counts(task: Task) -> list[dict[str, Any]]:
    """Texts of each side, concept and label."""
    out = []
    for side in ("train", "validation", "test"):
        rows = task.rows(getattr(task, side))
        for concept in task.concepts:
            for has in (True, False):
                labels = [row.label for row in rows if (concept in (row.concepts or ())) == has]
                counts = {f"label {k}": labels.count(k) for k in range(task.num_labels)}
                out.append({"side": side, "concept": concept, "mentioned": str(has)} | counts)
    return out


def findings(
    rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], task: Task, c: ml_collections.ConfigDict
) -> list[str]:
    """The paper's question answered for each classifier and concept, and what was short."""
    out = [
        answer
        for model in c.models
        for concept in task.concepts
        if (answer := _moved(rows, [line for line in lines if line["model"] == model], task, c, concept))
    ]
    out += published(task)
    for line in lines:
        notes, where = line["notes"], f"{line['concept']}, {line['method']}"
        if sum(notes.get("missing", ())) and line["model"] == c.models[0]:
            short, need = notes["missing"], sum(notes["needed"])
            out.append(f"{where}: {sum(short)} of {need} counterfactuals are lacking, by label {short}; all were added")
        if unread := notes.get(cells.UNPARSED):
            rate = f"{100 * unread / notes[cells.ASKED]:.1f} %"
            out.append(f"{where}: {unread} of {notes[cells.ASKED]} answers ({rate}) name no label and count as wrong")
    for concept, share in asking.kept_labels(task, bag.Options(**c.bag)).items():
        words = f"of the counterfactuals {100 * share:.0f} % have the label that a bag of words predicts"
        out.append(f"{concept}: {words}, trained on the other texts")
    return out + sorted({flag for line in lines for flag in _flags(line)})


def published(task: Task) -> list[str]:
    """What others measured for the concepts of CEBaB, which is known by its five labels and the concepts' names."""
    if task.num_labels != CEBAB_LABELS or not set(task.concepts) <= set(DISTILBERT):
        return []
    out = []
    for concept in task.concepts:
        (original, biased), (bag_original, bag_biased) = DISTILBERT[concept], BAG_OF_WORDS[concept]
        words = f"{concept}: on CEBaB DistilBERT is published with Bias@C {original:.2f} {ORIGINAL} and {biased:.2f} "
        out.append(f"{words}{BIASED}; a bag of words on the authors' file has {bag_original:.2f} and {bag_biased:.2f}")
    return out


def _moved(
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    task: Task,
    c: ml_collections.ConfigDict,
    concept: str,
) -> str:
    """By how much the biased set moves one classifier, and what upsampling leaves of it; "" without both sets."""
    of = {line["method"]: line["measured"] for line in lines if line["concept"] == concept}
    model = lines[0]["model"]
    base = in_context.BALANCED if model == IN_CONTEXT else ORIGINAL
    if not {base, BIASED} <= set(of):
        return ""
    gap = cells.difference(rows, task, c, model, concept, (BIASED, base))
    if gap.bias is None:
        return ""
    sign = -100 if concept in c.data.negative else 100
    low, high = sorted(sign * end for end in gap.ends.get("bias", (gap.bias, gap.bias)))
    words = f"{model}, {concept}: {BIASED} in place of {base} moves Bias@C by {sign * gap.bias:.1f} points towards the "
    words += f"kept labels ({low:.1f} to {high:.1f}); above {MARGIN:g}: {_yes(sign * gap.bias > MARGIN)}"
    if UP in of and of[UP].bias is not None:
        is_half = abs(of[UP].bias) <= abs(of[BIASED].bias) / 2
        words += f"; |{UP}| {100 * abs(of[UP].bias):.1f} is at most half of |{BIASED}|: {_yes(is_half)}"
    return words


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _audit(path: pathlib.Path, task: Task) -> None:
    """A sheet of counterfactuals for a person: is the concept there, is the label still right?"""
    rows = [(concept, row) for concept in task.concepts for row in task.pool(concept)]
    sources = {row.id: row.text for row in task.all_texts.rows}
    order = np.random.default_rng(0).permutation(len(rows))[:AUDITED]
    lines = [
        [row.id, concept, row.label, sources.get(row.source_id, ""), row.text, "", ""]
        for concept, row in (rows[i] for i in np.sort(order))
    ]
    files.write_csv(path, ["id", "concept", "label", "source", "text", "concept is there", "label is right"], lines)


def summary(lines: Sequence[Mapping[str, Any]], c: ml_collections.ConfigDict) -> dict[str, float | None]:
    """The numbers of the first classifier, and of the others behind their names."""
    out: dict[str, float | None] = {}
    for model in c.models:
        head = "" if model == c.models[0] else f"{model}/"
        methods = dict.fromkeys(line["method"] for line in lines if line["model"] == model)
        for method in methods:
            own = [line for line in lines if line["model"] == model and line["method"] == method]
            numbers = [line["measured"] for line in own]
            out |= {f"{head}bias/{method}/{line['concept']}": _points(line["measured"].bias) for line in own}
            out[f"{head}mean_abs_bias/{method}"] = _points(bias.mean_absolute([one.bias for one in numbers]))
            out[f"{head}acc_c/{method}"] = _mean([one.acc_with for one in numbers])
            out[f"{head}acc_no_c/{method}"] = _mean([one.acc_without for one in numbers])
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _points(float(np.mean(known))) if len(known) == len(values) else None


def _draw(folder: pathlib.Path, lines: Sequence[Mapping[str, Any]], task: Task) -> None:
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model and line["measured"].bias is not None]
        _draw_biases(folder / f"bias_{model}.png", own, model)
        gaps = {
            f"{line['concept']}, {line['method']}": list(
                enumerate((100 * (line["measured"].accuracy_GK[1] - line["measured"].accuracy_GK[0])).tolist())
            )
            for line in own
            if line["method"] in (ORIGINAL, BIASED, in_context.BALANCED)
        }
        pictures.curves(
            folder / f"gaps_{model}.png",
            gaps,
            caption=f"{model}: accuracy with the concept less that without it, by label. Bias@C is how it rises.",
            x_label="label",
            y_label="gap, points",
            chance=0.0,
        )
    shares: dict[str, list[tuple[float, float]]] = {}
    for concept in task.concepts:
        labels = [row.label for row in task.rows(task.train) if concept in (row.concepts or ())]
        shares[concept] = [(k, labels.count(k) / max(len(labels), 1)) for k in range(task.num_labels)]
    pictures.curves(
        folder / "labels.png",
        shares,
        caption="Labels of the training texts that mention a concept: even labels leave nothing to exploit.",
        x_label="label",
        y_label="share",
        chance=1 / task.num_labels,
    )


def _draw_biases(path: pathlib.Path, lines: Sequence[Mapping[str, Any]], model: str) -> None:
    """Bias@C by method and concept as points with their intervals."""
    concepts = list(dict.fromkeys(line["concept"] for line in lines))
    methods = list(dict.fromkeys(line["method"] for line in lines))
    if not lines:
        return
    figure, axes = pictures.canvas(min(1.0 + 0.75 * len(methods), 8.6), 3.6, y="Bias@C, points")
    for k, concept in enumerate(concepts):
        own = [line for line in lines if line["concept"] == concept]
        x = [methods.index(line["method"]) + 0.16 * (k - (len(concepts) - 1) / 2) for line in own]
        y = [100 * line["measured"].bias for line in own]
        ends = [line["measured"].ends.get("bias", (line["measured"].bias,) * 2) for line in own]
        width = pictures.reach(y, *([100 * end[side] for end in ends] for side in (0, 1)))
        colour = charts.PALETTE[k % len(charts.PALETTE)]
        axes.errorbar(x, y, yerr=width, fmt="o", markersize=4, capsize=2, color=colour, label=concept)
    axes.axhline(0.0, color="k", linewidth=0.8)
    axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.2)
    axes.legend(frameon=False, fontsize=8)
    words = "Bias@C by training set and concept, with 95 % intervals over test texts"
    pictures.save(figure, path, f"{model}: {words}. At 0 the concept is no shortcut.")


def _draw_words(path: pathlib.Path, c: ml_collections.ConfigDict, task: Task, learner: Any, model: str) -> None:
    """Distances between the words that go along with each concept, as the classifier sees them."""
    words: dict[str, str] = {}
    for concept in task.concepts:
        for word in sets.telling_words(c, task.rows(task.train), concept)[:WORDS]:
            words.setdefault(word.word, concept)
    if len(words) < 3:
        return
    fitted = learner.fit(sets.training_set(c, task, task.concepts[0], ORIGINAL, c.seed), seed=c.seed)
    order, distance_CC = clustered(fitted.vectors(list(words)))
    names = [f"{list(words.values())[i]}: {list(words)[i]}" for i in order]
    pictures.matrix(
        path,
        distance_CC,
        names,
        rows="word",
        columns="word",
        label="cosine distance",
        caption=f"{model}, trained on the texts as they are: distances between the words that go along with a concept, "
        "in the order of a clustering. A block along the diagonal is a group that the classifier treats alike.",
    )


def clustered(vectors_ND: np.ndarray) -> tuple[list[int], np.ndarray]:
    """An order in which neighbours are alike, and cosine distances in that order, [N,N]."""
    distances = scipy.spatial.distance.pdist(vectors_ND, "cosine")
    distances = np.nan_to_num(distances, nan=1.0)  # a vector of length 0 has no direction
    tree = scipy.cluster.hierarchy.linkage(distances, method="average", optimal_ordering=True)
    order = scipy.cluster.hierarchy.leaves_list(tree).tolist()
    return order, scipy.spatial.distance.squareform(distances)[np.ix_(order, order)]


def headline(summary: Mapping[str, float]) -> str:
    """The page's first sentence."""
    names = (ORIGINAL, BIASED, UP, sets.DOWN)
    parts = [f"{name} {summary[f'mean_abs_bias/{name}']:.1f}" for name in names if f"mean_abs_bias/{name}" in summary]
    if not parts:
        return ""
    best = f"acc_c/{ORIGINAL}"
    more = f"; accuracy on texts with a concept {summary[best]:.1f} % as they are" if best in summary else ""
    return f"Mean |Bias@C| over concepts, in points, by training set: {', '.join(parts)}{more}."
