"""Several adapters of one base trained in one program: the points of a sweep, or the reward models of guided decoding.

Each member has parameters, an optimizer, random keys and batches of its own, and numbers in which members may differ,
such as the learning rate or the loss's beta. All else is common: the base weights, which are there once, the network,
the adapter's layers and ranks, the shapes of the batches and the number of steps. A member's numbers are those of the
run that trains it alone, up to the rounding of sums in another order.

`build`'s update, `create`'s state, `Together` and `evaluator` go to `loop.fit` as those of one adapter do; a metric is
named `<member>/<metric>` there.

Dimensions: K members, B rows.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignment import programs
from alignment.errors import InputError
from alignment.models import lora
from alignment.train import adapters, loop, step
from alignment.train.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Member:
    """What is a member's own.

    Attributes:
        name: of its metrics.
        seed: draws its first parameters.
        rate: multiplies the learning rate of the common optimizer, > 0.
        numbers: arguments of `loss_of`; every member has the same names.
    """

    name: str
    seed: int = 0
    rate: float = 1.0
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


LossOf = Callable[..., step.LossFn]


def check(members: Sequence[Member]) -> None:
    """Refuse members that cannot be trained together.

    Raises:
        InputError: none, two of one name, a rate that is not positive, or numbers of other names.
    """
    if not members:
        raise InputError("a stack has no members; give at least one")
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise InputError(f"members are named {names}; each needs a name of its own")
    for member in members:
        if not member.rate > 0:
            raise InputError(f"member {member.name!r} has rate={member.rate}, which must be positive")
        if member.numbers.keys() != members[0].numbers.keys():
            raise InputError(
                f"member {member.name!r} has the numbers {sorted(member.numbers)} and {members[0].name!r} "
                f"{sorted(members[0].numbers)}; members may differ in values only"
            )


def create(
    adapter: lora.Adapter,
    tx: optax.GradientTransformation,
    base: Any,
    members: Sequence[Member],
    *,
    mesh: Mesh,
) -> TrainState:
    """A state at step 0 with fresh adapters: parameters, moments and keys have a leading axis K.

    Args:
        base: the weights that stay; the state takes them over, and its update donates them.
    """
    check(members)
    scaled = optax.chain(tx, optax.scale(1.0))
    states = [adapters.create(adapter, scaled, base, seed=member.seed, mesh=mesh) for member in members]

    def together(*leaves):
        place = NamedSharding(mesh, PartitionSpec(None, *leaves[0].sharding.spec))
        return jax.device_put(jnp.stack(leaves), place)

    own = [{"params": state.params, "opt_state": state.opt_state, "rng": state.rng} for state in states]
    return dataclasses.replace(states[0], **jax.tree.map(together, *own))


def build(loss_of: LossOf, tx: optax.GradientTransformation, members: Sequence[Member]) -> step.UpdateFn:
    """The update of all members at once, to be compiled with `step.compile_update`.

    Args:
        loss_of: a member's numbers, as keywords, to its loss on adapter and batch (`lora.loss_fn`).
        tx: the optimizer of a member of rate 1.
    """
    check(members)
    rates_K, own = _numbers(members)
    fixed = dict(loss_of=loss_of, names=tuple(member.name for member in members))
    return programs.Computation(_update, fixed, dict(tx=programs.of(tx), rates_K=rates_K, own=own))


def _update(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    loss_of: LossOf,
    names: Sequence[str],
    tx: Any,
    rates_K: Any,
    own: Any,
) -> tuple[TrainState, step.Metrics]:
    def one(params, opt_state, rng, batch, rate, own, number, frozen):
        # The rate comes last, so the common optimizer's clipping and moments are those of a run at that rate.
        update = step.build(loss_of(**own), optax.chain(tx, optax.scale(rate)))
        new, metrics = update(TrainState(number, params, opt_state, rng, frozen), batch)
        return new.params, new.opt_state, metrics

    params, opt_state, each = jax.vmap(one, in_axes=(0, 0, 0, 1, 0, 0, None, None))(
        state.params, state.opt_state, state.rng, batch, rates_K, own, state.step, state.frozen
    )
    metrics = _by_name(each, names)
    metrics["nonfinite"] = step.single(jnp.sum(each["nonfinite"].total))
    return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics


def evaluator(loss_of: LossOf, members: Sequence[Member], batches: Iterable[dict[str, np.ndarray]]) -> loop.Evaluator:
    """Every member's exact means over one finite set of batches, as `loop.evaluator`."""
    fixed = dict(loss_of=loss_of, names=tuple(member.name for member in members))
    return loop.evaluator(programs.Computation(_loss, fixed, dict(own=_numbers(members)[1])), batches)


def _loss(params, batch, *, loss_of, names, own, rng, frozen):
    def one(params, own):
        mean, metrics = loss_of(**own)(params, batch, rng=rng, frozen=frozen)
        return {"loss": mean, **metrics}

    each = jax.vmap(one)(params, own)
    return step.single(jnp.sum(step.value(each["loss"]))), _by_name(each, names)


def params_of(state: TrainState, number: int) -> Any:
    """The tree of one member, for `peft_adapters.save` or a guide of the decoding engine."""
    return jax.tree.map(lambda leaf: leaf[number], state.params)


class Together:
    """One loader for each member as one: batches [B,K,...], so that rows are split over devices as ever."""

    def __init__(self, loaders: Sequence[loop.Loader]) -> None:
        self.loaders = list(loaders)

    def __next__(self) -> dict[str, np.ndarray]:
        batches = [next(loader) for loader in self.loaders]
        try:
            return {name: np.stack([batch[name] for batch in batches], axis=1) for name in batches[0]}
        except (ValueError, KeyError):
            shapes = [{name: value.shape for name, value in batch.items()} for batch in batches]
            raise InputError(f"the members' batches differ in shape: {shapes}; give all the same lengths") from None

    def get_state(self) -> dict[str, Any]:
        return {"members": [loader.get_state() for loader in self.loaders]}

    def set_state(self, state: dict[str, Any]) -> None:
        for loader, own in zip(self.loaders, state["members"], strict=True):
            loader.set_state(own)


def finish(finish_fn: loop.FinishFn, members: Sequence[Member]) -> loop.FinishFn:
    """`loop.Logging.finish_fn` of one adapter as one of all members."""

    def finish_all(values: dict[str, float]) -> dict[str, float]:
        out = {name: value for name, value in values.items() if "/" not in name}
        for member in members:
            prefix = f"{member.name}/"
            own = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            out |= {f"{prefix}{name}": value for name, value in finish_fn(own).items()}
        return out

    return finish_all


def _numbers(members):
    """Rates [K], and a dict of [K] arrays."""
    names = members[0].numbers
    rates = np.array([member.rate for member in members], np.float32)
    return rates, {name: np.array([m.numbers[name] for m in members], np.float32) for name in names}


def _by_name(each, names):
    """Means [K] as one mean for each member and name."""
    return {
        f"{member}/{name}": step.Mean(mean.total[k], mean.count[k])
        for k, member in enumerate(names)
        for name, mean in each.items()
        if name != "nonfinite"
    }
