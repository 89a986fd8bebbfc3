"""What the toys of saflex.py are for: the sheet's study, and one where SAFLEX is worth its while."""

import dataclasses

import jax
import numpy as np
import pytest

from alignment.train import loop, sharding, step
from experiments.augmentation import arms, presets, tasks


def accuracies(name, names, *, num_seeds, steps=None, kept=None, **sizes):
    """Mean test accuracy of each arm, by the very updates of a run, without its files; `agreement` after train_val.

    `kept` takes the shares of right and of wrong rows that SAFLEX keeps, a pair for each step.
    """
    task = tasks.embedded(name, num_seeds=num_seeds, seed=0, **sizes)
    # one device: eight simulated ones would meet in a collective at each of so many small steps
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    compared = arms.Comparison(task, presets.of(name, steps=steps), 0, mesh, loop.Pace(log_every=1_000))
    predict_fn = arms.predictor(compared)
    out, teacher = {}, None
    for arm in names:
        update, state = arms.update_of(compared, arms.ARMS[arm], teacher)
        update = jax.jit(update)
        # all rows are in every batch, so the batch is the same at every step
        batch = sharding.to_devices(compared.batches(with_val=arms.ARMS[arm].with_val)(0), mesh)
        for _ in range(compared.setting.steps):
            state, metrics = update(state, batch)
            sharding.keep_pace(mesh, metrics)
            if arm == "saflex" and kept is not None:
                kept.append([float(step.value(metrics[f"kept/{truth}"])) for truth in ("clean", "wrong")])
        teacher = state if arm == arms.TEACHER else teacher
        out[arm] = float(np.mean(predict_fn(state) == task.test.y))
    return out


def test_where_validation_rows_are_few_and_training_rows_mislead_saflex_beats_its_upstream():
    mean = accuracies("toy_few", ("upstream", "saflex"), num_seeds=3, steps=60, num_test=600)
    assert mean["saflex"] > mean["upstream"] + 0.05


@pytest.mark.slow  # the sheet's item 12 with its corrected bar, over twenty seeds
def test_the_sheets_study_has_its_numbers():
    names = ("none", "upstream", "train_val", "agreement", "saflex")
    kept = []
    mean = accuracies("toy", names, num_seeds=20, kept=kept)
    upstream = mean.pop("upstream")
    reported = {"none": 0.633, "saflex": 0.73, "train_val": 0.734, "agreement": 0.718}
    assert mean == pytest.approx(reported, abs=0.03)
    assert 0.560 - 0.03 < upstream < 0.608 + 0.03  # reported by two implementations
    assert mean["saflex"] >= max(mean["train_val"], mean["agreement"]) - 0.01
    # The reference kept 0.59 of the right and 0.38 of the flipped rows in the first 50 steps, 0.52 and 0.39 in all; of
    # the flipped rows ours keep fewer, 0.31 and 0.33.
    for shares, right, wrong in ((kept[:50], 0.59, 0.38), (kept, 0.52, 0.39)):
        right_share, wrong_share = np.mean(shares, axis=0)
        assert right_share == pytest.approx(right, abs=0.03) and 0.25 < wrong_share < wrong + 0.03


@pytest.mark.slow  # as above, on the second toy and to its end
def test_where_validation_rows_are_few_saflex_beats_every_other_use_of_them():
    names = ("train_val", "train_val_upstream", "agreement", "saflex")
    mean = accuracies("toy_few", names, num_seeds=10)
    assert mean["saflex"] > max(mean[name] for name in names[:-1]) + 0.02


def test_a_setting_for_a_run_keeps_all_else_of_a_toys():
    whole = presets.of("toy_pairs", steps=None)
    assert dataclasses.replace(presets.of("toy_pairs", steps=5), steps=whole.steps) == whole
