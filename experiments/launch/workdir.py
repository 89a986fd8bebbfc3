"""What a run leaves in its folder besides its metrics: config, environment, summary, and the marks that guard them."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, TextIO

import ml_collections

from alignment import errors, files
from alignment.errors import InputError
from experiments.launch import full_disk, host

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "ml-collections",
    "numpy",
    "tensorflow-datasets",
)


def plain(value: Any) -> Any:
    """A config value as JSON gives it back: tuples are lists, numpy numbers are numbers, inf and nan are strings."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.copy_and_resolve_references().to_dict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted keys; an empty dict stays a leaf."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def diff(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One readable line for each dotted key on which two plain configs disagree; the order of keys does not matter."""
    old, new = flatten(there), flatten(now)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if key not in new:
            lines.append(f"{key}: {old[key]!r} there, no such key now")
        elif key not in old:
            lines.append(f"{key}: no such key there, {new[key]!r} now")
        elif old[key] != new[key]:
            lines.append(f"{key}: {old[key]!r} there, {new[key]!r} now")
    return lines


def read_json(path: str | os.PathLike) -> Any:
    """The object of a JSON file; None where there is none."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as e:
        raise InputError(f"{path} cannot be read ({e}); use another --workdir, or remove this one to start over") from e


# What a start leaves that was refused before it trained: the launcher's own files, and what an experiment writes first.
REFUSED_LEAVES = {"config.json", "environment.json", ".lock", "bad_records.jsonl"}
BEGINNINGS = {"model.json", "adapter.json", "tokenizer", "reference", "tables", "before.jsonl", "run_id", "error.txt"}

OF_ONE_START = ("redo:",)  # keys that ask something of a start alone; the run stays the same without them


@dataclasses.dataclass(frozen=True)
class Before:
    """What a workdir holds of earlier starts.

    Attributes:
        goes_on: a run of fewer steps, finished or not, whose state this one goes on from.
        is_refused: only starts that were refused before any training; what they left may go.
        said: what a person should read about it.
    """

    goes_on: bool = False
    is_refused: bool = False
    said: tuple[str, ...] = ()


def check(workdir: str, config: Mapping[str, Any], experiment: str, defaults: Mapping[str, Any]) -> Before:
    """Refuse a folder that holds another run; reads only.

    A run that was refused before any work does not count, larger `steps` go on from where that run is, and a key that
    the code has gained since does not count while it has its default.

    Raises:
        InputError: with the keys that differ, when the folder was started with another config or experiment.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir} is a file; a run needs a folder of its own")
    there = read_json(os.path.join(workdir, "config.json"))
    if there is None:
        return Before()
    before = (read_json(os.path.join(workdir, "environment.json")) or {}).get("experiment", experiment)
    old, new, usual = flatten(there), flatten(config), flatten(defaults)
    gained = [key for key in sorted(new.keys() - old.keys()) if key in usual and new[key] == usual[key]]
    said = [f"{key} is newer than this run, which takes its default, {new[key]!r}" for key in gained]
    old |= {key: new[key] for key in gained}
    first, last = old.get("steps"), new.get("steps")
    goes_on = isinstance(first, int) and isinstance(last, int) and 0 < first < last
    if goes_on:  # with the leaves that follow `steps`, as the length of a schedule does
        raised = [key for key in old.keys() & new.keys() if (old[key], new[key]) == (first, last)]
        said.append(f"this run goes on from {first} steps to {last}; {', '.join(sorted(raised))} are now {last}")
        old |= dict.fromkeys(raised, last)
    lines = [line for line in diff(old, new) if not line.startswith(OF_ONE_START)]
    if before != experiment:
        lines.insert(0, f"experiment: {before!r} there, {experiment!r} now")
    if not lines:
        return Before(goes_on=goes_on, said=tuple(said))
    if was_refused(workdir):
        return Before(is_refused=True)
    changes = "\n".join(f"  {line}" for line in lines)
    raise InputError(
        f"{workdir} already holds a run with another config:\n{changes}\n"
        "Give this run a --workdir of its own, go back to the values there, or remove that folder to start over."
    )


def check_server(workdir: str, experiment: str) -> Before:
    """Refuse the folder of a run; a server may start in a folder of its own again with any config.

    Raises:
        InputError: with the experiment whose folder it is.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir} is a file; a server needs a folder of its own")
    before = (read_json(os.path.join(workdir, "environment.json")) or {}).get("experiment", experiment)
    if before != experiment:
        raise InputError(f"{workdir} already holds a run of {before}; give {experiment} a --workdir of its own")
    return Before()


def was_refused(workdir: str) -> bool:
    """Whether every start here ended with something to put right before it had trained or written results."""
    starts = (read_json(os.path.join(workdir, "environment.json")) or {}).get("starts", [])
    return bool(starts) and all(start.get("outcome") == "refused" for start in starts) and _only_begun(workdir)


def _only_begun(folder: str | os.PathLike) -> bool:
    """Whether a folder, or that of a first phase or of the best state in it, holds no trained step, at most step 0."""

    def is_beginning(path: pathlib.Path) -> bool:
        if path.name == "metrics.jsonl":
            steps = {row.get("step") for row, _ in files.whole_rows(path)}
            return steps == {0} or not path.stat().st_size  # what no row can be read from is somebody's work
        if path.name == "checkpoints":  # a half-written one's name goes on behind a point
            return all(step.name.partition(".")[0] == "0" for step in path.glob("[0-9]*"))
        if path.name in ("best", "pretrain"):
            return path.is_dir() and _only_begun(path)
        return path.name in REFUSED_LEAVES | BEGINNINGS or path.name.startswith("events.out.tfevents.")

    return all(map(is_beginning, pathlib.Path(folder).iterdir()))


def clear(workdir: str) -> None:
    """Remove what refused starts of another config began, but for the record of those starts."""
    for path in pathlib.Path(workdir).iterdir():
        if path.name not in REFUSED_LEAVES - {"bad_records.jsonl"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def reopen(workdir: str) -> None:
    """Make a finished run an unfinished one, which then goes on from its last checkpoint."""
    pathlib.Path(workdir, "DONE").unlink(missing_ok=True)


def is_done(workdir: str | os.PathLike) -> bool:
    return os.path.exists(os.path.join(workdir, "DONE"))


def make(workdir: str) -> None:
    """Create the folder.

    Raises:
        InputError: it cannot be made or written in, and why.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as e:  # no permission, a file in its way, a name too long, a disk that is read-only
        if full_disk.is_full_disk(e):
            raise
        raise InputError(f"--workdir={workdir} cannot be written ({e.strerror}); choose a folder of your own") from e


def remove_unused(workdir: str) -> None:
    """Remove a folder that this start made and did nothing in."""
    pathlib.Path(workdir, ".lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds more: another host's files
        os.rmdir(workdir)


def lock(workdir: str) -> TextIO:
    """Hold the folder for this process until it ends, however it ends; keep the returned file open.

    A POSIX record lock: the kernel drops it with the process, and forked data workers do not inherit it.

    Raises:
        Stopped: another process holds it, and may be about to end, as the killed start that a scheduler replaces.
    """
    handle = open(os.path.join(workdir, ".lock"), "a+")  # noqa: SIM115  (open for as long as the process lives)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as e:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise errors.Stopped(
            f"{workdir} is in use by another process ({owner}); wait for it or choose another --workdir"
        ) from e
    except OSError as e:  # a file system without locks
        print(f"warning: {workdir} cannot be locked ({e}); do not start it twice", file=sys.stderr)
        return handle
    handle.truncate(0)
    handle.write(f"pid {os.getpid()} on {platform.node()}")
    handle.flush()
    return handle


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str | None]:
    """Python's version and that of each package that decides about a run's numbers; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git() -> dict[str, Any] | None:
    """Commit of the code that runs, and whether tracked files were changed since; None outside a checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed copy, perhaps inside somebody else's repository
        return None

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "is_dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


class Record:
    """What environment.json says of this start of a run: its command and versions now, later how it ended.

    A start without `outcome` in that file was killed.
    """

    def __init__(self, workdir: str, experiment: str, config: Mapping[str, Any], argv: list[str]):
        self._workdir, self._experiment, self._config, self._argv = workdir, experiment, config, argv
        self._content: dict[str, Any] | None = None

    def begin(self) -> None:
        """Write config.json and append this start to environment.json."""
        files.write_json(os.path.join(self._workdir, "config.json"), self._config)
        earlier = read_json(os.path.join(self._workdir, "environment.json")) or {"starts": []}
        start = {
            "started": now(),
            "command": ["python", "-m", "experiments.run", *self._argv],
            "host": platform.node(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "versions": versions(),
            "git": git(),
        }
        self._content = earlier | {"experiment": self._experiment, "starts": [*earlier["starts"], start]}
        self._write()

    def end(self, outcome: str, seconds: float) -> None:
        """Complete this start: how it ended, after how many seconds, on which devices."""
        if self._content is None:
            return
        start = self._content["starts"][-1]
        start |= {"finished": now(), "seconds": round(seconds, 3), "outcome": outcome}
        if outcome != "refused":  # a refused run may not have started its devices
            start["devices"] = host.devices()
        self._write()

    def _write(self) -> None:
        files.write_json(os.path.join(self._workdir, "environment.json"), self._content)


def numbers(returned: Any) -> dict[str, int | float | None]:
    """Make a summary of what `run` returned: name to number; not-a-number and infinities become None (null)."""
    if not isinstance(returned, Mapping):
        raise TypeError(f"run() returned {type(returned).__name__}; the launcher needs a flat dict of name to number")
    flat = {}
    for name, value in returned.items():
        value = value.item() if hasattr(value, "item") else value
        if value is not None and not isinstance(value, (bool, int, float)):
            raise TypeError(f"run() returned {name}={value!r}; the summary holds numbers only")
        if isinstance(value, bool):
            value = int(value)
        flat[str(name)] = None if value is None or not math.isfinite(value) else value
    return flat
