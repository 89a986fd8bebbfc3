"""What the launcher settles with the machine: other processes of the run, compiled programs, signals."""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import secrets
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from alignment import errors
from alignment.errors import InputError
from experiments.launch import peers

STOPPED = peers.LOST  # exit code of a run that goes on when the same command is started again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # schedulers send any of them before they kill
TWICE = 2.0  # seconds within which several signals are one request: a scheduler may send it to a group and to its parts
SHARED_WAIT = 20.0  # seconds that another host's file may take to appear: network file systems cache their folders
ABORT_WAIT = (
    5.0  # seconds in which the death of a peer explains an abort; the watch may wait for its turn on a busy host
)
ASK_AGAIN = 3.0  # seconds after which a stop that nobody acted on is asked for again
JOIN_TIMEOUT = 300  # seconds in which all processes of a run must have started

_watch: peers.Watch | None = None
_is_joining = False
_has_threads = False
_stop_asked_at = 0.0
_stop_number = int(signal.SIGTERM)


class Terminated(BaseException):
    """A stop signal arrived while no training loop was there to save; not an Exception, so that nothing swallows it."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(signal.Signals(number).name)


def on_stop_signal(number: int, frame: types.FrameType | None) -> None:
    """Ask an active training loop to save and stop; without one, or the second time, end at once.

    The exception that ends a run may be raised where it is swallowed: in a destructor, in a callback from a library's
    C code. An alarm then asks again, until the run has ended or a loop has been asked.
    """
    global _stop_asked_at, _stop_number
    if number == signal.SIGALRM:
        number = _stop_number
    _stop_number = number
    loop = sys.modules.get("alignment.train.loop")  # not imported here: it takes JAX along
    if loop is None or not loop.ACTIVE.is_set():
        signal.setitimer(signal.ITIMER_REAL, ASK_AGAIN)
        raise Terminated(number)
    now = time.monotonic()
    if loop.STOP.is_set():
        if now - _stop_asked_at > TWICE:
            raise Terminated(number)
        return
    _stop_asked_at = now
    loop.STOP.set()


class PeerEnded(Exception):
    """Another process of this run ended before its time, so this one cannot go on."""

    def __init__(self, ended: peers.Ended):
        super().__init__(str(ended))
        self.code = ended.follow()


def stop_is_heard() -> None:
    """Ask no more: the run is ending."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Handle the stop signals within the context; one that is ignored, as SIGHUP under nohup, stays ignored."""
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, on_stop_signal)
    try:
        yield
    finally:
        stop_is_heard()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop_at_once() -> None:
    """End with STOPPED on a stop signal until `stop_signals` begins: nothing has been done that could be lost."""

    def end(number: int, frame: types.FrameType | None) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}; start the same command again to go on\n".encode())
        os._exit(STOPPED)

    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def python_command() -> list[str]:
    """The start of a command that runs the launcher again, under this Python and with the same path."""
    return [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "experiments.run"]


def is_joined(is_requested: bool) -> bool:
    """Whether this process joins others: by flag, or because the environment holds a coordinator's address."""
    return is_requested or bool(os.environ.get("JAX_COORDINATOR_ADDRESS"))


def start_distributed(is_requested: bool) -> None:
    """Join a multi-host run, by flag or because the environment holds a coordinator's address.

    Without arguments JAX recognises Slurm, Open MPI, Cloud TPU and GKE by itself. Where all three of
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are set, JAX gets them.

    Raises:
        InputError: JAX could not learn how many processes there are.
        Stopped: not all of them came in time.
    """
    global _watch, _is_joining
    if not is_joined(is_requested):
        return
    import jax

    # JAX's preemption service would take SIGTERM away from the launcher, and nothing here asks it.
    jax.config.update("jax_enable_preemption_service", False)
    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    numbers = {argument: int(os.environ[name]) for argument, name in names.items() if os.environ.get(name)}
    arguments: dict[str, Any] = numbers if len(numbers) == len(names) else {}
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(**arguments)
        except Exception as e:
            failures.append(e)

    # In a thread of its own, because Python runs no signal handler while the main thread waits inside JAX.
    thread = threading.Thread(target=initialize, daemon=True)
    _is_joining = True  # until the watch begins: an end in between must not wait for JAX's other processes either
    peers.answer_abort(follow_at_abort)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failures and isinstance(failures[0], ValueError):
        _is_joining = False
        raise InputError(
            f"--distributed: {failures[0]} Start it with srun or mpirun, on a TPU slice, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from failures[0]
    if failures:
        raise errors.Stopped(
            f"--distributed: not all processes of this run came together within {JOIN_TIMEOUT} seconds "
            f"({str(failures[0]).splitlines()[0][:200]})"
        ) from failures[0]
    if jax.process_count() > 1:
        from jax._src import distributed

        state = distributed.global_state
        _watch = peers.join(state.client, jax.process_index(), jax.process_count(), state.coordinator_address)
    _is_joining = False


def follow_at_abort() -> None:
    """End as after a peer's death where it explains why JAX aborts this process; otherwise return."""
    if _watch is not None:
        _watch.follow(ABORT_WAIT)
    elif _is_joining:  # JAX's service, which runs in the first process, has gone
        print("stopped: another process of this run ended while they came together", file=sys.stderr, flush=True)
        os._exit(peers.LOST)


def peer_trouble(wait: float = 0.0) -> peers.Ended | None:
    """The process of this run that ended before its time, if one does so within `wait` seconds."""
    return None if _watch is None else _watch.trouble(wait)


def follow_peers(wait: float = 0.0) -> None:
    """Raise PeerEnded if another process of the run ended before its time, or does so within `wait` seconds."""
    if ended := peer_trouble(wait):
        raise PeerEnded(ended)


def at_forced_end(last_words: Callable[[], Any]) -> None:
    """What to call before this process is ended because another was."""
    if _watch is not None:
        _watch.last_words = last_words


def leave(code: int, why: str) -> None:
    """Tell the other processes of the run that this one ends, and how."""
    if _watch is not None:
        _watch.end(code, why)


def abandon_threads() -> None:
    """Let the process end without its threads, one of which may be in the middle of a computation."""
    global _has_threads
    _has_threads = True


def exit_process(code: int) -> NoReturn:
    """End the process. In a run of several an end before its time is at once, without JAX's wait for the others."""
    if _has_threads or _is_joining or (_watch is not None and code not in peers.FINISHED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_distributed() -> bool:
    """Whether this process is one of several of a run."""
    return _watch is not None


def agree(word: str | None) -> str | None:
    """One word of the first process, on all processes of the run; the others pass None and wait for it."""
    if _watch is None:
        return word
    from jax._src import distributed

    client = distributed.global_state.client
    if word is not None:
        client.key_value_set("plumbline/word", word)
        return word
    return _wait_for(client, "plumbline/word")


def meet(name: str) -> None:
    """Wait until all processes of the run have come here, however long each takes; a name serves once."""
    if _watch is None:
        return
    import jax
    from jax._src import distributed

    client = distributed.global_state.client
    client.key_value_set(f"plumbline/{name}/{jax.process_index()}", "here")
    for other in range(jax.process_count()):
        _wait_for(client, f"plumbline/{name}/{other}")


def _wait_for(client: Any, key: str) -> str:
    """The value of a key that another process sets, or PeerEnded where one ends before that."""
    while True:
        try:
            return client.blocking_key_value_get(key, 500)
        except Exception as e:  # JAX's own class; short waits, because no signal is handled during one
            if "DEADLINE_EXCEEDED" not in str(e):
                raise
        follow_peers()


def check_shared(workdir: str, wait: float = SHARED_WAIT) -> None:
    """Refuse a workdir that is not one folder on all hosts of the run, before any of them trains.

    The first process writes a file with a random name, and every other looks for it.

    Raises:
        InputError: on all processes, with the numbers of those that do not see the file.
    """
    if _watch is None:
        return
    import jax
    from jax._src import distributed

    client, index, count = distributed.global_state.client, jax.process_index(), jax.process_count()
    if index == 0:
        mark = pathlib.Path(workdir, f".shared-{secrets.token_hex(8)}")
        mark.touch()
        client.key_value_set("plumbline/mark", mark.name)
    name = client.blocking_key_value_get("plumbline/mark", 60_000)
    client.key_value_set(f"plumbline/seen/{index}", json.dumps(_appears(pathlib.Path(workdir, name), wait)))
    milliseconds = int(1000 * wait) + 60_000
    views = [json.loads(client.blocking_key_value_get(f"plumbline/seen/{i}", milliseconds)) for i in range(count)]
    if index == 0:
        mark.unlink(missing_ok=True)
    if not all(views):
        refuse_unshared(workdir, [i for i, sees in enumerate(views) if not sees])


def refuse_unshared(workdir: str, blind: list[int]) -> NoReturn:
    listing = ", ".join(map(str, blind[:8])) + (f" and {len(blind) - 8} more" if len(blind) > 8 else "")
    raise InputError(
        f"--workdir={workdir} is not one folder on all hosts: process {listing} does not see there what process 0 "
        "writes. Give a folder on a file system that all hosts share (--emit=jobset has --volume and --bucket)"
    )


def _appears(path: pathlib.Path, wait: float) -> bool:
    """Whether a file appears within `wait` seconds; its folder is listed anew, past what a network client remembers."""
    deadline = time.monotonic() + wait
    while True:
        try:
            if path.name in os.listdir(path.parent):
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def check_platform() -> None:
    """Refuse an accelerator that JAX_PLATFORMS names and whose package is not installed, before JAX starts.

    Raises:
        InputError: with the extra to install.
    """
    packages = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}
    for name in filter(None, os.environ.get("JAX_PLATFORMS", "").split(",")):
        known = packages.get(name.strip().lower())
        if known and not any(importlib.util.find_spec(package) for package in known):
            raise InputError(
                f"JAX_PLATFORMS={name} needs a package that is not installed: pip install 'plumbline[{name}]'; or "
                "unset JAX_PLATFORMS, or set it to cpu"
            )


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
    try:
        root = pathlib.Path(choice) if choice else pathlib.Path.home() / ".cache" / "plumbline" / "jax"
        folder = cache_folder(root)
    except (OSError, RuntimeError):  # a read-only home, or none (an id without an entry): compile again each time
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
