"""Pieces of the report's pages as HTML text: cells, tables, cards and the page around them."""

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

MAX_ROWS = 200  # of a table
TOKENS = "tokens"  # a cell of a table {TOKENS: [(text, log-probability), ...]} is written by `coloured`
UNLIKELY = 6.0  # nats; a token this unlikely has the full colour
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
h3 { font-size: .9rem; margin: 0 0 .1rem; font-weight: 600; overflow-wrap: anywhere; }
p.sub { color: var(--soft); margin: .2rem 0 1.2rem; overflow-wrap: anywhere; }
p.headline { font-size: 1.2rem; line-height: 1.45; margin: 1rem 0; max-width: 62rem; overflow-wrap: anywhere; }
nav.links { color: var(--soft); font-size: .88rem; overflow-wrap: anywhere; } nav.links p { margin: .15rem 0; }
nav.links a { color: var(--ink); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: .9rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .95rem;
        min-width: 0; }
.card svg { display: block; width: 100%; height: auto; }
.curve { display: flex; flex-direction: column; } .curve svg { margin-top: auto; }
p.meaning, small { color: var(--soft); font-size: .8rem; line-height: 1.35; margin: 0 0 .4rem; font-weight: 400; }
dl { margin: 0; } dl.facts { columns: 2 400px; column-gap: 2.5rem; column-rule: 1px solid var(--line); }
dl.facts > div { display: flex; gap: 1rem; justify-content: space-between; align-items: baseline;
                 break-inside: avoid; padding: .25rem 0; }
dt { overflow-wrap: anywhere; min-width: 0; } dt small { display: block; margin: 0; }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
.wide { overflow: auto; padding: 0; } .tall { max-height: 34rem; }
table { border-collapse: collapse; font-size: .88rem; } td.links { min-width: 6.5rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; } tr:last-child td { border-bottom: 0; }
.tall th { position: sticky; top: 0; background: var(--card); z-index: 1; box-shadow: inset 0 -1px var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td.short { white-space: nowrap; }
td div { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto; min-width: 4rem; }
td.best { color: var(--best); font-weight: 650; } td.number small { margin-left: .3em; }
.findings ul { margin: 0; padding-left: 1.2rem; } .findings li { margin: .25rem 0; overflow-wrap: anywhere; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); align-items: start;
         grid-auto-flow: dense; }
.full { grid-column: 1 / -1; } td.long div { min-width: 22rem; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
figcaption { color: var(--soft); font-size: .88rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: .8rem; } details .grid { margin-top: .8rem; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: inherit; }
@media (max-width: 600px) { body { padding: 1.2rem .8rem 3rem; } td.long div { min-width: 15rem; } }
"""


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def explained(name: str) -> str:
    """A metric's or key's name, escaped, that may break after its slashes and dots."""
    return escape(name).replace("/", "/<wbr>").replace(".", ".<wbr>").replace("_", "_<wbr>")


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


def heading(name: str, values: Iterable[Any], title: str = "") -> str:
    """A column's name, over the numbers if it holds only numbers; `title` appears under the pointer."""
    css = ' class="number"' if all(map(is_number, values)) else ""
    hint = f' title="{escape(title)}"' if title else ""
    return f"<th{css}{hint}>{explained(name)}</th>"


def cell(value: Any, css: str = "", spread: str = "") -> str:
    """A cell of a table; `spread` follows a number in small type."""
    if is_number(value):
        small = f"<small>{escape(spread)}</small>" if spread else ""
        return f'<td class="{f"number {css}".strip()}">{escape(number(value))}{small}</td>'
    if isinstance(value, dict) and set(value) == {TOKENS}:
        return f'<td class="long"><div>{coloured(value[TOKENS])}</div></td>'
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    css = f"{css} long".strip() if len(text) >= LONG else css
    return f'<td class="{css}"><div>{escape(text)}</div></td>'


def coloured(tokens: Iterable[tuple[str, float]]) -> str:
    """A text whose parts are the darker the less likely they were; each shows its log-probability under the pointer."""
    spans = []
    for text, logprob in tokens:
        strength = 0.75 * min(-logprob / UNLIKELY, 1.0)
        spans.append(
            f'<span style="background:rgba(214,110,40,{strength:.2f})" title="{logprob:.2f}">{escape(text)}</span>'
        )
    return "".join(spans)


def anchor(name: str) -> str:
    """The id of a table's heading."""
    return "table-" + "".join(c if c.isalnum() else "-" for c in name)


def table(name: str, entries: Sequence[dict[str, Any]]) -> str:
    """Entries as rows under a heading; "" for none, and a note where not all of them are shown."""
    if not entries:
        return ""
    columns = list(dict.fromkeys(key for row in entries for key in row))
    head = "".join(heading(c, [row.get(c) for row in entries]) for c in columns)
    body = "".join("<tr>" + "".join(cell(row.get(c)) for c in columns) + "</tr>" for row in entries[:MAX_ROWS])
    note = f'<p class="sub">{MAX_ROWS} of {len(entries):,} rows</p>' if len(entries) > MAX_ROWS else ""
    title = f'<h2 id="{anchor(name)}">{escape(name.replace("_", " "))}</h2>'
    return f'{title}<div class="card wide"><table><tr>{head}</tr>{body}</table></div>{note}'


def grid(cards: list[str], css: str = "grid") -> str:
    return f'<div class="{css}">{"".join(cards)}</div>'


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole page, which loads nothing from anywhere."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="sub">{escape(subtitle)}</p>\n' + "\n".join(p for p in parts if p) + "\n</body></html>\n"
    )


def optional_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; None where it is missing or damaged."""
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
