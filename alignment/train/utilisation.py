"""How much of its devices a training of a decoder uses: the operations that its tokens need, over time and peak.

These are model FLOPs (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): what the network's matrix products take
for the tokens that a step really holds, however the step is computed. A multiplication and an addition are two
operations. Forward, a token costs 2 for each weight of the layers' matrices, and 4 K for each head, layer and position
that it sees, itself among them; a target that the loss counts costs 2 D V. Backward costs twice that; beside frozen
weights once for these, because their own gradients are not computed, and an adapter's matrices count as products of
their own. A reference that is scored in every step costs the forward pass once more. Nothing else counts: padding and
the empty places of packed rows, logits of places without a target, what `remat` computes a second time, a stored
reference, embeddings, norms, the optimizer. In packed prefix trees a token that several sequences share counts once.

`utilisation` is the operations of a second over the peak of the devices' matrix units in bfloat16, in whatever dtype a
run computes. A CPU's peak, and that of a device which `hardware.KINDS` does not name, is not known: the operations of a
second then stand alone.

Dimensions: N rows, T places, L layers, D model width, F feed-forward, H heads, G key/value heads, K head width,
V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from alignment.models import decoder, lora
from alignment.train import hardware, sharding

RATE, SHARE = "flops_per_second", "utilisation"
FlopsFn = Callable[[Mapping[str, np.ndarray]], float]


def counter(model: decoder.DecoderLM, adapter: lora.Adapter | None = None, *, has_reference: bool = False) -> FlopsFn:
    """A function from a batch on the host to the operations of an update on it.

    Args:
        adapter: that is trained beside the model's frozen weights; None trains all weights.
        has_reference: whether every step scores the batch under a second set of weights.

    Returns:
        (batch) -> operations. Of a batch it reads `positions`, `mask`, and `groups` or `ends`, which are 0 on padding.
    """
    layers = decoder.boxed_params(model)["layers"]
    weights = _size({name: box for name, box in layers.items() if not name.endswith(("norm", "bias"))})
    of_adapter = 0 if adapter is None else _size(jax.eval_shape(lambda: adapter.init(jax.random.key(0)))["params"])
    passes = 2 if adapter else 3  # through weights: forward, to what lies before them, and to themselves
    extra = int(has_reference)
    windows = [model.sliding_window if is_sliding else None for is_sliding in _sliding(model)]
    per_sight = 4 * model.num_heads * (model.head_dim or model.model_dim // model.num_heads)

    def flops(batch: Mapping[str, np.ndarray]) -> float:
        real = batch["ends" if "ends" in batch else "groups"] > 0
        visible = batch["positions"][real].astype(np.int64) + 1
        sights = sum(np.minimum(visible, window).sum() if window else visible.sum() for window in windows)
        products = 2 * weights * visible.size + 2 * model.model_dim * model.vocab_size * np.count_nonzero(batch["mask"])
        return float((passes + extra) * products + (3 + extra) * per_sight * sights + 3 * 2 * of_adapter * visible.size)

    return flops


def _size(boxed: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nn.meta.unbox(boxed)))


def _sliding(model: decoder.DecoderLM) -> list[bool]:
    """Whether each layer's window slides."""
    kinds = model.layer_types or ("sliding_attention",) * model.num_layers
    return [model.sliding_window is not None and kind == "sliding_attention" for kind in kinds]


class Meter:
    """From operations of this process's rows to what is logged of the whole mesh."""

    def __init__(self, mesh: Mesh, flops_fn: FlopsFn | None) -> None:
        self._flops_fn = flops_fn
        self._times = sharding.row_share(mesh)["process_count"] if flops_fn else 1
        self._kind = mesh.devices.flat[0].device_kind
        of_one = hardware.peak(self._kind)
        self._peak = None if of_one is None else of_one * mesh.devices.size

    def count(self, batch: Mapping[str, np.ndarray]) -> float:
        """Operations of an update on this batch, over all processes; each is taken to have as many as this one."""
        return self._times * self._flops_fn(batch) if self._flops_fn else 0.0

    def rates(self, flops: float, seconds: float) -> dict[str, float]:
        """What is logged: operations a second and, where the peak is known, their share of it; {} for none counted."""
        if not flops:
            return {}
        rate = flops / seconds
        if self._peak is None:
            _say_unknown(self._kind)
            return {RATE: rate}
        return {RATE: rate, SHARE: rate / self._peak}


@functools.cache  # once a process, and not for each of its trainings
def _say_unknown(kind: str) -> None:
    if jax.process_index() == 0:
        print(f"{RATE} is logged without {SHARE}: the peak of a device of kind {kind!r} is not known", flush=True)
