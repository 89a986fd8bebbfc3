"""AlexNet as torchvision has it (Krizhevsky 2014, arXiv:1404.5997, without its parallel towers).

Submodules carry torchvision's numbers: `features_0`, `features_3`, ..., `classifier_1`, `classifier_4`, `head`.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import flax.linen as nn
import jax

from alignment.models import convolution


class AlexNet(nn.Module):
    """Images of 63 x 63 and more in, logits [N,C] and activations "block1" to "block3" (after each max-pool) out.

    Attributes:
        num_classes: width of the head.
        widths: channels of the five convolutions.
        dense_width: of the two hidden dense layers.
        bins: rows and columns that adaptive average pooling leaves for the dense layers.
        dropout_rate: in front of the hidden dense layers, in training.
        dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int = 1000
    widths: tuple[int, ...] = (64, 192, 384, 256, 256)
    dense_width: int = 4096
    bins: int = 6
    dropout_rate: float = 0.5
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return 63

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return 32

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `train` as in `vision`, `mask_NYX` is 1 on real pixels, see `convolution`."""
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        activations: dict[str, jax.Array] = {}
        layers = [(0, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (8, 3, 1, 1), (10, 3, 1, 1)]
        for (number, window, stride, padding), width in zip(layers, self.widths, strict=True):
            x, mask = convolution.conv(
                x,
                mask,
                width,
                window,
                stride,
                padding=padding,
                use_bias=True,
                dtype=self.dtype,
                name=f"features_{number}",
            )
            x = convolution.zero_outside(nn.relu(x), mask)
            if number in (0, 3, 10):
                x, mask = convolution.max_pool(x, mask, 3, 2)
                activations[f"block{len(activations) + 1}"] = x = convolution.shard(x)
        x = convolution.adaptive_mean(x, mask, self.bins)
        x = x.reshape(len(x), -1)
        for i in (1, 4):
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"classifier_{i - 1}")(x)
            x = convolution.dense(x, self.dense_width, ("embed", "mlp"), dtype=self.dtype, name=f"classifier_{i}")
            x = nn.relu(x)
        return convolution.head(x, self.num_classes, dtype=self.dtype), activations
