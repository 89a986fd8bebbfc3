"""One file an experiment: its config, its sweep, its run."""

import importlib.util
import pathlib
import sys


def _hidden_package() -> str:
    """Say which file or folder of somebody else's Python would import in the place of our own; "" where none is."""
    root = pathlib.Path(__file__).resolve().parent.parent
    for name in ("alignment", "data"):
        spec = importlib.util.find_spec(name)
        places = [pathlib.Path(p).resolve() for p in spec.submodule_search_locations or [spec.origin]] if spec else []
        if root / name not in places:
            culprit = f"{places[0]} hides Plumbline's package {name!r}" if places else f"there is no package {name!r}"
            return (
                f"{culprit}, which lies in {root}. Start from another folder, or as `python -P -m experiments.run`, "
                "which leaves the current folder out of Python's path; or give that file another name"
            )
    return ""


if _message := _hidden_package():
    if sys.argv[:1] == ["-m"]:  # Python is still locating `-m experiments.run`: one message, as for all bad input
        print(f"error: {_message}", file=sys.stderr)
        sys.exit(2)
    raise ImportError(_message)
