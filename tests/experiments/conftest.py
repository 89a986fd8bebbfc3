"""Finished `tiny` runs, each made once and read by many tests."""

import contextlib
import dataclasses
import io
import pathlib

import pytest

from experiments import run

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a call of the launcher ended."""

    code: int
    out: str
    err: str
    workdir: pathlib.Path


def launch(target: str, workdir, *flags: str) -> Ended:
    """The launcher in this process on `dpo.py:tiny`, say, with what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run.main(["--config", str(ROOT / "experiments" / target), "--workdir", str(workdir), *flags])
    return Ended(code, out.getvalue(), err.getvalue(), pathlib.Path(workdir))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function: an experiment's name -> its finished `tiny` run. Read it, copy it, never write in it."""
    made = {}

    def finished(name: str) -> Ended:
        if name not in made:
            made[name] = launch(f"{name}.py:tiny", tmp_path_factory.mktemp(name) / "run")
        return made[name]

    return finished
