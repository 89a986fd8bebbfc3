"""EfficientNet (Tan and Le 2019, arXiv:1905.11946) as torchvision and timm's own weights have it.

Padding is the same on both sides and batch norm's epsilon 1e-5. Weights that were ported from TensorFlow (timm's `tf_`
family, efficientnet-pytorch) were trained with "SAME" padding, which this network does not have.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import math
from typing import Any

import flax.linen as nn
import jax

from alignment.models import convolution

STAGES = (  # of B0: expansion, window, stride, channels, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNet(nn.Module):
    """Images of any size in, logits [N,C] and activations "stem", "stage1", ..., "head" out.

    Attributes:
        num_classes: width of the head.
        width_factor: multiplies the channels of B0, which are then rounded to multiples of 8.
        depth_factor: multiplies the blocks of each stage, rounded up.
        stages: of B0: expansion, window, stride, channels, blocks.
        stem_width: channels of the first convolution of B0.
        dropout_rate: in front of the head, in training.
        drop_path_rate: probability that the last block is left out for an image in training; earlier ones are less.
        norm_eps: of batch norm.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int = 1000
    width_factor: float = 1.0
    depth_factor: float = 1.0
    stages: tuple[tuple[int, ...], ...] = STAGES
    stem_width: int = 32
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.2
    norm_eps: float = 1e-5
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return 1

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return 2 * math.prod(stride for _, _, stride, _, _ in self.stages)

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `train` as in `vision`, `mask_NYX` is 1 on real pixels, see `convolution`."""
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        options: dict[str, Any] = dict(norm_eps=self.norm_eps, dtype=self.dtype)
        stem = ConvNorm(scaled(self.stem_width, self.width_factor), 3, 2, **options, name="stem")
        x, mask = stem(x, mask, train)
        activations = {"stem": x}
        repeats = [math.ceil(blocks * self.depth_factor) for *_, blocks in self.stages]
        for stage, (expansion, window, stride, channels, _) in enumerate(self.stages):
            channels = scaled(channels, self.width_factor)
            for i in range(repeats[stage]):
                drop = self.drop_path_rate * (sum(repeats[:stage]) + i) / sum(repeats)
                block = Block(
                    expansion, window, 1 if i else stride, channels, drop, **options, name=f"stage{stage + 1}_{i}"
                )
                x, mask = block(x, mask, train)
            activations[f"stage{stage + 1}"] = x = convolution.shard(x)
        x, mask = ConvNorm(4 * x.shape[-1], 1, 1, **options, name="final")(x, mask, train)
        activations["head"] = x
        x = convolution.global_mean(x, mask)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return convolution.head(x, self.num_classes, dtype=self.dtype), activations


class ConvNorm(nn.Module):
    """Convolution, batch norm and, unless it projects, SiLU."""

    channels: int
    window: int
    stride: int
    norm_eps: float
    dtype: str
    is_depthwise: bool = False
    is_projection: bool = False

    @nn.compact
    def __call__(self, x, mask, train):
        groups = x.shape[-1] if self.is_depthwise else 1
        x, mask = convolution.conv(
            x, mask, self.channels, self.window, self.stride, groups=groups, dtype=self.dtype, name="conv"
        )
        x = convolution.norm(x, mask, train, eps=self.norm_eps, dtype=self.dtype, name="bn")
        return x if self.is_projection else nn.silu(x), mask


class Block(nn.Module):
    """Expand, filter each channel, weight the channels by their means, project; with a shortcut where shapes agree."""

    expansion: int
    window: int
    stride: int
    channels: int
    drop_rate: float
    norm_eps: float
    dtype: str

    @nn.compact
    def __call__(self, x, mask, train):
        options: dict[str, Any] = dict(norm_eps=self.norm_eps, dtype=self.dtype)
        shortcut, width = x, x.shape[-1] * self.expansion
        if self.expansion != 1:
            x, mask = ConvNorm(width, 1, 1, **options, name="expand")(x, mask, train)
        depthwise = ConvNorm(width, self.window, self.stride, is_depthwise=True, **options, name="depthwise")
        x, mask = depthwise(x, mask, train)
        # The mean is over real pixels alone: padding would lower it, and every channel would be weighed otherwise.
        x = x * self._gate(convolution.global_mean(x, mask), max(1, shortcut.shape[-1] // 4))[:, None, None]
        project = ConvNorm(self.channels, 1, 1, is_projection=True, **options, name="project")
        x, mask = project(x, mask, train)
        if self.stride == 1 and x.shape == shortcut.shape:
            drop = nn.Dropout(
                self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train, name="drop_path"
            )  # of whole images
            x = drop(x) + shortcut
        return x, mask

    def _gate(self, mean_NC, squeezed):
        width = mean_NC.shape[-1]
        x_NC = convolution.dense(mean_NC, squeezed, ("embed", "mlp"), dtype=self.dtype, name="squeeze")
        x_NC = convolution.dense(nn.silu(x_NC), width, ("mlp", "embed"), dtype=self.dtype, name="excite")
        return nn.sigmoid(x_NC)


def scaled(channels: int, factor: float) -> int:
    """The multiple of 8 nearest to channels * factor, and at least 90 percent of it."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
