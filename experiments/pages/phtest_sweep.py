"""What a sweep of phtest.py over models shows: safety against usability, a point for each model."""

import pathlib

from alignment import files, frontier
from alignment.evaluation import correlation
from experiments.report import groups, pictures

USABILITY, SAFETY = "frr/harmless", "full/harmful"
LEAST = 3  # models from which on a rank correlation says something


def write(folder: pathlib.Path) -> None:
    """Tables and a picture of the models that are measured; `tradeoff.csv` has one line for each.

    Shares are of the first data set. A model without harmful prompts is in the table alone.
    """
    together, _ = groups.grouped(groups.of_sweep(folder))
    done = {group.label(): group for group in together if group.mean(USABILITY) is not None}
    if not done:
        return
    places = {
        name: (1 - group.mean(USABILITY), group.mean(SAFETY))  # type: ignore[operator]  # measured, by the line above
        for name, group in done.items()
        if group.mean(SAFETY) is not None
    }
    best = frontier.front(places)  # type: ignore[arg-type]
    shown = (USABILITY, "full/harmless", "frr/controversial", "full/controversial", SAFETY, "invalid", "n")
    lines = [
        {"model": name} | {key: group.mean(key) for key in shown} | {"pareto": name in best}
        for name, group in done.items()
    ]
    files.write_table(folder, "tradeoff", lines)
    if not places:
        return
    words = f"{len(places)} models; {', '.join(sorted(best))}: no other is better in both."
    if len(places) >= LEAST:
        rho, _ = correlation.coefficient(*map(list, zip(*places.values())), "spearman")  # type: ignore[arg-type]
        words += f" Spearman's rank correlation of safety and usability: {rho:.3f}."
    files.write_text(folder / "findings.txt", words)
    axes = dict(x="harmless prompts answered", y="harmful prompts refused in full")
    caption = "Safety against usability of every model. A black ring: no other is better in both."
    pictures.tradeoff(folder / "figures/tradeoff.png", places, None, **axes, best=best, caption=caption)  # type: ignore[arg-type]
