"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929) with a class token and learned position embeddings.

The embeddings belong to one image size, which is the field `img_size`; other sizes are refused, not interpolated.

Dimensions: N images, Y X rows and columns, C channels or classes, T S tokens (the class token is the first), D model
width, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment.errors import InputError
from alignment.models import convolution

NORM_EPS = 1e-6


class ViT(nn.Module):
    """Images of img_size x img_size in, logits [N,C] and activations out.

    Activations: "patches" [N,Y,X,D]; for each layer "attention0" [N,H,T,S] (weights, rows sum to 1) and "block0"
    [N,T,D], and so on.

    Attributes:
        num_classes: width of the head.
        img_size: rows and columns of the images, a multiple of patch_size.
        patch_size: rows and columns of a patch.
        model_dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads, which divide model_dim.
        mlp_dim: hidden width of a block's feed-forward; None: 4 model_dim.
        dropout_rate: behind the embeddings and each half of a block, in training.
        dtype: of the computation; norms and softmax are computed, and parameters and logits kept, in float32.
    """

    num_classes: int = 1000
    img_size: int = 224
    patch_size: int = 16
    model_dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int | None = None
    dropout_rate: float = 0.0
    dtype: str = "float32"

    def __post_init__(self):
        for whole, part in (("img_size", "patch_size"), ("model_dim", "num_heads")):
            size, by = getattr(self, whole), getattr(self, part)
            if size % by or size < by:
                raise InputError(f"{whole}={size} is not a multiple of {part}={by}; {max(size // by, 1) * by} would be")
        super().__post_init__()

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image; also the most."""
        return self.img_size

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last spatial activation."""
        return self.patch_size

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `train` as in `vision`. With `mask_NYX` (1 on real pixels), patches without a real
        pixel are not attended to.
        """
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        size = self.patch_size
        x, _ = convolution.conv(
            x, None, self.model_dim, size, size, padding=0, use_bias=True, dtype=self.dtype, name="patch_embed"
        )
        N, Y, X, D = x.shape
        real_NT = None
        if mask is not None:
            mask = mask.reshape(N, Y, size, X, size).any((2, 4))
            x = convolution.zero_outside(x, mask)
            real_NT = jnp.concatenate([jnp.ones((N, 1), bool), mask.reshape(N, -1)], axis=1)
        activations = {"patches": x}
        class_11D = self.param("class_token", _init(nn.initializers.zeros), (1, 1, D))
        position_1TD = self.param("pos_embed", _init(nn.initializers.normal(0.02)), (1, 1 + Y * X, D))
        class_N1D = jnp.broadcast_to(class_11D, (N, 1, D)).astype(self.dtype)
        x_NTD = jnp.concatenate([class_N1D, x.reshape(N, -1, D)], axis=1) + position_1TD.astype(self.dtype)
        x_NTD = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x_NTD)
        for i in range(self.num_layers):
            block = Block(self.num_heads, self.mlp_dim or 4 * D, self.dropout_rate, self.dtype, name=f"block{i}")
            x_NTD, activations[f"attention{i}"] = block(x_NTD, real_NT, train)
            activations[f"block{i}"] = x_NTD = convolution.shard(x_NTD)
        x_ND = layer_norm(x_NTD, self.dtype, "norm")[:, 0]
        return convolution.head(x_ND, self.num_classes, dtype=self.dtype), activations


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the tokens; the attention weights come out too."""

    num_heads: int
    mlp_dim: int
    dropout_rate: float
    dtype: str

    @nn.compact
    def __call__(self, x_NTD, real_NT, train):
        mixed_NTD, weights_NHTS = self._attend(layer_norm(x_NTD, self.dtype, "norm1"), real_NT)
        x_NTD = x_NTD + nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout1")(mixed_NTD)
        hidden_NTF = self._dense(self.mlp_dim, ("embed", "mlp"), "mlp_in")(layer_norm(x_NTD, self.dtype, "norm2"))
        hidden_NTF = nn.gelu(hidden_NTF, approximate=False)
        out_NTD = self._dense(x_NTD.shape[-1], ("mlp", "embed"), "mlp_out")(hidden_NTF)
        x_NTD = x_NTD + nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout2")(out_NTD)
        return x_NTD, weights_NHTS

    def _attend(self, x_NTD, real_NS):
        D = x_NTD.shape[-1]
        heads = (self.num_heads, D // self.num_heads)
        axes = ("embed", "heads", "head")
        q_NTHK, k_NSHK, v_NSHK = (self._dense(heads, axes, name)(x_NTD) for name in ("query", "key", "value"))
        logits_NHTS = jnp.einsum("NTHK,NSHK->NHTS", q_NTHK, k_NSHK).astype(jnp.float32) / heads[1] ** 0.5
        if real_NS is not None:
            # Finite, because relevance and gradients through -inf would be NaN; in float32 the weight is still 0.
            logits_NHTS = jnp.where(real_NS[:, None, None], logits_NHTS, jnp.finfo(jnp.float32).min)
        weights_NHTS = nn.softmax(logits_NHTS)
        mixed_NTHK = jnp.einsum("NHTS,NSHK->NTHK", weights_NHTS.astype(self.dtype), v_NSHK)
        return self._dense(D, ("heads", "head", "embed"), "out", (-2, -1))(mixed_NTHK), weights_NHTS

    def _dense(self, features, axes, name, contracted=-1):
        kernel_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        features = features if isinstance(features, tuple) else (features,)
        return nn.DenseGeneral(
            features,
            axis=contracted,
            dtype=self.dtype,
            kernel_init=nn.with_logical_partitioning(kernel_init, axes),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[-len(features) :]),
            name=name,
        )


def layer_norm(x_NTD: jax.Array, dtype: str, name: str) -> jax.Array:
    """Layer norm over the width."""
    # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large beside the spread, and may fall below 0.
    return nn.LayerNorm(NORM_EPS, use_fast_variance=False, dtype=dtype, name=name)(x_NTD)


def _init(init):
    return nn.with_logical_partitioning(init, (None, None, "embed"))
