"""What a run of saflex.py leaves behind: the arms' table, kept shares, a gallery, and the run's summary.

Dimensions: S seeds, N test rows, K classes, B augmented rows that are looked at.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from alignment import files, intervals
from experiments.augmentation import arms
from experiments.augmentation.tasks import PAIRS, PICTURES, POOL
from experiments.report import charts, pictures

CONTROLS = ("train_val", "train_val_upstream", "agreement")  # other ways to use the validation rows
MOST_DRAWS = 8_000_000  # resamples times test rows, 64 MB an array
PER_ROW = 6  # pictures of a line of the gallery


@dataclasses.dataclass(frozen=True)
class Study:
    """A task with the results of its arms."""

    compared: arms.Comparison
    results: Mapping[str, arms.Result]

    @property
    def name(self) -> str:
        return self.compared.task.name

    def right(self, arm: str) -> np.ndarray:
        """Whether each test row is predicted right, [S,N]."""
        return self.results[arm].predicted_SN == self.compared.task.test.y


def write(
    folder: pathlib.Path, studies: Sequence[Study], *, gallery: int, strengths: Sequence[float]
) -> dict[str, float]:
    """All tables and figures of a run; returns its summary, the first study's numbers without its name in front."""
    lines = [line for study in studies for line in lines_of(study)]
    files.write_table(folder, "arms", lines)
    draw_arms(folder / "figures/arms.png", lines)
    summary: dict[str, float] = {}
    curves = {}
    for number, study in enumerate(studies):
        prefix = f"{study.name}/" if number else ""
        summary |= {prefix + name: value for name, value in summary_of(study).items()}
        if study.compared.task.kind != PAIRS and strengths:
            curves[study.name] = kept_by_strength(study, strengths)
        if gallery:
            looked = look(study, gallery)
            write_gallery(folder, study, looked)
    pictures.curves(
        folder / "figures/kept.png",
        curves,
        x_label="strength of the augmentation",
        y_label="share kept",
        caption="Share of augmented rows that SAFLEX keeps under the trained network, by how strong the policy is; "
        "toys and generated pictures: of noise or RandAugment on their training rows.",
    )
    files.write_text(folder / "findings.txt", "".join(f"{line}\n" for line in findings(studies)))
    return summary


# Tables -------------------------------------------------------------------------------------------------------------


def lines_of(study: Study) -> list[dict[str, Any]]:
    """A line for each arm: accuracy over seeds with its interval, macro-F1, the worst group, kept shares, time."""
    task = study.compared.task
    upstream = task.upstream if task.upstream != POOL else "its own augmented rows"
    out = []
    for name, result in study.results.items():
        by_seed_S = study.right(name).mean(axis=1)
        low, high = interval(study, study.right(name))
        line = {"data": study.name, "upstream": upstream, "arm": name, "what": arms.ARMS[name].text}
        line |= {"accuracy": float(by_seed_S.mean()), "low": low, "high": high, "sd": deviation(by_seed_S)}
        line |= {"macro_f1": float(np.mean(macro_f1(result.predicted_SN, task.test.y)))}
        line |= {"worst_group": worst_group(study, name)[0], "group": worst_group(study, name)[1]}
        line |= {key: result.means.get(key) for key in ("kept/clean", "kept/wrong", "saflex/kept")}
        line |= {"seeds": task.num_seeds, "seconds_a_step": seconds_a_step(result)}
        out.append(line)
    return out


def interval(study: Study, values_SN: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean over seeds, and over test rows where all seeds have the same; none of one seed."""
    num_seeds, num_rows = values_SN.shape
    if num_seeds < 2:
        return None, None
    if study.compared.task.has_own_tests:
        values_SN, num_rows = values_SN.mean(axis=1, keepdims=True), 1
    # two_way holds several arrays of resamples times rows
    resamples = min(2_000, max(400, MOST_DRAWS // num_rows))
    _, low, high = intervals.two_way(values_SN, resamples=resamples)
    return low, high


def deviation(values_S: np.ndarray) -> float | None:
    return float(values_S.std(ddof=1)) if len(values_S) > 1 else None


def macro_f1(predicted_SN: np.ndarray, y_SN: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur, by seed."""
    from sklearn import metrics  # half a second to import

    pairs = zip(y_SN, predicted_SN)
    return np.array([metrics.f1_score(y_N, own_N, labels=np.unique(y_N), average="macro") for y_N, own_N in pairs])


def worst_group(study: Study, arm: str) -> tuple[float | None, str]:
    """Accuracy of the group where it is lowest, mean over seeds, and its name."""
    task = study.compared.task
    if task.test.groups is None:
        return None, ""
    right_SN, accuracy = study.right(arm), {}
    for number, name in enumerate(task.group_names):
        is_in_SN = task.test.groups == number
        if is_in_SN.any(axis=1).all():
            accuracy[name] = float(np.mean([right[inside].mean() for right, inside in zip(right_SN, is_in_SN)]))
    name = min(accuracy, key=accuracy.get)
    return accuracy[name], name


def seconds_a_step(result: arms.Result) -> float | None:
    rate = result.summary.get("steps_per_second")
    return 1 / rate if rate else None


def summary_of(study: Study) -> dict[str, float]:
    """Flat numbers of one study."""
    out: dict[str, float] = {}
    for name in study.results:
        out[f"accuracy/{name}"] = float(study.right(name).mean())
        worst, _ = worst_group(study, name)
        if worst is not None:
            out[f"worst_group/{name}"] = worst
            task = study.compared.task
            f1_S = macro_f1(study.results[name].predicted_SN, task.test.y)
            out[f"macro_f1/{name}"] = float(f1_S.mean())
    saflex = study.results["saflex"]
    for key in ("kept/clean", "kept/wrong", "saflex/kept", "saflex/relabelled"):
        if key in saflex.means:
            out[key] = saflex.means[key]
    times = [seconds_a_step(study.results[name]) for name in ("saflex", "upstream")]
    if all(times):
        out["overhead"] = times[0] / times[1]
    out["gain/upstream"] = out["accuracy/saflex"] - out["accuracy/upstream"]
    best = max((name for name in study.results if name in CONTROLS), key=lambda name: out[f"accuracy/{name}"])
    gain_SN = study.right("saflex").astype(np.float64) - study.right(best)
    out["gain/control"] = float(gain_SN.mean())
    low, high = interval(study, gain_SN)
    if low is not None:
        out |= {"gain/control/low": low, "gain/control/high": high}
    return out


def findings(studies: Sequence[Study]) -> list[str]:
    """What a reader must know of these numbers."""
    lines = [
        "SAFLEX-style, re-derived from the stated objective; the authors' code is not public.",
        "SAFLEX reads validation labels, so training on them directly is the control: where it does as well, take it.",
    ]
    for study in studies:
        numbers = summary_of(study)
        controls = {name: numbers[f"accuracy/{name}"] for name in study.results if name in CONTROLS}
        best = max(controls, key=controls.get)
        rival = f"the best other use of the validation rows, {best} {controls[best]:.3f}"
        if "gain/control/low" in numbers:
            low, high = numbers["gain/control/low"], numbers["gain/control/high"]
            word = "beats" if low > 0 else "loses to" if high < 0 else "does not differ clearly from"
            compared = (
                f"{word} {rival} (difference {low:+.3f} to {high:+.3f} over {study.compared.task.num_seeds} seeds)"
            )
        else:
            compared = f"against {rival} (difference {numbers['gain/control']:+.3f}; one seed, no interval)"
        lines.append(
            f"{study.name}: SAFLEX {numbers['accuracy/saflex']:.3f} {compared}; "
            f"upstream {numbers['accuracy/upstream']:.3f}, no augmentation {numbers['accuracy/none']:.3f}."
        )
    return lines


def draw_arms(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy of every arm with its interval, a panel a task."""
    names = list(dict.fromkeys(line["data"] for line in lines))
    most = max(sum(line["data"] == name for line in lines) for name in names)
    figure = Figure(figsize=(2.0 + 1.7 * len(names), 0.26 * most + 1.0), dpi=pictures.DPI, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    arm_names = list(dict.fromkeys(line["arm"] for line in lines))
    for axes, name in zip(panels, names):
        for line in (line for line in lines if line["data"] == name):
            place, is_ours = arm_names.index(line["arm"]), line["arm"] == "saflex"
            colour = charts.PALETTE[1] if is_ours else charts.PALETTE[0]
            if line["low"] is not None:
                axes.plot([line["low"], line["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(line["accuracy"], place, "o", color=colour, markersize=4)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.2)
    panels[0].set_yticks(range(len(arm_names)), arm_names, fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("test accuracy, 95 % interval where there are two seeds", fontsize=8)
    pictures.save(figure, path, "Test accuracy of each arm. train_val and agreement use the validation rows, too.")


# What SAFLEX does to single rows ------------------------------------------------------------------------------------


def look(study: Study, num: int, strength: float | None = None) -> arms.Looked:
    """One batch of `num` augmented rows under the trained network of SAFLEX."""
    compared, task = study.compared, study.compared.task
    if task.kind == PAIRS:  # as many as in training: their labels are places in a batch
        num = compared.setting.sizes.aug
    total = task.train.num if task.pool is None or strength is not None else task.pool.num
    sizes = dataclasses.replace(compared.setting.sizes, aug=min(num, total))
    looking = dataclasses.replace(compared, setting=dataclasses.replace(compared.setting, sizes=sizes))
    if strength is not None and task.upstream == POOL:
        policy = "randaugment" if task.kind == PICTURES else "noise"
        looking = dataclasses.replace(looking, task=dataclasses.replace(task, upstream=policy, is_wrong=None))
    made = looking.batches(strength=strength)
    batch = made(1_000_003)  # a number that training does not come to, the same for every strength
    return arms.look(looking, study.results["saflex"].state, batch)


def kept_by_strength(study: Study, strengths: Sequence[float]) -> list[tuple[float, float]]:
    """(strength, share kept) of one batch at each strength, over all seeds."""
    out = []
    for strength in strengths:
        looked = look(study, min(study.compared.task.train.num, 256), strength)
        real_SB = looked.batch["aug/real"].T
        out.append((strength, float(((looked.w_SB > 0) * real_SB).sum() / real_SB.sum())))
    return out


def write_gallery(folder: pathlib.Path, study: Study, looked: arms.Looked) -> None:
    """Rows of the first seed that were dropped, relabelled and kept: a table, and of pictures a sheet."""
    task = study.compared.task
    names = task.class_names
    batch = {name: array[:, 0] for name, array in looked.batch.items()}
    rows, sheet = [], {"dropped": [], "relabelled": [], "kept": []}
    for i in range(int(batch["aug/real"].sum())):
        came, now = int(np.argmax(batch["aug/y0"][i])), int(np.argmax(looked.y_SBK[0, i]))
        what = "dropped" if looked.w_SB[0, i] == 0 else "relabelled" if came != now else "kept"
        label = (lambda k: f"partner {k}") if task.kind == PAIRS else (lambda k: names[k])
        row = {"row": i, "what": what, "came as": label(came), "now": label(now)}
        row |= {"share of it": float(looked.y_SBK[0, i, now]), "weight": float(looked.w_SB[0, i])}
        if "aug/is_wrong" in batch:
            row["wrong in truth"] = bool(batch["aug/is_wrong"][i])
        rows.append(row)
        if task.kind == PICTURES and len(sheet[what]) < PER_ROW:
            truth = " (wrong)" if row.get("wrong in truth") else ""
            words = f"{what}\ncame as {row['came as']}{truth}" + (f"\nnow {row['now']}" if came != now else "")
            sheet[what].append((batch["aug/x"][i], words))
    files.write_rows(folder / f"tables/gallery_{study.name}.jsonl", rows)
    if task.kind == PICTURES:
        caption = f"{study.name}: augmented pictures of the first seed under the trained network."
        filled = [line for line in sheet.values() if line]
        pictures.contact_sheet(folder / f"figures/gallery_{study.name}.png", filled, caption=caption)


METRICS = {
    "accuracy/*": ("share of test rows predicted right, mean over seeds", "higher"),
    "accuracy": ("share of test rows predicted right, mean over seeds", "higher"),
    "worst_group/*": ("accuracy of the group where it is lowest, mean over seeds", "higher"),
    "macro_f1/*": ("F1 averaged over classes, mean over seeds", "higher"),
    "kept/clean": ("share of rightly labelled augmented rows with a weight above 0, over training", "higher"),
    "kept/wrong": ("share of wrongly labelled augmented rows with a weight above 0, over training", "lower"),
    "overhead": ("time of a SAFLEX step over that of an upstream step, in this run", "lower"),
    "gain/upstream": ("accuracy of SAFLEX less that of the upstream augmentation", "higher"),
    "gain/control": ("accuracy of SAFLEX less that of the best other use of the validation rows", "higher"),
    "gain/control/*": ("its 95 % interval over seeds, and test rows where all seeds have the same", "higher"),
    "saflex/kept": ("share of augmented rows with a weight above 0", ""),
    "saflex/relabelled": ("share of augmented rows whose best label is not the upstream's", ""),
    "saflex/entropy": ("entropy of the labels, in nats", ""),
    "saflex/score_*": ("alignment of a row's gradient with the validation gradient: lowest, median, highest", ""),
    "saflex/is_bad": ("share of steps whose gradient or scores were not finite", "lower"),
    "val_change/*": ("change of the validation loss by one step: to first order, and as it was", "lower"),
    "clean_loss": ("loss of the clean rows of a batch", "lower"),
    "augmented_loss": ("weighted loss of the augmented rows of a batch", "lower"),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    return (
        f"Test accuracy {numbers['accuracy/none']:.3f} without augmentation, {numbers['accuracy/upstream']:.3f} with, "
        f"{numbers['accuracy/saflex']:.3f} with SAFLEX; trained on the validation rows as well: "
        f"{numbers['accuracy/train_val']:.3f}."
    )
