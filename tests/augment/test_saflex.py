"""The worked numbers of SAFLEX on a linear softmax model of three classes, and its properties."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignment.augment import contrastive, saflex
from alignment.errors import InputError
from alignment.models import vision

ZERO = {"head": jnp.zeros((3, 2))}
SKEW = {"head": jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])}
KEY = np.array([0, 0], np.uint32)


def linear(params, x):
    return x @ params["head"].T


def rows(*values):
    return jnp.array(values, jnp.float32)


def scores(params, validation, label, x, **options):
    """P [B,3], by way of labels that are free and unscaled."""
    g = jax.grad(lambda p: -jax.nn.log_softmax(linear(p, rows(validation)))[0, label])(params)
    losses = jnp.negative if options.get("scores") == "logits" else saflex.cross_entropies
    return saflex.along(lambda p: losses(linear(p, x)), params, g), g


def refine(params, x, y0, validation, label, **options):
    options = {"mu": 0.0, "scale": "none"} | options
    val = {"x": rows(validation), "y": np.array([label])}
    state = saflex.start(params)
    return saflex.refine(params, linear, {"x": x, "y0": np.asarray(y0)}, val, state, KEY, **options)


def test_scores_of_the_undecided_model_are_those_worked_out_by_hand():
    x = rows([2, 1], [-1, 0], [0, 3])
    scores_BK, g = scores(ZERO, [1, 0], 0, x)
    np.testing.assert_allclose(g["head"], [[-2 / 3, 0], [1 / 3, 0], [1 / 3, 0]], atol=1e-6)
    expected = [[1.333333, -0.666667, -0.666667], [-0.666667, 0.333333, 0.333333], [0, 0, 0]]
    np.testing.assert_allclose(scores_BK, expected, atol=1e-6)


@pytest.mark.parametrize(("label", "expected"), [(0, 1.33329), (1, -0.66671), (2, -0.66671)])
def test_a_score_is_the_fall_of_the_validation_loss_by_a_small_step(label, expected):
    with jax.enable_x64(True):
        W, alpha = np.zeros((3, 2)), 1e-4
        loss = lambda W, x, k: -jax.nn.log_softmax(jnp.array(W) @ jnp.array(x, float))[k]  # noqa: E731
        stepped = W - alpha * np.asarray(jax.grad(loss)(W, [2, 1], label))
        fall = (float(loss(W, [1, 0], 0)) - float(loss(stepped, [1, 0], 0))) / alpha
    assert fall == pytest.approx(expected, abs=1e-5)


def test_scores_of_the_skewed_model_have_zero_mean_under_the_models_own_p():
    x = rows([1, 1], [2, -1])
    scores_BK, g = scores(SKEW, [0, 1], 1, x)
    np.testing.assert_allclose(g["head"][:, 1], [0.211942, -0.423883, 0.211942], atol=1e-6)
    np.testing.assert_allclose(g["head"][:, 0], 0, atol=1e-7)
    expected = [[-0.268521, 0.367304, -0.268521], [0.026711, -0.609114, 0.026711]]
    np.testing.assert_allclose(scores_BK, expected, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(jax.nn.softmax(linear(SKEW, x)) * scores_BK, axis=1), 0, atol=1e-6)


def test_no_weights_and_labels_beat_the_closed_form():
    scores_BK, _ = scores(SKEW, [0, 1], 1, rows([1, 1], [2, -1]))
    w_B, y_BK, _, _ = refine(SKEW, rows([1, 1], [2, -1]), [0, 0], [0, 1], 1, labels="free", beta=0.0)
    best = float(jnp.sum((w_B > 0)[:, None] * y_BK * scores_BK))
    assert best == pytest.approx(0.394014, abs=1e-6)
    rng = np.random.default_rng(0)
    w, y = rng.random((20_000, 2)), rng.dirichlet(np.ones(3), (20_000, 2))
    tried = np.einsum("nb,nbk,bk->n", w, y, np.asarray(scores_BK))
    assert tried.max() < best


@pytest.mark.parametrize(
    ("beta", "labels", "weight", "score"),
    [(0.5, {1, 2}, 1.0, 1 / 3), (2.0, {0}, 0.0, -2 / 3), (0.999, {1, 2}, 1.0, 1 / 3), (1.001, {0}, 0.0, -2 / 3)],
)
def test_the_pull_towards_the_upstream_label_switches_it_at_one(beta, labels, weight, score):
    w_B, y_BK, _, scalars = refine(ZERO, rows([-1, 0]), [0], [1, 0], 0, labels="free", beta=beta)
    assert int(jnp.argmax(y_BK)) in labels and float(w_B[0]) == weight
    assert float(scalars["score_median"]) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("beta", "y", "score", "weight"),
    [
        (0.5, (0.003358, 0.498321, 0.498321), 0.329976, 1.0),
        (2.0, (0.999909, 4.5e-5, 4.5e-5), -0.666576, 0.0),
        (1.0, (1 / 3, 1 / 3, 1 / 3), 0.0, 1.0),  # 0 but for rounding, and still kept
    ],
)
def test_soft_labels_and_their_weights(beta, y, score, weight):
    w_B, y_BK, _, scalars = refine(ZERO, rows([-1, 0]), [0], [1, 0], 0, tau=0.1, beta=beta)
    np.testing.assert_allclose(y_BK[0], y, atol=1e-6)
    assert float(scalars["score_median"]) == pytest.approx(score, abs=1e-6) and float(w_B[0]) == weight


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(beta=1.0, tau=0.5), (0.350972, 0.562480, 0.086549)),
        (dict(penalty="kl", tau=1.0), (0.552672, 0.447328, 0.0)),
    ],
)
def test_labels_of_a_mixture_under_both_penalties(options, expected):
    y0 = np.array([[0.7, 0.3, 0.0]], np.float32)
    _, y_BK, _, _ = refine(SKEW, rows([1, 1]), y0, [0, 1], 1, **options)
    np.testing.assert_allclose(y_BK[0], expected, atol=1e-5)


def test_labels_at_the_limits_of_their_temperature_and_of_the_pull():
    x, y0 = rows([1, 1], [2, -1], [-1, 3]), np.array([0, 2, 1])
    label = functools.partial(refine, SKEW, x, y0, [0, 1], 1)
    hard, cold = label(labels="free", beta=0.3)[1], label(tau=1e-4, beta=0.3)[1]
    np.testing.assert_allclose(hard, cold, atol=1e-6)
    np.testing.assert_allclose(label(tau=1e6)[1], 1 / 3, atol=1e-5)
    np.testing.assert_allclose(label(beta=1e4)[1], np.eye(3)[y0], atol=1e-6)
    np.testing.assert_array_equal(label(labels="upstream")[1], np.eye(3)[y0])


def test_a_permuted_batch_gives_permuted_weights_and_labels_and_one_row_works_alone():
    x, y0, order = rows([1, 1], [2, -1], [-1, 3]), np.array([0, 2, 1]), np.array([2, 0, 1])
    w_B, y_BK, _, _ = refine(SKEW, x, y0, [0, 1], 1)
    moved_w_B, moved_y_BK, _, _ = refine(SKEW, x[order], y0[order], [0, 1], 1)
    np.testing.assert_allclose(moved_w_B, w_B[order], rtol=1e-6)
    np.testing.assert_allclose(moved_y_BK, y_BK[order], rtol=1e-5)
    one = refine(SKEW, x[:1], y0[:1], [0, 1], 1)
    np.testing.assert_allclose(one[1][0], y_BK[0], rtol=1e-5)


def networks():
    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="head")(nn.tanh(nn.Dense(8)(x.reshape(len(x), -1))))

    cnn = vision.network("cnn", num_classes=4, widths=(4, 8))
    yield pytest.param(lambda p, x: Mlp().apply(p, x), Mlp().init, id="mlp")
    yield pytest.param(lambda p, x: cnn.apply(p, x)[0], lambda k, x: nn.meta.unbox(cnn.init(k, x)), id="cnn")


@pytest.mark.parametrize(("apply_fn", "init_fn"), networks())
def test_one_forward_mode_pass_gives_what_gradients_of_single_samples_give(apply_fn, init_fn):
    rng = np.random.default_rng(0)
    x, val_x = rng.standard_normal((2, 6, 8, 8, 3)).astype(np.float32)
    params, y = init_fn(jax.random.PRNGKey(0), x[:1]), np.arange(6) % 4

    @jax.jit
    def both(params):
        loss = lambda p, x, k: -jax.nn.log_softmax(apply_fn(p, x[None]))[0, k]  # noqa: E731
        g = jax.grad(lambda p: jnp.mean(jax.vmap(functools.partial(loss, p))(val_x, y)))(params)
        one_row = lambda row: jax.vmap(lambda k: _dot(jax.grad(loss)(params, row, k), g))(jnp.arange(4))  # noqa: E731
        return jax.vmap(one_row)(x), saflex.along(lambda p: saflex.cross_entropies(apply_fn(p, x)), params, g)

    one_by_one_BK, at_once_BK = both(params)
    np.testing.assert_allclose(at_once_BK, one_by_one_BK, atol=1e-5)


def _dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_the_running_mean_of_gradients_is_corrected_for_its_start():
    state = saflex.start({"head": jnp.zeros(())})
    biased, corrected = [], []
    for g in (1.0, 0.0, 0.0):
        mean = saflex._averaged([jnp.array(g)], state, 0.9)
        state = state.replace(gradient=mean, num=state.num + 1)
        biased.append(float(mean[0]))
        corrected.append(float(saflex.corrected(mean, state.num, 0.9)[0]))
    np.testing.assert_allclose(biased, [0.1, 0.09, 0.081], atol=1e-6)
    np.testing.assert_allclose(corrected, [1, 0.473684, 0.298893], atol=1e-6)


def test_a_step_helps_the_validation_batch_at_least_as_much_as_the_upstreams():
    rng = np.random.default_rng(0)
    alpha, shape = 1e-3, (100, 16)
    W = jnp.asarray(rng.standard_normal((100, 3, 5)), jnp.float32)
    x, val_x = (jnp.asarray(rng.standard_normal((*shape, 5)), jnp.float32) for _ in range(2))
    y0, val_y = (jnp.asarray(rng.integers(0, 3, shape)) for _ in range(2))

    def loss(params, x, y_BK, w_B):
        return -jnp.sum(w_B * jnp.sum(y_BK * jax.nn.log_softmax(linear(params, x)), axis=1))

    def falls(W, x, y0, val_x, val_y):
        params, equal_B, y0_BK = {"head": W}, jnp.full((16,), 1 / 16), jax.nn.one_hot(y0, 3)
        val_loss = lambda p: loss(p, val_x, jax.nn.one_hot(val_y, 3), equal_B)  # noqa: E731
        batch, val = {"x": x, "y0": y0}, {"x": val_x, "y": val_y}
        options = dict(labels="free", beta=0.0, mu=0.0, scale="none")
        w_B, y_BK, _, _ = saflex.refine(params, linear, batch, val, saflex.start(params), KEY, **options)
        after = []
        for y, w in ((y_BK, (w_B > 0) / 16), (y0_BK, equal_B)):
            gradient = jax.grad(loss)(params, x, y, w)
            after.append(val_loss({"head": W - alpha * gradient["head"]}))
        scores_BK = saflex.along(lambda p: saflex.cross_entropies(linear(p, x)), params, jax.grad(val_loss)(params))
        return after[0], after[1], jnp.sum(jnp.max(scores_BK, axis=1)) - jnp.sum(scores_BK * y0_BK)

    ours, theirs, promise = jax.jit(jax.vmap(falls))(W, x, y0, val_x, val_y)
    assert (promise >= 0).all() and (ours <= theirs + 1e-5).all()


def test_the_jacobian_of_logits_keeps_other_rows_than_that_of_log_probabilities():
    x, y0 = rows([-1, 3]), np.array([2])
    logp_BK, _ = scores(SKEW, [1, 1], 0, x)
    logits_BK, _ = scores(SKEW, [1, 1], 0, x, scores="logits")
    np.testing.assert_allclose(logp_BK[0], (1.940817, -0.059183, 0.474730), atol=1e-5)
    np.testing.assert_allclose(logits_BK[0], (1.155362, -0.844638, -0.310725), atol=1e-5)
    np.testing.assert_allclose(logp_BK - logits_BK, 0.785455, atol=1e-5)
    p_K = jax.nn.softmax(linear(SKEW, x))[0]
    np.testing.assert_allclose(p_K, (0.017148, 0.936240, 0.046613), atol=1e-6)
    kept = [float(refine(SKEW, x, y0, [1, 1], 0, labels="upstream", scores=s)[0][0]) for s in ("logp", "logits")]
    assert kept == [1.0, 0.0]


# ---- beyond the worked numbers


def test_weights_sum_to_one_at_most_and_filled_up_rows_weigh_nothing():
    x, y0 = rows([1, 1], [2, -1], [-1, 3], [1, 1]), np.array([1, 1, 1, 1])
    val = {"x": rows([0, 1]), "y": np.array([1])}
    batch = {"x": x, "y0": y0, "real": np.array([1, 1, 1, 0])}
    alone = {"x": x[:3], "y0": y0[:3]}
    for weights in saflex.WEIGHTS:
        full, part = (
            saflex.refine(SKEW, linear, b, val, saflex.start(SKEW), KEY, labels="upstream", weights=weights)
            for b in (batch, alone)
        )
        np.testing.assert_allclose(full[0], [*part[0], 0], rtol=1e-6)
        assert float(jnp.sum(full[0])) <= 1 + 1e-6
        assert {name: float(v) for name, v in full[3].items()} == pytest.approx(
            {name: float(v) for name, v in part[3].items()}
        )


@pytest.mark.parametrize("scale", saflex.SCALES)
def test_a_scale_moves_soft_labels_and_never_weights_of_upstream_labels(scale):
    x, y0 = rows([1, 1], [2, -1], [-1, 3]), np.array([1, 1, 2])
    w_B, _, _, _ = refine(SKEW, x, y0, [0, 1], 1, labels="upstream", scale=scale)
    np.testing.assert_allclose(w_B, refine(SKEW, x, y0, [0, 1], 1, labels="upstream")[0])


def test_gumbel_noise_draws_labels_from_the_softmax_of_their_scores():
    x = jnp.tile(rows([1, 1]), (4_000, 1))
    options = dict(beta=0.0, labels="free", gumbel=True)
    _, drawn_BK, _, _ = refine(SKEW, x, np.zeros(4_000, int), [0, 1], 1, **options)
    _, soft_BK, _, _ = refine(SKEW, x[:1], np.zeros(1, int), [0, 1], 1, beta=0.0, tau=1.0)
    np.testing.assert_allclose(drawn_BK.mean(axis=0), soft_BK[0], atol=0.03)


def test_the_last_layer_alone_gives_its_own_part_of_the_scores():
    rng = np.random.default_rng(0)
    params = {"body": rng.standard_normal((4, 2)).astype(np.float32), "head": np.ones((3, 4), np.float32)}
    params = jax.tree.map(jnp.asarray, params)
    apply_fn = lambda p, x: jnp.tanh(x @ p["body"].T) @ p["head"].T  # noqa: E731
    batch, val = {"x": rows([1, 1], [2, -1]), "y0": np.array([0, 1])}, {"x": rows([0, 1]), "y": np.array([1])}
    run = functools.partial(saflex.refine, params, apply_fn, batch, val, key=KEY, labels="free", mu=0.0, scale="none")
    state = saflex.start(params, "last")
    _, _, new, _ = run(state=state, subset="last")
    assert [leaf.shape for leaf in new.gradient] == [(3, 4)]
    by_name = run(state=state, subset=lambda path: "head" in path)
    np.testing.assert_array_equal(by_name[2].gradient[0], new.gradient[0])
    with pytest.raises(InputError, match=r"holds no parameter; the network has body, head"):
        saflex.start(params, lambda path: False)


def test_a_preconditioned_score_is_that_of_the_optimizers_own_step():
    rng = np.random.default_rng(1)
    params = {"head": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)}
    tx = optax.scale_by_adam(b1=0.0)
    _, opt_state = tx.update({"head": jnp.asarray(rng.standard_normal((3, 2)), jnp.float32)}, tx.init(params))
    diagonal = saflex.adam_diagonal((opt_state,))
    np.testing.assert_allclose(diagonal["head"], 1 / (jnp.sqrt(opt_state.nu["head"] / 0.001) + 1e-8), rtol=1e-4)
    x, val = rows([1, 1]), {"x": rows([0, 1]), "y": np.array([1])}
    batch = {"x": x, "y0": np.array([0])}
    options = dict(mu=0.0, scale="none", labels="upstream", preconditioner=diagonal)
    _, _, _, scalars = saflex.refine(params, linear, batch, val, saflex.start(params), KEY, **options)
    g_val = jax.grad(lambda p: -jax.nn.log_softmax(linear(p, val["x"]))[0, 1])(params)["head"]
    g_row = jax.grad(lambda p: -jax.nn.log_softmax(linear(p, x))[0, 0])(params)["head"]
    assert float(scalars["score_median"]) == pytest.approx(float(jnp.sum(g_row * diagonal["head"] * g_val)), rel=1e-4)
    with pytest.raises(InputError, match="Adam's family"):
        saflex.adam_diagonal(optax.sgd(0.1).init(params))


def test_a_batch_without_a_finite_gradient_is_left_to_the_upstream_and_counted():
    x, y0 = rows([1, 1], [2, -1]), np.array([0, 1])
    good = refine(SKEW, x, y0, [0, 1], 1, mu=0.9)[2]
    val = {"x": rows([np.nan, 1]), "y": np.array([1])}
    batch = {"x": x, "y0": y0}
    w_B, y_BK, state, scalars = saflex.refine(SKEW, linear, batch, val, good, KEY)
    np.testing.assert_array_equal(w_B, [0.5, 0.5])
    np.testing.assert_array_equal(y_BK, np.eye(3)[y0])
    assert int(state.num_bad) == int(state.bad_in_a_row) == 1 and float(scalars["is_bad"]) == 1
    np.testing.assert_array_equal(state.gradient[0], good.gradient[0])
    again = saflex.refine(SKEW, linear, batch, {"x": rows([0, 1]), "y": np.array([1])}, state, KEY)[2]
    assert int(again.num_bad) == 1 and int(again.bad_in_a_row) == 0 and int(again.num) == 2


def test_targets_of_pairs_stay_among_partners_of_their_class():
    rng = np.random.default_rng(0)
    model = contrastive.TwoTowers(width=8, dim=4)
    pairs, val = (
        {k: jnp.asarray(rng.standard_normal((6, 5)), jnp.float32) for k in ("image", "text")} for _ in range(2)
    )
    params = model.init(jax.random.PRNGKey(0), pairs)
    classes_N = np.array([0, 0, 1, 1, 2, 2])
    allowed_NN = classes_N[:, None] == classes_N
    batch = {"x": pairs, "y0": np.eye(6, dtype=np.float32), "allowed": allowed_NN}
    w_B, y_BK, _, _ = saflex.refine(
        params, model.apply, batch, {"x": val, "y": np.arange(6)}, saflex.start(params), KEY, tau=1.0,
        losses_fn=contrastive.losses,
    )  # fmt: skip
    assert (np.asarray(y_BK)[~allowed_NN] == 0).all() and float(jnp.sum(w_B)) <= 1 + 1e-6
    np.testing.assert_allclose(jnp.sum(y_BK, axis=1), 1, rtol=1e-5)
    logits_NN = model.apply(params, pairs)
    clip = -(jnp.diag(jax.nn.log_softmax(logits_NN, axis=1)) + jnp.diag(jax.nn.log_softmax(logits_NN, axis=0))) / 2
    np.testing.assert_allclose(jnp.diag(contrastive.losses(logits_NN)), clip, rtol=1e-6)


def test_a_loss_that_is_linear_in_its_target_gives_the_scores_of_cross_entropy_and_others_are_refused():
    loss = lambda logits, y: -jnp.sum(y * jax.nn.log_softmax(logits), axis=1)  # noqa: E731
    logits_BK = rows([1, 2, 3], [0, -1, 1])
    np.testing.assert_allclose(saflex.by_class(loss, 3)(logits_BK), saflex.cross_entropies(logits_BK), rtol=1e-6)
    focal = lambda logits, y: loss(logits, y) * (1 - jnp.exp(-loss(logits, y))) ** 2  # noqa: E731
    with pytest.raises(InputError, match="linear in its target"):
        saflex.by_class(focal, 3)


@pytest.mark.parametrize(
    ("y0", "message"),
    [
        ([0, 3], r"y0\[1\]=3 is not a class; they are numbered 0 to 2"),
        ([-1, 0], r"y0\[0\]=-1 is not a class"),
        ([0.5, 1.0], "regression targets are not supported"),
        ([[1, 0], [0, 1]], "does not fit a network of 3 classes"),
        ([[0.5, 0.4, 0.0], [1, 0, 0]], r"y0\[0\] sums to 0.9"),
        ([[1.5, -0.5, 0.0], [1, 0, 0]], "shares of classes are at least 0"),
    ],
)
def test_labels_that_are_none_are_refused(y0, message):
    with pytest.raises(InputError, match=message):
        refine(SKEW, rows([1, 1], [2, -1]), y0, [0, 1], 1)


def test_an_empty_validation_batch_is_refused():
    val = {"x": jnp.zeros((0, 2)), "y": np.zeros(0, int)}
    batch = {"x": rows([1, 1]), "y0": np.array([0])}
    with pytest.raises(InputError, match="the validation batch is empty"):
        saflex.refine(SKEW, linear, batch, val, saflex.start(SKEW), KEY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "l2"}, "penalty='l2' is not one of: linear, kl"),
        ({"labels": "hard"}, "labels='hard'"),
        ({"weights": "soft"}, "weights='soft'"),
        ({"scale": "mean"}, "scale='mean'"),
        ({"scores": "prob"}, "scores='prob'"),
        ({"subset": "first"}, "subset='first'"),
        ({"beta": -1.0}, "beta=-1.0 must be at least 0"),
        ({"tau": 0.0}, "tau=0.0 must be above 0"),
        ({"weights": "sigmoid", "tau_w": 0.0}, "tau_w=0.0"),
        ({"mu": 1.0}, r"mu=1.0 must be in \[0, 1\)"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        saflex.check(**options)
