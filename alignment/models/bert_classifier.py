"""A text encoder of the BERT family with a trainable classification head.

Two heads: BERT's own (a tanh layer over the first token, then a linear one), and a linear one over the mean of a text's
hidden states, which sentence encoders such as MiniLM were trained for.

Dimensions: B batch, T time, D width, C classes.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment.models import bert

POOLINGS = ("first", "mean")


class Classifier(nn.Module):
    """Tokens in, logits out.

    Attributes:
        pooling: one of POOLINGS.
        dropout: of what the head reads, in training alone.
    """

    trunk: bert.Bert
    num_classes: int
    pooling: str = "mean"
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array | None = None, *, is_training: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B,C], and what the last layer reads [B,D], both in float32.

        Args:
            mask_BT: True for tokens; None: all are.
        """
        mask_BT = jnp.ones(tokens_BT.shape, bool) if mask_BT is None else mask_BT
        is_first = self.pooling == "first"
        hidden_BTD = self.trunk(tokens_BT, mask_BT, ends_with_first=is_first)[-1].astype(jnp.float32)
        if is_first:
            features_BD = nn.tanh(self._dense("pooler", self.trunk.model_dim, ("embed", "mlp"))(hidden_BTD[:, 0]))
        else:
            weight_BT1 = mask_BT[..., None].astype(jnp.float32)
            # a row that only fills the batch has no token, and 0 / 0 would put NaN into every gradient
            features_BD = (hidden_BTD * weight_BT1).sum(axis=1) / jnp.maximum(weight_BT1.sum(axis=1), 1.0)
        read_BD = nn.Dropout(self.dropout, deterministic=not is_training)(features_BD)
        return self._dense("head", self.num_classes, ("embed", None))(read_BD), features_BD

    def _dense(self, name, width, axes):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
        return nn.Dense(width, kernel_init=init, name=name)


def begin(model: Classifier, trunk: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Parameters with these of the trunk, and heads drawn from `seed`.

    Args:
        trunk: of `bert.load`.
    """
    drawn = nn.meta.unbox(model.init(jax.random.PRNGKey(seed), jnp.zeros((1, 4), jnp.int32))["params"])
    return {**drawn, "trunk": dict(trunk)}
