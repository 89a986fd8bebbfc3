import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.errors import InputError
from alignment.models import vision
from alignment.train import classify, loop, optimizer, sharding, step
from tests.train.helpers import make_mesh

NUM_CLASSES = 3


class Small(nn.Module):
    """A convolution with batch statistics, in the shape that every image network has."""

    num_classes: int = NUM_CLASSES
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_NYXC, train=False, mask_NYX=None):
        x_NYXC = nn.Conv(4, (3, 3), use_bias=False, name="conv", dtype=self.dtype)(x_NYXC)
        mask_NYXC = None if mask_NYX is None else (mask_NYX > 0)[..., None]
        x_NYXC = nn.BatchNorm(use_running_average=not train, name="norm", dtype=self.dtype)(x_NYXC, mask=mask_NYXC)
        x_NYXC = nn.relu(x_NYXC)
        weight_NYX1 = jnp.ones_like(x_NYXC[..., :1]) if mask_NYX is None else mask_NYXC.astype(x_NYXC.dtype)
        pooled_NC = jnp.sum(x_NYXC * weight_NYX1, axis=(1, 2)) / jnp.sum(weight_NYX1, axis=(1, 2))
        return nn.Dense(self.num_classes, name="head", dtype=self.dtype)(pooled_NC), {"conv": x_NYXC}


def images(number, rows=8, size=(6, 6), masked=False, seed=0):
    """Class k has channel k brighter than the others."""
    rng = np.random.default_rng([seed, number])
    labels = rng.integers(0, NUM_CLASSES, rows)
    pixels = rng.integers(0, 200, (rows, *size, 3))
    pixels[np.arange(rows), :, :, labels] += 40
    batch = {
        "images": pixels.astype(np.uint8),
        "labels": labels.astype(np.int32),
        "weights": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32) + 100 * number,
    }
    if masked:
        batch["mask"] = np.ones((rows, *size), np.uint8)
        batch["mask"][::2, -2:] = 0
    return batch


class Loader:
    """Endless numbered batches; with several sizes they take turns. `fails_at` plays the kill."""

    def __init__(self, sizes=((6, 6),), masked=False, fails_at=None):
        self.number, self.sizes, self.masked, self.fails_at = 0, sizes, masked, fails_at

    def __next__(self):
        if self.number == self.fails_at:
            raise KeyboardInterrupt
        self.number += 1
        return images(self.number, size=self.sizes[self.number % len(self.sizes)], masked=self.masked)

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


QUIET = loop.Logging(sinks=())


def heldout(num=2, **options):
    batches = [images(number, seed=1, **options) for number in range(num)]
    batches[-1]["weights"][-3:] = 0
    return batches


def updated(mesh, batches, **options):
    """State and last metrics after an update for each batch."""
    tx = optimizer.amsgrad(1e-2)
    state = classify.create(Small(), tx, jnp.zeros((1, 6, 6, 3)), seed=0, mesh=mesh)
    update = step.compile_update(classify.build(Small(), tx, **options), state)
    for batch in batches:
        state, metrics = update(state, sharding.to_devices(batch, mesh))
    return jax.device_get(state), metrics


def fit(workdir, steps=6, train=None, mesh=None, **options):
    pace = {"log_every": 1, "eval_every": 2, "save_every": 2}
    pace |= {name: options.pop(name) for name in list(options) if name in pace}
    options = dict(tx=optimizer.amsgrad(3e-2), seed=0, steps=steps, batch_size=8, logging=QUIET) | options
    evals = {"valid": heldout()}
    return classify.fit(
        Small(), train or Loader(), evals, mesh or make_mesh(), workdir, pace=loop.Pace(**pace), **options
    )


def test_bytes_become_minus_one_to_one_and_padding_exactly_zero():
    x = np.array([0, 255, 128], np.uint8).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(classify.normalise(x).ravel(), [-1, 1, 128 / 127.5 - 1], atol=1e-6)
    np.testing.assert_allclose(classify.normalise(np.full((1, 1, 1, 1), 127.5)), 0, atol=1e-7)
    np.testing.assert_array_equal(classify.normalise(x, np.array([[[0, 1, 0]]], np.uint8)).ravel(), [0, 1, 0])


def test_an_amsgrad_step_moves_by_the_rate_and_its_second_moment_never_falls():
    tx = optimizer.amsgrad(1e-3)
    params = jnp.zeros(())
    opt_state = tx.init(params)
    maxima = []
    for number, gradient in enumerate([1.0, 0.0, 0.0, 0.0]):
        change, opt_state = tx.update(jnp.asarray(gradient), opt_state, params)
        if number == 0:
            np.testing.assert_allclose(change, -1e-3, atol=1e-6)
        maxima.append(float(optax.tree.get(opt_state, "nu_max")))
    assert all(b >= a for a, b in itertools.pairwise(maxima)) and maxima[0] > 0
    np.testing.assert_allclose(optimizer.learning_rate(opt_state), 1e-3)


def test_an_update_is_the_gradient_of_the_mean_cross_entropy_and_moves_the_running_statistics():
    batch, mesh = images(0), make_mesh()
    state, metrics = updated(mesh, [batch])
    start = classify.create(Small(), optimizer.amsgrad(1e-2), jnp.zeros((1, 6, 6, 3)), seed=0, mesh=mesh)
    start = jax.device_get(start)
    x = batch["images"] / 127.5 - 1
    conv = np.asarray(
        jax.lax.conv_general_dilated(
            x.astype(np.float32),
            start.params["conv"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        np.float64,
    )
    mean, var = conv.mean((0, 1, 2)), conv.var((0, 1, 2))
    found = state.frozen["batch_stats"]["norm"]
    np.testing.assert_allclose(found["mean"], 0.01 * mean, atol=1e-6)
    np.testing.assert_allclose(found["var"], 0.99 + 0.01 * var, atol=1e-5)
    pooled = np.maximum((conv - mean) / np.sqrt(var + 1e-5), 0).mean((1, 2))
    logits = pooled @ start.params["head"]["kernel"].astype(np.float64)
    logps = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = -logps[np.arange(8), batch["labels"]]
    np.testing.assert_allclose(step.value(metrics["loss"]), losses.mean(), atol=1e-5)
    wrong = np.exp(logps) - np.eye(NUM_CLASSES)[batch["labels"]]
    moved = state.params["head"]["bias"] - start.params["head"]["bias"]
    np.testing.assert_allclose(moved, -1e-2 * np.sign(wrong.mean(0)), rtol=1e-3)  # Adam's first step is the sign


def test_eight_devices_and_two_sizes_of_masked_batches_train_as_one_device():
    batches = [images(0, masked=True), images(1, size=(4, 8), masked=True)]
    one, metrics_one = updated(make_mesh(), batches)
    eight, metrics_eight = updated(make_mesh((4, 2, 1)), batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), eight, one)
    np.testing.assert_allclose(step.value(metrics_eight["loss"]), step.value(metrics_one["loss"]), rtol=1e-5)


def test_accumulated_parts_move_the_statistics_by_the_mean_of_theirs():
    batch = images(0)
    halves = [{name: x[i::2] for name, x in batch.items()} for i in range(2)]
    one, _ = updated(make_mesh(), [batch], accumulate=2)
    two = [updated(make_mesh(), [half])[0] for half in halves]
    wanted = jax.tree.map(lambda a, b: (a + b) / 2, *(state.frozen for state in two))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.frozen, wanted)


def test_a_step_that_is_not_finite_leaves_parameters_and_statistics_alone():
    good, bad = images(0), images(1)
    bad["weights"] = np.full(8, np.inf, np.float32)
    once, _ = updated(make_mesh(), [good])
    twice, metrics = updated(make_mesh(), [good, bad])
    assert float(metrics["nonfinite"].total) > 0
    jax.tree.map(np.testing.assert_array_equal, (twice.params, twice.frozen), (once.params, once.frozen))


def test_held_out_numbers_and_predictions_leave_filling_out():
    mesh = make_mesh((8, 1, 1))
    tx = optimizer.amsgrad(1e-2)
    state = classify.create(Small(), tx, jnp.zeros((1, 6, 6, 3)), seed=0, mesh=mesh)
    batches = heldout(masked=True)
    found = classify.evaluator(Small(), batches)(state, mesh)
    said = classify.predict(Small(), classify.variables(state), batches, mesh)
    assert said.index_N.tolist() == [*range(8), *range(100, 105)]
    labels = np.concatenate([b["labels"][b["weights"] > 0] for b in batches])
    np.testing.assert_array_equal(said.labels_N, labels)
    right = said.predicted_N == labels
    logits = said.logits_NC.astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(13), labels]
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], right.mean(), rtol=1e-6)
    recalls = [right[labels == k].mean() for k in set(labels.tolist())]
    np.testing.assert_allclose(found["mean_class_accuracy"], np.mean(recalls), rtol=1e-6)


def test_a_run_cut_anywhere_and_started_again_ends_like_one_never_cut(tmp_path):
    whole, summary = fit(tmp_path / "whole")
    for fails_at in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / f"cut{fails_at}", train=Loader(fails_at=fails_at))
        again, summary_again = fit(tmp_path / f"cut{fails_at}")
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(whole))
        for name in summary:
            assert summary_again[name] == summary[name] or name == "images_per_second"
    assert loop.latest_step(tmp_path / "whole") == 6


def test_the_best_evaluation_is_kept_not_the_last(tmp_path, monkeypatch):
    scores = {0: (0.2, 9.0), 2: (0.6, 5.0), 4: (0.6, 4.0), 6: (0.5, 1.0)}

    def scripted(model, batches):
        def evaluate(state, mesh):
            accuracy, loss = scores[int(state.step)]
            return {"mean_class_accuracy": accuracy, "loss": loss}

        return evaluate

    monkeypatch.setattr(classify, "evaluator", scripted)
    best, summary = fit(tmp_path)
    assert int(best.step) == 4 and summary["best/step"] == 4 and summary["best/loss"] == 4.0
    assert summary["valid/mean_class_accuracy"] == 0.5
    fit(tmp_path)  # already there: nothing is trained, nothing changes
    assert fit(tmp_path)[1]["best/step"] == 4


def test_without_a_choosing_set_the_last_state_is_kept(tmp_path):
    best, summary = fit(tmp_path, steps=2, select="")
    assert int(best.step) == summary["best/step"] == 2 and "best/loss" not in summary


def test_a_batch_that_does_not_split_over_the_devices_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not split"):
        fit(tmp_path, mesh=make_mesh((8, 1, 1)), batch_size=12)


def test_a_network_is_recalled_from_its_folder_with_what_it_was_told(tmp_path):
    about = dict(network="cnn", fields={"dtype": "float32"}, class_names=["a", "b", "c"], images={"size": [6, 6]})
    classify.remember(tmp_path, **about)
    with pytest.raises(InputError, match="no network yet"):
        classify.recall(tmp_path)
    model = vision.network("cnn", num_classes=3)
    options = dict(tx=optimizer.amsgrad(1e-2), seed=0, steps=1, batch_size=8, pace=loop.Pace(), logging=QUIET)
    best, _ = classify.fit(model, Loader(sizes=((8, 8),)), {}, make_mesh(), tmp_path, **options)
    found = classify.recall(tmp_path)
    assert found.model == model and found.step == 1
    assert {name: getattr(found, name) for name in about} == about
    jax.tree.map(np.testing.assert_array_equal, found.variables, jax.device_get(classify.variables(best)))
    with pytest.raises(InputError, match=r"image_model.json is not there"):
        classify.recall(tmp_path / "elsewhere")
