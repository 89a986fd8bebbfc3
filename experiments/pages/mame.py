"""What a run of mame.py leaves behind: tables and findings of the test split, explained errors, versions compared.

Dimensions: N test pictures, K maps of a picture, Y X rows and columns, C channels or classes.
"""

import csv
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alignment import files, intervals
from alignment.errors import InputError
from alignment.evaluation import classification, floors
from alignment.explain import explaining, frame
from alignment.train import classify
from data.pictures import images, mame, transforms
from experiments.launch import workdir as workdirs
from experiments.report import pictures

PREDICTIONS = "predictions.csv"
EFFECTS = (  # versions that differ in one property, or in both
    ("resolution", "R65k-FS", "R360k-FS"),
    ("resolution", "R65k-VS", "R360k-VS"),
    ("shape", "R65k-FS", "R65k-VS"),
    ("shape", "R360k-FS", "R360k-VS"),
    ("both", "R65k-FS", "R360k-VS"),
)


@dataclasses.dataclass(frozen=True)
class Tested:
    """A trained network and what it predicted of the test pictures.

    Attributes:
        network: its name in `vision.network`.
        has_mask: whether it was trained to read the mask of pictures in their own shapes.
        seed: of resampling and of attribution methods that draw.
    """

    network: str
    model: nn.Module
    variables: Any
    view: transforms.View
    has_mask: bool
    test: images.Images
    predictions: classify.Predictions
    seed: int

    def picture(self, n: int) -> np.ndarray:
        """The input that the network got of row n of the predictions, in bytes [Y, X, 3]."""
        i = int(self.predictions.index_N[n])
        size = self.test.size(i)
        picture = self.test.read(i, at_least=self.view.resized(size, train=False))
        return transforms.apply(picture, self.view, rng=None, size=size)


# The test split


def judge(
    workdir: pathlib.Path, tested: Tested, train: images.Images, is_copy_N: np.ndarray, *, trees: int, seeds: int
) -> dict[str, float]:
    """Tables, predictions, the confusion matrix and findings of the test split; the numbers of the summary.

    Args:
        train: the split that the floors learn from.
        is_copy_N: which test pictures the network has seen, as `images.copies` says.
        trees, seeds: size and number of the random forests behind the floors.
    """
    labels_N, predicted_N = tested.predictions.labels_N, tested.predictions.predicted_N
    names = list(tested.test.class_names)
    counts_CC = classification.confusion(labels_N, predicted_N, len(names))
    is_new_N = ~is_copy_N[tested.predictions.index_N]
    row = accuracy(tested.network, counts_CC, seed=tested.seed)
    rows = [row]
    if not is_new_N.all() and is_new_N.any():
        without_CC = classification.confusion(labels_N[is_new_N], predicted_N[is_new_N], len(names))
        rows.append(accuracy(f"{tested.network}, without copies", without_CC, seed=tested.seed))
    floor = floors_of(train, tested.test, trees=trees, seeds=range(tested.seed, tested.seed + seeds))
    pixel_free = [
        {"what": f"without a pixel: {name}", "overall": o, "mean per class": m} for name, (o, m) in floor.items()
    ]
    write_tables(workdir, tested, counts_CC, {"accuracy": [*rows, *pixel_free]})
    best = max(floor, key=lambda name: floor[name][0])
    files.write_text(
        workdir / "findings.txt",
        f"Test accuracy {row['overall']:.3f} ({row['low']:.3f} to {row['high']:.3f}), mean per class "
        f"{row['mean per class']:.3f} ({row['mean low']:.3f} to {row['mean high']:.3f}) over {row['classes']} of "
        f"{len(names)} classes. Without a pixel: {floor[best][0]:.3f}, from {best.replace('_', ' ')}.\n"
        + copies_line(int(np.count_nonzero(~is_new_N)), len(is_new_N), rows[1:]),
    )
    keys = {"overall": "accuracy", "mean per class": "mean_class_accuracy"}
    keys |= {"low": "accuracy low", "high": "accuracy high", "classes": "classes"}
    keys |= {"mean low": "mean_class_accuracy low", "mean high": "mean_class_accuracy high"}
    summary = {f"test/{keys[name]}": float(row[name]) for name in keys}
    summary["test/copies"] = float(np.count_nonzero(~is_new_N))
    if rows[1:]:
        summary["test/accuracy without copies"] = rows[1]["overall"]
    return summary | {f"floor/{name}": o for name, (o, _) in floor.items()}


def accuracy(what: str, counts_CC: np.ndarray, *, seed: int) -> dict[str, Any]:
    """A row of the table: both accuracies with their intervals, pictures, and the classes that have any."""
    low, high = intervals.wilson(int(np.trace(counts_CC)), int(counts_CC.sum()))
    mean_low, mean_high = classification.bootstrap(counts_CC, seed=seed)
    row = {"what": what, "overall": classification.overall(counts_CC), "low": low, "high": high}
    row |= {"mean per class": classification.mean_per_class(counts_CC), "mean low": mean_low, "mean high": mean_high}
    return row | {"images": int(counts_CC.sum()), "classes": classification.num_present(counts_CC)}


def copies_line(num_copies: int, num_pictures: int, without: Sequence[dict[str, Any]]) -> str:
    """How many test pictures the network has seen, and its accuracy on the others."""
    if not num_copies:
        return "No test picture is byte-equal to one of train or val.\n"
    words = f"{num_copies} of the {num_pictures} test pictures are byte-equal to one of train or val"
    words += "".join(f"; the accuracy on the others is {row['overall']:.3f}" for row in without)
    return f"{words}.\n"


def write_tables(workdir: pathlib.Path, tested: Tested, counts_CC: np.ndarray, tables: dict[str, list[dict]]) -> None:
    """The report's tables, metrics.json, predictions.csv, confusion.csv and its picture."""
    test, index_N, names = tested.test, tested.predictions.index_N, list(tested.test.class_names)
    labels_N, predicted_N = tested.predictions.labels_N, tested.predictions.predicted_N
    groups = {name: values[index_N] for name, values in test.groups.items()}
    tables = {
        **tables,
        "classes": classification.per_class(counts_CC, names),
        "confusions": classification.top_confusions(counts_CC, names),
    }
    if "museum" in groups:
        tables["museums"] = classification.by_group(labels_N, predicted_N, groups["museum"], len(names))
    aspect_N, pixels_N = groups["width"] / groups["height"], groups["width"].astype(float) * groups["height"]
    tables["aspect ratio"] = classification.by_quantile(labels_N, predicted_N, aspect_N, len(names))
    tables["pixels"] = classification.by_quantile(labels_N, predicted_N, pixels_N, len(names))
    for name, table in tables.items():
        files.write_rows(workdir / f"tables/{name.replace(' ', '_')}.jsonl", table)
    text = json.dumps({**tables, "confusion": counts_CC.tolist(), "class_names": names}, indent=1)
    files.write_text(workdir / "metrics.json", text)
    columns = (np.array(names)[labels_N], np.array(names)[predicted_N], np.array(base_names(test.files))[index_N])
    files.write_csv(workdir / PREDICTIONS, ["True labels", "Predicted labels", "Filenames"], zip(*columns))
    rows = ([name, *row] for name, row in zip(names, counts_CC.tolist()))
    files.write_csv(workdir / "confusion.csv", ["true", *names], rows)
    shares_CC = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    caption = (
        f"Of each true class, the share that {tested.network} took for each class ({len(labels_N)} test pictures)."
    )
    pictures.matrix(workdir / "figures/confusion.png", shares_CC, names, caption=caption)


def floors_of(
    train: images.Images, test: images.Images, *, trees: int, seeds: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """(overall, mean per class) on test of guesses that read no pixel."""
    num_classes = len(train.class_names)
    floor = {"most frequent class": floors.constant(test.labels_N, num_classes)}
    of_train, of_test = mame.metadata_features(train), mame.metadata_features(test)
    if "museum" in of_train:
        museums = (train.labels_N, of_train["museum"], test.labels_N, of_test["museum"])
        floor["museum"] = floors.by_group(*museums, num_classes)
    return floor | floors.by_metadata(
        of_train, train.labels_N, of_test, test.labels_N, num_classes=num_classes, trees=trees, seeds=seeds
    )


def base_names(files: Sequence[str]) -> list[str]:
    """The files without their folders, as the release has them, where that tells them apart."""
    names = [pathlib.PurePath(file).name for file in files]
    return names if len(set(names)) == len(names) else list(files)


# Explanations


def explain(
    workdir: pathlib.Path, tested: Tested, *, methods: Sequence[str], num_errors: int, num_pictures: int
) -> dict[str, float]:
    """The worst errors with their explanations, and how much relevance lies on the frame of the pictures."""
    predictions, names = tested.predictions, tested.test.class_names
    errors_N = worst(predictions, num_errors)
    num_rows = len(predictions.index_N)
    sample_N = np.linspace(0, num_rows - 1, min(num_pictures, num_rows)).astype(int)
    true = [names[predictions.labels_N[n]] for n in errors_N]
    taken = [names[predictions.predicted_N[n]] for n in errors_N]
    inputs = [tested.picture(n) for n in errors_N]
    sheet = [[(picture, f"{t}\ntaken for {p}")] for picture, t, p in zip(inputs, true, taken)]
    summary = {}
    for method in methods:
        for row, maps_KYX, t, p in zip(sheet, explained(tested, method, errors_N, both=True), true, taken):
            for words, map_YX in zip((f"{method}: for\n{p}", f"for\n{t}"), maps_KYX):
                row.append((pictures.heat_over(row[0][0], map_YX), words))
        shares = [frame.share(maps_KYX[0]) for maps_KYX in explained(tested, method, sample_N)]
        if shares:
            summary[f"frame_share/{method}"] = float(np.nanmean(shares))
    if sheet:
        caption = "The test pictures most surely taken for another class; what speaks for the class they were taken "
        caption += "for, and for their own (red for, blue against)."
        pictures.contact_sheet(workdir / "figures/worst_errors.png", sheet, caption=caption)
    return summary


def worst(predictions: classify.Predictions, num: int) -> np.ndarray:
    """Rows of the errors whose own class got the least probability, worst first."""
    logits_NC = predictions.logits_NC.astype(np.float64)
    own_N = logits_NC[np.arange(len(logits_NC)), predictions.labels_N] - np.logaddexp.reduce(logits_NC, axis=1)
    wrong_N = np.flatnonzero(predictions.predicted_N != predictions.labels_N)
    return wrong_N[np.argsort(own_N[wrong_N], kind="stable")][:num]


def explained(tested: Tested, method: str, rows_N: np.ndarray, *, both: bool = False) -> list[np.ndarray]:
    """Maps [K, Y, X] of some test pictures: for the predicted class, and with `both` for the true one too.

    Pictures of one shape go together; others one at a time, filled up to multiples of 32, so that few programs are
    compiled, with their mask where the network was trained with masks.
    """
    predictions, view = tested.predictions, tested.view
    apply_fn = masked(tested.model) if tested.has_mask else tested.model.apply
    num = max(len(rows_N) if view.is_fixed else 1, 1)
    maps = []
    for start in range(0, len(rows_N), num):
        rows = rows_N[start : start + num]
        inputs = [tested.picture(n) for n in rows]
        height, width = inputs[0].shape[:2]
        size = (width, height) if view.is_fixed else (-(-width // 32) * 32, -(-height // 32) * 32)
        padded, masks = zip(*(transforms.pad(picture, size) for picture in inputs))
        variables = {**tested.variables, "mask": np.stack(masks)} if tested.has_mask else tested.variables
        x_NYXC = classify.normalise(np.stack(padded), np.stack(masks))
        targets_NK = np.stack([predictions.predicted_N[rows], predictions.labels_N[rows]], axis=1)[:, : 1 + both]
        key = jax.random.PRNGKey(tested.seed)
        maps_NKYX = np.asarray(explaining.explain(apply_fn, variables, x_NYXC, targets_NK, method=method, key=key))
        for mask_YX, map_KYX in zip(masks, maps_NKYX):
            rows_Y, columns_X = mask_YX.any(1), mask_YX.any(0)
            maps.append(map_KYX[:, rows_Y][:, :, columns_X])
    return maps


@functools.cache
def masked(model: nn.Module) -> Callable:
    """The network on (variables and `mask` [1, Y, X], images), for images padded alike.

    It is cached because compiled explanations are found again by their `apply_fn`.
    """

    def apply_fn(variables, x_NYXC):
        mask_NYX = jnp.broadcast_to(variables["mask"], x_NYXC.shape[:3])
        return model.apply({k: v for k, v in variables.items() if k != "mask"}, x_NYXC, mask_NYX=mask_NYX)

    return apply_fn


# Over runs


def compare(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """versions.csv, and a table of the sweep's report, from the finished runs in a folder.

    Returns:
        A row a network, seed and pair of versions (`EFFECTS`): B's accuracy minus A's, overall and as the mean per
        class, each with a bootstrap interval of 95 % over the test pictures that both have predicted.

    Raises:
        InputError: two runs of one network, version and seed; runs that disagree on a picture's class or share none.
    """
    folder = pathlib.Path(folder)
    paths: dict[tuple[str, int], dict[str, pathlib.Path]] = {}  # (network, seed) -> version -> predictions
    for path in sorted(folder.glob(f"*/{PREDICTIONS}")):
        if workdirs.is_done(path.parent):
            c = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
            runs = paths.setdefault((c["network"]["name"], c["seed"]), {})
            if runs.setdefault(c["version"], path) != path:
                raise InputError(f"{path} and {runs[c['version']]} are runs of one network, version and seed; move one")
    rows = []
    for (name, seed), runs in paths.items():
        for effect, a, b in EFFECTS:
            if a in runs and b in runs:
                row = {"network": name, "seed": seed, "effect": effect, "A": a, "B": b}
                rows.append(row | difference(runs[a], runs[b]))
    files.write_table(folder, "versions", rows)
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
    names = sorted({name for labels in (a, b) for file in shared for name in labels[file]})
    numbers = {name: k for k, name in enumerate(names)}
    columns = [[numbers[name] for name in column] for column in zip(*((*a[file], b[file][1]) for file in shared))]
    row: dict[str, float] = {"images": len(shared), "classes": len({a[file][0] for file in shared})}
    for measure, label in (("overall", "overall"), ("mean_per_class", "mean per class")):
        gain = classification.paired_difference(*columns, len(names), measure=measure)
        row |= {label: gain["difference"], f"{label} low": gain["low"], f"{label} high": gain["high"]}
    return row


def read_predictions(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """File name -> (true, predicted)."""
    with open(path, newline="", encoding="utf-8") as f:
        return {row["Filenames"]: (row["True labels"], row["Predicted labels"]) for row in csv.DictReader(f)}
