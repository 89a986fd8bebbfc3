"""Pictures that were rotated, scaled and cropped, and the way back: a repeating mark shows where it went.

A pattern that repeats every `tile` pixels has its energy on a square lattice of frequencies. A rotation turns that
lattice, a scale shrinks it, and a crop leaves it (Kutter 1998). So the lattice that stands out most of the spectrum
gives angle and scale; where a tile begins stays open, and a reader tries.

Dimensions: B pictures, Y X rows and columns, 3 red, green, blue, P poses, A angles, S scales, L lengths,
K frequencies.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

STEP = 0.5  # degrees between the poses that are tried first
GROWTH = np.log(1.006)  # between their scales: half a bin of the finest frequency at 256 pixels
MOST_DEGREES = 45.0  # a quarter turn leaves the lattice as it is
LEAST_SCALE, MOST_SCALE = 0.97, 1.46
FINER = np.linspace(-1.2, 1.2, 9)  # of a step, around the best of those
WAVES = (3, 10)  # in a tile: below, pictures are loud; above, blur and JPEG leave nothing
NEIGHBOURS = 9  # bins of a side, of whose mean a bin stands out
MOST = 6.0  # what one bin may say
APART = 3.0, 0.03  # degrees and logarithm of the scale between two poses that are tried


def matrix(degrees: jax.Array, scale: jax.Array) -> jax.Array:
    """[B, 2, 2] of (row, column) differences: where a step in the picture leads once it is turned and enlarged.

    Args:
        degrees: [B], counter-clockwise.
        scale: [B], above 1 where things become larger.
    """
    angle = jnp.deg2rad(degrees)
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def sampled(images_BYX3: jax.Array, matrix_B22: jax.Array, shift_B2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pictures whose pixel p is the old one at matrix (p - centre) + centre + shift, between pixels linearly.

    Returns:
        The pictures, black outside the old ones, and [B, Y, X] 1 where the place was inside.
    """
    batch, rows, columns, colours = images_BYX3.shape
    centre_2 = jnp.array([(rows - 1) / 2, (columns - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1) - centre_2[None, None]
    place = jnp.einsum("bij,yxj->byxi", matrix_B22, grid) + (centre_2[None] + shift_B2)[:, None, None]
    low = jnp.floor(place)
    part_y, part_x = jnp.split((place - low)[..., None, :], 2, axis=-1)
    flat = images_BYX3.reshape(batch, rows * columns, colours)
    out = jnp.zeros((batch, rows, columns, colours))
    for dy, weight_y in ((0, 1 - part_y), (1, part_y)):
        for dx, weight_x in ((0, 1 - part_x), (1, part_x)):
            y, x = low[..., 0].astype(jnp.int32) + dy, low[..., 1].astype(jnp.int32) + dx
            is_inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            number = jnp.where(is_inside, y * columns + x, 0).reshape(batch, -1, 1)
            value = jnp.take_along_axis(flat, number, axis=1).reshape(out.shape)
            out += jnp.where(is_inside[..., None], value * (weight_y * weight_x)[..., 0], 0)
    last_2 = jnp.array([rows - 1, columns - 1])
    inside = jnp.all((place >= -0.5) & (place <= last_2[None, None, None] + 0.5), axis=-1)
    return out, inside.astype(jnp.float32)


def likeliest(images_BYX3: jax.Array, tile: int, num: int) -> tuple[jax.Array, jax.Array]:
    """Rotations in degrees and scales [B, num] whose lattices stand out most, the most first.

    Some poses look alike: 45 degrees to either side, and half a quarter turn beside a growth by the root of two, where
    one lattice is a part of the other. So there are several, which differ by more than `APART`.
    """
    ratio_BYX = _ratio(images_BYX3)
    waves_K2 = _waves() / tile
    # a lattice point falls between bins, so each speaks for its neighbours at first
    left_BAS, degrees_A, scales_S = _coarse(jnp.minimum(_averaged(ratio_BYX[..., None], 3)[..., 0], MOST), waves_K2)
    turn, growth = (x.reshape(-1) for x in np.meshgrid(FINER * STEP, FINER * GROWTH, indexing="ij"))
    all_degrees, all_scales = [], []
    for _ in range(num):
        best_B = jnp.argmax(left_BAS.reshape(len(images_BYX3), -1), axis=1)
        a_B, s_B = best_B // len(scales_S), best_B % len(scales_S)
        is_near = [
            jnp.abs(jnp.arange(size)[None] - place[:, None]) * step <= apart
            for size, place, step, apart in zip(left_BAS.shape[1:], (a_B, s_B), (STEP, GROWTH), APART)
        ]
        left_BAS = jnp.where(is_near[0][:, :, None] & is_near[1][:, None, :], -jnp.inf, left_BAS)
        degrees_BP = jnp.asarray(degrees_A)[a_B][:, None] + turn[None]
        scales_BP = jnp.asarray(scales_S)[s_B][:, None] * jnp.exp(growth)[None]
        fine_BP = jax.vmap(_scores, (0, None, 0, 0))(ratio_BYX, jnp.asarray(waves_K2), degrees_BP, scales_BP)
        finest_B1 = jnp.argmax(fine_BP, axis=1)[:, None]
        all_degrees.append(jnp.take_along_axis(degrees_BP, finest_B1, axis=1))
        all_scales.append(jnp.take_along_axis(scales_BP, finest_B1, axis=1))
    return jnp.concatenate(all_degrees, axis=1), jnp.concatenate(all_scales, axis=1)


def _coarse(standing_BYX: jax.Array, waves_K2: np.ndarray) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """The mean over the lattice for each angle and scale [B, A, S].

    On a grid of angles and logarithms of lengths a rotation and a scale are shifts, so a sum of slices has all poses
    without a look-up for each.
    """
    rows, columns = standing_BYX.shape[1:]
    length_K = np.hypot(*waves_K2.T)
    num_angles, reach = round(180 / STEP), round(MOST_DEGREES / STEP)
    low, high = (round(np.log(scale) / GROWTH) for scale in (LEAST_SCALE, MOST_SCALE))
    first = np.log(length_K.min()) - high * GROWTH
    num_lengths = round((np.log(length_K.max()) - first) / GROWTH) - low + 1
    angle_A1 = np.deg2rad(STEP * np.arange(num_angles))[:, None]
    length_1L = np.exp(first + GROWTH * np.arange(num_lengths))[None]
    y, x = (np.rint(size * fn(angle_A1) * length_1L) for size, fn in ((rows, np.sin), (columns, np.cos)))
    number = np.clip((y + rows // 2) * columns + x + columns // 2, 0, rows * columns - 1).astype(int)
    polar_BAL = standing_BYX.reshape(len(standing_BYX), -1)[:, number]
    polar_BAL = jnp.concatenate([polar_BAL] * 2, axis=1)  # half a turn leaves a spectrum as it is
    angle_K = np.rint(np.rad2deg(np.arctan2(*waves_K2.T)) / STEP).astype(int)
    place_K = np.rint((np.log(length_K) - first) / GROWTH).astype(int)
    total = jnp.zeros((len(standing_BYX), 2 * reach + 1, high - low + 1))
    for angle, place in zip(angle_K, place_K):
        begin = (angle - reach) % num_angles
        # a turn by a positive angle lowers the angle of (row, column), and larger things have lower frequencies
        total += polar_BAL[:, begin : begin + 2 * reach + 1, place - high : place - low + 1][..., ::-1]
    degrees_A, scales_S = STEP * np.arange(reach, -reach - 1, -1), np.exp(GROWTH * np.arange(low, high + 1))
    return total / len(waves_K2), degrees_A, scales_S


def _ratio(images_BYX3: jax.Array) -> jax.Array:
    """[B, Y, X] how many times a frequency's power is that of its neighbours; frequency 0 at the centre."""
    rows, columns = images_BYX3.shape[1:3]
    window = jnp.hanning(rows)[:, None] * jnp.hanning(columns)[None]
    centred = images_BYX3 - images_BYX3.mean(axis=(1, 2), keepdims=True)
    power = jnp.abs(jnp.fft.fft2(centred * window[None, :, :, None], axes=(1, 2))) ** 2
    power = jnp.fft.fftshift(power, axes=(1, 2))
    return (power / (_averaged(power, NEIGHBOURS) + 1e-9)).mean(axis=-1)


def _averaged(x_BYXC: jax.Array, side: int) -> jax.Array:
    options = ((1, side, side, 1), (1, 1, 1, 1), "SAME")
    return jax.lax.reduce_window(x_BYXC, 0.0, jax.lax.add, *options) / side**2


@functools.lru_cache
def _waves() -> np.ndarray:
    """[K, 2] whole waves in a tile, of half of the plane."""
    most = WAVES[1]
    grid = np.stack(np.meshgrid(range(-most, most + 1), range(0, most + 1), indexing="ij"), -1).reshape(-1, 2)
    length = np.hypot(*grid.T)
    return grid[(length >= WAVES[0]) & (length <= most) & ((grid[:, 1] > 0) | (grid[:, 0] > 0))]


def _scores(ratio_YX: jax.Array, waves_K2: jax.Array, degrees_P: jax.Array, scales_P: jax.Array) -> jax.Array:
    """How much the lattice of each pose stands out [P], between bins linearly."""
    rows, columns = ratio_YX.shape
    turned_PK2 = jnp.einsum("pij,kj->pki", matrix(degrees_P, 1 / scales_P), waves_K2)
    place = turned_PK2 * jnp.array([rows, columns])[None, None] + jnp.array([rows // 2, columns // 2])[None, None]
    values = jax.scipy.ndimage.map_coordinates(jnp.minimum(ratio_YX, 4 * MOST), list(jnp.moveaxis(place, -1, 0)), 1)
    return jnp.sqrt(values).mean(axis=1)  # the root, so that no bin outweighs all others
