"""Where numbers go while training: metrics.jsonl, TensorBoard, the terminal, and on request wandb or trackio.

A writer has `write_scalars(step, {name: number})`, `flush()` and `close()`. Only process 0 should have writers that
leave something behind; `many([])` is the silent one for the others.

`restored` is the step of the checkpoint that was restored, None when training starts from nothing. What an earlier,
killed start logged past it is dropped, because those steps will be trained, and logged, again.
"""

import dataclasses
import datetime
import importlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TextIO

import jax

from alignment import errors, files
from alignment.errors import InputError


class Writer(Protocol):
    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def tick(self, step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _Base:
    """A writer that ignores everything; the others override what they keep."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        pass

    def tick(self, step: int) -> None:
        """A step is done; only the terminal's bar cares."""

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.flush()


def _finite(value: Any) -> int | float | None:
    """A Python number, or None for what JSON cannot hold; arrays must have one element."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return int(value)
    return value if math.isfinite(value) else None


class jsonl(_Base):
    """metrics.jsonl: one object a step, `step` first and the other keys sorted, not-a-number as null.

    Append-only but for two cases: opening drops a torn last line and the steps past `restored`, and further scalars for
    the step just written (training first, then held-out) are merged into its line.
    """

    def __init__(self, workdir: str, restored: int | None = None):
        self._path = os.path.join(workdir, "metrics.jsonl")
        os.makedirs(workdir, exist_ok=True)
        self._last: dict[str, Any] = {}
        self._offset = 0  # where the last line starts
        end = self._scan(restored)
        # Unbuffered, so that a line is in the file when write_scalars returns, and a kill tears at most the last one.
        self._file = open(self._path, "r+b" if os.path.exists(self._path) else "w+b", buffering=0)  # noqa: SIM115
        self._file.truncate(end)
        self._file.seek(end)

    def _scan(self, restored: int | None) -> int:
        """Length in bytes of the lines to keep; remembers the last of them."""
        end = 0
        if restored is None or not os.path.exists(self._path):
            return end
        for row, size in files.whole_rows(self._path):
            # The rest is of a start that was killed after this checkpoint; its steps are trained and logged again.
            if row.get("step", math.inf) > restored:
                break
            self._last, self._offset = row, end
            end += size
        return end

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        step = int(step)
        last = self._last.get("step", -math.inf)
        if step < last:
            raise ValueError(f"step {step} comes after step {last} in {self._path}; steps must not go back")
        row = {name: _finite(value) for name, value in scalars.items() if name != "step"}
        if step == last:
            # The held-out numbers of a step come after its training numbers: one line has both.
            row = {name: value for name, value in self._last.items() if name != "step"} | row
            self._file.seek(self._offset)
            self._file.truncate()
        self._last = {"step": step} | dict(sorted(row.items()))
        self._offset = self._file.tell()
        self._write_all((json.dumps(self._last, allow_nan=False) + "\n").encode())

    def _write_all(self, line: bytes) -> None:
        while line:  # an unbuffered write may take a part only
            line = line[self._file.write(line) :]

    def flush(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


def last_value(workdir: str | os.PathLike, name: str) -> float | None:
    """The newest number logged under this name in metrics.jsonl; None if the file has no such number."""
    try:
        with open(os.path.join(workdir, "metrics.jsonl"), "rb") as f:
            values = [json.loads(line).get(name) for line in f]
    except (FileNotFoundError, ValueError):  # a line is torn only where another host is writing it
        return None
    return next((value for value in reversed(values) if value is not None), None)


class tensorboard(_Base):
    """TensorBoard events in the workdir, through tensorboardX's protocol buffers.

    Written at once in this thread: the queue of tensorboardX's own writer stalls for good when its thread meets a full
    disk.
    """

    def __init__(self, workdir: str, restored: int | None = None):
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2, summary
        os.makedirs(workdir, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1_000:016d}.{os.getpid()}"
        is_resumed = any(f.startswith("events.out.tfevents.") for f in os.listdir(workdir))
        self._file = record_writer.RecordWriter(os.path.join(workdir, name))
        self._write(file_version="brain.Event:2")
        if is_resumed:  # viewers then hide what earlier files hold from this step on
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=0 if restored is None else restored + 1, session_log=log)
        elif config := _hparams(describe(workdir).config):
            for part in summary.hparams(config, {"loss": 0.0, "heldout/loss": 0.0}):  # the names, not the values
                self._write(summary=part)

    def _write(self, **fields: Any) -> None:
        self._file.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in sorted(scalars.items()):
            value = value.item() if hasattr(value, "item") else value
            self._write(step=int(step), summary=self._summary.scalar(name, float(value)))
        # tensorboardX's own flush also calls fsync, too slow for every line; `flush` below does that at checkpoints.
        self._file._writer.flush()

    def flush(self) -> None:
        if not self._file._writer.closed:
            self._file.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()


class _Service(_Base):
    """wandb, and trackio, which follows its calls; `resume` goes on with the same run after a restart."""

    def __init__(self, module: Any, project: str, name: str, settings: dict[str, Any]):
        self._module = module
        module.init(project=project, name=name, **settings)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._module.log({name: _finite(value) for name, value in scalars.items()}, step=int(step))

    def close(self) -> None:
        self._module.finish()


def wandb(workdir: str, project: str) -> Writer:
    """Weights & Biases; offline or not, and as whom, is up to its own environment variables."""
    module = importlib.import_module("wandb")
    run = describe(workdir)
    settings: dict[str, Any] = {"id": _run_id(workdir), "resume": "allow", "dir": workdir, "config": run.config}
    settings |= {"group": run.sweep or None, "tags": list(run.tags)}
    return _Service(module, project, "/".join(_last_two(workdir)), settings)


def trackio(workdir: str, project: str) -> Writer:
    """Trackio, the local-first tracker; it knows a run by its name, so the name has to hold the id."""
    module = importlib.import_module("trackio")
    settings = {"resume": "allow", "config": describe(workdir).config}
    return _Service(module, project, "-".join([*_last_two(workdir), _run_id(workdir)]), settings)


@dataclasses.dataclass(frozen=True)
class Description:
    """What trackers record of a run beside its numbers.

    Attributes:
        config: the experiment's config, nested.
        sweep: name of the sweep's folder, "" outside a sweep.
        tags: the experiment, and the phase such as `pretrain`.
    """

    config: dict[str, Any]
    sweep: str = ""
    tags: tuple[str, ...] = ()


def describe(workdir: str | os.PathLike) -> Description:
    """Read what the launcher has left in a run's folder, which is `workdir` or, for a phase of a run, its parent."""
    folder = pathlib.Path(workdir).absolute()
    root = next((p for p in (folder, folder.parent) if (p / "config.json").is_file()), None)
    if root is None:
        return Description({})
    try:
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
        experiment = json.loads((root / "environment.json").read_text(encoding="utf-8"))["experiment"]
    except (OSError, ValueError, KeyError):
        return Description({})
    tags = (experiment,) if root == folder else (experiment, folder.name)
    return Description(config, root.parent.name if (root.parent / "sweep.json").is_file() else "", tags)


def _hparams(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a config to what TensorBoard's hyperparameters can be: numbers, switches and texts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _hparams(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def _last_two(workdir: str) -> list[str]:
    """What tells runs/dpo/pretrain from runs/sft/pretrain, for people."""
    return os.path.abspath(workdir).split(os.sep)[-2:]


def _run_id(workdir: str) -> str:
    """Drawn once and kept in the folder: one path on two machines is two runs, and a folder that moves stays one."""
    path = os.path.join(workdir, "run_id")
    os.makedirs(workdir, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as f:
        f.seek(0)
        run_id = f.read()
        if not run_id:
            run_id = uuid.uuid4().hex[:8]
            f.write(run_id)
    return run_id


class console(_Base):
    """Progress for a person: a bar with rate and time left on a terminal, else a line a logged step.

    Args:
        total: steps of the whole run.
        start: step that this start begins from.
        label: name in front, such as the phase.
        keys: metrics to show, in this order; the default is the loss and the first few others.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        label: str = "",
        keys: Iterable[str] = (),
        stream: TextIO | None = None,
        clock: Any = time.monotonic,
    ):
        self._total, self._step, self._label, self._keys = total, start, label, tuple(keys)
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._clock = clock
        self._base: tuple[int, float] | None = None  # step and time the rate counts from: after compiling
        self._drawn = -math.inf
        self._shown: dict[str, str] = {}

    def tick(self, step: int) -> None:
        self._advance(int(step))
        if self._is_terminal and self._clock() - self._drawn >= 0.1:
            self._draw()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._advance(int(step))
        chosen = {name: f"{float(scalars[name]):.4g}" for name in self._choose(scalars)} | _speed(scalars)
        self._shown |= chosen
        if self._is_terminal:
            self._draw()
        else:
            print(f"{self._head(int(step))}  {self._numbers(chosen)}", file=self._stream, flush=True)

    def _advance(self, step: int) -> None:
        if step > self._step:
            self._base = self._base or (step, self._clock())
            self._step = step

    def _choose(self, scalars: Mapping[str, Any]) -> list[str]:
        if self._keys:
            return [name for name in self._keys if name in scalars]
        first = ("loss", "accuracy", "accuracies", "margins")
        names = [name for name in scalars if name not in ("utilisation", "flops_per_second")]  # `_speed` shows one
        return sorted(names, key=lambda name: (name.rsplit("/", 1)[-1] not in first, name.count("/")))[:6]

    def _head(self, step: int | None = None) -> str:
        text = f"{self._label} " if self._label else ""
        text += f"step {self._step if step is None else step}/{self._total}"
        first, since = self._base or (self._step, self._clock())
        seconds = self._clock() - since
        if self._step > first and seconds >= 1:  # the first steps are sent to the device faster than it computes
            rate = (self._step - first) / seconds
            text += f"  {rate:.3g} steps/s  {datetime.timedelta(seconds=round((self._total - self._step) / rate))} left"
        return text

    def _numbers(self, words: Mapping[str, str]) -> str:
        return "  ".join(f"{name} {value}" for name, value in words.items())

    def _draw(self) -> None:
        self._drawn = self._clock()
        width, share = 24, min(1.0, self._step / max(self._total, 1))
        bar = "█" * int(width * share) + "░" * (width - int(width * share))
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            columns = 120
        line = f"{bar} {self._head()}  {self._numbers(self._shown)}"[: columns - 1]
        print(f"\r{line}\x1b[K", end="", file=self._stream, flush=True)

    def close(self) -> None:
        if self._is_terminal and self._drawn > -math.inf:
            self._draw()
            print(file=self._stream, flush=True)


def _speed(scalars: Mapping[str, Any]) -> dict[str, str]:
    """The share of the devices' peak that is used; where that is not known, the operations of a second."""
    if "utilisation" in scalars:
        return {"utilisation": f"{100 * float(scalars['utilisation']):.3g} %"}
    if "flops_per_second" in scalars:
        return {"GFLOP/s": f"{float(scalars['flops_per_second']) / 1e9:.4g}"}
    return {}


SINKS = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}  # and the package of each


def check(sinks: Iterable[str]) -> None:
    """Refuse a sink that does not exist or whose package is not installed, before any work.

    Raises:
        InputError: with the known names, or what to install.
    """
    for sink in sinks:
        errors.one_of("sinks", sink, SINKS, hint="metrics.jsonl is always written and needs no name")
        package = SINKS[sink]
        if sys.modules.get(package) is None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"logging to {sink} needs a package that is not installed: pip install 'plumbline[{sink}]'; or leave "
                "it out of sinks"
            )


def open_run(
    workdir: str, sinks: Iterable[str] = ("tensorboard",), *, restored: int | None, total_steps: int, label: str = ""
) -> "many":
    """The writers of one training run: metrics.jsonl, the terminal, and `sinks` (tensorboard, wandb, trackio).

    Silent on every process but the first.
    """
    makers: dict[str, Callable[[], Writer]] = {
        "tensorboard": lambda: tensorboard(workdir, restored),
        "wandb": lambda: wandb(workdir, "plumbline"),
        "trackio": lambda: trackio(workdir, "plumbline"),
    }
    check(sinks)
    if jax.process_index() != 0:
        return many()
    return many([jsonl(workdir, restored), *(makers[s]() for s in sinks), console(total_steps, restored or 0, label)])


class many(_Base):
    """Several writers as one, in this order; without any it keeps nothing."""

    def __init__(self, writers: Iterable[Writer] = ()):
        self._writers = list(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def tick(self, step: int) -> None:
        for writer in self._writers:
            writer.tick(step)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
