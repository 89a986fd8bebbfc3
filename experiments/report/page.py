"""report.html: one self-contained page of a run, and of a sweep's points side by side.

    python -m experiments.report runs/dpo        builds the page again, of an unfinished run too

Reads only what lies in the folder; needs neither JAX nor a network, and leaves out what is not there.
"""

import base64
import csv
import html
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.launch import workdir as workdirs
from experiments.report import charts

MAX_ROWS = 200  # of a table
SHOWN = 6  # pictures before the fold
HALF_PAGE = 640  # pixels; a figure wider than this could not be read at half the page's width
LONG = 120  # characters of a cell from which on it gets room
SKIPPED = {"checkpoints", "tables", "figures", "export"}

CSS = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667080; --line: #e2e5ea; --card: #fff; --page: #f5f6f8;
        --best: #1d7f4f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7ec; --soft: #99a2b0; --line: #343a44; --card: #1c2027; --page: #14171c; --best: #5fd39a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1120px; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .9rem; margin: 0 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
p.sub { color: var(--soft); margin: .2rem 0 1.2rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .95rem;
        min-width: 0; }
.card svg { display: block; width: 100%; height: auto; }
dl { display: grid; grid-template-columns: 1fr auto; gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td div { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; min-width: 4rem; }
td.best { color: var(--best); font-weight: 650; }
.findings ul { margin: 0; padding-left: 1.2rem; } .findings li { margin: .25rem 0; overflow-wrap: anywhere; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); align-items: start;
         grid-auto-flow: dense; }
.full { grid-column: 1 / -1; } td.long div { min-width: 22rem; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
figcaption { color: var(--soft); font-size: .88rem; white-space: pre-wrap; }
details { margin-top: .8rem; } details .grid { margin-top: .8rem; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: inherit; }
"""


def build(workdir: str | os.PathLike) -> str:
    """Write the run's report.html and return its path."""
    folder = pathlib.Path(workdir)
    environment = _optional_json(folder / "environment.json") or {}
    parts = [summary(_optional_json(folder / "summary.json") or {}), findings(folder / "findings.txt")]
    parts += sections(folder)
    for phase in phases(folder):
        inner = sections(phase)
        if inner:
            parts += [f"<h2>Phase: {escape(phase.name)}</h2>", *inner]
    parts += [folded("Config", workdirs.flatten(_optional_json(folder / "config.json") or {}))]
    parts += [folded("Environment", environment)]
    title = environment.get("experiment") or folder.resolve().name
    path = folder / "report.html"
    workdirs.write_text(path, page(title, f"{folder.resolve().name} · {story(environment)}", parts))
    return str(path)


def sections(folder: pathlib.Path) -> list[str]:
    """Curves, pictures and tables of one folder; an empty part is left out."""
    found = [curves(charts.series(rows(folder / "metrics.jsonl")))]
    found.append(figures(sorted(folder.glob("figures/*.png"))))
    for path in sorted(folder.glob("tables/*.jsonl")):
        found.append(table(path.stem, list(rows(path))))
    return [part for part in found if part]


def phases(folder: pathlib.Path) -> list[pathlib.Path]:
    """Sub-folders shaped like a workdir: earlier phases of the same run, in the order they ended."""
    found = [p.parent for p in folder.glob("*/metrics.jsonl") if p.parent.name not in SKIPPED]
    return sorted(found, key=lambda p: ((p / "metrics.jsonl").stat().st_mtime, p.name))


def rows(path: pathlib.Path) -> Iterable[dict[str, Any]]:
    """Objects of a JSONL file; a line torn by a kill is passed over."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def number(value: Any) -> str:
    """A number for reading: whole ones in full, others to four digits; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e7):
        return f"{int(value):,}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.3e}"


def summary(numbers: Mapping[str, Any]) -> str:
    """The run's own numbers in cards: what stands before the first slash groups them."""
    groups: dict[str, list[str]] = {}
    for name, value in sorted(numbers.items(), key=lambda item: charts.rank(item[0])):
        head, slash, rest = name.partition("/")
        place, label = (head, rest) if slash else ("run", name)
        groups.setdefault(place, []).append(f"<dt>{escape(label)}</dt><dd>{escape(number(value))}</dd>")
    cards = [
        f'<div class="card"><h3>{escape(name)}</h3><dl>{"".join(items)}</dl></div>' for name, items in groups.items()
    ]
    return grid(cards) if cards else ""


def findings(path: pathlib.Path) -> str:
    """What the run says it found, a line each, right under its numbers."""
    if not path.is_file():
        return ""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f'<h2>Findings</h2><div class="card findings"><ul>{items}</ul></div>' if items else ""


def curves(found: Mapping[str, charts.Series]) -> str:
    """A picture a quantity; those past the first rows wait behind a fold, so that tables stay in reach.

    What was logged only once makes no picture: it stands in the summary.
    """
    cards = [
        f'<div class="card"><h3>{escape(name)}</h3>{charts.svg(inside, f"{name} over steps")}</div>'
        for name, inside in charts.group(found).items()
        if any(len(points) > 1 for points in inside.values())
    ]
    return f"<h2>Curves</h2>{grid(cards[:SHOWN])}{more(cards[SHOWN:])}" if cards else ""


def grid(cards: list[str], css: str = "grid") -> str:
    return f'<div class="{css}">{"".join(cards)}</div>'


def more(cards: list[str]) -> str:
    return f"<details><summary>{len(cards)} more curves</summary>{grid(cards)}</details>" if cards else ""


def table(name: str, found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    columns = list(dict.fromkeys(key for row in found for key in row))
    head = "".join(heading(c, [row.get(c) for row in found]) for c in columns)
    body = "".join("<tr>" + "".join(cell(row.get(c)) for c in columns) + "</tr>" for row in found[:MAX_ROWS])
    more = f'<p class="sub">{MAX_ROWS} of {len(found):,} rows</p>' if len(found) > MAX_ROWS else ""
    title = escape(name.replace("_", " "))
    return f'<h2>{title}</h2><div class="card wide"><table><tr>{head}</tr>{body}</table></div>{more}'


def is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def heading(name: str, values: Iterable[Any]) -> str:
    """A column's name, over the numbers if it holds only numbers."""
    return f'<th class="{"number" if all(map(is_number, values)) else ""}">{escape(name)}</th>'


def cell(value: Any, css: str = "") -> str:
    if is_number(value):
        return f'<td class="number {css}">{escape(number(value))}</td>'
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    css = f"{css} long".strip() if len(text) >= LONG else css
    return f'<td class="{css}"><div>{escape(text)}</div></td>'


def figures(paths: list[pathlib.Path]) -> str:
    cards = []
    for path in paths:
        caption = path.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8", errors="replace").strip() if caption.is_file() else path.stem
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'
        css = "card full" if png_width(path) > HALF_PAGE else "card"
        cards.append(f'<figure class="{css}">{image}<figcaption>{escape(text)}</figcaption></figure>')
    return f"<h2>Figures</h2>{grid(cards, 'grid large')}" if cards else ""


def png_width(path: pathlib.Path) -> int:
    """In pixels, from the file's header."""
    with open(path, "rb") as f:
        return int.from_bytes(f.read(24)[16:20], "big")


def folded(title: str, tree: Mapping[str, Any]) -> str:
    if not tree:
        return ""
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    return f'<details class="card"><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>'


def story(environment: Mapping[str, Any]) -> str:
    """How the run went, in a line: outcome, time over all starts, devices, commit."""
    starts = environment.get("starts") or []
    if not starts:
        return "no record of a start"
    last = starts[-1]
    seconds = sum(s.get("seconds", 0) for s in starts)
    words = [last.get("outcome", "running, or killed"), f"{seconds:,.0f} s", last.get("started", "")]
    if len(starts) > 1:
        words.append(f"{len(starts)} starts")
    devices = last.get("devices") or []
    if devices:
        words.append(f"{len(devices)} × {devices[0].split(' ', 1)[-1]}")
    commit = last.get("git") or {}
    if commit:
        words.append(commit.get("commit", "")[:10] + (" with local changes" if commit.get("is_dirty") else ""))
    return " · ".join(w for w in words if w)


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="sub">{escape(subtitle)}</p>\n' + "\n".join(p for p in parts if p) + "\n</body></html>\n"
    )


def _optional_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# A sweep's folder.

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


def compare(folder: str | os.PathLike) -> str:
    """Write a sweep's report.html and summary.csv from what its points have left so far; returns the page's path."""
    folder = pathlib.Path(folder)
    index = _optional_json(folder / "sweep.json") or {"points": []}
    points = [point | {"summary": _optional_json(folder / point["id"] / "summary.json")} for point in index["points"]]
    done = [point for point in points if point["summary"] is not None]
    varied = list(dict.fromkeys(key for point in points for key in point["overrides"]))
    measured = sorted(dict.fromkeys(name for point in done for name in point["summary"]), key=charts.rank)
    _write_csv(folder / "summary.csv", points, varied, measured)
    tables = [table(found.stem, list(rows(found))) for found in sorted(folder.glob("tables/*.jsonl"))]
    parts = [comparison(points, varied, measured), *tables, *overlaid(folder, done)]
    title = f"{index.get('experiment', 'sweep')}: sweep over {', '.join(varied) or 'nothing'}"
    path = folder / "report.html"
    workdirs.write_text(path, page(title, f"{len(done)} of {len(points)} points finished", parts))
    return str(path)


def _write_csv(path: pathlib.Path, points: list[dict], varied: list[str], measured: list[str]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "id", *varied, *measured])
    for point in points:
        found = point["summary"] or {}
        settings = [point["overrides"].get(key, "") for key in varied]
        writer.writerow([point["index"], point["id"], *settings, *(found.get(name, "") for name in measured)])
    workdirs.write_text(path, out.getvalue())


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


def main(argv: list[str] | None = None) -> int:
    folders = sys.argv[1:] if argv is None else argv
    if not folders or folders[0].startswith("-"):
        print("usage: python -m experiments.report WORKDIR [WORKDIR ...]")
        return 0 if folders else 2
    for folder in folders:
        if not os.path.isdir(folder):
            print(f"error: there is no folder {folder}", file=sys.stderr)
            return 2
        is_sweep = os.path.exists(os.path.join(folder, "sweep.json"))
        print(compare(folder) if is_sweep else build(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
