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
from experiments.image_watermarks.cells import PICTURES, unmarked

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


def pictures(images: str, *, size: int, num: int | None, seed: int, workdir: pathlib.Path) -> np.ndarray:
    """Square cuts of pictures, uint8 [N, size, size, 3].

    Of each picture the middle, then, where `num` asks for more, places drawn from the seed. What is not a picture, or
    smaller than `size`, is set aside with its reason and counted.

    Raises:
        InputError: no picture is left.
    """
    if images == SYNTHETIC:
        return scenes.scenes(num or 16, size, seed=seed)
    photos, bad = [], []
    for name in files_of(images):
        if num is not None and len(photos) == num:
            break
        try:
            photo = image_files.read(name)
            if min(photo.shape[:2]) < size:
                raise InputError(f"{photo.shape[1]} x {photo.shape[0]} pixels, and size={size}")
            photos.append(photo)
        except InputError as e:
            bad.append(records.BadRecord(name, 0, str(e)))
    records.write_bad(bad, workdir / "bad_records.jsonl")
    counts = {"pictures": len(photos), "set aside": len(bad)}
    if not photos:
        raise InputError(f"images={images!r}: none of {len(bad)} files can be used; the first: {bad[0].reason}")
    rng = np.random.default_rng(seed)
    cuts = []
    for i in range(num or len(photos)):
        photo = photos[i % len(photos)]
        room = [length - size for length in photo.shape[:2]]
        top, left = (r // 2 for r in room) if i < len(photos) else (int(rng.integers(r + 1)) for r in room)
        cuts.append(photo[top : top + size, left : left + size])
    files.report_counts(workdir, counts | {"cuts": len(cuts)})
    return np.stack(cuts)


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
) -> list[str]:
    """Write the pictures and each mark's, and return the digest of each array in this order.

    Args:
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
        if mark.is_informed:
            arrays[unmarked(name)] = mark.embed_fn(images, mark.key_fn(user + 1))
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
) -> None:
    """Train the small networks that the chosen attacks need, where a start before this one has not.

    The auto-encoder learns from other made-up pictures than those that are attacked, a surrogate from the marked and
    unmarked pictures themselves, as the paper's.

    Args:
        made_from: digests of the arrays; networks that were trained on others are trained again.
    """
    if not set(chosen) & set(attacks.LEARNED):
        return
    note, current = folder / "networks.json", {"arrays": list(made_from), "seed": seed, "training": training}
    if not note.exists() or files.read_note(note) != current:
        for path in folder.glob("*.safetensors"):
            if path.name != given.TRAINED_FILE:
                path.unlink()
        files.write_json(note, current)
    from alignment.watermark import learned  # imports JAX, which a grid of distortions does not need

    bare = np.load(folder / f"{PICTURES}.npy", allow_pickle=False)
    path = folder / attacks.AUTO_ENCODER
    if {attacks.REGENERATE, attacks.EMBED} & set(chosen) and not path.exists():
        own = training["init_from"]
        if own:
            params = learned.load(own, learned.AutoEncoder())
        else:
            others = scenes.scenes(32, 128, seed=seed + 1_000)
            params, _ = learned.fit(
                learned.reconstruction, learned.AutoEncoder(), others, steps=training["steps"], seed=seed
            )
        learned.save(path, params)
    for name in names if attacks.CLASSIFY in chosen else ():
        path = folder / attacks.surrogate_file(name)
        if not path.exists():
            both = np.concatenate([bare, np.load(folder / f"{name}.npy", allow_pickle=False)])
            labels = np.arange(len(both)) >= len(bare)
            params, _ = learned.fit(
                learned.cross_entropy, learned.Surrogate(), both, labels, steps=training["steps"], seed=seed
            )
            learned.save(path, params)
