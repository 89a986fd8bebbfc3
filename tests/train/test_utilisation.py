import jax
import numpy as np
import pytest

from alignment.models import lora
from alignment.train import flops, hardware, next_token, utilisation
from tests.train import helpers

D, L, H, G, F, V = 32, 2, 4, 2, 64, helpers.VOCAB
K = D // H
WEIGHTS = L * (2 * D * H * K + 2 * D * G * K + 3 * D * F)


def slow_forward(batch, window=None):
    """Operations of a forward pass, token by token: weights of the layers, positions seen, the head at targets."""
    total = 0
    for row, (groups, positions) in enumerate(zip(batch["groups"], batch["positions"])):
        for group, position in zip(groups, positions):
            if group:
                total += 2 * WEIGHTS + 4 * L * H * K * min(position + 1, window or position + 1)
        total += 2 * D * V * int(batch["mask"][row].sum())
    return total


@pytest.mark.parametrize("window", [None, 3])
def test_an_update_costs_three_forward_passes_over_the_tokens_that_are_there(window):
    batch = helpers.lm_batch(0)
    count = utilisation.counter(helpers.model(sliding_window=window))
    assert count(batch) == 3 * slow_forward(batch, window)


def test_padding_counts_nothing_and_trees_are_told_from_rows_by_their_ends():
    batch, count = helpers.lm_batch(0), utilisation.counter(helpers.model())
    padded = {name: np.pad(x, ((0, 3), (0, 9))) for name, x in batch.items() if x.ndim == 2}
    trees = {name: x for name, x in padded.items() if name != "groups"} | {"ends": 7 * padded["groups"]}
    assert count(padded) == count(trees) == count(batch)


def test_the_count_is_that_of_the_program_but_for_the_places_that_a_mask_hides():
    N, T = 2, 12
    batch = helpers.lm_batch(0, rows=N, t=T) | {name: np.ones((N, T), np.int32) for name in ("groups", "mask")}
    model = helpers.model(attention="dense")
    loss = next_token.loss_fn(model, helpers.make_mesh())
    executed = flops.count(lambda p, b: loss(p, b, rng=None, frozen={})[0].total, helpers.start_params(), batch)
    hidden = 4 * L * H * K * N * (T * T - T * (T + 1) // 2)
    assert executed == slow_forward(batch) + hidden


def test_frozen_weights_have_no_gradient_of_their_own_and_a_reference_is_one_pass_more():
    batch, model = helpers.lm_batch(0), helpers.model()
    forward, num_tokens = slow_forward(batch), int((batch["groups"] > 0).sum())
    sights = 4 * L * H * K * int((batch["positions"] + 1)[batch["groups"] > 0].sum())
    adapter = lora.lay_out(lora.Settings(rank=3), model)
    of_rank_3 = 3 * L * (2 * (D + H * K) + 2 * (D + G * K) + 3 * (D + F))
    beside = 2 * (forward - sights) + 3 * sights + 6 * of_rank_3 * num_tokens
    assert utilisation.counter(model, adapter)(batch) == beside
    assert utilisation.counter(model, adapter, has_reference=True)(batch) == beside + forward


def test_the_share_of_the_peak_is_of_all_devices_and_left_out_where_their_peak_is_not_known(monkeypatch, capsys):
    mesh, flops_fn = helpers.make_mesh((2, 2, 1)), lambda batch: 6e12
    utilisation._say_unknown.cache_clear()
    meter = utilisation.Meter(mesh, flops_fn)
    for _ in range(2):
        assert meter.rates(meter.count({}), 2.0) == {"flops_per_second": 3e12}
    assert capsys.readouterr().out.count("without utilisation: the peak of a device of kind 'cpu' is not known") == 1
    monkeypatch.setitem(hardware.KINDS, jax.devices()[0].device_kind, "h200")
    rates = utilisation.Meter(mesh, flops_fn).rates(6e12, 2.0)
    assert rates["utilisation"] == pytest.approx(3e12 / (4 * 989e12))
    assert utilisation.Meter(mesh, None).rates(0.0, 2.0) == {}


def test_every_known_kind_of_device_is_a_chip_with_a_peak():
    assert all(hardware.peak(kind) > 1e14 for kind in hardware.KINDS) and hardware.peak("cpu") is None
