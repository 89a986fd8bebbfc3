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

CSS = pathlib.Path(__file__).with_name("page.css").read_text(encoding="utf-8")


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
        f"<style>\n{CSS}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
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
