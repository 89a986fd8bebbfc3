"""report.html: one self-contained page of a run.

Reads only what lies in the folder; needs neither JAX nor a network, and leaves out what is not there.
"""

import base64
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from alignment import files
from experiments.launch import workdir as workdirs
from experiments.report import charts, meanings
from experiments.report.markup import anchor, escape, explained, grid, number, optional_json, page, rows, table

SHOWN = 6  # pictures before the fold
MOST_FACTS = 16  # summary numbers before the fold
HALF_PAGE = 640  # pixels; a figure wider than this could not be read at half the page's width
NOT_PHASES = {"checkpoints", "tables", "figures", "export"}

Own = Mapping[str, meanings.Meaning]  # an experiment's own meanings, by metric


def build(workdir: str | os.PathLike) -> str:
    """Write the run's report.html and return its path."""
    folder = pathlib.Path(workdir)
    environment = optional_json(folder / "environment.json") or {}
    numbers = optional_json(folder / "summary.json") or {}
    sentence, own = about(folder)
    by_phase = [("", sections(folder, own)), *((phase.name, sections(phase, own)) for phase in phases(folder))]
    parts = [
        f'<p class="headline">{escape(sentence or headline(folder, numbers, own))}</p>',
        links(folder),
        summary(numbers, own),
        findings(folder / "findings.txt"),
    ]
    for phase, inner in by_phase:
        parts += [f"<h2>Phase: {escape(phase)}</h2>" if phase and inner else "", *inner]
    parts += [folded("Config", workdirs.flatten(optional_json(folder / "config.json") or {}))]
    parts += [folded("Environment", environment)]
    title = environment.get("experiment") or folder.resolve().name
    path = folder / "report.html"
    files.write_text(path, page(title, f"{folder.resolve().name} · {story(environment)}", parts))
    return str(path)


def about(folder: pathlib.Path) -> tuple[str, Own]:
    """The sentence and the meanings that the experiment left for its page."""
    content = optional_json(folder / "about.json") or {}
    own = {name: meanings.Meaning(*meaning) for name, meaning in content.get("metrics", {}).items()}
    return content.get("headline", ""), own


def headline(folder: pathlib.Path, numbers: Mapping[str, Any], own: Own) -> str:
    """What the run shows, in a sentence: the number that runs of its kind are best compared by, and where it began."""
    curves = charts.series(rows(folder / "metrics.jsonl"))
    last_step = max((curve[-1][0] for curve in curves.values()), default=None)
    lead = meanings.lead(numbers or curves, own)
    if lead is None:
        return "This run has left no number yet." if last_step is None else f"The run has reached step {last_step:,}."
    curve = curves.get(lead, [])
    value = numbers.get(lead, curve[-1][1] if curve else None)
    words = f"{lead} is {number(value)}"
    if len(curve) > 1:
        words += f" after {curve[-1][0]:,} steps, from {number(curve[0][1])} at step {curve[0][0]:,}"
    why = meanings.clause(lead, own)
    return f"{words} ({why})." if why else f"{words}."


def links(folder: pathlib.Path) -> str:
    """Where to go from here: the parts of this page, and the files and folders beside it."""
    tables = [path.stem for path in sorted(folder.glob("tables/*.jsonl")) if any(rows(path))]
    here = [(f"#{anchor(name)}", name.replace("_", " ")) for name in tables]
    there = []
    steps = sorted(int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit())
    if steps:
        there.append(("checkpoints", f"checkpoints (step {', '.join(map(str, steps))})"))
    there += [(f"export/{p.name}", f"export/{p.name}") for p in sorted(folder.glob("export/*")) if p.is_dir()]
    names = ("clean", "generations.jsonl", "metrics.jsonl", "summary.json", "config.json")
    names += ("bad_records.jsonl", "error.txt")
    there += [(name, name) for name in names if (folder / name).exists()]
    there += [(p.name, p.name) for p in sorted(folder.glob("*.csv"))]
    lines = []
    for title, items in (("Tables below", here), ("Files", there)):
        if items:
            words = " · ".join(f'<a href="{escape(href)}">{escape(text)}</a>' for href, text in items)
            lines.append(f"<p>{title}: {words}</p>")
    return f'<nav class="links">{"".join(lines)}</nav>' if lines else ""


def sections(folder: pathlib.Path, own: Own) -> list[str]:
    """Curves, pictures and tables of one folder; an empty part is left out."""
    parts = [curves(charts.series(rows(folder / "metrics.jsonl")), own)]
    parts.append(figures(sorted(folder.glob("figures/*.png"))))
    for path in sorted(folder.glob("tables/*.jsonl")):
        parts.append(table(path.stem, list(rows(path))))
    return [part for part in parts if part]


def phases(folder: pathlib.Path) -> list[pathlib.Path]:
    """Sub-folders shaped like a workdir: earlier phases of the same run, in the order they ended."""
    places = [p.parent for p in folder.glob("*/metrics.jsonl") if p.parent.name not in NOT_PHASES]
    return sorted(places, key=lambda p: ((p / "metrics.jsonl").stat().st_mtime, p.name))


def summary(numbers: Mapping[str, Any], own: Own) -> str:
    """The run's own numbers, each with what it means; what people look for first comes first, a part's loss last."""
    items, before = [], ""
    for name, value in sorted(numbers.items(), key=lambda item: (item[0].startswith("train/"), charts.rank(item[0]))):
        why = meanings.clause(name, own)
        small = f"<small>{escape(why)}</small>" if why and why != before else ""  # said once for a row of alike numbers
        before = why
        items.append(f"<dt>{explained(name)}{small}</dt><dd>{escape(number(value))}</dd>")
    if not items:
        return ""
    first, rest = items[:MOST_FACTS], items[MOST_FACTS:]
    fold = f"<details><summary>{len(rest)} more numbers</summary>{_facts(rest)}</details>" if rest else ""
    return f'<h2>Numbers</h2><div class="card">{_facts(first)}{fold}</div>'


def _facts(items: list[str]) -> str:
    return f'<dl class="facts">{"".join(f"<div>{item}</div>" for item in items)}</dl>'


def findings(path: pathlib.Path) -> str:
    """What the run says of its results, a line each, right under its numbers."""
    if not path.is_file():
        return ""
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f'<h2>Findings</h2><div class="card findings"><ul>{items}</ul></div>' if items else ""


def curves(series: Mapping[str, charts.Series], own: Own) -> str:
    """A picture for each quantity, with what it means; those past the first rows are folded, so tables stay in reach.

    What was logged only once makes no picture: it stands in the summary.
    """
    cards = []
    for name, inside in charts.group(series).items():
        if any(len(points) > 1 for points in inside.values()):
            picture = charts.svg(functools.partial(charts.draw, charts.lines(inside)), f"{name} over steps")
            cards.append(curve_card(name, picture, meanings.clause(name, own)))
    return f"<h2>Curves</h2>{grid(cards[:SHOWN])}{more(cards[SHOWN:])}" if cards else ""


def curve_card(title: str, picture: str, why: str) -> str:
    """A picture under its title and what it means."""
    meaning = f'<p class="meaning">{escape(why)}</p>' if why else ""
    return f'<div class="card curve"><h3>{explained(title)}</h3>{meaning}{picture}</div>'


def more(cards: list[str]) -> str:
    return f"<details><summary>{len(cards)} more curves</summary>{grid(cards)}</details>" if cards else ""


def figures(paths: list[pathlib.Path]) -> str:
    """Pictures with their captions; a wide one takes the page's width."""
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
    """A picture's width in pixels, from the file's header."""
    with open(path, "rb") as f:
        return int.from_bytes(f.read(24)[16:20], "big")


def folded(title: str, tree: Mapping[str, Any]) -> str:
    """A part that opens on a click; "" for an empty one."""
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
