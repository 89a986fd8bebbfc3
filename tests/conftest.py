"""Tests run on the CPU with eight simulated devices and strict rank promotion.

Nearly all of their time is compilation. So the XLA flags below skip what only makes programs faster: LLVM's passes
and the fusion emitters, which take four fifths of a compilation; the arithmetic is the same, less vectorised. Compiled
programs are kept in .pytest_cache/ for the next test, process and session, the smallest too: there are thousands, and
to read one takes half as long as to compile it. An environment that sets one of these flags or
JAX_COMPILATION_CACHE_DIR itself is left alone. What remains is Python's own work of tracing and lowering. Much of it
would go into source lines of operations, the garbage collector and MLIR's contexts, so all three are kept short.

Tests run in a random order, and hypothesis draws random examples. Both follow from one number, the environment variable
SEED (0 by default), so a failure comes back when the same command runs again.
"""

import contextlib
import gc
import os
import pathlib
import threading

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = {
    "xla_force_host_platform_device_count": 8,
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": 1,
    # XLA aborts the process when a device waits 40 s for the others, as can happen with eight on one busy core
    "xla_cpu_collective_call_terminate_timeout_seconds": 600,
}
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + f" --{name}={value}"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    from experiments.launch import host

    with contextlib.suppress(OSError):  # a read-only checkout: compile every time
        cache = host.cache_folder(pathlib.Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis  # noqa: E402
import jax  # noqa: E402  (reads the environment)
import jax.monitoring  # noqa: E402
import pytest  # noqa: E402
import pytest_randomly  # noqa: E402
from jax._src import compilation_cache  # noqa: E402  (nothing public hands out what these two make)
from jax._src.interpreters import mlir  # noqa: E402

from alignment import memory, programs  # noqa: E402

MOST_BYTES = 2 << 30  # 2 GiB
PROGRAMS_A_CONTEXT = 64
EXECUTABLES = {}  # of the file that runs: (name in the cache, devices) -> program, seconds that it took to compile

jax.config.update("jax_numpy_rank_promotion", "raise")

# A busy machine is no fault of a test.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")


def share_contexts() -> None:
    """Lower 64 programs in each MLIR context.

    JAX makes a context for every program, which takes 4 ms: two fifths of what a small program costs that is in the
    cache. A context keeps every type and constant that it has met, so it is not used for ever; and each thread has its
    own, so that two threads never write into one. A program that is lowered in the middle of another, as a constant
    may be, has one to itself: in a shared one it would become a part of the other.
    """
    make_context, own = mlir.make_ir_context, threading.local()

    def is_lowering():
        try:
            return mlir.ir.InsertionPoint.current is not None
        except ValueError:  # there is none
            return False

    def make_or_share():
        if is_lowering():
            return make_context()
        number = getattr(own, "number", 0)
        if number % PROGRAMS_A_CONTEXT == 0:
            own.context = make_context()
        own.number = number + 1
        return own.context

    mlir.make_ir_context = make_or_share


def share_executables() -> None:
    """Read a program once for all tests of a file that compile it, each from a function of its own."""
    read = compilation_cache.get_executable_and_time

    def read_once(key, options, backend, devices):
        if (found := EXECUTABLES.get((key, devices))) is None:
            found = read(key, options, backend, devices)
            if found[0] is not None:
                EXECUTABLES[key, devices] = found
        return found

    compilation_cache.get_executable_and_time = read_once


share_contexts()
share_executables()


@pytest.hookimpl(tryfirst=True)  # before pytest-randomly draws a seed of its own
def pytest_configure(config: pytest.Config) -> None:
    seed = os.environ.get("SEED", "0")
    if getattr(config.option, "randomly_seed", None) == "default":  # there is no such option under -p no:randomly
        config.option.randomly_seed = int(seed)
    pytest_randomly.entrypoint_reseeds = []  # thinc asks for one of its own, and takes seconds to import
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = seed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that run whole experiments, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/experiments/", "tests/docs/")))


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among what the imports made: tracing allocates much and leaves few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs of finished files, once they fill memory: kept to the end they would take 4 GB a process.

    Until then they stay, because every file needs many small ones that others have compiled already.
    """
    yield
    EXECUTABLES.clear()
    if resident_bytes() > MOST_BYTES:
        programs.clear()
        jax.clear_caches()
        gc.collect()
        memory.give_back()


def resident_bytes() -> int:
    """Memory that this process has now; where nobody can say, more than it should have."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return MOST_BYTES + 1
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def compilations():
    """The programs compiled since the test began, by name, in a list that it may clear."""
    names = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":  # also where the program came from the cache on disk
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real public data beside a developer's checkout; a user's clone has none and skips."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("PLUMBLINE_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no shared/data beside this checkout")
    return folder
