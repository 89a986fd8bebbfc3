"""The models of a guided run: the base, a reward model for each objective, and the DPO models that they stand beside.

Every model has a folder of the workdir, which is a `run:` source for other experiments, and resumes by itself. A reward
model is an ordinary decoder: its loss is DPO's without a reference, on sums of log-probabilities, so that its
log-probability of the next token is a reward up to the factor beta (Xu et al. 2024, arXiv:2410.08193, Eq. 5).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from alignment import files
from alignment.errors import InputError, within
from alignment.models import decoder, lora, peft_adapters
from alignment.preference import losses, metrics, pairs
from alignment.train import adapters, language_model, loop, optimizer, sharding, step, train_state, utilisation
from data.texts import objectives, preferences
from data.tokens import learning, pieces, tokenizer
from experiments.launch import planning, text_training

BASE, SMALL = "base", "small"  # folders of models from nothing
ALL = "all"  # every objective's pairs together
REWARD_FILE = "beta.json"
STUCK_STEPS, LN2 = 100, math.log(2)
Splits = tuple[preferences.Pairs, preferences.Pairs]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Pairs about one wish.

    Attributes:
        base, reward: training and held-out pairs in the template of the base and of the reward models.
        measuring: pairs in the base's template whose prompts are in none of these; None where nothing is set aside.
    """

    name: str
    base: Splits
    reward: Splits
    measuring: preferences.Pairs | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that lies in memory.

    Attributes:
        params: of a decoder, with an adapter attached where it has one.
        source: what `language_model.params` takes.
        own: the parameters that were trained: all, or an adapter's.
        adapter: None where all were.
        summary: of its training; {} where there was none.
    """

    network: decoder.DecoderLM
    params: Any
    source: str
    own: Any = None
    adapter: lora.Adapter | None = None
    summary: Mapping[str, float] = dataclasses.field(default_factory=dict)


def stage(**settings: Any) -> dict[str, Any]:
    """A stage of training: updates, pairs or rows of a batch, and the keyword arguments of `optimizer.adamw`."""
    return dict(steps=1_000, batch_size=32, peak_lr=5e-4, warmup_steps=100, weight_decay=0.05, b2=0.999) | settings


def check_stage(c: ml_collections.ConfigDict, name: str) -> None:
    """Refuse the settings of a stage that no optimizer or loss could take."""
    settings = {key: c[name][key] for key in ("peak_lr", "warmup_steps", "weight_decay", "b2") if key in c[name]}
    within("[1, inf)", **{f"{name}.{key}": c[name][key] for key in ("steps", "batch_size")})
    optimizer.adamw(total_steps=c[name].steps, **settings)
    if "beta" in c[name]:
        losses.check_options("dpo" if name == "dpo" else "reference_free", {"beta": c[name].beta})


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted, name: str, max_len: int) -> planning.Training:
    """The stage `reward` or `dpo` for the launcher's `--plan`; a reward model is of the base's network unless set."""
    settings = c[name]
    own = ml_collections.ConfigDict(
        dict(init_from=c.init_from, tokenizer=c.tokenizer, model=c.model, compute=c.compute)
    )
    if settings.get("init_from") is not None:
        own.update(init_from=settings.init_from, model=settings.model)
    rates = {key: settings[key] for key in ("peak_lr", "warmup_steps", "weight_decay", "b2")}
    return planning.pairs(
        name,
        wanted.network(own, rows_are_plain=False),
        loss="dpo" if name == "dpo" else "reference_free",
        objective=dict(beta=settings.beta),
        tx=optimizer.adamw(total_steps=settings.steps, **rates),
        batch_size=settings.batch_size,
        max_len=max_len,
        layout="shared",
        steps=settings.steps,
        adapter=adapters.Options(**settings.adapter),
        reference="online",
        accumulate_key=None,
    )


def learns_tokenizer(c: ml_collections.ConfigDict) -> bool:
    return not c.tokenizer and not c.init_from


def load_tokenizer(c: ml_collections.ConfigDict, read: Mapping[str, Any], workdir: pathlib.Path) -> tokenizer.Tokenizer:
    """The config's tokenizer, or that of the base; one that is learned from the pairs stays in the workdir."""
    if not learns_tokenizer(c):
        return tokenizer.load(c.tokenizer or language_model.tokenizer_of(c.init_from))
    path = workdir / "learned/tokenizer.json"
    if not path.is_file():
        texts = (item.prompt_text() + answer for items in read.values() for item in items for answer in item.answers)
        files.write_text(path, learning.byte_pairs(texts, c.learned_tokens))
    return tokenizer.load(str(path))


def load_objectives(
    c: ml_collections.ConfigDict,
    read: Mapping[str, Any],
    tok: tokenizer.Tokenizer,
    workdir: pathlib.Path,
    counts: dict[str, int],
    *,
    measuring_fraction: float = 0.0,
) -> list[Objective]:
    """Each objective's pairs, tokenised in both templates, and behind several all of them together as `ALL`.

    The side of a prompt, trained on, held out or set aside to measure, is the same in all of them.

    Args:
        measuring_fraction: share of the training prompts that is set aside.
    """
    options = dict(
        tokenizer=tok,
        group_column="group",
        heldout_fraction=c.data.heldout_fraction,
        max_len=None if c.data.filter_unit == "chars" else c.data.max_len,
        truncation="drop",
        chat=c.data.chat,
        seed=c.seed,
    )
    every = {ALL: [item for items in read.values() for item in items]} if len(read) > 1 else {}
    out = []
    for name, items in {**read, **every}.items():
        loaded: dict[str, Splits] = {}
        asides: dict[str, preferences.Pairs | None] = {}
        for template in dict.fromkeys((c.templates.base, c.templates.reward)):
            own: dict[str, int] = {}
            path = workdir / f"pairs/{name}{'' if template == c.templates.base else '-reward'}.jsonl"
            objectives.prepare(path, items, template, own)
            train, heldout, more = preferences.load(path=str(path), **options)
            asides[template], train = preferences.set_aside(train, measuring_fraction, seed=c.seed + 1)
            loaded[template] = train, heldout
            for what, number in (own | more).items():
                if what != "records" and number and name != ALL:
                    counts[f"{name}: {what}"] = number
            if not len(heldout):
                raise InputError(f"no pair of {name!r} is held out; set a larger data.heldout_fraction")
        aside = asides[c.templates.base]
        if aside is not None and name != ALL:
            counts[f"{name}: of the training pairs, set aside to measure"] = len(aside)
        out.append(Objective(name, loaded[c.templates.base], loaded[c.templates.reward], aside))
    return out


def check_same_tokens(tok: tokenizer.Tokenizer, other: tokenizer.Tokenizer) -> None:
    """Refuse a reward model whose token ids mean something else than the base's.

    Raises:
        InputError: an id or the merges differ. Further special tokens at the end of one vocabulary do not count:
            they are never chosen, and this is printed.
    """
    tables = [pieces.pieces(one) for one in (tok, other)]
    num = min(map(len, tables))
    way_out = "models that write together need one tokenizer; take a reward.init_from of the base's family"
    for i, (a, b) in enumerate(zip(*tables)):
        if a != b:
            raise InputError(f"token {i} is {a!r} to the base and {b!r} to the reward models; {way_out}")
    if any(piece for table in tables for piece in table[num:]):
        raise InputError(f"the vocabularies have {len(tables[0])} and {len(tables[1])} tokens; {way_out}")
    merges = [json.loads(one.files.get("tokenizer.json", b"{}")).get("model", {}).get("merges") for one in (tok, other)]
    if None not in merges and merges[0] != merges[1]:
        raise InputError(f"the tokenizers have the same tokens and merge them in another order; {way_out}")
    if len(tables[0]) != len(tables[1]):
        print(
            f"tokens from {num} on, which one of the vocabularies lacks, are special and are never chosen", flush=True
        )


def from_nothing(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    splits: Sequence[Splits],
    mesh: Mesh,
    folder: pathlib.Path,
) -> Trained:
    """A model of the pairs' own text, chosen and rejected answers alike."""
    language_model.leave(folder, model, tok)
    steps = c.pretrain.steps
    state, summary = text_training.fit(
        model,
        None,
        [text_training.both_answers(parts, max_len=c.pretrain.max_len, pad_id=tok.pad_id) for parts in zip(*splits)],
        mesh,
        folder,
        tx=optimizer.adamw(peak_lr=c.pretrain.peak_lr, warmup_steps=c.pretrain.warmup_steps, total_steps=steps),
        seed=c.seed,
        steps=steps,
        batch_size=c.pretrain.batch_size,
        pace=loop.Pace(log_every=max(steps // 10, 1)),
        logging=loop.Logging(sinks=(), label=folder.name),
    )
    return Trained(model, state.params, f"run:{folder}", own=state.params, summary=summary)


def tune(
    c: ml_collections.ConfigDict,
    name: str,
    start: Trained,
    splits: Splits,
    tok: tokenizer.Tokenizer,
    mesh: Mesh,
    folder: pathlib.Path,
    *,
    beta: float,
) -> Trained:
    """A model tuned on pairs from a copy of another's weights, all of them or an adapter beside them.

    Args:
        name: the group of settings, `reward` (without a reference) or `dpo`.
        beta: of the loss; the folder says which, because weights of reward models of different ones do not compare.
    """
    settings, model, seed = c[name], start.network, c.seed
    loss = "dpo" if name == "dpo" else "reference_free"
    tx = optimizer.adamw(
        total_steps=settings.steps,
        **{key: settings[key] for key in ("peak_lr", "warmup_steps", "weight_decay", "b2")},
    )
    loss_fn = pairs.loss_fn(model, loss, mesh=mesh, beta=beta)
    language_model.leave(folder, model, tok)
    files.write_json(folder / REWARD_FILE, {"kind": name, "beta": beta})
    weights = jax.tree.map(jnp.copy, start.params)  # an update donates what it is given
    adapter = None
    low_rank = adapters.Options(**settings.adapter)
    if low_rank.is_on():
        adapter, own = adapters.begin(low_rank, model, mesh)
        adapters.write_note(folder, adapter, base=start.source, weights=language_model.digest(start.source), seed=seed)
        state = adapters.create(adapter, tx, weights, seed=seed, mesh=mesh, params=own)
        loss_fn = lora.loss_fn(loss_fn, adapter)
    else:
        example_BT = jnp.zeros((1, 4), jnp.int32)
        state = train_state.create(model, tx, example_BT, seed=seed, mesh=mesh, params=weights)
        state = train_state.with_reference(state) if loss == "dpo" else state
    share = dict(batch_size=settings.batch_size, layout="shared", **sharding.row_share(mesh))
    train, heldout = splits
    state, summary = loop.fit(
        step.build(loss_fn, tx, rate_fn=optimizer.learning_rate),
        state,
        preferences.batches(train, seed=seed, **share),
        {"heldout": loop.evaluator(loss_fn, preferences.batches(heldout, endless=False, **share))},
        mesh,
        folder,
        steps=settings.steps,
        pace=loop.Pace(log_every=max(settings.steps // 10, 1)),
        logging=loop.Logging(
            "pairs",
            settings.batch_size,
            metrics.finish,
            (),
            label=f"{name} {folder.name}",
            flops_fn=utilisation.counter(model, adapter, has_reference=loss == "dpo"),
        ),
    )
    tuned = Trained(
        model, adapters.policy(adapter, state), f"run:{folder}", own=state.params, adapter=adapter, summary=summary
    )
    if name == "reward":
        say_if_stuck(folder.name, settings.steps, beta, summary)
        if c.export:
            export(tuned, start.source, tok, folder, dtype=c.export)
    return tuned


def say_if_stuck(name: str, steps: int, beta: float, summary: Mapping[str, float]) -> None:
    """Warn of a reward model that tells nothing apart."""
    if steps >= STUCK_STEPS and summary.get("heldout/loss", 0.0) > LN2 - 1e-3:
        print(
            f"WARNING: {name}: the held-out loss is still ln 2 or more after {steps} updates; is reward.beta={beta} "
            "too small, or is there nothing to tell the answers apart by?",
            flush=True,
        )


def export(tuned: Trained, start: str, tok: tokenizer.Tokenizer, folder: pathlib.Path, *, dtype: str) -> None:
    """Leave the model as other programs read it: peft's folder of an adapter, Hugging Face's of a model."""
    if tuned.adapter is not None:
        peft_adapters.save(folder / "export/peft", tuned.adapter, tuned.own, base=start.partition(":")[2])
    else:
        language_model.export(folder / "export/hf", tuned.params, tuned.network, tok, dtype=dtype, init_from=start)


def soup(models: Sequence[Trained], weights: Sequence[float]) -> Trained:
    """Rewarded soups (Ramé et al. 2023, arXiv:2306.04488): the weighted mean of what was trained from one start.

    Of adapters, the factors A and B are averaged each, as their authors do.
    """
    first = models[0]
    own = jax.tree.map(lambda *leaves: sum(w * leaf for w, leaf in zip(weights, leaves)), *(m.own for m in models))
    if first.adapter is None:
        return dataclasses.replace(first, params=own, own=own)
    base = {name: value for name, value in first.params.items() if name != "adapter"}
    return dataclasses.replace(first, params=first.adapter.attach(base, own), own=own)
