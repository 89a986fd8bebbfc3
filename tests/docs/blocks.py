"""The commands and the Python that README.md, CONTRIBUTING.md and docs/ print, as things to run.

A fenced block names its language: `sh` and `python` are run; `text`, `json`, `jsonl` and `yaml` show what something
looks like and are not. A command in a line of text or a table counts where it begins with `python -m`. One comment, in
the line above a block, changes how it is run:

    <!-- test: with --config.steps=2 -->     the launcher's commands of the block get these flags as well
    <!-- test: not run, because REASON -->
"""

import dataclasses
import os
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, SHOWN = ("sh", "python"), ("text", "json", "jsonl", "yaml")
_NOTE = re.compile(r"<!-- test: (?:with (?P<flags>.+)|not run, because (?P<reason>.{8,})) -->")
_SPAN = re.compile(r"`(python -m [^`]+)`")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block, or one command in a line of text."""

    where: str  # page:line
    language: str
    text: str
    flags: tuple[str, ...] = ()
    reason: str = ""  # why it is not run

    def commands(self) -> list[list[str]]:
        """The words of each command; a backslash joins lines, `#` begins a comment, `$NAME` is of the environment."""
        lines = os.path.expandvars(self.text).replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(page: pathlib.Path) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a block without a language, a comment that is not understood, a fence that is not closed.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks, note, i = [], None, 0
    while i < len(lines):
        where, line = f"{page.relative_to(ROOT)}:{i + 1}", lines[i].strip()
        if line.startswith("<!-- test:"):
            note = _NOTE.fullmatch(line)
            if note is None or not lines[i + 1].strip().startswith("```"):
                raise ValueError(f"{where}: write {line} as tests/docs/blocks.py says, in the line above a block")
        elif line.startswith("```"):
            end = next((j for j in range(i + 1, len(lines)) if lines[j].strip() == "```"), None)
            if end is None or line[3:] not in RUN + SHOWN:
                raise ValueError(f"{where}: {line} needs an end and a language, one of {', '.join(RUN + SHOWN)}")
            indent = len(lines[i]) - len(lines[i].lstrip())
            text = "\n".join(row[indent:] for row in lines[i + 1 : end]) + "\n"
            flags, reason = (note["flags"] or "", note["reason"] or "") if note else ("", "")
            blocks.append(Block(where, line[3:], text, tuple(shlex.split(flags)), reason))
            note, i = None, end
        else:
            blocks += [Block(where, "sh", span[1].replace("\\|", "|")) for span in _SPAN.finditer(line)]
        i += 1
    return blocks
