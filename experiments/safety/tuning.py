"""DPO of a target on its own pairs, from the target's weights to the aligned model in the workdir."""

import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh

from alignment import files
from alignment.errors import InputError
from alignment.models import decoder, lora
from alignment.preference import losses, metrics, pairs
from alignment.train import adapters, flops, language_model, loop, optimizer, sharding, step, train_state, utilisation
from data.texts import preferences
from experiments.decoding import models
from experiments.decoding.models import Model
from experiments.launch import lm, planning, references

LAYOUT = "shared"  # both answers of a pair behind one copy of its prompt


def settings() -> dict[str, Any]:
    """The group of a config that says how a target is trained on its pairs."""
    return dict(
        beta=0.1,  # larger stays nearer the target
        label_smoothing=0.0,
        sft_weight=0.0,  # of the chosen answer's own negative log-probability per token, against displacement
        epochs=1.0,  # passes over the pairs
        batch_size=64,  # pairs over all hosts
        accumulate=1,  # parts that a batch is taken in
        max_len=1_024,  # tokens of prompt and answer
        max_prompt_len=512,
        heldout_fraction=0.0,  # of the requests, whose pairs only measure
        peak_lr=1e-6,
        warmup=0.1,  # share of the steps
        schedule="cosine",
        clip_norm=1.0,
    )


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What training leaves beside its checkpoints.

    Attributes:
        summary: of `loop.fit`, with the held-out pairs.
        num_pairs, num_steps, batch_size: trained on, updates, pairs of each.
        num_tokens: of the prompts and answers of one pass.
        num_params: numbers in the model.
        flops: of the matrix products of all updates, and of the reference's log-probabilities; filling counts.
        num_devices, device: that trained, and their kind.
    """

    summary: dict[str, float]
    num_pairs: int
    num_steps: int
    batch_size: int
    num_tokens: int
    num_params: int
    flops: float
    num_devices: int
    device: str


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen; c.tuning is the group of `settings`."""
    t = c.tuning
    losses.check_options("dpo", dict(beta=t.beta, label_smoothing=t.label_smoothing))
    _adamw(t, 10)
    loop.Pace(**c.loop)
    for name, least, end in (("warmup", 0, 1), ("heldout_fraction", 0, 1), ("epochs", 0, math.inf)):
        if not least <= t[name] < end or (name == "epochs" and not t[name]):
            raise InputError(f"tuning.{name}={t[name]} must be {'above' if end > 1 else 'at least'} 0 and below {end}")
    preferences.check(path="synthetic", max_len=t.max_len, max_prompt_len=t.max_prompt_len)
    lm.check_adapter(c)
    language_model.check("", model=models.RANDOM_SIZES, compute=c.compute, export=c.export)
    if c.init_from == models.RANDOM and lm.adapter_options(c).is_on():
        raise InputError(
            f"init_from={models.RANDOM!r} has no weights on disk, to which an adapter could belong; give run:, hf: or "
            "a toy"
        )


def plan(
    c: ml_collections.ConfigDict, wanted: planning.Wanted, name: str, num_pairs: int | None, *, key: str = "tuning"
) -> planning.Training:
    """The stage for the launcher's `--plan`; c is what `align` takes.

    Args:
        num_pairs: that it trains on; None where nobody knows them yet.
        key: of the group of `settings` in the experiment's config.
    """
    t = c.tuning
    steps = None if num_pairs is None else max(1, round(num_pairs * t.epochs / t.batch_size))
    return planning.pairs(
        name,
        wanted.checkpoint(c.init_from, c.compute, rows_are_plain=LAYOUT == "separate"),
        loss="dpo",
        objective=dict(beta=t.beta, label_smoothing=t.label_smoothing),
        sft_weight=t.sft_weight,
        tx=_adamw(t, steps or 1),
        batch_size=t.batch_size,
        max_len=t.max_len,
        max_prompt_len=t.max_prompt_len,
        layout=LAYOUT,
        steps=steps,
        accumulate=t.accumulate,
        accumulate_key=f"{key}.accumulate",
        adapter=lm.adapter_options(c),
    )


def check_devices(c: ml_collections.ConfigDict) -> None:
    """Refuse a batch that does not split over the devices, before anything is answered."""
    sharding.check_batch(c.tuning.batch_size, sharding.make_mesh(**c.mesh), c.tuning.accumulate)


def align(
    c: ml_collections.ConfigDict,
    target: Model,
    pairs_path: pathlib.Path,
    workdir: pathlib.Path,
    counts: dict[str, int],
) -> Tuned:
    """Train on pairs.jsonl and leave checkpoints and `export/hf` in the workdir; goes on where an earlier start ended.

    Args:
        target: with its weights; the policy starts from them, and they are the reference.
        pairs_path: rows of `prompt`, `chosen`, `rejected` and `uuid`.
        counts: receives what was read, cut and dropped.
    """
    mesh, t = sharding.make_mesh(**c.mesh), c.tuning
    train, heldout = _load(c, target, pairs_path, workdir, counts)
    steps = max(1, round(len(train) * t.epochs / t.batch_size))
    tx, model = _adamw(t, steps), _network(c, target, workdir)
    objective = dict(beta=t.beta, label_smoothing=t.label_smoothing)
    loss_fn = pairs.loss_fn(model, "dpo", mesh=mesh, sft_weight=t.sft_weight, **objective)
    state, adapter = _begin(c, model, tx, target, mesh, workdir)
    num_params = _size(target.params)
    batch = dict(batch_size=t.batch_size, layout=LAYOUT)
    stored = [
        references.stored(
            model,
            adapters.policy(adapter, state),
            split,
            mesh,
            workdir / f"reference/{name}.npy",
            {"weights": target.digest},
            batch_size=t.batch_size,
            folder=references.folder_of(workdir, ""),
        )
        for name, split in (("train", train), ("heldout", heldout))
    ]
    if adapter is not None:
        loss_fn = lora.loss_fn(loss_fn, adapter)
    update = step.build(loss_fn, tx, accumulate=t.accumulate, rate_fn=optimizer.learning_rate)
    example = _example(train, stored[0], t.batch_size)
    num_flops = steps * flops.count(update, _shapes(state), example)
    num_flops += (
        len(train)
        / t.batch_size
        * flops.count(
            lambda params, batch: pairs.token_logps(model, params, batch, mesh), _shapes(target.params), example
        )
    )
    options = dict(**batch, **sharding.row_share(mesh))
    state, summary = loop.fit(
        update,
        state,
        preferences.batches(train, seed=c.seed, extra={"reference": stored[0]}, **options),
        {
            "heldout": loop.evaluator(
                loss_fn, preferences.batches(heldout, endless=False, extra={"reference": stored[1]}, **options)
            )
        },
        mesh,
        workdir,
        steps=steps,
        pace=loop.Pace(**c.loop),
        logging=loop.Logging(
            "pairs", t.batch_size, metrics.finish, c.sinks, flops_fn=utilisation.counter(model, adapter)
        ),
        on_first_fn=pairs.check_first(
            "dpo", objective, tolerance=1e-4 if c.compute.dtype == "float32" else 5e-3, has_anchor=bool(t.sft_weight)
        ),
    )
    _export(c, workdir, state, model, target, adapter)
    num_tokens = int(train.starts[-1] - train.trunk_len_N.sum())
    device = mesh.devices.flat[0].device_kind
    sizes = (len(train), steps, t.batch_size, num_tokens, num_params)
    return Tuned(summary, *sizes, num_flops, mesh.devices.size, device)


def _load(c, target, pairs_path, workdir, counts):
    """Pairs to train on, and those of held-out requests."""
    t = c.tuning
    train, heldout, read = preferences.load(
        path=str(pairs_path),
        tokenizer=target.tok,
        heldout_fraction=t.heldout_fraction,
        group_column="uuid",
        chat="always",
        max_len=t.max_len,
        max_prompt_len=t.max_prompt_len,
        seed=c.seed,
        bad_records_path=str(workdir / "bad_pairs.jsonl"),
    )
    unread = "that are not read"  # the columns that say where a pair comes from
    counts |= {f"pairs: {what}": num for what, num in read.items() if not what.endswith(unread)}
    files.report_counts(workdir, counts)
    return train, heldout


def _adamw(t: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    rate = dict(peak_lr=t.peak_lr, schedule=t.schedule, warmup_steps=round(t.warmup * steps), total_steps=steps)
    return optimizer.adamw(**rate, clip_norm=t.clip_norm, b1=0.9, b2=0.999, weight_decay=0.0)


def _network(c: ml_collections.ConfigDict, target: Model, workdir: pathlib.Path) -> decoder.DecoderLM:
    """The target's network as it is trained; architecture and tokenizer are left in the workdir."""
    is_random = target.init_from == models.RANDOM
    sizes = models.RANDOM_SIZES if is_random else {}
    options = dict(rows_are_plain=LAYOUT == "separate", export=c.export, workdir=workdir)
    return language_model.build(
        "" if is_random else target.init_from, target.tok, model=sizes, compute=c.compute, **options
    )


def _begin(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tx: optax.GradientTransformation,
    target: Model,
    mesh: Mesh,
    workdir: pathlib.Path,
) -> tuple[train_state.TrainState, lora.Adapter | None]:
    """The state at step 0, at the target's weights."""
    if target.init_from == models.RANDOM:
        shardings = train_state.param_shardings(model, jnp.zeros((1, 4), jnp.int32), mesh)
        # copies, because training gives the memory of its parameters away
        params = jax.tree.map(lambda leaf, place: jax.device_put(np.asarray(leaf), place), target.params, shardings)
    else:
        params = language_model.params(target.init_from, model, mesh)
    if lm.adapter_options(c).is_on():
        adapter, state = lm.begin_adapter(c, model, tx, params, _place(target.init_from, workdir), mesh, workdir)
        return state, adapter
    example_BT = jnp.zeros((1, 4), jnp.int32)
    return train_state.create(model, tx, example_BT, seed=c.seed, mesh=mesh, params=params), None


def _place(init_from: str, workdir: pathlib.Path) -> str:
    """Where an adapter's base lies; a folder of the workdir by its name, so that both may be moved together."""
    kind, _, name = init_from.partition(":")
    inside = kind == "run" and pathlib.Path(name).parent == workdir
    return f"run:{pathlib.Path(name).name}" if inside else init_from


def _export(c, workdir, state, model, target, adapter):
    """`export/hf` of the aligned model, and `export/peft` where an adapter was trained."""
    is_random = target.init_from == models.RANDOM
    own = ml_collections.ConfigDict(dict(init_from="" if is_random else target.init_from, export=c.export))
    own.adapter = dict(c.adapter)
    if adapter is not None and c.export:
        own.adapter.merge = True
    lm.export(own, workdir, state, model, target.tok, adapter)


def _example(train: preferences.Pairs, reference_NPA: np.ndarray, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch."""
    index = np.arange(batch_size) % len(train)
    num_time, num_answer = preferences.shape(train, layout=LAYOUT)
    batch = preferences.assemble(train, index, layout=LAYOUT, num_time=num_time, num_answer=num_answer)
    return _shapes(batch | {"reference": reference_NPA[index]})


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), tree)


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
