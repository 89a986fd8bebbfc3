"""python -m experiments.report WORKDIR [WORKDIR ...]"""

import os
import sys

from experiments.report import comparison, page


def main(argv: list[str] | None = None) -> int:
    """Build the page of each folder, a run's or a sweep's, and print where it is."""
    folders = sys.argv[1:] if argv is None else argv
    if not folders or folders[0].startswith("-"):
        print("usage: python -m experiments.report WORKDIR [WORKDIR ...]")
        return 0 if folders else 2
    for folder in folders:
        if not os.path.isdir(folder):
            print(f"error: there is no folder {folder}", file=sys.stderr)
            return 2
        is_sweep = os.path.exists(os.path.join(folder, "sweep.json"))
        print(comparison.compare_sweep(folder) if is_sweep else page.build(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
