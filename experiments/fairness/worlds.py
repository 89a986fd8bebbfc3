"""From a config's data to tasks for training, for choosing and for testing, whatever they are made of."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from alignment import errors, files
from alignment.errors import InputError
from alignment.fairness import measures, predictors
from data import loader, place_arrays, place_batches, place_tables, place_tasks, places, records
from data.toys import regions as toy

SYNTHETIC = "synthetic"
LAYOUTS = (  # for the message that data are missing
    "data.path takes a table with a row a sample (longitude, latitude, features and the target), a folder with "
    "X_train.npy, y_train.npy and train_id.pickle, one with X.npy and Y.npy, or the tasks of an earlier run; "
    f"{SYNTHETIC} needs no file, and nothing is fetched"
)
TINY_TASKS = 8  # synthetic ones for tests, and for validation, at the setting `tiny`
MOST_QUERY = 256  # query samples of a place in tests, where test_query is None
RINGS = 2  # of cells around a cell whose counts are features, where data.counts.rings is None


@dataclasses.dataclass(frozen=True)
class World:
    """Tasks and what is said of them.

    Args:
        batches_fn: (fold, seed=...) to batches: endless for training, one pass otherwise; takes `batch_size` and the
            part of this process.
        name_fn: (fold, number of a task) -> its name.
        box_fn: (fold, number of a task) -> west, south, east, north; with a place's number, the place's.
        example: one sample, [1, ...].
        class_names: () where numbers are predicted.
        unit: of a quality of numbers, in the target's own units.
    """

    batches_fn: Callable[..., loader.Loader]
    name_fn: Callable[[str, int], str]
    box_fn: Callable[..., places.Box]
    example: np.ndarray
    class_names: tuple[str, ...]
    is_degrees: bool
    unit: float
    digest: str

    @property
    def loss(self) -> str:
        """What the predictor learns from, unless a config says otherwise."""
        if not self.class_names:
            return predictors.SQUARED
        return predictors.LOGISTIC if len(self.class_names) == 2 else predictors.SOFTMAX

    @property
    def measure(self) -> str:
        return measures.ACCURACY if self.class_names else measures.NEG_RMSE


def grid_of(c: ml_collections.ConfigDict) -> places.Grid:
    """The grid, with its own defaults where the config has None."""
    return places.Grid(**{name: value for name, value in c.grid.items() if value is not None})


def is_table(path: str) -> bool:
    """Whether the path is read as a table, and not as a folder of arrays or of tasks."""
    folder = pathlib.Path(path).expanduser()
    folders = (place_arrays.is_arrays, place_arrays.is_grid, place_tasks.is_tasks)
    return path != SYNTHETIC and not any(is_one(folder) for is_one in folders)


def is_folder_of_tasks(path: str) -> bool:
    return place_tasks.is_tasks(pathlib.Path(path).expanduser())


def check_path(path: str) -> None:
    """Refuse a path where nothing lies, and say what may lie there."""
    if is_table(path):
        try:
            records.check(path)
        except InputError as error:
            raise InputError(f"{error}; {LAYOUTS}") from None


def check_target(c: ml_collections.ConfigDict, world: World) -> None:
    """Refuse a measure, a loss or a network that does not fit what is predicted.

    Raises:
        InputError: names the setting and those that fit.
    """
    is_classes = bool(world.class_names)
    what = f"{len(world.class_names)} classes" if is_classes else "a number"
    if c.measure is not None:
        known = measures.OF_CLASSES if is_classes else measures.OF_NUMBERS
        errors.one_of("measure", c.measure, known, hint=f"the target is {what}")
    if c.predictor.loss is not None:
        fit = (predictors.SOFTMAX, predictors.DICE) if is_classes else (predictors.SQUARED,)
        fit = (predictors.LOGISTIC, *fit) if len(world.class_names) == 2 else fit
        errors.one_of("predictor.loss", c.predictor.loss, fit, hint=f"the target is {what}")
    if c.predictor.name == predictors.LSTM and world.example.ndim != 3:
        raise InputError(
            f"predictor.name=lstm reads samples over time, [T,F], and those of {c.data.path} are "
            f"{list(world.example.shape[1:])}; take mlp"
        )


def read(c: ml_collections.ConfigDict, workdir: pathlib.Path) -> places.Samples:
    """The samples of a table or a folder of arrays."""
    return place_tables.read(
        c.data.path,
        place_tables.Columns(**c.data.columns),
        kind=c.data.kind,
        coordinates=c.data.coordinates,
        bad_records_path=str(workdir / "bad_records.jsonl"),
    )


def open_world(c: ml_collections.ConfigDict, workdir: pathlib.Path, samples: places.Samples | None) -> World:
    """The tasks of a config; counts of what was read and left out go to the report.

    Args:
        samples: of `read`; None for synthetic tasks and for a folder of tasks.
    """
    if c.data.path == SYNTHETIC:
        return _synthetic(c, workdir)
    counts: dict[str, int] = {}
    if samples is None:
        folder = pathlib.Path(c.data.path).expanduser()
        samples, regions, counts = place_tasks.read(folder, support=c.support, least_places=grid_of(c).least_places)
    else:
        if c.data.kind == places.COUNTS:
            rings = RINGS if c.data.counts.rings is None else c.data.counts.rings
            samples = places.count_cells(samples, side=c.data.counts.side, rings=rings, seed=c.seed)
        grid = grid_of(c)
        regions, cut = places.cut(samples, grid, least=c.support + c.query)
        regions = places.fold(regions, grid, seed=c.seed)
        counts = dict(samples.counts) | cut
    scaled, unit = places.standardise(samples, regions, seed=c.seed)
    most = max(place_batches.queries(place, c.support) for region in regions for place in region.places)
    most_query = c.test_query or MOST_QUERY
    beyond = [
        place_batches.queries(p, c.support) - most_query for r in regions if r.fold != places.TRAIN for p in r.places
    ]
    counts |= places.facts(regions)
    counts["query samples beyond test_query"] = sum(max(0, number) for number in beyond)
    files.report_counts(workdir, counts)
    if c.data.store:
        place_tasks.write(workdir, scaled, regions, support=c.support, seed=c.seed)
    return _cut(c, scaled, regions, unit, min(most, most_query))


def _cut(c: Any, samples: places.Samples, regions: list[places.Region], unit: float, num_query: int) -> World:
    by_fold = {fold: places.named(regions, fold) for fold in places.FOLDS}
    num_places = max(len(region.places) for region in regions)

    def batches(fold: str, *, seed: int, **more: Any) -> loader.Loader:
        is_train = fold == places.TRAIN
        return place_batches.batches(
            samples,
            by_fold[fold],
            support=c.support,
            query=c.query if is_train else num_query,
            num_places=num_places,
            num_query=c.query if is_train else num_query,
            seed=seed,
            endless=is_train,
            **more,
        )

    def box(fold: str, number: int, place: int | None = None) -> places.Box:
        region = by_fold[fold][number]
        return region.box if place is None else region.places[place].box

    first = by_fold[places.TRAIN][0].places[0].index_N[:1]
    return World(
        batches,
        lambda fold, number: by_fold[fold][number].id,
        box,
        np.asarray(samples.x[first]),
        samples.class_names,
        samples.is_degrees,
        unit,
        samples.digest,
    )


def _synthetic(c: Any, workdir: pathlib.Path) -> World:
    num = {places.TEST: c.synthetic.test_tasks or 200, places.VAL: c.synthetic.val_tasks or 50}
    first = {places.TEST: 0, places.VAL: num[places.TEST], places.TRAIN: num[places.TEST] + num[places.VAL]}
    counts = {"test tasks": num[places.TEST], "validation tasks": num[places.VAL]}
    files.report_counts(workdir, counts | {"training tasks, fresh ones at every step": c.steps * c.batch_size})

    def batches(fold: str, **more: Any) -> loader.Loader:
        return toy.batches(first=first[fold], num_tasks=num.get(fold), support=c.support, query=c.query, **more)

    def box(fold: str, number: int, place: int | None = None) -> places.Box:
        at = number - first[fold]
        return toy.box(at) if place is None else toy.place_box(at, place)

    example = np.zeros((1, toy.FEATURES), np.float32)
    digest = f"synthetic {c.seed} {c.support} {c.query}"
    return World(batches, lambda fold, number: f"region {number}", box, example, ("0", "1"), False, 1.0, digest)


def check_reads(c: ml_collections.ConfigDict) -> None:
    """Refuse settings of the data that a run with this path would not read.

    Raises:
        InputError: names the setting and what reads it.
    """
    path, is_a_table = c.data.path, is_table(c.data.path)
    is_cut = path != SYNTHETIC and not is_folder_of_tasks(path)
    unread: dict[str, Any] = {}
    if not is_a_table:
        unread |= {f"data.columns.{name}": (value, "tables") for name, value in c.data.columns.items()}
        unread["data.coordinates"] = (c.data.coordinates, "tables")
    if not is_cut:
        unread |= {f"grid.{name}": (value, "data that are cut into tiles") for name, value in c.grid.items()}
        unread["data.kind"] = (c.data.kind, "tables and grids")
        if path != SYNTHETIC:
            unread.pop("grid.least_places")
    if path == SYNTHETIC:
        unread["data.store"] = (c.data.store or None, "data of your own")
        unread["test_query"] = (c.test_query, "data of your own")
    else:
        # A run at `tiny` may read other data.
        others = {name: value for name, value in c.synthetic.items() if value != TINY_TASKS}
        unread |= {f"synthetic.{name}": (value, "data.path=synthetic") for name, value in others.items()}
    if c.data.kind == places.COUNTS and not is_a_table:
        raise InputError(f"data.kind=counts reads the positions of a table, and data.path={path!r} is not one")
    if c.data.kind != places.COUNTS:
        unread |= {f"data.counts.{name}": (value, "data.kind=counts") for name, value in c.data.counts.items()}
    for name, (value, reader) in unread.items():
        if value not in (None, ()):
            raise InputError(f"{name}={value!r} is read by {reader} alone, and data.path={path!r}; leave it out")
