"""Meta-learning over places: inner steps with a factor a place, and the outer updates of predictor and referee.

MAML (Finn et al. 2017, arXiv:1703.03400) with the referee of Chen et al. 2024, whose equations could not be read: phase
1 moves a copy of theta by alpha times the mean over places of factor times gradient; phase 2 moves theta by the loss of
the moved copies on query samples; phase 3 moves phi, through the factors, by how unevenly that loss falls on places.

A task is a dict: `support_x` [S,M,...], `support_y` [S,M], `query_x` [S,Q,...], `query_y` [S,Q], `query_weight` [S,Q]
and `place_weight` [S], where 0 marks filling. A batch has tasks in front and their numbers, below 2^24, as `task` [B];
it is split by tasks over the mesh.

Dimensions: B tasks, S places, M support samples and Q query samples of a place, K inner steps, O outputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from alignment import errors
from alignment.errors import InputError
from alignment.fairness import predictors, referee
from alignment.train import step
from alignment.train.train_state import TrainState

Task = Mapping[str, jax.Array]
PHASES = ("inner", "performance", "fairness")
FAIR_PARAMS = ("phi", "theta", "both")
UNROLLED = 4  # inner steps of a turn of their loop: between turns a CPU copies all values that the gradient needs
SMOOTH = 0.0  # of |x| in the measure of unevenness: sqrt(x^2 + SMOOTH)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What an inner step needs.

    Args:
        apply_fn: (theta, x [N,...]) -> outputs [N,O] and encodings [N,E].
        loss: a name of `predictors.LOSSES`.
        factors_fn: (phi, what is seen) -> raw factors of the places.
        rate: alpha.
        is_normalised: factors have mean 1 within a task.
        is_second_order: gradients go through the inner gradients; otherwise these count as constants in theta.
    """

    apply_fn: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    loss: str
    factors_fn: referee.FactorsFn
    rate: float
    is_normalised: bool = True
    is_second_order: bool = True


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a method learns; see `methods.METHODS`.

    Args:
        factors: a kind of `referee.KINDS` for training, and `test_factors` for fine-tuning; "" is the same.
        phases: of PHASES; a phase that is left out is not made.
        fair_params: what the fairness update moves.
        lambda_p: weight of the mean loss beside unevenness in the update of phi.
        lambda_f: weight of unevenness beside the mean loss in the update of theta.
        is_bargained: the two gradients are joined by Nash bargaining instead of by these weights.
        is_normalised: of `Learner`.
    """

    factors: str = referee.EVEN
    test_factors: str = ""
    phases: tuple[str, ...] = PHASES
    fair_params: str = "phi"
    lambda_p: float = 1.0
    lambda_f: float = 0.5
    is_bargained: bool = False
    is_normalised: bool = True

    def __post_init__(self) -> None:
        for kind in (self.factors, self.test_factors or self.factors):
            errors.one_of("factors", kind, referee.KINDS)
        errors.one_of("fair_params", self.fair_params, FAIR_PARAMS)
        for phase in self.phases:
            errors.one_of("phases", phase, PHASES)
        errors.within("[0, inf)", lambda_p=self.lambda_p, lambda_f=self.lambda_f)

    @property
    def moves_theta_fairly(self) -> bool:
        return "fairness" in self.phases and self.fair_params in ("theta", "both")

    @property
    def moves_phi(self) -> bool:
        has_path = {"inner", "fairness"} <= set(self.phases)  # phi acts on the loss through the inner steps alone
        return has_path and self.factors == referee.NETWORK and self.fair_params in ("phi", "both")


# Phase 1


def place_losses(theta: Any, x: jax.Array, y_SN: jax.Array, weight_SN: jax.Array, *, learner: Learner) -> Any:
    """The loss of each place, with its mean encoding and its quality beside it: (loss_S, (encoding_SE, score_S))."""
    num_places, num_samples = y_SN.shape
    flat = x.reshape(num_places * num_samples, *x.shape[2:])
    outputs_NO, encoding_NE = learner.apply_fn(theta, flat)
    outputs_SNO = outputs_NO.reshape(num_places, num_samples, -1)
    encoding_SE = jnp.mean(encoding_NE.reshape(num_places, num_samples, -1), axis=1)
    score_S = predictors.place_scores(outputs_SNO, y_SN, weight_SN, loss=learner.loss)
    return predictors.place_losses(outputs_SNO, y_SN, weight_SN, loss=learner.loss), (encoding_SE, score_S)


def inner_step(theta: Any, phi: Any, task: Task, carry: Any, *, learner: Learner, is_even: Any) -> Any:
    """One step of phase 1: (theta', what the next step needs, trace).

    Args:
        carry: sums of the places' losses over earlier steps, and the quality before the first one.
        is_even: True sets all factors to 1, as in a warm-up; an array, or False.

    Returns:
        The trace holds `loss` and `score` [S] on the support set before the step, and `raw` and `factor` [S].
    """
    weight_S = task["place_weight"]
    num_samples = task["support_y"].shape[-1]
    loss_fn = functools.partial(
        place_losses,
        x=task["support_x"],
        y_SN=task["support_y"],
        weight_SN=jnp.broadcast_to(weight_S[:, None], (len(weight_S), num_samples)),
        learner=learner,
    )
    # Taken at a constant theta, the gradient still depends on phi by the factors that weigh it, but not on theta.
    at = theta if learner.is_second_order else jax.lax.stop_gradient(theta)
    loss_S, pull_fn, (encoding_SE, score_S) = jax.vjp(loss_fn, at, has_aux=True)
    total_S, reference = carry
    seen_loss_S, encoding_SE, score_S = jax.lax.stop_gradient((loss_S, encoding_SE, score_S))
    overall = predictors.overall_score(score_S, weight_S, loss=learner.loss)
    reference = jnp.where(jnp.isnan(reference), overall, reference)
    total_S = total_S + seen_loss_S
    seen = referee.Seen(seen_loss_S, encoding_SE, weight_S, total_S, score_S, reference)
    raw_S = learner.factors_fn(phi, seen)
    factor_S = referee.normalise(raw_S, weight_S) if learner.is_normalised else raw_S
    if is_even is not False:
        factor_S = jnp.where(is_even, 1.0, factor_S)
    # One backward pass, weighed by place, gives (1/S) sum_s factor_s grad loss_s.
    (gradient,) = pull_fn(factor_S * weight_S / jnp.sum(weight_S))
    theta = jax.tree.map(lambda p, g: p - learner.rate * g, theta, gradient)
    return theta, (total_S, reference), {"loss": loss_S, "score": score_S, "raw": raw_S, "factor": factor_S}


def first_carry(task: Task) -> Any:
    """What `inner_step` carries before the first step."""
    return jnp.zeros_like(task["place_weight"]), jnp.full((), jnp.nan)


def adapt(theta: Any, phi: Any, task: Task, *, learner: Learner, steps: int, is_even: Any = False) -> Any:
    """Phase 1: theta after `steps` inner steps on the support set of one task, and the trace [K,S] of `inner_step`."""

    def body(state, _):
        theta, carry = state
        theta, carry, trace = inner_step(theta, phi, task, carry, learner=learner, is_even=is_even)
        return (theta, carry), trace

    unroll = max(1, min(steps, UNROLLED))
    (theta, _), trace = jax.lax.scan(body, (theta, first_carry(task)), length=steps, unroll=unroll)
    return theta, trace


# Phases 2 and 3


def unevenness(loss_S: jax.Array, weight_S: jax.Array, smooth: float = SMOOTH) -> jax.Array:
    """L_fair = (1/S) sum_s |loss_s - mean loss|; `smooth` > 0 takes sqrt(x^2 + smooth) in place of |x|."""
    off_S = loss_S - referee.mean_over(loss_S, weight_S)
    return referee.mean_over(jnp.sqrt(off_S**2 + smooth) if smooth else jnp.abs(off_S), weight_S)


def objectives(theta: Any, phi: Any, batch: Task, *, learner: Learner, steps: int, is_even: Any = False) -> Any:
    """Means over the tasks of a batch, on query samples after phase 1: (mean loss, unevenness), and the trace [B,K,S].

    The trace gains `is_finite` [B]: whether each task's moved theta and its query losses are.
    """

    def one(task):
        moved, trace = adapt(theta, phi, task, learner=learner, steps=steps, is_even=is_even)
        loss_S, _ = place_losses(moved, task["query_x"], task["query_y"], task["query_weight"], learner=learner)
        leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in (*jax.tree.leaves(moved), loss_S)]
        weight_S = task["place_weight"]
        trace = trace | {"is_finite": jnp.stack(leaves).all()}
        return referee.mean_over(loss_S, weight_S), unevenness(loss_S, weight_S), trace

    loss_B, uneven_B, trace = jax.vmap(one)({name: batch[name] for name in TASK})
    return (jnp.mean(loss_B), jnp.mean(uneven_B)), trace


TASK = ("support_x", "support_y", "query_x", "query_y", "query_weight", "place_weight")


def bargain(first: Any, second: Any) -> Any:
    """The Nash bargaining solution of two gradients: (g1/|g1| + g2/|g2|) / sqrt(1 + cos(g1, g2)).

    It is the closed form, for two players, of Navon et al. 2022 (arXiv:2202.01017), G^T G a = 1/a. Gradients that are
    opposite leave nothing to agree on, and the result is 0; so it is where one of them is 0.
    """
    norm_1, norm_2 = optax.global_norm(first), optax.global_norm(second)
    dot = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)))
    product = norm_1 * norm_2
    agreement = 1 + dot / jnp.where(product > 0, product, 1.0)
    can_agree = (product > 0) & (agreement > 1e-6)
    scale = jnp.where(can_agree, 1 / jnp.sqrt(jnp.where(can_agree, agreement, 1.0)), 0.0)
    unit_1, unit_2 = (scale / jnp.where(norm > 0, norm, 1.0) for norm in (norm_1, norm_2))
    return jax.tree.map(lambda a, b: a * unit_1 + b * unit_2, first, second)


def gradients(
    params: Mapping[str, Any], part: str, batch: Task, *, rule: Rule, learner: Learner, steps: int, is_even: Any
) -> Any:
    """The gradient in `part` ("theta" or "phi") of the loss that moves it, and (mean loss, unevenness, trace).

    Phase 2 gives theta the mean loss, and phase 3 the unevenness where it moves theta, but not while `is_even` holds: a
    warm-up is phase 2 alone.
    """

    def both(leaves):
        whole = dict(params) | {part: leaves}
        return objectives(whole["theta"], whole["phi"], batch, learner=learner, steps=steps, is_even=is_even)

    performs = "performance" in rule.phases
    if rule.is_bargained and (part == "phi" or (performs and rule.moves_theta_fairly)):
        # Two gradients, so two backward passes over one forward pass.
        (loss, uneven), pull_fn, trace = jax.vjp(both, params[part], has_aux=True)
        one, none = jnp.ones_like(loss), jnp.zeros_like(loss)
        of_loss, of_uneven = pull_fn((one, none))[0], pull_fn((none, one))[0]
        gradient = bargain(of_loss, of_uneven)
        if part == "theta" and is_even is not False:
            gradient = jax.tree.map(lambda joined, alone: jnp.where(is_even, alone, joined), gradient, of_loss)
        return gradient, (loss, uneven, trace)

    def scalar(leaves):
        (loss, uneven), trace = both(leaves)
        if part == "phi":
            value = uneven + rule.lambda_p * loss
        else:
            value = loss if performs else jnp.zeros_like(loss)
            if rule.moves_theta_fairly:
                lambda_f = rule.lambda_f if is_even is False else jnp.where(is_even, 0.0, rule.lambda_f)
                value = value + lambda_f * uneven
        return value, (loss, uneven, trace)

    return jax.grad(scalar, has_aux=True)(params[part])


# The update


class Both:
    """Predictor and referee as one thing to initialise: parameters `theta` and `phi`, drawn by keys of their own."""

    def __init__(self, predictor: nn.Module, width: int = 32):
        self.predictor, self.width = predictor, width

    def init(self, rng: jax.Array, example_B: jax.Array) -> dict[str, Any]:
        theta_rng, phi_rng = jax.random.split(rng)
        theta = self.predictor.init(theta_rng, example_B)["params"]
        encoding_BE: Any = self.predictor.apply({"params": theta}, example_B)[1]
        one_S = jnp.ones(1)
        phi = referee.Referee(self.width).init(phi_rng, one_S, encoding_BE[:1], one_S)["params"]
        params = {"theta": theta, "phi": phi}
        return {"params": params, "diverged_task": jnp.full((), -1, jnp.int32), "largest_factor": jnp.zeros(())}


def optimizers(theta_lr: float, phi_lr: float) -> dict[str, optax.GradientTransformation]:
    """Adam for each part, with moments of its own."""
    errors.within("(0, inf)", lr=theta_lr, referee_lr=phi_lr, hint=": the outer learning rate")
    return {"theta": optax.adam(theta_lr), "phi": optax.adam(phi_lr)}


def joint(tx: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """For `train_state.create`: the state of each part's own optimizer; `build` makes the updates."""

    def refuse(*_):
        raise NotImplementedError("the parts are updated one by one")

    return optax.GradientTransformation(lambda params: {name: tx[name].init(params[name]) for name in tx}, refuse)


def build(
    learner: Learner,
    rule: Rule,
    tx: Mapping[str, optax.GradientTransformation],
    *,
    steps: int,
    warmup_steps: int = 0,
) -> step.UpdateFn:
    """`update(state, batch) -> (state, metrics)` of `train.loop.fit`: phase 2 moves theta, then phase 3 moves phi.

    Args:
        tx: of `optimizers`.
        steps: K, inner steps in training; none where the rule leaves phase 1 out.
        warmup_steps: outer steps of phase 2 alone, with all factors at 1.

    A step that is not finite changes nothing; `frozen` then says which task diverged first, and the largest factor.
    """
    steps = steps if "inner" in rule.phases else 0

    def update(state: TrainState, batch: Task) -> tuple[TrainState, step.Metrics]:
        # A Python False leaves the warm-up out of the program.
        is_warm = state.step < warmup_steps if warmup_steps else False
        options: Any = dict(rule=rule, learner=learner, steps=steps, is_even=is_warm)
        params, opt_state = dict(state.params), dict(state.opt_state)
        gradient, (loss, uneven, trace) = gradients(params, "theta", batch, **options)
        norms = {"grad_norm": optax.global_norm(gradient)}
        performs = "performance" in rule.phases
        if performs or rule.moves_theta_fairly:
            old = params["theta"], opt_state["theta"]
            moved = _moved(tx["theta"], gradient, *old, is_at_rest=False if performs else is_warm)
            params["theta"], opt_state["theta"] = moved
        if rule.moves_phi:
            # Recomputed with the theta of phase 2.
            gradient, (_, _, trace_3) = gradients(params, "phi", batch, **options)
            # Where phase 2 has diverged its theta spoils every task of phase 3, so the tasks are those of phase 2.
            is_fine_B = jnp.where(jnp.all(trace["is_finite"]), trace_3["is_finite"], trace["is_finite"])
            trace = trace | {"is_finite": is_fine_B}
            norms["referee_grad_norm"] = optax.global_norm(gradient)
            moved = _moved(tx["phi"], gradient, params["phi"], opt_state["phi"], is_at_rest=is_warm)
            params["phi"], opt_state["phi"] = moved
        is_finite = jnp.isfinite(loss + uneven + sum(norms.values())) & jnp.all(trace["is_finite"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        frozen, metrics = _watched(state.frozen, batch, trace, is_finite)
        metrics |= {"loss": step.single(loss), "unevenness": step.single(uneven)}
        metrics |= {name: step.single(norm) for name, norm in norms.items()}
        return dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, frozen=frozen
        ), metrics

    return update


def _moved(tx: optax.GradientTransformation, gradient: Any, params: Any, moments: Any, *, is_at_rest: Any) -> Any:
    """(parameters, moments) after one update; as they were where `is_at_rest`, an array or False, holds."""
    changes, new_moments = tx.update(gradient, moments, params)
    moved = optax.apply_updates(params, changes), new_moments
    if is_at_rest is False:
        return moved
    return jax.tree.map(lambda new, old: jnp.where(is_at_rest, old, new), moved, (params, moments))


def _watched(frozen: Any, batch: Task, trace: Any, is_finite: jax.Array) -> tuple[Any, step.Metrics]:
    """What is known of divergence, which stays as it was once a task has diverged, and the metrics of the factors."""
    weight_BKS = jnp.broadcast_to(batch["place_weight"][:, None], trace["factor"].shape)
    total = jnp.maximum(jnp.sum(weight_BKS), 1)
    mean = jnp.sum(trace["factor"] * weight_BKS) / total
    variance = jnp.sum((trace["factor"] - mean) ** 2 * weight_BKS) / total
    largest = jnp.max(jnp.where(jnp.isfinite(trace["factor"]), trace["factor"], 0.0), initial=0.0)
    first_bad = batch["task"][jnp.argmin(trace["is_finite"])]
    is_first = ~is_finite & (frozen["diverged_task"] < 0)
    frozen = {
        "diverged_task": jnp.where(is_first, first_bad, frozen["diverged_task"]),
        "largest_factor": jnp.where(is_first, largest, frozen["largest_factor"]),
    }
    # A count of 0 leaves these two out of the log while all is well.
    has_diverged = (frozen["diverged_task"] >= 0).astype(jnp.float32)
    metrics = {
        "factor_std": step.single(jnp.sqrt(variance)),
        "raw_factor": step.single(jnp.sum(trace["raw"] * weight_BKS) / total),
        "nonfinite": step.single(1.0 - is_finite),
    }
    metrics |= {
        name: step.Mean(has_diverged * frozen[name].astype(jnp.float32), has_diverged)
        for name in ("diverged_task", "largest_factor")
    }
    return frozen, metrics


def check_diverged(values: dict[str, float], *, rate: float, name_fn: Callable[[int], str]) -> dict[str, float]:
    """`finish_fn` of the loop: the logged values, unless a task has diverged.

    Raises:
        InputError: names the task, alpha and the largest factor.
    """
    if "diverged_task" in values:
        raise InputError(
            f"the inner steps of task {name_fn(int(values['diverged_task']))} left the finite numbers: rate={rate:g}, "
            f"largest factor {values['largest_factor']:.4g}; lower the inner rate, or look at the task's features"
        )
    return values
