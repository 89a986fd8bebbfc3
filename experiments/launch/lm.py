"""What the experiments that train a language model share: refusing, training on rows, sampling; see groups.py."""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import optax
from jax.sharding import Mesh

from alignment import files
from alignment.decoding import engine, requests
from alignment.errors import InputError, within
from alignment.models import attention, decoder, lora, peft_adapters
from alignment.preference import losses
from alignment.train import adapters, language_model, loop, next_token, optimizer, sharding, train_state
from data.texts import text
from data.tokens import tokenizer
from experiments.launch import card, checks, streaming


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    requests.check_options(requests.Request((), c.samples.max_new_tokens, c.samples.temperature))
    optimizer.adamw(**c.optimizer)
    loop.Pace(**c.loop)
    check_model(c)
    check_adapter(c)


def check_best(c: ml_collections.ConfigDict, num_heldout: int) -> None:
    """Refuse `loop.best` where nothing is held out by which it could choose."""
    if c.loop.best is not None and not num_heldout:
        raise InputError(
            f"loop.best={c.loop.best!r} chooses by what is held out, which is nothing here; give data.heldout_path or "
            "data.heldout_fraction, or leave loop.best unset"
        )


def check_model(c: ml_collections.ConfigDict, *, made_here: bool = False) -> None:
    """Refuse a network, first weights or a tokenizer that cannot be; `made_here`: the run makes its tokenizer."""
    language_model.check(c.init_from, model=c.model, compute=c.compute, export=c.export)
    if not made_here:
        tokenizer.check(c.tokenizer or language_model.tokenizer_of(c.init_from))


def check_adapter(c: ml_collections.ConfigDict) -> None:
    """Refuse an adapter that cannot be, or that its config would not read."""
    options = adapter_options(c)
    if options.merge and not c.export:
        raise InputError("adapter.merge=True writes export/hf, and export='' leaves no folder; set export=float32")


def adapter_options(c: ml_collections.ConfigDict) -> adapters.Options:
    """The group `adapter`; off in a config without one."""
    return adapters.Options(**c.get("adapter", {}))


def check_sequence(c: ml_collections.ConfigDict, *, trees: str, lengths: Mapping[str, int]) -> None:
    """Refuse `mesh.sequence`, the devices that share the places of a row, where rows or kernel do not take it.

    Args:
        trees: the setting that makes rows of prefix trees, which alone are split; "" where it is set.
        lengths: names of settings to lengths of rows.
    """
    parts = c.mesh.sequence
    if parts == 1:
        return
    within("[1, inf)", **{"mesh.sequence": parts}, hint=": the devices that share the places of a row")
    kernel = "" if c.compute.attention == "blocked" else "compute.attention=blocked"
    if trees or kernel:
        missing = " and ".join(filter(None, (trees, kernel)))
        raise InputError(f"mesh.sequence={parts} splits rows of prefix trees by the kernel 'blocked': set {missing}")
    for name, length in lengths.items():
        if length % parts:
            raise InputError(f"mesh.sequence={parts} does not divide {name}, which is {length}")


def check_planned(c: ml_collections.ConfigDict) -> None:
    """Refuse what `--plan` and `--doctor` do not lay out yet."""
    for name, differs in {
        "mesh.sequence": c.mesh.get("sequence", 1) != 1,
        "data.share_prefixes": bool(c.data.get("share_prefixes")),
        "compute.attention": c.compute.attention in attention.EXPANDED,
        "loss": c.get("loss") in losses.LISTWISE,
    }.items():
        if differs:
            raise InputError(f"--plan and --doctor do not lay out this {name} yet; leave it at its default for them")


def check_rows(c: ml_collections.ConfigDict, kind: str) -> None:
    """`check` of a run on rows of text; `kind`: of `text.load`."""
    check(c)
    streaming.check(c)
    checks.call(text.check, {**c.data, **streaming.files_of(c)}, kind=kind)
    if "sequence" in c.mesh:
        trees = "" if c.data.share_prefixes else "data.share_prefixes=True"
        check_sequence(c, trees=trees, lengths={"data.max_len": c.data.max_len})
    if not c.data.path and c.steps:
        raise InputError(f"data.path is empty and steps={c.steps}; without it steps=0 evaluates on data.heldout_path")


def load_tokenizer(c: ml_collections.ConfigDict) -> tokenizer.Tokenizer:
    """That of the config, or else that of the checkpoint which the run begins from."""
    return tokenizer.load(c.tokenizer or language_model.tokenizer_of(c.init_from))


def build(
    c: ml_collections.ConfigDict,
    tok: tokenizer.Tokenizer,
    workdir: pathlib.Path,
    *,
    rows_are_plain: bool,
    rows_are_trees: bool = False,
) -> decoder.DecoderLM:
    """The network of the config; architecture and tokenizer are left in `workdir`. See `language_model.build`."""
    rows = dict(rows_are_plain=rows_are_plain, rows_are_trees=rows_are_trees)
    options = dict(**rows, export=c.export, workdir=workdir)
    return language_model.build(c.init_from, tok, model=c.model, compute=c.compute, **options)


def fit(
    c: ml_collections.ConfigDict,
    tok: tokenizer.Tokenizer,
    splits: tuple[text.Texts, text.Texts],
    mesh: Mesh,
    workdir: pathlib.Path,
    *,
    rows_are_plain: bool,
    tx: optax.GradientTransformation | None = None,
    steps: int | None = None,
    batches: loop.Loader | None = None,
) -> tuple[decoder.DecoderLM, train_state.TrainState, lora.Adapter | None, dict[str, float]]:
    """Build the config's network and train it on the next tokens of rows of text.

    Args:
        splits: rows to train on, and held-out ones.
        rows_are_plain: whether each row is one text, padded on the right.
        tx, steps: for an experiment that derives them from its data; None takes `c.optimizer` and `c.steps`.
        batches: to train on, in place of the rows of `splits`; None takes those.

    Returns:
        The network, its last state, the adapter where that is what was trained, and the summary of `loop.fit` with the
        held-out perplexity.
    """
    steps = c.steps if steps is None else steps
    if not steps:
        tx = optax.identity()  # nothing is updated, so the moments of an optimizer would only take memory
    model = build(c, tok, workdir, rows_are_plain=rows_are_plain)
    batches_fn = functools.partial(text.batches, batch_size=c.batch_size, seed=c.seed, **sharding.row_share(mesh))
    train, heldout = splits
    check_best(c, len(heldout))
    if batches is None:  # a run that only evaluates may have nothing to train on
        batches = batches_fn(train if len(train) else heldout)
    tx = optimizer.adamw(**c.optimizer) if tx is None else tx
    adapter, params, state = None, None, None
    if adapter_options(c).is_on():
        base = language_model.base_params(c.init_from, model, mesh, seed=c.seed)
        adapter, state = begin_adapter(c, model, tx, base, c.init_from, mesh, workdir)
        del base
    elif loop.latest_step(workdir) is None:  # a run that goes on has its parameters in its own checkpoint
        params = language_model.params(c.init_from, model, mesh)
    state, summary = next_token.fit(
        model,
        params,
        batches,
        batches_fn(heldout, endless=False),
        mesh,
        workdir,
        tx=tx,
        seed=c.seed,
        steps=steps,
        batch_size=c.batch_size,
        accumulate=c.accumulate,
        state=state,
        adapter=adapter,
        pace=loop.Pace(**c.loop),
        logging=loop.Logging(sinks=c.sinks),
    )
    return model, state, adapter, summary | of_bytes(summary, heldout)


def begin_adapter(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    tx: optax.GradientTransformation,
    base: Any,
    base_from: str,
    mesh: Mesh,
    workdir: pathlib.Path,
) -> tuple[lora.Adapter, train_state.TrainState]:
    """The adapter of a run and the state that trains it; `adapter.json` in the workdir says what it belongs to.

    Args:
        base: the weights that stay, which the state takes over.
        base_from: where a later run finds them; `run:pretrain` may be a folder of this workdir.
    """
    options = adapter_options(c)
    kind, _, name = options.init_from.partition(":")
    own = workdir / base_from.removeprefix("run:")
    weights = language_model.digest(f"run:{own}" if base_from.startswith("run:") and own.is_dir() else base_from)
    if kind == "run" and (note := adapters.read_note(name)) and note["weights"] != weights:
        raise InputError(
            f"adapter.init_from={options.init_from!r} was trained beside other weights, {note['base']!r}; give "
            f"--config.init_from={note['base']}"
        )
    adapter, params = adapters.begin(options, model, mesh)
    start = language_model.digest(options.init_from.replace("peft:", "hf:", 1)) if options.init_from else ""
    where_from = dict(base=base_from, weights=weights, seed=c.seed, init_from=options.init_from, start=start)
    adapters.write_note(workdir, adapter, **where_from)
    return adapter, adapters.create(adapter, tx, base, seed=c.seed, mesh=mesh, params=params)


def export(
    c: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    state: train_state.TrainState,
    model: decoder.DecoderLM,
    tok: tokenizer.Tokenizer,
    adapter: lora.Adapter | None = None,
) -> None:
    """Leave `export/hf`; of a run with an adapter `export/peft`, and `export/hf` where the config merges."""
    params = state.params
    if adapter is not None:
        if c.export:
            peft_adapters.save(workdir / "export/peft", adapter, params, base=c.init_from.partition(":")[2])
        if not c.adapter.merge:
            return
        params = adapters.policy(adapter, state)
        model, params = lora.folded_model(model, params), lora.fold(params)
    options = dict(dtype=c.export, init_from=c.init_from, card=card.text(c, workdir, int(state.step)))
    language_model.export(workdir / "export/hf", params, model, tok, **options)


def of_bytes(summary: Mapping[str, float], heldout: text.Texts) -> dict[str, float]:
    """How many held-out tokens and bytes were predicted, and the loss by bytes, which compares tokenizers.

    Perplexities per token compare no two tokenizers. With a loss of L nats a token, N tokens and B bytes of UTF-8, a
    byte has L N / B nats, and the exponential of that is the perplexity per byte.
    """
    if "heldout/loss" not in summary:
        return {}
    sizes = {"heldout/num_tokens": float(heldout.num_targets), "heldout/num_bytes": float(heldout.num_bytes)}
    nats = summary["heldout/loss"] * heldout.num_targets / max(heldout.num_bytes, 1)
    by_byte = {"heldout/bits_per_byte": nats / math.log(2), "heldout/perplexity_per_byte": math.exp(min(nats, 700.0))}
    return sizes | by_byte


def run(
    c: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    kind: str,
    rows_are_plain: bool,
    samples_fn: Callable[..., list[dict[str, str]]],
) -> dict[str, float]:
    """Pretraining or supervised tuning from a config to its export; returns the summary.

    Args:
        kind: of `text.load`: documents or answers.
        samples_fn: (config, network, tokenizer, held-out texts, parameters) -> rows of the page's table of samples.
    """
    check_rows(c, kind)
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh, c.accumulate)
    tok = load_tokenizer(c)
    bad_records_path, stream = str(workdir / "bad_records.jsonl"), None
    options = dict(kind=kind, tokenizer=tok, seed=c.seed, bad_records_path=bad_records_path)
    if c.stream.on:
        stream, heldout, counts = streaming.load(c, mesh, workdir, **options)
        train = heldout
    else:
        train, heldout, counts = text.load(**options, **c.data)
    files.report_counts(workdir, counts)
    if not c.steps and not len(heldout):
        raise InputError(f"steps=0 only evaluates, and nothing of {c.data.path} is held out; give data.heldout_path")
    training = dict(rows_are_plain=rows_are_plain, batches=stream)
    model, state, adapter, summary = fit(c, tok, (train, heldout), mesh, workdir, **training)
    if stream is not None:
        files.report_counts(workdir, counts | stream.counts())
    params = adapters.policy(adapter, state)
    files.write_rows(workdir / "tables/samples.jsonl", samples_fn(c, model, tok, heldout, params))
    export(c, workdir, state, model, tok, adapter)
    return summary


def complete(
    c: ml_collections.ConfigDict,
    model: decoder.DecoderLM,
    params: Any,
    tok: tokenizer.Tokenizer,
    prompts: Sequence[Sequence[int]],
) -> list[list[int]]:
    """The tokens that the model writes after each prompt, as `c.samples` asks."""
    return engine.write(
        model,
        params,
        prompts,
        max_new_tokens=c.samples.max_new_tokens,
        temperature=c.samples.temperature,
        seed=c.seed,
        stop_ids=tok.stop_ids,
    )


def headline(summary: dict[str, float], of: str, per: str) -> str:
    """The page's first sentence: the perplexity `of` some texts `per` token of theirs."""
    if "heldout/loss" not in summary:
        return f"After {summary['steps']:.0f} updates; nothing was held out to measure the model on."
    updates = f"After {summary['steps']:.0f} updates the" if summary["steps"] else "The"
    words = f"{updates} model's perplexity on {of} is {summary['heldout/perplexity']:.4g} per {per} "
    words += f"(loss {summary['heldout/loss']:.4g} nats)"
    if not summary.get("heldout/num_bytes"):
        return f"{words}."
    return (
        f"{words} and {summary['heldout/perplexity_per_byte']:.4g} per byte, over {summary['heldout/num_tokens']:,.0f} "
        f"tokens of {summary['heldout/num_bytes']:,.0f} bytes."
    )
