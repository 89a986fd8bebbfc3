"""What a run of false_alarms.py leaves behind: shares below levels, distances, thresholds of single keys."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignment import files
from alignment.watermark import false_alarms
from experiments.report import pictures

SHOWN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # levels of the picture


def write(
    folder: pathlib.Path, results: Mapping[str, Mapping[str, np.ndarray]], *, num_windows: int
) -> dict[str, float]:
    """Tables, the picture and the summary.

    Args:
        results: {scheme: p, uniform and z, each [keys, windows]}.
    """
    levels, keys = [], []
    for scheme, of in results.items():
        levels += [_level(scheme, of, level) for level in false_alarms.LEVELS]
        spread_K, threshold_K = false_alarms.spread(of["z"]), false_alarms.threshold(of["z"])
        own = [false_alarms.distance(row) for row in of["uniform"]]
        keys.append(
            {
                "scheme": scheme,
                "distance": false_alarms.distance(of["uniform"]),
                "distance_of_a_key": float(np.median(own)),
                "largest_distance_of_a_key": max(own),
                "mean_square_z": float(spread_K.mean()),
                "largest_mean_square_z": float(spread_K.max()),
                "threshold_1_percent": float(np.median(threshold_K)),
                "largest_threshold_1_percent": float(threshold_K.max()),
            }
        )
    for name, rows in (("levels", levels), ("keys", keys)):
        files.write_table(folder, name, rows)
    files.write_rows(folder / "metrics.jsonl", _steps(results))
    pictures.curves(
        folder / "figures/false_alarms.png",
        {s: [(x, float(np.mean(of["uniform"] < x))) for x in SHOWN] for s, of in results.items()}
        | {"exact": [(x, x) for x in SHOWN]},
        caption="Share of unmarked windows with a p-value below a level, over all keys",
        x_label="level",
        y_label="share",
    )
    out = {"windows": float(num_windows), "keys": float(len(next(iter(results.values()))["p"]))}
    for line in levels:
        out |= {f"share_{line['level']:g}/{line['scheme']}": line["share"]}
        out |= {f"exact_share_{line['level']:g}/{line['scheme']}": line["exact_share"]}
        out |= {f"dispersion/{line['scheme']}": line["dispersion"]} if line["level"] == 0.05 else {}
    for line in keys:
        out |= {f"distance/{line['scheme']}": line["distance"]}
        out |= {f"threshold/{line['scheme']}": line["threshold_1_percent"]}
    return out


def _level(scheme: str, of: Mapping[str, np.ndarray], level: float) -> dict[str, Any]:
    """The share of exact p-values, which a count's few values keep below the level, and of those made continuous."""
    exact, continuous = (false_alarms.at_level(of[name], level) for name in ("p", "uniform"))
    line = {"scheme": scheme, "level": level, "exact_share": exact["share"]} | continuous
    return line | {"exact_largest_of_a_key": exact["largest_of_a_key"]}


def _steps(results: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """The share below 5 % over the first keys, a step for each key."""
    keys = len(next(iter(results.values()))["p"])
    means = {s: np.cumsum(np.mean(of["uniform"] < 0.05, axis=1)) / np.arange(1, keys + 1) for s, of in results.items()}
    return [{"step": k + 1, **{f"share/{s}": float(m[k]) for s, m in means.items()}} for k in range(keys)]


METRICS = {
    "share_*": ("share of unmarked windows with a p-value made continuous below this level, over windows and keys", ""),
    "exact_share_*": ("the same of exact p-values, which lie below the level since a count takes few values", ""),
    "share/*": ("share below 5 % over the first keys; a step is a key", ""),
    "dispersion/*": ("variance from key to key of the share below 5 %, in units of independent windows", ""),
    "distance/*": ("Kolmogorov-Smirnov distance of the p-values from uniform ones, over windows and keys", "lower"),
    "threshold/*": (
        "z that 1 % of unmarked windows exceed under one key, median over keys; a normal law: 2.326",
        "",
    ),
    "windows": ("unmarked windows", ""),
    "keys": ("that each window is read under", ""),
}


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    schemes = [name.partition("/")[2] for name in numbers if name.startswith("distance/")]
    words = ", ".join(
        f"{s} {100 * numbers[f'share_0.05/{s}']:.3g} % (one key: {numbers[f'dispersion/{s}']:.3g} times the variance, "
        f"z above {numbers[f'threshold/{s}']:.3g} in 1 %)"
        for s in schemes
    )
    return f"P-values below 5 % on {numbers['windows']:,.0f} unmarked windows, {numbers['keys']:g} keys: {words}."
