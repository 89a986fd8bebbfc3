"""Programs in parts: the weights', the images', the targets'."""

import jax
import jax.numpy as jnp
import numpy as np

from alignment.explain import hoisting


def program(weights, x_NC, scale):
    flipped = jnp.maximum(weights["w"], 0)[::-1].T
    table = jnp.asarray([1.0, 2.0, 3.0])
    return {"out": (x_NC @ flipped + weights["b"]) * scale * table[0], "weights": flipped * 2}


def test_both_halves_together_are_the_program():
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(1, 3)))}
    x_NC = jnp.asarray(rng.normal(size=(5, 4)))
    prepare, finish = hoisting.split(lambda w, both: program(w, *both), weights, (jax.eval_shape(lambda: x_NC), 2.0))
    prepared = prepare(weights)
    for shift in (0, 1):
        expected, got = program(weights, x_NC + shift, 2.0), finish(prepared, (x_NC + shift, 2.0))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, got)


def test_work_on_weights_leaves_the_second_half_and_what_grows_stays():
    w, x = jnp.ones((3, 4)), jnp.ones((2, 100, 3))

    def fn(w, x):
        return x @ jnp.exp(w) + jnp.broadcast_to(w[:, 0], (100, 3)).sum()

    prepare, finish = hoisting.split(fn, w, x)
    prepared = prepare(w)
    assert max(array.size for array in prepared) == w.size
    assert " exp " not in str(jax.make_jaxpr(finish)(prepared, x))
    np.testing.assert_allclose(finish(prepared, x), fn(w, x), rtol=1e-6)


def test_a_middle_part_serves_many_of_the_last():
    rng = np.random.default_rng(1)
    weights = {"w": jnp.asarray(rng.normal(size=(3, 4))), "b": jnp.asarray(rng.normal(size=(1, 3)))}
    x_NC = jnp.asarray(rng.normal(size=(5, 4)))
    prepare, forward, finish = hoisting.split(program, weights, x_NC, 2.0)
    prepared = prepare(weights)
    kept = forward(prepared, x_NC)
    assert any(a is b for a in kept for b in prepared)  # handed on, not copied
    for scale in (2.0, -3.0):
        expected, got = program(weights, x_NC, scale), finish(kept, scale)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), expected, got)
    assert "dot_general" not in str(jax.make_jaxpr(finish)(kept, 2.0))


def test_a_loop_over_items_holds_only_what_depends_on_them():
    rng = np.random.default_rng(2)
    w, items = jnp.asarray(rng.normal(size=(4, 4))), {"x": jnp.asarray(rng.normal(size=(3, 2, 4)))}

    def one(item):
        return {"out": item["x"] @ jnp.exp(w) + jnp.cos(item["x"]), "same": w.sum()}

    def in_turn(items):
        return hoisting.map_in_turn(one, items)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jax.lax.map(one, items), in_turn(items))
    (loop,) = [e for e in jax.make_jaxpr(in_turn)(items).eqns if e.primitive.name == "scan"]
    assert " exp " not in str(loop.params["jaxpr"]) and " cos " in str(loop.params["jaxpr"])
