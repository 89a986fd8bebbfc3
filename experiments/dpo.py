"""Direct preference optimization, and its relatives, on paired human judgements.

Paper:   Rafailov et al. 2023, arXiv:2305.18290; alignment/preference/losses.py names those of the other losses
Run:     python -m experiments.run --config experiments/dpo.py --config.data.path=pairs.jsonl --workdir runs/dpo
Laptop:  python -m experiments.run --config experiments/dpo.py:laptop   (CPU, minutes; `tiny`: seconds; `short`: a
         file of real pairs, from nothing, minutes)
Expect:  laptop: held-out accuracy 0.971, in 97 s on two cores of an AMD EPYC (commit bfe4bea)
         short, on AlpacaEval's GPT-4 preferences: 0.624 (picking the longer answer: 0.798), in 763 s (8ff160c)
"""

import functools
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.models import attention, decoder, lora
from alignment.preference import losses, metrics, pairs
from alignment.train import adapters, language_model, loop, optimizer, sharding, step, train_state, utilisation
from data.texts import preferences, trees, verdicts
from data.tokens import tokenizer
from experiments.launch import checks, groups, lm, once, phases, planning, references

SETTINGS = ("", "laptop", "short", "tiny")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 2_000
    c.init_from = "hf:Qwen/Qwen2.5-1.5B-Instruct"  # hf:<folder or hub id>, run:<workdir>, or "" for nothing
    c.tokenizer = ""  # a folder, tokenizer.json or .model; "" takes that of init_from, and bytes where there is none
    c.loss = "dpo"  # a key of losses.LOSSES; those in losses.UNPAIRED learn from labelled answers
    c.objective = _objective()
    c.sft_weight = 0.0  # weight of the chosen answer's own negative log-probability per token
    c.length_alpha = 1.0  # LD-DPO: weight of tokens beyond the shorter answer's length, in [0, 1]
    # log-probabilities computed once before training; "online": each step, parameters kept (of an adapter's run, those
    # that it is beside)
    c.reference = "stored"
    c.references = ""  # a folder of stored ones that runs share; "": that of the sweep which the run is in, or none
    c.model = groups.decoder()
    c.adapter = groups.adapter()
    c.compute = groups.compute()
    c.data = _data()
    c.batch = dict(
        batch_size=64,  # pairs over all hosts
        # a row an answer; "shared": a row a pair, which holds one copy of the prompt; "tree": one row for all pairs of
        # a step (on each device, and in each part), which holds every token once
        layout="separate",
        order="shuffled",  # "balanced": steps of nearly equally many tokens; "prompts": the pairs of a prompt together
    )
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = groups.adamw(c, peak_lr=5e-7, warmup_steps=150, b2=0.999)
    c.loop = groups.loop()
    c.sinks = groups.SINKS
    c.mesh = groups.mesh() | {"sequence": 1}  # devices that share the places of a row of prefix trees
    c.pretrain = dict(  # of a policy from nothing, on the pairs' own text, before DPO
        steps=0,
        batch_size=64,
        max_len=1_024,
        peak_lr=3e-4,
        warmup_steps=100,
    )
    c.samples = dict(  # held-out prompts answered before and after
        num=8,
        max_new_tokens=256,
        temperature=0.0,
    )
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        _small(c)
        {"tiny": _tiny, "laptop": _laptop, "short": _short}[arg](c)
    return c


def _objective() -> dict[str, Any]:
    """Keyword arguments of the loss; None takes the loss's own default."""
    return dict(
        beta=0.1,  # larger stays nearer the reference
        **groups.unset(float, "label_smoothing", "gamma", "penalty", "tau", "alpha", "delta"),
        **groups.unset(float, "desirable_weight", "undesirable_weight"),
        **groups.unset(str, "divergence"),
    )


def _data() -> dict[str, Any]:
    """Keyword arguments of `preferences.load`."""
    return dict(
        path="pairs.jsonl",
        heldout_path="",
        split="train",
        heldout_split="",
        heldout_fraction=0.1,
        format="auto",
        chat="auto",
        group_column="",
        limit=config_dict.placeholder(int),  # pairs; None takes all
        max_len=1_024,  # tokens
        max_prompt_len=config_dict.placeholder(int),  # tokens; None takes what the answers leave
        truncation="keep_end",
        columns=groups.columns(
            *("prompt", "chosen", "rejected", "completion", "label", "messages", "conversations"),
            *("output_1", "output_2", "preference", "input", "system", "history", "tools", "answers", "scores"),
        ),
        verdicts=dict(  # the file's own words, with commas between; "" takes the usual ones
            output_1="",  # preferences for the first answer: 1
            output_2="",  # for the second: 2
            desirable="",  # labels: true, 1, yes
            undesirable="",  # false, 0, no
            tie="",  # preferences and labels for neither side, which are counted and not learned from
        ),
    )


def _small(c: ml_collections.ConfigDict) -> None:
    """A policy from nothing, in float32."""
    groups.small_decoder(c)
    c.data.path = "synthetic"


def _tiny(c: ml_collections.ConfigDict) -> None:
    groups.tiny_decoder(c)
    c.data.max_len = 160
    c.batch.batch_size = 8
    c.optimizer.peak_lr = 1e-3
    c.optimizer.warmup_steps = 1
    c.pretrain.steps = 2
    c.pretrain.batch_size = 8
    c.pretrain.max_len = 64
    c.pretrain.peak_lr = 1e-3
    c.pretrain.warmup_steps = 1
    c.samples.num = 2
    c.samples.max_new_tokens = 8


def _laptop(c: ml_collections.ConfigDict) -> None:
    groups.laptop_decoder(c)
    c.steps = 40
    c.objective.beta = 0.3
    c.data.limit = 2_000
    c.data.max_len = 160
    c.batch.batch_size = 32
    c.batch.layout = "shared"
    c.optimizer.peak_lr = 6e-5
    c.optimizer.warmup_steps = 5
    c.loop.log_every = 5
    c.loop.eval_every = 10
    c.loop.save_every = 20
    c.pretrain.steps = 300
    c.pretrain.batch_size = 16
    c.pretrain.max_len = 256
    c.pretrain.peak_lr = 3e-3
    c.pretrain.warmup_steps = 20
    c.samples.max_new_tokens = 80


def _short(c: ml_collections.ConfigDict) -> None:
    """A file of real pairs and a small policy from nothing; give --config.data.path and --config.tokenizer."""
    c.steps = 100
    c.model.num_layers = 4
    c.model.model_dim = 256
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.ffn_dim = 704
    c.compute.unroll = 4
    c.data.path = "pairs.jsonl"
    c.data.max_len = 256
    c.batch.batch_size = 16
    c.batch.layout = "shared"
    c.optimizer.peak_lr = 1e-4
    c.optimizer.warmup_steps = 10
    c.loop.eval_every = 50
    c.loop.save_every = 50
    c.pretrain.steps = 100
    c.pretrain.batch_size = 8
    c.pretrain.max_len = 256
    c.pretrain.peak_lr = 1e-3
    c.pretrain.warmup_steps = 10
    c.samples.num = 4
    c.samples.max_new_tokens = 64


def sweep() -> Iterator[dict[str, Any]]:
    for beta, seed in itertools.product((0.05, 0.1, 0.5), range(3)):
        yield {"objective.beta": beta, "seed": seed}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    losses.check_options(c.loss, {name: value for name, value in c.objective.items() if value is not None})
    errors.one_of("reference", c.reference, ("stored", "online"))
    errors.one_of("batch.layout", c.batch.layout, preferences.LAYOUTS)
    errors.one_of("batch.order", c.batch.order, preferences.ORDERS)
    if c.batch.layout == "tree" and c.compute.attention == "cudnn":
        raise InputError(
            "compute.attention='cudnn' takes one sequence a row, which layout 'tree' does not have; 'expanded' does"
        )
    if c.batch.layout != "tree" and c.compute.attention in attention.EXPANDED:
        raise InputError(
            f"compute.attention={c.compute.attention!r} takes rows of prefix trees, not layout {c.batch.layout!r}; set "
            "batch.layout=tree, or attention=auto"
        )
    if c.references and (c.reference != "stored" or c.loss in losses.REFERENCE_FREE):
        raise InputError(
            f"references={c.references!r} is a store of references, and this run stores none; leave it empty"
        )
    if c.loss in losses.LISTWISE and (c.batch.layout, c.batch.order) != ("tree", "prompts"):
        raise InputError(
            f"loss={c.loss!r} compares all answers of a prompt at once: set batch.layout=tree and batch.order=prompts"
        )
    if c.loss in losses.LISTWISE and (c.sft_weight or c.length_alpha != 1):
        raise InputError(f"loss={c.loss!r} is on lists of answers and reads no sft_weight or length_alpha; unset them")
    verdicts.of(c.data.verdicts)
    lm.check(c)
    lengths = {"the unit of the rows' lengths": trees.UNIT}
    if is_from_nothing(c):
        lengths["pretrain.max_len"] = c.pretrain.max_len
    lm.check_sequence(c, trees="" if c.batch.layout == "tree" else "batch.layout=tree", lengths=lengths)
    checks.call(preferences.check, c.data)


def is_from_nothing(c: ml_collections.ConfigDict) -> bool:
    """Whether DPO begins with a pretraining; what `init_from` names can write already, and would forget how."""
    return c.pretrain.steps > 0 and not c.init_from


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles: DPO's own step, and that of a pretraining before it."""
    lm.check_planned(c)
    network = wanted.network(c, rows_are_plain=c.batch.layout == "separate")
    training = planning.pairs(
        "DPO" if c.loss == "dpo" else c.loss,
        network,
        loss=c.loss,
        objective={name: value for name, value in c.objective.items() if value is not None},
        tx=optimizer.adamw(**c.optimizer),
        batch_size=c.batch.batch_size,
        max_len=c.data.max_len,
        max_prompt_len=c.data.max_prompt_len,
        steps=c.steps,
        layout=c.batch.layout,
        accumulate=c.accumulate,
        adapter=lm.adapter_options(c),
        reference=c.reference,
        sft_weight=c.sft_weight,
        length_alpha=c.length_alpha,
    )
    if not is_from_nothing(c):
        return [training]
    options = dict(c.pretrain)
    steps, batch_size, max_len = (options.pop(name) for name in ("steps", "batch_size", "max_len"))
    before = planning.rows(
        "pretraining",
        network if network.attention in ("blocked", "dense") else network.clone(attention="blocked"),
        tx=optimizer.adamw(**options, total_steps=steps),
        batch_size=batch_size,
        max_len=max_len,
        steps=steps,
        accumulate_key=None,
    )
    return [training, before]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    workdir = pathlib.Path(workdir)
    objective = {name: value for name, value in c.objective.items() if value is not None}
    mesh = sharding.make_mesh(**c.mesh)
    if c.batch.layout != "tree":  # which has as many rows as there are devices and parts, whatever the pairs
        sharding.check_batch(c.batch.batch_size, mesh, c.accumulate)
    tok = lm.load_tokenizer(c)
    train, heldout, counts = once.load_pairs(c, tok, workdir, unpair=c.loss in losses.UNPAIRED)
    lm.check_best(c, len(heldout))
    if c.loss in losses.LISTWISE:  # each part of these is a list
        cut = preferences.lists_cut(train, batch_size=c.batch.batch_size, seed=c.seed)
        counts["prompts whose answers lie across two steps of the first epoch"] = cut
        cut = preferences.lists_cut(heldout, batch_size=c.batch.batch_size)
        counts["held-out prompts whose answers lie across two batches"] = cut
    files.report_counts(workdir, counts)
    if train.label_N is not None and c.loss in losses.PAIRWISE:
        raise InputError(
            f"{c.data.path} holds labelled single answers and loss={c.loss!r} compares two; take one of "
            f"{', '.join(losses.UNPAIRED)}, or a file of pairs"
        )
    rows = dict(rows_are_plain=c.batch.layout == "separate", rows_are_trees=c.batch.layout == "tree")
    model = lm.build(c, tok, workdir, **rows)
    tx = optimizer.adamw(**c.optimizer)
    options = dict(mesh=mesh, sft_weight=c.sft_weight, length_alpha=c.length_alpha, **objective)
    loss_fn = pairs.loss_fn(model, c.loss, **options)
    phases = None
    if c.accumulate > 1 and c.loss in losses.NON_SEPARABLE:  # which compare the answers of the whole batch
        phases = pairs.phases(loss_fn)
    is_fresh = loop.latest_step(workdir) is None
    state, adapter, stored = begin(c, model, tx, tok, (train, heldout), mesh, workdir, is_fresh)
    if adapter is not None:
        loss_fn = lora.loss_fn(loss_fn, adapter)
        phases = phases and (lora.loss_fn(phases[0], adapter), phases[1])
    answers_fn = functools.partial(answers, c, model, tok, heldout)
    if is_fresh:
        files.write_rows(workdir / "before.jsonl", answers_fn(adapters.policy(adapter, state)))

    batches_fn = functools.partial(preferences.batches, **batch_options(c, mesh, model), seed=c.seed)
    scores_reference = c.reference == "online" and c.loss not in losses.REFERENCE_FREE
    flops_fn = utilisation.counter(model, adapter, has_reference=scores_reference)
    tolerance = 1e-4 if c.compute.dtype == "float32" else 5e-3
    state, summary = loop.fit(
        step.build(loss_fn, tx, accumulate=c.accumulate, rate_fn=optimizer.learning_rate, phases=phases),
        state,
        batches_fn(train, extra=_extra(stored[0])),
        {"heldout": loop.evaluator(loss_fn, batches_fn(heldout, endless=False, extra=_extra(stored[1])))},
        mesh,
        workdir,
        steps=c.steps,
        pace=loop.Pace(**c.loop),
        logging=loop.Logging("pairs", c.batch.batch_size, metrics.finish, c.sinks, flops_fn=flops_fn),
        on_first_fn=pairs.check_first(
            c.loss, objective, tolerance=tolerance, has_anchor=bool(c.sft_weight), way_out=_way_out(c)
        ),
    )
    rows = [
        {"prompt": old.pop("prompt"), "before": old.pop("answer"), "after": new["answer"], **old}
        for old, new in zip(files.read_rows(workdir / "before.jsonl"), answers_fn(adapters.policy(adapter, state)))
    ]
    files.write_rows(workdir / "tables/samples.jsonl", rows)
    lm.export(c, workdir, state, model, tok, adapter)
    summary["heldout/pairs"] = len(heldout)
    if len(heldout) and heldout.label_N is None:
        summary["heldout/longer_is_better"] = preferences.longer_is_better(heldout)
    return summary


def batch_options(c: ml_collections.ConfigDict, mesh: Mesh, model: decoder.DecoderLM) -> dict[str, Any]:
    """Keyword arguments of `preferences.batches` that the config, the devices and the attention kernel set."""
    options = {**c.batch, **sharding.row_share(mesh)}
    if c.batch.layout == "tree":  # a row for each device and each accumulated part
        options["num_rows"] = c.accumulate * math.prod(mesh.shape[axis] for axis in sharding.ROWS[0])
        options["expand"] = references.expand_for(model)
    return options


def begin(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tx: optax.GradientTransformation,
    tok: tokenizer.Tokenizer,
    splits: tuple[preferences.Pairs, preferences.Pairs],
    mesh: Mesh,
    workdir: pathlib.Path,
    is_fresh: bool,
) -> tuple[train_state.TrainState, lora.Adapter | None, Sequence[np.ndarray | None]]:
    """The state where DPO begins, its adapter if any, and each split's stored reference log-probabilities."""
    is_stored = c.reference == "stored" and c.loss not in losses.REFERENCE_FREE
    paths = [workdir / f"reference/{name}.npy" for name in ("train", "heldout")]
    has_adapter = lm.adapter_options(c).is_on()
    # a resumed run has its parameters in a checkpoint; only an adapter's base, and a reference that is yet to be
    # computed, need the first ones
    is_needed = is_fresh or has_adapter or (is_stored and not all(path.is_file() for path in paths))
    params = language_model.params(c.init_from if is_needed else "", model, mesh)
    if is_from_nothing(c) and is_needed:  # a finished pretraining trains no further and returns its last parameters
        params = phases.pretrain(c, model, tok, splits, mesh, workdir / "pretrain")
    elif c.pretrain.steps and is_fresh:
        print(f"pretrain.steps={c.pretrain.steps} is left out: {c.init_from!r} is trained already", flush=True)
    adapter = None
    if has_adapter:
        if params is None:
            params = language_model.base_params("", model, mesh, seed=c.seed)
        base_from = "run:pretrain" if is_from_nothing(c) else c.init_from
        adapter, state = lm.begin_adapter(c, model, tx, params, base_from, mesh, workdir)
    else:
        state = train_state.create(model, tx, jnp.zeros((1, 4), jnp.int32), seed=c.seed, mesh=mesh, params=params)
    del params
    if is_stored:
        made_from = {"weights": language_model.digest(c.init_from)}
        if c.adapter.init_from:  # the policy starts from it, and so does the reference
            made_from["adapter"] = str(adapters.read_note(workdir)["start"])
        first = adapters.policy(adapter, state)
        folder = references.folder_of(workdir, c.references)
        stored = [
            references.stored(model, first, split, mesh, path, made_from, batch_size=c.batch.batch_size, folder=folder)
            for split, path in zip(splits, paths)
        ]
        return state, adapter, stored
    if adapter is None and c.loss not in losses.REFERENCE_FREE:
        state = train_state.with_reference(state)
    return state, adapter, [None, None]


def _way_out(c: ml_collections.ConfigDict) -> str:
    """What to do where the reference of the first step is not its policy; "" for the usual."""
    if c.adapter.init_from and c.reference == "online":
        return (
            "The reference is the base with the adapter off, and adapter.init_from goes on with an adapter that was "
            "trained already: set reference=stored, which scores the policy as it starts"
        )
    return ""


def answers(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    heldout: preferences.Pairs,
    params: Any,
) -> list[dict[str, str]]:
    """What the policy writes for the first held-out prompts, beside what people preferred."""
    num = min(c.samples.num, len(heldout))
    prompts = [heldout.prompt(i) for i in range(num)]
    written = lm.complete(c, model, params, tok, prompts)
    rows = []
    for i in range(num):
        in_data = [tok.decode(heldout.sequence(i, p)[heldout.prompt_len_NP[i, p] :]).strip() for p in (0, 1)]
        row = {"prompt": tok.decode(prompts[i]), "answer": tok.decode(written[i]).strip()}
        if heldout.label_N is None:
            row |= {"chosen": in_data[0], "rejected": in_data[1]}
        else:  # slot 1 holds the answer to another prompt, which only KTO's estimate of the KL reads
            row["desirable" if heldout.label_N[i] else "undesirable"] = in_data[0]
        rows.append(row)
    return rows


def _extra(stored: np.ndarray | None) -> dict[str, np.ndarray] | None:
    return None if stored is None else {"reference": stored}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    accuracy, margin = summary.get("heldout/rewards/accuracies"), summary.get("heldout/rewards/margins")
    words = f"After {summary['steps']:.0f} updates "
    if accuracy is not None:
        words += f"the policy prefers the chosen answer in {100 * accuracy:.1f} % of "
        words += f"{summary['heldout/pairs']:,.0f} held-out pairs"
        words += f", by a reward margin of {margin:.3g} nats" if margin is not None else ""
        longer = summary.get("heldout/baseline/longer")
        words += f" (the longer answer is chosen in {100 * longer:.1f} %)" if longer is not None else ""
    elif margin is not None:
        words += f"desirable answers are rewarded {margin:.3g} nats above undesirable ones on held-out answers"
    else:
        return ""
    fell = summary.get("heldout/displacement/chosen")
    words += f"; in {100 * fell:.1f} % the chosen answer itself became less likely" if fell is not None else ""
    return f"{words}."
