import contextlib
import functools
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from alignment.errors import InputError, Stopped
from data.corpus import executors, on_ray
from tests.data.corpus import toy_tasks

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_the_results_of_the_plain_loop_with_their_positions(workers):
    tasks = [f"task {i}" for i in range(7)]
    expected = list(executors.run(toy_tasks.shout, tasks))
    assert expected == [(i, f"TASK {i}") for i in range(7)]
    assert sorted(executors.run(toy_tasks.shout, iter(tasks), executor="process", workers=workers)) == expected


def test_workers_do_not_import_jax_nor_the_script_that_started_them():
    ((_, modules),) = executors.run(toy_tasks.modules, [0], executor="process", workers=1)
    assert "data.corpus.executors" in sys.modules and "jax" in sys.modules and "jax" not in modules
    assert "pytest" not in modules and "numpy" not in modules


def test_large_tasks_and_results_pass():
    tasks = ["x" * (3 << 20) for _ in range(4)]
    results = dict(executors.run(toy_tasks.shout, tasks, executor="process", workers=2))
    assert [len(results[i]) for i in range(4)] == [3 << 20] * 4


@pytest.mark.parametrize("executor", ["local", "process"])
def test_an_exception_arrives_as_it_was_raised_and_names_its_task(executor):
    with pytest.raises(InputError, match="three is no") as caught:
        list(executors.run(toy_tasks.refuse_three, range(5), executor=executor, workers=2))
    assert "in task 3: 3" in caught.value.__notes__[-1]
    with pytest.raises(RuntimeError, match="Odd: made of two") as caught:
        list(executors.run(toy_tasks.odd_error, [0], executor="process", workers=1))
    assert "odd_error" in caught.value.__notes__[0]  # the traceback of the worker


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises(TypeError, match="cannot be sent"):
        list(executors.run(toy_tasks.unsendable, [0], executor="process", workers=1))


def test_a_killed_worker_has_its_task_tried_again(tmp_path):
    fn = functools.partial(toy_tasks.killed_at_first, str(tmp_path))
    results = sorted(executors.run(fn, range(3), executor="process", workers=2, retries=1))
    assert results == [(i, i) for i in range(3)]
    assert len(list(tmp_path.iterdir())) == 3  # every task killed its first worker


def test_a_task_that_always_kills_its_worker_is_named():
    with pytest.raises(executors.WorkerDied, match=r"task 2 \('c'\) ended its worker 3 times \(exit code 7\)"):
        list(executors.run(toy_tasks.exit_at_c, ["a", "b", "c", "d"], executor="process", workers=2, retries=2))


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for yet is dead as well."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_closing_the_iterator_ends_the_workers(tmp_path):
    fn = functools.partial(toy_tasks.note_and_sleep, str(tmp_path))
    results = executors.run(fn, [0.2, 60.0, 60.0], executor="process", workers=2)
    assert next(results) == (0, 0.2)
    while len(pids := [int(p.name) for p in tmp_path.iterdir()]) < 2:
        time.sleep(0.02)
    assert all(map(is_alive, pids))
    results.close()
    assert not any(map(is_alive, pids))


SCRIPT = """
import sys, signal
from data.corpus import executors
from tests.data.corpus import toy_tasks
class Terminated(BaseException): pass
def stop(*_): raise Terminated
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
try:
    list(executors.run(toy_tasks.say_and_sleep, [60.0] * 4, executor="process", workers=2))
except Terminated:
    sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_however_it_ends(number):
    # The script has no __main__ guard: workers do not run it again.
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent.stdout as out:
        assert out.readline() == "ready\n"
        workers = [int(out.readline()) for _ in range(2)]
    assert all(map(is_alive, workers))
    started = time.monotonic()
    parent.send_signal(number)
    assert parent.wait(timeout=10) == (75 if number == signal.SIGTERM else -9)
    while any(map(is_alive, workers)):
        assert time.monotonic() - started < 5
        time.sleep(0.02)


def test_a_ray_that_is_too_slow_to_start_is_to_be_started_again():
    def ray(words):
        def init(**options):
            raise Exception(words)

        return types.SimpleNamespace(init=init)

    with pytest.raises(Stopped, match="Ray did not start within its 30 s"):
        on_ray._start(ray("The current node timed out during startup. This could happen"), "", 2, {"num_cpus": 1})
    with pytest.raises(Exception, match="another fault"):
        on_ray._start(ray("another fault"), "", 2, {"num_cpus": 1})


def test_shares_of_an_array_are_every_nth_task():
    tasks = list("abcdefg")
    assert [executors.share(tasks, i, 3) for i in range(3)] == [list("adg"), list("be"), list("cf")]
    with pytest.raises(InputError, match="shard_index=3 of shard_count=3"):
        executors.share(tasks, 3, 3)


def test_what_cannot_run_is_refused_before_it_begins():
    with pytest.raises(InputError, match="executor='slurm' is not one of: local, process, ray"):
        executors.run(toy_tasks.shout, [], executor="slurm")
    with pytest.raises(InputError, match="cannot be sent"):
        list(executors.run(lambda x: x, [1], executor="process"))
    with pytest.raises(InputError, match="workers=-1"):
        executors.run(toy_tasks.shout, [], workers=-1)


def test_an_exhausted_run_starts_no_more_workers_than_tasks():
    results = list(executors.run(toy_tasks.pid, [0], executor="process", workers=8))
    assert len(results) == 1 and not is_alive(results[0][1])
