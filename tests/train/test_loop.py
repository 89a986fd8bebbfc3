import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import programs
from alignment.errors import InputError
from alignment.models import decoder
from alignment.train import best, checkpoint, loop, step, train_state
from tests.train import helpers

STEPS, HALF = 10, 5
TIMING = ("step_seconds", "examples_per_second", "flops_per_second")


class Loader(helpers.Loader):
    """The usual batches; `events` maps a batch's number to what happens as it is handed out."""

    def __init__(self, events=None):
        super().__init__()
        self.events = events or {}

    def __next__(self):
        batch = {**super().__next__(), "scale": np.ones((8, 1), np.float32)}
        event = self.events.get(self.number - 1, lambda batch: None)
        event(batch)
        return batch


def scaled(params, batch, *, lm_loss, **rest):
    mean, metrics = lm_loss(params, batch, **rest)
    return step.Mean(mean.total * jnp.max(batch["scale"]), mean.count), metrics


def fit(workdir, steps=STEPS, events=None, **options):
    """One call of the loop on the small model -> (state on the host, summary, loader)."""
    mesh, _, lm_loss, state = helpers.setup()
    average = options.pop("average", None)
    tx = helpers.optimizer.adamw(1e-2, warmup_steps=2, total_steps=20, average=average)
    if average is not None:
        params = helpers.start_params()
        state = train_state.create(helpers.model(), tx, np.zeros((1, 4), np.int32), seed=0, mesh=mesh, params=params)

    loss_fn = programs.Computation(scaled, numbers=dict(lm_loss=lm_loss))  # all calls share a program
    loader = Loader(events)
    evals = {"heldout": loop.evaluator(lm_loss, [helpers.lm_batch(n, seed=1) for n in range(2)])}
    pace = {"log_every": 2, "eval_every": HALF, "save_every": HALF}
    pace |= {field.name: options.pop(field.name) for field in dataclasses.fields(loop.Pace) if field.name in options}
    on_first_fn = options.pop("on_first_fn", None)
    settings = dict(pace=loop.Pace(**pace), logging=loop.Logging(**{"sinks": ()} | options), on_first_fn=on_first_fn)
    update = step.build(loss_fn, tx, rate_fn=helpers.optimizer.learning_rate)
    state, summary = loop.fit(update, state, loader, evals, mesh, workdir, steps=steps, **settings)
    return jax.device_get(state), summary, loader


def rows(workdir):
    """metrics.jsonl less what depends on the clock."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in found]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run never interrupted: its state, metrics, loader and summary."""
    workdir = tmp_path_factory.mktemp("whole")
    seen = []
    keep = dict(on_first_fn=lambda values, batch: seen.append((values, batch)), flops_fn=lambda batch: 1e6)
    state, summary, loader = fit(workdir, **keep)
    return {"state": state, "rows": rows(workdir), "summary": summary, "loader": loader, "seen": seen, "at": workdir}


@pytest.fixture
def stop():
    """The event that asks the loop to stop, unset again afterwards."""
    yield loop.STOP
    loop.STOP.clear()


def test_five_steps_resumed_for_five_more_equal_ten_in_every_bit(whole, tmp_path):
    fit(tmp_path, steps=HALF)
    state, summary, loader = fit(tmp_path)
    assert_same(state, whole["state"])  # parameters, both moments, the counts, the key, the step
    assert loader.get_state() == whole["loader"].get_state() == {"number": STEPS}
    assert rows(tmp_path) == whole["rows"]
    assert summary["heldout/loss"] == whole["summary"]["heldout/loss"]


def test_a_finished_run_fitted_again_trains_no_further_and_gives_the_same_numbers(whole):
    state, summary, _ = fit(whole["at"])
    assert_same(state, whole["state"])
    untimed = {k: v for k, v in whole["summary"].items() if k not in TIMING}
    assert {k: v for k, v in summary.items() if k not in TIMING} == untimed
    assert summary["examples_per_second"] > 0  # the last that was logged: nothing was trained now
    assert rows(whole["at"]) == whole["rows"]


def test_every_logged_step_is_one_line_with_training_and_heldout_values_together(whole):
    assert [row["step"] for row in whole["rows"]] == [0, 2, 4, 5, 6, 8, 10]
    with_heldout = [row["step"] for row in whole["rows"] if "heldout/loss" in row]
    assert with_heldout == [0, 5, 10]
    assert all({"loss", "grad_norm", "lr", "tokens"} <= row.keys() for row in whole["rows"][1:])
    assert not any("nonfinite" in name for row in whole["rows"] for name in row)
    assert whole["summary"]["heldout/loss"] == whole["rows"][-1]["heldout/loss"] and whole["summary"]["steps"] == STEPS


def test_operations_of_a_second_stand_beside_the_seconds_of_a_step_and_in_the_summary(whole):
    lines = [json.loads(line) for line in (whole["at"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "flops_per_second" in line] == [2, 4, 5, 6, 8, 10]
    for line in lines[1:]:
        np.testing.assert_allclose(line["flops_per_second"] * line["step_seconds"], 1e6)
    assert whole["summary"]["flops_per_second"] > 0 and "utilisation" not in whole["summary"]  # on a CPU


def test_a_line_holds_the_mean_over_all_tokens_since_the_last_one(whole, tmp_path):
    fit(tmp_path, log_every=1)
    every = {row["step"]: row for row in rows(tmp_path)}
    counts = {number: float(helpers.lm_batch(number - 1)["mask"].sum()) for number in (3, 4)}
    assert counts[3] != counts[4]
    mean = (every[3]["loss"] * counts[3] + every[4]["loss"] * counts[4]) / (counts[3] + counts[4])
    merged = next(row for row in whole["rows"] if row["step"] == 4)
    np.testing.assert_allclose(merged["loss"], mean, rtol=1e-6)
    np.testing.assert_allclose(merged["grad_norm"], (every[3]["grad_norm"] + every[4]["grad_norm"]) / 2, rtol=1e-6)


def test_the_first_metrics_are_shown_once_to_a_fresh_run_and_never_to_a_resumed_one(whole, tmp_path):
    ((values, batch),) = whole["seen"]
    np.testing.assert_array_equal(batch["tokens"], helpers.lm_batch(0)["tokens"])
    fit(tmp_path, steps=1)
    np.testing.assert_allclose(values["loss"], rows(tmp_path)[1]["loss"], rtol=1e-6)

    def refuse(values, batch):
        raise AssertionError("a resumed run has no first metrics")

    fit(tmp_path, steps=2, on_first_fn=refuse)


def test_what_refuses_the_first_metrics_ends_the_run_there(tmp_path):
    def refuse(values, batch):
        raise InputError("the first loss must be 2")

    for _ in range(2):  # the second start finds the checkpoint of step 0
        with pytest.raises(InputError, match="must be 2"):
            fit(tmp_path, on_first_fn=refuse)
    assert not loop.ACTIVE.is_set() and loop.latest_step(tmp_path) == 0


def test_the_evaluator_is_the_plain_mean_over_all_examples_and_filling_counts_nothing():
    mesh, _, loss_fn, state = helpers.setup()
    batches = [helpers.lm_batch(n, seed=2) for n in range(3)]
    batches[-1]["mask"][5:] = 0  # three rows that only fill the batch
    found = loop.evaluator(loss_fn, batches)(state, mesh)

    model, total, count = helpers.model(), 0.0, 0
    for batch in batches:
        inputs = (batch[name] for name in ("tokens", "positions", "groups"))
        hidden = model.apply({"params": state.params}, *inputs)
        logits = np.asarray(decoder.logits(model, state.params, hidden), np.float64)
        logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        for row, place in zip(*np.nonzero(batch["mask"])):
            total -= logps[row, place, batch["targets"][row, place]]
            count += 1
    assert count != sum(b["mask"].size for b in batches)
    np.testing.assert_allclose(found["loss"], total / count, rtol=1e-5)


def test_asked_to_stop_the_loop_saves_raises_and_goes_on_to_the_same_end(whole, stop, tmp_path):
    heard = []

    def ask(batch):
        heard.append(loop.ACTIVE.is_set())
        stop.set()

    with pytest.raises(loop.Stopped, match=f"after step 7 of {STEPS}"):
        fit(tmp_path, events={6: ask})
    assert heard == [True] and not loop.ACTIVE.is_set()
    assert loop.latest_step(tmp_path) == 7
    stop.clear()
    state, _, loader = fit(tmp_path)
    assert_same(state, whole["state"])
    assert loader.get_state() == whole["loader"].get_state()
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps)) and set(steps) >= {row["step"] for row in whole["rows"]}


def test_a_crash_between_checkpoints_is_made_good_by_the_next_start(whole, tmp_path):
    def crash(batch):
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        fit(tmp_path, events={8: crash})
    assert rows(tmp_path)[-1]["step"] > loop.latest_step(tmp_path) == HALF  # lines past the checkpoint
    state, _, _ = fit(tmp_path)
    assert_same(state, whole["state"])
    assert rows(tmp_path) == whole["rows"]


def test_a_loss_that_is_no_number_stops_with_step_and_records_and_the_last_good_checkpoint_stays(whole, tmp_path):
    def poison(batch):
        batch["scale"][3] = np.inf

    said = r"at step 7, batch of records \[600, 601, .*, 607\]; the last good checkpoint is that of step 5"
    with pytest.raises(InputError, match=said):
        fit(tmp_path, events={6: poison})
    assert loop.latest_step(tmp_path) == HALF
    state, _, _ = fit(tmp_path)  # the records mended
    assert_same(state, whole["state"])
    assert rows(tmp_path) == whole["rows"]


def test_a_killed_run_s_half_written_checkpoint_is_passed_over_and_removed(whole, tmp_path):
    fit(tmp_path, steps=HALF)
    torn = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp-0"
    torn.mkdir()
    (torn / "params").mkdir()
    state, _, _ = fit(tmp_path)
    assert_same(state, whole["state"])
    assert not torn.exists()


def test_the_newest_checkpoints_are_kept_and_no_more(tmp_path):
    fit(tmp_path, steps=3, save_every=1, keep=2)
    with checkpoint.open_manager(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [2, 3]


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("log_every", 0), ("eval_every", -1), ("save_every", -1)])
def test_intervals_that_mean_nothing_are_refused_by_name(name, value, tmp_path):
    with pytest.raises(InputError, match=f"{name}={value} must be"):
        fit(tmp_path, **{name: value})


def test_no_steps_evaluate_only(tmp_path):
    _, summary, _ = fit(tmp_path, steps=0)
    assert summary["steps"] == 0 and "heldout/loss" in summary
    assert [row["step"] for row in rows(tmp_path)] == [0] and loop.latest_step(tmp_path) is None


def test_a_stop_that_arrives_during_an_evaluation_is_obeyed_right_after_it(tmp_path, stop, monkeypatch):
    evaluate = loop._Run.evaluate

    def evaluate_and_stop(run):
        values = evaluate(run)
        if int(run.state.step) == HALF - 1:
            stop.set()
        return values

    monkeypatch.setattr(loop._Run, "evaluate", evaluate_and_stop)
    with pytest.raises(loop.Stopped, match=f"stopped after step {HALF - 1} "):
        fit(tmp_path, eval_every=HALF - 1, save_every=0, log_every=100)
    assert loop.latest_step(tmp_path) == HALF - 1 and "heldout/loss" in rows(tmp_path)[-1]
    stop.set()
    with pytest.raises(loop.Stopped, match="before the first step"):
        fit(tmp_path / "fresh")


@pytest.mark.parametrize("step", [HALF, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, STEPS))])
def test_a_stop_that_arrives_while_a_checkpoint_is_written_is_obeyed_and_the_run_goes_on(
    whole, tmp_path, stop, monkeypatch, step
):
    save = loop._Run.save

    def save_and_stop(run):
        save(run)  # Orbax goes on writing in the background
        if int(run.state.step) == step:
            stop.set()

    monkeypatch.setattr(loop._Run, "save", save_and_stop)
    with pytest.raises(loop.Stopped, match="stopped"):
        fit(tmp_path, save_every=HALF)
    monkeypatch.undo()
    stop.clear()
    assert loop.latest_step(tmp_path) in (step, step + 1)
    state, *_ = fit(tmp_path, save_every=HALF)
    assert_same(state, whole["state"])


def away_from(number):
    """Events that turn the loss round from this batch on, so that the held-out loss rises."""

    def turn(batch):
        batch["scale"] *= -1

    return dict.fromkeys(range(number, 40), turn)


def test_a_value_that_is_no_number_is_never_the_best(tmp_path):
    watch = best.Watch(tmp_path, "heldout/loss", patience=2, restored=None)
    watch.history = [(1, (float("nan"),)), (2, (0.5,)), (3, (float("nan"),))]
    assert watch.best_step() == 2 and not watch.is_over
    watch.close()


def test_the_best_state_is_that_of_the_best_step_and_lies_there_when_the_run_saves(tmp_path):
    *_, state = helpers.setup()
    states = [dataclasses.replace(state, step=jnp.full_like(state.step, number)) for number in range(6)]
    watch = best.Watch(tmp_path, "heldout/loss", patience=None, restored=None)
    for number, value in enumerate([9.0, 8.0, 7.0, 6.0, 5.0]):
        watch.note(number, {"heldout/loss": value}, states[number])
        if number in (0, 2):
            watch.prepare(number)
            assert (tmp_path / f"best/checkpoints/{number}/params").is_dir()
    watch.save(states[5])  # as if another start had
    assert int(watch.restore(states[0]).step) == 4
    watch.close()
    kept = sorted(int(path.name) for path in (tmp_path / "best/checkpoints").glob("[0-9]*"))
    assert kept == [0, 2, 4, 5]  # the run's own checkpoint of step 2 may be half written
    best.Watch(tmp_path, "heldout/loss", patience=None, restored=2).close()
    assert {path.name for path in (tmp_path / "best/checkpoints/.digests").iterdir()} == {"0.json", "2.json"}


def test_a_metric_that_is_not_measured_is_refused_before_anything_is_kept(tmp_path):
    with pytest.raises(InputError, match="the nearest is 'heldout/loss'"):
        fit(tmp_path, best="heldout/los", eval_every=1)
    assert rows(tmp_path) == [] and not list((tmp_path / "best/checkpoints").glob("[0-9]*"))
    with pytest.raises(InputError, match="best='loss' must be a held-out metric"):
        loop.Pace(best="loss")


WATCHED = dict(best="heldout/loss", eval_every=1, save_every=2)


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A run whose held-out loss rises after step 4, with the best parameters as its result."""
    folder = tmp_path_factory.mktemp("turned")
    return folder, *fit(folder, events=away_from(4), **WATCHED)


def test_the_best_parameters_by_a_heldout_metric_are_the_result(turned, tmp_path):
    folder, state, summary, _ = turned
    four, of_four, _ = fit(tmp_path, steps=4, eval_every=1)
    assert summary["best_step"] == 4 and summary["steps"] == STEPS
    assert_same(state.params, four.params)
    assert summary["heldout/loss"] == of_four["heldout/loss"]
    assert rows(folder)[-1]["heldout/loss"] > summary["heldout/loss"]  # the curve shows what came after
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.params)
    assert_same(jax.device_get(checkpoint.load_params(folder, like)), state.params)  # what run:DIR opens
    again, same, _ = fit(folder, events=away_from(4), **WATCHED)
    assert_same(again.params, state.params)
    assert {k: v for k, v in same.items() if k not in TIMING} == {k: v for k, v in summary.items() if k not in TIMING}


def test_a_run_without_better_values_ends_after_its_patience_and_stays_ended(turned, tmp_path, capsys):
    _, best, _, _ = turned
    state, summary, loader = fit(tmp_path, events=away_from(4), patience=2, **WATCHED)
    assert summary["steps"] == 6 and summary["best_step"] == 4 and loader.number == 6
    assert_same(state.params, best.params)
    again, same, loader = fit(tmp_path, events=away_from(4), patience=2, **WATCHED)
    assert_same(again.params, best.params)
    assert loader.number == 6 and same["steps"] == 6
    fit(tmp_path, steps=20, events=away_from(4), patience=2, **WATCHED)
    assert "ended at step 6 of 20, because patience=2 evaluations" in capsys.readouterr().out


def test_a_run_that_was_killed_finds_the_same_best_parameters_and_the_same_end(turned, tmp_path):
    folder, best, summary, _ = turned

    def crash(batch):
        raise RuntimeError("killed")

    for number in (3, 5):
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path, events=away_from(4) | {number: crash}, **WATCHED)
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 6, "heldout/lo')  # torn by the kill
    state, same, _ = fit(tmp_path, events=away_from(4), **WATCHED)
    assert_same(state.params, best.params)
    assert {k: v for k, v in same.items() if k not in TIMING} == {k: v for k, v in summary.items() if k not in TIMING}
    assert rows(tmp_path) == rows(folder)


def test_a_best_state_outlives_better_ones_that_a_killed_run_does_not_come_to_again(tmp_path):
    def crash(batch):
        raise RuntimeError("killed")

    rarely = WATCHED | dict(save_every=STEPS)
    first, *_ = fit(tmp_path, steps=1, **rarely)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path, events={4: crash}, **rarely)  # the steps up to 4 were each better than the one before
    assert loop.latest_step(tmp_path) == 1
    state, summary, _ = fit(tmp_path, events=away_from(1), **rarely)  # as on hardware that rounds otherwise
    assert summary["best_step"] == 1
    assert_same(state.params, first.params)


def test_a_metric_that_no_evaluation_has_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(InputError, match=r"loop\.best='heldout/accuracy' is not one of: heldout/loss, heldout/tokens"):
        fit(tmp_path, best="heldout/accuracy")
    with pytest.raises(InputError, match="patience=3 counts evaluations"):
        loop.Pace(patience=3)
    with pytest.raises(InputError, match="save_minutes=0"):
        loop.Pace(save_minutes=0.0)


def test_minutes_save_at_the_next_logged_step(tmp_path, monkeypatch):
    seconds = [0]

    def pass_time(batch):
        seconds[0] += 10

    monkeypatch.setattr(loop.time, "monotonic", lambda: seconds[0])
    events = dict.fromkeys(range(STEPS), pass_time)
    fit(tmp_path, events=events, save_every=0, eval_every=0, save_minutes=0.5, keep=20)
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert saved == [0, 4, 8, 10]


def test_a_profile_is_of_so_many_steps_behind_two_that_warm_up(tmp_path, monkeypatch):
    calls, batches = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append((folder, len(batches))))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(len(batches)))
    events = dict.fromkeys(range(STEPS), batches.append)
    monkeypatch.setattr(loop, "PROFILED", 3)
    fit(tmp_path, steps=6, events=events)
    assert calls == [(str(tmp_path / "profile"), 2), 5]
    fit(tmp_path, steps=8, events=events)  # the next training has none
    assert len(calls) == 2
    monkeypatch.setattr(loop, "PROFILED", 3)
    with pytest.raises(InputError, match="--profile=3: 2 steps are left to train"):
        fit(tmp_path, steps=10, events=events)


def test_the_moving_average_is_evaluated_and_returned_and_resumes_exactly(tmp_path):
    """A slow twin: the parameters after each step, averaged on the host in float64."""
    mean = jax.tree.map(np.float64, helpers.start_params())
    for steps in range(1, 5):  # one run, which goes on a step at a time
        after = fit(tmp_path / "raw", steps=steps)[0].params
        mean = jax.tree.map(lambda m, p: 0.5 * m + 0.5 * np.float64(p), mean, after)
    state, summary, _ = fit(tmp_path / "a", steps=4, average=0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, mean)
    _, of_raw, _ = fit(tmp_path / "raw", steps=4)
    assert summary["heldout/loss"] != of_raw["heldout/loss"]  # of the average
    fit(tmp_path / "b", steps=2, average=0.5)
    resumed, *_ = fit(tmp_path / "b", steps=4, average=0.5)
    assert_same(resumed.params, state.params)
    with pytest.raises(InputError, match="average=1"):
        helpers.optimizer.adamw(1e-3, average=1.0)
