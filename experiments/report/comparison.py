"""Runs side by side: a sweep's page, and a page of any runs. Seeds are taken together; what is equal is folded."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from alignment import files
from alignment.errors import InputError
from experiments.report import charts, groups, meanings, overlay
from experiments.report.groups import Group, Run
from experiments.report.markup import (
    cell,
    escape,
    explained,
    heading,
    is_number,
    number,
    optional_json,
    page,
    rows,
    table,
)
from experiments.report.page import Own, about, figures

TALL = 14  # rows from which on the table scrolls under its heading
SHORT = 24  # characters of a setting that are not broken into lines
MANY = 6  # settings from which on the numbers come first


def compare_sweep(folder: str | os.PathLike) -> str:
    """Write a sweep's report.html and summary.csv from what its points have left so far; returns the page's path."""
    folder = pathlib.Path(folder)
    runs = groups.of_sweep(folder)
    varied = list(dict.fromkeys(key for run in runs for key in run.settings))
    _write_csv(folder / "summary.csv", "id", runs, varied)
    own = [figures(sorted(folder.glob("figures/*.png")))]
    own += [table(path.stem, list(rows(path))) for path in sorted(folder.glob("tables/*.jsonl"))]
    experiment = (optional_json(folder / "sweep.json") or {}).get("experiment", "sweep")
    title = f"{experiment}: sweep over {', '.join(varied) or 'nothing'}"
    return _write_page(folder / "report.html", title, runs, own)


def compare_runs(folders: Sequence[str | os.PathLike], path: str | os.PathLike = "") -> str:
    """Write a page that compares any runs, and the points of any sweeps, by the config keys in which they differ.

    Args:
        path: of the page; "" means comparison.html in the nearest folder that all of them lie in. A table of the same
            numbers goes beside it, with the ending .csv.

    Returns:
        The page's path.
    """
    runs = groups.of_folders(folders)
    if not path:
        parents = [run.folder.resolve().parent for run in runs]
        path = pathlib.Path(os.path.commonpath(parents)) / "comparison.html"
    path = pathlib.Path(path)
    try:
        _write_csv(path.with_suffix(".csv"), "run", runs, list(runs[0].settings) if runs else [])
        names = ", ".join(run.name for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
        return _write_page(path, f"{len(runs)} runs compared: {names}", runs, [])
    except PermissionError as e:
        raise InputError(f"{path} cannot be written ({e.strerror}); choose another place with --out PAGE") from e


def _write_page(path: pathlib.Path, title: str, runs: Sequence[Run], tables: Sequence[str]) -> str:
    done = [run for run in runs if run.summary is not None]
    own: dict[str, meanings.Meaning] = {}
    for run in reversed(runs):
        own |= about(run.folder)[1]
    together, same = groups.grouped(runs)
    varied = list(together[0].settings) if together else []
    lead = meanings.lead([m for run in done for m in run.summary], own, varied)
    measured = sorted(dict.fromkeys(m for run in done for m in run.summary), key=lambda m: _column_order(m, lead, own))
    differing = [m for m in measured if len({number(group.mean(m)) for group in together}) > 1]
    same |= {m: together[0].text(m) for m in measured if m not in differing}
    parts = [
        f'<p class="headline">{escape(headline(together, lead, own))}</p>',
        comparison(together, varied, differing, lead, own, path.parent),
        same_in_all(same),
        column_meanings(differing, own),
        *tables,
        overlay.effects(together, varied, differing, own),
        overlay.curves([group for group in together if any(run.summary for run in group.runs)], lead, own),
    ]
    subtitle = f"{len(done)} of {len(runs)} points finished" if len(runs) > len(done) else f"{len(runs)} runs"
    files.write_text(path, page(title, subtitle, parts))
    return str(path)


def _column_order(metric: str, lead: str | None, own: Own) -> tuple[bool, bool, bool, int]:
    return metric != lead, not meanings.direction(metric, own), not charts.is_heldout(metric), charts.rank(metric)


def _write_csv(path: pathlib.Path, name: str, runs: Sequence[Run], varied: Sequence[str]) -> None:
    """A row for each run, seeds apart, with empty cells for what is not there yet."""
    measured = sorted(dict.fromkeys(metric for run in runs for metric in run.summary or {}), key=charts.rank)
    table_rows = [
        [i, run.name, *(run.settings.get(k, "") for k in varied), *((run.summary or {}).get(m, "") for m in measured)]
        for i, run in enumerate(runs)
    ]
    files.write_csv(path, ["index", name, *varied, *measured], table_rows)


def headline(together: Sequence[Group], lead: str | None, own: Own) -> str:
    """Which setting is best by the lead metric, and whether the difference is larger than the spread over seeds."""
    finished = [group for group in together if lead and group.values(lead)]
    if lead is None or not finished:
        return (
            "No run is finished yet."
            if not any(r.summary for g in together for r in g.runs)
            else ("These runs have no number in common that compares: they differ in what scales it, or in their data.")
        )
    sign = meanings.direction(lead, own)
    best, *others = sorted(finished, key=lambda group: -sign * group.mean(lead))
    words = f"{lead} is {'highest' if sign > 0 else 'lowest'} with {best.label()}: {best.text(lead)}"
    num_seeds = len(best.values(lead))
    words += f" (mean and standard deviation over {num_seeds} seeds)" if num_seeds > 1 else ""
    if not others:
        return f"{words}."
    gap = abs(best.mean(lead) - others[0].mean(lead))
    noise = max((group.deviation(lead) or 0.0 for group in (best, others[0])), default=0.0)
    words += f"; next is {others[0].label()} with {others[0].text(lead)}"
    if num_seeds > 1 and gap <= noise:
        words += ", a difference within the spread over seeds"
    return f"{words}; the worst of {len(finished)} is {number(others[-1].mean(lead))}."


def comparison(
    together: Sequence[Group],
    varied: Sequence[str],
    measured: Sequence[str],
    lead: str | None,
    own: Own,
    page_folder: pathlib.Path,
) -> str:
    """A row for each group: settings, links to its runs, numbers; best first, and the best of a column in colour.

    Args:
        varied: settings that get a column.
        measured: metrics that get a column.
        page_folder: where the page lies, which links are relative to.
    """
    best = best_values(together, varied, measured, own)
    order = list(together)
    if lead:
        sign = meanings.direction(lead, own)
        order.sort(key=lambda g: (not g.values(lead), -sign * (g.mean(lead) or 0.0)))
    settings = [heading(key, [group.settings[key] for group in together]) for key in varied]
    numbers = [heading(metric, [0], meanings.clause(metric, own)) for metric in measured]
    lines = [_line(heading("runs", [""]), settings, numbers)]
    for group in order:
        links = " ".join(_link(run, page_folder) for run in group.runs)
        settings = [_setting(group.settings[key]) for key in varied]
        numbers = [_mean(group, metric, best.get(metric)) for metric in measured]
        lines.append(_line(f'<td class="links">{links}</td>', settings, numbers))
    notes = [f"Sorted by {lead}." if lead else "In the order of the runs."]
    if any(len(group.runs) > 1 for group in together):
        notes.append("Means over seeds, ± their standard deviation.")
    unmarked = [m for m in measured if meanings.direction(m, own) and not meanings.is_comparable(m, varied, own)]
    if unmarked:
        notes.append(f"No best is marked for {', '.join(unmarked)}: the runs differ in what sets their scale.")
    css = "card wide tall" if len(together) > TALL else "card wide"
    table_html = f'<div class="{css}"><table>{"".join(lines)}</table></div>'
    return f'{table_html}<p class="sub">{escape(" ".join(notes))}</p>'


def best_values(
    together: Sequence[Group], varied: Sequence[str], measured: Sequence[str], own: Own
) -> dict[str, float]:
    """The best mean of each metric that has a direction, differs between groups, and compares across `varied`."""
    best = {}
    for metric in measured:
        means = {mean for group in together if (mean := group.mean(metric)) is not None}
        sign = meanings.direction(metric, own)
        if sign and len(means) > 1 and meanings.is_comparable(metric, varied, own):
            best[metric] = max(means) if sign > 0 else min(means)
    return best


def _line(first: str, settings: list[str], numbers: list[str]) -> str:
    """A line of the table; many settings, as of runs of different experiments, would push the numbers out of sight."""
    cells = numbers + settings if len(settings) > MANY else settings + numbers
    return f"<tr>{first}{''.join(cells)}</tr>"


def _mean(group: Group, metric: str, best: float | None) -> str:
    mean, deviation = group.mean(metric), group.deviation(metric)
    spread = f"± {deviation:.2g}" if deviation is not None else ""
    return cell(mean, "best" if mean is not None and mean == best else "", spread)


def _setting(value: Any) -> str:
    """A cell with a config value as it is written on the command line."""
    if value is None or len(str(value)) > SHORT:
        return cell(value)
    return f'<td class="{"number" if is_number(value) else "short"}">{escape(value)}</td>'


def _link(run: Run, page_folder: pathlib.Path) -> str:
    """A link to the run's page, once there is one."""
    text = escape(run.link)
    if run.summary is None:
        return f"{text} (not finished)"
    address = os.path.relpath(run.folder / "report.html", page_folder)
    return f'<a href="{escape(address)}" title="{escape(run.name)}">{text}</a>'


def same_in_all(settings: dict[str, Any]) -> str:
    """Settings and numbers that do not tell the runs apart, folded."""
    items = "".join(f"<div><dt>{explained(k)}</dt><dd>{escape(number(v))}</dd></div>" for k, v in settings.items())
    return _folded("The same in all", items)


def column_meanings(measured: Sequence[str], own: Own) -> str:
    """What the columns mean, folded."""
    items = "".join(
        f"<div><dt>{explained(metric)}<small>{escape(why)}</small></dt></div>"
        for metric in measured
        if (why := meanings.clause(metric, own))
    )
    return _folded("What the columns mean", items)


def _folded(title: str, items: str) -> str:
    return f'<details class="card"><summary>{title}</summary><dl class="facts">{items}</dl></details>' if items else ""
