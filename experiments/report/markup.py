"""Pieces of the report's pages as HTML text: cells, tables, cards and the page around them."""

import html
import json
import pathlib
from collections.abc import Iterable
from typing import Any

MAX_ROWS = 200  # of a table
LONG = 120  # characters from which on a cell gets room

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


def table(name: str, found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    columns = list(dict.fromkeys(key for row in found for key in row))
    head = "".join(heading(c, [row.get(c) for row in found]) for c in columns)
    body = "".join("<tr>" + "".join(cell(row.get(c)) for c in columns) + "</tr>" for row in found[:MAX_ROWS])
    more = f'<p class="sub">{MAX_ROWS} of {len(found):,} rows</p>' if len(found) > MAX_ROWS else ""
    title = escape(name.replace("_", " "))
    return f'<h2>{title}</h2><div class="card wide"><table><tr>{head}</tr>{body}</table></div>{more}'


def grid(cards: list[str], css: str = "grid") -> str:
    return f'<div class="{css}">{"".join(cards)}</div>'


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="sub">{escape(subtitle)}</p>\n' + "\n".join(p for p in parts if p) + "\n</body></html>\n"
    )


def optional_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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
