"""Hardware that a run may be planned for, by the name of its topology: `v5p:4x4x4`, `v6e:16x16`, `h200:8`, `cpu:8`.

What is written here of a chip are its maker's numbers. Prices are assumptions, near what clouds asked for a chip and an
hour on demand in 2025; a plan says which it took, and takes another.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
import numpy as np

from alignment import errors
from alignment.errors import InputError

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them.

    Attributes:
        kind: "tpu", compiled for ahead of time; "gpu", reckoned; "cpu", compiled for and run here.
        memory: bytes that a program may use.
        tflops: peak of its matrix units in bfloat16, dense, in 10^12 operations a second.
        link: bytes a second that it exchanges with the other devices of its slice or box, in one direction.
        price: dollars an hour; None where nobody sells it by the hour.
        axes: numbers that its topology has.
    """

    kind: str
    memory: float
    tflops: float
    link: float
    price: float | None
    axes: int


CHIPS = {
    "v4": Chip("tpu", 32 * GIB, 275.0, 300e9, 3.22, 3),
    "v5e": Chip("tpu", 16 * GIB, 197.0, 200e9, 1.20, 2),
    "v5p": Chip("tpu", 95 * GIB, 459.0, 600e9, 4.20, 3),
    "v6e": Chip("tpu", 32 * GIB, 918.0, 448e9, 2.70, 2),
    # A chip is two devices to JAX, with half of its memory and of its units each.
    "tpu7x": Chip("tpu", 96 * GIB, 1_153.0, 600e9, None, 3),
    # The driver, CUDA's context and the libraries of its kernels take some; JAX may use the rest.
    "a100": Chip("gpu", 76 * GIB, 312.0, 300e9, 1.80, 1),
    "h100": Chip("gpu", 76 * GIB, 989.0, 450e9, 2.00, 1),
    "h200": Chip("gpu", 136 * GIB, 989.0, 450e9, 2.50, 1),
    "b200": Chip("gpu", 175 * GIB, 2_250.0, 900e9, 4.00, 1),
    "cpu": Chip("cpu", math.inf, 0.1, 10e9, None, 1),
}
KINDS = {  # what JAX calls a device (`device_kind`), and which chip it is
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100-SXM4-40GB": "a100",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100-PCIE-40GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100",
    "NVIDIA H100 80GB HBM3": "h100",  # those on PCIe are slower, and have other names
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
}
BOX = 8  # GPUs that NVLink joins
BETWEEN_BOXES = 50e9  # bytes a second of a GPU beyond its box, an assumption: a network card of 400 Gbit/s for each
PIP = "pip install 'plumbline[plan]'"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one sort, and how they stand: `shape` (4, 4, 4) for `v5p:4x4x4`."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def num_devices(self) -> int:
        cores = 2 if self.name.startswith("tpu7x") else 1
        return math.prod(self.shape) * cores

    @property
    def link(self) -> float:
        """Bytes a second of a device where all of them take part: beyond a box of GPUs, those of the network."""
        is_boxed = self.chip.kind != "gpu" or self.num_devices <= BOX
        return self.chip.link if is_boxed else min(BETWEEN_BOXES, self.chip.link)

    def larger(self, times: int) -> "Topology":
        """The topology with `times` as many chips, a power of two: each doubling goes to the shortest side."""
        shape = list(self.shape)
        while times > 1:
            shape[shape.index(min(shape))] *= 2
            times //= 2
        shape.sort()
        sort = self.name.partition(":")[0]
        return Topology(f"{sort}:{'x'.join(map(str, shape))}", self.chip, tuple(shape))


def topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
        InputError: a chip that is not in CHIPS, or a shape that its kind does not have.
    """
    sort, _, text = name.partition(":")
    errors.one_of("--plan", sort, CHIPS, hint="followed by its shape, such as v5p:4x4x4, v6e:16x16, h200:8 or cpu:8")
    chip = CHIPS[sort]
    example = {1: "8", 2: "4x4", 3: "2x2x2"}[chip.axes]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) or text.count("x") != chip.axes - 1:
        raise InputError(f"--plan={name}: {sort} is planned for as {sort}:{example}, with numbers of its devices")
    return Topology(name, chip, tuple(map(int, text.split("x"))))


def peak(device_kind: str) -> float | None:
    """Operations a second of a device's matrix units in bfloat16; None where its kind is not in KINDS, as a CPU's."""
    return CHIPS[KINDS[device_kind]].tflops * 1e12 if device_kind in KINDS else None


def devices(of: Topology) -> np.ndarray:
    """The devices of a topology, for a mesh that programs are compiled for; nothing of it need be there.

    Raises:
        InputError: libtpu is not installed, does not know this shape, or this process has fewer CPU devices.
    """
    if of.chip.kind == "cpu":
        have = jax.devices("cpu")
        if len(have) < of.num_devices:
            raise InputError(
                f"--plan={of.name}: this process has {len(have)} CPU devices; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={of.num_devices}"
            )
        return np.array(have[: of.num_devices])
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--plan={of.name} compiles with libtpu, which is not installed: {PIP}")
    # libtpu otherwise asks the metadata server of a cloud machine, and waits minutes where there is none.
    # The rest is only for its log: it would warn that it cannot find out on which machine it is.
    quiet = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3"}
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3", **quiet}.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # libtpu takes the two cores of a v4 chip for two devices, unless it is told that one program runs on both.
    more = {"chip_config_name": "megacore"} if of.name.startswith("v4:") else {}
    try:
        described: Any = topologies.get_topology_desc(platform="tpu", topology_name=of.name, **more)
    except Exception as e:  # JAX's own class, with libtpu's words
        raise InputError(f"--plan={of.name}: libtpu has no such topology ({str(e).splitlines()[0][:200]})") from None
    return np.array(described.devices)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"
