import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.explain import explaining, focus, rating
from alignment.train import sharding
from data.pictures import mosaics

TILES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
PLAN = mosaics.plan(np.repeat(np.arange(3), 4), 6, 0)
IS_TARGET = PLAN.tile_label == PLAN.target[:, None]


@jax.jit
def explain(x_BYXC, targets_BK, ids_B):
    """Something that depends on the picture, the class and the number."""
    maps = x_BYXC.sum(-1)[:, None] + 0.1 * targets_BK[:, :, None, None]
    return maps + 0.01 * ids_B[:, None, None, None]


def rate(explain_fn=explain, mesh=None, batch_size=8, **options):
    mesh = sharding.make_mesh() if mesh is None else mesh
    places = options.pop("places", slice(None))
    return rating.rate(
        explain_fn,
        TILES,
        PLAN.tile_index[places],
        IS_TARGET[places],
        PLAN.target[places],
        mesh,
        batch_size=batch_size,
        **options,
    )


def test_rating_in_batches_over_devices_gives_what_the_plain_function_gives():
    found, per_second = rate()
    x = mosaics.assemble(TILES, PLAN.tile_index) / 127.5 - 1
    maps = x.sum(-1) + 0.1 * PLAN.target[:, None, None] + 0.01 * np.arange(18)[:, None, None]
    expected = focus.score(maps.astype(np.float32), PLAN.tile_label, PLAN.target)
    np.testing.assert_allclose(found["focus"], expected, rtol=1e-5)
    np.testing.assert_array_equal(found["mosaic"], np.arange(18))
    assert found["share"].shape == (18, 4) and per_second > 0


def test_neither_batch_size_nor_which_mosaics_go_along_changes_a_score():
    whole, _ = rate()
    ids = rating.spread(18, 5)
    part, per_second = rate(batch_size=16, places=ids, ids_M=ids)
    np.testing.assert_allclose(part["focus"], whole["focus"][ids], rtol=1e-6)
    np.testing.assert_array_equal(part["mosaic"], ids)
    assert per_second > 0  # of the only batch


def test_maps_that_are_asked_for_come_to_the_host_and_no_others():
    seen = []
    found, _ = rate(keep=[3, 17], on_maps_fn=lambda ids, maps: seen.append((ids.tolist(), maps.shape)))
    assert found["kept"].tolist() == [3, 17] and found["kept_maps"].shape == (2, 8, 8)
    assert [ids for ids, _ in seen] == [list(range(8)), list(range(8, 16)), [16, 17]]
    assert seen[-1][1] == (2, 8, 8)
    again = focus.measure(found["kept_maps"], IS_TARGET[[3, 17]])["focus"]
    np.testing.assert_allclose(found["focus"][[3, 17]], again, rtol=1e-6)
    assert "kept" not in rate()[0]


def test_maps_that_cannot_be_rated_are_refused_naming_the_mosaic():
    bad = lambda x, t, ids: jnp.where(ids[:, None, None, None] == 11, jnp.nan, explain(x, t, ids))  # noqa: E731
    with pytest.raises(InputError, match="mosaic 11 holds NaN"):
        rate(bad)
    with pytest.raises(InputError, match="maps of 4 x 4 pixels for mosaics of 8 x 8"):
        rate(lambda *a: explain(*a)[:, :, ::2, ::2])
    with pytest.raises(InputError, match="one target a mosaic"):
        rate(lambda *a: explain(*a)[:, 0])


@pytest.mark.parametrize(("driver", "parts"), [("host", [2.0] * 4 * 2 + [0.5] * 4), ("scan", [8.0, 8.0, 2.0])])
def test_progress_is_reported_within_a_batch_where_the_host_loops(driver, parts):
    options = dict(method="integrated_gradients", num_steps=4, per_pass=1, driver=driver)
    explain_fn = explaining.build(lambda variables, x: x.mean((1, 2)) * variables, jnp.ones((1, 3)), **options)
    sizes = []
    found, _ = rate(explain_fn, advance_fn=sizes.append)
    assert [size for size in sizes if size] == pytest.approx(parts) and sum(sizes) == pytest.approx(18)
    np.testing.assert_array_equal(found["focus"], rate(explain_fn)[0]["focus"])


class Brightness(nn.Module):
    @nn.compact
    def __call__(self, x_NYXC):
        mean_N1 = x_NYXC.mean((1, 2, 3))[:, None]
        return jnp.concatenate([mean_N1, -mean_N1], axis=1), {"mean": mean_N1}


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_alone_are_classified_in_their_order(scale):
    tiles = np.zeros((11, 4, 4, 3), np.uint8)
    tiles[[1, 4, 9]] = 255
    options = dict(batch_size=8, scale=scale)
    found = rating.predict(Brightness().apply, {}, tiles, sharding.make_mesh(), **options)
    np.testing.assert_array_equal(np.flatnonzero(found == 0), [1, 4, 9])


@pytest.mark.parametrize(("num", "limit", "expected"), [(6, 3, [0, 2, 4]), (5, None, range(5)), (3, 9, range(3))])
def test_a_limit_is_spread_over_all(num, limit, expected):
    np.testing.assert_array_equal(rating.spread(num, limit), list(expected))
