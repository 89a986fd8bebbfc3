"""Which part of a batch a process loads; processes are told apart by stand-in devices."""

import types

import jax
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.train import sharding


def mesh(shape, devices_per_process):
    devices = np.array([types.SimpleNamespace(process_index=i // devices_per_process) for i in range(np.prod(shape))])
    return types.SimpleNamespace(devices=devices.reshape(shape), shape=dict(zip(sharding.AXES, shape)))


def share(monkeypatch, shape, devices_per_process, process):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    found = sharding.row_share(mesh(shape, devices_per_process))
    return found["process_index"], found["process_count"]


def test_processes_along_data_load_different_rows(monkeypatch):
    assert [share(monkeypatch, (4, 2, 1), 2, p) for p in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_processes_along_tensor_load_the_same_rows(monkeypatch):
    assert [share(monkeypatch, (1, 2, 4), 2, p) for p in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert [share(monkeypatch, (1, 1, 4), 2, p) for p in range(2)] == [(0, 1), (0, 1)]


def test_a_mesh_that_gives_processes_unequal_parts_is_refused(monkeypatch):
    with pytest.raises(InputError, match="not an equal part"):
        share(monkeypatch, (3, 1, 1), 2, 0)
