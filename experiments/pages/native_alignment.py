"""What a run of native_alignment.py leaves behind: tables, pictures, and in words which arm won and by how much.

`measured` is {(arm, seed): {state: what Probes.measure gives}}; states are base, base_benign, post and post_benign.

Dimensions: S seeds, P probes, K paraphrases.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment import files, intervals
from alignment.evaluation import stability
from experiments.report import charts, markup, pictures

VOLUMES = {"raw": 0, "aligned_25": 25, "aligned_50": 50, "aligned": 100}  # per cent of the documents aligned
STATES = {"base": "pretrained", "post": "after post-alignment"}
Interval = tuple[float, float, float]
Measured = Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]


class Results:
    """The measurements by arm and state, as arrays over seeds, with their intervals."""

    def __init__(
        self,
        measured: Measured,
        resamples: int,
        groups: Sequence[str] | None = None,
    ):
        """`groups` of the harmlessness probes, see `intervals.two_way`."""
        self.arms = list(dict.fromkeys(arm for arm, _ in measured))
        self.measured, self.resamples, self.groups = measured, resamples, groups

    def states(self, arm: str) -> list[str]:
        return list(next(by_state for (name, _), by_state in self.measured.items() if name == arm))

    def values(self, arm: str, state: str, what: str) -> np.ndarray:
        """[S, P], or [S, P, K] for paraphrases."""
        return np.asarray(self.of_seeds(arm, state, what), np.float64)

    def of_seeds(self, arm: str, state: str, what: str) -> list[Any]:
        """What was measured of each seed; none where it was not."""
        return [
            by_state[state][what]
            for (name, _), by_state in self.measured.items()
            if name == arm
            if what in by_state[state]
        ]

    def interval(self, values_SP: np.ndarray, what: str) -> Interval:
        groups = None if what == "right" else self.groups
        return intervals.two_way(values_SP, resamples=self.resamples, groups=groups)

    def of(self, arm: str, state: str, what: str) -> Interval:
        values = self.values(arm, state, what)
        return self.interval(values.mean(axis=2) if values.ndim == 3 else values, what)

    def gain(self, arm: str, other: str, state: str = "base", what: str = "harmless") -> Interval:
        """Arm minus other, seeds and probes paired."""
        return self.interval(self.values(arm, state, what) - self.values(other, state, what), what)

    def bits(self, arm: str, state: str) -> dict[str, float]:
        """By language, the mean over seeds."""
        of_seeds = self.of_seeds(arm, state, "bits_per_byte")
        return {language: float(np.mean([bits[language] for bits in of_seeds])) for language in of_seeds[0]}


def write(
    workdir: pathlib.Path,
    measured: Measured,
    probes: Mapping[str, Sequence[Mapping[str, Any]]],
    judged: Sequence[Mapping[str, Any]] = (),
    *,
    resamples: int,
    num_written: int,
) -> dict[str, float]:
    """All tables, pictures and words of a run; returns its summary.

    Args:
        probes: rows of "harmlessness" and "helpfulness".
        judged: rows of `compared.rows`.
        resamples: of the bootstrap.
        num_written: harmlessness prompts that the models answered in their own words.
    """
    # Probes made from one text are drawn together in the bootstrap: they are right or wrong together.
    groups = [row.get("group") or row["id"] for row in probes["harmlessness"]]
    results = Results(measured, resamples, groups)
    hidden_P = np.array([row.get("origin") == "hidden" for row in probes["helpfulness"]])
    rows = [row_of(results, arm, state, hidden_P) for state in STATES for arm in results.arms]
    rows = [row for row in rows if row]
    prompts = [row["prompt"] for row in probes["harmlessness"][:num_written]]
    files.write_rows(workdir / "tables/arms.jsonl", [{k: finite(v) for k, v in row.items()} for row in rows])
    files.write_rows(workdir / "tables/written.jsonl", written(measured, prompts))
    files.write_rows(workdir / "metrics.jsonl", curves(workdir / "members", list(measured)))
    draw(workdir / "figures", results)
    if judged:
        files.write_rows(workdir / "tables/judged.jsonl", judged)
    questions_asked = exam_rows(results)
    if questions_asked:
        files.write_rows(workdir / "tables/exams.jsonl", questions_asked)
    lines = [*findings(results, rows), *judged_lines(judged), *exam_lines(questions_asked)]
    files.write_text(workdir / "findings.txt", "".join(f"{line}\n" for line in lines))
    return summary(results, rows) | ratios(judged) | accuracies(questions_asked)


def exam_rows(results: Results) -> list[dict[str, Any]]:
    """A row of each arm, state and exam: accuracy over seeds and questions beside naming one option always."""
    out = []
    for state in STATES:
        for arm in (arm for arm in results.arms if state in results.states(arm)):
            of_seeds = results.of_seeds(arm, state, "exams")
            for name in of_seeds[0] if of_seeds else ():
                right_SN = np.array([exams[name]["right"] for exams in of_seeds], float)
                mean, low, high = results.interval(right_SN, "right")
                first = of_seeds[0][name]
                row = {"arm": arm, "state": STATES[state], "exam": name, "protocol": first["protocol"]}
                row |= {"questions": right_SN.shape[1], "seeds": len(right_SN), "accuracy": mean, "low": low}
                out.append(row | {"high": high, "baseline": first["baseline"], "cut prompts": first["cut"]})
    return out


def exam_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence an exam."""
    out = []
    for name in dict.fromkeys(row["exam"] for row in rows):
        own = [row for row in rows if row["exam"] == name and row["state"] == STATES["base"]]
        words = ", ".join(f"{row['arm']} {row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in own)
        always = f"naming one option always: {own[0]['baseline']:.3f}"
        out.append(f"Of {own[0]['questions']} questions of {name} ({own[0]['protocol']}; {always}): {words}.")
    return out


def accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The summary's numbers of exams."""
    return {
        f"accuracy/{row['arm']}/{row['exam']}"
        if row["state"] == STATES["base"]
        else f"post_alignment/{row['arm']}/accuracy/{row['exam']}": row["accuracy"]
        for row in rows
    }


def row_of(results: Results, arm: str, state: str, hidden_P: np.ndarray) -> dict[str, Any]:
    """A row of the table: rates with their intervals, and the three measures of stability."""
    if state not in results.states(arm):
        return {}
    row: dict[str, Any] = {"arm": arm, "state": STATES[state], "seeds": len(results.values(arm, state, "harmless"))}
    for what, name in (("harmless", "harmlessness"), ("right", "helpfulness")):
        mean, low, high = results.of(arm, state, what)
        row |= {name: mean, f"{name} low": low, f"{name} high": high}
    right_SP = results.values(arm, state, "right")
    if hidden_P.any() and not hidden_P.all():
        row |= {"facts": float(right_SP[:, ~hidden_P].mean()), "hidden facts": float(right_SP[:, hidden_P].mean())}
    if results.values(arm, state, "harmful_written").size:
        row["harmful written"] = float(results.values(arm, state, "harmful_written").mean())
    row |= {f"bits per byte {language}": bits for language, bits in results.bits(arm, state).items()}
    harmless_SP, paraphrased_SPK = (results.values(arm, state, what) for what in ("harmless", "paraphrased"))
    row["seed sd"] = stability.seed_sd(harmless_SP.mean(axis=1))
    drops = [stability.paraphrase_drop(one, others) for one, others in zip(harmless_SP, paraphrased_SPK)]
    row["paraphrase drop"] = float(np.mean(drops))
    if f"{state}_benign" in results.states(arm):
        after = float(results.values(arm, f"{state}_benign", "harmless").mean())
        row |= {"after benign tuning": after, "retention": stability.retention(row["harmlessness"], after)}
    return row


def summary(results: Results, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat names to numbers; without the not-a-numbers (the spread of one seed, the retention of nothing)."""
    numbers = {}
    for row in rows:
        arm, is_base = row["arm"], row["state"] == STATES["base"]
        names = {"harmlessness": "harmlessness", "helpfulness": "helpfulness", "harmful written": "harmful_written"}
        names |= {"retention": "retention", "paraphrase drop": "paraphrase_drop", "seed sd": "seed_sd"}
        for column, name in names.items():
            if column in row:
                key = f"stability/{arm}/{name}" if name == "seed_sd" else f"{name}/{arm}"
                numbers[key if is_base else f"post_alignment/{arm}/{name}"] = row[column]
        bits = results.bits(arm, "base" if is_base else "post")
        key = "bits_per_byte/{}" if is_base else "post_alignment/{}/bits_per_byte"
        numbers[key.format(arm)] = float(np.mean(list(bits.values())))
        if is_base:
            numbers |= {f"bits_per_byte/{arm}/{language}": value for language, value in bits.items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def written(measured: Measured, prompts: Sequence[str]) -> list[dict[str, str]]:
    """Four of the answers that each arm writes itself, of its first seed; `prompts` are all that it answered."""
    sample = prompts[:: max(1, len(prompts) // 4)][:4]
    first_seed = min(seed for _, seed in measured)
    answers = {arm: by_state["base"]["written"] for (arm, seed), by_state in measured.items() if seed == first_seed}
    return [{"prompt": prompt} | {arm: some[i] for arm, some in answers.items()} for i, prompt in enumerate(sample)]


def curves(folder: pathlib.Path, members: Sequence[tuple[str, int]]) -> list[dict[str, float]]:
    """The loss of pretraining by arm, mean over seeds, each on its own text; `loss` is the mean over arms."""
    by_step: dict[int, dict[str, list[float]]] = {}
    for arm, seed in members:
        for row in markup.rows(folder / f"{arm}-{seed}/pretrain/metrics.jsonl"):
            if "loss" in row:
                by_step.setdefault(row["step"], {}).setdefault(arm, []).append(row["loss"])
    rows = []
    for number, by_arm in sorted(by_step.items()):
        means = {f"{arm}/loss": float(np.mean(losses)) for arm, losses in by_arm.items()}
        rows.append({"step": number, "loss": float(np.mean(list(means.values())))} | means)
    return rows or [{"step": 0}]


# Words


def findings(results: Results, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    base = {row["arm"]: row for row in rows if row["state"] == STATES["base"]}
    post = {row["arm"]: row for row in rows if row["state"] == STATES["post"]}
    num_seeds = next(iter(base.values()))["seeds"]
    lines = [
        f"Harmless answers preferred (share of probes, {num_seeds} seeds, 95 % intervals over seeds and probes): "
        + ", ".join(f"{arm} {rate(row, 'harmlessness')}" for arm, row in base.items())
        + "."
    ]
    if len(base) > 1:
        lines += comparison(results, base)
    name = "Facts known (one of four by log-probability): "
    lines.append(name + ", ".join(f"{arm} {rate(row, 'helpfulness')}" for arm, row in base.items()) + ".")
    if all("hidden facts" in row for row in base.values()):
        words = ", ".join(f"{arm} {row['hidden facts']:.2f}" for arm, row in base.items())
        lines.append(f"Facts that only stand beside something unsafe or unfair: {words} (chance is 0.25).")
    if all("harmful written" in row for row in base.values()):
        words = ", ".join(f"{arm} {row['harmful written']:.2f}" for arm, row in base.items())
        lines.append(f"Answers written at temperature with a harmful mark: {words}.")
    lines += stability_lines(base, "Pretrained")
    if post:
        words = ", ".join(f"{arm} {rate(row, 'harmlessness')}" for arm, row in post.items())
        lines.append(f"After post-alignment (supervised tuning and DPO) of each: {words}.")
        lines += stability_lines(post, "After post-alignment")
    return lines


def ratios(judged: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat names to the ratios of the two states that have a row in the table of arms."""
    out = {}
    for row in judged:
        if row["state"] in STATES and row["ratio"] is not None:
            name = f"{row['measured']}_ratio"
            is_base = row["state"] == "base"
            out[f"{name}/{row['arm']}" if is_base else f"post_alignment/{row['arm']}/{name}"] = row["ratio"]
    return out


def judged_lines(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ratios in words, with the judge's name and what it could not read."""
    lines = []
    for what in dict.fromkeys(row["measured"] for row in judged):
        mine = [row for row in judged if row["measured"] == what and row["state"] == "base"]
        read = [row for row in mine if row["ratio"] is not None]
        words = ", ".join(f"{row['arm']} {row['ratio']:.0f} ({row['low']:.0f} to {row['high']:.0f})" for row in read)
        if not words:
            continue
        unread = sum(row["invalid"] for row in mine)
        more = f" {unread} pairs could not be read." if unread else ""
        about = f"{what.capitalize()} of what the arms write, in per cent of {mine[0]['reference']}"
        lines.append(f"{about}, judged by {mine[0]['judge']} (95 % intervals over prompts): {words}.{more}")
    return lines


def comparison(results: Results, base: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who wins, by how much over raw, and whether growing volume helps."""
    order = sorted(base, key=lambda arm: (-base[arm]["harmlessness"], -base[arm]["helpfulness"]))
    best, second = order[:2]
    lead = results.gain(best, second)
    words = f"{best} is the most harmless arm, {spread(lead)} above {second}"
    if lead[1] <= 0:
        words += ", no clear lead" if lead[0] else ", a tie in which it knows more facts"
    lines = [words + (f"; {spread(results.gain(best, 'raw'))} above raw." if "raw" in base and best != "raw" else ".")]
    if "raw" in base:
        others = [f"{arm} {spread(results.gain(arm, 'raw', what='right'))}" for arm in base if arm != "raw"]
        lines.append("Facts known beyond raw: " + ", ".join(others) + ".")
    volumes = [arm for arm in VOLUMES if arm in base]
    if len(volumes) > 2:
        steps = ", ".join(f"{VOLUMES[arm]} % {base[arm]['harmlessness']:.2f}" for arm in volumes)
        lines.append(f"With growing alignment volume: {steps}.")
    return lines


def stability_lines(rows: Mapping[str, Mapping[str, Any]], when: str) -> list[str]:
    words = []
    for arm, row in rows.items():
        retained = f", {100 * row['retention']:.0f} % kept" if math.isfinite(row.get("retention", math.nan)) else ""
        sd = f"sd over seeds {row['seed sd']:.3f}, " if math.isfinite(row["seed sd"]) else ""
        tuned = f", after benign tuning {row['after benign tuning']:.2f}" if "after benign tuning" in row else ""
        words.append(f"{arm} {sd}paraphrases cost {row['paraphrase drop']:.2f}{tuned}{retained}")
    return [f"{when}, stability of harmlessness: {'; '.join(words)}."]


def rate(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.2f} ({row[f'{name} low']:.2f} to {row[f'{name} high']:.2f})"


def spread(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


# Pictures


def draw(folder: pathlib.Path, results: Results) -> None:
    caption = (
        "Each arm's share of probes where the harmless answer is the likelier one, and of facts known, pretrained and "
        "after post-alignment; bars are 95 % intervals over seeds and probes. Right is better."
    )
    panels = {"harmless answer preferred": "harmless", "facts known (chance 0.25)": "right"}
    compare(folder / "1_arms.png", results, panels, caption)
    volumes = [arm for arm in VOLUMES if arm in results.arms]
    if len(volumes) > 2:
        caption = "Harmlessness and facts known as a larger share of the documents is aligned before pretraining."
        lines = {
            name: [(VOLUMES[arm], results.of(arm, "base", what)) for arm in volumes] for name, what in panels.items()
        }
        by_volume(folder / "2_volume.png", lines, caption)
    caption = (
        "Harmlessness as asked in training's words, in five other ways, and after benign tuning: pretrained (filled) "
        "and after post-alignment (hollow)."
    )
    kinds = {"as in training": ("", "harmless"), "paraphrased": ("", "paraphrased")}
    under_change(folder / "3_stability.png", results, kinds | {"after benign tuning": ("_benign", "harmless")}, caption)


def compare(path: pathlib.Path, results: Results, panels: Mapping[str, str], caption: str) -> None:
    figure = Figure(figsize=(8.4, 0.42 * len(results.arms) + 1.2), dpi=100, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, what) in zip(grid, panels.items()):
        for k, state in enumerate(STATES):
            arms = [(place, arm) for place, arm in enumerate(results.arms) if state in results.states(arm)]
            points = [(place + 0.16 * (2 * k - 1), results.of(arm, state, what)) for place, arm in arms]
            bars(axes, points, charts.PALETTE[k], STATES[state], is_flat=True)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(-0.03, 1.03)
    grid[0].set_yticks(range(len(results.arms)), results.arms, fontsize=8)
    grid[0].invert_yaxis()
    grid[-1].legend(frameon=False, fontsize=8, loc="lower left")
    pictures.save(figure, path, caption)


def by_volume(path: pathlib.Path, lines: Mapping[str, Sequence[tuple[float, Interval]]], caption: str) -> None:
    figure, axes = pictures.canvas(4.8, 3.2, x="per cent of the documents aligned")
    for k, (name, points) in enumerate(lines.items()):
        axes.plot([x for x, _ in points], [mean for _, (mean, _, _) in points], color=charts.PALETTE[k])
        bars(axes, points, charts.PALETTE[k], name)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, path, caption)


def under_change(path: pathlib.Path, results: Results, kinds: Mapping[str, tuple[str, str]], caption: str) -> None:
    figure, axes = pictures.canvas(max(4.8, 1.05 * len(results.arms) + 1), 3.2, y="harmless answer preferred")
    for k, (name, (ending, what)) in enumerate(kinds.items()):
        for shift, state in ((0.0, "base"), (0.12, "post")):
            arms = [(i, arm) for i, arm in enumerate(results.arms) if state + ending in results.states(arm)]
            points = [(i + 0.26 * (k - 1) + shift, results.of(arm, state + ending, what)) for i, arm in arms]
            bars(axes, points, charts.PALETTE[k], name if state == "base" else "", is_hollow=state == "post")
    axes.set_xticks(range(len(results.arms)), results.arms, fontsize=8)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, path, caption)


def bars(
    axes: Axes,
    points: Sequence[tuple[float, Interval]],
    colour: str,
    label: str,
    *,
    is_flat: bool = False,
    is_hollow: bool = False,
) -> None:
    """Means with their intervals as points with bars; `is_flat` lays them on their side."""
    if not points:
        return
    places, intervals = zip(*points)
    mean_N, low_N, high_N = np.array(intervals).T
    error_2N = np.maximum(np.stack([mean_N - low_N, high_N - mean_N]), 0.0)
    ends = dict(fmt="o", color=colour, markersize=4.5, capsize=2, linewidth=1.2, label=label or None)
    ends |= {"markerfacecolor": "white"} if is_hollow else {}
    if is_flat:
        axes.errorbar(mean_N, places, xerr=error_2N, **ends)
    else:
        axes.errorbar(places, mean_N, yerr=error_2N, **ends)
    axes.grid(axis="x" if is_flat else "y", alpha=0.2)
