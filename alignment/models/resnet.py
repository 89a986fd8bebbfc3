"""Residual networks (He et al. 2015, arXiv:1512.03385) as torchvision has them: a bottleneck's stride is in its 3x3.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import flax.linen as nn
import jax

from alignment.models import convolution


class ResNet(nn.Module):
    """Images of any size in, logits [N,C] and activations "stem", "layer1", "layer2", ... out.

    Attributes:
        num_classes: width of the head.
        stage_sizes: blocks in each stage; every stage but the first halves rows and columns.
        width: channels of the first stage (a bottleneck's output has four times as many); doubled from stage to stage.
        is_bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions instead of two of 3x3.
        is_small_stem: one 3x3 convolution in front, instead of 7x7 with stride 2 and a max-pool with stride 2.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    is_bottleneck: bool = False
    is_small_stem: bool = False
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return 1

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return (1 if self.is_small_stem else 4) * 2 ** (len(self.stage_sizes) - 1)

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations.

        Args:
            x_NYXC: normalised images.
            train: batch norm by the batch's own statistics; their running averages move where `batch_stats` is mutable.
            mask_NYX: 1 on real pixels, see `convolution`; None: all are.
        """
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        window, stride = (3, 1) if self.is_small_stem else (7, 2)
        x, mask = convolution.conv(x, mask, self.width, window, stride, dtype=self.dtype, name="conv1")
        x = nn.relu(convolution.norm(x, mask, train, dtype=self.dtype, name="bn1"))
        activations = {"stem": x}
        if not self.is_small_stem:
            x, mask = convolution.max_pool(x, mask, 3, 2, 1)
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                block = Block(
                    self.width * 2**stage,
                    2 if stage and i == 0 else 1,
                    self.is_bottleneck,
                    self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )
                x, mask = block(x, mask, train)
            activations[f"layer{stage + 1}"] = x
        return convolution.head(convolution.global_mean(x, mask), self.num_classes, dtype=self.dtype), activations


class Block(nn.Module):
    """Two or three convolutions beside a shortcut, which has a convolution of its own where the shape changes."""

    width: int
    stride: int
    is_bottleneck: bool
    dtype: str

    @nn.compact
    def __call__(self, x, mask, train):
        convs = [(3, self.stride, 1), (3, 1, 1)]  # window, stride, channels in widths
        if self.is_bottleneck:
            convs = [(1, 1, 1), (3, self.stride, 1), (1, 1, 4)]
        shortcut, mask_in = x, mask
        for i, (window, stride, factor) in enumerate(convs, 1):
            channels = self.width * factor
            x, mask = convolution.conv(x, mask, channels, window, stride, dtype=self.dtype, name=f"conv{i}")
            x = convolution.norm(x, mask, train, dtype=self.dtype, name=f"bn{i}")
            x = x if i == len(convs) else nn.relu(x)
        if shortcut.shape != x.shape:
            shortcut, _ = convolution.conv(
                shortcut, mask_in, channels, 1, self.stride, dtype=self.dtype, name="downsample_conv"
            )
            shortcut = convolution.norm(shortcut, mask, train, dtype=self.dtype, name="downsample_bn")
        return convolution.shard(nn.relu(x + shortcut)), mask
