"""DenseNet (Huang et al. 2016, arXiv:1608.06993) as torchvision has it.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from alignment.models import convolution


class DenseNet(nn.Module):
    """Images of 29 x 29 and more in, logits [N,C] and activations "stem", "denseblock1", ..., "norm5" out.

    The last activation is the last batch norm's output, in front of the ReLU.

    Attributes:
        num_classes: width of the head.
        block_sizes: layers of each dense block; a transition behind each but the last halves rows, columns, channels.
        growth: channels that each layer adds.
        stem_width: channels of the first convolution.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int = 1000
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    stem_width: int = 64
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return self.total_stride - 3  # the stem rounds up, the transitions down

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return 4 * 2 ** (len(self.block_sizes) - 1)

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `train` as in `vision`, `mask_NYX` is 1 on real pixels, see `convolution`."""
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        x, mask = convolution.conv(x, mask, self.stem_width, 7, 2, dtype=self.dtype, name="conv0")
        x = nn.relu(convolution.norm(x, mask, train, dtype=self.dtype, name="norm0"))
        activations = {"stem": x}
        x, mask = convolution.max_pool(x, mask, 3, 2, 1)
        for block, size in enumerate(self.block_sizes, 1):
            for i in range(1, size + 1):
                x = DenseLayer(self.growth, self.dtype, name=f"denseblock{block}_denselayer{i}")(x, mask, train)
            activations[f"denseblock{block}"] = x = convolution.shard(x)
            if block < len(self.block_sizes):
                x, mask = Transition(self.dtype, name=f"transition{block}")(x, mask, train)
        x = convolution.norm(x, mask, train, dtype=self.dtype, name="norm5")
        activations["norm5"] = x
        x = convolution.global_mean(nn.relu(x), mask)
        return convolution.head(x, self.num_classes, dtype=self.dtype), activations


class DenseLayer(nn.Module):
    """What came before, with `growth` new channels beside it."""

    growth: int
    dtype: str

    @nn.compact
    def __call__(self, x, mask, train):
        new = nn.relu(convolution.norm(x, mask, train, dtype=self.dtype, name="norm1"))
        new, _ = convolution.conv(new, mask, 4 * self.growth, 1, dtype=self.dtype, name="conv1")
        new = nn.relu(convolution.norm(new, mask, train, dtype=self.dtype, name="norm2"))
        new, _ = convolution.conv(new, mask, self.growth, 3, dtype=self.dtype, name="conv2")
        return jnp.concatenate([x, convolution.zero_outside(new, mask)], axis=-1)


class Transition(nn.Module):
    """Half the channels, rows and columns."""

    dtype: str

    @nn.compact
    def __call__(self, x, mask, train):
        x = nn.relu(convolution.norm(x, mask, train, dtype=self.dtype, name="norm"))
        x, mask = convolution.conv(x, mask, x.shape[-1] // 2, 1, dtype=self.dtype, name="conv")
        return convolution.avg_pool(x, mask)
