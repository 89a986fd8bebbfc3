"""A small plain network, for digits, laptops and tests.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import flax.linen as nn
import jax

from alignment.models import convolution


class CNN(nn.Module):
    """Blocks of one 3x3 convolution, ReLU and 2x2 max-pool, then the mean over positions and a dense head.

    Logits [N,C] and activations "block1", "block2", ... (after each max-pool) come out.

    Attributes:
        num_classes: width of the head.
        widths: channels of each block.
        dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return self.total_stride

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return 2 ** len(self.widths)

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `mask_NYX` is 1 on real pixels, see `convolution`.

        All networks are called alike, so this one takes `train` as well, which changes nothing.
        """
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        activations = {}
        for i, width in enumerate(self.widths):
            x, mask = convolution.conv(x, mask, width, use_bias=True, dtype=self.dtype, name=f"features_{3 * i}")
            x = convolution.zero_outside(nn.relu(x), mask)
            x, mask = convolution.max_pool(x, mask)
            activations[f"block{i + 1}"] = x = convolution.shard(x)
        return convolution.head(convolution.global_mean(x, mask), self.num_classes, dtype=self.dtype), activations
