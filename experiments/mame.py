"""MAMe: telling the medium of an artwork, at two resolutions, squeezed to a square or in its own shape.

Paper:   Parés et al. 2020, arXiv:2007.13693 (29 mediums, 37,407 pictures of three museums)
Run:     python -m experiments.run --config experiments/mame.py --config.data.source=mame:<folder of the download>
Laptop:  python -m experiments.run --config experiments/mame.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  `laptop`: test accuracy 0.950 (95 % interval 0.920 to 0.969), size and museum alone 0.549; 58 s on two cores of
         an AMD EPYC, commit 243c98a

Beside every accuracy stands its floor: the accuracy of a random forest that reads size and museum, but no pixel. A
sweep ends with versions.csv: the effect of resolution, of shape and of both on each network, on the same test pictures;
`python -m experiments.report FOLDER` makes it again from the finished points.

Where pictures keep their own shapes, all pictures of a batch have the same shape. If shape goes with the class, batch
norm then sees few classes at a time and its running statistics fit none of them: compare with a network without batch
norm (vgg11, vgg16) before you blame the shapes.
"""

import functools
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from ml_collections.config_dict import placeholder

from alignment import files
from alignment.errors import InputError
from alignment.explain import explaining
from alignment.models import layouts, pretrained, vision
from alignment.train import classify, loop, optimizer, sharding
from data import records
from data.pictures import image_sources, images, mame, transforms
from experiments.launch import checks, groups
from experiments.pages import mame as mame_page

SETTINGS = ("", "laptop", "tiny")
SPLITS = ("train", "val", "test")
FEWEST = 3  # pictures of a class of the museum at `tiny`
FEW = 3  # pictures of a class in a split, below which it is named


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = dict(
        source="mame:data/mame",  # any source of data/pictures/images.py
        toy=False,  # of mame: its smaller table
        allow_missing=False,  # of mame: go on without the pictures that are not there
        per_class=placeholder(int),  # of museum: pictures of each class; None: 100 for train, 40 for val and test
        columns=groups.columns("filename", "label", "subset"),  # of csv
    )
    c.version = "R65k-FS"  # R65k or R360k pixels; FS squeezed to a square, VS in their own shape; "" takes `view`
    c.replicate_release_bug = False  # R360k-VS at 65,536 pixels, as the released code has it
    c.view = dict(  # of pictures where version is ""; rotate and flip in every case
        resize=placeholder(int),  # side in pixels that pictures are squeezed to; either this or `pixels`
        pixels=placeholder(int),  # pixels that pictures are scaled to in their own shape
        crop=0.875,  # side in pixels with `resize`, a part of each side with `pixels`
        eval_resize=placeholder(int),  # side for val and test, which are then not cropped; None crops the centre
        rotate=30.0,  # degrees, the most
        flip=True,
    )
    c.network = dict(
        name="resnet18",
        dtype="bfloat16",
        fields=ml_collections.ConfigDict(),
    )
    c.masked_pool = True  # padding of variable shapes never reaches the logits; False is the release's way
    c.init_from = ""  # safetensors of ImageNet weights, torchvision's or timm's names; "" draws them
    c.epochs = 100  # the one with the best validation mean class accuracy is kept
    c.batch_size = placeholder(int)  # pictures over all hosts; None: 128 squeezed, 16 in their own shape
    c.lr = placeholder(float)  # None: 1e-5 for VGG, 1e-4 for others
    c.accumulate = 1  # parts that a batch is taken in
    c.num_workers = 8  # processes that decode and augment; 0 does it in a thread
    c.loop = dict(
        log_every=50,  # steps
        eval_epochs=1,
        save_epochs=1,
        keep=2,  # checkpoints
    )
    c.floor = dict(trees=300, seeds=3)  # of the random forest that reads no pixel
    c.explain = dict(
        methods=("lrp", "gradcam"),
        errors=8,  # worst errors on the sheet
        pictures=64,  # for the share of relevance on frames
    )
    c.export = True  # leave export/model.safetensors, torchvision's names, where the network has such a layout
    c.sinks = groups.SINKS
    c.mesh = groups.mesh()
    if arg:
        small(c)
    if arg == "tiny":
        c.view.resize = 16
        c.view.crop = 16
        c.network.name = "cnn"
        c.network.fields.widths = (4, 8)
        c.data.per_class = FEWEST
        c.epochs = 2
        c.batch_size = 8
        c.loop.log_every = 1
        c.floor.trees = 5
        c.floor.seeds = 1
        c.explain.methods = ("gradcam",)
        c.explain.errors = 1
        c.explain.pictures = 4
    return c


def small(c: ml_collections.ConfigDict) -> None:
    """A small network on the embedded museum."""
    c.data.source = "museum"
    c.version = ""
    c.view.resize = 64
    c.view.crop = 56
    c.view.rotate = 15.0
    c.network.name = "resnet_small"
    c.network.dtype = "float32"
    c.epochs = 12
    c.batch_size = 32
    c.lr = 2e-3
    c.num_workers = 0
    c.loop.log_every = 10
    c.loop.eval_epochs = 2
    c.loop.save_epochs = 4
    c.floor.trees = 100
    c.explain.errors = 6


def sweep() -> Iterator[dict[str, Any]]:
    names = ("vgg11", "vgg16", "resnet18", "resnet50", "densenet121", "efficientnet_b0", "efficientnet_b3")
    for name, version in itertools.product(names, mame.VERSIONS):
        yield {"network.name": name, "version": version}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    folder = pathlib.Path(workdir)
    check(c)
    mesh = sharding.make_mesh(**c.mesh)
    view = view_of(c)
    batch_size = c.batch_size or (128 if view.is_fixed else 16)
    sharding.check_batch(batch_size, mesh, c.accumulate)
    splits = open_splits(c, folder)
    class_names = splits["train"].class_names
    model = network(c, len(class_names), view)
    remember(c, folder, view, class_names)
    steps_per_epoch = -(-len(splits["train"]) // batch_size)
    batches_fn = functools.partial(
        images.batches,
        shape=view,
        batch_size=batch_size,
        num_workers=c.num_workers,
        mask_name="mask" if c.masked_pool else "real",
        **sharding.row_share(mesh),
    )
    heldout = {split: batches_fn(splits[split], train=False) for split in ("val", "test")}
    state, summary = classify.fit(
        model,
        batches_fn(splits["train"], train=True, seed=c.seed, beside=(splits["val"], splits["test"])),
        {"valid": heldout["val"]},
        mesh,
        folder,
        tx=optimizer.amsgrad(c.lr or (1e-5 if c.network.name.startswith("vgg") else 1e-4)),
        seed=c.seed,
        steps=c.epochs * steps_per_epoch,
        batch_size=batch_size,
        select="valid",
        variables=start(c, model, view, folder),
        accumulate=c.accumulate,
        pace=loop.Pace(
            log_every=c.loop.log_every,
            eval_every=c.loop.eval_epochs * steps_per_epoch,
            save_every=c.loop.save_epochs * steps_per_epoch,
            keep=c.loop.keep,
        ),
        logging=loop.Logging(sinks=c.sinks),
    )
    variables = classify.variables(state)
    on_host = sharding.to_host(variables)  # a collective: every process takes part
    predictions = classify.predict(model, variables, heldout["test"], mesh)
    if jax.process_index() == 0:
        export(c, folder, model, on_host)
        has_mask = c.masked_pool and not view.is_fixed
        tested = mame_page.Tested(c.network.name, model, on_host, view, has_mask, splits["test"], predictions, c.seed)
        is_copy_N = images.copies(splits["test"], [splits["train"], splits["val"]])
        summary |= mame_page.judge(folder, tested, splits["train"], is_copy_N, trees=c.floor.trees, seeds=c.floor.seeds)
        summary |= mame_page.explain(
            folder, tested, methods=c.explain.methods, num_errors=c.explain.errors, num_pictures=c.explain.pictures
        )
    return summary


# Before training


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither pictures nor devices to be seen."""
    checks.within(c, "[1, inf)", "epochs", "loop.eval_epochs", "loop.save_epochs", "floor.trees", "floor.seeds")
    if any(c.data.columns.values()) and not c.data.source.startswith("csv:"):
        raise InputError(f"data.columns={dict(c.data.columns)} is of csv:<file.csv>, and data.source={c.data.source!r}")
    for name in ("toy", "allow_missing"):
        if c.data[name] and not c.data.source.startswith("mame:"):
            raise InputError(f"data.{name}={c.data[name]} is of mame:<folder>, and data.source={c.data.source!r}")
    if c.data.per_class not in (None, FEWEST) and c.data.source != "museum":  # a run at `tiny` may read other pictures
        raise InputError(
            f"data.per_class={c.data.per_class} is of museum, which draws its pictures, and "
            f"data.source={c.data.source!r} has as many as it has; leave it out"
        )
    if c.replicate_release_bug and c.version != "R360k-VS":
        raise InputError(f"replicate_release_bug is of version=R360k-VS, and version={c.version!r}")
    images.check(c.data.source, **source_options(c))
    network(c, 2, view_of(c))
    if c.init_from:
        pretrained.check_file(c.init_from)
    optimizer.amsgrad(c.lr or 0.0)
    for method in c.explain.methods:
        explaining.check_options(method, {})
        if method == "attention_rollout" and not c.network.name.startswith("vit"):
            raise InputError(f"explain.methods names {method}, which reads attention, and {c.network.name} has none")
    checks.within(c, "[0, inf)", "explain.errors", "explain.pictures")


def view_of(c: ml_collections.ConfigDict) -> transforms.View:
    if not c.version:
        return transforms.view_of(c.view)
    shape = mame.shape(c.version, replicate_release_bug=c.replicate_release_bug)
    return transforms.View(**shape, rotate=c.view.rotate, flip=c.view.flip)


def source_options(c: ml_collections.ConfigDict) -> dict[str, Any]:
    """Options of `images.open` beside the source and the split."""
    if c.data.source == "museum":
        return {"per_class": c.data.per_class}
    if c.data.source.startswith("csv:"):
        return {"columns": {ours: theirs for ours, theirs in c.data.columns.items() if theirs}}
    if not c.data.source.startswith("mame:"):
        return {}
    is_small = not c.view.pixels and max(c.view.resize or 0, c.view.eval_resize or 0) <= 256
    version = c.version or ("R65k-FS" if is_small else "R360k-VS")  # the copy of 256 x 256 serves R65k-FS alone
    return dict(toy=c.data.toy, allow_missing=c.data.allow_missing, version=version)


def open_splits(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, images.Images]:
    """The three splits; pictures set aside are listed in bad_records.jsonl, and every count in the report."""
    options = source_options(c)
    splits = {split: images.open(c.data.source, split=split, **options) for split in SPLITS}
    records.write_bad([bad for part in splits.values() for bad in part.bad], str(workdir / "bad_records.jsonl"))
    counts = {f"{s}: {name}": n for s, part in splits.items() for name, n in part.counts.items()}
    counts |= image_sources.count_unread(file for part in splits.values() for file in part.unread)
    for one, other in itertools.combinations(SPLITS, 2):
        if num := int(images.copies(splits[other], [splits[one]]).sum()):
            counts[f"{other}: byte-equal to a picture of {one}"] = num
    if num := images.num_in_two_classes(list(splits.values())):
        counts["pictures that are byte-equal to one of another class"] = num
    for split, part in splits.items():
        number = np.bincount(part.labels_N, minlength=len(part.class_names))
        if few := [f"{name} ({num})" for name, num in zip(part.class_names, number) if num < FEW]:
            counts[f"{split}: classes with fewer than {FEW} pictures: {', '.join(few)}"] = len(few)
    files.report_counts(workdir, counts)
    return splits


def network(c: ml_collections.ConfigDict, num_classes: int, view: transforms.View) -> nn.Module:
    model = vision.network(c.network.name, num_classes=num_classes, dtype=c.network.dtype, **c.network.fields)
    if view.is_fixed:
        vision.check_input(model, (int(view.crop), int(view.crop)))
    return model


def remember(
    c: ml_collections.ConfigDict, workdir: pathlib.Path, view: transforms.View, class_names: tuple[str, ...]
) -> None:
    """Leave in image_model.json what focus.py needs to open the network and its pictures again."""
    trained_on = dict(source=c.data.source, options=source_options(c), version=c.version)
    trained_on |= dict(resize=view.resize, pixels=view.pixels, crop=view.crop)
    fields = {**c.network.fields, "dtype": c.network.dtype}
    if jax.process_index() == 0:
        classify.remember(workdir, network=c.network.name, fields=fields, class_names=class_names, images=trained_on)


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


# After training


def export(c: ml_collections.ConfigDict, workdir: pathlib.Path, model: nn.Module, variables: Any) -> None:
    """The best epoch's weights for others, where their network has a published layout."""
    if c.export and type(model).__name__ in layouts.TORCHVISION:
        (workdir / "export").mkdir(exist_ok=True)
        pretrained.save(workdir / "export/model.safetensors", variables, network=model)


compare = mame_page.compare  # the launcher's hook for a sweep's folder


METRICS = {
    "test/copies": ("test pictures that are byte-equal to one of train or val, which the network has seen",),
    "test/accuracy without copies": ("test accuracy on the other pictures", "higher"),
    "test/classes": ("classes with a test picture, over which the mean per class is taken",),
    "*accuracy low": ("lower end of its 95 % interval",),
    "*accuracy high": ("upper end of its 95 % interval",),
    "floor/*": ("accuracy on test without looking at a pixel, from this alone; what the network has to beat",),
    "frame_share/*": ("share of relevance on the outer frame of the picture, a hint that the background decides",),
    "best/step": ("step of the checkpoint with the best mean accuracy per class on the validation split",),
    "best/*": ("its value on the validation split at that step",),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    accuracy, floors = summary["test/accuracy"], {n: x for n, x in summary.items() if n.startswith("floor/")}
    words = f"The network recognises {100 * accuracy:.1f} % of the test pictures (95 % interval "
    words += f"{100 * summary['test/accuracy low']:.1f} to {100 * summary['test/accuracy high']:.1f} %"
    words += f"; it has seen {num:.0f} of them in train or val)" if (num := summary.get("test/copies")) else ")"
    if not floors:
        return f"{words}."
    best = max(floors, key=floors.get)
    words += ", less than" if accuracy < floors[best] else ", more than"
    words += " (not clearly)" if accuracy > floors[best] >= summary["test/accuracy low"] else ""
    return f"{words} the {100 * floors[best]:.1f} % guessed without a pixel ({best.removeprefix('floor/')})."
