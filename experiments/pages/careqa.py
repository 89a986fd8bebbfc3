"""What a run of careqa.py leaves behind: scores beside their baselines, curves of Relaxed Perplexity, agreement.

Dimensions: M models, C columns (a set's metric each), N offsets.
"""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.evaluation import consistency, correlation, multiple_choice, open_ended
from data.texts import exams
from experiments.report import charts, pictures

TOKENS = "token_perplexity"  # not `perplexity`, which of the harness's MEDIQA is another number
LOWER = (TOKENS, "word_perplexity", "byte_perplexity", "bits_per_byte", "relaxed_perplexity")
CLOSED = ("model", "set", "protocol", "value", "low", "high", "n", "right", "unread", "baseline", "baseline_option")
CLOSED += ("guessing", "without_repeated")
OPEN = ("model", "set", "metric", "value", "low", "high", "n", "empty", "reliable", "median", "infinite")
OPEN += ("left_out", "in_prompt", "continuations", "low_by_draws", "high_by_draws")
RP = "relaxed_perplexity"
Row = dict[str, Any]


def corpus_row(values: Sequence[float]) -> Row:
    """A text metric over a set: its mean as `value`, what is undefined, whether it is reliable."""
    whole = open_ended.corpus(values)
    return {"value": whole.pop("mean")} | whole


def agreement_row(model: str, name: str, protocol: str, drawn: Sequence[Sequence[int]]) -> Row:
    """Self-consistency of draws of an option."""
    return {"model": model, "set": name, "protocol": protocol} | consistency.summary(drawn)


def rephrased_row(
    model: str, name: str, protocol: str, chosen: Sequence[Sequence[int | None]], golds: Sequence[int]
) -> Row:
    """What other wordings of closed questions change."""
    whole = consistency.summary(chosen)
    accuracies = [
        float(np.mean([row[r] == gold for row, gold in zip(chosen, golds) if len(row) > r]))
        for r in range(max(map(len, chosen)))
    ]
    spread = {"agreement": whole["agreement"], "accuracy_low": min(accuracies), "accuracy_high": max(accuracies)}
    return {"model": model, "set": name, "metric": f"accuracy ({protocol})", "n": whole["n"]} | spread


def spread_row(model: str, name: str, metric: str, scores: Sequence[Sequence[float]]) -> Row:
    """How far a metric of open answers moves between wordings; an undefined score counts as 0."""
    moved = consistency.spread(np.nan_to_num(np.array(scores)))
    return {"model": model, "set": name, "metric": metric, "n": len(scores)} | {
        name: value if math.isfinite(value) else None for name, value in moved.items()
    }


def logged(rows: Sequence[Row]) -> dict[str, float]:
    """What a line of metrics.jsonl says of one model."""
    out = {}
    for row in rows:
        parts = [row["metric"], row["set"], row["protocol"]]
        if row["value"] is not None and math.isfinite(row["value"]):
            out["/".join(part for part in parts if part)] = float(row["value"])
    return out


def write(
    folder: pathlib.Path,
    scores: Sequence[Row],
    more: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    first: tuple[str, str],
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """All tables and pictures of a run; returns its summary.

    Args:
        more: `curves`, `resilience`, `consistency`, `groups`, `voted`, `items`.
        about: `sources` of the models, and what the findings mention.
        first: the first set and the protocol that it is scored under by default.
    """
    closed = [row for row in scores if row["metric"] == "accuracy"]
    files.write_rows(folder / "tables/accuracy.jsonl", [{k: row.get(k) for k in CLOSED} for row in closed])
    opened = [row for row in scores if row["metric"] != "accuracy"]
    files.write_rows(folder / "tables/open.jsonl", [{k: row.get(k) for k in OPEN} for row in opened])
    columns = ("model", "set", "metric", "protocol", "value", "low", "high", "n", "baseline")
    files.write_csv(folder / "scores.csv", columns, [[row.get(name) for name in columns] for row in scores])
    files.write_rows(folder / "tables/groups.jsonl", more["groups"])
    for name in ("resilience", "consistency", "voted"):
        files.write_table(folder, name, more[name])
    files.write_rows(
        folder / "tables/models.jsonl", [{"model": name, "source": spec} for name, spec in about["sources"].items()]
    )
    averages(folder, closed)
    within = [row for (model, name), values in more["items"].items() for row in item_rows(model, name, values)]
    if within:
        files.write_rows(folder / "tables/item_correlations.jsonl", within)
    draw_curves(folder, more["curves"])
    draw_scatter(folder, closed, opened, first)
    agreement = {f"{r['model']}, {r['set']}": r["agreement"] for r in more["resilience"] if r.get("agreement")}
    caption = "Share of pairs of wordings of a question under which the model chooses the same option."
    pictures.bars(folder / "figures/resilience.png", agreement, caption=caption, label="agreement")
    sentence = correlations(folder, scores, resamples=resamples, seed=seed)
    numbers = summary(scores, more, first)
    files.write_text(folder / "findings.txt", "\n".join(findings(closed, about, sentence)))
    return numbers


def averages(folder: pathlib.Path, closed: Sequence[Row]) -> None:
    """Means of the sets' accuracies by model and protocol, by size and plain: they may be ten points apart."""
    out = []
    for model, protocol in dict.fromkeys((row["model"], row["protocol"]) for row in closed):
        rows = [row for row in closed if (row["model"], row["protocol"]) == (model, protocol) and row["n"]]
        if len(rows) > 1:
            means = multiple_choice.averages([row["value"] for row in rows], [row["n"] for row in rows])
            out.append({"model": model, "protocol": protocol, "sets": len(rows)} | means)
    if out:
        files.write_rows(folder / "tables/averages.jsonl", out)


def item_rows(model: str, name: str, values: Mapping[str, Sequence[float]]) -> list[Row]:
    """Spearman's correlation over the questions of a set of each pair of metrics; more is better in both."""
    turned = {metric: np.array(of, float) * (-1 if metric.startswith(LOWER) else 1) for metric, of in values.items()}
    out = []
    for first, second in itertools.combinations(turned, 2):
        rho, p = correlation.coefficient(turned[first], turned[second], correlation.SPEARMAN)
        if np.isfinite(rho):
            num = int(np.sum(np.isfinite(turned[first]) & np.isfinite(turned[second])))
            row = {"model": model, "set": name, "first": first, "second": second, "questions": num}
            out.append(row | {"spearman": rho, "p": plain(p)})
    return out


def table_of(scores: Sequence[Row]) -> tuple[list[str], list[str], np.ndarray, list[bool]]:
    """Models, columns, their scores [M,C] (NaN where absent), and whether less is better in a column."""
    models = list(dict.fromkeys(row["model"] for row in scores))
    keys = list(dict.fromkeys((row["set"], row["metric"], row["protocol"]) for row in scores))
    values_MC = np.full((len(models), len(keys)), np.nan)
    for row in scores:
        if row["value"] is not None:
            column = keys.index((row["set"], row["metric"], row["protocol"]))
            values_MC[models.index(row["model"]), column] = row["value"]
    names = [" ".join(part for part in key if part) for key in keys]
    return models, names, values_MC, [metric.startswith(LOWER) for _, metric, _ in keys]


def correlations(folder: pathlib.Path, scores: Sequence[Row], *, resamples: int, seed: int) -> str:
    """Tables, clusters and the heat map; returns a sentence on what there is."""
    models, names, values_MC, is_lower = table_of(scores)
    if len(models) < correlation.LEAST:
        return (
            f"{len(models)} models are too few for a correlation of metrics, which needs {correlation.LEAST}; the "
            "tables of correlations are left out."
        )
    turned_MC = correlation.oriented(values_MC, is_lower)
    tables = {kind: correlation.table(turned_MC, kind) for kind in (correlation.PEARSON, correlation.SPEARMAN)}
    for kind, table in tables.items():
        parts = {"": table.coefficients, "_p": table.p_values, "_q": table.q_values}
        for ending, values_CC in parts.items():
            rows = [[name, *map(plain, row)] for name, row in zip(names, values_CC)]
            files.write_csv(folder / f"corr_{kind}{ending}.csv", ["", *names], rows)
    rho = tables[correlation.SPEARMAN]
    labels, order = correlation.clusters(rho.coefficients)
    files.write_json(
        folder / "clusters.json", {"clusters": dict(zip(names, labels)), "order": [names[i] for i in order]}
    )
    there = [i for i in order if np.isfinite(rho.coefficients[i, i])]
    if len(there) > 1:
        pictures.matrix(
            folder / "figures/correlations.png",
            rho.coefficients[np.ix_(there, there)],
            [names[i] for i in there],
            caption="Spearman's correlation over models, in the order of clusters; more is better in every column.",
            rows="",
            columns="",
            label="rho",
        )
    pairs = pair_rows(names, turned_MC, tables, resamples=resamples, seed=seed)
    files.write_rows(folder / "tables/correlations.jsonl", sorted(pairs, key=lambda pair: -abs(pair["spearman"]))[:60])
    return f"Over {len(models)} models the {len(names)} columns of scores form {max(labels) + 1} cluster(s)."


def pair_rows(
    names: Sequence[str],
    turned_MC: np.ndarray,
    tables: Mapping[str, correlation.Table],
    *,
    resamples: int,
    seed: int,
) -> list[Row]:
    """A row for each pair of columns that has a coefficient."""
    rho, pearson = tables[correlation.SPEARMAN], tables[correlation.PEARSON]
    out = []
    for i, j in zip(*np.triu_indices(len(names), 1)):
        if not np.isfinite(rho.coefficients[i, j]):
            continue
        x_M, y_M = turned_MC[:, i], turned_MC[:, j]
        interval = correlation.bootstrap(x_M, y_M, correlation.SPEARMAN, resamples=resamples, seed=seed)
        low, high = interval or (None, None)
        row = {"first": names[i], "second": names[j], "models": int(rho.num_models[i, j])}
        row |= {"spearman": float(rho.coefficients[i, j]), "low": low, "high": high, "q": plain(rho.q_values[i, j])}
        row |= {"pearson": plain(pearson.coefficients[i, j])}
        out.append(row | {"kendall": plain(correlation.coefficient(x_M, y_M, correlation.KENDALL)[0])})
    return out


def plain(value: float) -> float | None:
    """A number for a table, None where there is none."""
    return float(value) if np.isfinite(value) else None


def summary(scores: Sequence[Row], more: Mapping[str, Any], first: tuple[str, str]) -> dict[str, float]:
    """The run's numbers; what is undefined is absent."""
    out: dict[str, float | None] = {}
    for row in scores:
        model, value = row["model"], row["value"]
        if row["metric"] == "accuracy":
            out[f"accuracy/{model}/{row['set']}/{row['protocol']}"] = value
            if (row["set"], row["protocol"]) == first:
                out[f"accuracy/{model}"] = value
                out["baseline"] = row["baseline"]
        elif row["metric"] in (RP, TOKENS):
            name = RP if row["metric"] == RP else "perplexity"
            out.setdefault(f"{name}/{model}", value)
        else:
            out[f"open/{model}/{row['set']}/{row['metric']}"] = value
    for row in (row for row in more["consistency"] if "agreement" in row):
        out.setdefault(f"consistency/{row['model']}", row["agreement"])
    for row in more["resilience"]:
        if row.get("agreement") is not None:
            out.setdefault(f"rephrasing/{row['model']}", row["agreement"])
    models = list(dict.fromkeys(row["model"] for row in scores))
    both = [[out.get(f"{name}/{model}") for model in models] for name in ("accuracy", RP)]
    accuracy, rp = (np.array([math.nan if x is None else x for x in values]) for values in both)
    out["spearman/accuracy_vs_rp"] = plain(correlation.coefficient(accuracy, -rp, correlation.SPEARMAN)[0])
    return {name: float(value) for name, value in out.items() if value is not None and math.isfinite(value)}


def findings(closed: Sequence[Row], about: Mapping[str, Any], sentence: str) -> list[str]:
    """Sentences under the headline."""
    out = [sentence]
    for name, protocol in dict.fromkeys((row["set"], row["protocol"]) for row in closed):
        rows = [row for row in closed if (row["set"], row["protocol"]) == (name, protocol)]
        above = [row["model"] for row in rows if row["low"] > max(row["baseline"], row["guessing"])]
        words = f"{len(above)} of {len(rows)} models are above it with their whole interval"
        option = "ABCDEFGHIJ"[rows[0]["baseline_option"]] if rows[0]["baseline_option"] < 10 else "one class"
        floor = f"{name} ({protocol}): naming option {option} always is right in {100 * rows[0]['baseline']:.1f} %"
        out.append(f"{floor}; {words}.")
    if about["without_encoder"]:
        out.append("BERTScore and MoverScore are left out, as encoder names no folder; make models fetches one.")
    if about["without_bleurt"]:
        out.append("BLEURT is not run, as bleurt names no folder of its weights.")
    if about["without_radgraph"]:
        out.append("F1-RadGraph is left out, as radgraph names no file of annotations, which its own model makes.")
    if not open_ended.is_installed():
        out.append(f"BLEU and ROUGE are left out, as their libraries are not installed: {open_ended.PIP}.")
    out += [f"{path} is left out: {exams.ACCESS}." for path in about["absent"]]
    out.append("The formula of Relaxed Perplexity is a reconstruction of the paper's.")
    if about["temperature"] != 1:
        out.append(f"Its continuations were drawn at temperature {about['temperature']:g}: these are not its numbers.")
    return out


def draw_curves(folder: pathlib.Path, curves: Mapping[tuple[str, str], Any]) -> None:
    """RP_n against n, the geometric mean over items that are finite there."""
    lines: dict[str, list[tuple[float, float]]] = {}
    several = len({name for _, name in curves}) > 1
    for (model, name), some in curves.items():
        logs_IN = np.array([-curve.log_p_N / curve.length for curve in some])
        points = []
        for n, logs_I in zip(some[0].offsets, logs_IN.T):
            finite_I = logs_I[np.isfinite(logs_I)]
            if len(finite_I) and finite_I.mean() < 700:
                points.append((float(n), float(np.exp(finite_I.mean()))))
        if points:
            lines[f"{model}, {name}" if several else model] = points
    caption = "Relaxed Perplexity of the reference behind n tokens of the model's own; at 0 it is the ordinary one."
    axes = dict(x_label="n, tokens written first", y_label="RP_n, geometric mean over items")
    pictures.curves(folder / "figures/relaxed_perplexity.png", lines, caption=caption, **axes)


def draw_scatter(folder: pathlib.Path, closed: Sequence[Row], opened: Sequence[Row], first: tuple[str, str]) -> None:
    """Closed accuracy against Relaxed Perplexity, a point a model."""
    accuracy = {row["model"]: row for row in closed if (row["set"], row["protocol"]) == first}
    rp: dict[str, float] = {}
    for row in opened:
        if row["metric"] == RP and row["value"] is not None:
            rp.setdefault(row["model"], row["value"])
    names = [name for name in accuracy if name in rp]
    if not names:
        return
    figure, axes = pictures.canvas(
        4.6, 3.6, x="Relaxed Perplexity of open answers", y=f"accuracy on {first[0]} ({first[1]})"
    )
    for k, name in enumerate(names):
        row = accuracy[name]
        width = pictures.reach([row["value"]], [row["low"]], [row["high"]])
        colour = charts.PALETTE[k % len(charts.PALETTE)]
        axes.errorbar([rp[name]], [row["value"]], yerr=width, fmt="o", color=colour, capsize=2, label=name)
    axes.axhline(accuracy[names[0]]["baseline"], color="k", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    caption = "Accuracy with 95 % Wilson intervals against Relaxed Perplexity; the dashed line always names one letter."
    pictures.save(figure, folder / "figures/closed_and_open.png", caption)


ASKED = ("data.path", "data.limit", "data.style", "protocols", "chat", "max_new_tokens")
METRICS = {
    "accuracy/*": ("share of closed questions that are answered right, by model, set and protocol", "higher", ASKED),
    "baseline": ("accuracy on the first set of naming the option that is right most often", "", ASKED),
    "relaxed_perplexity/*": ("Relaxed Perplexity of the references, geometric mean over questions", "lower", ASKED),
    "relaxed_perplexity_tau_prefix/*": ("the same behind continuations of another temperature", "lower", ASKED),
    **{
        f"{name}/*": ("perplexity per token of the references behind their questions, geometric mean", "lower", ASKED)
        for name in ("perplexity", TOKENS)
    },
    "spearman/accuracy_vs_rp": ("rank correlation over models of accuracy and (low) Relaxed Perplexity", "higher"),
    "consistency/*": ("share of pairs of draws for one closed question that are equal", "higher", ASKED),
    "rephrasing/*": ("share of pairs of wordings of one closed question with equal choices", "higher", ASKED),
    "open/*": ("a metric of written answers to open questions, or a perplexity of their references", "", ASKED),
    **{f"{name}/*": ("overlap of written answers with the references, mean", "higher") for name in open_ended.NGRAM},
    "judge/*": ("a judge's grade of written answers, 1 to 5, mean", "higher"),
    "bertscore/*": ("BERTScore F1 of written answers, mean", "higher"),
    "radgraph_*/*": ("F1-RadGraph of written answers that are annotated, mean", "higher"),
    "bleurt/*": ("BLEURT of written answers, mean", "higher"),
    "moverscore/*": ("MoverScore of written answers, mean", "higher"),
    **{
        f"{name}_{kind}/*": (f"of the references, {words}", "lower")
        for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")
        for kind, words in (("conditional", "behind their questions"), ("unconditional", "without any question"))
    },
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    accuracy = {
        name.partition("/")[2]: v for name, v in numbers.items() if name.count("/") == 1 and name.startswith("acc")
    }
    if not accuracy:
        return "No closed question was asked under the first protocol."
    best = max(accuracy, key=lambda name: accuracy[name])
    words = f"{best} answers {100 * accuracy[best]:.1f} % of the first exam's questions right"
    words += f", and naming one option always {100 * numbers['baseline']:.1f} %"
    if f"{RP}/{best}" in numbers:
        words += f"; its Relaxed Perplexity on open answers is {numbers[f'{RP}/{best}']:.4g}"
    if "spearman/accuracy_vs_rp" in numbers:
        words += f". Over {len(accuracy)} models both agree with Spearman's {numbers['spearman/accuracy_vs_rp']:.2f}"
    return f"{words}."
