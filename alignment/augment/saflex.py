"""SAFLEX: a weight in [0, 1] and a soft label for each augmented sample, so that one step helps the validation batch.

Ding et al. 2024 (arXiv:2410.02512), re-derived: no code of the authors is public, and details of their method that we
could not read are our choice. Cross-entropy is linear in its target, so to first order a step along

    sum_b w_b loss(x_b, y_b)    lowers the validation loss by    lr * sum_b w_b <y_b, P_b>,

with the scores P_bk = <grad loss(x_b, k), g> = -JVP of log p_k(x_b) along the validation gradient g. One gradient and
one forward-mode pass give all of them; no gradient of a single sample is made. Labels and weights then have a closed
form, sample by sample. The mean of a sample's scores under its own p is 0, so the best label never has a score below 0:
with `labels="free"` and `beta=0` no sample is ever dropped.

Dimensions: B augmented samples, V validation samples, K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.errors import InputError, one_of, within

PENALTIES, LABELS, WEIGHTS = ("linear", "kl"), ("free", "upstream", "soft"), ("binary", "sigmoid", "none")
SCALES, SCORES = ("batchmax", "none", "gnorm"), ("logp", "logits")
LAST_LAYER = "last"  # a subset: the layer that every image network calls `head`
TOLERANCE = 1e-6  # of the batch's largest score: a mean of scores that is 0 but for rounding still counts as 0
SUM_TOLERANCE = 1e-4  # of the sum of an upstream label
MOST_BAD = 10  # steps in a row without a finite gradient or score

Params = Any
ApplyFn = Callable[[Params, Any], jax.Array]
SubsetFn = Callable[[tuple[str, ...]], bool]
LossFn = Callable[[jax.Array, jax.Array], jax.Array]
LossesFn = Callable[[jax.Array], jax.Array]


@flax.struct.dataclass
class State:
    """What refinement carries from step to step.

    Attributes:
        gradient: running mean of the validation gradient, zeros at first; of the parameters in the subset.
        num: how many gradients it has taken in.
        num_bad: steps whose gradient or scores were not finite.
        bad_in_a_row: of them, the latest without a good one between.
    """

    gradient: Any
    num: jax.Array
    num_bad: jax.Array
    bad_in_a_row: jax.Array


def start(params: Params, subset: str | SubsetFn = "all") -> State:
    """The state before the first step."""
    picked, _ = split(params, subset)
    # an array for each counter: an update that is given its state's memory cannot take one array twice
    counters = (jnp.zeros((), jnp.int32) for _ in range(3))
    return State([jnp.zeros(leaf.shape, jnp.float32) for leaf in picked], *counters)


def check(
    *,
    beta: float = 1.0,
    tau: float = 0.1,
    penalty: str = "linear",
    labels: str = "soft",
    weights: str = "binary",
    tau_w: float = 0.1,
    scale: str = "batchmax",
    scores: str = "logp",
    mu: float = 0.9,
    subset: str | SubsetFn = "all",
) -> None:
    """Refuse options of `refine` that mean nothing."""
    for name, value, known in (
        ("penalty", penalty, PENALTIES),
        ("labels", labels, LABELS),
        ("weights", weights, WEIGHTS),
        ("scale", scale, SCALES),
        ("scores", scores, SCORES),
    ):
        one_of(name, value, known)
    if isinstance(subset, str):
        one_of("subset", subset, ("all", LAST_LAYER))
    within("[0, inf)", beta=beta, hint=": the pull towards the upstream label")
    if labels != "upstream" and (labels == "soft" or penalty == "kl") and not tau > 0:
        raise InputError(f"tau={tau} must be above 0 with soft labels; labels='free' takes the best class alone")
    if weights == "sigmoid" and not tau_w > 0:
        raise InputError(f"tau_w={tau_w} must be above 0: the temperature of weights='sigmoid'")
    within("[0, 1)", mu=mu, hint="; 0 takes each validation gradient by itself")


def refine(
    params: Params,
    apply_fn: ApplyFn,
    aug_batch: Mapping[str, Any],
    val_batch: Mapping[str, Any],
    state: State,
    key: jax.Array,
    *,
    beta: float = 1.0,
    tau: float = 0.1,
    gumbel: bool = False,
    penalty: str = "linear",
    labels: str = "soft",
    weights: str = "binary",
    tau_w: float = 0.1,
    scale: str = "batchmax",
    scores: str = "logp",
    mu: float = 0.9,
    subset: str | SubsetFn = "all",
    preconditioner: Params | None = None,
    losses_fn: LossesFn | None = None,
) -> tuple[jax.Array, jax.Array, State, dict[str, jax.Array]]:
    """Weights and labels of an augmented batch; no gradient flows through them.

    Args:
        params: of the network, before the step.
        apply_fn: `apply_fn(params, x) -> logits [B,K]`, with statistics and dropout frozen.
        aug_batch: `x`, any tree with leading axis B, and `y0`, the upstream's labels: classes [B] or shares [B,K]; in
            an optional `real` [B], 0 marks rows that only fill the batch up; an optional `allowed` [B,K] limits labels.
        val_batch: `x` and `y` [V] or [V,K]; disjoint from the training and the test set. `real` as above.
        state: of `start`, or of the step before.
        key: of the Gumbel noise; nothing else is drawn.
        beta: pull of `penalty="linear"` towards the upstream label, >= 0, in units of the scaled scores.
        tau: temperature of soft labels, > 0; with `penalty="kl"` the weight of KL(y || y0).
        gumbel: add standard Gumbel noise to the scores.
        penalty: `linear` maximises <y,P> + beta <y,y0>, `kl` maximises <y,P> - tau KL(y || y0), which leaves a class
            that the upstream gives no share at 0.
        labels: `soft`, the maximiser with tau times the entropy added; `free`, the best class; `upstream`, y0.
        weights: `binary`, 1 where <y,P> >= 0; `sigmoid` of <y,P> / tau_w; `none`, the same for all.
        scale: `batchmax` divides the scores by the largest of the batch, `gnorm` by the length of the direction.
        scores: `logp`, the Jacobian of the losses, or `logits`; cross-entropy has then the same best class.
        mu: momentum of the validation gradient, in [0, 1), with bias correction.
        subset: `all` parameters, the `last` layer (all below "head"), or a function of a parameter's names.
        preconditioner: a diagonal like `params` that multiplies gradients (`adam_diagonal`).
        losses_fn: from logits to the loss of each label, [B,K]; None is cross-entropy; see `by_class`.

    Returns:
        Weights [B], which sum to 1 at most; labels [B,K]; the next state; scalars: `kept` (of weight above 0),
        `relabelled`, `entropy` (nats), `score_min`, `_median`, `_max` of <y,P> before scaling, `is_bad`: where the
        gradient or a score is not finite the weights are 1/B and the labels y0.

    Raises:
        InputError: an empty validation batch, shapes that do not fit, labels that are none (outside of `jit` alone).
    """
    how: Any = dict(beta=beta, tau=tau, penalty=penalty, labels=labels)
    how_much: Any = dict(weights=weights, tau_w=tau_w)
    check(**how, **how_much, scale=scale, scores=scores, mu=mu, subset=subset)
    picked, rebuild = split(params, subset)
    outputs_fn = lambda leaves, x: apply_fn(rebuild(leaves), x).astype(jnp.float32)  # noqa: E731
    num_classes = jax.eval_shape(outputs_fn, picked, aug_batch["x"]).shape[-1]
    y0_BK = shares(aug_batch["y0"], num_classes, "y0")
    real_B = _real(aug_batch, y0_BK)
    val_losses_fn = lambda leaves, x: (losses_fn or cross_entropies)(outputs_fn(leaves, x))  # noqa: E731
    gradient = _averaged(validation_gradient(val_losses_fn, picked, val_batch, num_classes), state, mu)
    diagonal = None if preconditioner is None else split(preconditioner, subset)[0]
    direction = _direction(corrected(gradient, state.num + 1, mu), diagonal, picked)
    by_class_fn = jnp.negative if scores == "logits" else losses_fn or cross_entropies
    scores_BK = along(lambda leaves: by_class_fn(outputs_fn(leaves, aug_batch["x"])), picked, direction)
    is_good = jnp.isfinite(optax.global_norm(gradient)) & jnp.all(jnp.isfinite(scores_BK))
    scores_BK = jnp.where(is_good, scores_BK, 0.0)
    scaled_BK, largest = scaled(scores_BK, real_B, scale, direction)
    noise_BK = jax.random.gumbel(key, scaled_BK.shape) if gumbel else jnp.zeros_like(scaled_BK)
    y_BK = choose_labels(scaled_BK, y0_BK, noise_BK, allowed_BK=aug_batch.get("allowed"), **how)
    w_B = choose_weights(jnp.sum(y_BK * scaled_BK, axis=-1), largest, real_B, **how_much)
    w_B, y_BK = jnp.where(is_good, w_B, real_B / jnp.sum(real_B)), jnp.where(is_good, y_BK, y0_BK)
    w_B, y_BK, new = jax.lax.stop_gradient((w_B, y_BK, _next(state, gradient, is_good)))
    return w_B, y_BK, new, _diagnostics(w_B, y_BK, y0_BK, jnp.sum(y_BK * scores_BK, axis=-1), real_B, ~is_good)


# The parts, each on arrays ------------------------------------------------------------------------------------------


def validation_gradient(
    losses_fn: Callable[[Params, Any], jax.Array], params: Params, val_batch: Mapping[str, Any], num_classes: int
) -> Params:
    """Gradient of the mean loss of the validation batch; `losses_fn(params, x)` gives the loss of each class."""
    y_VK = shares(val_batch["y"], num_classes, "validation y")
    if not len(y_VK):
        raise InputError("the validation batch is empty; SAFLEX needs labelled samples outside the training set")
    real_V = _real(val_batch, y_VK)

    def mean_loss(params):
        losses_V = jnp.sum(y_VK * losses_fn(params, val_batch["x"]), axis=-1)
        return jnp.sum(losses_V * real_V) / jnp.sum(real_V)

    return jax.grad(mean_loss)(params)


def along(losses_fn: Callable[[Params], jax.Array], params: Params, direction: Params) -> jax.Array:
    """Scores P_bk = <grad loss(x_b, class k), direction> of losses [B,K], in one forward-mode pass."""
    return jax.jvp(losses_fn, (params,), (direction,))[1]


def scaled(scores_BK: jax.Array, real_B: jax.Array, scale: str, direction: Params) -> tuple[jax.Array, jax.Array]:
    """The scores in units that do not hang on the gradient's length, and the largest of them."""
    largest = jnp.max(jnp.abs(scores_BK) * real_B[:, None])
    divisor = {"batchmax": largest, "gnorm": optax.global_norm(direction), "none": jnp.ones(())}[scale]
    divisor = jnp.where(divisor > 0, divisor, 1.0)
    return scores_BK / divisor, largest / divisor


def choose_labels(
    scores_BK: jax.Array,
    y0_BK: jax.Array,
    noise_BK: jax.Array,
    *,
    beta: float,
    tau: float,
    penalty: str,
    labels: str,
    allowed_BK: jax.Array | None = None,
) -> jax.Array:
    """The maximiser of <y,P> under the penalty for leaving y0, [B,K]; see `refine`."""
    if labels == "upstream":
        return y0_BK
    if penalty == "kl":
        # log 0 is -inf, and its exponential 0 again: a class without a share stays without one
        logits_BK = jnp.log(y0_BK) + (scores_BK + noise_BK) / tau
    else:
        logits_BK = (scores_BK + beta * y0_BK + noise_BK) / (tau if labels == "soft" else 1.0)
    if allowed_BK is not None:
        logits_BK = jnp.where(allowed_BK, logits_BK, -jnp.inf)
    if labels == "free":
        return jax.nn.one_hot(jnp.argmax(logits_BK, axis=-1), logits_BK.shape[-1])
    return jax.nn.softmax(logits_BK)


def choose_weights(
    score_B: jax.Array, largest: jax.Array, real_B: jax.Array, *, weights: str, tau_w: float = 0.1
) -> jax.Array:
    """Weights [B] that sum to 1, or to 0 where no sample is worth anything, or to less where their sum is below 1.

    Args:
        score_B: <y,P> of each sample.
        largest: |P| at its largest, which the tolerance of a score of 0 is relative to.
        real_B: 0 where a row only fills the batch up.
    """
    if weights == "binary":
        # Never compare with an exact 0: at the switching point between labels the score is 0 but for rounding.
        raw_B = (score_B >= -TOLERANCE * largest).astype(jnp.float32)
    elif weights == "sigmoid":
        raw_B = jax.nn.sigmoid(score_B / tau_w)
    else:
        raw_B = jnp.ones_like(score_B)
    raw_B = raw_B * real_B
    return raw_B / jnp.maximum(jnp.sum(raw_B), 1.0)


def _averaged(gradient: Any, state: State, mu: float) -> Any:
    return jax.tree.map(lambda m, g: mu * m + (1 - mu) * g.astype(jnp.float32), state.gradient, gradient)


def _direction(gradient: list, diagonal: list | None, params: list) -> list:
    """The gradient as the optimizer would follow it, in the parameters' types, as a forward-mode pass needs it."""
    if diagonal is not None:
        gradient = [g * d for g, d in zip(gradient, diagonal)]
    return [g.astype(leaf.dtype) for g, leaf in zip(gradient, params)]


def _next(state: State, gradient: Any, is_good: jax.Array) -> State:
    """The state with a good gradient taken in, or with one more that was bad."""
    return State(
        jax.tree.map(lambda new, old: jnp.where(is_good, new, old), gradient, state.gradient),
        state.num + is_good,
        state.num_bad + ~is_good,
        jnp.where(is_good, 0, state.bad_in_a_row + 1),
    )


def corrected(gradient: Any, num: jax.Array, mu: float) -> Any:
    """A running mean that began at 0, as a mean of what came in: divided by 1 - mu^num."""
    return jax.tree.map(lambda m: m / (1 - mu ** num.astype(jnp.float32)), gradient)


def split(params: Params, subset: str | SubsetFn = "all") -> tuple[list[jax.Array], Callable[[list], Params]]:
    """The leaves in the subset, and a function from such leaves to the whole tree.

    Raises:
        InputError: a subset without a parameter.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [tuple(str(getattr(part, "key", getattr(part, "name", part))) for part in path) for path, _ in leaves]
    if isinstance(subset, str):
        one_of("subset", subset, ("all", LAST_LAYER))
        is_in = [subset == "all" or any(word.endswith("head") for word in path) for path in names]
    else:
        is_in = [bool(subset(path)) for path in names]
    if not any(is_in):
        has = ", ".join("/".join(path) for path in names[:8])
        raise InputError(f"subset={subset!r} holds no parameter; the network has {has}")
    everything = [leaf for _, leaf in leaves]

    def rebuild(picked: list) -> Params:
        rest = iter(picked)
        whole = [next(rest) if inside else leaf for inside, leaf in zip(is_in, everything)]
        return jax.tree_util.tree_unflatten(structure, whole)

    return [leaf for inside, leaf in zip(is_in, everything) if inside], rebuild


def adam_diagonal(opt_state: optax.OptState, *, b2: float = 0.999, eps: float = 1e-8) -> Params:
    """1 / (sqrt(second moment) + eps) of an Adam in the state, which its gradients are multiplied by.

    Raises:
        InputError: an optimizer without second moments.
    """
    is_adam = lambda node: hasattr(node, "nu") and hasattr(node, "count")  # noqa: E731
    nodes = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    if not nodes:
        raise InputError("precondition=True needs an optimizer of Adam's family, whose state has second moments")
    # Before the first update the moments are 0; then every parameter counts alike, as with precondition=False.
    count = nodes[0].count.astype(jnp.float32)
    correction = jnp.where(count > 0, 1 - b2**count, 1.0)
    return jax.tree.map(lambda nu: jnp.where(count > 0, 1 / (jnp.sqrt(nu / correction) + eps), 1.0), nodes[0].nu)


# Labels and losses --------------------------------------------------------------------------------------------------


def shares(y: Any, num_classes: int, name: str = "y") -> jax.Array:
    """Classes [B], or shares [B,K] already, as shares [B,K] float32."""
    if not isinstance(y, jax.core.Tracer):
        check_labels(y, num_classes, name)
    y = jnp.asarray(y)
    if y.ndim == 1:
        return jax.nn.one_hot(y, num_classes)
    if y.shape[1:] != (num_classes,):
        raise InputError(f"{name} of shape {y.shape} does not fit a network of {num_classes} classes")
    return y.astype(jnp.float32)


def check_labels(y: Any, num_classes: int, name: str = "y") -> None:
    """Refuse labels that are not classes 0 to K-1 or shares that sum to 1, with their first row."""
    y = np.asarray(y)
    if y.ndim == 1 and y.dtype.kind in "iu":
        is_wrong_B = (y < 0) | (y >= num_classes)
        if is_wrong_B.any():
            row = int(np.argmax(is_wrong_B))
            raise InputError(f"{name}[{row}]={y[row]} is not a class; they are numbered 0 to {num_classes - 1}")
    elif y.ndim == 1:
        raise InputError(f"{name} of type {y.dtype} is not a class; regression targets are not supported, bin them")
    elif y.ndim != 2 or y.shape[1] != num_classes:
        raise InputError(f"{name} of shape {y.shape} does not fit a network of {num_classes} classes")
    else:
        is_wrong_B = (np.abs(y.sum(axis=1) - 1) > SUM_TOLERANCE) | (y < 0).any(axis=1) | ~np.isfinite(y).all(axis=1)
        if is_wrong_B.any():
            row = int(np.argmax(is_wrong_B))
            raise InputError(f"{name}[{row}] sums to {y[row].sum():g}; shares of classes are at least 0 and sum to 1")


def cross_entropies(logits_BK: jax.Array) -> jax.Array:
    """The cross-entropy of each class, in nats."""
    return -jax.nn.log_softmax(logits_BK)


def by_class(loss_fn: LossFn, num_classes: int) -> LossesFn:
    """`losses_fn` of a loss of logits [B,K] and labels [B,K] that is linear in its labels.

    Raises:
        InputError: it is not linear, as focal losses and label-dependent margins are not; a mixture of labels shows it.
    """
    logits_BK = jnp.asarray(np.random.default_rng(0).normal(size=(4, num_classes)), jnp.float32)
    eye_KK = jnp.eye(num_classes)
    a_BK, b_BK = (eye_KK[(np.arange(4) + shift) % num_classes] for shift in (0, 1))
    whole_B = loss_fn(logits_BK, 0.3 * a_BK + 0.7 * b_BK)
    parts_B = 0.3 * loss_fn(logits_BK, a_BK) + 0.7 * loss_fn(logits_BK, b_BK)
    if not np.allclose(whole_B, parts_B, rtol=1e-4, atol=1e-5):
        raise InputError(
            "SAFLEX needs a loss that is linear in its target, such as cross-entropy: the loss of a mixture of two "
            f"labels is {float(whole_B[0]):.4g} and the mixture of their losses {float(parts_B[0]):.4g}"
        )

    def losses(logits_BK: jax.Array) -> jax.Array:
        one_class = lambda y_K: loss_fn(logits_BK, jnp.broadcast_to(y_K, logits_BK.shape))  # noqa: E731
        return jax.vmap(one_class, out_axes=1)(jnp.eye(logits_BK.shape[-1]))

    return losses


def _real(batch: Mapping[str, Any], y_BK: jax.Array) -> jax.Array:
    return jnp.asarray(batch["real"], jnp.float32) if "real" in batch else jnp.ones(len(y_BK))


def _diagnostics(w_B, y_BK, y0_BK, score_B, real_B, is_bad) -> dict[str, jax.Array]:
    num = jnp.sum(real_B)
    is_moved_B = jnp.argmax(y_BK, axis=-1) != jnp.argmax(y0_BK, axis=-1)
    entropy_B = -jnp.sum(jax.scipy.special.xlogy(y_BK, y_BK), axis=-1)
    real_scores_B = jnp.where(real_B > 0, score_B, jnp.nan)
    return {
        "kept": jnp.sum((w_B > 0) * real_B) / num,
        "relabelled": jnp.sum(is_moved_B * real_B) / num,
        "entropy": jnp.sum(entropy_B * real_B) / num,
        "score_min": jnp.nanmin(real_scores_B),
        "score_median": jnp.nanmedian(real_scores_B),
        "score_max": jnp.nanmax(real_scores_B),
        "is_bad": is_bad.astype(jnp.float32),
    }
