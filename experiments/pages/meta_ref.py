"""What a run of meta_ref.py leaves behind: methods beside each other, places, partitionings, maps and curves."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from alignment import files
from alignment.fairness import measures, methods
from experiments.fairness.testing import Report, Tested
from experiments.report import charts, maps, pictures

SHOWN = ("performance", "lf", "alf", "worst")
ALL = (*SHOWN, "lf_mean", "std", "range", "worst_place")
MOST_TILES = 20  # on a map
PLACES = ("method", "seed", "task", "loc", "n", "west", "south", "east", "north", "m_before", "m_after", "omega")


def write(folder: pathlib.Path, report: Report) -> dict[str, float | None]:
    """All tables and pictures of a run; returns its summary."""
    numbers = summary(report)
    if jax.process_index() != 0:
        return numbers
    files.write_rows(folder / "tables/methods.jsonl", method_lines(report))
    files.write_rows(folder / "tables/gains.jsonl", gain_lines(report))
    files.write_rows(folder / "tables/partitionings.jsonl", partitioning_lines(report))
    files.write_csv(folder / "places.csv", PLACES, place_lines(report))
    files.write_rows(folder / "metrics.jsonl", step_lines(report))
    draw_maps(folder / "figures/maps.png", report)
    draw_factors(folder / "figures/factors.png", report)
    draw_spread(folder / "figures/places.png", report)
    files.write_text(folder / "findings.txt", "".join(f"{line}\n" for line in findings(report)))
    return numbers


def values_of(tested: Sequence[Tested], name: str) -> np.ndarray:
    """A number of each seed."""
    if name == "loss_lf":
        return np.array([one.last.loss_lf for one in tested])
    return np.array([getattr(one.last.evenness, name) for one in tested])


def summary(report: Report) -> dict[str, float | None]:
    """Means over seeds by method, and what Meta-Ref gains over MAML."""
    out: dict[str, float | None] = {"chance": report.by_chance}
    for method, tested in report.tested.items():
        out |= {f"{name}/{method}": float(values_of(tested, name).mean()) for name in (*ALL, "loss_lf")}
        rates = [one.steps_per_second for one in tested if one.steps_per_second is not None]
        if rates:
            out[f"steps_per_second/{method}"] = float(np.mean(rates))
    for name, (mean, low, high) in report.gains.get("meta_ref", {}).items():
        out |= {f"{name}_gain": mean, f"{name}_gain/low": low, f"{name}_gain/high": high}
    out["collapsed"] = float(sum(bool(why) for why in report.collapses.values()))
    return out


def method_lines(report: Report) -> list[dict[str, Any]]:
    """A line a method: means over seeds, with the lowest and the highest."""
    lines = []
    for method, tested in report.tested.items():
        line: dict[str, Any] = {"method": method, "what": methods.WORDS[method]}
        for name in (*ALL, "loss_lf"):
            values = values_of(tested, name)
            line[name] = f"{values.mean():.4f}"
            if len(values) > 1:
                line[name] += f" ({values.min():.4f} to {values.max():.4f})"
        line["kept at step"] = ", ".join(f"{one.kept_step:.0f}" for one in tested)
        lines.append(line)
    return lines


def gain_lines(report: Report) -> list[dict[str, Any]]:
    """A line a method: what it gains over MAML on the same tasks, 95 % over seeds and tasks."""
    lines = []
    for method, gains in report.gains.items():
        line: dict[str, Any] = {"method": method}
        for name, (mean, low, high) in gains.items():
            what = "LF lower by" if name == "lf" else "quality higher by"
            line[what] = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(line)
    return lines


def partitioning_lines(report: Report) -> list[dict[str, Any]]:
    """A line a partitioning of the test tiles: LF and worst place by method, and their sum over partitionings."""
    first = next(iter(report.partitionings.values()))
    lines: list[dict[str, Any]] = []
    for i, row in enumerate(first):
        line: dict[str, Any] = {name: row[name] for name in ("rows", "columns", "tasks", "places", "samples left out")}
        for method, rows in report.partitionings.items():
            line |= {f"lf/{method}": rows[i].get("lf"), f"worst/{method}": rows[i].get("worst")}
        lines.append(line)
    if lines:
        total: dict[str, Any] = {"rows": "sum", "columns": ""}
        for method, rows in report.partitionings.items():
            total[f"lf/{method}"] = sum(row.get("lf", 0.0) for row in rows)
        lines.append(total)
    return lines


def place_lines(report: Report) -> list[list[Any]]:
    """A line for each method, seed and place; a quality that is not defined is left empty."""
    lines = []
    for method, tested in report.tested.items():
        for one in tested:
            before, after, omega_P = one.steps[0].m_P, one.last.m_P, one.outcome.factor_KP[-1]
            for p, (task, number) in enumerate(zip(one.outcome.task_P.tolist(), one.outcome.number_P.tolist())):
                line = [method, one.seed, report.names_T[task], number, int(one.last.count_P[p])]
                line += [float(side) for side in report.box_P4[p]]
                qualities = ["" if np.isnan(m_P[p]) else float(m_P[p]) for m_P in (before, after)]
                lines.append([*line, *qualities, float(omega_P[p])])
    return lines


def step_lines(report: Report) -> list[dict[str, float]]:
    """Means over seeds after each fine-tuning step."""
    num = len(next(iter(report.tested.values()))[0].steps)
    lines = []
    for at in range(num):
        line: dict[str, float] = {"step": at}
        for name in SHOWN:
            for method, tested in report.tested.items():
                line[f"{name}/{method}"] = float(np.mean([getattr(one.steps[at].evenness, name) for one in tested]))
        lines.append(line)
    return lines


def findings(report: Report) -> list[str]:
    """What a reader must know of these numbers."""
    lines = [f"Quality is {measures.WORDS[report.measure]}; a constant prediction has {report.by_chance:.4f}."]
    lines += [f"{name} is the {words}." for name, words in measures.DEFINITIONS.items()]
    lines.append(
        "lf_mean takes the mean of a task's places as E_m; std, range and worst are over the places of a task, then "
        "means over tasks; worst_place is the lowest of all places; loss_lf is LF of the loss."
    )
    lines.append("The referee is a reconstruction: the paper's equations and tables could not be read.")
    lines += [honest(method, gains) for method, gains in report.gains.items()]
    lines += [f"{method} has collapsed: {why}." for method, why in report.collapses.items() if why]
    means = {name: values_of(tested, "performance").mean() for name, tested in report.tested.items()}
    poor = [name for name, mean in means.items() if mean < report.by_chance]
    if poor:
        lines.append(f"Worse than a constant prediction on these tasks: {', '.join(poor)}. Their evenness says little.")
    return lines + list(report.notes)


def honest(method: str, gains: Mapping[str, tuple[float, float, float]]) -> str:
    """Whether a method is fairer than MAML on these tasks, and at what price."""
    (mean, low, high), (cost, cost_low, cost_high) = gains["lf"], gains["performance"]
    words = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
    price = f"quality changes by {cost:+.4f} ({cost_low:+.4f} to {cost_high:+.4f})"
    if low > 0:
        return f"{method} lowers LF below MAML's by {words}, more than seeds and tasks vary; {price}."
    if high < 0:
        return f"{method} is less even than MAML: LF is lower by {words}; {price}."
    return f"{method}: LF is lower than MAML's by {words}, which is within what seeds and tasks vary; {price}."


# Pictures


def draw_maps(path: pathlib.Path, report: Report) -> None:
    """Quality by place of MAML and of the referee, and the referee's factors, on the first test tiles of seed one."""
    methods = [name for name in ("maml", "meta_ref") if name in report.tested] or list(report.tested)[:2]
    first = report.tested[methods[0]][0].outcome
    tiles = np.arange(min(MOST_TILES, len(report.box_T4)))
    is_in_P = np.isin(first.task_P, tiles)
    box_P4, frame_T4 = report.box_P4[is_in_P], report.box_T4[tiles]
    of_method = {name: report.tested[name][0].last.m_P[is_in_P] for name in methods}
    qualities_M = np.concatenate([m_P[np.isfinite(m_P)] for m_P in of_method.values()])
    limits = (float(qualities_M.min()), float(qualities_M.max())) if len(qualities_M) else (0.0, 1.0)
    panels = [maps.Panel(f"quality, {name}", box_P4, m_P, frame_T4, limits=limits) for name, m_P in of_method.items()]
    if "meta_ref" in report.tested:
        omega_P = report.tested["meta_ref"][0].outcome.factor_KP[-1][is_in_P]
        panels.append(maps.Panel("factor of the learning rate", box_P4, omega_P, frame_T4, centre=1.0))
    many = f"; the first {len(tiles)} of {len(report.box_T4)}" if len(tiles) < len(report.box_T4) else ""
    caption = f"Places of the test tiles after fine-tuning, first seed{many}. Tiles are outlined."
    maps.draw(path, panels, is_degrees=report.is_degrees, caption=caption)


def draw_factors(path: pathlib.Path, report: Report) -> None:
    """The referee's last factors over how far a place lies from its task's quality, before fine-tuning."""
    if "meta_ref" not in report.tested:
        return
    one = report.tested["meta_ref"][0]
    off_P = one.steps[0].m_P - one.steps[0].reference_T[one.outcome.task_P]
    figure, axes = pictures.canvas(
        4.8, 3.2, x="quality of the place less that of its task, before fine-tuning", y="factor at the last step"
    )
    axes.scatter(off_P, one.outcome.factor_KP[-1], s=4, alpha=0.4, color=charts.PALETTE[0])
    axes.axhline(1, color="k", linewidth=0.6, linestyle=":")
    axes.axvline(0, color="k", linewidth=0.6, linestyle=":")
    pictures.save(
        figure, path, "What the referee does: a factor above 1 teaches a place faster. First seed, test tasks."
    )


def draw_spread(path: pathlib.Path, report: Report) -> None:
    """Quality of places by method."""
    groups = {
        name: {"before": np.concatenate([one.steps[0].m_P for one in tested])}
        | {"after": np.concatenate([one.last.m_P for one in tested])}
        for name, tested in report.tested.items()
    }
    caption = "Quality of all test places, before and after fine-tuning; boxes hold half of them, whiskers 90 %."
    pictures.boxes(path, groups, caption=caption, label=measures.WORDS[report.measure].partition(",")[0])


OF_VALUES = {
    "performance": ("quality on new tasks: accuracy, or minus the error in deviations of the target", "higher"),
    "lf": ("mean distance of a place's quality from that of its task", "lower"),
    "alf": ("mean distance of a place's quality from that of all samples", "lower"),
    "worst": ("quality at a task's worst place, mean over tasks", "higher"),
    "lf_mean": ("LF about the mean of a task's places", "lower"),
    "std": ("deviation of quality over a task's places", "lower"),
    "range": ("best less worst quality of a task's places", "lower"),
    "worst_place": ("quality of the worst place of all tasks", "higher"),
    "loss_lf": ("LF of the loss", "lower"),
}
METRICS = {f"{name}/*": meaning for name, meaning in OF_VALUES.items()} | dict(OF_VALUES)
METRICS |= {
    "chance": ("quality of a constant prediction on the test tasks", ""),
    "collapsed": ("methods with a referee that make all places equally bad", "lower"),
    "lf_gain": ("how much lower the referee's LF is than MAML's, same tasks", "higher"),
    "lf_gain/*": ("an end of its 95 % interval over seeds and tasks", "higher"),
    "performance_gain": ("how much higher the referee's quality is than MAML's", "higher"),
    "performance_gain/*": ("an end of its 95 % interval over seeds and tasks", "higher"),
    "unevenness": ("mean distance of a place's loss from its task's mean loss, after the inner steps", "lower"),
    "referee_grad_norm": ("length of the referee's gradient", ""),
    "factor_std": ("deviation of the factors over places; 0: every place learns alike", ""),
    "raw_factor": ("mean factor before it is scaled to mean 1", ""),
    "grad_norm": ("length of the predictor's gradient", ""),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    if "lf_gain" not in numbers:
        words = ", ".join(f"{name[3:]} {value:.4f}" for name, value in numbers.items() if name.startswith("lf/"))
        return f"Mean distance of a place's quality from its task's, on new tasks: {words}."
    verdict = "is within" if numbers["lf_gain/low"] <= 0 <= numbers["lf_gain/high"] else "is more than"
    return (
        f"On areas never seen, the referee's LF is {numbers['lf/meta_ref']:.4f} and MAML's {numbers['lf/maml']:.4f}; "
        f"the difference of {numbers['lf_gain']:.4f} ({numbers['lf_gain/low']:.4f} to {numbers['lf_gain/high']:.4f}) "
        f"{verdict} what seeds and tasks vary. Quality {numbers['performance/maml']:.4f}, then "
        f"{numbers['performance/meta_ref']:.4f}; the worst place of a task {numbers['worst/maml']:.4f}, then "
        f"{numbers['worst/meta_ref']:.4f}."
    )
