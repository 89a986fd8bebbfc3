"""Where the devices of a mesh keep the activations of a network; the network names axes and knows no mesh.

`train.sharding.activations` sets a rule for the length of a block; `shard` asks it while a network is traced. Flax has
the like in `nn.with_logical_constraint`, which since JAX 0.10 does nothing under `with mesh:`, and says nothing.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Protocol

import jax
from jax.sharding import Mesh, Sharding


class Rule(Protocol):
    """Compares equal, and hashes alike, where it places alike: programs are kept by it."""

    @property
    def mesh(self) -> Mesh: ...

    def __call__(self, names: tuple[str | None, ...], shape: tuple[int, ...], /) -> Sharding: ...

    def __hash__(self) -> int: ...


_RULE: contextvars.ContextVar[Rule | None] = contextvars.ContextVar("rule", default=None)


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """The array with its place on the mesh, by the names of its axes; as it is where no rule is set."""
    rule = _RULE.get()
    return x if rule is None else jax.lax.with_sharding_constraint(x, rule(names, x.shape))


def current() -> Rule | None:
    """The rule in force, which a program depends on."""
    return _RULE.get()


@contextlib.contextmanager
def using(rule: Rule) -> Iterator[None]:
    """Within the block networks are traced with this rule."""
    token = _RULE.set(rule)
    try:
        yield
    finally:
        _RULE.reset(token)
