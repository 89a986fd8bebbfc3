"""The page of a sweep: its points side by side."""

import os
import pathlib

from alignment import files
from experiments.report import charts
from experiments.report.markup import cell, escape, grid, heading, optional_json, page, rows, table

LOWER = ("loss", "perplexity", "error", "seconds", "asr", "displacement")
HIGHER = ("accuracy", "accuracies", "margin", "margins", "per_second", "reward", "win_rate", "auc")


def direction(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where the name does not say; the last part of the name decides."""
    last = name.rsplit("/", 1)[-1]
    if last.endswith(HIGHER):
        return 1
    return -1 if last.endswith(LOWER) else 0


def precedence(name: str) -> tuple[bool, bool]:
    """Smallest for what points are best compared by: held out, and an accuracy, which beta does not scale as a loss."""
    return not name.startswith(charts.HELD_OUT), not name.endswith(("accuracy", "accuracies"))


def compare_sweep(folder: str | os.PathLike) -> str:
    """Write a sweep's report.html and summary.csv from what its points have left so far; returns the page's path."""
    folder = pathlib.Path(folder)
    index = optional_json(folder / "sweep.json") or {"points": []}
    points = [point | {"summary": optional_json(folder / point["id"] / "summary.json")} for point in index["points"]]
    done = [point for point in points if point["summary"] is not None]
    varied = list(dict.fromkeys(key for point in points for key in point["overrides"]))
    measured = sorted(dict.fromkeys(name for point in done for name in point["summary"]), key=charts.rank)
    _write_csv(folder / "summary.csv", points, varied, measured)
    tables = [table(found.stem, list(rows(found))) for found in sorted(folder.glob("tables/*.jsonl"))]
    parts = [comparison(points, varied, measured), *tables, *overlaid(folder, done)]
    title = f"{index.get('experiment', 'sweep')}: sweep over {', '.join(varied) or 'nothing'}"
    path = folder / "report.html"
    files.write_text(path, page(title, f"{len(done)} of {len(points)} points finished", parts))
    return str(path)


def _write_csv(path: pathlib.Path, points: list[dict], varied: list[str], measured: list[str]) -> None:
    table_rows = []
    for point in points:
        summary, settings = point["summary"] or {}, [point["overrides"].get(key, "") for key in varied]
        table_rows.append([point["index"], point["id"], *settings, *(summary.get(name, "") for name in measured)])
    files.write_csv(path, ["index", "id", *varied, *measured], table_rows)


def comparison(points: list[dict], varied: list[str], measured: list[str]) -> str:
    """Overrides beside summary numbers, best point first where a direction is known, the best of a column in colour."""
    leading = min(filter(direction, measured), key=precedence, default=None)

    def value(point, name):
        found = (point["summary"] or {}).get(name)
        return found if isinstance(found, (int, float)) else None

    def place(point):
        found = value(point, leading) if leading else None
        return (found is None, 0 if found is None else -direction(leading) * found, point["index"])

    best = {}
    for name in filter(direction, measured):
        found = [v for p in points if (v := value(p, name)) is not None]
        if len(set(found)) > 1:
            best[name] = max(found) if direction(name) > 0 else min(found)
    settings = [heading(key, [point["overrides"].get(key) for point in points]) for key in varied]
    head = "".join([heading("point", [""]), *settings, *(heading(name, [0]) for name in measured)])
    body = []
    for point in sorted(points, key=place):
        name, is_done = escape(point["id"]), point["summary"] is not None
        link = f'<a href="{escape(point["id"])}/report.html">{name}</a>' if is_done else f"{name} (not finished)"
        cells = [f"<td>{link}</td>", *(cell(point["overrides"].get(key, "")) for key in varied)]
        for column in measured:
            found = value(point, column)
            cells.append(cell(found, "best" if found is not None and found == best.get(column) else ""))
        body.append(f"<tr>{''.join(cells)}</tr>")
    order = f"sorted by {leading}" if leading else "in the order of the sweep"
    rows_html = "".join(body)
    return f'<div class="card wide"><table><tr>{head}</tr>{rows_html}</table></div><p class="sub">{escape(order)}</p>'


def overlaid(folder: pathlib.Path, done: list[dict]) -> list[str]:
    """Each metric of all points in one picture; past eight points a legend would hide the curves and is left out."""
    pictures: dict[str, dict[str, charts.Series]] = {}
    is_clear = len({short_label(point) for point in done}) == len(done)
    for point in done:
        for name, curve in charts.series(rows(folder / point["id"] / "metrics.jsonl")).items():
            pictures.setdefault(name, {})[short_label(point) if is_clear else point["id"]] = curve
    legend = len(done) <= len(charts.PALETTE)
    cards = [
        f'<div class="card"><h3>{escape(name)}</h3>{charts.svg(inside, f"{name} of each point", legend)}</div>'
        for name, inside in sorted(pictures.items(), key=lambda item: charts.rank(item[0]))
    ]
    return [f"<h2>Curves</h2>{grid(cards)}"] if cards else []


def short_label(point: dict) -> str:
    """`beta=0.05 seed=0`: the point without the path of its keys."""
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point["overrides"].items()) or point["id"]
