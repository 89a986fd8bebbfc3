"""Mosaics planned over the pictures that can be decoded, and over the classes that have any."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from alignment.errors import InputError, one_of
from data import records
from data.pictures import mosaics
from data.pictures.image_sources import Images


def decodable(
    pictures: Images,
    tile: Mapping[str, int],
    num_classes: int,
    *,
    per_class: int,
    outer: str,
    leave_out: tuple[str, ...],
    seed: int,
) -> tuple[mosaics.Plan, np.ndarray, np.ndarray, dict[int, str]]:
    """A plan over the pictures that can be decoded: it, its tiles, its index into these, and the others by number.

    Args:
        tile: `resize` and `crop` of `mosaics.tiles`.
        per_class, outer, seed: of `mosaics.plan`.
        leave_out: names of classes that get no mosaic.

    Raises:
        InputError: a class without a picture that `data.leave_out` does not name; more than 1 % of broken pictures.
    """
    for name in leave_out:
        one_of("data.leave_out", name, pictures.class_names)
    broken: dict[int, str] = {}

    def read(i: int) -> np.ndarray:
        try:
            return pictures.read(i)
        except InputError as e:
            broken[i] = str(e)
            return np.zeros((1, 1, 3), np.uint8)

    out = [pictures.class_names.index(name) for name in leave_out]
    while True:
        is_kept_N = ~np.isin(pictures.labels_N, out)
        is_kept_N[list(broken)] = False
        rows_N, num_broken = np.flatnonzero(is_kept_N), len(broken)
        labels_N = np.asarray(pictures.labels_N)[rows_N]
        check_counts(np.bincount(labels_N, minlength=len(pictures.class_names)), pictures, leave_out)
        # with classes left out, those that remain are the labels that occur
        classes = None if out else num_classes
        local = mosaics.plan(labels_N, per_class, seed, num_classes=classes, outer=outer)
        plan = dataclasses.replace(local, tile_index=rows_N[local.tile_index].astype(np.int32))
        # a picture may turn out broken only when it is decoded; then the mosaics are planned again without it
        tiles_NYXC, local_M4 = mosaics.tiles(read, plan.tile_index, **tile)
        if len(broken) == num_broken:
            return plan, tiles_NYXC, local_M4, broken
        if len(broken) > records.MAX_BAD * len(pictures):
            raise InputError(
                f"{len(broken)} of {len(pictures)} pictures of {pictures.source} cannot be decoded, more than "
                f"{100 * records.MAX_BAD:g} %: {'; '.join(list(broken.values())[:3])}"
            )


def check_counts(count_C: np.ndarray, pictures: Images, leave_out: tuple[str, ...]) -> None:
    """Refuse classes without a picture, by name; say which have so few that their mosaics repeat them."""
    names = [name for name in pictures.class_names if name not in leave_out]
    count_by_name = dict(zip(pictures.class_names, count_C.tolist()))
    empty = [name for name in names if not count_by_name[name]]
    if empty:
        flag = ",".join(map(repr, (*leave_out, *empty)))
        raise InputError(
            f"{pictures.source} has no picture of {', '.join(empty)} in its split {pictures.split}; give them some, or "
            f'leave these classes out with --config.data.leave_out="({flag},)"'
        )
    if few := [f"{name} ({count_by_name[name]})" for name in names if count_by_name[name] < 3]:
        print(f"few pictures, repeated in the mosaics of their class: {', '.join(few)}", flush=True)
