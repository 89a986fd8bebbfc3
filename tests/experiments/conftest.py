"""Finished `tiny` runs, each made once and read by many tests."""

import contextlib
import dataclasses
import fcntl
import io
import os
import pathlib
import pickle

import pytest
from matplotlib.figure import Figure

from experiments import run
from experiments.report import charts, pictures

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a call of the launcher ended."""

    code: int
    out: str
    err: str
    workdir: pathlib.Path


def launch(target: str, workdir, *flags: str, draws: bool = False) -> Ended:
    """The launcher in this process on `dpo.py:tiny`, say, with what it printed.

    Args:
        draws: whether its page and figures show anything; drawing takes longer than a small run's training. Parts of a
            figure may overlap even then: to lay them out takes as long again, and tests/experiments/report does it.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        if draws:
            patch.setattr(Figure, "savefig", save_roughly)
        else:
            patch.setattr(charts, "svg", lambda figure_fn, alt: "<svg></svg>")
            patch.setattr(pictures, "save", save_nothing)
        code = run.main(["--config", str(ROOT / "experiments" / target), "--workdir", str(workdir), *flags])
    return Ended(code, out.getvalue(), err.getvalue(), pathlib.Path(workdir))


def save_roughly(self: Figure, *args, savefig=Figure.savefig, **options) -> None:
    self.set_layout_engine("none")
    savefig(self, *args, **options)


def save_nothing(figure, path, caption: str) -> None:
    """A picture's two files, without the picture."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if caption:
        path.with_suffix(".txt").write_text(caption)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function: an experiment's name -> its finished `tiny` run. Read it, copy it, never write in it.

    The processes of pytest-xdist share the runs: the first to need one makes it, while others wait for its lock.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"

    def finished(name: str) -> Ended:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = folder / "ended.pickle"
            if not made.exists():
                made.write_bytes(pickle.dumps(launch(f"{name}.py:tiny", folder / "run", draws=True)))
            return pickle.loads(made.read_bytes())

    return finished
