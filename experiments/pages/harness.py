"""What a run of harness.py leaves behind: its numbers, tables of tasks and of questions, pictures, and a sentence.

`results` is what `lm_eval.simple_evaluate` returns, with samples.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files, intervals
from experiments.report import charts, pictures

Results = Mapping[str, Any]


def numbers(results: Results) -> dict[str, float]:
    """`task/metric` (and `/filter`, where the task has one) with their standard errors, for summary and curves."""
    out = {}
    for task, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and isinstance(value, (int, float, np.number)) and math.isfinite(value):
                out[_name(task, metric, kind)] = float(value)
    return out


def _name(task: str, metric: str, kind: str) -> str:
    return f"{task}/{metric}" + (f"/{kind.replace(' ', '_')}" if kind != "none" else "")


def write(folder: pathlib.Path, all_results: Sequence[Results], *, num_cut: int, num_shown: int) -> dict[str, float]:
    """All tables, pictures and words of a run; returns its summary.

    Args:
        num_cut: texts that lost their first words.
        num_shown: questions of each task in the report.
    """
    tasks, questions, summary = [], [], {}
    for results in all_results:
        tasks += task_rows(results)
        for task, samples in results["samples"].items():
            if not hides_texts(results, task):
                questions += [question_row(task, sample) for sample in _first_filter(samples)[:num_shown]]
        summary |= numbers(results)
    files.write_rows(folder / "tables/tasks.jsonl", tasks)
    files.write_rows(folder / "tables/questions.jsonl", questions)
    about = [{key: value for key, value in results.items() if key != "samples"} for results in all_results]
    files.write_text(folder / "results.json", json.dumps(plain(about), indent=2))
    draw_shares(folder / "figures/tasks.png", tasks)
    draw_confidence(folder / "figures/confidence.png", all_results)
    files.write_text(folder / "findings.txt", "\n".join(finding(row) for row in tasks if "of" in row) + "\n")
    summary["questions"] = sum(
        len(_first_filter(samples)) for results in all_results for samples in results["samples"].values()
    )
    summary["truncated"] = num_cut
    return summary


def hides_texts(results: Results, task: str) -> bool:
    """Whether a task's metadata say that its prompts stay off the page, as those of safety sets do."""
    return bool((results.get("configs", {}).get(task, {}).get("metadata") or {}).get("hides_texts"))


def sample_rows(results: Results, task: str) -> list[Any]:
    """The lines of samples/<task>.jsonl; without prompts where the task hides its texts."""
    samples = results["samples"][task]
    if hides_texts(results, task):
        samples = [{**sample, "doc": {"id": sample["doc"].get("id")}, "arguments": []} for sample in samples]
    return plain(samples)


def task_rows(results: Results) -> list[dict[str, Any]]:
    """A row for each task, metric and filter: value, error, and for shares of questions Wilson's 95 % interval."""
    rows = []
    for task, samples in results["samples"].items():
        for key, value in results["results"][task].items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float, np.number)):
                continue
            row = {"task": task, "metric": metric, "value": float(value)}
            if kind != "none":
                row["filter"] = kind
            error = results["results"][task].get(f"{metric}_stderr,{kind}")
            if isinstance(error, (int, float, np.number)) and math.isfinite(error):
                row["stderr"] = float(error)
            mine = [sample for sample in samples if sample["filter"] == kind]
            hits = [sample[metric] for sample in mine if metric in sample]
            if hits and all(hit in (0, 1) for hit in hits):
                low, high = intervals.wilson(int(sum(hits)), len(hits))
                row |= {"low": low, "high": high, "right": int(sum(hits)), "of": len(hits)}
            if metric.startswith("acc") and (sizes := [len(p) for s in mine if (p := _choices(s)) is not None]):
                row["guessing"] = float(np.mean([1 / size for size in sizes]))
            rows.append(row)
    return rows


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Each question once: the harness lists it again for every filter."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _choices(sample: Mapping[str, Any]) -> np.ndarray | None:
    """The probability of each choice among those offered; None where the model wrote."""
    answers = sample["filtered_resps"]
    if len(answers) < 2 or not all(isinstance(a, (tuple, list)) and len(a) == 2 for a in answers):
        return None
    totals = np.array([float(total) for total, _ in answers])
    weights = np.exp(totals - totals.max())  # long answers are hundreds of nats below 0, where exp is 0 for all of them
    return weights / weights.sum()


def question_row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One question as the report shows it."""
    arguments = sample["arguments"]
    row: dict[str, Any] = {"task": task, "question": str(arguments[0][0])[-300:]}
    share = _choices(sample)
    if share is None:
        answer = sample["resps"][0]
        row |= {"target": str(sample["target"])[:200], "answer": str(answer[0] if answer else "")[:300]}
        return row
    texts = [str(choice[1]).strip()[:100] for choice in arguments[: len(share)]]
    target = sample["target"]
    chosen = int(np.argmax(share))
    row["target"] = texts[target] if isinstance(target, int) and target < len(texts) else str(target)[:100]
    return row | {"answer": texts[chosen], "probability": round(float(share[chosen]), 3)}


def finding(row: Mapping[str, Any]) -> str:
    """A row of tasks in words."""
    words = f"{row['task']}, {row['metric']}: {row['right']} of {row['of']} ({100 * row['value']:.1f} %, 95 % interval "
    words += f"{100 * row['low']:.1f} to {100 * row['high']:.1f})"
    if "guessing" in row:
        is_above = row["low"] > row["guessing"]
        verdict = "above" if is_above else "below" if row["high"] < row["guessing"] else "not to be told from"
        words += f", {verdict} guessing, which gives {100 * row['guessing']:.1f} %"
    return f"{words}."


def draw_shares(path: pathlib.Path, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Shares of right answers with their intervals, and a mark where guessing stands."""
    rows = [row for row in tasks if "of" in row]
    if not rows:
        return
    figure, axes = pictures.canvas(5.6, 0.4 * len(rows) + 1.0, x="share of questions")
    for y, row in enumerate(rows):
        width = pictures.reach([row["value"]], [row["low"]], [row["high"]])
        axes.errorbar(row["value"], y, xerr=width, fmt="o", color=charts.PALETTE[0], capsize=3)
        if "guessing" in row:
            axes.plot(row["guessing"], y, marker="|", markersize=14, color="k")
    pictures.name_rows(axes, [f"{row['task']}, {row['metric']}" for row in rows])
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", alpha=0.2)
    pictures.save(figure, path, "Right answers with 95 % intervals; a bar stands where guessing would.")


def draw_confidence(path: pathlib.Path, all_results: Sequence[Results]) -> None:
    """Among the questions with choices: how often the model is right, by the probability of what it chose."""
    lines = {}
    for results in all_results:
        for task, samples in results["samples"].items():
            shares_and_hits = [(_choices(sample), sample.get("acc")) for sample in _first_filter(samples)]
            points = [(float(p.max()), hit) for p, hit in shares_and_hits if p is not None and hit is not None]
            if len(points) < 2:
                continue
            points.sort(reverse=True)
            shares = np.cumsum([hit for _, hit in points]) / np.arange(1, len(points) + 1)
            lines[task] = list(zip((np.arange(1, len(points) + 1) / len(points)).tolist(), shares.tolist()))
    caption = "Questions in the order of the model's confidence: the share that is right among the surest so many."
    axes = dict(x_label="share of questions, the surest first", y_label="share of them that is right")
    pictures.curves(path, lines, caption=caption, **axes)


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def headline(summary: Mapping[str, float]) -> str:
    """The page's first sentence: the shares of right answers in the first tasks."""
    shares = [name for name in summary if name.split("/")[1:2] in (["acc"], ["exact_match"])]
    if not shares:
        return f"{summary.get('questions', 0):,.0f} questions were asked."
    parts = [f"{100 * summary[name]:.1f} % in {name.split('/')[0]}" for name in shares[:3]]
    more = f", and {len(shares) - 3} more tasks were asked" if len(shares) > 3 else ""
    return f"Of the questions, {', '.join(parts)} are answered right{more}."
