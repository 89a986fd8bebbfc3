"""A hash of every file of a checkpoint, so that bits that flipped on a disk or a network are noticed.

Orbax restores arrays whose bytes have changed without a word. The hashes lie in `.digests/STEP.json` beside the
checkpoints; a checkpoint without one, as of a run killed just after it saved, is read as it is.
"""

import contextlib
import json
import pathlib
import threading

import xxhash

from alignment import files
from alignment.errors import InputError

FOLDER = ".digests"
PART = 1 << 22  # bytes hashed at a time; xxhash lets other threads run meanwhile

# Of each folder: the threads that write its hashes, with the event that says no checkpoint is on its way any more.
_writers: dict[pathlib.Path, list[tuple[threading.Thread, threading.Event]]] = {}


def follow(folder: pathlib.Path, step: int) -> None:
    """Hash the checkpoint of this step in a thread once it is complete, which is when its folder has its name."""
    if not files.is_first_process():
        return
    finish(folder, waits=False)  # Orbax begins a checkpoint when the one before it is complete, or has failed
    over = threading.Event()
    thread = threading.Thread(target=_write, args=(folder, step, over), daemon=True)
    _writers.setdefault(folder, []).append((thread, over))
    thread.start()


def finish(folder: pathlib.Path, *, waits: bool = True) -> None:
    """Until the hashes of all complete checkpoints are written; without `waits`, only say that no more is coming."""
    for thread, over in _writers.get(folder, []):
        over.set()
        if waits:
            thread.join()
    if waits:
        _forget(folder)  # Orbax removes an old checkpoint after the new one has its name, and so after its hashes began
    _writers[folder] = [(thread, over) for thread, over in _writers.get(folder, []) if thread.is_alive()]


def check(folder: pathlib.Path, step: int) -> None:
    """Compare a checkpoint with its hashes, on the first process of a run.

    Raises:
        InputError: with the first file that differs or is gone.
    """
    try:
        stored = json.loads((folder / FOLDER / f"{step}.json").read_text())
    except (OSError, ValueError):
        return
    if not files.is_first_process():
        return
    for name, digest in stored.items():
        path = folder / str(step) / name
        if not path.is_file() or _hash(path) != digest:
            raise InputError(
                f"checkpoint {folder / str(step)} cannot be read as it was written: the hash of {name} differs; copy "
                "it again, or remove that folder to go on from the checkpoint before it"
            )


def _write(folder: pathlib.Path, step: int, over: threading.Event) -> None:
    checkpoint = folder / str(step)
    while not checkpoint.is_dir() and not over.wait(0.02):
        pass
    with contextlib.suppress(OSError):  # the checkpoint is gone again, since newer ones replace it; or the disk is full
        paths = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        hashes = {path.relative_to(checkpoint).as_posix(): _hash(path) for path in paths}
        if hashes:
            files.write_json(folder / FOLDER / f"{step}.json", hashes)
        _forget(folder)


def _forget(folder: pathlib.Path) -> None:
    """Remove the hashes of checkpoints that are gone."""
    for old in (folder / FOLDER).glob("*.json"):
        if not (folder / old.stem).is_dir():
            old.unlink(missing_ok=True)


def _hash(path: pathlib.Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as f:
        while part := f.read(PART):
            digest.update(part)
    return digest.hexdigest()
