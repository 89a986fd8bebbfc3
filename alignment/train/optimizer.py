"""AdamW with the schedules that language models are trained with, and the AMSGrad of the image baselines."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from alignment import errors
from alignment.errors import InputError


def constant(peak_lr: float, warmup_steps: int) -> optax.Schedule:
    return optax.join_schedules([_warmup(peak_lr, warmup_steps), optax.constant_schedule(peak_lr)], [warmup_steps])


def linear(peak_lr: float, warmup_steps: int, total_steps: int, final_lr: float) -> optax.Schedule:
    falling = optax.linear_schedule(peak_lr, final_lr, max(total_steps - warmup_steps, 1))
    return optax.join_schedules([_warmup(peak_lr, warmup_steps), falling], [warmup_steps])


def cosine(peak_lr: float, warmup_steps: int, total_steps: int, final_lr: float) -> optax.Schedule:
    alpha = final_lr / peak_lr if peak_lr else 0.0
    falling = optax.cosine_decay_schedule(peak_lr, max(total_steps - warmup_steps, 1), alpha)
    return optax.join_schedules([_warmup(peak_lr, warmup_steps), falling], [warmup_steps])


def inverse_sqrt(peak_lr: float, warmup_steps: int, final_lr: float) -> optax.Schedule:
    """Falls as 1 / sqrt(step), from `peak_lr` at the end of the warm-up, and never below `final_lr`."""
    start = max(warmup_steps, 1)

    def falling(step: jax.Array) -> jax.Array:  # `join_schedules` counts from the end of the warm-up
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
    return lambda step: peak_lr * jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)


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
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) behind global-norm clipping.

    Args:
        peak_lr: learning rate after the warm-up.
        warmup_steps: steps of linear warm-up.
        total_steps: length of the run, where `linear` and `cosine` reach `final_lr`.
        schedule: a key of SCHEDULES.
        weight_decay: decoupled decay of matrices; vectors (norms, biases) are never decayed.
        clip_norm: largest global gradient norm; 0 never clips.

    Returns:
        A transformation whose state holds the learning rate in force, read back by `learning_rate`.
    """
    errors.one_of("schedule", schedule, SCHEDULES)
    for name, value in {"peak_lr": peak_lr, "clip_norm": clip_norm, "weight_decay": weight_decay}.items():
        if value < 0:
            raise InputError(f"{name}={value} must not be negative")
    if total_steps and warmup_steps > total_steps:
        raise InputError(f"warmup_steps={warmup_steps} is longer than the run, total_steps={total_steps}")
    rate = SCHEDULES[schedule](peak_lr, warmup_steps, total_steps, final_lr)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    # scanned layers stack vectors into matrices, so the name says what a vector is, and not the rank
    decay = optax.add_decayed_weights(weight_decay, mask=_is_matrix) if weight_decay else optax.identity()
    # `inject_hyperparams` keeps the rate in the optimizer's state, from where `learning_rate` reads it for the log.
    return optax.chain(clip, optax.scale_by_adam(b1, b2, eps), decay, optax.inject_hyperparams(_scale)(rate=rate))


def amsgrad(lr: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam with AMSGrad (Reddi et al. 2018, arXiv:1904.09237) at a constant rate, as `optax.amsgrad`.

    No warm-up, decay or clipping. The maximum is taken of the bias-corrected second moment; torch takes it of the raw
    one and corrects after, which differs over the first thousand steps.
    """
    if lr < 0:
        raise InputError(f"lr={lr} must not be negative")
    return optax.chain(optax.scale_by_amsgrad(b1, b2, eps), optax.inject_hyperparams(_scale)(rate=lr))


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
