"""MAMe: telling the medium of an artwork, at two resolutions, squeezed to a square or in its own shape.

Paper:   Parés et al. 2020, arXiv:2007.13693 (29 mediums, 37,407 pictures of three museums)
Run:     python -m experiments.run --config experiments/mame.py --config.data.source=mame:<folder of the download>
Laptop:  python -m experiments.run --config experiments/mame.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit

Beside every accuracy stands its floor: what a random forest makes of size and museum without seeing a pixel.
"""

import csv
import functools
import io
import itertools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alignment.errors import InputError
from alignment.evaluation import classification
from alignment.explain import explaining, frame
from alignment.models import pretrained, vision
from alignment.train import classify, files, loop, optimizer, sharding
from data import images, mame, records, transforms
from experiments import pictures

SETTINGS = ("", "laptop", "tiny")
SPLITS = ("train", "val", "test")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    if arg not in SETTINGS:
        raise ValueError(f"mame.py knows the settings {', '.join(map(repr, SETTINGS))}, got {arg!r}")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = dict(source="mame:data/mame", toy=False, allow_missing=False)  # any source of data/images.py
    c.version = "R65k-FS"  # R65k or R360k pixels; FS squeezed to a square, VS in their own shape; "" goes by `view`
    c.replicate_release_bug = False  # R360k-VS at 65,536 pixels, as the released code has it
    c.view = dict(resize=0, pixels=0, crop=0.875, eval_resize=0, rotate=30.0, flip=True)  # for version ""
    c.network = dict(name="resnet18", dtype="bfloat16", fields=ml_collections.ConfigDict())
    c.masked_pool = True  # padding of variable shapes never reaches the logits; False is the release's way
    c.init_from = ""  # safetensors of ImageNet weights, torchvision's or timm's names; "" for nothing
    c.epochs = 100  # the one with the best validation mean class accuracy is kept
    c.batch_size = 0  # pictures over all hosts; 0: 128 squeezed, 16 in their own shape
    c.lr = 0.0  # 0: 1e-5 for VGG, 1e-4 for others
    c.accumulate = 1  # parts that a batch is taken in
    c.num_workers = 8  # processes that decode and augment; 0 does it in a thread
    c.loop = dict(log_every=50, eval_epochs=1, save_epochs=1, keep=2)  # steps; epochs; checkpoints kept
    c.floor = dict(trees=300, seeds=3)  # of the random forest that sees no pixel
    c.explain = dict(methods=("lrp", "gradcam"), errors=8, pictures=64)  # worst errors shown; for the share of frames
    c.export = True  # leave export/model.safetensors, torchvision's names, where the network has such a layout
    c.sinks = ("tensorboard",)  # beside metrics.jsonl: tensorboard, wandb, trackio
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1 takes the devices left over
    if arg:
        small(c)
    if arg == "tiny":
        c.view.update(resize=16, crop=16)
        c.network.name = "cnn"
        c.network.fields.widths = (4, 8)
        c.data.per_class = 3
        c.epochs = 2
        c.batch_size = 8
        c.loop.log_every = 1
        c.floor.update(trees=5, seeds=1)
        c.explain.update(methods=("gradcam",), errors=1, pictures=4)
    return c


def small(c: ml_collections.ConfigDict) -> None:
    """A small network on the embedded museum."""
    c.data = dict(source="museum", per_class=0)  # pictures of each class; 0: 100 for train, 40 for val and test
    c.version = ""
    c.view.update(resize=64, crop=56, rotate=15.0)
    c.network.update(name="resnet_small", dtype="float32")
    c.epochs = 12
    c.batch_size = 32
    c.lr = 2e-3
    c.num_workers = 0
    c.loop.update(log_every=10, eval_epochs=2, save_epochs=4)
    c.floor.update(trees=100)
    c.explain.update(errors=6)


def sweep():
    names = ("vgg11", "vgg16", "resnet18", "resnet50", "densenet121", "efficientnet_b0", "efficientnet_b3")
    for name, version in itertools.product(names, mame.VERSIONS):
        yield {"network.name": name, "version": version}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    check(c)
    mesh = sharding.make_mesh(**c.mesh)
    view = view_of(c)
    batch_size = c.batch_size or (128 if view.is_fixed else 16)
    sharding.check_batch(batch_size, mesh, c.accumulate)
    found = open_splits(c, workdir)
    class_names = found["train"].class_names
    model = network(c, len(class_names), view)
    remember(c, workdir, view, class_names)
    steps_per_epoch = -(-len(found["train"]) // batch_size)
    batches_fn = functools.partial(
        images.batches, shape=view, batch_size=batch_size, num_workers=c.num_workers, **sharding.row_share(mesh)
    )
    held = {split: batches_fn(found[split], train=False) for split in ("val", "test")}
    state, summary = classify.fit(
        model,
        masked(batches_fn(found["train"], train=True, seed=c.seed), c.masked_pool),
        {"val": masked(held["val"], c.masked_pool)},
        mesh,
        workdir,
        tx=optimizer.amsgrad(c.lr or (1e-5 if c.network.name.startswith("vgg") else 1e-4)),
        seed=c.seed,
        steps=c.epochs * steps_per_epoch,
        batch_size=batch_size,
        select="val",
        variables=start(c, model, view, workdir),
        accumulate=c.accumulate,
        log_every=c.loop.log_every,
        eval_every=c.loop.eval_epochs * steps_per_epoch,
        save_every=c.loop.save_epochs * steps_per_epoch,
        keep=c.loop.keep,
        sinks=c.sinks,
    )
    variables = classify.variables(state)
    export(c, workdir, model, variables)
    seen = classify.predict(model, variables, masked(held["test"], c.masked_pool), mesh)
    if jax.process_index() == 0:
        summary |= judge(c, workdir, found, seen)
        summary |= explain(c, workdir, found["test"], view, model, variables, seen)
    return summary


# What goes in


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    for name in ("epochs",):
        if c[name] < 1:
            raise InputError(f"{name}={c[name]} must be at least 1")
    for name in ("eval_epochs", "save_epochs"):
        if c.loop[name] < 1:
            raise InputError(f"loop.{name}={c.loop[name]} must be at least 1, in epochs")
    for method in c.explain.methods:
        explaining.check_options(method, {}, key=0)
    if c.explain.errors < 0 or c.explain.pictures < 0:
        raise InputError(f"explain={dict(c.explain)}: errors and pictures must not be negative")


def view_of(c: ml_collections.ConfigDict) -> transforms.View:
    if not c.version:
        return transforms.view_of(c.view)
    kept = dict(rotate=c.view.rotate, flip=c.view.flip)
    return transforms.View(**mame.shape(c.version, replicate_release_bug=c.replicate_release_bug), **kept)


def open_splits(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, images.Images]:
    """The three splits; what was set aside stands in bad_records.jsonl, and every count in the report."""
    options = {name: value for name, value in c.data.items() if name != "source"}
    if c.data.source.startswith("mame:"):
        options |= {"version": c.version} if c.version else {}
    elif c.data.source != "museum":
        options = {}
    found = {split: images.open(c.data.source, split=split, **options) for split in SPLITS}
    records.write_bad([bad for part in found.values() for bad in part.bad], str(workdir / "bad_records.jsonl"))
    files.report_counts(workdir, {f"{s}: {name}": n for s, part in found.items() for name, n in part.counts.items()})
    return found


def network(c: ml_collections.ConfigDict, num_classes: int, view: transforms.View) -> nn.Module:
    model = vision.network(c.network.name, num_classes=num_classes, dtype=c.network.dtype, **c.network.fields)
    if view.is_fixed:
        vision.check_input(model, (int(view.crop), int(view.crop)))
    return model


def remember(c: ml_collections.ConfigDict, workdir: pathlib.Path, view: transforms.View, class_names) -> None:
    told = dict(source=c.data.source, version=c.version, resize=view.resize, pixels=view.pixels, crop=view.crop)
    fields = {**c.network.fields, "dtype": c.network.dtype}
    if jax.process_index() == 0:
        classify.remember(workdir, network=c.network.name, fields=fields, class_names=class_names, images=told)


def start(c: ml_collections.ConfigDict, model: nn.Module, view: transforms.View, workdir: pathlib.Path) -> Any:
    """ImageNet's weights with a head of our own, or None."""
    if not c.init_from or loop.latest_step(workdir) is not None:
        return None
    side = int(view.crop) if view.is_fixed else 224
    fresh = jax.jit(model.init)(jax.random.PRNGKey(c.seed), jnp.zeros((1, side, side, 3)))
    variables, report = pretrained.load(c.init_from, nn.meta.unbox(fresh), network=model)
    print(f"{c.init_from}: {len(report.loaded)} tensors of {report.layout} loaded", flush=True)
    for what, names in (("left at their start", report.skipped), ("not in the file", report.missing)):
        if names:
            print(f"{what}: {', '.join(map(str, names))}", flush=True)
    return variables


class masked:
    """Batches with or without the mask that keeps padding out of the logits; a loader like the one it wraps."""

    def __init__(self, batches, is_masked: bool):
        self._batches, self._is_masked = batches, is_masked

    def __iter__(self):
        return (self._changed(batch) for batch in self._batches)

    def __next__(self):
        return self._changed(next(self._batches))

    def _changed(self, batch):
        if not self._is_masked:
            # padding stays exactly 0 after normalisation only with the mask: 127.5 is no byte, so grey is the nearest
            mask = batch.pop("mask", None)
            if mask is not None:
                batch["images"] = np.where(mask[..., None] > 0, batch["images"], np.uint8(128))
        return batch

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._batches.set_state(state)
