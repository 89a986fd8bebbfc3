"""MAMe: telling the medium of an artwork, at two resolutions, squeezed to a square or in its own shape.

Paper:   Parés et al. 2020, arXiv:2007.13693 (29 mediums, 37,407 pictures of three museums)
Run:     python -m experiments.run --config experiments/mame.py --config.data.source=mame:<folder of the download>
Laptop:  python -m experiments.run --config experiments/mame.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit

Beside every accuracy stands its floor: what a random forest makes of size and museum without seeing a pixel. A sweep
ends with versions.csv: what resolution, shape and both change for each network, on the same test pictures;
`python -m experiments.mame FOLDER` makes it again from what is finished there.

In their own shapes, pictures of one batch have one shape. Where shape goes with the class, batch norm then sees few
classes at a time and its running statistics fit none: compare with a network without it (vgg11, vgg16) before blaming
the shapes.
"""

import csv
import functools
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from alignment import files, intervals
from alignment.errors import InputError
from alignment.evaluation import classification
from alignment.explain import explaining, frame
from alignment.models import layouts, pretrained, vision
from alignment.train import classify, loop, optimizer, sharding
from data import records
from data.pictures import images, mame, transforms
from experiments.launch import workdir as workdirs
from experiments.report import comparison, pictures

SETTINGS = ("", "laptop", "tiny")
SPLITS = ("train", "val", "test")
PREDICTIONS = "predictions.csv"
EFFECTS = (  # versions that differ in one property, or in both
    ("resolution", "R65k-FS", "R360k-FS"),
    ("resolution", "R65k-VS", "R360k-VS"),
    ("shape", "R65k-FS", "R65k-VS"),
    ("shape", "R360k-FS", "R360k-VS"),
    ("both", "R65k-FS", "R360k-VS"),
)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.data = dict(source="mame:data/mame")  # any source of data/pictures/images.py
    c.data.update(toy=False, allow_missing=False)  # of mame: its smaller table; go on without pictures not there
    c.data.update(per_class=0)  # of museum: pictures of each class; 0: 100 for train, 40 for val and test
    c.data.columns = dict(filename="", label="", subset="")  # of csv: what the table calls them; "": so
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
    c.data.source = "museum"
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
        images.batches,
        shape=view,
        batch_size=batch_size,
        num_workers=c.num_workers,
        mask_name="mask" if c.masked_pool else "real",
        **sharding.row_share(mesh),
    )
    held = {split: batches_fn(found[split], train=False) for split in ("val", "test")}
    state, summary = classify.fit(
        model,
        batches_fn(found["train"], train=True, seed=c.seed),
        {"valid": held["val"]},
        mesh,
        workdir,
        tx=optimizer.amsgrad(c.lr or (1e-5 if c.network.name.startswith("vgg") else 1e-4)),
        seed=c.seed,
        steps=c.epochs * steps_per_epoch,
        batch_size=batch_size,
        select="valid",
        variables=start(c, model, view, workdir),
        accumulate=c.accumulate,
        log_every=c.loop.log_every,
        eval_every=c.loop.eval_epochs * steps_per_epoch,
        save_every=c.loop.save_epochs * steps_per_epoch,
        keep=c.loop.keep,
        sinks=c.sinks,
    )
    variables = classify.variables(state)
    whole = sharding.to_host(variables)
    seen = classify.predict(model, variables, held["test"], mesh)
    if jax.process_index() == 0:
        export(c, workdir, model, whole)
        summary |= judge(c, workdir, found, seen)
        summary |= explain(c, workdir, found["test"], view, model, whole, seen)
    return summary


# What goes in


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what can be seen to be wrong before anything is read."""
    if c.epochs < 1:
        raise InputError(f"epochs={c.epochs} must be at least 1")
    for name in ("eval_epochs", "save_epochs"):
        if c.loop[name] < 1:
            raise InputError(f"loop.{name}={c.loop[name]} must be at least 1, in epochs")
    if min(c.floor.trees, c.floor.seeds) < 1:
        raise InputError(f"floor={dict(c.floor)}: trees and seeds must be at least 1")
    if any(c.data.columns.values()) and not c.data.source.startswith("csv:"):
        raise InputError(f"data.columns={dict(c.data.columns)} is of csv:<file.csv>, and data.source={c.data.source!r}")
    for method in c.explain.methods:
        explaining.check_options(method, {}, key=0)
        if method == "attention_rollout" and not c.network.name.startswith("vit"):
            raise InputError(f"explain.methods names {method}, which reads attention, and {c.network.name} has none")
    if c.explain.errors < 0 or c.explain.pictures < 0:
        raise InputError(f"explain={dict(c.explain)}: errors and pictures must not be negative")


def view_of(c: ml_collections.ConfigDict) -> transforms.View:
    if not c.version:
        return transforms.view_of(c.view)
    kept = dict(rotate=c.view.rotate, flip=c.view.flip)
    return transforms.View(**mame.shape(c.version, replicate_release_bug=c.replicate_release_bug), **kept)


def source_options(c: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `images.open` is told beside the source and the split."""
    if c.data.source == "museum":
        return {"per_class": c.data.per_class}
    if c.data.source.startswith("csv:"):
        return {"columns": {ours: theirs for ours, theirs in c.data.columns.items() if theirs}}
    if not c.data.source.startswith("mame:"):
        return {}
    is_small = not c.view.pixels and max(c.view.resize, c.view.eval_resize) <= 256
    version = c.version or ("R65k-FS" if is_small else "R360k-VS")  # whether the copy of 256 would do
    return dict(toy=c.data.toy, allow_missing=c.data.allow_missing, version=version)


def open_splits(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, images.Images]:
    """The three splits; what was set aside stands in bad_records.jsonl, and every count in the report."""
    options = source_options(c)
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
    told = dict(source=c.data.source, options=source_options(c), version=c.version)
    told |= dict(resize=view.resize, pixels=view.pixels, crop=view.crop)
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


# What comes out


def export(c: ml_collections.ConfigDict, workdir: pathlib.Path, model: nn.Module, variables: Any) -> None:
    """The best epoch's weights for others, where their network has a published layout."""
    if c.export and type(model).__name__ in layouts.TORCHVISION:
        (workdir / "export").mkdir(exist_ok=True)
        pretrained.save(workdir / "export/model.safetensors", variables, network=model)


def judge(c: ml_collections.ConfigDict, workdir: pathlib.Path, found, seen: classify.Predictions) -> dict[str, float]:
    """Tables and files of the test split's predictions; the numbers of the summary."""
    test, names = found["test"], list(found["test"].class_names)
    labels_N, predicted_N = seen.labels_N, seen.predicted_N
    counts_CC = classification.confusion(labels_N, predicted_N, len(names))
    overall, mean = classification.overall(counts_CC), classification.mean_per_class(counts_CC)
    low, high = intervals.wilson(int(np.trace(counts_CC)), int(counts_CC.sum()))
    mean_low, mean_high = classification.bootstrap(counts_CC, seed=c.seed)
    floors = floors_of(c, found)
    rows = [{"what": c.network.name, "overall": overall, "low": low, "high": high}]
    rows[0] |= {"mean per class": mean, "mean low": mean_low, "mean high": mean_high}
    rows += [{"what": f"without a pixel: {name}", "overall": o, "mean per class": m} for name, (o, m) in floors.items()]
    tables = {
        "accuracy": rows,
        "classes": classification.per_class(counts_CC, names),
        "confusions": classification.top_confusions(counts_CC, names),
    }
    num_classes, groups = len(names), {name: values[seen.index_N] for name, values in test.groups.items()}
    if "museum" in groups:
        tables["museums"] = classification.by_group(labels_N, predicted_N, groups["museum"], num_classes)
    aspect_N, pixels_N = groups["width"] / groups["height"], groups["width"].astype(float) * groups["height"]
    tables["aspect ratio"] = classification.by_quantile(labels_N, predicted_N, aspect_N, num_classes)
    tables["pixels"] = classification.by_quantile(labels_N, predicted_N, pixels_N, num_classes)
    for name, table in tables.items():
        files.write_rows(workdir / f"tables/{name.replace(' ', '_')}.jsonl", table)
    text = json.dumps({**tables, "confusion": counts_CC.tolist(), "class_names": names}, indent=1)
    files.write(workdir / "metrics.json", lambda f: f.write(text.encode()))
    told = zip(np.array(names)[labels_N], np.array(names)[predicted_N], np.array(base_names(test.files))[seen.index_N])
    write_csv(workdir / PREDICTIONS, ["True labels", "Predicted labels", "Filenames"], told)
    write_csv(workdir / "confusion.csv", ["true", *names], ([n, *row] for n, row in zip(names, counts_CC.tolist())))
    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    caption = (
        f"Of each true class, the share that {c.network.name} took for each class ({len(labels_N)} test pictures)."
    )
    pictures.matrix(workdir / "figures/confusion.png", shares_CC, names, caption=caption)
    summary = {"accuracy": overall, "accuracy low": low, "accuracy high": high, "mean_class_accuracy": mean}
    summary |= {"mean_class_accuracy low": mean_low, "mean_class_accuracy high": mean_high}
    summary = {f"test/{name}": value for name, value in summary.items()}
    best = max(floors, key=lambda name: floors[name][0])
    words = f"Test accuracy {overall:.3f} ({low:.3f} to {high:.3f}), mean per class {mean:.3f} ({mean_low:.3f} to "
    words += f"{mean_high:.3f}). Without a pixel: {floors[best][0]:.3f}, from {best.replace('_', ' ')}.\n"
    files.write(workdir / "findings.txt", lambda f: f.write(words.encode()))
    return summary | {f"floor/{name}": o for name, (o, _) in floors.items()}


def floors_of(c: ml_collections.ConfigDict, found) -> dict[str, tuple[float, float]]:
    """(overall, mean per class) on test of what sees no pixel."""
    train, test = found["train"], found["test"]
    num_classes = len(train.class_names)
    floors = {"most frequent class": classification.constant_floor(test.labels_N, num_classes)}
    features = [mame.metadata_features(part) for part in (train, test)]
    if "museum" in features[0]:
        (a, b), (x, y) = (part["museum"] for part in features), (train.labels_N, test.labels_N)
        floors["museum"] = classification.group_floor(x, a, y, b, num_classes)
    options = dict(num_classes=num_classes, trees=c.floor.trees, seeds=range(c.seed, c.seed + c.floor.seeds))
    return floors | classification.metadata_floor(features[0], train.labels_N, features[1], test.labels_N, **options)


def explain(c, workdir: pathlib.Path, test, view, model, variables, seen: classify.Predictions) -> dict[str, float]:
    """The worst errors with their explanations, and how much relevance lies on the frame of the pictures."""
    chosen = worst(seen, c.explain.errors)
    sample = np.linspace(0, len(seen.index_N) - 1, min(c.explain.pictures, len(seen.index_N))).astype(int)
    rows, summary = [[] for _ in chosen], {}
    names = test.class_names
    for place, n in enumerate(chosen):
        picture = shown_as(test, view, int(seen.index_N[n]))
        true, taken = names[seen.labels_N[n]], names[seen.predicted_N[n]]
        rows[place].append((picture, f"{true}\ntaken for {taken}"))
    for method in c.explain.methods:
        maps = explained(c, method, test, view, model, variables, seen, chosen, both=True)
        for place, n in enumerate(chosen):
            for k, what in enumerate(
                (f"{method}: for\n{names[seen.predicted_N[n]]}", f"for\n{names[seen.labels_N[n]]}")
            ):
                rows[place].append((pictures.heat_over(rows[place][0][0], maps[place][k]), what))
        shares = [frame.share(m[0]) for m in explained(c, method, test, view, model, variables, seen, sample)]
        if shares:
            summary[f"frame_share/{method}"] = float(np.nanmean(shares))
    if rows:
        caption = (
            "The test pictures most surely taken for another class; what speaks for the class they were taken for, "
        )
        caption += "and for their own (red for, blue against)."
        pictures.contact_sheet(workdir / "figures/worst_errors.png", rows, caption=caption)
    return summary


def worst(seen: classify.Predictions, num: int) -> np.ndarray:
    """Rows of the errors whose own class was given the least probability, worst first."""
    logits_NC = seen.logits_NC.astype(np.float64)
    own_N = logits_NC[np.arange(len(logits_NC)), seen.labels_N] - np.logaddexp.reduce(logits_NC, axis=1)
    wrong_N = np.flatnonzero(seen.predicted_N != seen.labels_N)
    return wrong_N[np.argsort(own_N[wrong_N], kind="stable")][:num]


def explained(c, method: str, test, view, model, variables, seen, rows_N, *, both: bool = False) -> list[np.ndarray]:
    """Maps [K, Y, X] of some test pictures: for the predicted class, and with `both` for the true one too.

    Pictures of one shape go together; others one at a time, filled up to multiples of 32, so that few programs are
    compiled, with their mask where the network was trained with masks.
    """
    maps, rows_N = [], list(map(int, rows_N))
    num, apply_fn = len(rows_N) if view.is_fixed else 1, masked(model) if has_masks(c, view) else model.apply
    for start in range(0, len(rows_N), max(num, 1)):
        rows = rows_N[start : start + num]
        shown = [shown_as(test, view, int(seen.index_N[n])) for n in rows]
        height, width = shown[0].shape[:2]
        size = (width, height) if view.is_fixed else (-(-width // 32) * 32, -(-height // 32) * 32)
        padded, masks = zip(*(transforms.pad(picture, size) for picture in shown))
        found = {**variables, "mask": np.stack(masks)} if has_masks(c, view) else variables
        x_NYXC = classify.normalise(np.stack(padded), np.stack(masks))
        targets_NK = np.stack([seen.predicted_N[rows], seen.labels_N[rows]], axis=1)[:, : 2 if both else 1]
        options = dict(method=method, key=jax.random.PRNGKey(c.seed))
        whole_NKYX = np.asarray(explaining.explain(apply_fn, found, x_NYXC, targets_NK, **options))
        for mask_YX, map_KYX in zip(masks, whole_NKYX):
            rows_Y, columns_X = mask_YX.any(1), mask_YX.any(0)
            maps.append(map_KYX[:, rows_Y][:, :, columns_X])
    return maps


def has_masks(c: ml_collections.ConfigDict, view: transforms.View) -> bool:
    return c.masked_pool and not view.is_fixed


def shown_as(test: images.Images, view: transforms.View, i: int) -> np.ndarray:
    """What the network sees of test picture i, bytes."""
    size = test.size(i)
    return transforms.apply(test.read(i, at_least=view.resized(size, train=False)), view, rng=None, size=size)


@functools.cache
def masked(model: nn.Module) -> Callable:
    """The network on (variables and `mask` [1, Y, X], images), for images padded alike."""

    def apply_fn(found, x_NYXC):
        mask_NYX = jnp.broadcast_to(found["mask"], x_NYXC.shape[:3])
        return model.apply({k: v for k, v in found.items() if k != "mask"}, x_NYXC, mask_NYX=mask_NYX)

    return apply_fn


def base_names(files: Sequence[str]) -> list[str]:
    """The files without their folders, as the release has them, where that tells them apart."""
    names = [pathlib.PurePath(file).name for file in files]
    return names if len(set(names)) == len(names) else list(files)


def write_csv(path: pathlib.Path, header, rows) -> None:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    files.write(path, lambda f: f.write(out.getvalue().encode()))


# Over runs


def compare(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """versions.csv, and a table of the sweep's report, from the finished runs in a folder.

    Returns:
        A row a network, seed and pair of versions (`EFFECTS`): B's accuracy minus A's, overall and as the mean per
        class, each with a bootstrap interval of 95 % over the test pictures that both have predicted.

    Raises:
        InputError: two runs of one network, version and seed; runs that disagree on a picture's class or share none.
    """
    folder, found = pathlib.Path(folder), {}
    for path in sorted(folder.glob(f"*/{PREDICTIONS}")):
        if workdirs.is_done(path.parent):
            c = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
            runs = found.setdefault((c["network"]["name"], c["seed"]), {})
            if runs.setdefault(c["version"], path) != path:
                raise InputError(f"{path} and {runs[c['version']]} are runs of one network, version and seed; move one")
    rows = []
    for (name, seed), runs in found.items():
        for effect, a, b in EFFECTS:
            if a in runs and b in runs:
                row = {"network": name, "seed": seed, "effect": effect, "A": a, "B": b}
                rows.append(row | difference(runs[a], runs[b]))
    if rows:
        write_csv(folder / "versions.csv", rows[0], (row.values() for row in rows))
        files.write_rows(folder / "tables/versions.jsonl", rows)
    return rows


def difference(first: pathlib.Path, second: pathlib.Path) -> dict[str, float]:
    """The second prediction file's accuracies minus the first's, over the pictures of both."""
    a, b = read_predictions(first), read_predictions(second)
    shared = sorted(set(a) & set(b))
    if not shared:
        raise InputError(f"{first} and {second} share no picture; compare runs of the same data")
    wrong = next((file for file in shared if a[file][0] != b[file][0]), None)
    if wrong is not None:
        raise InputError(f"{wrong} is {a[wrong][0]} in {first} and {b[wrong][0]} in {second}; is the data the same?")
    names = sorted({name for told in (a, b) for file in shared for name in told[file]})
    numbers = {name: k for k, name in enumerate(names)}
    columns = [[numbers[name] for name in column] for column in zip(*((*a[file], b[file][1]) for file in shared))]
    row: dict[str, float] = {"images": len(shared)}
    for measure, label in (("overall", "overall"), ("mean_per_class", "mean per class")):
        told = classification.paired_difference(*columns, len(names), measure=measure)
        row |= {label: told["difference"], f"{label} low": told["low"], f"{label} high": told["high"]}
    return row


def read_predictions(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """File name -> (true, predicted)."""
    with open(path, newline="", encoding="utf-8") as f:
        return {row["Filenames"]: (row["True labels"], row["Predicted labels"]) for row in csv.DictReader(f)}


def main(argv: list[str] | None = None) -> int:
    folders = sys.argv[1:] if argv is None else argv
    if len(folders) != 1 or folders[0].startswith("-"):
        print("usage: python -m experiments.mame FOLDER     (of a sweep; writes versions.csv there)")
        return 2
    try:
        rows = compare(folders[0])
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if not rows:
        print(f"error: {folders[0]} has no two finished runs of a network to compare", file=sys.stderr)
        return 2
    print(f"{pathlib.Path(folders[0]) / 'versions.csv'}: {len(rows)} comparisons")
    if (pathlib.Path(folders[0]) / "sweep.json").is_file():
        print(comparison.compare_sweep(folders[0]))
    return 0


METRICS = {
    "*accuracy low": ("lower end of its 95 % interval",),
    "*accuracy high": ("upper end of its 95 % interval",),
    "floor/*": ("accuracy on test without looking at a pixel, from this alone; what the network has to beat",),
    "frame_share/*": ("share of relevance on the outer frame of the picture, a hint that the background decides",),
    "best/step": ("step of the checkpoint with the best mean accuracy per class on the validation split",),
    "best/*": ("its value on the validation split at that step",),
}


def headline(summary: dict[str, float | None]) -> str:
    """The page's first sentence."""
    accuracy, floors = summary["test/accuracy"], {n: x for n, x in summary.items() if n.startswith("floor/")}
    words = f"The network recognises {100 * accuracy:.1f} % of the test pictures (95 % interval "
    words += f"{100 * summary['test/accuracy low']:.1f} to {100 * summary['test/accuracy high']:.1f} %)"
    if not floors:
        return f"{words}."
    best = max(floors, key=floors.get)
    words += ", less than" if accuracy < floors[best] else ", more than"
    words += " (not clearly)" if accuracy > floors[best] >= summary["test/accuracy low"] else ""
    return f"{words} the {100 * floors[best]:.1f} % guessed without a pixel ({best.removeprefix('floor/')})."


if __name__ == "__main__":
    sys.exit(main())
