"""Several runs whose steps are one program over a leading axis: points of a sweep that differ in numbers alone.

Each run has a thread, and one of them at a time goes on, up to its next step or the next batch of an evaluation. Once
all that have not ended wait there, these are computed for all at once, and the first goes on. So a run calls `loop.fit`
as it would alone, with batches, metrics, evaluations, checkpoints and an end of its own, and leaves what it leaves
alone; the numbers are equal up to the rounding of sums in another order. Only the training in a run's own folder is
shared, not those of its phases.

The states of the runs lie in one tree of arrays [K,...], from which `own` copies a run's part out, for an evaluation or
a checkpoint. What is frozen is kept once where it is the same in all runs, as an adapter's base or a reference is.

Dimensions: K runs.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment import memory, programs
from alignment.errors import InputError
from alignment.train import hardware, step
from alignment.train.train_state import TrainState, Unsaved

_local = threading.local()
# What stands on empty places of rows of tokens and of their answers: arrays of these names may be made longer.
FILLING = dict.fromkeys(("tokens", "positions", "groups", "branches", "ends", "targets", "mask", "sources"), 0)
FILLING |= dict.fromkeys(("reference", "weights", "labels", "sides", "ordinals"), 0)
FILLING |= dict.fromkeys(("index", "owners", "lists"), -1)


class Ended(BaseException):
    """The process ends; raised in the runs that wait, and not an Exception, so that nothing swallows it."""


@dataclasses.dataclass
class _Step:
    update: step.UpdateFn
    state: Any  # a run's own before its first step, `Share` later
    batch: dict[str, jax.Array]


@dataclasses.dataclass
class _Sums:
    computation: programs.Computation
    args: tuple[Any, ...]
    mesh: Mesh


@dataclasses.dataclass
class Share:
    """A run's part of the states of all."""

    stack: "_Stack"
    row: int


def own(state: Any) -> TrainState:
    """A run's state as it would be alone; the part of a `Share` is copied."""
    return state.stack.own(state.row) if isinstance(state, Share) else state


def compiled_update(update: step.UpdateFn, state: TrainState, workdir: Any) -> step.UpdateFn:
    """`step.compile_update`; for the training of a run of a group, in its own folder, a step together with the others.

    The update then returns a `Share` in place of a state.
    """
    member = _member_in(workdir)
    if member is None:
        return step.compile_update(update, state)
    member.group.admit(member.number, state)
    return lambda state, batch: member.group.meet(member.number, _Step(update, state, batch))


def compiled_sums(computation: programs.Computation, mesh: Mesh) -> Callable[..., Any]:
    """The computation compiled; within `training` in a run of a group, computed together with those of the others."""
    member = getattr(_local, "member", None)
    if member is None or not member.is_training or member.group.in_turn:
        return programs.compiled(computation, place=programs.replicated(mesh))
    return lambda *args: member.group.meet(member.number, _Sums(computation, args, mesh))


def clock() -> float:
    """Seconds; in the shared training of a run without those in which any run of the group did something else."""
    member = getattr(_local, "member", None)
    if member is None or not member.is_training:  # in a phase of its own no other run goes on meanwhile
        return time.perf_counter()
    return time.perf_counter() - member.group.seconds_off(member.is_off)


@contextlib.contextmanager
def off_clock() -> Iterator[None]:
    """What is done within, such as an evaluation, is left out of `clock` in all runs of the group."""
    member = getattr(_local, "member", None)
    before = member is None or member.is_off
    _switch(member, True)
    try:
        yield
    finally:
        _switch(member, before)


def _switch(member: "_Member | None", is_off: bool) -> None:
    if member is not None:
        member.group.seconds_off(member.is_off)
        member.is_off = is_off


@contextlib.contextmanager
def training(workdir: Any) -> Iterator[None]:
    """What `loop.fit` trains within is shared with the other runs of a group, if the folder is this run's own."""
    member = _member_in(workdir)
    if member is None:
        yield
        return
    member.is_training = member.group.has_trained = True
    _switch(member, False)
    try:
        yield
    finally:
        member.is_training = False
        _switch(member, True)


def label(workdir: Any) -> str:
    """What tells a run's lines from those of the others of its group; "" without one."""
    member = _member_in(workdir)
    return "" if member is None else member.group.names[member.number]


@dataclasses.dataclass
class _Member:
    group: "Group"
    number: int
    folder: str
    is_training: bool = False
    is_off: bool = True  # of the clock


def _member_in(workdir: Any) -> _Member | None:
    member = getattr(_local, "member", None)
    return member if member is not None and member.folder == str(workdir) else None


class Group:
    """Runs that are trained together.

    Args:
        configs: of each run, by its name: its settings, flat, by which a refusal says how two runs differ.
        folders: of each, where it trains.
        in_turn: the program takes the steps of the runs one after the other, as on CPUs, where products over stacked
            weights are no faster; evaluations are then computed apart. None: on CPUs.
    """

    def __init__(
        self, configs: Mapping[str, Mapping[str, Any]], folders: Sequence[Any], *, in_turn: bool | None = None
    ) -> None:
        self.in_turn = jax.default_backend() == "cpu" if in_turn is None else in_turn
        self.names, self._configs, self._folders = list(configs), list(configs.values()), list(folders)
        self._go = [threading.Semaphore(0) for _ in self.names]
        self._calls: dict[int, Any] = {}  # `_Step` or `_Sums` of those that wait
        self._results: dict[int, Any] = {}
        self._live = set(range(len(self.names)))
        self.has_trained = False  # a run in its own folder, if only to its end; phases train in others
        self._stack: _Stack | None = None
        self._is_ending = False
        self._refusal: InputError | None = None
        self._seconds_off, self._counted = 0.0, time.perf_counter()

    def run(self, run_fns: Sequence[Callable[[], Any]]) -> list[Any]:
        """Call each function in a thread of its own; what they return.

        Raises:
            BaseException: what a signal's handler raised here. Runs that waited have then ended with `Ended`; the one
                that was computing goes on until the process ends.
        """
        results: list[Any] = [None] * len(run_fns)

        def work(number: int) -> None:
            _local.member = _Member(self, number, str(self._folders[number]))
            self._go[number].acquire()
            try:
                if not self._is_ending:
                    results[number] = run_fns[number]()
            except Ended:
                pass
            finally:
                self._live.discard(number)
                self.seconds_off(is_off=True)
                self._pass_on()

        threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(len(run_fns))]
        for thread in threads:
            thread.start()
        try:
            self._go[0].release()
            while any(thread.is_alive() for thread in threads):  # in short waits, in which signals are handled
                threads[min(self._live, default=0)].join(0.1)
        except BaseException:
            self._is_ending = True
            for go in self._go:
                go.release()
            for thread in threads:
                thread.join(1.0)
            raise
        return results

    def admit(self, number: int, state: TrainState) -> None:
        """Refuse a group whose states alone need more than there is, when the first of them is there."""
        if self._refusal is not None:
            raise self._refusal
        size, room = _bytes(state), memory.available(_device(state))
        rest = len([k for k in self._live if k > number])
        if room is not None and size * rest > room:
            self._refusal = InputError(
                f"{len(self.names)} runs in one program have a state of {hardware.gib(size)} each (parameters and "
                f"optimizer), and {hardware.gib(room)} are free beside the first {number + 1}: that is room for "
                f"{number + 1 + room // size} states at most, and activations are yet to come. Batch fewer runs"
            )
            raise self._refusal

    def seconds_off(self, is_off: bool) -> float:
        """Count the seconds since the last call, of a run that has its turn; all that were not of training."""
        now = time.perf_counter()
        self._seconds_off += now - self._counted if is_off else 0.0
        self._counted = now
        return self._seconds_off

    def meet(self, number: int, call: "_Step | _Sums") -> Any:
        """Wait until all live runs have called, and return this one's result."""
        if self._is_ending:
            raise Ended
        self._calls[number] = call
        clock()  # the seconds up to now are this run's
        self._pass_on()
        self._go[number].acquire()
        if self._is_ending:
            raise Ended
        result = self._results.pop(number)
        if isinstance(result, BaseException):
            raise result
        return result

    def _pass_on(self) -> None:
        """Let the next run go on that waits for no result; without one, compute what all wait for."""
        if self._is_ending:
            return
        ready = self._live - self._calls.keys()
        if not ready and self._live:
            self._serve()
            ready = self._live - self._calls.keys()
        if ready:
            self._go[min(ready)].release()

    def _serve(self) -> None:
        """Compute the evaluations that are waited for; where none is, a step of all runs."""
        sums = {k: call for k, call in self._calls.items() if isinstance(call, _Sums)}
        numbers = sorted(sums or self._calls)
        try:
            calls = [self._calls[k] for k in numbers]
            results = _sums(calls) if sums else self._steps(dict(zip(numbers, calls)))
        except Exception as e:
            if "RESOURCE_EXHAUSTED" in str(e):
                e = InputError(f"{len(numbers)} runs in one program do not fit: {str(e)[:300]}. Batch fewer runs")
            results = [e] * len(numbers)
        for number, result in zip(numbers, results):
            self._results[number] = result
            del self._calls[number]

    def _steps(self, calls: dict[int, _Step]) -> list[Any]:
        """A step of the runs that call; the first time their states are put together."""
        refused: dict[int, Exception] = {}
        if self._stack is None:
            first = min(calls)
            for k in calls:
                if _form(calls[k]) != _form(calls[first]):
                    refused[k] = InputError(self._why_not(first, k))
            self._stack = _Stack({k: call for k, call in calls.items() if k not in refused}, self.names, self.in_turn)
        taken = self._stack.step({k: call.batch for k, call in calls.items() if k not in refused})
        return [refused.get(k) or taken[k] for k in calls]

    def _why_not(self, a: int, b: int) -> str:
        first, second = self._configs[a], self._configs[b]
        keys = [key for key in second if first.get(key) != second[key]]
        values = ", ".join(f"{key} ({first.get(key)!r} and {second[key]!r})" for key in keys)
        return (
            f"{self.names[b]} and {self.names[a]} cannot be steps of one program: they differ in {values or 'nothing'},"
            " and not only in numbers that a program takes as arguments. Batch runs that differ in such numbers, or "
            "run this one by itself"
        )


class _Stack:
    """The states of several runs, and the program of their steps."""

    def __init__(self, calls: dict[int, _Step], names: Sequence[str], in_turn: bool) -> None:
        self.rows = {number: row for row, number in enumerate(calls)}
        self.names = [names[number] for number in calls]
        self._batches = {number: call.batch for number, call in calls.items()}
        states = [call.state for call in calls.values()]
        self._places = jax.tree.map(lambda leaf: leaf.sharding, _moving(states[0]))
        size = _bytes(states[0])
        self.frozen, self.is_shared = _together([state.frozen for state in states], may_share=True)
        wide = jax.tree.map(_wide, self._places)
        parts = programs.abreast(
            [programs.Computation(_update, numbers=dict(update=programs.of(call.update))) for call in calls.values()],
            in_axes=(0, None if self.is_shared else 0, 0),
            in_turn=in_turn,
        )
        self._step = programs.compiled(
            programs.Computation(_apart, dict(num=len(states)), dict(parts=parts)),
            donate_argnums=(0,),
            out_shardings=(wide, None),
            place=states[0].step.sharding,
        )
        self._take = programs.compiled(programs.Computation(_row), out_shardings=self._places)
        self._check_room(states, size)
        self._moving, _ = _together([_moving(state) for state in states])

    def own(self, row: int) -> TrainState:
        """One run's state, copied out."""
        frozen = self.frozen
        if not self.is_shared:
            frozen = _part(frozen, row)
        elif not isinstance(frozen, Unsaved):  # whoever restores a checkpoint frees what it replaces
            frozen = jax.tree.map(jnp.copy, frozen)
        return TrainState(**self._take(self._moving, np.int32(row)), frozen=frozen)

    def step(self, batches: dict[int, dict[str, jax.Array]]) -> dict[int, Any]:
        """A step of all runs, on the last batches of those that have ended; shares and metrics of those with a batch.

        Raises:
            InputError: the batches differ in shape.
        """
        self._batches |= batches
        every = self._alike()
        self._moving, metrics = self._step(self._moving, self.frozen, every)
        return {number: (Share(self, self.rows[number]), metrics[self.rows[number]]) for number in batches}

    def _alike(self) -> tuple[dict[str, jax.Array], ...]:
        """The batches of all, which must be of one shape or can be filled up to one."""
        every = tuple(self._batches.values())
        shapes = [jax.tree.map(jnp.shape, batch) for batch in every]
        ranks = [{name: len(shape) for name, shape in one.items()} for one in shapes]
        if shapes != shapes[:1] * len(shapes) and (ranks != ranks[:1] * len(ranks) or ranks[0].keys() - FILLING.keys()):
            raise InputError(
                f"the batches of the runs {', '.join(self.names)} differ in shape, and are not rows of tokens, which "
                f"could be filled up: {shapes}; run these without batching, or give all the same lengths"
            )
        return every

    def _check_room(self, states: Sequence[TrainState], size: int) -> None:
        """Compile, and refuse what does not fit beside the states, which are there."""

        def widened(leaf):
            place = _wide(leaf.sharding)
            return jax.ShapeDtypeStruct((len(states), *leaf.shape), leaf.dtype, sharding=place)

        moving = jax.tree.map(widened, _moving(states[0]))
        args = (*self._step.args, moving, self.frozen, self._alike())
        program: Any = self._step.func
        analysis = program.lower(*args).compile().memory_analysis()
        room, params = memory.available(_device(states[0])), _bytes(states[0].params)
        work = analysis.temp_size_in_bytes if analysis is not None else params * len(states)
        print(
            f"{len(states)} runs in one program: {hardware.gib(params * len(states))} of parameters, "
            f"{hardware.gib((size - params) * len(states))} of optimizers and references, {hardware.gib(work)} of "
            f"gradients and activations{'' if room is None else f'; {hardware.gib(room)} are free beside the states'}",
            flush=True,
        )
        if room is not None and work > room:
            raise InputError(
                f"{len(states)} runs in one program need {hardware.gib(work)} for gradients and activations, and "
                f"{hardware.gib(room)} are free beside their states. Batch fewer runs"
            )


def _sums(calls: Sequence[_Sums]) -> list[Any]:
    """The results of computations, those of one form and shapes in one program."""
    alike: dict[Any, list[int]] = {}
    for i, call in enumerate(calls):
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(call.args)]
        alike.setdefault((jax.tree.structure((programs.of(call.computation), call.args)), *shapes), []).append(i)
    results: list[Any] = [None] * len(calls)
    for indices in alike.values():
        chosen = [calls[i] for i in indices]
        place = programs.replicated(chosen[0].mesh)
        if len(chosen) == 1:
            computed = [programs.compiled(chosen[0].computation, place=place)(*chosen[0].args)]
        else:
            columns = zip(*(call.args for call in chosen))
            in_axes = tuple(None if _is_one(column) else 0 for column in columns)
            parts = programs.abreast([call.computation for call in chosen], in_axes=in_axes)
            program = programs.Computation(_stacked_sums, dict(num=len(chosen), in_axes=in_axes), dict(parts=parts))
            computed = programs.compiled(program, place=place)(tuple(call.args for call in chosen))
        for i, result in zip(indices, computed):
            results[i] = result
    return results


def _is_one(trees: Sequence[Any]) -> bool:
    """Whether trees hold the very same arrays, such as a base that all runs read; of those no copies are made."""
    leaves = [[id(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees]
    return all(one == leaves[0] for one in leaves)


def _stacked_sums(args, *, parts, num, in_axes):
    columns = zip(zip(*args), in_axes)
    out = parts(*(one[0] if axis is None else jax.tree.map(lambda *x: jnp.stack(x), *one) for one, axis in columns))
    return tuple(_part(out, k) for k in range(num))


def _moving(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("step", "params", "opt_state", "rng")}


def _update(moving, frozen, batch, *, update):
    """A step of one run, without what is frozen among its outputs."""
    new, metrics = update(TrainState(**moving, frozen=frozen), batch)
    if any(a is not b for a, b in zip(jax.tree.leaves(new.frozen), jax.tree.leaves(frozen), strict=True)):
        raise InputError("this experiment's step changes what others only read, so it cannot be batched over runs")
    return _moving(new), metrics


def _apart(moving, frozen, batches, *, parts, num):
    """A step of all runs; the metrics of each by themselves."""
    moving, metrics = parts(moving, frozen, {name: _filled(name, [b[name] for b in batches]) for name in batches[0]})
    return moving, tuple(_part(metrics, k) for k in range(num))


def _filled(name, arrays):
    """Arrays of a batch as one [K,...], as large as the largest."""
    sizes = tuple(max(lengths) for lengths in zip(*(array.shape for array in arrays)))

    def wide(array):
        widths = [(0, size - own) for own, size in zip(array.shape, sizes)]
        return jnp.pad(array, widths, constant_values=FILLING.get(name, 0))

    return jnp.stack([array if array.shape == sizes else wide(array) for array in arrays])


def _part(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def _row(moving, row):
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False), moving)


def _form(call: _Step) -> Any:
    """Equal where steps are of one program."""
    shapes = [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(call.state)]
    return jax.tree.structure((programs.of(call.update), call.state)), shapes


def _together(trees: Sequence[Any], *, may_share: bool = False) -> tuple[Any, bool]:
    """Trees as one with a leading axis, or as the first where all are equal; the others' arrays are freed."""
    first, *others = trees

    def is_same(tree: Any) -> bool:
        pairs = zip(jax.tree.leaves(first), jax.tree.leaves(tree))
        return all(a is b or bool(jnp.array_equal(a, b)) for a, b in pairs)

    if may_share and all(map(is_same, others)):
        kept = {id(leaf) for leaf in jax.tree.leaves(first)}
        for leaf in jax.tree.leaves(others):
            if id(leaf) not in kept:
                leaf.delete()
        return first, True

    # One leaf after the other, because memory may not hold all states twice.
    def together(*leaves):
        stacked = jax.device_put(jnp.stack(leaves), _wide(leaves[0].sharding))
        for leaf in {id(leaf): leaf for leaf in leaves}.values():
            leaf.delete()
        return stacked

    return jax.tree.map(together, *trees), False


def _wide(place: Any) -> Any:
    """The place of an array as that of one with a leading axis, which is not split."""
    return NamedSharding(place.mesh, PartitionSpec(None, *place.spec)) if isinstance(place, NamedSharding) else place


def _device(state: TrainState) -> jax.Device:
    return next(iter(state.step.devices()))


def _bytes(tree: Any) -> int:
    """Bytes that a tree takes on one device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
