"""Focus: attribution methods rated on mosaics of pictures, and from the best of them, what the model confuses.

Paper:   Arias-Duart et al. 2022, arXiv:2109.15035
Run:     python -m experiments.run --config experiments/focus.py --config.init_from=run:runs/mame --workdir runs/focus
Laptop:  python -m experiments.run --config experiments/focus.py:laptop     (CPU, minutes; `tiny`: seconds)
Own:     python -m experiments.run --config experiments/focus.py:laptop --config.init_from=run:runs/mine, of a run of
         mame.py:laptop --config.data.source=folder:pictures
Digits:  python -m experiments.run --config experiments/focus.py:mnist --config.data.source=npz:mnist.npz
Expect:  `laptop`: median Focus of LRP 0.974, of GradCAM 0.958 (0.502 and 0.490 with random weights), the planted bias
         first of 6 shortcuts named; 98 s, commit 1546c4f. `mnist`: LRP 0.872, GradCAM 0.834 (0.505 and 0.502), accuracy
         0.968; 136 s, commit 224df41. Both on two cores of an AMD EPYC
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from ml_collections.config_dict import placeholder

from alignment import files
from alignment.errors import InputError, one_of
from alignment.explain import explaining, lime, randomize, rating
from alignment.models import pretrained, vision
from alignment.train import classify, optimizer, sharding
from data import records
from data.pictures import image_sources, images, mosaic_files, mosaics, planning
from experiments.explanations import networks
from experiments.explanations.study import (
    Classifier,
    MosaicSet,
    Study,
    announce,
    check_classes,
    copies_of_training,
    ready_mosaics,
)
from experiments.launch import checks, groups
from experiments.pages import focus as focus_page
from experiments.pages import focus_bias

SETTINGS = ("", "laptop", "tiny", "mnist")
LEAST = dict.fromkeys(("tile.resize", "tile.crop", "fallback.resize", "fallback.crop", "baseline.eval_every"), 1)
LEAST |= {"per_class": 1, "cascade.points": 1, "bias.num_samples": 1, "pictures": 0}
SPLITS = ("train", "val", "test")
PAPER = ("lrp", "gradcam", "gradcam++", "lime", "smoothgrad", "integrated_gradients")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.init_from = "run:runs/mame"  # run:<workdir of mame.py>; checkpoint:<file.safetensors>; "" trains `baseline`
    c.network = dict(  # of checkpoint: and of the baseline
        name="resnet18",
        num_classes=placeholder(int),  # None: as many as the pictures have
        fields=ml_collections.ConfigDict(),
    )
    c.data = dict(
        source="",  # as images.open takes it, or mosaics:<path>; "" takes the source that the run was trained on
        split="val",
        options=ml_collections.ConfigDict(),  # of images.open
        columns=dict(filename="", label="", subset=""),  # of csv: the table's own names; "" as the run, or these
        leave_out=(),  # names of classes that are neither explained nor shown, such as those without a picture
    )
    c.fallback = dict(  # where neither `data` and `tile` nor a run say it
        source="",
        resize=256,  # pixels
        crop=224,
    )
    c.tile = dict(  # pixels; None as the run was trained. A network of one fixed size needs tiles of half that size
        resize=placeholder(int),
        crop=placeholder(int),
    )
    c.per_class = 100  # mosaics with each class as the target
    c.outer = "balanced"  # as the paper draws the other tiles, or with_replacement, as Quantus does
    c.methods = PAPER  # keys of explaining.METHODS
    c.options = {method: ml_collections.ConfigDict() for method in explaining.METHODS}  # of each method
    c.options.lime.num_samples = 1_000
    c.options.lime.segmenter = ""  # "": quickshift, as the paper; slic for small tiles
    # mosaics that a method explains, spread over the targets; None takes all
    c.limit = {method: placeholder(int) for method in explaining.METHODS}
    c.batch_size = 16  # mosaics over all devices
    c.dtype = "float32"  # of the network's computation
    c.random = dict(  # R1: all weights redrawn; R3: classes that are not there
        methods=PAPER,
        limit=placeholder(int),  # mosaics
    )
    c.cascade = dict(  # R2: layers redrawn from the top
        methods=("lrp", "gradcam"),
        points=9,
        limit=400,  # mosaics
    )
    c.bias = dict(
        method="",  # "": that of the highest median
        min_count=10,  # tiles of a pair
        min_share=0.02,  # of relevance that a tile must draw
        num_samples=1_000,  # of the bootstrap
        pairs=3,  # shortcuts, and confusions, to name
        tiles=6,  # shown of each pair
    )
    c.pictures = 4  # mosaics shown with every method's map
    c.save_maps = False  # float16 shards of every map
    c.save_mosaics = False  # PNG files and a table
    c.mesh = groups.mesh()
    c.baseline = dict(
        steps=2_000,
        batch_size=64,
        lr=1e-3,
        eval_every=200,  # steps
        rotate=30.0,  # degrees, the most
        flip=True,
        sinks=groups.SINKS,
    )
    if arg:
        small(c, arg)
    return c


def small(c: ml_collections.ConfigDict, arg: str) -> None:
    """The settings that train a small network on what lies at hand, or rate a small one that `init_from` names."""
    c.init_from = ""
    c.data.split = "test"
    c.fallback.source = "museum"
    c.fallback.resize = 48
    c.fallback.crop = 48
    c.data.options.planted_share = 0.6  # of the borrower's pictures, so that a few mosaics suffice to find it
    c.network.name = "resnet_small"
    c.per_class = 60
    c.methods = (*PAPER, "input_x_gradient", "guided_backprop")
    c.random.methods = ("lrp", "gradcam")
    c.limit.lime = 8
    c.limit.smoothgrad = 48
    c.limit.integrated_gradients = 32
    c.options.lime.num_samples = 200
    c.cascade.points = 6
    c.cascade.limit = 80
    c.baseline.steps = 200
    c.baseline.batch_size = 32
    c.baseline.lr = 5e-3
    c.baseline.eval_every = 50
    c.baseline.rotate = 0.0
    if arg == "mnist":
        # not 28 pixels: no cell of the last map may lie across two tiles
        c.fallback.source = "npz:mnist.npz"
        c.fallback.resize = 32
        c.fallback.crop = 32
        c.per_class = 100
        c.baseline.steps = 700
        c.baseline.eval_every = 175
        c.baseline.rotate = 10.0
        c.baseline.flip = False
    elif arg == "tiny":
        c.network.name = "cnn"
        c.network.fields.widths = (4, 8)
        c.fallback.resize = 16
        c.fallback.crop = 16
        c.per_class = 2
        c.methods = ("lrp", "gradcam")
        c.random.methods = ("gradcam",)
        c.batch_size = 8
        c.cascade.methods = ("gradcam",)
        c.cascade.points = 2
        c.cascade.limit = 8
        c.bias.min_count = 1
        c.bias.min_share = 0.0
        c.bias.num_samples = 50
        c.bias.pairs = 1
        c.bias.tiles = 2
        c.pictures = 1
        c.baseline.steps = 4
        c.baseline.batch_size = 8
        c.baseline.eval_every = 4


def sweep() -> Iterator[dict[str, Any]]:
    for name in ("vgg11", "resnet18", "resnet50"):
        yield {"init_from": f"run:runs/mame-{name}"}


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    folder = pathlib.Path(workdir)
    check(c)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh)
    net = networks.classifier(c, folder, mesh)
    mosaic_set = mosaics_for(c, net, folder)
    study = Study(
        folder,
        mesh,
        net,
        mosaic_set,
        seed=c.seed,
        batch_size=c.batch_size,
        options=options_for(c, mosaic_set.tiles_NYXC.shape[1:3]),
        limits=dict(c.limit),
        shown=shown_of(c, len(mosaic_set)),
        save_maps=c.save_maps,
    )
    predicted_N = study.predict()
    num_redrawn = randomize.cascade_counts(net.variables, c.cascade.points)
    announce(c, study, len(num_redrawn))
    trained = {method: study.scored("trained", method) for method in c.methods}
    randomised: dict[str, dict] = {"R1": {}, "R3": {}}
    fresh, absent_M, limit = randomize.fully(net.variables, study.key("R1")), study.absent_M, c.random.limit
    for method in c.random.methods:
        randomised["R1"][method] = study.scored("R1", method, variables=fresh, limit=limit)
        if absent_M is not None:
            randomised["R3"][method] = study.scored("R3", method, explained_M=absent_M, limit=limit)
    curves = study.cascade(c.cascade.methods, num_redrawn, c.cascade.limit)
    results = focus_page.Results(trained, randomised, curves, predicted_N)
    return focus_page.summary_of(results, mosaic_set) | leave(c, study, results)


def leave(c: ml_collections.ConfigDict, study: Study, results: focus_page.Results) -> dict[str, float]:
    """Write tables, pictures and findings; returns the bias finder's numbers for the summary."""
    folder, net, mosaic_set = study.workdir, study.net, study.mosaics
    methods = {method: study.options[method] for method in c.methods}
    focus_page.write_tables(folder, results, net, mosaic_set)
    focus_page.write_manifest(folder, net, mosaic_set, seed=c.seed, init_from=c.init_from, methods=methods)
    if c.save_mosaics:
        built = mosaics.assemble(mosaic_set.tiles_NYXC, mosaic_set.plan.tile_index)
        mosaics.write(folder / "mosaics", built, mosaic_set.plan, names=mosaic_set.names)
    focus_page.draw(folder, results, net, mosaic_set, shown=study.shown)
    lines, numbers = focus_bias.biases(
        folder,
        c.bias.method or results.ranked()[0],
        results,
        net,
        mosaic_set,
        maps_fn=study.maps,
        min_count=c.bias.min_count,
        min_share=c.bias.min_share,
        num_samples=c.bias.num_samples,
        num_pairs=c.bias.pairs,
        num_tiles=c.bias.tiles,
        seed=c.seed,
    )
    lines = focus_page.rating_lines(results, net, mosaic_set) + lines
    files.write_text(folder / "findings.txt", "".join(f"{line}\n" for line in lines))
    return numbers


# Settings


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither pictures nor devices to be seen."""
    for method in {*c.methods, *c.random.methods, *c.cascade.methods, *([c.bias.method] if c.bias.method else [])}:
        one_of("method", method, explaining.METHODS)
        explaining.check_options(method, dict(c.options[method]))
    if not c.methods:
        raise InputError(f"methods is empty; name some of {', '.join(explaining.METHODS)}")
    if c.bias.method:
        one_of("bias.method", c.bias.method, c.methods, hint="add it to methods")
    kind, _, path = c.init_from.partition(":")
    if c.init_from and (kind not in ("run", "checkpoint") or not path):
        raise InputError(
            f"init_from={c.init_from!r}; it is run:<workdir of mame.py>, checkpoint:<file.safetensors>, or '' to train"
        )
    if not networks.source_of(c) and kind != "run":
        raise InputError("data.source is empty; only run:<workdir> knows its own. Name one, such as folder:<path>")
    if c.network.num_classes and kind != "checkpoint":
        raise InputError(
            f"network.num_classes={c.network.num_classes} is of checkpoint:<file.safetensors>; with "
            f"init_from={c.init_from!r} the network has the classes of its training"
        )
    if c.data.source.startswith("mosaics:"):
        check_mosaics(c, kind)
    if kind == "run":
        classify.about(path)
    else:
        if kind:
            pretrained.check_file(path)
        vision.network(c.network.name, num_classes=c.network.num_classes or 2, dtype=c.dtype, **c.network.fields)
    source = c.data.source if kind == "run" else networks.source_of(c)
    if source.startswith("mosaics:"):
        mosaic_files.check(source.removeprefix("mosaics:"))
    elif source:
        images.check(source, **networks.options_of(c, source))
    one_of("outer", c.outer, mosaics.OUTER)
    one_of("data.split", c.data.split, SPLITS)
    one_of("options.lime.segmenter", c.options.lime.segmenter, ("", *lime.SEGMENTERS))
    optimizer.adamw(c.baseline.lr)
    checks.check_least(c, LEAST | {f"limit.{method}": 1 for method in c.limit})


def check_mosaics(c: ml_collections.ConfigDict, kind: str) -> None:
    """Refuse with ready-made mosaics what belongs to the planning of mosaics; `kind`: of `init_from`."""
    if not kind:
        raise InputError(
            f"data.source={c.data.source!r}: ready-made mosaics are explained and not trained on; init_from names the "
            "network"
        )
    options = {name: value for name, value in c.data.options.items() if name != "planted_share"}  # of a setting
    unread = {
        "data.leave_out": tuple(c.data.leave_out),
        "data.columns": networks.columns_of(c),
        "data.options": options,
    }
    if kind == "run":  # the network of a checkpoint is set up for the size of the tiles
        unread |= {f"tile.{name}": value for name, value in c.tile.items()}
    for name, value in unread.items():
        if value:
            raise InputError(
                f"{name}={value} is read where mosaics are planned from pictures, and those of "
                f"{c.data.source} are made already; leave it out"
            )


def options_for(c: ml_collections.ConfigDict, tile_size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """The options of each method, with a segmenter for LIME where the config leaves it open."""
    options = {method: dict(c.options[method]) for method in c.options}
    options["lime"]["segmenter"] = options["lime"].get("segmenter") or lime.default_segmenter(*tile_size)
    return options


def shown_of(c: ml_collections.ConfigDict, num_mosaics: int) -> tuple[int, ...]:
    """Mosaics to show: of different targets, and among those that every method rates."""
    if not c.pictures:
        return ()
    fewest = min((c.limit[method] for method in c.methods if c.limit[method] is not None), default=None)
    ids = rating.spread(num_mosaics, fewest)
    return tuple(ids[rating.spread(len(ids), c.pictures)].tolist())


def mosaics_for(c: ml_collections.ConfigDict, net: Classifier, workdir: pathlib.Path) -> MosaicSet:
    """Ready-made mosaics, or those planned from the pictures of a source; their counts go to the report."""
    source = c.data.source or net.source or c.fallback.source
    if source.startswith("mosaics:"):
        return ready_mosaics(source.removeprefix("mosaics:"), net, workdir)
    tile = networks.tile_of(c, net.images)
    vision.check_input(net.model, (2 * tile["crop"], 2 * tile["crop"]))
    pictures = networks.open_images(c, source, run_options=net.images.get("options") if source == net.source else None)
    check_classes(net, pictures.class_names, source)
    plan, tiles_NYXC, local_M4, broken = planning.decodable(
        pictures,
        tile,
        net.num_classes,
        per_class=c.per_class,
        outer=c.outer,
        leave_out=tuple(c.data.leave_out),
        seed=c.seed,
    )
    used = np.unique(plan.tile_index)
    counts = {f"pictures of {c.data.split}": len(pictures.labels_N), "tiles": len(used), "mosaics": len(plan)}
    if broken:
        counts["left out: cannot be decoded"] = len(broken)
        bad = [records.BadRecord(str(pictures.files[i]), 0, reason) for i, reason in broken.items()]
        records.write_bad(bad, str(workdir / "bad_records.jsonl"))
    counts |= {what: n for what, n in pictures.counts.items() if what != "pictures"}
    files.report_counts(workdir, counts | image_sources.count_unread(pictures.unread))
    names = tuple(str(pictures.files[i]) for i in used)
    labels_N = np.asarray(pictures.labels_N)[used]
    plan = dataclasses.replace(plan, tile_index=local_M4)
    trained_with = net.images.get("options", {}) if c.init_from else networks.options_of(c, net.source)
    is_copy_N = copies_of_training(net, pictures, trained_with)
    return MosaicSet(source, tiles_NYXC, labels_N, plan, names, None if is_copy_N is None else is_copy_N[used])


METRICS = {
    "accuracy": ("share of single tiles, outside any mosaic, that the network recognises", "higher"),
    "copies": ("single tiles that are byte-equal to a picture that the network was trained on", "lower"),
    "accuracy without copies": ("the accuracy on the other tiles", "higher"),
    "mosaics": ("number of mosaics explained",),
    "focus/*/undefined": ("mosaics whose map has no positive relevance, so that they have no Focus", "lower"),
    "focus/*": ("median share of positive relevance on the tiles of the explained class; chance is 0.5", "higher"),
    "focus_*/*/undefined": ("the same in the two tests below", "lower"),
    "focus_random/*": ("the same with all weights redrawn; 0.5 is expected of a faithful method",),
    "focus_absent/*": ("the same for a class that the mosaic does not show; 1/3 to 1/2 is expected",),
    "cascade/*": ("median Focus after redrawing that many layers from the top; it should fall to 0.5",),
    "bias/planted_rank": ("place of the planted shortcut among the pairs by lift, 1 at best; 0: not among them",),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    medians = {name.split("/")[1]: m for name, m in summary.items() if name.startswith("focus/") and "median" in name}
    medians = {method: median for method, median in medians.items() if median is not None}
    if not medians:
        return ""
    order = sorted(medians, key=lambda method: -medians[method])
    words = f"{order[0]} puts most of its relevance where the class is: median Focus {medians[order[0]]:.2f}"
    words += f", {order[-1]} least with {medians[order[-1]]:.2f}" if len(order) > 1 else ""
    return f"{words}, where chance is 0.50; the network recognises {100 * summary['accuracy']:.1f} % of single tiles."
