"""What is refused before data, weights and devices: settings that every experiment has, then the experiment's own.

An experiment's `check(c)` raises InputError for what its `run` could not do; it reads no data and starts no device.
"""

from collections.abc import Iterable
from typing import Any

import ml_collections

from alignment.errors import InputError
from experiments.launch import config as configs
from experiments.launch import host

SMALLEST = {"log_every": 1, "eval_every": 0, "save_every": 0, "keep": 1}  # of the group `loop`


def check(experiment: configs.Experiment, config: ml_collections.ConfigDict) -> None:
    """Refuse a config that cannot run on this machine.

    Raises:
        InputError: names the value, the need and a way out.
    """
    host.check_platform()
    for key, value in leaves(config):
        *groups, name = key.split(".")
        if name == "sinks":
            check_sinks(key, value)
        elif name == "mesh":
            check_mesh(key, value)
        elif name == "steps" and isinstance(value, int) and value < 0:
            raise InputError(f"{key}={value} must be at least 0: the updates to make, 0 only evaluates")
        elif groups == ["loop"] and name in SMALLEST and isinstance(value, int) and value < SMALLEST[name]:
            need = "positive" if SMALLEST[name] else "at least 0"
            raise InputError(f"{key}: {name}={value} must be {need}")
    if hasattr(experiment.module, "check"):
        experiment.module.check(config)


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values; a mesh is one value."""
    for name in config:
        value = config[name]
        if isinstance(value, ml_collections.ConfigDict) and name != "mesh":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check_sinks(key: str, sinks: Any) -> None:
    """Refuse a writer that does not exist or whose package is missing."""
    if not isinstance(sinks, (tuple, list)):
        raise InputError(f"{key}={sinks!r} must be a tuple of names, such as ('tensorboard',), or () for none")
    if sinks:
        from alignment.train import writers  # it takes JAX along, which an experiment without sinks may not need

        writers.check(sinks)


def check_mesh(key: str, mesh: Any) -> None:
    """Refuse sizes that no number of devices satisfies; `sharding.make_mesh` compares them with the devices."""
    sizes = dict(mesh)
    if any(n < 1 and n != -1 for n in sizes.values()) or sum(n == -1 for n in sizes.values()) > 1:
        raise InputError(f"{key}={sizes}: sizes must be positive, and at most one of them -1 (the devices left over)")


def check_workdir(workdir: str) -> None:
    """Refuse an object store's address, which would become a local folder of that name."""
    scheme, separator, rest = workdir.partition("://")
    if separator:
        bucket = rest.split("/")[0]
        raise InputError(
            f"--workdir={workdir}: a run needs a folder, and {scheme}:// names an object store. Mount the bucket, as "
            f"with gcsfuse or s3fs, and give the path there; --emit=jobset --bucket={bucket} does so in pods"
        )
