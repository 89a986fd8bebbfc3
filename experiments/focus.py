"""Focus: attribution methods rated on mosaics of pictures, and from the best of them, what the model confuses.

Paper:   Arias-Duart et al. 2022, arXiv:2109.15035
Run:     python -m experiments.run --config experiments/focus.py --config.init_from=run:runs/mame --workdir runs/focus
Laptop:  python -m experiments.run --config experiments/focus.py:laptop     (CPU, minutes; `tiny`: seconds)
Own:     python -m experiments.run --config experiments/focus.py:laptop --config.init_from=run:runs/mine, of a run of
         mame.py:laptop --config.data.source=folder:pictures
Digits:  python -m experiments.run --config experiments/focus.py:mnist --config.data.source=npz:mnist.npz
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit
"""

import dataclasses
import difflib
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alignment import files
from alignment.errors import InputError
from alignment.explain import explaining, focus, randomize
from alignment.models import pretrained, vision
from alignment.train import classify, optimizer, sharding
from data import records
from data.pictures import images, mosaic_files, mosaics
from experiments.pages import focus as focus_page
from experiments.pages import focus_study

SETTINGS = ("", "laptop", "tiny", "mnist")
PAPER = ("lrp", "gradcam", "gradcam++", "lime", "smoothgrad", "integrated_gradients")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.init_from = "run:runs/mame"  # run:<workdir of mame.py>; checkpoint:<file.safetensors>; "" trains `baseline`
    c.network = dict(name="resnet18", num_classes=0, fields=ml_collections.ConfigDict())  # of checkpoint: and baseline
    c.data = dict(source="", split="val")  # as images.open takes it, or mosaics:<path>; "" as the run was trained on
    c.fallback = dict(source="", resize=256, crop=224)  # where neither `data` and `tile` nor a run say it
    c.data.options = ml_collections.ConfigDict()  # of images.open
    c.data.columns = dict(filename="", label="", subset="")  # of csv: what the table calls them; "" as the run, or so
    c.tile = dict(resize=0, crop=0)  # pixels; 0 as the run was trained. A network of one fixed size needs tiles of half
    # of it
    c.per_class = 100  # mosaics with each class as the target
    c.outer = "balanced"  # as the paper draws the other tiles, or with_replacement, as Quantus does
    c.methods = PAPER  # keys of explaining.METHODS
    c.options = {method: ml_collections.ConfigDict() for method in explaining.METHODS}  # of each method
    c.options.lime.update(num_samples=1_000, segmenter="")  # "": quickshift, as the paper; slic for small tiles
    c.limit = dict.fromkeys(explaining.METHODS, 0)  # mosaics, spread over the targets; 0 takes all
    c.batch_size = 16  # mosaics over all devices
    c.dtype = "float32"  # of the network's computation
    c.random = dict(methods=PAPER, limit=0)  # R1: all weights redrawn; R3: classes that are not there
    c.cascade = dict(methods=("lrp", "gradcam"), points=9, limit=400)  # R2: layers redrawn from the top
    c.bias = dict(method="", min_count=10, min_share=0.02, num_samples=1_000, pairs=3, tiles=6)  # "": highest median
    c.pictures = 4  # mosaics shown with every method's map
    c.save_maps = False  # float16 shards of every map
    c.save_mosaics = False  # PNG files and a table
    c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1 takes the devices left over
    c.baseline = dict(steps=2_000, batch_size=64, lr=1e-3, eval_every=200, rotate=30.0, flip=True)
    c.baseline.sinks = ("tensorboard",)
    if arg:
        small(c, arg)
    return c


def small(c: ml_collections.ConfigDict, arg: str) -> None:
    """The settings that train a small network on what lies at hand, or rate a small one that `init_from` names."""
    c.init_from = ""
    c.data.split = "test"
    c.fallback.update(source="museum", resize=48, crop=48)
    c.data.options.planted_share = 0.6  # of the borrower's pictures, so that a few mosaics suffice to find it
    c.network.update(name="resnet_small")
    c.per_class = 60
    c.methods = (*PAPER, "input_x_gradient", "guided_backprop")
    c.random.methods = ("lrp", "gradcam")
    c.limit.update(lime=8, smoothgrad=48, integrated_gradients=32)
    c.options.lime.num_samples = 200
    c.cascade.update(points=6, limit=80)
    c.baseline.update(steps=200, batch_size=32, lr=5e-3, eval_every=50, rotate=0.0)
    if arg == "mnist":
        # not 28 pixels: no cell of the last map may lie across two tiles
        c.fallback.update(source="npz:mnist.npz", resize=32, crop=32)
        c.per_class = 100
        c.baseline.update(steps=700, eval_every=175, rotate=10.0, flip=False)
    elif arg == "tiny":
        c.network.update(name="cnn")
        c.network.fields.widths = (4, 8)
        c.fallback.update(resize=16, crop=16)
        c.per_class = 2
        c.methods = ("lrp", "gradcam")
        c.random.methods = ("gradcam",)
        c.batch_size = 8
        c.cascade.update(methods=("gradcam",), points=2, limit=8)
        c.bias.update(min_count=1, min_share=0.0, num_samples=50, pairs=1, tiles=2)
        c.pictures = 1
        c.baseline.update(steps=4, batch_size=8, eval_every=4)


def sweep():
    for name in ("vgg11", "resnet18", "resnet50"):
        yield {"init_from": f"run:runs/mame-{name}"}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    check(c)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh)
    net = classifier(c, workdir, mesh)
    study = focus_study.Study(c, workdir, mesh, net, *mosaics_for(c, net, workdir))
    predicted_N = study.predict()
    focus_study.announce(study)
    trained = {method: study.scored("trained", method) for method in c.methods}
    randomised = {"R1": {}, "R3": {}}
    fresh = randomize.fully(net.variables, study.key("R1"))
    for method in c.random.methods:
        randomised["R1"][method] = study.scored("R1", method, variables=fresh, limit=c.random.limit)
        if study.absent_M is not None:
            randomised["R3"][method] = study.scored("R3", method, explained_M=study.absent_M, limit=c.random.limit)
    curves = focus_study.cascade(study)
    summary = {"accuracy": float((predicted_N == study.labels_N).mean()), "mosaics": float(len(study.plan))}
    for method, found in trained.items():
        numbers = focus.summary(found["focus"])
        summary[f"focus/{method}/median"] = numbers["median"]
        summary[f"focus/{method}/undefined"] = numbers["n_undefined"]
        summary[f"mosaics_per_second/{method}"] = float(found["rate"])
    for test, name in (("R1", "focus_random"), ("R3", "focus_absent")):
        for method, found in randomised[test].items():
            summary[f"{name}/{method}/median"] = focus.summary(found["focus"])["median"]
    return summary | focus_page.write(study, trained, randomised, curves, predicted_N)


# What is rated


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what can be seen to be wrong before anything is read or run."""
    for method in {*c.methods, *c.random.methods, *c.cascade.methods, *([c.bias.method] if c.bias.method else [])}:
        explaining.check_options(method, focus_study.options(c, method), key=0)
    if not c.methods:
        raise InputError(f"methods is empty; name some of {', '.join(explaining.METHODS)}")
    if c.bias.method and c.bias.method not in c.methods:
        raise InputError(f"bias.method={c.bias.method!r} is none of methods={tuple(c.methods)}; add it there")
    kind, _, path = c.init_from.partition(":")
    if c.init_from and (kind not in ("run", "checkpoint") or not path):
        raise InputError(
            f"init_from={c.init_from!r}; it is run:<workdir of mame.py>, checkpoint:<file.safetensors>, or '' to train"
        )
    if not source_of(c) and kind != "run":
        raise InputError("data.source is empty; only run:<workdir> knows its own. Name one, such as folder:<path>")


def source_of(c: ml_collections.ConfigDict) -> str:
    """The pictures that a network which does not know its own is trained on and rated with."""
    return c.data.source or c.fallback.source


def classifier(c: ml_collections.ConfigDict, workdir: pathlib.Path, mesh) -> focus_study.Classifier:
    kind, _, path = c.init_from.partition(":")
    if kind == "checkpoint":
        return from_checkpoint(c, path)
    if not c.init_from:
        path = workdir / "baseline"
        train_baseline(c, path, mesh)
    found = classify.recall(path, mesh, dtype=c.dtype)
    names = tuple(found.class_names)
    return focus_study.Classifier(found.network, found.model, found.variables, names, len(names), found.images)


def from_checkpoint(c: ml_collections.ConfigDict, path: str) -> focus_study.Classifier:
    source = source_of(c)
    names = () if source.startswith("mosaics:") else tuple(open_images(c, source).class_names)
    num_classes = c.network.num_classes or len(names)
    if not num_classes:
        raise InputError("network.num_classes=0; ready-made mosaics do not say how many classes there are: give it")
    model = vision.network(c.network.name, num_classes=num_classes, dtype=c.dtype, **c.network.fields)
    side = 2 * tile_of(c, {})["crop"]
    fresh = jax.jit(model.init)(jax.random.PRNGKey(0), jnp.zeros((1, side, side, 3)))
    variables, report = pretrained.load(path, fresh, network=model)
    if report.skipped:
        raise InputError(
            f"{path} has no head for {num_classes} classes ({', '.join(map(str, report.skipped))}); set "
            "network.num_classes to what it was trained on"
        )
    return focus_study.Classifier(c.network.name, model, variables, names, num_classes, {})


def tile_of(c: ml_collections.ConfigDict, told: dict[str, Any]) -> dict[str, int]:
    """Resize and crop of a tile: the config's, else the run's, else the setting's."""
    told = told if told.get("resize") else c.fallback
    return {name: c.tile[name] or int(told[name]) for name in ("resize", "crop")}


def train_baseline(c: ml_collections.ConfigDict, folder: pathlib.Path, mesh) -> None:
    """A small network on the same source, in a folder of its own; nothing is done where an earlier start has ended."""
    if (folder / "summary.json").is_file():
        return
    source = source_of(c)
    train, val = open_images(c, source, "train"), open_images(c, source, "val")
    fields = dict(c.network.fields)
    model = vision.network(c.network.name, num_classes=len(train.class_names), **fields)
    tile = tile_of(c, {})
    shape = dict(tile, rotate=c.baseline.rotate, flip=c.baseline.flip)
    batches = functools.partial(
        images.batches, shape=shape, batch_size=c.baseline.batch_size, seed=c.seed, **sharding.row_share(mesh)
    )
    told = {"source": source, "options": {"columns": columns_of(c)} if source.startswith("csv:") else {}, **tile}
    classify.remember(folder, network=c.network.name, fields=fields, class_names=train.class_names, images=told)
    _, summary = classify.fit(
        model,
        batches(train, train=True),
        {"valid": batches(val, train=False)},
        mesh,
        folder,
        tx=optimizer.adamw(c.baseline.lr, warmup_steps=c.baseline.steps // 20, total_steps=c.baseline.steps),
        seed=c.seed,
        steps=c.baseline.steps,
        batch_size=c.baseline.batch_size,
        log_every=max(c.baseline.eval_every // 10, 1),
        eval_every=c.baseline.eval_every,
        save_every=c.baseline.eval_every,
        sinks=c.baseline.sinks,
        label="baseline",
    )
    files.write(folder / "summary.json", lambda f: f.write(json.dumps(summary).encode()))


def columns_of(c: ml_collections.ConfigDict) -> dict[str, str]:
    return {ours: theirs for ours, theirs in c.data.columns.items() if theirs}


def open_images(c: ml_collections.ConfigDict, source: str, split: str = "", trained_with=None) -> images.Images:
    """A split of the source; where it is the run's own, with the options that the run opened it with."""
    options = {**(trained_with or {}), **c.data.options}
    if source.startswith("csv:"):
        options["columns"] = {**options.get("columns", {}), **columns_of(c)}
    elif columns_of(c):
        raise InputError(f"data.columns={columns_of(c)} is of csv:<file.csv>, and these pictures are {source}")
    if source.split(":")[0] != "museum":
        options.pop("planted_share", None)
    return images.open(source, split=split or c.data.split, **options)


def mosaics_for(c: ml_collections.ConfigDict, net: focus_study.Classifier, workdir: pathlib.Path):
    """Tiles of bytes [N, Y, X, 3], their labels, which mosaics they make, and what else is known of each."""
    source = c.data.source or net.source or c.fallback.source
    counts = {}
    if source.startswith("mosaics:"):
        ready = mosaic_files.read(source.removeprefix("mosaics:"), num_classes=net.num_classes)
        records.write_bad(ready.set_aside, workdir / "mosaics_set_aside.jsonl")
        vision.check_input(net.model, ready.size)
        tiles_NYXC = mosaic_files.cut(ready)
        index_M4 = np.arange(len(tiles_NYXC), dtype=np.int32).reshape(-1, 4)
        plan = mosaics.Plan(index_M4, ready.tile_label, ready.target)
        names, groups, counts = [name for four in ready.tile_files for name in four], {}, ready.counts
        labels_N = ready.tile_label.ravel()
    else:
        tile = tile_of(c, net.images)
        vision.check_input(net.model, (2 * tile["crop"], 2 * tile["crop"]))
        found = open_images(c, source, trained_with=net.images.get("options") if source == net.source else None)
        check_classes(net, found.class_names, source)
        plan = mosaics.plan(found.labels_N, c.per_class, c.seed, num_classes=net.num_classes, outer=c.outer)
        used = np.unique(plan.tile_index)
        tiles_NYXC, local_M4 = mosaics.tiles(found.read, plan.tile_index, **tile)
        plan = dataclasses.replace(plan, tile_index=local_M4)
        names, labels_N = [str(found.files[i]) for i in used], np.asarray(found.labels_N)[used]
        groups = {name: np.asarray(values)[used] for name, values in found.groups.items()}
        counts = {f"pictures of {c.data.split}": len(found.labels_N), "tiles": len(used), "mosaics": len(plan)}
        counts |= {what: n for what, n in found.counts.items() if what != "pictures"}
    files.report_counts(workdir, counts)
    return tiles_NYXC, labels_N, plan, tuple(names), groups


def check_classes(net: focus_study.Classifier, names, source: str) -> None:
    if net.class_names and tuple(names) != net.class_names:
        wrong = next((n for n in names if n not in net.class_names), names[0] if len(names) else "")
        near = difflib.get_close_matches(str(wrong), net.class_names, 1)
        raise InputError(
            f"{source} has {len(names)} classes and the network {len(net.class_names)}, and they are not the same "
            f"({wrong!r}{f', nearest {near[0]!r}' if near else ''}); give the pictures it was trained to tell apart"
        )


METRICS = {
    "accuracy": ("share of single tiles, outside any mosaic, that the network recognises", "higher"),
    "mosaics": ("number of mosaics explained",),
    "focus/*/undefined": ("mosaics whose map has no positive relevance, so that they have no Focus", "lower"),
    "focus/*": ("median share of positive relevance on the tiles of the explained class; chance is 0.5", "higher"),
    "focus_random/*": ("the same with all weights redrawn; 0.5 is expected of a faithful method",),
    "focus_absent/*": ("the same for a class that the mosaic does not show; 1/3 to 1/2 is expected",),
    "cascade/*": ("median Focus after redrawing that many layers from the top; it should fall to 0.5",),
    "bias/planted_rank": ("place of the planted shortcut among the pairs by lift, 1 at best; 0: not among them",),
}


def headline(summary: dict[str, float | None]) -> str:
    """The page's first sentence."""
    medians = {name.split("/")[1]: m for name, m in summary.items() if name.startswith("focus/") and "median" in name}
    medians = {method: median for method, median in medians.items() if median is not None}
    if not medians:
        return ""
    order = sorted(medians, key=lambda method: -medians[method])
    words = f"{order[0]} puts most of its relevance where the class is: median Focus {medians[order[0]]:.2f}"
    words += f", {order[-1]} least with {medians[order[-1]]:.2f}" if len(order) > 1 else ""
    return f"{words}, where chance is 0.50; the network recognises {100 * summary['accuracy']:.1f} % of single tiles."
