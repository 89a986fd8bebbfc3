"""What the launcher settles with the machine: other processes of the run, compiled programs, SIGTERM."""

import hashlib
import os
import pathlib
import platform
import sys
import types

from alignment.errors import InputError


class Terminated(BaseException):
    """SIGTERM arrived while no training loop was there to save; not an Exception, so that nothing swallows it."""


def on_sigterm(number: int, frame: types.FrameType | None) -> None:
    """Ask an active training loop to save and stop; without one, or the second time, end at once."""
    loop = sys.modules.get("alignment.train.loop")  # not imported here: it takes JAX along
    if loop is None or not loop.ACTIVE.is_set() or loop.STOP.is_set():
        raise Terminated
    loop.STOP.set()


def python_command() -> list[str]:
    """The start of a command that runs the launcher again, under this Python and with the same path."""
    return [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "experiments.run"]


def start_distributed(is_requested: bool) -> None:
    """Join a multi-host run, by flag or because the environment holds a coordinator's address.

    Without arguments JAX recognises Slurm, Open MPI, Cloud TPU and GKE by itself. Where all three of
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, JAX gets them.

    Raises:
        InputError: JAX could not learn how many processes there are.
    """
    if not is_requested and not os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return
    import jax

    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    numbers = {argument: int(os.environ[name]) for argument, name in names.items() if os.environ.get(name)}
    try:
        jax.distributed.initialize(**(numbers if len(numbers) == len(names) else {}))
    except ValueError as e:
        raise InputError(
            f"--distributed: {e} Start it with srun or mpirun, on a TPU slice, or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from e


def process_index() -> int:
    """Number of this process in a multi-host run; 0 without touching JAX when there is one process.

    `jax.process_index()` alone would start the accelerator, which a sweep's parent must leave to its points.
    """
    jax = sys.modules.get("jax")
    return jax.process_index() if jax is not None and jax.distributed.is_initialized() else 0


def devices() -> list[str]:
    """The accelerators of this process; nothing is started for it where JAX is not in use."""
    jax = sys.modules.get("jax")
    if jax is None:
        return []
    try:
        return [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]
    except RuntimeError:
        return []


def use_compilation_cache() -> None:
    """Keep compiled programs between starts, one folder for each kind of CPU, unless the environment says otherwise.

    A cached program is the very one that was compiled, so results do not depend on whether it came from the cache.
    """
    choice = os.environ.get("PLUMBLINE_JAX_CACHE", "")
    if choice.lower() in ("off", "0", "none") or "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    root = pathlib.Path(choice) if choice else pathlib.Path.home() / ".cache" / "plumbline" / "jax"
    try:
        folder = cache_folder(root)
    except OSError:  # no home, or a read-only one: compile again each time
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def cache_folder(root: pathlib.Path, limit_bytes: int = 4 * 2**30) -> pathlib.Path:
    """Make the folder for compiled programs on this kind of CPU, and remove its oldest entries past the limit.

    A program compiled for one kind of CPU may hold instructions that another lacks, so each kind has its folder.
    """
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
