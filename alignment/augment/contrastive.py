"""The contrastive form: image-text pairs, whose targets are matrices of who belongs with whom.

The loss of pair i and target row Y_i is -sum_j Y_ij (log softmax of row i + log softmax of column j) / 2 at (i, j):
linear in Y, so SAFLEX's scores and its closed form hold with as many classes as the batch has pairs.

Dimensions: N pairs, D width of an embedding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class TwoTowers(nn.Module):
    """An encoder of images and one of texts, and the logits [N,N] of all pairs, exp(s) <image, text>.

    Attributes:
        width: of the hidden layers.
        dim: of the embeddings, which have length 1.
    """

    width: int = 64
    dim: int = 16

    @nn.compact
    def __call__(self, pairs: dict[str, jax.Array]) -> jax.Array:
        """Logits of `image` [N,...] and `text` [N,...], both numbers."""
        image_ND = self._tower(pairs["image"], "image")
        text_ND = self._tower(pairs["text"], "text")
        scale = self.param("scale", nn.initializers.constant(2.0), ())
        return jnp.exp(scale) * image_ND @ text_ND.T

    def _tower(self, x: jax.Array, name: str) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.width, name=f"{name}_hidden")(x.reshape(len(x), -1)))
        embedded_ND = nn.Dense(self.dim, name=f"{name}_head")(hidden)
        return embedded_ND / (jnp.linalg.norm(embedded_ND, axis=-1, keepdims=True) + 1e-6)


def losses(logits_NN: jax.Array) -> jax.Array:
    """Loss of each pairing (i, j), for `saflex.refine` as `losses_fn`; CLIP's loss is the mean of the diagonal."""
    return -(jax.nn.log_softmax(logits_NN, axis=1) + jax.nn.log_softmax(logits_NN, axis=0)) / 2
