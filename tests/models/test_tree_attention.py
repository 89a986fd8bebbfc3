"""Attention in rows of prefix trees."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.errors import InputError
from alignment.models import attention, decoder, expanded_attention, tree_attention
from data.texts import strands
from tests.train import helpers

# Two trees and padding. Tree 1: tokens 0-2, of which 3-4 and 5-8 are branches, and 6-7 | 8 go off behind 5.
#        0  1  2  3  4  5  6  7  8 | 9 10 11 12 | -
ENDS = [9, 9, 9, 5, 5, 9, 8, 8, 9, 13, 12, 12, 13, 0, 0]
POSITIONS = [0, 1, 2, 3, 4, 3, 4, 5, 4, 0, 1, 2, 1, 0, 0]
PATHS = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7], [0, 1, 2, 5, 8], [9, 10, 11], [9, 12]]


def places(rows=1):
    """The row above, and for a second one the same in which everything stands behind a tree of two tokens."""
    ends, positions = np.array(ENDS), np.array(POSITIONS)
    second = np.concatenate([[2, 2], np.where(ends > 0, ends + 2, 0)[:-2]])
    both = {"ends": [ends, second], "positions": [positions, np.concatenate([[0, 1], positions[:-2]])]}
    return {name: jnp.array(values[:rows], jnp.int32) for name, values in both.items()}


def inputs(rows=2, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(rows, len(ENDS), heads, 6)), dtype) for heads in (4, 2, 2, 4)]


def outcome(kernel, seen, q, k, v, w):
    """Output and gradients, the latter through a random projection of what real queries give."""

    def loss(q, k, v):
        return jnp.sum(kernel(q, k, v, seen) * w)

    return [kernel(q, k, v, seen), *jax.grad(loss, argnums=(0, 1, 2))(q, k, v)]


def test_a_place_sees_the_path_from_its_root_and_nothing_else():
    seen = np.array(tree_attention.visible(places()))[0]
    wanted = np.zeros_like(seen)
    for path in PATHS:
        for depth, place in enumerate(path):
            wanted[place, path[: depth + 1]] = True
    np.testing.assert_array_equal(seen, wanted)


def test_a_window_goes_back_along_the_branch_and_not_along_the_row():
    seen = np.array(tree_attention.visible(places(), window=2))[0]
    assert np.flatnonzero(seen[8]).tolist() == [5, 8] and np.flatnonzero(seen[5]).tolist() == [2, 5]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("block", [4, tree_attention.BLOCK])
def test_blocks_give_what_the_dense_kernel_gives_in_float64(monkeypatch, block, window):
    monkeypatch.setattr(tree_attention, "BLOCK", block)
    with jax.enable_x64(True):
        q, k, v, w = inputs()
        rows = places(rows=2)
        w *= (rows["ends"] > 0)[..., None, None]  # what padding sees is arbitrary
        run = jax.jit(outcome, static_argnums=0)
        by_kernel = [run(attention.KERNELS[n], attention.MASKS[n](rows, rows, window), q, k, v, w) for n in KERNELS]
        real = np.array(rows["ends"] > 0)
        np.testing.assert_allclose(by_kernel[0][0][real], by_kernel[1][0][real], rtol=0, atol=1e-12)
        for a, b in zip(by_kernel[0][1:], by_kernel[1][1:]):
            assert np.isfinite(a).all() and np.abs(b).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


KERNELS = ("blocked", "dense")


def strands_of(rows, one_each):
    """The arrays of `PATHS` in each row, and in the second one behind a tree of two tokens."""
    behind = [np.arange(2), *(np.array(path) + 2 for path in PATHS)]
    trees = [
        SimpleNamespace(ends=np.array(ENDS), places=[np.array(path) for path in PATHS]),
        SimpleNamespace(ends=np.array(rows["ends"][1]), places=behind),
    ]
    shape = strands.Shape(*map(max, *(strands.need(row, 16, one_each=one_each) for row in trees)))
    filled = strands.fill(trees, shape, num_time=len(ENDS), one_each=one_each)
    return {name: jnp.array(values) for name, values in filled.items()}


@pytest.mark.parametrize("one_each", [True, False])
def test_rows_as_ordinary_sequences_give_what_the_dense_kernel_gives_in_float64(one_each):
    rows = places(rows=2)
    rows |= strands_of(rows, one_each)
    assert rows["seats"].shape[1] == (6 if one_each else 2)
    with jax.enable_x64(True):
        q, k, v, w = inputs()
        w *= (rows["ends"] > 0)[..., None, None]
        run = jax.jit(outcome, static_argnums=0)
        names = ("expanded", "dense")
        ours, twin = (run(attention.KERNELS[n], attention.MASKS[n](rows, rows), q, k, v, w) for n in names)
        real = np.array(rows["ends"] > 0)
        np.testing.assert_allclose(ours[0][real], twin[0][real], rtol=0, atol=1e-12)
        for a, b in zip(ours[1:], twin[1:]):
            assert np.abs(b).max() > 0.1
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_the_kernel_of_tpus_gives_what_the_dense_kernel_gives():
    rows = attention._test_trees(1)
    rng = np.random.default_rng(0)
    q, k, v, w = (jnp.asarray(rng.normal(size=(1, 128, heads, 16)), jnp.float32) for heads in (2, 1, 1, 2))
    inner = functools.partial(expanded_attention.splash, interpret=True)
    splash = functools.partial(expanded_attention.attend, causal_fn=inner)
    ours = jax.jit(functools.partial(outcome, splash, expanded_attention.of(rows)))(q, k, v, w)
    twin = outcome(attention.dense, attention.MASKS["dense"](rows, rows), q, k, v, w)
    for a, b in zip(ours, twin):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_transposed_copies_are_no_scatters():
    rows = places(rows=2)
    rows |= strands_of(rows, one_each=True)
    run = functools.partial(outcome, attention.KERNELS["expanded"], expanded_attention.of(rows))
    assert "scatter" not in str(jax.make_jaxpr(run)(*inputs(dtype=np.float32)))


@pytest.mark.parametrize("kernel", ["blocked", "expanded"])
def test_a_kernel_for_trees_is_compared_with_the_dense_one_before_a_run(kernel, monkeypatch):
    sizes = dict(num_heads=2, num_kv_heads=1, head_dim=16, has_trees=True)
    attention.self_test(kernel, **sizes)
    right = attention._test_trees(2)
    faults = {"blocked": {"ends": jnp.full((2, 128), 128)}, "expanded": {"copies": right["copies"][:, ::-1]}}
    wrong = attention.MASKS[kernel](right | faults[kernel], right | faults[kernel])
    monkeypatch.setitem(attention.MASKS, kernel, lambda query, key: wrong)
    with pytest.raises(InputError, match=f"attention='{kernel}' is wrong here"):
        attention.self_test(kernel, **sizes)


def test_parameters_are_made_without_strands():
    net = helpers.model(attention="expanded")
    assert decoder.boxed_params(net).keys() == decoder.boxed_params(helpers.model()).keys()


def test_rows_without_strands_and_windows_are_refused_by_name():
    with pytest.raises(InputError, match="rows of prefix trees with their strands"):
        attention.MASKS["expanded"](places(), places())
    with pytest.raises(InputError, match="takes no sliding window"):
        attention.MASKS["expanded"](places(), places(), 3)


def test_blocks_in_bfloat16_stay_within_its_rounding(monkeypatch):
    monkeypatch.setattr(tree_attention, "BLOCK", 4)
    rows = places(rows=2)
    q, k, v, _ = inputs(dtype=jnp.bfloat16)
    a, b = (attention.KERNELS[n](q, k, v, attention.MASKS[n](rows, rows)).astype(jnp.float32) for n in KERNELS)
    real = np.array(rows["ends"] > 0)
    np.testing.assert_allclose(a[real], b[real], atol=2e-2)


def test_blocks_that_nobody_sees_are_not_computed(monkeypatch):
    monkeypatch.setattr(tree_attention, "BLOCK", 4)
    ends = np.repeat([8, 16, 24, 32], 8)[None]  # four groups of two blocks each, whose first block both see
    row = {"ends": jnp.array(ends), "positions": jnp.array(np.arange(32) % 8)[None]}
    blocks = tree_attention.blocks(row)
    assert int(blocks.num) == 4 * 3
    pairs = list(zip(blocks.queries_E[:12].tolist(), blocks.keys_E[:12].tolist()))
    assert pairs[:4] == [(0, 0), (1, 0), (1, 1), (2, 2)]


def test_memory_of_one_long_group_grows_with_the_row_and_not_with_its_square():
    def temporary(T):
        row = {"ends": jnp.full((1, T), T), "positions": jnp.arange(T)[None]}

        def loss(q, k, v):
            return jnp.sum(tree_attention.blocked(q, k, v, tree_attention.blocks(row)))

        shapes = [jax.ShapeDtypeStruct((1, T, heads, 6), jnp.float32) for heads in (4, 2, 2)]
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 2.3 * temporary(2048)


def test_a_kernel_for_one_sequence_a_row_refuses_trees():
    with pytest.raises(InputError, match="attention='cudnn' takes one sequence a row"):
        attention.MASKS["cudnn"](places(), places())
