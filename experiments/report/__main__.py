"""Build the page of a run or a sweep again, or a page that compares runs."""

import argparse
import importlib
import pathlib
import sys

from alignment.errors import InputError
from experiments.launch import config as configs
from experiments.report import comparison, markup, page

USAGE = """
python -m experiments.report runs/dpo                   the page of a run, finished or not, or of a sweep
python -m experiments.report runs/a runs/b runs/sweep   a page that compares runs and points of sweeps
"""


def main(argv: list[str] | None = None) -> int:
    """Print where the page is; exit code 2 where a folder is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", epilog=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="WORKDIR", type=pathlib.Path)
    parser.add_argument(
        "--out", metavar="PAGE", help="where the comparison goes; default comparison.html in their common folder"
    )
    options = parser.parse_args(argv)
    try:
        for folder in options.folders:
            if not folder.is_dir():
                raise InputError(f"there is no folder {folder}")
        if len(options.folders) > 1 or options.out:
            print(comparison.compare_runs(options.folders, options.out or ""))
        elif (options.folders[0] / "sweep.json").is_file():
            compare_by_experiment(options.folders[0])
            print(comparison.compare_sweep(options.folders[0]))
        else:
            print(page.build(options.folders[0]))
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def compare_by_experiment(folder: pathlib.Path) -> None:
    """Let one of our experiments write its own tables over a sweep's points, where it defines `compare(folder)`."""
    name = (markup.optional_json(folder / "sweep.json") or {}).get("experiment", "")
    source = configs.HOME / f"{name}.py"
    if source.is_file() and "compare" in source.read_text(
        encoding="utf-8"
    ):  # others are not imported: it takes seconds
        compare = getattr(importlib.import_module(f"experiments.{name}"), "compare", None)
        if compare is not None:
            compare(folder)


if __name__ == "__main__":
    sys.exit(main())
