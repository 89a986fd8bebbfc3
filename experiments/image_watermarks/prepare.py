"""What the cells read: pictures, marked pictures, and the small networks, once for all of them."""

import glob
import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.watermark.marks import Mark
from data import loader, records
from data.pictures import image_files
from data.toys import scenes
from experiments.image_watermarks import attacks, given
from experiments.image_watermarks.cells import PICTURES, of_second_user

SYNTHETIC = "synthetic"


def files_of(images: str) -> list[str]:
    """The files behind a glob or a folder.

    Raises:
        InputError: there are none.
    """
    path = pathlib.Path(images).expanduser()
    pattern = f"{glob.escape(str(path))}/*" if path.is_dir() else str(path)
    names = sorted(name for name in glob.glob(pattern, recursive=True) if pathlib.Path(name).is_file())
    if not names:
        raise InputError(f"images={images!r}: no file is there; give a glob in quotes, a folder, or {SYNTHETIC!r}")
    return names


def pictures(
    images: str, *, size: int, num: int | None, seed: int, workdir: pathlib.Path
) -> tuple[np.ndarray, list[str]]:
    """Square cuts of pictures, uint8 [N, size, size, 3], and the name of each.

    Of each picture the middle, then, where `num` asks for more, places drawn from the seed. What is not a picture, or
    smaller than `size`, is set aside with its reason and counted.

    Raises:
        InputError: no picture is left.
    """
    if images == SYNTHETIC:
        num = num or 16
        return scenes.scenes(num, size, seed=seed), [f"{SYNTHETIC} {i}" for i in range(num)]
    photos, used, bad = [], [], []
    for name in files_of(images):
        if num is not None and len(photos) == num:
            break
        try:
            photo = image_files.read(name)
            if min(photo.shape[:2]) < size:
                raise InputError(f"{photo.shape[1]} x {photo.shape[0]} pixels, and size={size}")
            photos.append(photo)
            used.append(name)
        except InputError as e:
            bad.append(records.BadRecord(name, 0, str(e)))
    records.write_bad(bad, workdir / "bad_records.jsonl")
    counts = {"pictures": len(photos), "set aside": len(bad)}
    if not photos:
        raise InputError(f"images={images!r}: none of {len(bad)} files can be used; the first: {bad[0].reason}")
    rng = np.random.default_rng(seed)
    cuts, names = [], []
    for i in range(num or len(photos)):
        photo = photos[i % len(photos)]
        room = [length - size for length in photo.shape[:2]]
        top, left = (r // 2 for r in room) if i < len(photos) else (int(rng.integers(r + 1)) for r in room)
        cuts.append(photo[top : top + size, left : left + size])
        names.append(f"{used[i % len(photos)]} from row {top}, column {left}")
    files.report_counts(workdir, counts | {"cuts": len(cuts)})
    return np.stack(cuts), names


def real(pattern: str, size: int) -> np.ndarray:
    """Photographs that nobody marked, the middle of each, uint8 [N, size, size, 3].

    Raises:
        InputError: a file that is not a picture, or a picture below the size.
    """
    out = []
    for name in files_of(pattern):
        photo = image_files.read(name)
        top, left = ((length - size) // 2 for length in photo.shape[:2])
        if min(top, left) < 0:
            raise InputError(f"training.real: {name} has {photo.shape[1]} x {photo.shape[0]} pixels, and size={size}")
        out.append(photo[top : top + size, left : left + size])
    return np.stack(out)


def own_pictures(pattern: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A user's marked pictures, uint8 of the shape of the unmarked ones; nothing is cut, which would lose the mark.

    Raises:
        InputError: another number of pictures, another size, or a file that is not a picture.
    """
    out = [image_files.read(file) for file in files_of(pattern)]
    for file, picture in zip(files_of(pattern), out):
        if picture.shape != shape[1:]:
            raise InputError(
                f"given.{name}.pictures: {file} has {picture.shape[1]} x {picture.shape[0]} pixels, and "
                f"size={shape[1]}; set --config.size to that of the marked pictures"
            )
    if len(out) != shape[0]:
        raise InputError(f"given.{name}.pictures are {len(out)}, and images are {shape[0]}; take as many of each")
    return np.stack(out)


def train_mark(folder: pathlib.Path, *, seed: int, steps: int, start: str) -> None:
    """Train the encoder-decoder mark, where a start before this one has not.

    Args:
        start: safetensors of an earlier run's; "" trains it on made-up pictures that are not attacked.
    """
    source = loader.digest_files([pathlib.Path(start).expanduser()]) if start else ""
    note, current = folder / "mark.json", {"seed": seed, "steps": steps, "from": source}
    path = folder / given.TRAINED_FILE
    if path.exists() and note.exists() and files.read_note(note) == current:
        return
    from alignment.watermark import hidden, learned

    model = hidden.EncoderDecoder()
    if start:
        params = learned.load(start, model)
    else:
        others = scenes.scenes(64, 128, seed=seed + 2_000)
        params, losses = learned.fit(hidden.wrong_bits, model, others, steps=steps, seed=seed)
        print(f"{given.TRAINED}: {steps} updates, loss {losses[0]:.3f} to {np.mean(losses[-50:]):.3f}", flush=True)
    learned.save(path, params)
    files.write_json(note, current)


def marked(
    images: np.ndarray,
    names: Sequence[str],
    *,
    user: int,
    folder: pathlib.Path,
    mark_fn: Callable[[str], Mark],
    ready: Mapping[str, np.ndarray] | None = None,
    is_second_user: bool = False,
) -> list[str]:
    """Write the pictures and each mark's, and return the digest of each array in this order.

    Args:
        is_second_user: write each mark's pictures of another user, too.
        mark_fn: a mark by its name.
        ready: pictures that were marked elsewhere, by their mark.
    """
    arrays = {PICTURES: images}
    for name in names:
        if ready and name in ready:
            arrays[name] = ready[name]
            continue
        mark = mark_fn(name)
        arrays[name] = mark.embed_fn(images, mark.key_fn(user))
        if mark.is_informed or is_second_user:
            arrays[of_second_user(name)] = mark.embed_fn(images, mark.key_fn(user + 1))
    for name, array in arrays.items():
        out = io.BytesIO()
        np.save(out, array)
        files.write(folder / f"{name}.npy", lambda f, out=out: f.write(out.getbuffer()))
    return [loader.digest(array) for array in arrays.values()]


def networks(
    chosen: Sequence[str],
    names: Sequence[str],
    *,
    folder: pathlib.Path,
    seed: int,
    training: dict[str, Any],
    made_from: Sequence[str],
    photographs: np.ndarray | None = None,
) -> None:
    """Train the small networks that the chosen attacks need, where a start before this one has not.

    The auto-encoder learns from other made-up pictures than those that are attacked, a surrogate from the marked and
    unmarked pictures themselves, as the paper's, or with photographs or a second user's in place of the unmarked.

    Args:
        made_from: digests of the arrays; networks that were trained on others are trained again.
        photographs: that nobody marked, uint8 [N, Y, X, 3].
    """
    if not set(chosen) & set(attacks.SMALL):
        return
    arrays = [*made_from, *([loader.digest(photographs)] if photographs is not None else [])]
    note, current = folder / "networks.json", {"arrays": arrays, "seed": seed, "training": training}
    if not note.exists() or files.read_note(note) != current:
        for path in folder.glob("*.safetensors"):
            if path.name != given.TRAINED_FILE:
                path.unlink()
        files.write_json(note, current)
    if set(attacks.AUTO_ENCODED) & set(chosen):
        _auto_encoder(folder / attacks.AUTO_ENCODER, seed=seed, training=training)
    for attack in (name for name in attacks.SURROGATES if name in chosen):
        for name in names:
            path = folder / attacks.surrogate_file(name, attack)
            beside = {attacks.CLASSIFY: PICTURES, attacks.CLASSIFY_USERS: of_second_user(name)}.get(attack)
            bare = photographs if beside is None else _array(folder, beside)
            if not path.exists() and bare is not None:
                _surrogate(path, bare, _array(folder, name), steps=training["steps"], seed=seed)


def _array(folder: pathlib.Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", allow_pickle=False)


def _auto_encoder(path: pathlib.Path, *, seed: int, training: Mapping[str, Any]) -> None:
    from alignment.watermark import learned  # imports JAX, which a grid of distortions does not need

    if path.exists():
        return
    if training["init_from"]:
        params = learned.load(training["init_from"], learned.AutoEncoder())
    else:
        others = scenes.scenes(32, 128, seed=seed + 1_000)
        model, steps = learned.AutoEncoder(), training["steps"]
        params, _ = learned.fit(learned.reconstruction, model, others, steps=steps, seed=seed)
    learned.save(path, params)


def _surrogate(path: pathlib.Path, bare: np.ndarray, marked: np.ndarray, *, steps: int, seed: int) -> None:
    from alignment.watermark import learned

    both, labels = np.concatenate([bare, marked]), np.arange(len(bare) + len(marked)) >= len(bare)
    params, _ = learned.fit(learned.cross_entropy, learned.Surrogate(), both, labels, steps=steps, seed=seed)
    learned.save(path, params)
