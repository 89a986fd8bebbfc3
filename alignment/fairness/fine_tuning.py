"""What becomes of new tasks: phase 1 on their support sets, and quality by place on their query samples at every step.

Dimensions: B tasks of a batch, T all tasks, K fine-tuning steps, S places, Q query samples, P all places, N all query
samples.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignment.errors import InputError
from alignment.fairness import measures, meta, predictors, referee
from alignment.train import sharding


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Query samples one by one, and places one by one, over all tasks; filling is left out.

    `predicted_KN` and `loss_KP` have a row more than there are steps: the first is before fine-tuning. `factor_KP` and
    `raw_KP` have a row a step. `task_T` are the tasks' own numbers; `task_N` and `task_P` count tasks from 0.
    """

    predicted_KN: np.ndarray
    y_N: np.ndarray
    xy_N2: np.ndarray
    task_N: np.ndarray
    place_N: np.ndarray
    task_T: np.ndarray
    task_P: np.ndarray
    number_P: np.ndarray
    loss_KP: np.ndarray
    factor_KP: np.ndarray
    raw_KP: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.factor_KP)


def build(learner: meta.Learner, *, steps: int) -> Callable[[Any, Any, meta.Task], dict[str, jax.Array]]:
    """`(theta, phi, batch) -> arrays` with tasks in front, compiled; see `collect`."""

    def query(theta, task):
        outputs_SQO = jax.vmap(lambda x: learner.apply_fn(theta, x)[0])(task["query_x"])
        loss_S = predictors.place_losses(outputs_SQO, task["query_y"], task["query_weight"], loss=learner.loss)
        return predictors.predictions(outputs_SQO, loss=learner.loss), loss_S

    def one(theta, phi, task):
        def body(state, _):
            theta, carry = state
            theta, carry, trace = meta.inner_step(theta, phi, task, carry, learner=learner, is_even=False)
            return (theta, carry), (*query(theta, task), trace["factor"], trace["raw"])

        predicted_SQ, loss_S = query(theta, task)
        (moved, _), (predicted_KSQ, loss_KS, factor_KS, raw_KS) = jax.lax.scan(
            body, (theta, meta.first_carry(task)), length=steps
        )
        leaves = (*jax.tree.leaves(moved), loss_S, loss_KS)
        is_finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
        return {
            "predicted": jnp.concatenate([predicted_SQ[None], predicted_KSQ]),
            "loss": jnp.concatenate([loss_S[None], loss_KS]),
            "factor": factor_KS,
            "raw": raw_KS,
            "is_finite": is_finite,
        }

    @jax.jit
    def run(theta, phi, batch):
        return jax.vmap(functools.partial(one, theta, phi))({name: batch[name] for name in meta.TASK})

    return run


def collect(
    run_fn: Callable[[Any, Any, meta.Task], dict[str, jax.Array]],
    params: Mapping[str, Any],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: Mesh,
    *,
    rate: float,
    name_fn: Callable[[int], str] = str,
) -> Outcome:
    """Fine-tune every task of finite batches.

    Args:
        run_fn: of `build`.
        batches: of `meta`, with `weights` [B], 0 for filling, and `query_xy` [B,S,Q,2], which stay on the host.
        rate: alpha, for the message.
        name_fn: names a task by its number.

    Raises:
        InputError: a task diverged, or has raw factors that cannot be used; no task.
    """
    parts = []
    for batch in batches:
        on_devices = sharding.to_devices({name: batch[name] for name in (*meta.TASK, "task", "weights")}, mesh)
        out = run_fn(params["theta"], params["phi"], on_devices)
        names = ("query_y", "query_weight", "place_weight", "task", "weights")
        arrays = sharding.to_host({**out, **{name: on_devices[name] for name in names}})
        # The positions are of this process's rows only.
        xy = batch["query_xy"] if jax.process_count() == 1 else sharding.to_host(_spread(batch["query_xy"], mesh))
        counts_B = arrays["weights"] > 0
        parts.append({name: array[counts_B] for name, array in {**arrays, "xy": xy}.items()})
    if not parts or not sum(len(part["task"]) for part in parts):
        raise InputError("there are no tasks to fine-tune on; the counts say what was dropped")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not whole["is_finite"].all():
        bad = int(np.argmin(whole["is_finite"]))
        largest = np.nanmax(np.nan_to_num(whole["factor"][bad], posinf=np.nan))
        values = {"diverged_task": float(whole["task"][bad]), "largest_factor": float(largest)}
        meta.check_diverged(values, rate=rate, name_fn=name_fn)
    for raw_BS in np.moveaxis(whole["raw"], 1, 0):
        referee.check_raw(raw_BS, whole["place_weight"])
    return _flat(whole)


def _spread(xy: np.ndarray, mesh: Mesh) -> jax.Array:
    return sharding.to_devices({"xy": xy}, mesh)["xy"]


def _flat(whole: Mapping[str, np.ndarray]) -> Outcome:
    is_place_TS = whole["place_weight"] > 0
    is_sample_TSQ = (whole["query_weight"] > 0) & is_place_TS[..., None]
    index_3TSQ = np.indices(is_sample_TSQ.shape)
    index_2TS = np.indices(is_place_TS.shape)

    def by_step(array_TK, mask):
        return np.moveaxis(array_TK, 1, 0)[:, mask]

    return Outcome(
        predicted_KN=by_step(whole["predicted"], is_sample_TSQ),
        y_N=whole["query_y"][is_sample_TSQ],
        xy_N2=whole["xy"][is_sample_TSQ],
        task_N=index_3TSQ[0][is_sample_TSQ],
        place_N=index_3TSQ[1][is_sample_TSQ],
        task_T=whole["task"],
        task_P=index_2TS[0][is_place_TS],
        number_P=index_2TS[1][is_place_TS],
        loss_KP=by_step(whole["loss"], is_place_TS),
        factor_KP=by_step(whole["factor"], is_place_TS),
        raw_KP=by_step(whole["raw"], is_place_TS),
    )


@dataclasses.dataclass(frozen=True)
class Quality:
    """One step of an outcome: the quality of places `m_P`, of tasks `reference_T`, and how even it is.

    Places and tasks without a quality have NaN, see `measures.grouped`; evenness leaves them out.
    """

    m_P: np.ndarray
    count_P: np.ndarray
    reference_T: np.ndarray
    evenness: measures.Evenness
    loss_lf: float


def quality(outcome: Outcome, at: int, **options: Any) -> Quality:
    """Quality by place after `at` fine-tuning steps, -1 for the last.

    Args:
        options: of `measures.grouped`: `measure`, `num_classes`, `zero_division`.
    """
    num_tasks, most = len(outcome.task_T), int(outcome.number_P.max()) + 1
    predicted_N = outcome.predicted_KN[at]
    cell_N = outcome.task_N * most + outcome.place_N
    m_TS = measures.grouped(predicted_N, outcome.y_N, cell_N, num_tasks * most, **options)
    count_TS = np.bincount(cell_N, minlength=num_tasks * most)
    reference_T = measures.grouped(predicted_N, outcome.y_N, outcome.task_N, num_tasks, **options)
    overall = measures.grouped(predicted_N, outcome.y_N, np.zeros_like(outcome.task_N), 1, **options)[0]
    cell_P = outcome.task_P * most + outcome.number_P
    even = measures.evenness(m_TS[cell_P], outcome.task_P, reference_T, float(overall))
    loss_P = outcome.loss_KP[at]
    means_T = np.bincount(outcome.task_P, loss_P) / np.bincount(outcome.task_P)
    off_T = np.bincount(outcome.task_P, np.abs(loss_P - means_T[outcome.task_P])) / np.bincount(outcome.task_P)
    return Quality(m_TS[cell_P], count_TS[cell_P], reference_T, even, float(off_T.mean()))


def choose(evaluations: Mapping[int, Mapping[str, float]], *, within: float) -> int:
    """The evaluation to keep: the lowest LF among those whose quality is within `within` of the best one's.

    Args:
        evaluations: step -> `performance` and `lf` on validation tasks.
        within: in the units of the quality.

    Returns:
        The step; of equals the earliest.
    """
    best = max(values["performance"] for values in evaluations.values())
    near = {at: values["lf"] for at, values in evaluations.items() if values["performance"] >= best - within}
    return min(sorted(near), key=lambda at: near[at])
