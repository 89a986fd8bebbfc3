"""Build the page of a run or a sweep again, or a page that compares runs."""

import argparse
import pathlib
import sys

from alignment.errors import InputError
from experiments.report import comparison, page

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
            print(comparison.compare_sweep(options.folders[0]))
        else:
            print(page.build(options.folders[0]))
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
