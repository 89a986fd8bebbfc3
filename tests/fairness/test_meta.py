import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.errors import InputError
from alignment.fairness import meta, methods, predictors, referee
from alignment.train import sharding, step, train_state
from data.toys import regions

KINDS = {kind: referee.factors_fn(kind, width=4) for kind in referee.KINDS}
TX = meta.optimizers(2e-3, 2e-3)
NETWORK = predictors.build("mlp", 1, widths=(4,))


def apply_fn(theta, x):
    return NETWORK.apply({"params": theta}, x)


def learner_of(kind=referee.NETWORK, **changes):
    return meta.Learner(apply_fn, predictors.LOGISTIC, KINDS[kind], **({"rate": 0.5} | changes))


def scaled(theta, x):
    """A model that outputs theta, scaled as the targets are so that the squared error is halved."""
    return theta / np.sqrt(2) * jnp.ones((len(x), 1)), jnp.zeros((len(x), 1))


def scalar_task(targets, query=None):
    """Places with one sample each, whose loss is (theta - target)^2 / 2."""
    y = jnp.array(targets)[:, None] / np.sqrt(2)
    asked = y if query is None else jnp.array(query)[:, None] / np.sqrt(2)
    one = jnp.ones(len(targets))
    x = jnp.zeros((len(targets), 1, 1))
    return dict(support_x=x, support_y=y, query_x=x, query_y=asked, query_weight=one[:, None], place_weight=one)


def scalar_learner(factors, rate, **changes):
    options = dict(rate=rate, is_normalised=False) | changes
    return meta.Learner(scaled, predictors.SQUARED, lambda phi, seen: phi if factors is None else factors, **options)


@pytest.fixture(scope="module")
def batch():
    made = [regions.task(n, support=4, query=6) for n in range(8)]
    stacked = {name: jnp.asarray(np.stack([one[name] for one in made])) for name in meta.TASK}
    return stacked | {"task": jnp.arange(8)}


@pytest.fixture(scope="module")
def params():
    both = meta.Both(NETWORK, width=4).init(jax.random.PRNGKey(0), jnp.zeros((1, regions.FEATURES)))["params"]
    rng = np.random.default_rng(0)
    both["phi"] = jax.tree.map(lambda leaf: leaf + 0.5 * rng.standard_normal(leaf.shape).astype("f"), both["phi"])
    return both


# Worked numbers


def test_an_inner_step_and_the_path_to_the_factors_of_the_worked_example():
    task, omega = scalar_task([0.0, 1.0, 4.0]), jnp.array([1.0, 2.0, 0.5])
    learner, one = scalar_learner(None, 0.5), jnp.ones(3)
    losses = functools.partial(
        meta.place_losses, x=task["query_x"], y_SN=task["query_y"], weight_SN=task["query_weight"], learner=learner
    )

    def uneven(theta):
        return meta.unevenness(losses(theta)[0], one)

    @jax.jit
    def everything(omega):
        adapted = functools.partial(meta.adapt, jnp.array(1.0), task=task, learner=learner, steps=1)
        moved, _ = adapted(omega)
        loss_S = losses(moved)[0]
        slopes = jax.grad(uneven)(moved), jax.grad(lambda omega: uneven(adapted(omega)[0]))(omega)
        return moved, loss_S, uneven(moved), *slopes, meta.unevenness(loss_S, one, 1e-6)

    moved, loss_S, value, slope, by_omega, smooth = everything(omega)
    assert float(moved) == pytest.approx(1.0833333)
    np.testing.assert_allclose(loss_S, [0.586806, 0.003472, 4.253472], atol=1e-6)
    assert float(loss_S.mean()) == pytest.approx(1.614583, abs=1e-6)
    assert float(value) == pytest.approx(1.759259, abs=1e-6) and float(slope) == pytest.approx(-1.555556, abs=1e-6)
    np.testing.assert_allclose(by_omega, [0.259259, 0, -0.777778], atol=1e-6)
    assert float(smooth) == pytest.approx(1.759259, abs=1e-5)


@pytest.mark.parametrize(("is_second_order", "wanted"), [(True, -0.99), (False, -1.1)])
def test_the_meta_gradient_of_the_worked_example(is_second_order, wanted):
    task = scalar_task([0.0], query=[2.0])
    learner = scalar_learner(jnp.ones(1), 0.1, is_second_order=is_second_order)
    batch = {name: leaf[None] for name, leaf in task.items()}

    @jax.jit
    def both(theta):
        moved, _ = meta.adapt(theta, {}, task, learner=learner, steps=1)
        return moved, jax.grad(lambda theta: meta.objectives(theta, {}, batch, learner=learner, steps=1)[0][0])(theta)

    moved, slope = both(jnp.array(1.0))
    assert float(moved) == pytest.approx(0.9) and float(slope) == pytest.approx(wanted)


# Invariants


@functools.cache
def adapted_fn(kind, steps):
    one = functools.partial(meta.adapt, learner=learner_of(kind), steps=steps)
    return jax.jit(jax.vmap(one, in_axes=(None, None, 0)))


def adapted(theta, phi, batch, *, kind=referee.NETWORK, steps=2):
    return adapted_fn(kind, steps)(theta, phi, {name: batch[name] for name in meta.TASK})


def test_an_untrained_referee_is_maml_bit_for_bit(params, batch):
    zero = params["phi"] | {"out": jax.tree.map(jnp.zeros_like, params["phi"]["out"])}
    even, _ = adapted(params["theta"], {}, batch, kind=referee.EVEN)
    refereed, trace = adapted(params["theta"], zero, batch)
    jax.tree.map(np.testing.assert_array_equal, even, refereed)
    np.testing.assert_array_equal(trace["factor"], 1.0)


def test_scaling_all_factors_is_scaling_the_inner_rate(params, batch):
    double = meta.Learner(apply_fn, predictors.LOGISTIC, lambda phi, seen: 2 + 0 * seen.loss_S, 0.25, False)
    task = {name: batch[name][0] for name in meta.TASK}
    one, two = (
        jax.jit(functools.partial(meta.adapt, learner=learner, steps=2))(params["theta"], {}, task)[0]
        for learner in (double, learner_of(referee.EVEN))
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, two)


def test_permuting_places_permutes_their_factors_which_have_mean_1(params, batch):
    order = np.array([4, 2, 8, 0, 1, 7, 3, 6, 5])
    moved, trace = adapted(params["theta"], params["phi"], batch)
    again, other = adapted(
        params["theta"], params["phi"], {name: leaf[:, order] for name, leaf in batch.items() if name != "task"}
    )
    np.testing.assert_allclose(other["factor"], trace["factor"][:, :, order], rtol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), moved, again)
    assert float(jnp.std(trace["factor"])) > 0.01
    np.testing.assert_allclose(trace["factor"].mean(-1), 1, atol=1e-6)


def test_identical_places_have_even_factors_and_give_phi_no_gradient(params, batch):
    same = {name: jnp.repeat(batch[name][:, :1], regions.PLACES, axis=1) for name in meta.TASK}

    @jax.jit
    @jax.value_and_grad
    def uneven(phi):
        return meta.objectives(params["theta"], phi, same, learner=learner_of(), steps=2)[0][1]

    value, gradient = uneven(params["phi"])
    assert float(value) < 1e-6
    assert float(optax.global_norm(gradient)) < 1e-6
    _, trace = adapted(params["theta"], params["phi"], same)
    np.testing.assert_allclose(trace["factor"], 1, atol=1e-6)


def test_a_single_place_is_even_and_has_factor_1(params, batch):
    single = {name: batch[name][:2, :1] for name in meta.TASK}
    loss = jax.jit(functools.partial(meta.objectives, learner=learner_of(), steps=2))
    (_, uneven), trace = loss(params["theta"], params["phi"], single)
    assert float(uneven) == 0
    np.testing.assert_allclose(trace["factor"], 1, atol=1e-6)


def test_filled_places_change_nothing(params, batch):
    filled = {name: jnp.concatenate([batch[name], batch[name][:, :2]], axis=1) for name in meta.TASK}
    for name in ("place_weight", "query_weight"):
        filled[name] = filled[name].at[:, 9:].set(0)
    filled["support_x"] = filled["support_x"].at[:, 9:].set(7.0)
    plain, _ = adapted(params["theta"], params["phi"], batch)
    more, _ = adapted(params["theta"], params["phi"], filled)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), plain, more)


def test_query_samples_never_enter_the_inner_steps(params, batch):
    noise = np.random.default_rng(1)
    changed = batch | {
        "query_y": jnp.asarray(noise.integers(0, 2, batch["query_y"].shape)),
        "query_x": -batch["query_x"],
    }
    for kind in (referee.NETWORK, referee.HAND_MADE):
        plain, _ = adapted(params["theta"], params["phi"], batch, kind=kind)
        other, _ = adapted(params["theta"], params["phi"], changed, kind=kind)
        jax.tree.map(np.testing.assert_array_equal, plain, other)


# Updates


@functools.cache
def mesh_of(num_devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:num_devices]).reshape(-1, 1, 1), sharding.AXES)


@functools.cache
def start(num_devices=1):
    """A fresh state; no update takes its memory."""
    both, example = meta.Both(NETWORK, width=4), np.zeros((1, regions.FEATURES), np.float32)
    return train_state.create(both, meta.joint(TX), example, seed=0, mesh=mesh_of(num_devices))


@functools.cache
def update_of(rule, warmup_steps=0):
    return jax.jit(meta.build(learner_of(rule.factors), rule, TX, steps=2, warmup_steps=warmup_steps))


def updated(rule, batch, *, warmup_steps=0, at=0, num_devices=1):
    """The parameters before one update, the state after it, and its metrics."""
    first = start(num_devices)
    state = dataclasses.replace(first, step=first.step + at)
    arrays = {name: np.asarray(leaf) for name, leaf in batch.items()}
    on_devices = sharding.to_devices(arrays, mesh_of(num_devices))
    return state.params, *update_of(rule, warmup_steps)(state, on_devices)


def is_same(one, two):
    return all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("maml", {"theta"}),
        ("meta_ref", {"theta", "phi"}),
        ("meta_ref_nash", {"theta", "phi"}),
        ("no_inner", {"theta"}),
        ("no_performance", {"phi"}),
        ("no_fairness", {"theta"}),
    ],
)
def test_each_phase_moves_its_own_part_and_no_other(name, moves, batch):
    before, state, metrics = updated(methods.METHODS[name], batch)
    assert {part for part in before if not is_same(before[part], state.params[part])} == moves
    assert step.value(metrics["nonfinite"]) == 0 and int(state.step) == 1


def test_without_its_fairness_phase_the_referee_is_maml(batch):
    _, refereed, _ = updated(methods.METHODS["no_fairness"], batch)
    _, plain, _ = updated(methods.METHODS["maml"], batch)
    jax.tree.map(np.testing.assert_array_equal, refereed.params["theta"], plain.params["theta"])


def test_fair_params_say_what_the_fairness_update_moves(batch):
    moved = {}
    for fair_params in meta.FAIR_PARAMS:
        rule = methods.rule_of("meta_ref", fair_params=fair_params)
        before, state, _ = updated(rule, batch)
        moved[fair_params] = {part for part in before if not is_same(before[part], state.params[part])}
        moved[fair_params, "theta"] = state.params["theta"]
    assert moved["phi"] == moved["both"] == {"theta", "phi"} and moved["theta"] == {"theta"}
    assert is_same(moved["theta", "theta"], moved["both", "theta"])
    assert not is_same(moved["theta", "theta"], moved["phi", "theta"])
    with pytest.raises(InputError, match="fair_params='psi' is not one of: phi, theta, both"):
        methods.rule_of("meta_ref", fair_params="psi")


@pytest.mark.parametrize("is_bargained", [False, True])
def test_without_phase_2_theta_moves_by_unevenness_alone(is_bargained, params, batch):
    rule = meta.Rule(phases=("fairness",), fair_params="both", lambda_f=2.0, is_bargained=is_bargained)
    theta = jax.tree.map(lambda leaf: leaf + 0.1, params["theta"])
    options = dict(learner=learner_of(referee.EVEN), steps=0)

    @jax.jit
    def both(theta):
        params = {"theta": theta, "phi": {}}
        gradient, _ = meta.gradients(params, "theta", batch, rule=rule, is_even=False, **options)
        return gradient, jax.grad(lambda theta: meta.objectives(theta, {}, batch, **options)[0][1])(theta)

    gradient, alone = both(theta)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, 2 * two, rtol=1e-4, atol=1e-6), gradient, alone)


@pytest.mark.parametrize("is_bargained", [False, True])
def test_a_warm_up_leaves_unevenness_out_of_thetas_update(is_bargained, params, batch):
    options = dict(learner=learner_of(referee.EVEN), steps=0)

    @functools.partial(jax.jit, static_argnames="rule")
    def of_theta(rule, is_even):
        is_even = False if is_even is None else is_even  # which leaves the warm-up out of the program
        return meta.gradients(params, "theta", batch, rule=rule, is_even=is_even, **options)[0]

    rule = meta.Rule(fair_params="theta", is_bargained=is_bargained)
    warm, after = (of_theta(rule, jnp.array(is_even)) for is_even in (True, False))
    plain = of_theta(meta.Rule(phases=("performance",)), None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), warm, plain)
    assert float(optax.global_norm(jax.tree.map(jnp.subtract, after, plain))) > 1e-3


def test_without_phase_2_a_warm_up_moves_nothing(batch):
    rule = methods.rule_of("no_performance", fair_params="both")
    before, warm, _ = updated(rule, batch, warmup_steps=5, at=4)
    assert is_same(before, warm.params) and is_same(start().opt_state, warm.opt_state)
    _, after, _ = updated(rule, batch, warmup_steps=5, at=5)
    assert not is_same(before["theta"], after.params["theta"])


def test_a_warm_up_is_maml_with_phi_at_rest(batch):
    rule = methods.METHODS["meta_ref"]
    before, warm, _ = updated(rule, batch, warmup_steps=5, at=4)
    _, plain, _ = updated(methods.METHODS["maml"], batch)
    assert is_same(before["phi"], warm.params["phi"])
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), warm.params["theta"], plain.params["theta"]
    )
    _, after, _ = updated(rule, batch, warmup_steps=5, at=5)
    assert not is_same(before["phi"], after.params["phi"])


def test_tasks_may_lie_on_one_device_or_on_eight(batch):
    rule = methods.METHODS["meta_ref"]
    _, on_eight, metrics = updated(rule, batch, num_devices=8)
    _, state, alone_metrics = updated(rule, batch)
    for name in ("loss", "unevenness", "grad_norm", "referee_grad_norm"):
        one, other = (float(step.value(of[name])) for of in (metrics, alone_metrics))
        assert one == pytest.approx(other, rel=1e-4), name
    # Adam's first step divides a gradient by its own size, which magnifies the rounding of gradients near 0; that of
    # the last bias is 0, since factors of mean 1 do not see it.
    for of in (on_eight, state):
        del of.params["phi"]["out"]["bias"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), on_eight.params, state.params)


def test_a_task_that_diverges_is_named_and_changes_nothing(batch):
    bad = batch | {"support_x": batch["support_x"].at[5].set(jnp.nan), "task": batch["task"] + 100}
    before, state, metrics = updated(methods.METHODS["meta_ref"], bad)
    assert is_same(before, state.params) and step.value(metrics["nonfinite"]) == 1
    values = {name: float(step.value(metrics[name])) for name in ("diverged_task", "largest_factor")}
    with pytest.raises(InputError, match=r"task tile 105 left the finite numbers: rate=0.5, largest factor 1"):
        meta.check_diverged(values, rate=0.5, name_fn=lambda number: f"tile {number}")
    assert meta.check_diverged({"loss": 1.0}, rate=0.5, name_fn=str) == {"loss": 1.0}


def test_nash_bargaining_solves_its_equation():
    rng = np.random.default_rng(0)
    one, two = (jnp.asarray(rng.standard_normal(5)) for _ in range(2))
    bargain = jax.jit(meta.bargain)
    agreed = bargain({"a": one[:2], "b": one[2:]}, {"a": two[:2], "b": two[2:]})
    agreed = np.concatenate([agreed["a"], agreed["b"]])
    weights, *_ = np.linalg.lstsq(np.stack([one, two], axis=1), agreed, rcond=None)
    gram = np.array([[one @ one, one @ two], [one @ two, two @ two]])
    np.testing.assert_allclose(gram @ weights, 1 / weights, rtol=1e-4)
    assert not bargain(one, -one).any() and not bargain(one, 0 * one).any()


@pytest.mark.parametrize("steps", [1, 3])
def test_finite_differences_agree_with_the_gradient_of_phase_3(steps, batch, params):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)
        two = {name: jnp.asarray(np.asarray(batch[name][:2], np.float64)) for name in meta.TASK}
        two["support_y"], two["query_y"] = (batch[name][:2] for name in ("support_y", "query_y"))
        rng = np.random.default_rng(0)
        # From the second step on what the referee sees depends on phi, and no gradient goes that way: there the
        # factors are phi itself.
        learner, phi = learner_of(), wide["phi"]
        if steps > 1:
            learner = dataclasses.replace(learner, factors_fn=lambda phi, seen: phi)
            phi = jnp.asarray(rng.random(regions.PLACES) + 0.5)

        @jax.jit
        def loss(phi):
            (mean, uneven), _ = meta.objectives(wide["theta"], phi, two, learner=learner, steps=steps)
            return uneven + mean

        gradient = jax.jit(jax.grad(loss))(phi)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), phi)

        def along(distance):
            return loss(jax.tree.map(lambda p, d: p + distance * d, phi, direction))

        slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        assert (along(1e-5) - along(-1e-5)) / 2e-5 == pytest.approx(float(slope), rel=1e-6)


def test_rules_refuse_what_they_do_not_know():
    with pytest.raises(InputError, match="phases='outer' is not one of"):
        meta.Rule(phases=("outer",))
    with pytest.raises(InputError, match="factors='rule' is not one of"):
        meta.Rule(factors="rule")
    with pytest.raises(InputError, match="lambda_p=-1"):
        meta.Rule(lambda_p=-1)
    with pytest.raises(InputError, match="referee_lr=0 must be above 0"):
        meta.optimizers(1e-3, 0)
