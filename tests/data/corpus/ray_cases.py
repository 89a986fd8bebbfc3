"""The executor on a cluster of two nodes, each of one core, at the loopback address."""

import functools
import os
import pathlib
import socket
import sys

import pytest

from alignment.errors import InputError
from data.corpus import executors, shards
from tests.data.corpus import toy_tasks

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20, resources={"TPU": 4})
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    root = str(pathlib.Path(__file__).resolve().parents[3])
    environment = {"env_vars": {"PYTHONPATH": root}}
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(fn, tasks, **options):
    return list(executors.run(fn, tasks, executor="ray", **options))


def test_two_nodes_share_the_tasks_and_leave_the_same_bytes_as_one_process(cluster, tmp_path):
    assert len({node for _, node in run(toy_tasks.node, range(4))}) == 2
    assert len({node for _, node in run(toy_tasks.node, range(3), resources={"TPU": 4})}) == 1
    (tmp_path / "raw.txt").write_bytes(b"".join(b"line %d\n" % i for i in range(4000)))
    plan = toy_tasks.slices.plan(str(tmp_path / "raw.txt"), slice_bytes=9_000)
    for folder, executor in (("one", "local"), ("two", "ray")):
        stage = functools.partial(toy_tasks.stage, str(tmp_path / folder))
        results = list(executors.run(stage, plan, executor=executor, workers=2))
        assert sorted(results) == [(i, i) for i in range(len(plan))] and len(plan) > 4
    one, two = (shards.finished(tmp_path / name, "upper", "c0ffee", is_checked=True) for name in ("one", "two"))
    assert one == two and len(one) == len(plan)  # the notes hold the checksums of the files


@pytest.mark.parametrize("actors", [False, True])
def test_killed_workers_are_replaced(cluster, tmp_path, actors):
    fn = functools.partial(toy_tasks.killed_at_first, str(tmp_path))
    num = 1 if actors else 2  # Ray starts one actor again after another
    assert sorted(run(fn, range(num), workers=num, actors=actors)) == [(i, i) for i in range(num)]
    assert len(list(tmp_path.iterdir())) == num


def test_errors_arrive_as_raised_and_name_their_task(cluster):
    with pytest.raises(InputError, match="three is no") as caught:
        run(toy_tasks.refuse_three, range(5), workers=2)
    assert "in task 3: 3" in caught.value.__notes__[-1]
    with pytest.raises(executors.WorkerDied, match=r"task 1 \('c'\)"):
        run(toy_tasks.exit_at_c, ["a", "c"], workers=1, retries=0)


def test_actors_keep_their_process_between_tasks(cluster):
    results = executors.run(toy_tasks.pid_or_refuse, range(6), executor="ray", workers=1, actors=True)
    assert len({next(results)[1] for _ in range(5)}) == 1
    with pytest.raises(InputError, match="five"):
        next(results)


def test_more_than_the_cluster_has_is_refused(cluster):
    with pytest.raises(InputError, match="request less"):
        run(toy_tasks.pid, [0], num_gpus=1)


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputError, match="no Ray cluster answers"):
            list(executors.run(toy_tasks.pid, [0], executor="ray", address=address))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'plumbline\[ray\]'"):
        executors.run(toy_tasks.pid, [0], executor="ray")
