"""What a run leaves in its folder besides its metrics: config, environment, summary, and the marks that guard them."""

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from alignment.errors import InputError

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


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a whole file or nothing: to a temporary name, to disk, then renamed."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; None where there is none."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as e:
        raise InputError(f"{path} cannot be read ({e}); use another --workdir, or remove this one to start over") from e


REFUSED_LEAVES = {"config.json", "environment.json", ".lock", "bad_records.jsonl"}  # files of a start that was refused


def check(workdir: str, config: Mapping[str, Any], experiment: str) -> None:
    """Refuse a folder that holds another run; reads only. What was refused before any work holds none.

    Raises:
        InputError: with the keys that differ, when the folder was started with another config or experiment.
    """
    if os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir} is a file; a run needs a folder of its own")
    there = read_json(os.path.join(workdir, "config.json"))
    if there is None or _was_refused(workdir):
        return
    lines = diff(there, config)
    before = (read_json(os.path.join(workdir, "environment.json")) or {}).get("experiment", experiment)
    if before != experiment:
        lines.insert(0, f"experiment: {before!r} there, {experiment!r} now")
    if lines:
        changes = "\n".join(f"  {line}" for line in lines)
        raise InputError(
            f"{workdir} already holds a run with another config:\n{changes}\n"
            "Give this run a --workdir of its own, go back to the values there, or remove that folder to start over."
        )


def _was_refused(workdir: str) -> bool:
    """Whether every start here ended with something to put right, and left nothing but what says so."""
    starts = (read_json(os.path.join(workdir, "environment.json")) or {}).get("starts", [])
    is_refused = bool(starts) and all(start.get("outcome") == "refused" for start in starts)
    return is_refused and REFUSED_LEAVES.issuperset(os.listdir(workdir))


def is_done(workdir: str | os.PathLike) -> bool:
    return os.path.exists(os.path.join(workdir, "DONE"))


def make(workdir: str) -> None:
    """Create the folder, or say in one line why that cannot be."""
    try:
        os.makedirs(workdir, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except (PermissionError, FileExistsError, NotADirectoryError) as e:
        raise InputError(f"--workdir={workdir} cannot be written ({e.strerror}); choose a folder of your own") from e


def lock(workdir: str):
    """Hold the folder for this process until it ends, however it ends; keep the returned file open.

    A POSIX record lock: the kernel drops it with the process, and forked data workers do not inherit it.
    """
    handle = open(os.path.join(workdir, ".lock"), "a+")  # noqa: SIM115  (open for as long as the process lives)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as e:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise InputError(
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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"python": platform.python_version()} | found


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


def devices() -> list[str]:
    """The accelerators this process saw; only asked once JAX is in use, so that nothing is started for it."""
    jax = sys.modules.get("jax")
    if jax is None:
        return []
    try:
        return [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]
    except RuntimeError:
        return []


def begin(workdir: str, experiment: str, argv: list[str]) -> dict[str, Any]:
    """Append this start to environment.json; `finish` completes the record. One without `finished` was killed."""
    path = os.path.join(workdir, "environment.json")
    record = (read_json(path) or {"starts": []}) | {"experiment": experiment}
    start = {
        "started": now(),
        "command": ["python", "-m", "experiments.run", *argv],
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions(),
        "git": git(),
    }
    record["starts"].append(start)
    write_json(path, record)
    return record


def finish(workdir: str, record: dict[str, Any], outcome: str, seconds: float, is_used: bool = True) -> None:
    """Complete the last start of `record`: how it ended, after how many seconds, on which devices."""
    record["starts"][-1] |= {"finished": now(), "seconds": round(seconds, 3), "outcome": outcome}
    if is_used:
        record["starts"][-1]["devices"] = devices()
    write_json(os.path.join(workdir, "environment.json"), record)


def numbers(returned: Any) -> dict[str, int | float | None]:
    """What `run` returned, as summary.json keeps it: flat, name to number; not-a-number and infinities become null."""
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


def cache_folder(root: pathlib.Path, limit_bytes: int = 4 * 2**30) -> pathlib.Path:
    """The folder for compiled programs on this kind of CPU, made, and trimmed of its oldest entries past the limit."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        kind = platform.processor()
    folder = root / f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    entries = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in folder.glob("*-cache")), reverse=True)
    total = 0
    for _, size, entry in entries:
        total += size
        if size == 0 or total > limit_bytes:  # size 0: its writer was killed
            entry.unlink(missing_ok=True)
    return folder
