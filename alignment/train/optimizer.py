"""AdamW with the schedules that language models are trained with, and the AMSGrad of the image baselines."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignment import errors, programs
from alignment.errors import InputError, within


def constant(peak_lr: float, warmup_steps: int) -> optax.Schedule:
    return optax.join_schedules([_warmup(peak_lr, warmup_steps), optax.constant_schedule(peak_lr)], [warmup_steps])


# The schedules of optax ask of some of these numbers how large they are, which no traced number can answer.
def linear(peak_lr: float, warmup_steps: int, total_steps: int, final_lr: float) -> optax.Schedule:
    def falling(step: jax.Array) -> jax.Array:
        num_steps = jnp.maximum(total_steps - warmup_steps, 1)
        return (peak_lr - final_lr) * (1 - jnp.clip(step, 0, num_steps) / num_steps) + final_lr

    return optax.join_schedules([_warmup(peak_lr, warmup_steps), falling], [warmup_steps])


def cosine(peak_lr: float, warmup_steps: int, total_steps: int, final_lr: float) -> optax.Schedule:
    def falling(step: jax.Array) -> jax.Array:
        num_steps = jnp.maximum(total_steps - warmup_steps, 1)
        share = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step, num_steps) / num_steps))
        return (peak_lr - final_lr) * share + final_lr

    return optax.join_schedules([_warmup(peak_lr, warmup_steps), falling], [warmup_steps])


def inverse_sqrt(peak_lr: float, warmup_steps: int, final_lr: float) -> optax.Schedule:
    """Falls as 1 / sqrt(step), from `peak_lr` at the end of the warm-up, and never below `final_lr`."""

    def falling(step: jax.Array) -> jax.Array:  # `join_schedules` counts from the end of the warm-up
        start = jnp.maximum(warmup_steps, 1)
        return jnp.maximum(peak_lr * jnp.sqrt(start / (start + jnp.maximum(step, 0))), final_lr)

    return optax.join_schedules([_warmup(peak_lr, warmup_steps), falling], [warmup_steps])


# (peak_lr, warmup_steps, total_steps, final_lr) -> schedule
SCHEDULES: dict[str, Callable[[float, int, int, float], optax.Schedule]] = {
    "constant": lambda peak_lr, warmup_steps, total_steps, final_lr: constant(peak_lr, warmup_steps),
    "linear": linear,
    "cosine": cosine,
    "inverse_sqrt": lambda peak_lr, warmup_steps, total_steps, final_lr: inverse_sqrt(peak_lr, warmup_steps, final_lr),
}


def _warmup(peak_lr: float, warmup_steps: int) -> optax.Schedule:
    """Rises from peak/warmup at step 0, so that no step is wasted at a rate of zero."""
    return lambda step: peak_lr * jnp.minimum((step + 1) / jnp.maximum(warmup_steps, 1), 1.0)


def adamw(
    peak_lr: float,
    *,
    warmup_steps: int = 0,
    total_steps: int = 0,
    schedule: str = "cosine",
    final_lr: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    average: float | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) behind global-norm clipping.

    Args:
        peak_lr: learning rate after the warm-up.
        warmup_steps: steps of linear warm-up.
        total_steps: length of the run, where `linear` and `cosine` reach `final_lr`.
        schedule: a key of SCHEDULES.
        weight_decay: decoupled decay of matrices; vectors (norms, biases) are never decayed.
        clip_norm: largest global gradient norm; 0 never clips.
        average: how much of a moving average of the parameters each step keeps, in (0, 1), such as 0.999; the loop then
            evaluates and returns the average. None has none.

    Returns:
        A transformation whose state holds the learning rate in force, read back by `learning_rate`.
    """
    errors.one_of("schedule", schedule, SCHEDULES)
    within("[0, inf)", peak_lr=peak_lr, clip_norm=clip_norm, weight_decay=weight_decay)
    if total_steps and warmup_steps > total_steps:
        raise InputError(f"warmup_steps={warmup_steps} is longer than the run, total_steps={total_steps}")
    within("(0, 1)", average=average, hint=", such as 0.999; None averages nothing")
    fixed = dict(schedule=schedule, clips=bool(clip_norm), decays=bool(weight_decay), averages=average is not None)
    numbers = dict(peak_lr=peak_lr, final_lr=final_lr, b1=b1, b2=b2, eps=eps)
    numbers |= dict(weight_decay=weight_decay, clip_norm=clip_norm)
    numbers |= {} if average is None else dict(average=average)
    # In float32, 1 - 0.999 would be off by 1e-5 of itself; Python's subtraction is not.
    numbers |= dict(rest1=1 - b1, rest2=1 - b2)
    steps = dict(warmup_steps=int(warmup_steps), total_steps=int(total_steps))
    return _shared(_adamw, fixed, {name: float(number) for name, number in numbers.items()} | steps)


def _adamw(*, averages, average=None, **options):
    return _averaging(_plain_adamw(**options), average) if averages else _plain_adamw(**options)


def _plain_adamw(
    *, schedule, clips, decays, peak_lr, final_lr, warmup_steps, total_steps, weight_decay, clip_norm, **adam
):
    rate = SCHEDULES[schedule](peak_lr, warmup_steps, total_steps, final_lr)
    clip = optax.clip_by_global_norm(clip_norm) if clips else optax.identity()
    # scanned layers stack vectors into matrices, so the name says what a vector is, and not the rank
    decay = optax.add_decayed_weights(weight_decay, mask=_is_matrix) if decays else optax.identity()
    # `inject_hyperparams` keeps the rate in the optimizer's state, from where `learning_rate` reads it for the log.
    return optax.chain(clip, _scale_by_adam(**adam), decay, optax.inject_hyperparams(_scale)(rate=rate))


class Average(NamedTuple):
    """A moving average of the parameters, in front of an optimizer's own state."""

    params: Any


def _averaging(inner, keeps):
    """The transformation with an average of the parameters after each update, which begins at the first ones."""

    def init(params):
        return Average(params), *inner.init(params)

    def update(gradient, state, params):
        changes, own = inner.update(gradient, state[1:], params)
        # In float32 a share of 0.001 of a change would be rounded away next to the average, in steps of 1e-7 of it; it
        # is the difference that is scaled, which keeps what float32 can hold.
        moved = jax.tree.map(
            lambda mean, old, change: mean + (1 - keeps) * (old + change - mean), state[0].params, params, changes
        )
        return changes, (Average(moved), *own)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: optax.OptState, params: Any) -> Any:
    """The moving average that an optimizer's state holds, or the parameters where it has none."""
    first = opt_state[0] if isinstance(opt_state, tuple) and opt_state else None
    return first.params if isinstance(first, Average) else params


def _scale_by_adam(*, b1, rest1, b2, rest2, eps):
    """As `optax.scale_by_adam`, with 1 - b1 and 1 - b2 from the host."""

    def update(gradient, state, params=None):
        mu = jax.tree.map(lambda g, m: rest1 * g + b1 * m, gradient, state.mu)
        nu = jax.tree.map(lambda g, v: (rest2 * g**2 + b2 * v).astype(v.dtype), gradient, state.nu)
        count = optax.safe_increment(state.count)
        mean, square = optax.tree.bias_correction(mu, b1, count), optax.tree.bias_correction(nu, b2, count)
        change = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, square)
        return change, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _shared(make_fn, fixed, numbers):
    """What `make_fn(**fixed, **numbers)` makes, as computations: its numbers are not constants of a program."""
    fixed = dict(make_fn=make_fn, **fixed)
    parts = (programs.Computation(fn, fixed, numbers) for fn in (_begin, _update))
    return optax.GradientTransformation(*parts)


def _begin(params, *, make_fn, **options):
    return make_fn(**options).init(params)


def _update(gradient, opt_state, params=None, *, make_fn, **options):
    return make_fn(**options).update(gradient, opt_state, params)


def amsgrad(lr: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam with AMSGrad (Reddi et al. 2018, arXiv:1904.09237) at a constant rate, as `optax.amsgrad`.

    No warm-up, decay or clipping. The maximum is taken of the bias-corrected second moment; torch takes it of the raw
    one and corrects after, which differs over the first thousand steps.
    """
    within("[0, inf)", lr=lr)
    return _shared(_amsgrad, dict(b1=b1, b2=b2, eps=eps), dict(lr=float(lr)))


def _amsgrad(*, lr, **adam):
    return optax.chain(optax.scale_by_amsgrad(**adam), optax.inject_hyperparams(_scale)(rate=lr))


def learning_rate(opt_state: optax.OptState) -> jax.Array:
    """The learning rate of the last update made with `adamw` or `amsgrad`."""
    return opt_state[-1].hyperparams["rate"]


def _scale(rate: float) -> optax.GradientTransformation:
    return optax.scale(-rate)


def _is_matrix(params):
    def decayed(path, _):
        last = str(getattr(path[-1], "key", path[-1]))
        return not last.endswith(("norm", "bias"))

    return jax.tree_util.tree_map_with_path(decayed, params)
