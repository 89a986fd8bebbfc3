"""Meta-Ref: equal quality over places, learned on many areas and carried to new ones by a few fine-tuning steps.

Paper:   Chen et al. 2024, doi 10.1609/aaai.v38i20.30197 (AAAI); a reconstruction, its equations could not be read
Run:     python -m experiments.run --config experiments/meta_ref.py --config.data.path=table.csv
         --config.data.columns.target=COLUMN
Laptop:  python -m experiments.run --config experiments/meta_ref.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, three seeds on 200 new regions: the referee's LF 0.064, MAML's 0.080, lower by 0.016 (95 % interval
         0.013 to 0.020); accuracy 0.742 and 0.749, at a region's worst place 0.615 and 0.583

A tile of a grid is a task, its cells are places. A predictor is fine-tuned on a few samples of each place of a tile
that it has never seen; a referee sets each place's learning rate, and learns in training to make quality even. Beside
it go MAML, MAML with unevenness in its loss, a hand-made referee, and on request pre-training, group DRO, a referee by
Nash bargaining, and the referee with each of its three phases left out. Tiles for testing lie outside the area of the
others.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from alignment import errors
from alignment.errors import InputError
from alignment.fairness import measures, meta, methods, predictors
from alignment.train import sharding
from data import places
from experiments.fairness import audit, testing, training, worlds
from experiments.launch import checks, groups
from experiments.pages import meta_ref as page

SETTINGS = ("", "laptop", "tiny")  # the embedded regions take a laptop minutes, so that "" and laptop are the same
COMPARED = ("maml", "maml_regularised", "hand_made", "meta_ref")
LEAST = dict.fromkeys(("seeds", "support", "query", "test_query", "inner.steps", "inner.test_steps"), 1)
LEAST |= dict.fromkeys(("referee_width", "pace.eval_every", "pace.save_every"), 1)
LEAST |= dict.fromkeys(("synthetic.test_tasks", "synthetic.val_tasks"), 1)
LEAST |= dict.fromkeys(("within", "objective.lambda_p", "objective.lambda_f"), 0)
LEAST |= {"audit.least": 2}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0  # of the first training; also of tiles for validation and of the tests' support samples
    c.seeds = 3  # trainings of each method: seed, seed + 1, ...
    c.data = dict(
        path=worlds.SYNTHETIC,  # made up; a table; a folder of arrays, or of tasks
        columns=dict(  # of a table
            target=placeholder(str),
            longitude=placeholder(str),  # None: by its usual names
            latitude=placeholder(str),
            outcome=placeholder(str),  # 0 or 1, whether somebody's model was right: audited, see `audit`
            features=(),  # (): all others; words are encoded
            ignore=(),
        ),
        kind=placeholder(str),  # classification, regression, counts; None: by the target's values
        coordinates=placeholder(str),  # degrees or projected; None: by the columns' names
        counts=dict(side=placeholder(float), rings=placeholder(int)),  # of data.kind=counts; rings None: 2
        store=False,  # leave the tasks in tasks.csv and tasks/
    )
    c.grid = {  # None: as `places.Grid` has it
        **groups.unset(float, "tile", "test_share", "val_share"),
        **groups.unset(int, "tiles", "cells", "least_places"),
        **groups.unset(str, "test_side"),
    }
    c.synthetic = groups.unset(int, "test_tasks", "val_tasks")  # None: 200 and 50
    c.support = 16  # samples of a place that it is fine-tuned on
    c.query = 32  # others that the outer loss is measured on
    c.test_query = placeholder(int)  # the most that a place is tested on; None: 256
    c.methods = COMPARED
    c.measure = placeholder(str)  # accuracy, f1, neg_rmse, r2; None: accuracy or neg_rmse
    c.zero_division = ""  # of f1: 0 or nanmean; "": 0
    c.partitionings = ((2, 2), (3, 3), (4, 4), (5, 5), (1, 4), (4, 1))  # rows and columns of a tile, for the tests
    c.predictor = dict(
        name=predictors.MLP,  # or lstm, for samples [T,F]
        widths=(16,),
        activation=placeholder(str),  # of mlp: tanh or relu; None: tanh
        init_std=placeholder(float),  # of mlp; None scales kernels by their width
        loss=placeholder(str),  # logistic, softmax, dice, squared; None: by the target
    )
    c.referee_width = 32
    c.inner = dict(
        steps=3,
        test_steps=3,
        rate=placeholder(float),  # alpha; None: 0.5 for classes, 0.05 for numbers
        is_second_order=True,
    )
    c.outer = dict(lr=2e-3, referee_lr=placeholder(float))  # Adam; None: as lr
    c.objective = dict(
        fair_params=placeholder(str),  # what the fairness update moves: phi, theta, both; None: phi
        lambda_p=placeholder(float),  # of the mean loss beside unevenness, for phi; None: 1
        lambda_f=placeholder(float),  # of unevenness beside the mean loss, for theta; None: 0.5
        is_normalised=placeholder(bool),  # factors have mean 1 in a task; None: True
        warmup_steps=placeholder(int),  # outer steps with factors at 1; None: 0
    )
    c.dro_rate = placeholder(float)  # of group_dro, per unit of loss; None: 1
    c.as_released = False  # of hand_made: equal rates, as the released script in effect has them
    c.steps = 1_500  # outer steps
    c.batch_size = 16  # tasks of an outer step
    c.pace = dict(log_every=50, eval_every=100, save_every=500, keep=1)  # outer steps
    c.keep = training.FAIREST  # the lowest LF within `within` of the best quality in validation; or `last`
    c.within = 0.01
    c.audit = dict(partitionings=(), least=placeholder(int))  # of data.columns.outcome: rows and columns of the area
    c.mesh = groups.mesh()
    if arg == "tiny":
        c.seeds = 2
        c.synthetic.test_tasks = worlds.TINY_TASKS
        c.synthetic.val_tasks = worlds.TINY_TASKS
        c.support = 4
        c.query = 8
        c.partitionings = ((2, 2), (1, 4))
        c.predictor.widths = (4,)
        c.referee_width = 4
        c.inner.steps = 2
        c.inner.test_steps = 2
        c.steps = 4
        c.batch_size = 8
        c.pace = dict(log_every=1, eval_every=2, save_every=4, keep=1)
    return c


def sweep() -> Iterator[dict[str, Any]]:
    for lambda_p in (0.0, 0.5, 1.0, 2.0):
        yield {"objective.lambda_p": lambda_p}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    checks.check_least(c, LEAST)
    check_methods(c)
    worlds.check_path(c.data.path)
    worlds.check_reads(c)
    worlds.grid_of(c)
    if c.data.kind is not None:
        errors.one_of("data.kind", c.data.kind, places.KINDS)
    if c.data.kind == places.COUNTS and (c.data.counts.side is None or not c.data.counts.side > 0):
        raise InputError(
            f"data.kind=counts needs data.counts.side, the side of a cell in degrees or in the plane's unit, above 0; "
            f"it is {c.data.counts.side}"
        )
    if c.data.columns.outcome is None and (c.audit.partitionings or c.audit.least is not None):
        raise InputError("audit is read where data.columns.outcome names a column; leave it out, or name one")
    predicts = worlds.is_table(c.data.path) and c.data.kind != places.COUNTS
    if c.methods and predicts and c.data.columns.target is None:
        raise InputError(
            "data.columns.target is not set; name the column that is predicted, or set data.kind=counts, or methods=() "
            "where data.columns.outcome is only audited"
        )
    if not c.methods and c.data.columns.outcome is None:
        raise InputError("methods=() trains nothing, and data.columns.outcome names nothing to audit; set one of both")
    for rows, columns in (*c.partitionings, *c.audit.partitionings):
        if min(rows, columns) < 1 or rows * columns < 2:
            raise InputError(f"partitioning {(rows, columns)}: rows and columns, at least two cells, such as (2, 2)")
    checks.within(c, "(0, inf)", "inner.rate")
    meta.optimizers(c.outer.lr, c.outer.referee_lr or c.outer.lr)
    check_predictor(c)
    if c.measure is not None:
        errors.one_of("measure", c.measure, (*measures.OF_CLASSES, *measures.OF_NUMBERS))
    if c.zero_division:
        errors.one_of("zero_division", c.zero_division, measures.ZERO_DIVISION)
        if c.measure != measures.F1:
            raise InputError(f"zero_division={c.zero_division} is read by measure=f1 alone; leave it out")
    errors.one_of("keep", c.keep, training.KEPT)


def check_methods(c: ml_collections.ConfigDict) -> None:
    """Refuse unknown methods, and settings that none of them reads."""
    checks.check_names(c, "methods", methods.METHODS, least=0)
    for name in c.methods:
        training.rule_of(c, name)
    has_referee = bool(set(c.methods) & set(methods.REFEREED))
    moves_theta = "maml_regularised" in c.methods or (has_referee and c.objective.fair_params in ("theta", "both"))
    reads = dict.fromkeys(("fair_params", "lambda_p", "is_normalised", "warmup_steps"), has_referee)
    reads = {f"objective.{name}": is_read for name, is_read in reads.items()}
    reads |= {"objective.lambda_f": moves_theta, "outer.referee_lr": has_referee}
    reads |= {"dro_rate": "group_dro" in c.methods, "as_released": "hand_made" in c.methods}
    for name, is_read in reads.items():
        value = checks.leaf(c, name)
        if value not in (None, False) and not is_read:
            raise InputError(f"{name}={value!r} is read by none of methods={tuple(c.methods)}; leave it out")


def check_predictor(c: ml_collections.ConfigDict) -> None:
    group = {key: value for key, value in c.predictor.items() if key != "loss" and value is not None}
    predictors.build(group.pop("name"), 1, **group)
    if c.predictor.loss is not None:
        errors.one_of("predictor.loss", c.predictor.loss, predictors.LOSSES)
    for name in ("activation", "init_std"):
        if c.predictor.name == predictors.LSTM and c.predictor[name] is not None:
            raise InputError(f"predictor.{name}={c.predictor[name]} is read by mlp alone; leave it out")


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    folder = pathlib.Path(workdir)
    is_cut = c.data.path != worlds.SYNTHETIC and not worlds.is_folder_of_tasks(c.data.path)
    samples = worlds.read(c, folder) if is_cut else None
    summary: dict[str, float | None] = {}
    if samples is not None and samples.outcome_N is not None:
        summary |= audit.write(folder, samples, partitionings=tuple(c.audit.partitionings), least=c.audit.least)
    if not c.methods:
        return summary
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh)
    world = worlds.open_world(c, folder, samples)
    worlds.check_target(c, world)
    setup = training.Setup(c, world, mesh)
    tested = testing.all_methods(setup, folder)
    return summary | page.write(folder, testing.report(setup, tested))


METRICS = page.METRICS | audit.METRICS


def headline(numbers: Mapping[str, float]) -> str:
    """The page's first sentence."""
    return page.headline(numbers) if any(name.startswith("lf/") for name in numbers) else audit.headline(numbers)
