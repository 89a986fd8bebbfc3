"""The network that a run of focus.py explains, and the pictures that it was trained on and is rated with."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from alignment import files
from alignment.errors import InputError
from alignment.models import pretrained, vision
from alignment.train import classify, loop, optimizer, sharding
from data import loader
from data.pictures import images
from experiments.explanations.study import Classifier


def source_of(c: ml_collections.ConfigDict) -> str:
    """The pictures for a network that does not come with its own: to train it and to rate it."""
    return c.data.source or c.fallback.source


def classifier(c: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> Classifier:
    """The network to explain: a checkpoint's, a run's, or a baseline trained here."""
    kind, _, path = c.init_from.partition(":")
    if kind == "checkpoint":
        return from_checkpoint(c, path)
    if not c.init_from:
        path = workdir / "baseline"
        train_baseline(c, path, mesh)
    run = classify.recall(path, mesh, dtype=c.dtype)
    names = tuple(run.class_names)
    return Classifier(run.network, run.model, run.variables, names, len(names), run.images)


def from_checkpoint(c: ml_collections.ConfigDict, path: str) -> Classifier:
    """The network of a safetensors file, with a head for the classes of the pictures."""
    source = source_of(c)
    names = () if source.startswith("mosaics:") else tuple(open_images(c, source).class_names)
    num_classes = c.network.num_classes or len(names)
    if not num_classes:
        raise InputError(
            "network.num_classes is not set; ready-made mosaics do not say how many classes there are: set it"
        )
    model = vision.network(c.network.name, num_classes=num_classes, dtype=c.dtype, **c.network.fields)
    side = 2 * tile_of(c, {})["crop"]
    fresh = jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, side, side, 3)))
    variables, report = pretrained.load(path, fresh, network=model)
    headless = (*report.skipped, *report.missing)
    if headless:
        raise InputError(
            f"{path} has no head for {num_classes} classes ({', '.join(map(str, headless))}), and a random one "
            "would be rated; set network.num_classes to what it was trained on, or give a checkpoint with its head"
        )
    return Classifier(c.network.name, model, variables, names, num_classes, {})


def tile_of(c: ml_collections.ConfigDict, trained_on: Mapping[str, Any]) -> dict[str, int]:
    """Resize and crop of a tile: the config's, else the run's, else the setting's."""
    default = trained_on if trained_on.get("resize") else c.fallback
    return {name: c.tile[name] or int(default[name]) for name in ("resize", "crop")}


def train_baseline(c: ml_collections.ConfigDict, folder: pathlib.Path, mesh: jax.sharding.Mesh) -> None:
    """Train a small network on the same source, in a folder of its own, unless an earlier start has done it."""
    source = source_of(c)
    train, val = open_images(c, source, "train"), open_images(c, source, "val")
    content = loader.digest(texts=[train.digest, val.digest])
    if (folder / "summary.json").is_file():
        if classify.about(folder)["images"].get("content", content) != content:
            raise InputError(
                f"the pictures of {source} have changed since {folder} was trained on them. Put them back as they "
                "were, or start over in another --workdir"
            )
        return
    fields = dict(c.network.fields)
    model = vision.network(c.network.name, num_classes=len(train.class_names), **fields)
    tile = tile_of(c, {})
    shape = dict(tile, rotate=c.baseline.rotate, flip=c.baseline.flip)
    batches = functools.partial(
        images.batches, shape=shape, batch_size=c.baseline.batch_size, seed=c.seed, **sharding.row_share(mesh)
    )
    options = {"columns": columns_of(c)} if source.startswith("csv:") else {}
    trained_on = {"source": source, "options": options, "content": content, **tile}
    classify.remember(folder, network=c.network.name, fields=fields, class_names=train.class_names, images=trained_on)
    every = c.baseline.eval_every
    _, summary = classify.fit(
        model,
        batches(train, train=True, beside=(val,)),
        {"valid": batches(val, train=False)},
        mesh,
        folder,
        tx=optimizer.adamw(c.baseline.lr, warmup_steps=c.baseline.steps // 20, total_steps=c.baseline.steps),
        seed=c.seed,
        steps=c.baseline.steps,
        batch_size=c.baseline.batch_size,
        pace=loop.Pace(max(every // 10, 1), eval_every=every, save_every=every),
        logging=loop.Logging(sinks=c.baseline.sinks, label="baseline"),
    )
    files.write_text(folder / "summary.json", json.dumps(summary))


def columns_of(c: ml_collections.ConfigDict) -> dict[str, str]:
    """Our names of a table's columns -> the table's, where the config names them."""
    return {ours: theirs for ours, theirs in c.data.columns.items() if theirs}


def open_images(
    c: ml_collections.ConfigDict, source: str, split: str = "", run_options: Mapping[str, Any] | None = None
) -> images.Images:
    """A split of the source, with the options of the run whose source it is, and the config's."""
    return images.open(source, split=split or c.data.split, **options_of(c, source, run_options))


def options_of(c: ml_collections.ConfigDict, source: str, run_options: Mapping[str, Any] | None = None) -> dict:
    """The options that `images.open` takes for a source: those of the run whose source it is, and the config's."""
    options = {**(run_options or {}), **c.data.options}
    if source.startswith("csv:"):
        options["columns"] = {**options.get("columns", {}), **columns_of(c)}
    elif columns_of(c):
        raise InputError(f"data.columns={columns_of(c)} is of csv:<file.csv>, and these pictures are {source}")
    if source.split(":")[0] != "museum":
        options.pop("planted_share", None)
    return options
