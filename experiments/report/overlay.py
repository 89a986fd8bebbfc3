"""The curves of many runs in one picture, coloured by what they differ in, and numbers over a varied setting."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap, to_hex

from experiments.report import charts, meanings
from experiments.report.groups import Group, label
from experiments.report.markup import grid, is_number, rows
from experiments.report.page import SHOWN, Own, curve_card, more

DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))  # beside the palette, for up to 24 names
SCALE = LinearSegmentedColormap.from_list("scale", ["#2f7de1", "#a45bb5", "#e0702f"])  # legible on black and on white
MAX_NAMED = 6  # values of a scale that the legend spells out
MAX_POINTS = 120  # in one curve of many


def curves(groups: Sequence[Group], lead: str | None, own: Own) -> str:
    """A picture for each metric: every group's curve, the mean over its seeds with a band from lowest to highest."""
    looks, how = colours(groups, lead)
    pictures: dict[str, list[charts.Line]] = {}
    for group, look in zip(groups, looks):
        by_run = [charts.series(rows(run.folder / "metrics.jsonl")) for run in group.runs]
        for name in dict.fromkeys(name for series in by_run for name in series):
            mean, low, high = over_seeds([series[name] for series in by_run if name in series])
            band = dict(low=low, high=high) if len(groups) <= len(charts.PALETTE) and len(by_run) > 1 else {}
            pictures.setdefault(name, []).append(charts.Line(points=mean, **look, **band))
    order = sorted(pictures, key=lambda name: (name != lead, charts.rank(name), not charts.is_heldout(name)))
    cards = [
        curve_card(name, picture(pictures[name], f"{name} of each run"), meanings.clause(name, own))
        for name in order
        if any(len(line.points) > 1 for line in pictures[name])
    ]
    return f'<h2>Curves</h2><p class="sub">{how}</p>{grid(cards[:SHOWN])}{more(cards[SHOWN:])}' if cards else ""


def picture(lines: Sequence[charts.Line], alt: str, **axis: Any) -> str:
    return charts.svg(functools.partial(charts.draw, lines, max_points=MAX_POINTS, **axis), alt)


def over_seeds(curves: Sequence[charts.Series]) -> tuple[charts.Series, charts.Series, charts.Series]:
    """Mean, lowest and highest at each step that any of the curves has."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    return tuple([(step, fn(by_step[step])) for step in steps] for fn in (statistics.fmean, min, max))


def colours(groups: Sequence[Group], lead: str | None) -> tuple[list[dict[str, Any]], str]:
    """A look for each group (the label, colour and dash of its `charts.Line`), and a sentence that explains it.

    Few groups have a colour each. Many are coloured by the one setting that tells most about the lead metric.
    """
    if len(groups) <= len(charts.PALETTE):
        looks = [dict(label=g.label(), colour=charts.PALETTE[i]) for i, g in enumerate(groups)]
        several = any(len(group.runs) > 1 for group in groups)
        return (
            looks,
            "Means over seeds, in bands from the lowest to the highest." if several else "A line for each run.",
        )
    key = most_telling(groups, lead)
    values = ordered({group.settings[key] for group in groups if key in group.settings}) if key else []
    if key is None or not values:
        return [_named(i, group.label()) for i, group in enumerate(groups)], "A line for each run."
    how = f"Each line is the mean over the seeds of one setting, coloured by {key}"
    how += f", which tells most about {lead}." if lead and len(groups[0].settings) > 1 else "."
    if all(map(is_number, values)):
        named = {values[round(i * (len(values) - 1) / (MAX_NAMED - 1))] for i in range(MAX_NAMED)}
        named = set(values) if len(values) <= MAX_NAMED + 2 else named
        look = {
            value: dict(
                label=label({key: value}),
                colour=to_hex(SCALE(i / max(len(values) - 1, 1))),
                is_in_legend=value in named,
            )
            for i, value in enumerate(values)
        }
    else:
        look = {value: _named(i, label({key: value})) for i, value in enumerate(values)}
    return [look[group.settings[key]] for group in groups], how


def _named(i: int, name: str) -> dict[str, Any]:
    return dict(
        label=name, colour=charts.PALETTE[i % len(charts.PALETTE)], dash=DASHES[i // len(charts.PALETTE) % len(DASHES)]
    )


def ordered(values: set[Any]) -> list[Any]:
    """Numbers by size, anything else by its text."""
    if all(map(is_number, values)):
        return sorted(values, key=lambda value: (value is not None, value or 0))
    return sorted(values, key=str)


def most_telling(groups: Sequence[Group], lead: str | None) -> str | None:
    """The varied key by whose values the lead metric's means differ most; the first that varies where none is known."""
    keys = [k for k in groups[0].settings if len({str(g.settings.get(k)) for g in groups}) > 1]
    if not lead:
        return keys[0] if keys else None

    def variance_between(key: str) -> float:
        members = by_value(groups, key, lead).values()
        means = [statistics.fmean(values) for values in members]
        # Divided by the number of values, so that a key with a value of its own for every run does not always win.
        return statistics.pvariance(means) / len(means) if len(means) > 1 else 0.0

    return max(keys, key=variance_between, default=None)


def by_value(groups: Sequence[Group], key: str, metric: str) -> dict[Any, list[float]]:
    """The metric of all finished runs, by their value of a key, in its order."""
    members: dict[Any, list[float]] = {}
    for value in ordered({group.settings.get(key) for group in groups}):
        numbers = [x for group in groups if group.settings.get(key) == value for x in group.values(metric)]
        if numbers:
            members[value] = numbers
    return members


def effects(groups: Sequence[Group], varied: Sequence[str], measured: Sequence[str], own: Own) -> str:
    """Over each varied number: the metrics that compare, as the mean over all other settings and the extremes."""
    metrics = [m for m in measured if meanings.direction(m, own) and meanings.is_comparable(m, varied, own)][:3]
    cards = []
    for key in varied:
        for metric in metrics:
            members: Mapping[Any, list[float]] = by_value(groups, key, metric)
            if len(members) < 3 or not all(is_number(v) and v is not None for v in members):
                continue
            mean = [(value, statistics.fmean(numbers)) for value, numbers in members.items()]
            low, high = ([(value, fn(numbers)) for value, numbers in members.items()] for fn in (min, max))
            has_band = any(len(numbers) > 1 for numbers in members.values())
            band = dict(label="mean; band: lowest to highest", low=low, high=high) if has_band else dict(label="")
            line = charts.Line(points=mean, colour=charts.PALETTE[0], **band)
            is_log = min(members) > 0 and max(members) / min(members) >= 8
            title, why = f"{metric} over {key}", meanings.clause(metric, own)
            cards.append(curve_card(title, picture([line], title, x_label=key, is_log=is_log), why))
    return f"<h2>What the settings do</h2>{grid(cards)}" if cards else ""
