import functools
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import memory, programs
from alignment.errors import InputError
from alignment.models import lora
from alignment.preference import pairs
from alignment.train import adapters, batched, loop, next_token, optimizer, step, train_state
from tests.train import helpers

POINTS = {
    "plain": dict(seed=0, beta=0.1, rate=1e-2),
    "steep": dict(seed=1, beta=0.5, rate=1e-2),
    "fast": dict(seed=0, beta=0.1, rate=3e-2),
}
STEPS = 6
TIMING = ("step_seconds", "_per_second")


def fit(workdir, *, seed, beta, rate, mesh_shape=(1, 1, 1), steps=STEPS, loss="dpo", has_reference=True, make_fn=None):
    """A run as an experiment makes it: other first weights and batches for another seed."""
    model, mesh = helpers.model(), helpers.make_mesh(mesh_shape)
    # With the usual eps Adam would make much of the rounding of gradients that are nearly 0.
    tx = optimizer.adamw(rate, warmup_steps=1, total_steps=STEPS, clip_norm=0.5, eps=1e-4)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf * (1 + 0.1 * seed)), helpers.start_params())
    state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=seed, mesh=mesh, params=params)
    make_fn = make_fn or functools.partial(helpers.pair_batch, seed=seed)
    if has_reference:
        state, whole_fn = train_state.with_reference(state), make_fn
        make_fn = lambda number: {k: v for k, v in whole_fn(number).items() if k != "reference"}  # noqa: E731
    loss_fn = pairs.loss_fn(model, loss, mesh=mesh, beta=beta)
    heldout = [make_fn(90), make_fn(91)]
    return loop.fit(
        step.build(loss_fn, tx, rate_fn=optimizer.learning_rate),
        state,
        helpers.Loader(make_fn),
        {"heldout": loop.evaluator(loss_fn, heldout)},
        mesh,
        workdir,
        steps=steps,
        pace=loop.Pace(log_every=1, eval_every=2, save_every=3),
        logging=loop.Logging("pairs", 4, sinks=()),
    )


def together(folder, points=POINTS, *, in_turn, common=(), **changes):
    """All points in one group; what each returned, or the exception it ended with."""

    def one(name, options):
        try:
            state, summary = fit(folder / name, **options)
            return jax.device_get(state), summary
        except Exception as e:
            return e

    options = {name: {**point, **dict(common), **changes.get(name, {})} for name, point in points.items()}
    group = batched.Group(options, [folder / name for name in points], in_turn=in_turn)
    results = group.run([functools.partial(one, name, options[name]) for name in points])
    return dict(zip(points, results))


def fit_adapter(workdir, *, rate):
    """An adapter of a base that every run has read for itself, evaluated before and after."""
    model, mesh = helpers.model(), helpers.make_mesh()
    adapter = lora.lay_out(lora.Settings(rank=2, targets=("q_proj", "up_proj")), model)
    base = jax.tree.map(jnp.array, helpers.start_params())
    tx = optimizer.adamw(rate, schedule="constant", eps=1e-4)
    loss_fn = lora.loss_fn(pairs.loss_fn(model, "dpo", mesh=mesh, beta=0.1), adapter)
    state, summary = loop.fit(
        step.build(loss_fn, tx),
        adapters.create(adapter, tx, base, seed=0, mesh=mesh),
        helpers.Loader(helpers.pair_batch),
        {"heldout": loop.evaluator(loss_fn, [helpers.pair_batch(9)])},
        mesh,
        workdir,
        steps=3,
        pace=loop.Pace(),
        logging=loop.Logging("pairs", 4, sinks=()),
    )
    assert summary["heldout/loss"] == rows(workdir)[-1]["heldout/loss"]
    return state


def test_adapters_of_one_base_are_trained_together_and_the_base_lies_there_once(tmp_path, monkeypatch):
    axes, abreast = [], programs.abreast
    monkeypatch.setattr(
        programs, "abreast", lambda *args, **given: axes.append(given["in_axes"]) or abreast(*args, **given)
    )
    rates = {"slow": 1e-2, "fast": 1e-1}
    folders = [tmp_path / name for name in rates]
    group = batched.Group({name: {"rate": rate} for name, rate in rates.items()}, folders, in_turn=False)
    run_fns = [functools.partial(fit_adapter, tmp_path / name, rate=rate) for name, rate in rates.items()]
    found = dict(zip(rates, group.run(run_fns)))
    bases = [jax.tree.leaves(state.frozen) for state in found.values()]
    assert all(a is b for a, b in zip(*bases, strict=True)) and len(bases[0]) > 3
    for name, rate in rates.items():
        alone = fit_adapter(tmp_path / f"{name} alone", rate=rate)
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
        jax.tree.map(close, jax.device_get(found[name]), jax.device_get(alone))
    ends = [jax.tree.leaves(jax.device_get(state.params)) for state in found.values()]
    assert max(np.abs(a - b).max() for a, b in zip(*ends)) > 1e-2
    assert axes == [(0, 0, 0), (0, None, 0), (0, None, 0)]  # of the evaluation before, the steps, and that at the end


def fit_text(workdir, *, seed, rate):
    """Supervised tuning: rows of tokens, of which each batch counts others."""
    model, mesh = helpers.model(), helpers.make_mesh()
    batches = functools.partial(helpers.lm_batch, seed=seed)
    return next_token.fit(
        model,
        jax.tree.map(jnp.array, helpers.start_params()),
        helpers.Loader(batches),
        [batches(90)],
        mesh,
        workdir,
        tx=optimizer.adamw(rate, schedule="constant", eps=1e-4),
        seed=seed,
        steps=3,
        batch_size=8,
        pace=loop.Pace(log_every=1),
        logging=loop.Logging(sinks=()),
    )


def test_language_models_are_tuned_together_on_rows_that_count_differently(tmp_path):
    points = {"slow": dict(seed=0, rate=1e-3), "fast": dict(seed=1, rate=1e-2)}
    group = batched.Group(points, [tmp_path / name for name in points], in_turn=False)
    found = group.run([functools.partial(fit_text, tmp_path / name, **point) for name, point in points.items()])
    for name, result in zip(points, found):
        state, summary = fit_text(tmp_path / f"{name} alone", **points[name])
        own = {name: (jax.device_get(state), rows(tmp_path / f"{name} alone"))}
        assert_as_alone(tmp_path, name, result, own)
        assert result[1]["heldout/perplexity"] == pytest.approx(summary["heldout/perplexity"], rel=1e-5)
    assert group.has_trained and found[0][1]["heldout/perplexity"] != found[1][1]["heldout/perplexity"]


def rows(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(TIMING)} for row in found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    found = {name: fit(folder / name, **point) for name, point in POINTS.items()}
    return {name: (jax.device_get(state), rows(folder / name)) for name, (state, _) in found.items()}


def assert_as_alone(folder, name, result, alone, tolerance=2e-5):
    """The run's state and lines are those of the run that trained alone."""
    state, lines = alone[name]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance), result[0], state)
    for mine, own in zip(rows(folder / name), lines, strict=True):
        assert mine == pytest.approx(own, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("in_turn", [False, True])
def test_each_run_of_a_group_leaves_what_it_leaves_alone(in_turn, alone, tmp_path):
    for name, result in together(tmp_path, in_turn=in_turn).items():
        assert_as_alone(tmp_path, name, result, alone)
        assert loop.latest_step(tmp_path / name) == STEPS
        assert result[1]["pairs_per_second"] > 0
    assert not loop.ACTIVE.is_set()
    steps = [alone[name][1][-1]["loss"] for name in POINTS]
    assert len({round(loss, 4) for loss in steps}) == 3  # so that mixing the runs up could not pass


@pytest.mark.slow
def test_a_group_on_a_mesh_computes_the_same(alone, tmp_path):
    points = {name: POINTS[name] for name in ("steep", "fast")}
    for name, result in together(tmp_path, points, in_turn=False, common=dict(mesh_shape=(2, 2, 2))).items():
        assert_as_alone(tmp_path, name, result, alone, tolerance=1e-4)


def test_the_steps_of_all_runs_are_one_call_of_one_program(tmp_path, monkeypatch):
    calls = []
    step_of = batched._Stack.step
    monkeypatch.setattr(batched._Stack, "step", lambda self, given: calls.append(sorted(given)) or step_of(self, given))
    together(tmp_path, in_turn=False, common=dict(steps=3))
    assert calls == [[0, 1, 2]] * 3


def test_a_reference_that_runs_have_in_common_is_kept_once(tmp_path, monkeypatch):
    stacks = []
    begin = batched._Stack.__init__
    monkeypatch.setattr(batched._Stack, "__init__", lambda self, *args: stacks.append(self) or begin(self, *args))
    points = {name: POINTS[name] for name in ("plain", "fast")}  # of one seed
    together(tmp_path / "same", points, in_turn=True, common=dict(steps=1))
    together(tmp_path / "other", in_turn=True, common=dict(steps=1))
    together(tmp_path / "stored", points, in_turn=True, common=dict(steps=1, has_reference=False))
    assert [stack.is_shared for stack in stacks] == [True, False, True]
    assert jax.tree.leaves(stacks[2].frozen) == []


def test_runs_that_are_at_their_end_already_have_trained_in_their_group(tmp_path):
    points = {"slow": dict(seed=0, rate=1e-3), "fast": dict(seed=1, rate=1e-2)}
    for _ in range(2):
        group = batched.Group(points, [tmp_path / name for name in points], in_turn=False)
        group.run([functools.partial(fit_text, tmp_path / name, **point) for name, point in points.items()])
        assert group.has_trained  # where not, the launcher advises against a group


def test_runs_that_were_killed_at_different_steps_go_on_together_to_the_same_end(alone, tmp_path):
    for name, steps in (("plain", 3), ("steep", 4)):  # "fast" begins afresh
        fit(tmp_path / name, steps=steps, **POINTS[name])
    for name, result in together(tmp_path, in_turn=False).items():
        state = alone[name][0]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), result[0], state)


def test_a_stop_saves_every_run_and_the_next_start_comes_to_the_same_end(alone, tmp_path):
    def make_fn(number):
        if number == 3:  # of the first run, whose turn it is
            loop.STOP.set()
        return helpers.pair_batch(number, seed=POINTS["plain"]["seed"])

    try:
        stopped = together(tmp_path, in_turn=False, plain=dict(make_fn=make_fn))
    finally:
        loop.STOP.clear()
    assert all(isinstance(result, loop.Stopped) for result in stopped.values())
    # The others heard of it in their turn, which was the end of the step before.
    assert [loop.latest_step(tmp_path / name) for name in POINTS] == [4, 3, 3]
    for name, result in together(tmp_path, in_turn=False).items():
        state = alone[name][0]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), result[0], state)


def test_a_run_that_fails_or_ends_early_leaves_the_others_as_they_are(alone, tmp_path):
    def bad(number):
        batch = helpers.pair_batch(number, seed=1)
        batch["weights"] = batch["weights"] * (np.nan if number == 2 else 1)
        return batch

    found = together(tmp_path, in_turn=False, steep=dict(make_fn=bad), fast=dict(steps=2))
    assert "not a finite number at step 3" in str(found["steep"])
    assert found["fast"][1]["steps"] == 2
    assert_as_alone(tmp_path, "plain", found["plain"], alone)


def test_a_run_of_another_program_is_refused_by_name_and_the_others_train(alone, tmp_path):
    found = together(tmp_path, in_turn=True, steep=dict(loss="ipo"))
    said = str(found["steep"])
    assert isinstance(found["steep"], InputError) and said.startswith("steep and plain cannot be steps of one program")
    assert "loss (None and 'ipo')" in said
    assert_as_alone(tmp_path, "fast", found["fast"], alone)


def with_longer_rows(number, **more):
    """A batch whose rows and answers have empty places at their ends."""
    batch = helpers.pair_batch(number, seed=POINTS["steep"]["seed"]) | more
    longer = ("tokens", "positions", "groups", "branches", "sources", "targets", "mask", "reference")
    return {k: np.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, 3)]) if k in longer else v for k, v in batch.items()}


def test_rows_of_tokens_are_filled_up_to_the_longest(alone, tmp_path):
    for name, result in together(tmp_path, in_turn=True, steep=dict(make_fn=with_longer_rows)).items():
        assert_as_alone(tmp_path, name, result, alone)


def test_other_batches_of_different_shapes_are_refused(tmp_path):
    def images(number):
        return with_longer_rows(number, images=np.zeros((4, 3)))

    found = together(tmp_path, in_turn=True, common=dict(make_fn=images), steep=dict(make_fn=with_longer_rows))
    assert all(isinstance(result, InputError) and "differ in shape" in str(result) for result in found.values())


@pytest.mark.parametrize(("room", "said"), [(0.5, "room for 1 states at most"), (2.5, "for gradients and activations")])
def test_a_group_that_memory_does_not_hold_is_refused_with_the_bytes(room, said, tmp_path, monkeypatch):
    state_bytes = 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(helpers.start_params()))  # and Adam's moments
    monkeypatch.setattr(memory, "available", lambda device: int(room * state_bytes))
    found = together(tmp_path, in_turn=False, common=dict(has_reference=False))
    assert all(isinstance(result, InputError) and said in str(result) for result in found.values())


def test_what_a_run_does_beside_training_is_left_out_of_the_others_times():
    seconds, of_phases = {}, []

    def one(name, pause):
        begin = batched.clock()
        threading.Event().wait(0.05)
        of_phases.append(batched.clock() - begin)  # as of a phase before it, whose times are its own
        with batched.training(name):
            begin = batched.clock()
            group.meet(names.index(name), batched._Sums(None, (), None))
            with batched.off_clock():
                threading.Event().wait(pause)
            group.meet(names.index(name), batched._Sums(None, (), None))
            seconds[name] = batched.clock() - begin

    names = ["a", "b"]
    group = batched.Group({name: {} for name in names}, names, in_turn=True)
    group._serve = lambda: [group._results.update({k: None}) or group._calls.pop(k) for k in list(group._calls)]
    group.run([functools.partial(one, "a", 0.3), functools.partial(one, "b", 0.2)])
    assert all(0 <= taken < 0.1 for taken in seconds.values())
    assert len(of_phases) == 2 and min(of_phases) >= 0.05


def test_a_signal_ends_the_runs_that_wait_and_no_other_begins():
    class Signal(BaseException):
        pass

    begun, ended = [], []

    def waits(name, seconds):
        begun.append(name)
        try:
            group.meet(0, None)
        except BaseException as e:
            ended.append(type(e))
            raise

    def computes(name, seconds):
        begun.append(name)
        threading.Event().wait(seconds)

    def interrupted_join(self, timeout=None):
        join(self, timeout)
        if timeout == 0.1 and "b" in begun:
            raise Signal

    join = threading.Thread.join
    names = ["a", "b", "c"]
    group = batched.Group({name: {} for name in names}, names, in_turn=True)
    threading.Thread.join = interrupted_join
    try:
        with pytest.raises(Signal):
            group.run([lambda: waits("a", 0), lambda: computes("b", 1.5), lambda: computes("c", 0)])
    finally:
        threading.Thread.join = join
    assert begun == ["a", "b"] and ended == [batched.Ended]
