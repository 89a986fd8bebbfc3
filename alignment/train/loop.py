"""The loop that every training run shares: logging, held-out evaluation, checkpoints, resuming, stopping.

A run killed at any instant and started again ends with the same parameters, bit for bit on the same hardware: the
checkpoint holds state and data position, a step's random key is folded from its number, and `metrics.jsonl` is cut
back to the checkpoint's step before new lines are added.
"""

import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from alignment import errors
from alignment.errors import InputError
from alignment.train import checkpoint, sharding, step, writers
from alignment.train.train_state import TrainState

STOP = threading.Event()  # set it (from a signal handler, say) and the running loop saves and raises Stopped
ACTIVE = threading.Event()  # set while a loop runs, and so while STOP will be heard


class Stopped(errors.Stopped):
    """The loop was asked to stop; it has saved, and the same command goes on from there."""


class Loader(Protocol):
    """Endless batches of this process's rows, with a position that can be kept as JSON."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


Evaluator = Callable[[TrainState, Mesh], dict[str, float]]


def evaluator(loss_fn: step.LossFn, batches: Iterable[dict[str, np.ndarray]]) -> Evaluator:
    """Exact means of a loss and its metrics over a finite set of batches, under the parameters of a state."""

    @jax.jit
    def sums(params, frozen, batch):
        mean, metrics = loss_fn(params, batch, rng=jax.random.PRNGKey(0), frozen=frozen)
        return {"loss": mean, **metrics}

    def evaluate(state: TrainState, mesh: Mesh) -> dict[str, float]:
        total = None
        for batch in batches:
            found = sums(state.params, state.frozen, sharding.to_devices(batch, mesh))
            total = found if total is None else step.add(total, found)
        return {} if total is None else _fetch(total)

    return evaluate


def latest_step(workdir: str | pathlib.Path) -> int | None:
    """Step of the newest checkpoint of a workdir; None for a fresh one."""
    folder = pathlib.Path(workdir) / "checkpoints"
    if not folder.is_dir():
        return None
    with checkpoint.open_manager(folder) as manager:
        return manager.latest_step()


def fit(
    update: step.UpdateFn,
    state: TrainState,
    batches: Loader,
    evals: dict[str, Evaluator],
    mesh: Mesh,
    workdir: str | pathlib.Path,
    *,
    steps: int,
    log_every: int = 10,
    eval_every: int = 0,
    save_every: int = 0,
    keep: int = 2,
    unit: str = "examples",
    units_per_step: int = 1,
    on_first_fn: Callable[[dict[str, float], dict[str, np.ndarray]], None] | None = None,
    finish_fn: Callable[[dict[str, float]], dict[str, float]] = dict,
    sinks: tuple[str, ...] = ("tensorboard",),
    label: str = "",
) -> tuple[TrainState, dict[str, float]]:
    """Train to `steps` updates, from the newest checkpoint of `workdir` if there is one.

    Args:
        update: from `step.build`, not yet compiled; `state` is donated to it.
        evals: name -> evaluator; their numbers appear as `<name>/<metric>`.
        log_every, eval_every, save_every: in steps; 0 for eval and save means only at the end. An evaluation before the
            first step is always made, so that every curve starts where the run did.
        unit, units_per_step: what `<unit>_per_second` counts.
        on_first_fn: sees the metrics of the first update of a fresh run (those of the untouched parameters) and its
            batch, and raises where they cannot be right.
        finish_fn: turns the means of a metrics dict, held-out ones too, into what is logged.
        sinks: writers beside `metrics.jsonl`.
        label: what the progress line calls this run.

    Returns:
        The final state, and the last value of every held-out metric with `steps` and `<unit>_per_second`.

    Raises:
        Stopped: when STOP is set, after saving.
        InputError: a loss that is not a finite number, with the step and the batch; a full disk, with what is left.
    """
    _check_intervals(steps=steps, log_every=log_every, eval_every=eval_every, save_every=save_every)
    workdir = pathlib.Path(workdir)
    ACTIVE.set()
    try:
        with checkpoint.open_manager(workdir / "checkpoints", keep=keep) as manager, sharding.activations(mesh):
            if manager.latest_step() is not None:  # memory need not hold this state and the one that comes in its place
                like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
                jax.tree.map(lambda x: x.delete(), state)
                state = like
            restored = checkpoint.restore(manager, state)
            if restored is not None:
                state, position = restored
                batches.set_state(position)
            at = int(state.step) if restored else None
            writer = writers.open_run(str(workdir), sinks, restored=at, total_steps=steps, label=label)
            run = _Run(
                update, state, batches, evals, mesh, writer, manager, unit, units_per_step, on_first_fn, finish_fn
            )
            try:
                state, summary = _steps(run, steps, log_every, eval_every or steps, save_every or steps, bool(restored))
            finally:
                writer.close()
            checkpoint.wait(manager)
            return state, summary
    finally:
        ACTIVE.clear()


class _Run:
    """What the steps of one call of `fit` share: the compiled update, and the sums since the last line."""

    def __init__(
        self, update, state, batches, evals, mesh, writer, manager, unit, units_per_step, on_first_fn, finish_fn
    ):
        self.update, self.state = step.compile_update(update, state), state
        self.batches, self.evals, self.mesh, self.writer, self.manager = batches, evals, mesh, writer, manager
        self.unit, self.units_per_step = unit, units_per_step
        self.on_first_fn, self.finish_fn = on_first_fn, finish_fn
        self.add = jax.jit(step.add)  # nothing is donated: the window holds arrays of the first step's metrics
        self.sums, self.window, self.num_timed = None, [], 0  # of the steps since the last line
        self.pending = None  # the line that is due: its step, and sums that may still be on their way
        self.started, self.rates = None, []

    def advance(self) -> None:
        batch = next(self.batches)
        self.state, metrics = self.update(self.state, sharding.to_devices(batch, self.mesh))
        self.window.append((metrics["nonfinite"].total, batch.get("index")))
        self.num_timed += self.started is not None
        if self.on_first_fn is not None:
            self.on_first_fn(self.finish_fn(_fetch(metrics)), batch)
            self.on_first_fn = None
        self.sums = metrics if self.sums is None else self.add(self.sums, metrics)

    def close_window(self, number: int) -> None:
        """A line is due at this step; `collect` waits for its numbers."""
        self.pending = (number, self.sums, self.window, self.num_timed)
        self.sums, self.window, self.num_timed = None, [], 0

    def write(self) -> None:
        """Write the line that is due, if one is."""
        if self.pending is not None:
            number = self.pending[0]
            self.writer.write_scalars(number, self.collect())

    def collect(self) -> dict[str, float]:
        """The numbers of the line that is due; refuses a loss that is not a number."""
        (number, sums, window, num_timed), self.pending = self.pending, None
        values = self.finish_fn(_fetch(sums))
        now = time.perf_counter()
        if values.pop("nonfinite") > 0:
            self._refuse(number, window)
        if num_timed:  # steps after the first, which holds the compilation
            values["step_seconds"] = (now - self.started) / num_timed
            values[f"{self.unit}_per_second"] = self.units_per_step / values["step_seconds"]
            self.rates.append((self.units_per_step * num_timed, now - self.started))
        self.started = now
        return values

    def _refuse(self, number: int, window: list) -> None:
        bad = next(i for i, (flag, _) in enumerate(window) if float(flag) > 0)
        at, index = number - len(window) + bad + 1, window[bad][1]
        good = self.manager.latest_step()
        raise InputError(
            f"the loss or its gradient is not a finite number at step {at}"
            f"{f', batch of records {index.tolist()}' if index is not None else ''}; the last good checkpoint is "
            f"{'none' if good is None else f'that of step {good}'}. Lower the learning rate, or mend these records"
        )

    def evaluate(self) -> dict[str, float]:
        found = {}
        for name, evaluate in self.evals.items():
            values = self.finish_fn(evaluate(self.state, self.mesh))
            bad = [key for key, number in values.items() if not math.isfinite(number)]
            if bad:
                raise InputError(
                    f"{name}/{bad[0]} is {values[bad[0]]}, not a finite number, at the evaluation of step "
                    f"{int(self.state.step)}; lower the learning rate, or look at the held-out records"
                )
            found.update({f"{name}/{key}": number for key, number in values.items()})
        if self.started is not None:
            self.started = time.perf_counter()
        return found

    def save(self) -> None:
        checkpoint.save(self.manager, self.state, self.batches.get_state())
        if self.started is not None:
            self.started = time.perf_counter()


def _steps(run: _Run, steps: int, log_every: int, eval_every: int, save_every: int, restored: bool):
    start = int(run.state.step)
    heldout = {}
    if not restored:
        heldout = run.evaluate()
        run.writer.write_scalars(0, heldout)
        run.save()
    else:
        run.on_first_fn = None
    for number in range(start + 1, steps + 1):
        run.advance()
        run.writer.tick(number)
        run.write()  # the line of an earlier step, whose numbers arrive while this one runs
        if number == start + 1:  # compilation is over when this one is
            jax.block_until_ready(run.state.step)
            run.started = time.perf_counter()
        is_last, stops = number == steps, _stop_requested(number, log_every)
        evaluates = number % eval_every == 0 or is_last
        saves = number % save_every == 0 or is_last or stops
        if number % log_every == 0 or evaluates or saves:
            run.close_window(number)
        if evaluates:
            values = run.collect()
            heldout = run.evaluate()
            run.writer.write_scalars(number, values | heldout)
        if saves:
            run.write()
            run.writer.flush()
            run.save()
        if stops and not is_last:
            checkpoint.wait(run.manager)
            raise Stopped(f"stopped after step {number} of {steps}")
    if not heldout:
        heldout = run.evaluate()
    summary = {**heldout, "steps": float(steps)}
    rate = f"{run.unit}_per_second"
    if run.rates:
        units, seconds = map(sum, zip(*run.rates))
        summary[rate] = units / seconds
    else:  # nothing was left to train, or to time: an earlier start has logged how fast it went
        logged = writers.last_value(pathlib.Path(run.manager.directory).parent, rate)
        summary |= {} if logged is None else {rate: logged}
    return run.state, summary


def _stop_requested(number: int, log_every: int) -> bool:
    """Whether to stop now; several hosts agree on it at the steps they log."""
    if jax.process_count() == 1:
        return STOP.is_set()
    if number % log_every:
        return False
    return bool(np.any(multihost_utils.process_allgather(np.array(STOP.is_set()))))


def _fetch(metrics: step.Metrics) -> dict[str, float]:
    """The means, on the host; what nobody counted is left out."""
    fetched = jax.device_get(metrics)
    return {name: float(mean.total) / float(mean.count) for name, mean in fetched.items() if mean.count}


def _check_intervals(*, steps: int, log_every: int, eval_every: int, save_every: int) -> None:
    for name, number in dict(steps=steps, log_every=log_every, eval_every=eval_every, save_every=save_every).items():
        if number < (1 if name in ("steps", "log_every") else 0):
            raise InputError(f"{name}={number} must be {'positive' if name != 'eval_every' else 'at least 0'}")
