import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.augment import bilevel, saflex, training
from alignment.errors import InputError
from alignment.train import step
from alignment.train.train_state import TrainState

TX = optax.sgd(0.1)


def forward(params, statistics, x, *, train, rng):
    return x @ params["head"], statistics


def batch_of(seed):
    rng = np.random.default_rng(seed)
    x = lambda num: rng.standard_normal((num, 4)).astype(np.float32)  # noqa: E731
    ones = lambda num: np.ones(num, np.float32)  # noqa: E731
    y0 = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 8)]
    batch = {"x": x(6), "y": rng.integers(0, 3, 6), "real": ones(6)}
    batch |= {"aug/x": x(8), "aug/y0": y0, "aug/real": ones(8), "aug/is_wrong": (np.arange(8) % 2).astype(np.float32)}
    return batch | {"val/x": x(5), "val/y": rng.integers(0, 3, 5), "val/real": ones(5)}


def state_of(seed):
    params = {"head": jnp.asarray(np.random.default_rng(seed).standard_normal((4, 3)), jnp.float32)}
    frozen = {"statistics": {}, "saflex": saflex.start(params)}
    return TrainState(jnp.zeros((), jnp.int32), params, TX.init(params), jax.random.PRNGKey(seed), frozen)


def build(assign=None, **options):
    return training.build(assign or training.refined(3, forward), forward, TX, **options)


def mean_loss(params, x, y_BK, w_B):
    return -jnp.sum(w_B * jnp.sum(y_BK * jax.nn.log_softmax(x @ params["head"]), axis=1))


@pytest.mark.parametrize("mode", ["add", "replace", "clean"])
def test_a_step_is_one_along_the_clean_mean_and_the_weighted_sum(mode):
    state, batch = state_of(0), batch_of(0)
    new, metrics = jax.jit(build(mode=mode))(state, batch)
    aug, val = training.part(batch, "aug"), training.part(batch, "val")
    w_B, y_BK, refined, _ = saflex.refine(
        state.params, lambda p, x: x @ p["head"], aug, val, saflex.start(state.params), state.rng
    )

    def loss(params):
        clean = mean_loss(params, batch["x"], jax.nn.one_hot(batch["y"], 3), jnp.full(6, 1 / 6))
        return (mode != "replace") * clean + (mode != "clean") * mean_loss(params, aug["x"], y_BK, w_B)

    value, gradient = jax.value_and_grad(loss)(state.params)
    np.testing.assert_allclose(new.params["head"], state.params["head"] - 0.1 * gradient["head"], atol=1e-6)
    assert float(step.value(metrics["loss"])) == pytest.approx(float(value), rel=1e-5)
    if mode == "clean":
        assert int(new.frozen["saflex"].num) == 0 and "kept/clean" not in metrics
    else:
        np.testing.assert_allclose(new.frozen["saflex"].gradient[0], refined.gradient[0], rtol=1e-5)
        wrong = metrics["kept/wrong"]
        assert float(wrong.total) == float(jnp.sum((w_B > 0)[1::2])) and float(wrong.count) == 4


def test_a_batch_of_which_nothing_is_kept_trains_on_its_clean_rows_alone_and_says_so():
    state, batch = state_of(0), batch_of(0)
    refine = training.refined(3, forward, labels="upstream")

    def is_kept(label):
        return np.asarray(refine(state, batch | {"aug/y0": np.eye(3)[np.full(8, label)]}, state.rng)[0]) > 0

    hurts_most_B = np.argmin([is_kept(label) for label in range(3)], axis=0)
    batch |= {"aug/y0": np.eye(3, dtype=np.float32)[hurts_most_B]}
    new, metrics = jax.jit(build(refine))(state, batch)
    clean, _ = jax.jit(build(mode="clean"))(state, batch)
    np.testing.assert_allclose(new.params["head"], clean.params["head"], atol=1e-7)
    assert float(step.value(metrics["saflex/kept"])) == 0 == float(step.value(metrics["augmented_loss"]))


def test_steps_compile_once_whether_they_refine_or_not():
    state = jax.device_put(state_of(0), jax.devices()[0])  # as a state on a mesh is
    update = step.compile_update(build(training.refined(3, forward, every=2), check_every=2), state)
    for k in range(4):
        state, metrics = update(state, batch_of(k))
    assert update.func._cache_size() == 1 and int(state.frozen["saflex"].num) == 2
    assert float(metrics["saflex/kept"].count) == 0  # the last step was not refined, so it logs nothing of it


def test_rows_between_refinements_and_in_the_warm_up_have_their_upstream_labels():
    state, batch = state_of(0), batch_of(0)
    plain = training.upstream(3)(state, batch, state.rng)
    for options, number in ((dict(every=2), 1), (dict(warmup=3), 2)):
        waiting = dataclasses.replace(state, step=jnp.array(number))
        w_B, y_BK, changes, _ = training.refined(3, forward, **options)(waiting, batch, state.rng)
        np.testing.assert_array_equal(w_B, plain[0])
        np.testing.assert_array_equal(y_BK, plain[1])
        assert int(changes["saflex"].num) == 0


def test_the_change_of_the_validation_loss_is_measured_beside_the_one_predicted():
    state = state_of(0)
    _, metrics = jax.jit(build(check_every=1))(state, batch_of(0))
    predicted, realised = (float(step.value(metrics[f"val_change/{name}"])) for name in ("predicted", "realised"))
    assert realised == pytest.approx(predicted, rel=0.2) and realised != predicted


def test_several_seeds_in_one_program_end_where_each_of_them_alone_does():
    states, batches = [state_of(s) for s in range(3)], [batch_of(s) for s in range(3)]
    alone = [jax.jit(build())(state, batch) for state, batch in zip(states, batches)]
    arrays = {name: jax.tree.map(lambda *a: jnp.stack(a), *(getattr(s, name) for s in states)) for name in
              training.STACKED}  # fmt: skip
    stacked = dataclasses.replace(states[0], **arrays)
    batch = {name: np.stack([b[name] for b in batches], axis=1) for name in batches[0]}
    for at_once in (True, False):
        new, metrics = jax.jit(training.over_seeds(build(), at_once=at_once))(stacked, batch)
        for s, (state, _) in enumerate(alone):
            np.testing.assert_allclose(new.params["head"][s], state.params["head"], rtol=1e-5, atol=1e-6)
        expected = np.mean([float(step.value(m["loss"])) for _, m in alone])
        assert int(new.step) == 1 and float(step.value(metrics["loss"])) == pytest.approx(expected, rel=1e-5)


def test_the_agreement_filter_keeps_rows_whose_label_its_teacher_gives():
    state, batch = state_of(0), batch_of(0)
    teacher = {"params": state_of(1).params, "statistics": {}}
    state = state.replace(frozen=state.frozen | {"teacher": teacher})
    w_B, y_BK, _, _ = training.agreement(3, forward)(state, batch, state.rng)
    agrees_B = np.argmax(batch["aug/x"] @ teacher["params"]["head"], axis=1) == np.argmax(batch["aug/y0"], axis=1)
    np.testing.assert_allclose(w_B, agrees_B / max(agrees_B.sum(), 1), rtol=1e-6)
    np.testing.assert_array_equal(y_BK, batch["aug/y0"])


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match="mode='both' is not one of: add, replace, clean"):
        build(mode="both")


def test_the_exact_problem_ends_with_a_lower_validation_loss_than_the_upstreams_labels():
    batch, eye = batch_of(0), np.eye(3, dtype=np.float32)
    train, val = (batch["x"], eye[batch["y"]]), (batch["val/x"], eye[batch["val/y"]])
    augmented = (batch["aug/x"], batch["aug/y0"])
    params = {"head": jnp.zeros((4, 3))}
    logits_fn = lambda p, x: x @ p["head"]  # noqa: E731
    w_M, y_MK = bilevel.solve(logits_fn, params, train, augmented, val, steps=5, lr=0.3, outer_steps=20)
    assert ((w_M >= 0) & (w_M <= 1 / 8)).all()
    np.testing.assert_allclose(y_MK.sum(axis=1), 1, rtol=1e-5)

    def val_loss(w_M, y_MK):
        p = params
        for _ in range(5):
            total = lambda q: mean_loss(q, *train, jnp.full(6, 1 / 6)) + mean_loss(q, augmented[0], y_MK, w_M)  # noqa: E731
            p = jax.tree.map(lambda a, g: a - 0.3 * g, p, jax.grad(total)(p))
        return float(mean_loss(p, *val, jnp.full(5, 1 / 5)))

    assert val_loss(w_M, y_MK) < val_loss(jnp.full(8, 1 / 8), augmented[1]) - 0.01


def deep(params, statistics, x, *, train, rng):
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name])
    return x @ params["head"], statistics


def test_a_step_costs_what_its_passes_do_and_one_that_waits_copies_no_parameters():
    """In operations of the compiled program: at most 2.2 times the upstream's step with a full pass, 1.4 times with the
    last layer alone, 1.15 times with a full pass at every tenth step."""
    rng, num, ones = np.random.default_rng(0), 32, np.ones(32, np.float32)
    shapes = {"first": (64, 256), "second": (256, 256), "head": (256, 8)}
    params = {name: jnp.asarray(rng.standard_normal(shape) / 16, jnp.float32) for name, shape in shapes.items()}
    inputs = {f"{part}x": rng.standard_normal((num, 64)).astype(np.float32) for part in ("", "aug/", "val/")}
    batch = inputs | {"y": np.arange(num) % 8, "val/y": np.arange(num) % 8, "real": ones, "val/real": ones}
    batch |= {"aug/y0": np.eye(8, dtype=np.float32)[np.arange(num) % 8], "aug/real": ones}

    def cost(assign, subset="all"):
        frozen = {"statistics": {}, "saflex": saflex.start(params, subset)}
        state = TrainState(jnp.zeros((), jnp.int32), params, TX.init(params), jax.random.PRNGKey(0), frozen)
        update = jax.jit(training.build(assign, deep, TX), donate_argnums=0).lower(state, batch).compile()
        return update.cost_analysis()["flops"], update.memory_analysis().temp_size_in_bytes

    upstream, memory = cost(training.upstream(8))
    assert 1.5 < cost(training.refined(8, deep))[0] / upstream <= 2.2
    assert 1.05 < cost(training.refined(8, deep, subset="last"), "last")[0] / upstream <= 1.4
    # The compiler counts both branches, as if every step were refined.
    both, memory_of_ten = cost(training.refined(8, deep, every=10))
    assert 1.05 < 1 + (both - upstream) / upstream / 10 <= 1.15
    # A step that is not refined hands the running mean on in its own place: a copy would need this much.
    assert memory_of_ten < memory + sum(leaf.nbytes for leaf in jax.tree.leaves(params))
