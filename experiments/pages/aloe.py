"""What a run of aloe.py leaves behind: the accuracy of every step and what it gained, safety, and what it cost.

A gain is the difference of two models' (or schemes') answers to the same questions, with a bootstrap over questions;
questions of one group, such as those that ask for the same fact, are drawn together.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment import files, intervals
from alignment.safety import rates
from experiments.medicine import schemes
from experiments.medicine.red_team import Safety
from experiments.medicine.stages import BASE, Stage
from experiments.report import charts, pictures

Row = Mapping[str, Any]
GAIN, LOSS, UNCLEAR = "a gain", "a loss", "no difference shown"
NUM_SAMPLES = 6


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run has found.

    Attributes:
        stages: every model, in the order in which they were made.
        merged, final: names of the merge that the run went on with, and of the last model.
        answers: by model, asked without examples: `Asker.ask`'s.
        prompted: by scheme, of the last model.
        subjects, groups: of each question by its id.
        safety: of the merged and of the last model; None where nothing was asked.
        biased: measures of bias of the same two models, by their names.
        said: what a reader should know of the examples.
    """

    stages: Sequence[Stage]
    merged: str
    final: str
    answers: Mapping[str, Mapping[str, Any]]
    prompted: Mapping[str, Mapping[str, Any]]
    subjects: Mapping[str, str]
    groups: Mapping[str, str]
    safety: Mapping[str, Safety | None]
    biased: Mapping[str, Mapping[str, float]]
    ties: str
    said: Sequence[str]

    def of_kind(self, kind: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind == kind]

    @property
    def best_tuned(self) -> str:
        """The fine-tune that answers most questions, as somebody without merging would take it."""
        return max((stage.name for stage in self.of_kind("sft")), key=lambda name: accuracy(self.answers[name]["rows"]))

    def steps(self) -> list[tuple[str, str, Mapping[str, Any], str, Mapping[str, Any] | None]]:
        """(key, words, answers, what it is compared with, its answers) for each step of the recipe."""
        base, tuned, merged = self.answers[BASE], self.answers[self.best_tuned], self.answers[self.merged]
        out: list[tuple[str, str, Mapping[str, Any], str, Mapping[str, Any] | None]] = [
            ("base", "base", base, "", None),
            ("sft", f"tuned ({self.best_tuned}, the better one)", tuned, "base", base),
            ("merged", f"merged ({self.merged})", merged, "tuned", tuned),
        ]
        before, words = merged, "merged"
        aligned = self.of_kind("dpo")
        for stage in aligned:
            key = "dpo" if stage is aligned[-1] else stage.name
            own = self.answers[stage.name]
            out.append((key, f"aligned ({stage.name})", own, words, before))
            before, words = own, f"aligned ({stage.name})"
        last = self.answers[self.final]
        out += [(name, name, own, "the same without examples", last) for name, own in self.prompted.items()]
        return out


def accuracy(rows: Sequence[Row], subject: str = "", subjects: Mapping[str, str] | None = None) -> float:
    """Share of the questions answered right, of one subject where one is named."""
    own = [row["result"] for row in rows if not subject or (subjects or {})[row["id"]] == subject]
    return sum(own) / max(len(own), 1)


def step_lines(report: Report) -> list[dict[str, Any]]:
    """A line for each step: its accuracy with Wilson's interval, and its gain over the one before."""
    out = []
    for key, words, own, over, before in report.steps():
        numbers = own["summary"]
        line: dict[str, Any] = {"step": words, "key": key, "n": numbers["count"], "accuracy": numbers["accuracy"]}
        line |= {"low": numbers["low"], "high": numbers["high"]}
        line |= {"compared with": over} | (gain(report.groups, before["rows"], own["rows"]) if before else {})
        out.append(line | {"unparsed": numbers["unparsed"], "draws": numbers["draws"], "seconds": own["seconds"]})
    return out


def gain(groups: Mapping[str, str], before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    """The difference of two accuracies over the same questions, with its interval and exact McNemar."""
    old, new = ([float(row["result"]) for row in rows] for rows in (before, after))
    change, low, high = rates.cluster_bootstrap([groups[row["id"]] for row in after], old, new)
    p = rates.mcnemar_of([(a == 1, b == 1) for a, b in zip(old, new)])
    verdict = GAIN if low > 0 else LOSS if high < 0 else UNCLEAR
    return {"gain": change, "gain_low": low, "gain_high": high, "mcnemar_p": p, "it is": verdict}


def model_lines(report: Report) -> list[dict[str, Any]]:
    """A line for each model: its accuracy in all and on every subject, and what training it cost."""
    names = list(dict.fromkeys(report.subjects.values()))
    out = []
    for stage in report.stages:
        rows = report.answers[stage.name]["rows"]
        line: dict[str, Any] = {"model": stage.name, "kind": stage.kind, "accuracy": accuracy(rows)}
        line |= {f"on {name}": accuracy(rows, name, report.subjects) for name in names}
        out.append(line | {"updates": stage.numbers.get("steps"), "training_seconds": stage.numbers.get("seconds")})
    return out


def scheme_lines(report: Report) -> list[dict[str, Any]]:
    """A line for each scheme of the last model: votes, draws, letters and tokens."""
    keys = ("count", "accuracy", "low", "high", "draws", "draws_correct", "draws_incorrect", "unparsed", "unanswered")
    keys += ("ties", "retries", "distinct_answers", "similarity", "examples_dropped", "reply_tokens", "prompt_tokens")
    every = {schemes.ZERO_SHOT: report.answers[report.final], **report.prompted}
    return [
        {"scheme": name, **{key: own["summary"][key] for key in keys}, "seconds": own["seconds"]}
        for name, own in every.items()
    ]


def retention(report: Report) -> dict[str, float]:
    """How much of each fine-tune's accuracy the merged model has, on its own subject where it has one."""
    known = set(report.subjects.values())
    out = {}
    for stage in report.of_kind("sft"):
        subject = stage.name if stage.name in known else ""
        own, merged = (
            accuracy(report.answers[name]["rows"], subject, report.subjects) for name in (stage.name, report.merged)
        )
        out[f"accuracy/expert/{stage.name}"] = own
        if own:  # of nothing, nothing can be kept
            out[f"kept/{stage.name}"] = merged / own
    return out


def safety_lines(report: Report) -> list[dict[str, Any]]:
    """Attack success in all and by style, and refusals of harmless prompts, before alignment and after it."""
    before, after = report.safety.get(report.merged), report.safety.get(report.final)
    if before is None or after is None:
        return []
    out = [_rates("attacks that succeed", "", before.attacks, after.attacks)]
    pairs = [(a, b) for a, b in zip(before.succeeded, after.succeeded) if None not in (a, b)]
    out[0]["mcnemar_p"] = rates.mcnemar_of(pairs)
    for style, rate in before.by_style.items():
        out.append(_rates("attacks that succeed, by style", style, rate, after.by_style[style]))
    out.append(_rates("harmless prompts refused", "", before.harmless, after.harmless))
    return out


def _rates(of: str, name: str, before: rates.Rate, after: rates.Rate) -> dict[str, Any]:
    return {"of": of, "name": name, **rates.columns({"before": before, "after": after})}


def logged(report: Report) -> Iterator[dict[str, float]]:
    """The numbers of each step for metrics.jsonl."""
    for key, _, own, _, _ in report.steps():
        yield {f"accuracy/{key}": own["summary"]["accuracy"]}


def write(folder: pathlib.Path, report: Report) -> dict[str, float | None]:
    """All tables, pictures and files of a run; returns its summary."""
    steps = step_lines(report)
    lines = [{name: value for name, value in line.items() if name != "key"} for line in steps]
    files.write_rows(folder / "tables/steps.jsonl", lines)
    files.write_rows(folder / "tables/models.jsonl", model_lines(report))
    files.write_rows(folder / "tables/schemes.jsonl", scheme_lines(report))
    safety = safety_lines(report)
    if safety:
        files.write_rows(folder / "tables/safety.jsonl", safety)
    before, after = (report.biased.get(name, {}) for name in (report.merged, report.final))
    if after:
        lines = [{"measure": name, "before": before.get(name), "after": after[name]} for name in after]
        files.write_rows(folder / "tables/bias.jsonl", lines)
    every = {**report.answers, **{f"{report.final}, {name}": own for name, own in report.prompted.items()}}
    files.write_json(folder / "generations.json", {name: own["rows"] for name, own in every.items()})
    files.write_json(folder / "evaluation.json", {name: own["summary"] for name, own in every.items()})
    wrong = {name: [row for row in own["rows"] if not row["result"]] for name, own in every.items()}
    files.write_json(folder / "incorrect.json", wrong)
    files.write_rows(folder / "tables/samples.jsonl", samples(report))
    draw(folder / "figures", report, steps)
    numbers = summary(report, steps, safety)
    files.write_text(folder / "findings.txt", "\n".join(findings(report, steps)))
    return numbers


def summary(report: Report, steps: Sequence[Row], safety: Sequence[Row]) -> dict[str, float | None]:
    """Accuracies and gains by step, what the merge kept, attack success, and counts."""
    out: dict[str, float | None] = {f"accuracy/{line['key']}": line["accuracy"] for line in steps}
    for line in steps:
        if "gain" in line:
            out |= {f"{name}/{line['key']}": line[name] for name in ("gain", "gain_low", "gain_high")}
    out |= retention(report)
    for line in safety:
        name = {"attacks that succeed": "asr", "harmless prompts refused": "refusal"}.get(line["of"])
        if name and not line["name"]:
            out |= {f"{name}/before": line["before"], f"{name}/after": line["after"]}
    for point, model in (("before", report.merged), ("after", report.final)):
        out |= {f"bias/{point}/{name}": value for name, value in report.biased.get(model, {}).items()}
    out["n/questions"] = float(steps[0]["n"])
    spent = [stage.numbers.get("seconds") for stage in report.stages]
    out["training_seconds"] = sum(seconds for seconds in spent if seconds)
    return {name: value for name, value in out.items() if value is not None}  # a rate of no valid answer has no value


def findings(report: Report, steps: Sequence[Row]) -> list[str]:
    """What a reader should know beside the numbers, a sentence each."""
    out = list(report.said)
    for line in steps:
        if "gain" in line and line["it is"] != GAIN:
            points = tuple(100 * line[name] for name in ("gain", "gain_low", "gain_high"))
            out.append(
                f"{line['step']} against {line['compared with']}: {points[0]:+.1f} points ({points[1]:+.1f} to "
                f"{points[2]:+.1f}), {line['it is']}."
            )
    none = [f"{line['unparsed']} of {line['draws']} of {line['step']}" for line in steps if line["unparsed"]]
    out += [f"Answers that name no option, which count as wrong: {', '.join(none)}."] if none else []
    num_options = Counter(row["original_answer"] for row in report.answers[BASE]["rows"])
    most = max(num_options.values()) / sum(num_options.values())
    out.append(f"Who names {num_options.most_common(1)[0][0]} always is right in {100 * most:.1f} %.")
    return out


def samples(report: Report) -> list[dict[str, Any]]:
    """A few questions by their ids, with what the last model's draws answered under the last scheme."""
    rows = list(report.prompted.values())[-1]["rows"] if report.prompted else report.answers[report.final]["rows"]
    return [
        {
            "question": row["id"],
            "right": row["original_answer"],
            "vote": row["answer"] or "none",
            "draws": ", ".join(one["answer"] or "none" for one in row["generations"]),
            "orders": ", ".join(one["order"] for one in row["generations"]),
            "first reply": row["generations"][0]["response"],
        }
        for row in rows[:: max(1, len(rows) // NUM_SAMPLES)][:NUM_SAMPLES]
    ]


def draw(folder: pathlib.Path, report: Report, steps: Sequence[Row]) -> None:
    """The steps, the merges, accuracy by the number of votes, and which letters are displayed and chosen."""
    bars(folder / "steps.png", steps, "step", "Accuracy of each step, with 95 % Wilson intervals.")
    merged = []
    for stage in report.of_kind("merged"):
        numbers = report.answers[stage.name]["summary"]
        merged.append({"method": stage.name, **{key: numbers[key] for key in ("accuracy", "low", "high")}})
    bars(folder / "merges.png", merged, "method", "Accuracy of the merged models, asked without examples.")
    curves = {
        name: schemes.by_votes(own["rows"], report.ties)
        for name, own in report.prompted.items()
        if len(own["rows"][0]["generations"]) > 1
    }
    if curves:
        caption = "Accuracy of the vote of the first replies."
        pictures.curves(folder / "votes.png", curves, caption=caption, x_label="replies", y_label="accuracy")
    last = list(report.prompted.values())[-1] if report.prompted else report.answers[report.final]
    letters = last["summary"]["shown_letters"]
    if letters:
        caption = "How often each displayed letter was chosen under the last scheme; a model without bias is level."
        pictures.bars(folder / "letters.png", letters, caption=caption, label="replies")


def bars(path: pathlib.Path, lines: Sequence[Row], name: str, caption: str) -> None:
    """Accuracies as bars with their intervals."""
    figure, axes = pictures.canvas(6.4, 0.38 * len(lines) + 0.9, x="% of the questions answered right")
    shares = [100 * line["accuracy"] for line in lines]
    low, high = ([100 * line[end] for line in lines] for end in ("low", "high"))
    axes.barh(range(len(lines)), shares, height=0.7, color=charts.PALETTE[0])
    pictures.add_intervals(axes, shares, range(len(lines)), low, high)
    pictures.name_rows(axes, [line[name] for line in lines])
    axes.set_xlim(0, 100)
    pictures.save(figure, path, caption)


METRICS = {
    "accuracy/base": ("share of the test questions that the base answers right without examples", "higher"),
    "accuracy/sft": ("the same of the fine-tune that answers most of them", "higher"),
    "accuracy/merged": ("the same of the merged model that the run went on with", "higher"),
    "accuracy/dpo": ("the same of the last aligned model", "higher"),
    "accuracy/dpo_*": ("the same behind an earlier stage of alignment", "higher"),
    "accuracy/expert/*": ("share of its own subject's questions (or of all) that a fine-tune answers", "higher"),
    "accuracy/few_shot": ("share that the last model answers right behind the same solved questions", "higher"),
    "accuracy/sc_cot": ("the same by the vote of several chains of thought", "higher"),
    "accuracy/medprompt": ("the same by Medprompt: nearest examples, shuffled options, votes", "higher"),
    "gain/*": ("this accuracy less that of the step before; of a scheme, less that without examples", "higher"),
    "gain_low/*": ("lower end of its 95 % interval, by a bootstrap over the questions", "higher"),
    "gain_high/*": ("upper end of that interval", "higher"),
    "kept/*": ("accuracy of the merged model on a fine-tune's subject, over the fine-tune's own", "higher"),
    "asr/*": ("share of valid answers to attacks that the judge calls unsafe, before and after alignment", "lower"),
    "refusal/*": ("share of valid answers to harmless prompts that refuse, by their words", "lower"),
    "bias/*": ("a measure of bias or truthfulness, before and after alignment; docs/medical.md says which", ""),
    "n/*": ("questions asked", ""),
    "megabytes": ("size of the merged files written so far", ""),
    "seconds": ("spent on merging, or on answering over all starts, without reading weights and compiling", "lower"),
    "tokens_per_second": ("tokens written in a second of answering", "higher"),
    "answer_tokens": ("tokens of an answer, mean over those written so far", ""),
    "training_seconds": ("spent on updates, over all stages", "lower"),
}  # fmt: skip


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence: accuracy by step, and what alignment did to attacks."""
    names = {"base": "the base", "sft": "the better fine-tune", "merged": "their merge", "dpo": "aligned"}
    names |= {"few_shot": "with examples", "sc_cot": "by votes", "medprompt": "with Medprompt"}
    parts = [
        f"{words} {100 * numbers[f'accuracy/{key}']:.0f} %"
        for key, words in names.items()
        if f"accuracy/{key}" in numbers
    ]
    n = int(numbers["n/questions"])
    low, high = intervals.wilson(round(numbers["accuracy/base"] * n), n)
    out = f"Of {n:,} questions right: {', '.join(parts)} (the base's interval: {100 * low:.0f} to {100 * high:.0f} %)"
    if numbers.get("asr/before") is not None and numbers.get("asr/after") is not None:
        out += f"; attacks that succeed: {100 * numbers['asr/before']:.0f} %, then {100 * numbers['asr/after']:.0f} %"
    return f"{out}."
