"""SAFLEX: weights and soft labels for augmented samples, learned from a validation set while a classifier trains.

Paper:   Ding et al. 2024, arXiv:2410.02512 (re-derived: the authors' code is not public)
Run:     python -m experiments.run --config experiments/saflex.py --config.data.source=npz:pathmnist.npz
Laptop:  python -m experiments.run --config experiments/saflex.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  `laptop`, test accuracy of no augmentation, upstream, SAFLEX, training and validation rows: three Gaussians
         with 40 % wrong labels 0.654, 0.602, 0.726, 0.734 (20 seeds); training rows that mislead and 15 validation rows
         that do not 0.628, 0.755, 0.868, 0.792 (3 seeds)

Every run holds the same comparison: no augmentation, the upstream augmentation, the upstream with SAFLEX, and, always,
training on training and validation rows together, since much of what SAFLEX gains is access to validation labels.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from alignment import files
from alignment.augment import policies, saflex
from alignment.errors import InputError, one_of, within
from alignment.train import loop, sharding
from data import records
from data.pictures import images
from experiments.augmentation import arms, batches, networks, presets, tasks
from experiments.launch import checks, groups
from experiments.pages import saflex as page

SETTINGS = ("", "laptop", "tiny")
KINDS = (*tasks.EMBEDDED, "npz", "csv", "folder", "tfds", "mame", "museum", "pairs")
OF_TABLES = ("target", "bins", "subset", "leave_out")
OF_CLASSES = ("shots", "val_shots", "group", "test_groups")  # of pictures and tables
LEAST = dict.fromkeys(("seeds", "steps", "also_seeds", "also_steps", "aug_batch", "val_batch", "data.shots"), 1)
LEAST |= dict.fromkeys(("data.val_shots", "refine.every", "bilevel_steps"), 1)
LEAST |= {"gallery": 0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.seeds = 3  # trained in one program, each with its own draw of rows and of parameters
    c.data = dict(
        source="npz:pathmnist.npz",  # MedMNIST's or any npz, csv, folder, tfds, mame, museum, pairs, or a toy
        side=28,  # pixels that pictures are squeezed to
        shots=placeholder(int),  # training rows of each class; None takes all
        val_shots=placeholder(int),  # validation rows of each class
        target="",  # of a table of numbers: the column to predict; a csv without it lists pictures
        bins=placeholder(int),  # of a numeric target
        subset="",  # of a table: the column that says train, val or test
        leave_out=(),  # of a table: columns that are not read
        group="",  # a column, or of a folder of pictures `folder`: accuracy by group
        test_groups=(),  # groups that are for testing alone
        allow_overlap=False,  # of validation with training or test rows
    )
    c.upstream = dict(
        name="randaugment",  # of pictures or of tables, or `pool`: rows that are there already
        strength=0.5,  # in [0, 1]
        generated="",  # of pool: a source of generated pictures, a folder a class
    )
    c.mode = "add"  # replace: without the clean rows
    c.arms = ("none", "upstream", "saflex", "train_val", "train_val_upstream", "agreement", "weights", "labels")
    c.refine = dict(
        beta=1.0,  # pull towards the upstream's label
        tau=0.1,  # temperature of labels
        gumbel=False,
        penalty="linear",
        labels="soft",
        weights="binary",
        tau_w=0.1,  # temperature of weights="sigmoid"
        scale="batchmax",
        scores="logp",
        mu=0.9,  # momentum of the validation gradient
        subset="all",  # last: the last layer's gradient alone
        precondition=False,
        every=1,  # steps
        warmup=0,  # steps
    )
    c.network = dict(
        name="resnet18",
        widths=(),  # of mlp its hidden layers, of cnn the channels of its blocks; () takes the network's own
    )
    c.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.0)
    c.steps = 5_000
    c.update(groups.unset(int, "batch_size", "aug_batch", "val_batch"))  # None takes all rows
    c.batch_size = 128  # clean rows
    c.aug_batch = 128  # augmented rows
    c.val_batch = 128  # validation rows
    c.bilevel_steps = 30  # outer steps of the exact bilevel problem
    c.also = ()  # toys that are compared beside the data
    c.also_seeds = 3
    c.also_steps = placeholder(int)
    c.gallery = 64  # augmented rows that are looked at
    c.strengths = (0.0, 0.25, 0.5, 0.75, 1.0)  # at which the kept share is measured
    c.loop = groups.loop(log_every=50, eval_every=1_000, save_every=1_000, keep=1)
    c.sinks = groups.SINKS
    c.mesh = dict(data=-1)
    if arg:
        small(c)
    if arg == "tiny":
        c.seeds = 2
        c.steps = 2
        c.arms = arms.NEEDED
        c.bilevel_steps = 1
        c.also = ()
        c.also_seeds = 1
        c.also_steps = 2
        c.gallery = 8
        c.strengths = (0.5,)
        c.loop = groups.loop(log_every=1, eval_every=2, save_every=2, keep=1)
    return c


def small(c: ml_collections.ConfigDict) -> None:
    """The paper's question on toys whose wrong augmented rows are known."""
    c.data.source = "toy"
    c.seeds = 20
    c.upstream.name = "pool"
    c.upstream.strength = 0.0
    c.network.name = "mlp"
    c.optimizer.name = "sgd"
    c.optimizer.lr = 0.1
    c.refine.tau = 0.05
    c.steps = 300
    c.batch_size = None
    c.aug_batch = None
    c.val_batch = None
    c.arms = (*c.arms, "bilevel")
    c.also = ("toy_few", "toy_groups", "toy_generated", "toy_pairs")
    c.loop = groups.loop(log_every=50, eval_every=300, save_every=300, keep=1)


def sweep() -> Iterator[dict[str, Any]]:
    for beta in (0.0, 0.5, 1.0, 2.0):
        for tau in (0.05, 0.1, 0.5, 1.0):
            yield {"refine.beta": beta, "refine.tau": tau}


# Before training ----------------------------------------------------------------------------------------------------


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    checks.check_least(c, LEAST)
    kind = kind_of(c)
    check_data(c, kind)
    check_upstream(c, kind)
    check_refine(c, kind)
    one_of("mode", c.mode, ("add", "replace"))
    one_of("optimizer.name", c.optimizer.name, arms.OPTIMIZERS)
    if not c.optimizer.lr > 0 or c.optimizer.weight_decay < 0:
        raise InputError(f"optimizer={dict(c.optimizer)}: lr must be above 0 and weight_decay at least 0")
    if c.optimizer.weight_decay and c.optimizer.name != "adamw":
        raise InputError(f"optimizer.weight_decay={c.optimizer.weight_decay} is read by adamw alone; leave it out")
    networks.check(kind, c.network.name, fields_of(c), c.data.side)
    check_arms(c, kind)
    for name in c.also:
        one_of("also", name, [name for name in tasks.EMBEDDED if name != c.data.source])
    if list(c.strengths) != sorted(set(c.strengths)) or not all(0 <= s <= 1 for s in c.strengths):
        raise InputError(f"strengths={tuple(c.strengths)}: they rise and lie in [0, 1]")


def kind_of(c: ml_collections.ConfigDict) -> str:
    """Whether the source holds rows, pictures or pairs."""
    source = c.data.source.partition(":")[0]
    one_of(
        "data.source", source, KINDS, hint="behind npz:, csv:, folder:, tfds:, mame: and pairs: stands a path or a name"
    )
    if source in tasks.EMBEDDED:
        return tasks.EMBEDDED[source].kind
    if source == "pairs":
        return tasks.PAIRS
    return tasks.ROWS if source == "csv" and c.data.target else tasks.PICTURES


def check_data(c: ml_collections.ConfigDict, kind: str) -> None:
    source, _, path = c.data.source.partition(":")
    default = get_config().data
    is_table = kind == tasks.ROWS and source == "csv"
    is_toy = source in tasks.EMBEDDED
    unread = [name for name in OF_TABLES if not is_table] + ["side"] * (is_toy or is_table)
    unread += OF_CLASSES if is_toy or source == "pairs" else ()
    unread += ["allow_overlap"] * is_toy
    for name in unread:
        if c.data[name] != default[name]:
            raise InputError(
                f"data.{name}={c.data[name]!r} is not read with data.source={c.data.source!r}; leave it out"
            )
    if c.data.test_groups and not c.data.group:
        raise InputError(f"data.test_groups={tuple(c.data.test_groups)} needs data.group, the column of the groups")
    within("[4, inf)", **{"data.side": c.data.side}, hint=" pixels")
    if is_table:
        if not path or not pathlib.Path(path).expanduser().is_file():
            raise InputError(f"data.source={c.data.source!r}: {path!r} is not there; give the path of the table")
        within("[2, inf)", **{"data.bins": c.data.bins}, hint="; None takes the target's values as classes")
    elif source == "pairs":
        check_pairs_file("data.source", c.data.source)
    elif not is_toy:
        images.check(c.data.source)


def check_pairs_file(name: str, source: str) -> None:
    kind, _, path = source.partition(":")
    if kind != "pairs" or not path or not pathlib.Path(path).expanduser().is_file():
        raise InputError(f"{name}={source!r}: write pairs:<table> with the path of a table of image, text, class")


def check_upstream(c: ml_collections.ConfigDict, kind: str) -> None:
    is_toy = c.data.source in tasks.EMBEDDED
    if kind == tasks.PAIRS and not is_toy:
        if c.upstream.name != tasks.POOL:
            raise InputError(
                f"upstream.name={c.upstream.name!r}: pairs take name=pool and upstream.generated=pairs:FILE"
            )
        check_pairs_file("upstream.generated", c.upstream.generated)
    if is_toy and (c.upstream.name != tasks.POOL or c.upstream.generated):
        raise InputError(f"upstream={dict(c.upstream)}: {c.data.source} has augmented rows of its own; take name=pool")
    if c.upstream.name != tasks.POOL:
        policies.check(c.upstream.name, c.upstream.strength, is_pictures=kind == tasks.PICTURES)
        if c.upstream.generated:
            raise InputError(f"upstream.generated={c.upstream.generated!r} is read with upstream.name=pool alone")
        return
    if c.upstream.strength not in (0.0, 0.5):  # 0.5 where nobody has changed it
        raise InputError(f"upstream.strength={c.upstream.strength} is of a policy, and upstream.name=pool has none")
    if not is_toy and kind != tasks.PAIRS:
        if kind != tasks.PICTURES or not c.upstream.generated:
            raise InputError("upstream.name=pool needs upstream.generated, a source of generated pictures")
        images.check(c.upstream.generated)


def check_refine(c: ml_collections.ConfigDict, kind: str) -> None:
    options = c.refine.to_dict()
    checks.call(saflex.check, options)
    if c.refine.scores == "logits" and kind == tasks.PAIRS:
        raise InputError(
            "refine.scores='logits' is of classes: the loss of a pair has a softmax over its column too, which changes "
            "the best label; leave it at logp"
        )
    default = get_config().refine
    unread = [] if c.refine.weights == "sigmoid" else ["tau_w"]
    if c.refine.labels == "upstream" or c.refine.penalty == "kl":
        unread.append("beta")
    if c.refine.labels == "upstream":
        unread += ["gumbel", "penalty"]
    for name in unread:
        if c.refine[name] != default[name]:
            raise InputError(f"refine.{name}={c.refine[name]!r} is not read with {relevant(options)}; leave it out")
    if c.refine.precondition and c.optimizer.name != "adamw":
        raise InputError("refine.precondition=True needs optimizer.name=adamw, whose state has second moments")
    if c.refine.warmup >= c.steps:
        raise InputError(f"refine.warmup={c.refine.warmup} leaves no step of {c.steps} to refine")


def relevant(options: dict[str, Any]) -> str:
    """What decides which other options are read."""
    return ", ".join(f"{name}={options[name]}" for name in ("labels", "weights", "penalty"))


def check_arms(c: ml_collections.ConfigDict, kind: str) -> None:
    checks.check_names(c, "arms", arms.ARMS)
    if not set(arms.NEEDED) <= set(c.arms):
        raise InputError(f"arms={tuple(c.arms)}: {', '.join(arms.NEEDED)} are part of every comparison")
    needs_whole = c.data.source in ("toy", "toy_few", "toy_groups") and c.optimizer.name == "sgd" and c.mode == "add"
    if "bilevel" in c.arms and not (needs_whole and not c.network.widths and sizes_of(c) == batches.Sizes()):
        raise InputError(
            "arms names bilevel, the exact reference: it needs a toy of rows, a linear network, optimizer.name=sgd, "
            "mode=add and batches of all rows; leave it out"
        )
    if kind == tasks.PAIRS:
        arms.check_pairs(sizes_of(c), 1)


# The run ------------------------------------------------------------------------------------------------------------


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    mesh = sharding.make_mesh(**c.mesh)
    all_tasks = open_tasks(c)
    report(folder, all_tasks)
    pace = loop.Pace(**c.loop)
    studies = []
    for number, task in enumerate(all_tasks):
        setting = setting_of(c) if number == 0 else presets.of(task.name, steps=c.also_steps)
        compared = arms.Comparison(task, setting, c.seed, mesh, pace, tuple(c.sinks))
        names = [name for name in c.arms if arms.fits(name, task, setting)]
        # the run's own curves and checkpoints are those of SAFLEX on its data
        homes = {name: folder / "arms" / task.name / name for name in names}
        if number == 0:
            homes["saflex"] = folder
        studies.append(page.Study(compared, compare(compared, homes)))
    return page.write(folder, studies, gallery=c.gallery, strengths=tuple(c.strengths))


def compare(compared: arms.Comparison, homes: dict[str, pathlib.Path]) -> dict[str, arms.Result]:
    """The arms one after the other, the agreement filter's teacher before it."""
    order = sorted(homes, key=lambda name: (name != "saflex", name == "agreement"))
    results: dict[str, arms.Result] = {}
    for name in order:
        teacher = results[arms.TEACHER].state if name == "agreement" else None
        results[name] = arms.train(compared, name, homes[name], teacher)
    return {name: results[name] for name in homes}


def open_tasks(c: ml_collections.ConfigDict) -> list[tasks.Task]:
    """The data, and the toys beside it."""
    source, _, path = c.data.source.partition(":")
    few = tasks.Few(c.data.shots, c.data.val_shots)
    shared = dict(few=few, num_seeds=c.seeds, seed=c.seed, upstream=c.upstream.name, strength=c.upstream.strength)
    shared |= dict(group=c.data.group, test_groups=tuple(c.data.test_groups), allow_overlap=c.data.allow_overlap)
    if source in tasks.EMBEDDED:
        first = tasks.embedded(source, num_seeds=c.seeds, seed=c.seed)
    elif source == "pairs":
        own = dict(side=c.data.side, allow_overlap=c.data.allow_overlap)
        generated = c.upstream.generated.partition(":")[2]
        first = tasks.pairs(path, generated, num_seeds=c.seeds, seed=c.seed, **own)
    elif kind_of(c) == tasks.ROWS:
        own = dict(bins=c.data.bins, subset=c.data.subset, leave_out=tuple(c.data.leave_out))
        first = tasks.table(path, c.data.target, **own, **shared)
    else:
        first = tasks.pictures(c.data.source, side=c.data.side, generated=c.upstream.generated, options={}, **shared)
    return [first, *(tasks.embedded(name, num_seeds=c.also_seeds, seed=c.seed) for name in c.also)]


def report(folder: pathlib.Path, all_tasks: list[tasks.Task]) -> None:
    """Counts of what was read, and what was set aside."""
    records.write_bad([bad for task in all_tasks for bad in task.bad], str(folder / "bad_records.jsonl"))
    files.report_counts(folder, {what: number for task in all_tasks for what, number in task.counts.items()})


def sizes_of(c: ml_collections.ConfigDict) -> batches.Sizes:
    return batches.Sizes(c.batch_size, c.aug_batch, c.val_batch)


def fields_of(c: ml_collections.ConfigDict) -> dict[str, Any]:
    """The network's fields beside the number of classes."""
    return {"widths": tuple(c.network.widths)} if c.network.widths else {}


def setting_of(c: ml_collections.ConfigDict) -> arms.Setting:
    return arms.Setting(
        network=c.network.name,
        fields=fields_of(c),
        optimizer=c.optimizer.name,
        lr=c.optimizer.lr,
        weight_decay=c.optimizer.weight_decay,
        steps=c.steps,
        sizes=sizes_of(c),
        mode=c.mode,
        refine=c.refine.to_dict(),
        bilevel_steps=c.bilevel_steps,
    )


METRICS = page.METRICS
headline = page.headline
