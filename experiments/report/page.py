"""report.html: one self-contained page of a run.

Reads only what lies in the folder; needs neither JAX nor a network, and leaves out what is not there.
"""

import base64
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from alignment import files
from experiments.launch import workdir as workdirs
from experiments.report import charts
from experiments.report.markup import escape, grid, number, optional_json, page, rows, table

SHOWN = 6  # pictures before the fold
HALF_PAGE = 640  # pixels; a figure wider than this could not be read at half the page's width
SKIPPED = {"checkpoints", "tables", "figures", "export"}


def build(workdir: str | os.PathLike) -> str:
    """Write the run's report.html and return its path."""
    folder = pathlib.Path(workdir)
    environment = optional_json(folder / "environment.json") or {}
    parts = [summary(optional_json(folder / "summary.json") or {}), findings(folder / "findings.txt")]
    parts += sections(folder)
    for phase in phases(folder):
        inner = sections(phase)
        if inner:
            parts += [f"<h2>Phase: {escape(phase.name)}</h2>", *inner]
    parts += [folded("Config", workdirs.flatten(optional_json(folder / "config.json") or {}))]
    parts += [folded("Environment", environment)]
    title = environment.get("experiment") or folder.resolve().name
    path = folder / "report.html"
    files.write_text(path, page(title, f"{folder.resolve().name} · {story(environment)}", parts))
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


def more(cards: list[str]) -> str:
    return f"<details><summary>{len(cards)} more curves</summary>{grid(cards)}</details>" if cards else ""


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
