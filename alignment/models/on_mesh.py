"""The mesh around a network while it is traced, for kernels that XLA cannot split by itself."""

import math

from jax.sharding import Mesh

from alignment import placing

ROWS = ("data", "fsdp")
SEQUENCE = "sequence"


def current() -> Mesh | None:
    """That of `sharding.activations`; None outside of it, and on one device."""
    rule = placing.current()
    return None if rule is None else rule.mesh


def axes(mesh: Mesh, num_rows: int, num_heads: int) -> tuple[tuple[str, ...] | None, str | None]:
    """Which axes split rows, and which splits key/value heads; None where they do not divide."""
    over = math.prod(mesh.shape[axis] for axis in ROWS)
    heads = mesh.shape.get("tensor", 1)
    return ROWS if num_rows % over == 0 else None, "tensor" if heads > 1 and num_heads % heads == 0 else None
