"""Small labelled sets whose augmented rows are wrong in a known share, to see what a way of augmenting makes of them.

Dimensions: N rows, D columns, K classes, Y X rows and columns of a picture, C colours.
"""

import dataclasses

import numpy as np

from alignment.errors import InputError
from data.toys import museum

WRONG = 0.4  # of the augmented rows, whose label is another class
TEST = 4_000
MEDIUMS = ("Bronze", "Ceramic", "Marble", "Wood")  # of the pictures


@dataclasses.dataclass(frozen=True)
class Blurred:
    """Rows and labels by split, and a pool of augmented rows.

    Attributes:
        x, y: by split (train, val, test).
        pool_x, pool_y: the augmented rows and the labels that they come with.
        is_wrong: of them, whether the label is not the truth.
        groups: of each row, by split; where the set has groups.
    """

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    pool_x: np.ndarray
    pool_y: np.ndarray
    is_wrong: np.ndarray
    groups: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def gaussians(seed: int, *, num_val: int = 60, copies: int = 20, num_test: int = TEST) -> Blurred:
    """Three Gaussians in ten dimensions, 15 training rows, each with jittered copies, of which WRONG are mislabelled.

    Means 1.6 along an axis of their own, unit noise, jitter of deviation 0.7; labels of wrong copies are one of the two
    other classes.
    """
    rng = np.random.default_rng([seed, 0])
    sizes = {"train": 15, "val": num_val, "test": num_test}
    y = {split: rng.integers(0, 3, size) for split, size in sizes.items()}
    x = {s: 1.6 * np.eye(10)[labels] + rng.standard_normal((len(labels), 10)) for s, labels in y.items()}
    pool_x = np.repeat(x["train"], copies, axis=0)
    pool_x = pool_x + 0.7 * rng.standard_normal(pool_x.shape)
    truth = np.repeat(y["train"], copies)
    is_wrong = rng.random(len(truth)) < WRONG
    return _blurred(x, y, pool_x, _mislabelled(truth, is_wrong, rng, 3), is_wrong)


def shortcut(seed: int, *, num_val: int = 15, num_train: int = 150, copies: int = 2, num_test: int = TEST) -> Blurred:
    """Two classes, told apart by a column that goes with the class in training rows alone; few validation rows.

    Copies have that column from another row. WRONG of the copies take that row's label along, so that they speak for
    the column, and the others speak against it: which of them are right can be seen in the validation rows alone, and
    these are too few to train on.
    """
    rng = np.random.default_rng([seed, 2])
    x, y = {}, {}
    for split, size in (("train", num_train), ("val", num_val), ("test", num_test)):
        y[split] = np.arange(size) % 2
        sign = 2 * y[split] - 1
        follows = np.ones(size) if split == "train" else rng.choice((-1, 1), size)
        column = (1.5 * sign * follows + 0.5 * rng.standard_normal(size))[:, None]
        signal = 0.8 * sign[:, None] + rng.standard_normal((size, 3))
        x[split] = np.concatenate([signal, column, rng.standard_normal((size, 6))], axis=1)
    pool_x, truth = np.repeat(x["train"], copies, axis=0), np.repeat(y["train"], copies)
    other = rng.integers(0, len(pool_x), len(pool_x))
    pool_x[:, 3] = pool_x[other, 3]
    pool_y = np.where(rng.random(len(truth)) < WRONG, truth[other], truth)
    return _blurred(x, y, pool_x, pool_y, pool_y != truth)


def groups(seed: int, *, num_val: int = 32, num_test: int = TEST) -> Blurred:
    """Two classes in three groups; a column that goes with the class in the first group alone misleads in the others.

    All training rows are of group 0, validation rows of groups 0 and 1, test rows of all three. Augmented rows have
    that column from another row, and WRONG of those whose column changed class carry the label that it belongs to.
    """
    rng = np.random.default_rng([seed, 2])
    sizes, x, y, group = {"train": 64, "val": num_val, "test": num_test}, {}, {}, {}
    among = {"train": (0,), "val": (0, 1), "test": (0, 1, 2)}
    for split, size in sizes.items():
        y[split] = np.arange(size) % 2
        group[split] = rng.choice(among[split], size)
        sign = 2 * y[split] - 1
        follows = np.where(group[split] == 0, 1, np.where(group[split] == 1, rng.choice((-1, 1), size), -1))
        signal = sign[:, None] * 0.8 + rng.standard_normal((size, 3))
        shortcut = (sign * follows * 1.5 + 0.5 * rng.standard_normal(size))[:, None]
        x[split] = np.concatenate([signal, shortcut, rng.standard_normal((size, 6))], axis=1)
    pool_x, truth = np.repeat(x["train"], 4, axis=0), np.repeat(y["train"], 4)
    other = rng.integers(0, len(pool_x), len(pool_x))
    swapped = pool_x.copy()
    swapped[:, 3] = pool_x[other, 3]
    is_wrong = (rng.random(len(truth)) < WRONG) & (truth != truth[other])
    return _blurred(x, y, swapped, np.where(is_wrong, truth[other], truth), is_wrong, group)


def generated(
    seed: int, *, side: int = 16, shots: int = 12, num_val: int = 12, num_test: int = 40, num_pool: int = 60
) -> Blurred:
    """Pictures of four of the museum's mediums, few a class, beside `generated` ones, WRONG of them of another medium.

    Sizes are a class.
    """
    from data.pictures import transforms

    per_class = {"train": shots, "val": num_val, "test": num_test, "pool": num_pool}
    x, y = {}, {}
    for split, size in per_class.items():
        house = museum.Museum("train" if split == "pool" else split, seed + 1_000 * (split == "pool"), per_class=size)
        numbers = [i for i in range(len(house)) if museum.MEDIUMS[i % len(museum.MEDIUMS)] in MEDIUMS]
        x[split] = np.stack([transforms.resize(house.picture(i), (side, side), keeps_shape=False) for i in numbers])
        y[split] = np.array([MEDIUMS.index(museum.MEDIUMS[i % len(museum.MEDIUMS)]) for i in numbers])
    rng = np.random.default_rng([seed, 3])
    truth = y.pop("pool")
    is_wrong = rng.random(len(truth)) < WRONG
    pool_x, pool_y = x.pop("pool"), _mislabelled(truth, is_wrong, rng, len(MEDIUMS))
    return _blurred(x, y, pool_x, pool_y, is_wrong)


def pairs(seed: int, *, num_train: int = 96, num_val: int = 64, num_pool: int = 384, num_test: int = 400) -> Blurred:
    """Images and texts of eight kinds, 12 numbers each, side by side in a row; WRONG of the augmented pairs mismatch.

    `y` is the kind. An augmented pair is a jittered training pair; in a wrong one the text is another pair's, of
    another kind.
    """
    rng = np.random.default_rng([seed, 4])
    kinds = 8
    images, texts = np.random.default_rng([seed, 5]).standard_normal((2, kinds, 12))
    sizes = {"train": num_train, "val": num_val, "test": num_test}
    y = {split: rng.permutation(np.arange(size) % kinds) for split, size in sizes.items()}
    x = {}
    for split, labels in y.items():
        parts = [means[labels] + rng.standard_normal((len(labels), 12)) for means in (images, texts)]
        x[split] = np.concatenate(parts, axis=1)
    rows = rng.integers(0, num_train, num_pool)
    pool_x, pool_y = x["train"][rows] + 0.5 * rng.standard_normal((num_pool, 24)), y["train"][rows]
    is_wrong = rng.random(num_pool) < WRONG
    for i in np.flatnonzero(is_wrong):
        others = np.flatnonzero(y["train"] != pool_y[i])
        pool_x[i, 12:] = x["train"][rng.choice(others), 12:]
    return _blurred(x, y, pool_x, pool_y, is_wrong)


def _mislabelled(truth: np.ndarray, is_wrong: np.ndarray, rng: np.random.Generator, num_classes: int) -> np.ndarray:
    """The truth, and where it is to be wrong one of the other classes."""
    if num_classes < 2:
        raise InputError(f"{num_classes} class; a wrong label needs at least two")
    return np.where(is_wrong, (truth + rng.integers(1, num_classes, len(truth))) % num_classes, truth)


def _blurred(x, y, pool_x, pool_y, is_wrong, groups=None) -> Blurred:
    as_stored = lambda array: array if array.dtype == np.uint8 else array.astype(np.float32)  # noqa: E731
    return Blurred(
        {split: as_stored(array) for split, array in x.items()},
        {split: labels.astype(np.int32) for split, labels in y.items()},
        as_stored(pool_x),
        pool_y.astype(np.int32),
        is_wrong,
        {split: group.astype(np.int32) for split, group in (groups or {}).items()},
    )
