"""The single distortions that gradients pass through, for the training of a mark.

They imitate Pillow's to a few grey levels (tests/watermark/test_differentiable.py says how far). Where bytes or DCT
coefficients are rounded, the gradient goes through as if they were not.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from alignment.watermark import distortions, poses

GREY = np.array([0.299, 0.587, 0.114], np.float32)
YCC = np.array([GREY, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)  # of JPEG
LUMA_STEPS = np.array(  # of JPEG's quality 50 (Annex K)
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
CHROMA_STEPS = np.full((8, 8), 99, np.float32)
CHROMA_STEPS[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_FREQUENCY, _PLACE = np.arange(8)[:, None], np.arange(8)[None]
DCT = (np.cos((2 * _PLACE + 1) * _FREQUENCY * np.pi / 16) * np.where(_FREQUENCY == 0, 8**-0.5, 0.5)).astype(np.float32)


def rounded(x: jax.Array) -> jax.Array:
    """The nearest whole numbers; gradients pass as through x."""
    return x + jax.lax.stop_gradient(jnp.rint(x) - x)


def brighten(images_BYX3: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(images_BYX3 * factor, 0, 1)


def contrast(images_BYX3: jax.Array, factor: jax.Array) -> jax.Array:
    """Away from each picture's mean grey level."""
    mean = jnp.mean(images_BYX3 @ GREY, axis=(1, 2))[:, None, None, None]
    return jnp.clip(mean + factor * (images_BYX3 - mean), 0, 1)


def blur(images_BYX3: jax.Array, radius: jax.Array) -> jax.Array:
    """A Gaussian of that deviation in pixels, as products with two matrices, which any radius fits."""
    out = images_BYX3
    for axis, equation in ((1, "pq,bqxc->bpxc"), (2, "pq,byqc->bypc")):
        place = jnp.arange(images_BYX3.shape[axis], dtype=jnp.float32)
        gap = place[:, None] - place[None]
        kernel = jnp.exp(-(gap**2) / (2 * jnp.maximum(radius, 1e-3) ** 2))
        out = jnp.einsum(equation, kernel / kernel.sum(axis=1, keepdims=True), out)
    return out


def noise(images_BYX3: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.clip(images_BYX3 + deviation * jax.random.normal(key, images_BYX3.shape), 0, 1)


def erase(images_BYX3: jax.Array, area: jax.Array, key: jax.Array) -> jax.Array:
    """A rectangle in the picture's shape becomes black, at another place in each picture."""
    batch, rows, columns = images_BYX3.shape[:3]
    share = jnp.sqrt(area)
    starts = jax.random.uniform(key, (2, batch, 1)) * (1 - share)
    inside = [
        (starts[i] * n <= jnp.arange(n)[None]) & (jnp.arange(n)[None] < (starts[i] + share) * n)
        for i, n in ((0, rows), (1, columns))
    ]
    is_black = inside[0][:, :, None] & inside[1][:, None, :]
    return jnp.where(is_black[..., None], 0.0, images_BYX3)


def rotate(images_BYX3: jax.Array, degrees: jax.Array) -> jax.Array:
    """Counter-clockwise on the same canvas, black corners."""
    turn = poses.matrix(jnp.full(len(images_BYX3), -degrees), jnp.ones(len(images_BYX3)))
    return poses.sampled(images_BYX3, turn, jnp.zeros((len(images_BYX3), 2)))[0]


def crop(images_BYX3: jax.Array, area: jax.Array, key: jax.Array) -> jax.Array:
    """A part in the picture's shape, at another place in each picture, back at the old size."""
    shrink = poses.matrix(jnp.zeros(len(images_BYX3)), jnp.full(len(images_BYX3), jnp.sqrt(area)))
    return poses.sampled(images_BYX3, shrink, _cut_places(images_BYX3, area, key))[0]


def _cut_places(images_BYX3: jax.Array, area: jax.Array, key: jax.Array) -> jax.Array:
    """Where the middle of a crop lies, in pixels from the picture's middle [B, 2]."""
    room_2 = (1 - jnp.sqrt(area)) * jnp.array(images_BYX3.shape[1:3], jnp.float32)
    return (jax.random.uniform(key, (len(images_BYX3), 2)) - 0.5) * room_2[None]


def jpeg(images_BYX3: jax.Array, quality: jax.Array) -> jax.Array:
    """JPEG with colours at half the resolution; sides are multiples of 16."""
    scale = jnp.where(quality < 50, 5_000 / quality, 200 - 2 * quality)
    ycc = 255 * images_BYX3 @ YCC.T
    planes = [ycc[..., 0] - 128]
    for k in (1, 2):
        batch, rows, columns = ycc.shape[:3]
        planes.append(ycc[..., k].reshape(batch, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4)))
    steps = [jnp.clip(jnp.floor((s * scale + 50) / 100), 1, 255) for s in (LUMA_STEPS, CHROMA_STEPS, CHROMA_STEPS)]
    y, blue, red = (_quantised(plane, step) for plane, step in zip(planes, steps))
    # decoders interpolate the colours between their coarse places (libjpeg's "fancy upsampling")
    blue, red = (jax.image.resize(x, y.shape, "linear") for x in (blue, red))
    out = jnp.stack([y + 128, blue, red], axis=-1) @ np.linalg.inv(YCC).T.astype(np.float32)
    return jnp.clip(out / 255, 0, 1)


def _quantised(plane_BYX: jax.Array, step_KK: jax.Array) -> jax.Array:
    batch, rows, columns = plane_BYX.shape
    cut = plane_BYX.reshape(batch, rows // 8, 8, columns // 8, 8)
    waves = jnp.einsum("ui,bminj,vj->bmunv", DCT, cut, DCT)
    step = step_KK[None, None, :, None, :]
    waves = rounded(waves / step) * step
    return jnp.einsum("ui,bmunv,vj->bminj", DCT, waves, DCT).reshape(batch, rows, columns)


FNS: dict[str, Callable[..., jax.Array]] = {
    "Dist-Bright": brighten,
    "Dist-Contrast": contrast,
    "Dist-Blur": blur,
    "Dist-Noise": noise,
    "Dist-JPEG": jpeg,
    "Dist-Erase": erase,
    "Dist-Rotation": rotate,
    "Dist-RCrop": crop,
}
DRAWN = ("Dist-Noise", "Dist-Erase", "Dist-RCrop")
MOVING = ("Dist-Rotation", "Dist-RCrop")
MOST = {"Dist-Blur": 0.2, "Dist-JPEG": 0.75}  # relative strengths of a training; of the others 1
MISSED = 0.3, 0.003, 1.0  # degrees, share of the scale and pixels by which a reader's pose may be wrong


def distort(name: str, images_BYX3: jax.Array, strength: jax.Array, key: jax.Array) -> jax.Array:
    """A distortion at a relative strength, with the ranges of `distortions`."""
    value = _native(name, strength)
    return FNS[name](images_BYX3, value, key) if name in DRAWN else FNS[name](images_BYX3, value)


def _native(name: str, strength: jax.Array) -> jax.Array:
    _, weakest, strongest = distortions.SINGLE[name]
    return weakest + strength * (strongest - weakest)


def moved_back(name: str, images_BYX3: jax.Array, strength: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A rotation or a crop, and the way back by a pose that is a little wrong, as a reader's is (`poses`).

    Args:
        images_BYX3: before the distortion.

    Returns:
        The pictures, and [B, Y, X] 1 where the way back has a pixel.
    """
    own_key, *keys = jax.random.split(key, 4)
    batch, value = len(images_BYX3), _native(name, strength)
    moved = rounded(255 * distort(name, images_BYX3, strength, own_key)) / 255
    degrees, scale, shift = jnp.zeros(()), jnp.ones(()), jnp.zeros((batch, 2))
    if name == "Dist-Rotation":
        degrees = value
    else:
        scale = 1 / jnp.sqrt(value)
        shift = -scale * _cut_places(images_BYX3, value, own_key)
    wrong = [jax.random.uniform(k, (batch, 2), minval=-m, maxval=m) for k, m in zip(keys, MISSED)]
    back = poses.matrix(degrees + wrong[0][:, 0], scale * (1 + wrong[1][:, 0]))
    return poses.sampled(moved, back, shift + wrong[2])


def drawn(images_BYX3: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One of the distortions, or none, at a strength drawn up to `MOST`, as bytes; what moves things is moved back.

    Returns:
        The pictures, and [B, Y, X] 1 where they have a pixel.
    """
    kind_key, strength_key, own_key = jax.random.split(key, 3)
    u = jax.random.uniform(strength_key)
    whole = jnp.ones(images_BYX3.shape[:3])

    def branch(name: str) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
        if name in MOVING:
            return lambda x: moved_back(name, x, u * MOST.get(name, 1.0), own_key)
        return lambda x: (distort(name, x, u * MOST.get(name, 1.0), own_key), whole)

    branches = [lambda x: (x, whole), *map(branch, FNS)]
    out, inside = jax.lax.switch(jax.random.randint(kind_key, (), 0, len(branches)), branches, images_BYX3)
    return rounded(255 * out) / 255, inside
