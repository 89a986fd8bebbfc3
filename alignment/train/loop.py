"""The loop that every training run shares: logging, held-out evaluation, checkpoints, resuming, stopping.

A run killed at any instant and started again ends with the same parameters, bit for bit on the same hardware: the
checkpoint holds state and data position, a step's random key is folded from its number, and `metrics.jsonl` is cut
back to the checkpoint's step before new lines are added.
"""

import contextlib
import dataclasses
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from alignment import errors, programs
from alignment.errors import InputError, within
from alignment.train import batched, best, checkpoint, optimizer, sharding, step, utilisation, writers
from alignment.train.train_state import TrainState

STOP = threading.Event()  # set it (from a signal handler, say) and the running loop saves and raises Stopped
ACTIVE = threading.Event()  # set while a loop runs, which is while somebody acts on STOP
_num_active = 0
PROFILED = 0  # steps of the next run of `fit` that are traced; the launcher sets it for `--profile`


class Stopped(errors.Stopped):
    """The loop was asked to stop; it has saved, and the same command goes on from there."""


class Loader(Protocol):
    """Endless batches of this process's rows, with a position that can be kept as JSON."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


Evaluator = Callable[[TrainState, Mesh], dict[str, float]]
FinishFn = Callable[[dict[str, float]], dict[str, float]]
latest_step = checkpoint.latest_step  # of a workdir, for who begins a run
OnFirstFn = Callable[[dict[str, float], dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Pace:
    """How often a run logs, evaluates and saves, in steps; 0 evaluates or saves only at the end.

    Args:
        keep: how many checkpoints stay, the newest.
        save_minutes: saves besides at the first logged step after so many minutes; None does not.
        best: a held-out metric, such as `heldout/loss`, by which the best parameters stay and are the run's result
            (`best.Watch`); None takes the last ones.
        patience: evaluations without a better value of it after which the run ends; None trains all steps.

    Raises:
        InputError: an interval that means nothing, or a patience without a metric.
    """

    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    save_minutes: float | None = None
    best: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        within("[1, inf)", log_every=self.log_every)
        within("[0, inf)", eval_every=self.eval_every, save_every=self.save_every)
        within("(0, inf)", save_minutes=self.save_minutes, hint="; None does not save by minutes")
        if self.best is not None and "/" not in self.best:
            raise InputError(f"best={self.best!r} must be a held-out metric as it is logged, such as heldout/loss")
        if self.patience is not None and (self.patience < 1 or self.best is None):
            raise InputError(
                f"patience={self.patience} counts evaluations, at least 1, without a better value of the metric "
                f"`best`, which is {self.best!r}; give both, such as best=heldout/loss"
            )


@dataclasses.dataclass(frozen=True)
class Logging:
    """What becomes of a run's numbers.

    Args:
        unit, units_per_step: what `<unit>_per_second` counts.
        finish_fn: turns the means of a metrics dict, held-out ones too, into what is logged.
        sinks: writers beside `metrics.jsonl`.
        label: what the progress line calls this run.
        flops_fn: operations that an update on a batch needs (`utilisation.counter`), which are logged as a rate and,
            where the devices' peak is known, as a share of it; None logs neither.
    """

    unit: str = "examples"
    units_per_step: int = 1
    finish_fn: FinishFn = dict
    sinks: tuple[str, ...] = ("tensorboard",)
    label: str = ""
    flops_fn: utilisation.FlopsFn | None = None


def evaluator(loss_fn: step.LossFn, batches: Iterable[dict[str, np.ndarray]]) -> Evaluator:
    """Exact means of a loss and its metrics over a finite set of batches, under the parameters of a state."""
    sums_of = programs.Computation(_sums, numbers=dict(loss_fn=programs.of(loss_fn)))

    def evaluate(state: TrainState, mesh: Mesh) -> dict[str, float]:
        sums, total = batched.compiled_sums(sums_of, mesh), None
        for batch in batches:
            # Dispatched and not waited for: the host reads once, after the last batch.
            batch_sums = sums(state.params, state.frozen, sharding.to_devices(batch, mesh))
            total = batch_sums if total is None else step.add(total, batch_sums)
            sharding.keep_pace(mesh, total)
        return {} if total is None else _fetch(total)

    return evaluate


def _sums(params, frozen, batch, *, loss_fn):
    mean, metrics = loss_fn(params, batch, rng=jax.random.PRNGKey(0), frozen=frozen)
    return {"loss": mean, **metrics}


def averaged(state: TrainState) -> TrainState:
    """The state with the moving average of its parameters, where its optimizer has one (`optimizer.adamw`)."""
    return dataclasses.replace(state, params=optimizer.averaged(state.opt_state, state.params))


def fit(
    update: step.UpdateFn,
    state: TrainState,
    batches: Loader,
    evals: dict[str, Evaluator],
    mesh: Mesh,
    workdir: str | pathlib.Path,
    *,
    steps: int,
    pace: Pace,
    logging: Logging,
    on_first_fn: OnFirstFn | None = None,
    before_save_fn: Callable[[int], None] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Train to `steps` updates, from the newest checkpoint of `workdir` if there is one; 0 evaluates and saves nothing.

    Args:
        update: from `step.build`, not yet compiled; `state` is donated to it.
        evals: name -> evaluator; their numbers appear as `<name>/<metric>`.
        pace: whatever it says, a fresh run is evaluated before the first step, so that curves start where it did.
        on_first_fn: called with the metrics of the first update, which are those of the untouched parameters, and with
            its batch, in every start that makes this update; raises where they cannot be right.
        before_save_fn: called with the step of each checkpoint before it is written.

    Returns:
        The final state, and the last value of every held-out metric with `steps` and `<unit>_per_second`.

    Raises:
        Stopped: when STOP is set, after saving.
        InputError: a loss that is not a finite number, with the step and the batch; a full disk, with what is left.
    """
    within("[0, inf)", steps=steps)
    workdir = pathlib.Path(workdir)
    with (
        _active(),
        # Leaving the block waits for the checkpoint that is being written, which is no time of training.
        checkpoint.open_manager(workdir / "checkpoints", keep=pace.keep) as manager,
        batched.training(workdir),
        sharding.activations(mesh),
    ):
        state, restored = _restore(manager, state, batches)
        watch = None
        if pace.best is not None and steps:
            watch = best.Watch(workdir, pace.best, patience=pace.patience, restored=restored)
            before_save_fn = watch.prepare
        label = logging.label or batched.label(workdir)
        writer = writers.open_run(str(workdir), logging.sinks, restored=restored, total_steps=steps, label=label)
        run = _Run(
            update=batched.compiled_update(update, state, workdir),
            state=state,
            batches=batches,
            evals=evals,
            mesh=mesh,
            manager=manager,
            finish_fn=logging.finish_fn,
            log=_Log(writer, manager, logging, utilisation.Meter(mesh, logging.flops_fn)),
            folder=workdir,
            watch=watch,
            before_save_fn=before_save_fn,
        )
        try:
            heldout = _begin(run, saves=steps > 0) if restored is None else {}
            first_fn = None if restored else on_first_fn  # the checkpoint of step 0 holds the untouched parameters
            heldout |= _train(run, first_fn, steps, pace)
            number = int(run.own().step)
            reached = {"steps": float(number if steps else 0)}
            if watch is not None:
                reached["best_step"] = float(watch.best_step() or 0)
                if watch.best_step() != number:
                    run.state, heldout = watch.restore(run.own()), {}
            summary = {**(heldout or run.evaluate()), **reached, **run.log.rate(workdir)}
        finally:
            writer.close()
            if watch is not None:
                watch.close()
        with batched.off_clock():
            checkpoint.wait(manager)
        if _stop_requested(agrees=True):  # it came with the last step, or while its checkpoint was written
            raise Stopped(f"stopped after step {number} of {steps}")
        return averaged(run.own()), summary


@contextlib.contextmanager
def _active() -> Iterator[None]:
    """Within the block ACTIVE is set; of loops in several threads until the last one ends."""
    global _num_active
    _num_active += 1
    ACTIVE.set()
    try:
        yield
    finally:
        _num_active -= 1
        if not _num_active:
            ACTIVE.clear()


def _restore(manager: ocp.CheckpointManager, state: TrainState, batches: Loader) -> tuple[TrainState, int | None]:
    """The newest checkpoint's state and step, with `batches` put where it was; or the state as it is, and None."""
    if manager.latest_step() is None:
        return state, None
    state, position = checkpoint.restore(manager, checkpoint.give_up(state))
    batches.set_state(position)
    return state, int(state.step)


@dataclasses.dataclass
class _Run:
    """What the steps of one call of `fit` share; `state` is replaced by every step, and may be a `batched.Share`."""

    update: step.UpdateFn
    state: Any
    batches: Loader
    evals: dict[str, Evaluator]
    mesh: Mesh
    manager: ocp.CheckpointManager
    finish_fn: FinishFn
    log: "_Log"
    folder: pathlib.Path
    watch: best.Watch | None = None
    before_save_fn: Callable[[int], None] | None = None

    def own(self) -> TrainState:
        return batched.own(self.state)

    @batched.off_clock()
    def evaluate(self) -> dict[str, float]:
        heldout = {}
        state = averaged(self.own())
        for name, evaluate in self.evals.items():
            values = self.finish_fn(evaluate(state, self.mesh))
            bad = [key for key, number in values.items() if not math.isfinite(number)]
            if bad:
                raise InputError(
                    f"{name}/{bad[0]} is {values[bad[0]]}, not a finite number, at the evaluation of step "
                    f"{int(state.step)}; lower the learning rate, or look at the held-out records"
                )
            heldout.update({f"{name}/{key}": number for key, number in values.items()})
        self.log.restart_clock()
        return heldout

    @batched.off_clock()
    def save(self) -> None:
        state = self.own()
        if self.before_save_fn is not None:
            self.before_save_fn(int(state.step))
        checkpoint.save(self.manager, state, self.batches.get_state())
        self.log.restart_clock()


def _begin(run: _Run, *, saves: bool) -> dict[str, float]:
    """Evaluate and save before the first step, so that every curve starts where the run did."""
    heldout = run.evaluate()
    if run.watch is not None and saves:
        run.watch.note(0, heldout, run.own())  # first: it refuses a metric that is not there
    run.log.writer.write_scalars(0, heldout)
    if saves:
        run.save()
    if _stop_requested(agrees=True):
        checkpoint.wait(run.manager)
        raise Stopped("stopped before the first step")
    return heldout


def _train(run: _Run, on_first_fn: OnFirstFn | None, steps: int, pace: Pace) -> dict[str, float]:
    """The steps that are left; the last held-out values, empty if no step was."""
    heldout: dict[str, float] = {}
    eval_every, save_every = pace.eval_every or steps, pace.save_every or steps
    start = int(run.state.step)
    minutes, trace = _Minutes(pace.save_minutes), _Trace(run.folder / "profile", start, steps)
    if run.watch is not None and run.watch.is_over:
        run.watch.explain(start, steps)
        return heldout
    for number in range(start + 1, steps + 1):
        trace.before(number)
        batch = next(run.batches)
        run.state, metrics = run.update(run.state, sharding.to_devices(batch, run.mesh))
        sharding.keep_pace(run.mesh, metrics)
        run.log.add(metrics, batch)
        if number == start + 1:
            if on_first_fn is not None:
                on_first_fn(run.finish_fn(_fetch(metrics)), batch)
            jax.block_until_ready(metrics)  # the first step compiles; the clock counts from its end
            run.log.start_clock()
        run.log.writer.tick(number)
        trace.after(number, metrics)
        run.log.write()  # the line of an earlier step: its numbers were computed while this one was dispatched

        is_last = number == steps
        evaluates, saves = (number % every == 0 or is_last for every in (eval_every, save_every))
        logs = number % pace.log_every == 0 or evaluates or saves
        if logs:
            run.log.close_line(number)
        if evaluates:
            values = run.log.fetch_line()
            heldout = run.evaluate()
            run.log.writer.write_scalars(number, values | heldout)
            if run.watch is not None:
                run.watch.note(number, heldout, run.own())
                is_last |= run.watch.is_over
        # At a logged step only: a line is the mean since the line before, also in a run that goes on from here.
        saves |= is_last or minutes.are_over(agrees=logs)
        stops = _stop_requested(agrees=logs)  # after the evaluation, so that a signal met then is obeyed now
        if stops and not logs:
            run.log.close_line(number)
        if saves or stops:
            run.log.write()
            run.log.writer.flush()
            run.save()
            minutes.restart()
        if stops and not is_last:
            checkpoint.wait(run.manager)
            raise Stopped(f"stopped after step {number} of {steps}")
        if is_last:
            break
    return heldout


class _Trace:
    """A profile of some steps behind the first two, which compile and warm up; read it with TensorBoard or XProf."""

    def __init__(self, folder: pathlib.Path, start: int, steps: int):
        global PROFILED
        num, PROFILED = PROFILED, 0  # of the first of several trainings in a process
        self.folder, self.first, self.last = folder, start + 3, start + 2 + num
        if num and self.last > steps:
            raise InputError(
                f"--profile={num}: {steps - start} steps are left to train, and the first two only warm up; give at "
                f"most {max(steps - start - 2, 0)}, or more --config.steps"
            )

    def before(self, number: int) -> None:
        if number == self.first <= self.last:
            jax.profiler.start_trace(str(self.folder))

    def after(self, number: int, metrics: step.Metrics) -> None:
        if number == self.last >= self.first:
            jax.block_until_ready(metrics)  # the steps were only dispatched until now
            jax.profiler.stop_trace()


class _Minutes:
    """Time since the last save."""

    def __init__(self, minutes: float | None):
        self.minutes = minutes
        self.restart()

    def restart(self) -> None:
        self._start = time.monotonic()

    def are_over(self, *, agrees: bool) -> bool:
        """Whether so many have passed, on any host; hosts compare their clocks only at steps where `agrees` is set."""
        if self.minutes is None or not agrees:
            return False
        return _on_any_host(time.monotonic() - self._start >= 60 * self.minutes)


class _Log:
    """Lines of metrics, each the mean over the steps since the line before, written without stalling the device.

    JAX dispatches asynchronously: an update returns at once, with arrays that the device has yet to compute, and only
    reading one of them waits for it. So `close_line` keeps a due line's sums on the device, and the loop calls `write`
    after it has dispatched the next step; the device computes that step while the host waits for the line's numbers.
    """

    def __init__(
        self, writer: writers.many, manager: ocp.CheckpointManager, logging: Logging, meter: utilisation.Meter
    ):
        self.writer, self._manager, self._logging, self._meter = writer, manager, logging, meter
        self._add = jax.jit(step.add)  # without donation: `_steps` holds arrays of the first step's metrics
        self._sums: step.Metrics | None = None  # over the steps since the last line
        self._steps: list[tuple[jax.Array, np.ndarray | None]] = []  # of each: its nonfinite flag, records in its batch
        self._flops: list[float] = []  # of those of them that the clock counts
        self._due: tuple[int, Any, list, list] | None = None  # the closed line: its step, and what the three above held
        self._clock: float | None = None  # when the last line was fetched; None while the first step compiles
        self._timed: list[tuple[int, float, float]] = []  # of each line: units trained on, operations and seconds

    def add(self, metrics: step.Metrics, batch: dict[str, np.ndarray]) -> None:
        """Count one more step, whose metrics may still be on their way."""
        self._steps.append((metrics["nonfinite"].total, batch.get("index")))
        if self._clock is not None:
            self._flops.append(self._meter.count(batch))
        self._sums = metrics if self._sums is None else self._add(self._sums, metrics)

    def close_line(self, number: int) -> None:
        """Set aside what was added so far, as the line of this step."""
        self._due = (number, self._sums, self._steps, self._flops)
        self._sums, self._steps, self._flops = None, [], []

    def write(self) -> None:
        """Fetch and write the line that is due, if one is."""
        if self._due is not None:
            number = self._due[0]
            self.writer.write_scalars(number, self.fetch_line())

    def fetch_line(self) -> dict[str, float]:
        """Wait for the numbers of the line that is due; refuse a loss or gradient that is not finite."""
        assert self._due is not None
        (number, sums, steps, flops), self._due = self._due, None
        values = self._logging.finish_fn(_fetch(sums))
        now = batched.clock()
        if values.pop("nonfinite") > 0:
            self._refuse(number, steps)
        if flops:
            seconds = now - (self._clock or now)
            values["step_seconds"] = seconds / len(flops)
            values[f"{self._logging.unit}_per_second"] = self._logging.units_per_step / values["step_seconds"]
            values |= self._meter.rates(sum(flops), seconds)
            self._timed.append((self._logging.units_per_step * len(flops), sum(flops), seconds))
        self._clock = now
        return values

    def start_clock(self) -> None:
        self._clock = batched.clock()

    def restart_clock(self) -> None:
        """Leave an evaluation or a save out of the next line's time."""
        if self._clock is not None:
            self.start_clock()

    def rate(self, workdir: pathlib.Path) -> dict[str, float]:
        """Units and operations a second over all lines; of the start that logged them, where this one has no line."""
        name = f"{self._logging.unit}_per_second"
        if self._timed:
            units, flops, seconds = map(sum, zip(*self._timed))
            return {name: units / seconds, **self._meter.rates(flops, seconds)}
        logged = {key: writers.last_value(workdir, key) for key in (name, utilisation.RATE, utilisation.SHARE)}
        return {key: value for key, value in logged.items() if value is not None}

    def _refuse(self, number: int, steps: list[tuple[jax.Array, np.ndarray | None]]) -> None:
        first_bad = next(i for i, (flag, _) in enumerate(steps) if float(flag) > 0)
        at, index_B = number - len(steps) + first_bad + 1, steps[first_bad][1]
        good = self._manager.latest_step()
        raise InputError(
            f"the loss or its gradient is not a finite number at step {at}"
            f"{'' if index_B is None else f', batch of records {index_B[index_B >= 0].tolist()}'}; the last good "
            "checkpoint is "
            f"{'none' if good is None else f'that of step {good}'}. Lower the learning rate, or mend these records"
        )


def _stop_requested(*, agrees: bool) -> bool:
    """Whether to stop now; several hosts agree on it where `agrees`, which must be the same on all of them."""
    if jax.process_count() == 1:
        return STOP.is_set()
    if not agrees:
        return False
    # One host alone may get the signal; if it left the loop, the others would wait for it in the next collective.
    return _on_any_host(STOP.is_set())


def _on_any_host(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _fetch(metrics: step.Metrics) -> dict[str, float]:
    """The means, on the host; metrics with a count of 0 are left out."""
    fetched = jax.device_get(metrics)
    return {name: float(mean.total) / float(mean.count) for name, mean in fetched.items() if mean.count}
