"""The reference pages, made while the site is built: a page for each room, a section for each module in it.

MkDocs calls `on_files` and `on_nav`; mkdocstrings fills in what the docstrings say, without importing the code.
"""

import ast
import pathlib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOPS = ("alignment", "data")


def rooms() -> dict[str, list[str]]:
    """{room: its modules}, such as {"alignment.preference": ["alignment.preference.losses", ...]}."""
    found: dict[str, list[str]] = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            if path.name != "__init__.py":
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return dict(sorted(found.items()))


def page(room: str, modules: list[str]) -> str:
    about = ast.get_docstring(ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text("utf-8"))) or ""
    sections = "\n\n".join(f"## {module.rpartition('.')[2]}\n\n::: {module}" for module in modules)
    return f"# {room}\n\n{about}\n\n{sections}\n"


def on_files(files, *, config):
    for room, modules in rooms().items():
        files.append(File.generated(config, f"reference/{room}.md", content=page(room, modules)))
    return files


def on_config(config):
    """The reference stands last in the navigation."""
    config.nav = [*config.nav, {"Reference": [f"reference/{room}.md" for room in rooms()]}]
    return config
