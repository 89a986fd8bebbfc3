"""VGG networks (Simonyan and Zisserman 2014, arXiv:1409.1556) as torchvision has them, with and without batch norm.

Submodules carry torchvision's numbers: `features_0`, `features_3`, ..., `classifier_0`, `classifier_3`, `head`.

Dimensions: N images, Y X rows and columns, C channels or classes.
"""

import flax.linen as nn
import jax

from alignment.models import convolution

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Images of 32 x 32 and more in, logits [N,C] and activations "block1", "block2", ... (after each max-pool) out.

    Attributes:
        num_classes: width of the head.
        stages: channels of the convolutions in front of each max-pool.
        has_batch_norm: a batch norm behind each convolution.
        dense_width: of the two hidden dense layers.
        bins: rows and columns that adaptive average pooling leaves for the dense layers.
        dropout_rate: behind the hidden dense layers, in training.
        dtype: of the computation; parameters, statistics and logits are float32.
    """

    num_classes: int = 1000
    stages: tuple[tuple[int, ...], ...] = VGG16
    has_batch_norm: bool = False
    dense_width: int = 4096
    bins: int = 7
    dropout_rate: float = 0.5
    dtype: str = "float32"

    @property
    def min_size(self) -> int:
        """The fewest rows and columns of an image."""
        return self.total_stride

    @property
    def total_stride(self) -> int:
        """Rows of the image for a row of the last activation."""
        return 2 ** len(self.stages)

    @nn.compact
    def __call__(self, x_NYXC: jax.Array, train: bool = False, mask_NYX: jax.Array | None = None):
        """Logits and activations; `train` as in `vision`, `mask_NYX` is 1 on real pixels, see `convolution`."""
        x, mask = convolution.start(self, x_NYXC, mask_NYX)
        activations, number = {}, 0
        for stage, widths in enumerate(self.stages, 1):
            for width in widths:
                x, mask = convolution.conv(x, mask, width, use_bias=True, dtype=self.dtype, name=f"features_{number}")
                if self.has_batch_norm:
                    x = convolution.norm(x, mask, train, dtype=self.dtype, name=f"features_{number + 1}")
                x = convolution.zero_outside(nn.relu(x), mask)
                number += 3 if self.has_batch_norm else 2
            x, mask = convolution.max_pool(x, mask)
            number += 1
            activations[f"block{stage}"] = x = convolution.shard(x)
        x = convolution.adaptive_mean(x, mask, self.bins)
        x = x.reshape(len(x), -1)
        for i in (0, 3):
            x = convolution.dense(x, self.dense_width, ("embed", "mlp"), dtype=self.dtype, name=f"classifier_{i}")
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"classifier_{i + 2}")(nn.relu(x))
        return convolution.head(x, self.num_classes, dtype=self.dtype), activations
