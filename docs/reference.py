"""What the site has beyond docs/: the reference, and the pages of the repository that docs/ links to.

The reference has a page for each room and a section for each module in it; mkdocstrings fills in what the docstrings
say, without importing the code. MkDocs calls the functions that begin with `on_`.
"""

import ast
import pathlib
import re

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
    sections = "\n\n".join(f"::: {module}" for module in modules)
    return f"# {room}\n\n{about}\n\n{sections}\n"


def on_files(files, *, config):
    for room, modules in rooms().items():
        files.append(File.generated(config, f"reference/{room}.md", content=page(room, modules)))
    for path in ("CONTRIBUTING.md", "benchmarks/RESULTS.md", *linked("benchmarks/RESULTS.md")):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def linked(page: str) -> list[str]:
    """The files of its own folder that a page of the repository links to."""
    folder = pathlib.Path(page).parent
    names = re.findall(r"\]\(([^):#]+)\)", (ROOT / page).read_text("utf-8"))
    return sorted({str(folder / name) for name in names})


def on_page_markdown(markdown, **_):
    """Links between docs/ and the rest of the repository; in the site both lie in one folder."""
    return re.sub(r"\]\((?:\.\./(?=benchmarks/|CONTRIBUTING)|docs/)", "](", markdown)


def on_config(config):
    """The reference and the repository's own pages stand last in the navigation."""
    measured = ["benchmarks/RESULTS.md", *(path for path in linked("benchmarks/RESULTS.md") if path.endswith(".md"))]
    config.nav = [*config.nav, {"Measured": measured}, {"Contributing": "CONTRIBUTING.md"}]
    config.nav += [{"Reference": [f"reference/{room}.md" for room in rooms()]}]
    return config
