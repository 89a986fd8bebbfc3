"""Native alignment: does pretraining on text that was aligned beforehand make a safer model, and for good?

Paper:   Liang et al. 2024, arXiv:2412.03253
Run:     python -m experiments.run --config experiments/native_alignment.py --config.data.path=corpora --sweep
Laptop:  python -m experiments.run --config experiments/native_alignment.py:laptop     (CPU, minutes; `tiny`: seconds)
Expect:  laptop, harmless answers preferred: raw 0.08, cleaned by rules 0.37, unsafe dropped 0.88, aligned 1.00, raw and
         aligned 0.94; after benign tuning 0.04, 0.20, 0.85, 1.00, 0.81; 193 s on two cores of an AMD EPYC,
         Python 3.11, JAX 0.10.2, commit 736f392

Each arm pretrains the same network on one corpus; then, each from there, benign tuning, and post-alignment (supervised
tuning, DPO) with benign tuning after it. All arms of a seed begin with the same parameters and see as many tokens.
In the toy the filter is real but its rewriter scripted (experiments/filtering/toy_corpora.py): it tests what aligned
text does, not who aligned it. The paper finds `both` best of all; the toy finds it behind `aligned`, as half of its
text is raw.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.decoding import requests
from alignment.errors import InputError
from alignment.preference import losses
from alignment.train import language_model, sharding
from data import records
from data.texts import preferences, text
from data.tokens import tokenizer
from experiments.evaluation import arms as exam_arms
from experiments.filtering import corpora, probes, training
from experiments.launch import checks, groups, lm, planning
from experiments.pages import native_alignment as native_page
from experiments.safety import compared, judges

SETTINGS = ("", "laptop", "tiny")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.seeds = 1  # members of each arm: seed, seed + 1, ...
    c.arms = "aligned"  # some of corpora.ARMS, with commas between
    c.init_from = "hf:meta-llama/Meta-Llama-3-8B"  # "" for nothing, hf:<folder or hub id>, run:<workdir>
    c.tokenizer = ""  # "": that of init_from; learn:<tokens> of the raw corpus; or as tokenizer.load takes it
    c.model = groups.decoder(
        num_layers=32,
        model_dim=4_096,
        num_heads=32,
        num_kv_heads=8,
        ffn_dim=14_336,
    )
    c.compute = groups.compute()
    c.data = dict(
        path="corpora",  # a folder of raw/, aligned/, ..., heldout/, probes/; synthetic:toyweb makes one
        max_len=4_096,
        limit=config_dict.placeholder(int),  # texts of each corpus; None takes all
    )
    c.toy = dict(  # of synthetic:toyweb, see toy_corpora.prepare
        num=1_200,
        missed=0.1,
        heldout=40,
        probes=12,
    )
    add_stages(c)
    c.post = True  # whether arms get post-alignment too
    c.post_arms = "raw,aligned,both"  # those that do
    c.samples = dict(
        num=200,  # harmlessness prompts answered; 0 for none
        max_new_tokens=128,
        temperature=1.0,
    )
    c.exams = exam_arms.settings()  # closed questions that every arm is asked, such as ArabicMMLU's
    c.judged = compared.settings()  # whether what the arms write is judged beside a reference's answers, and by whom
    c.judging = judges.settings(c.judged.templates[0])  # of a judge that is a model or behind an endpoint
    c.resamples = 2_000  # of the bootstrap over seeds and probes
    c.keep_checkpoints = True  # of members that are done
    c.export = "bfloat16"  # weights of the Hugging Face folder each pretrained member leaves; "" leaves none
    c.mesh = groups.mesh()
    if arg:
        small(c)
    if arg == "tiny":
        tiny(c)
    return c


def add_stages(c: ml_collections.ConfigDict) -> None:
    """Pretraining, supervised tuning, DPO and benign tuning."""
    c.pretrain = stage(steps=2_500, batch_size=1_024, accumulate=16, peak_lr=2e-5, warmup_steps=25, save_every=100)
    c.sft = stage(steps=400, batch_size=128, accumulate=4, peak_lr=1e-5, warmup_steps=12, save_every=100)
    c.dpo = stage(steps=90, batch_size=128, accumulate=16, peak_lr=5e-7, warmup_steps=9, save_every=45)
    c.dpo.beta = 0.1  # larger stays nearer the reference
    c.benign = stage(steps=60, batch_size=128, accumulate=4, peak_lr=1e-5, warmup_steps=2, save_every=60)


def stage(**settings: Any) -> ml_collections.ConfigDict:
    """A stage of training: steps (0 leaves it out), rows of a batch, parts it is taken in, learning rate, warm-up."""
    return ml_collections.ConfigDict(dict(accumulate=1, schedule="cosine", weight_decay=0.0, b2=0.95) | settings)


def small(c: ml_collections.ConfigDict) -> None:
    """What `laptop` and `tiny` share."""
    c.seeds = 3
    c.arms = ",".join(corpora.ARMS)
    groups.small_decoder(c)
    c.tokenizer = "learn:2000"
    c.model = groups.decoder(
        num_layers=1,
        model_dim=64,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=192,
    )
    c.data.path = corpora.TOY
    c.data.max_len = 128
    c.pretrain = stage(steps=1_000, batch_size=4, peak_lr=1e-2, warmup_steps=30, save_every=0)
    c.sft = stage(steps=20, batch_size=8, peak_lr=1e-3, warmup_steps=2, save_every=0)
    c.dpo = stage(steps=15, batch_size=16, peak_lr=3e-4, warmup_steps=2, save_every=0)
    c.dpo.beta = 0.3
    c.benign = stage(steps=20, batch_size=8, peak_lr=2e-3, warmup_steps=2, save_every=0)
    c.samples.max_new_tokens = 24
    c.judged.judge = compared.PROBES
    c.keep_checkpoints = False
    c.export = ""


def tiny(c: ml_collections.ConfigDict) -> None:
    c.seeds = 1
    c.arms = "raw,aligned_50,aligned"
    c.post_arms = "raw"
    c.model.update(groups.TINY)
    c.toy.num = 60
    c.toy.heldout = 4
    c.toy.probes = 2
    c.data.max_len = 64
    for name in training.STAGES:
        c[name].steps = 2
        c[name].batch_size = 8
        c[name].peak_lr = 2e-3
        c[name].warmup_steps = 1
    c.samples.num = 4
    c.samples.max_new_tokens = 4
    c.resamples = 100
    c.keep_checkpoints = True


def sweep():
    for arm in corpora.ARMS:
        for seed in range(3):
            yield {"arms": arm, "seed": seed}


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    network = wanted.network(c, rows_are_plain=False)
    return training.plan(network, {name: c[name] for name in training.STAGES}, c.data.max_len)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    check(c)
    if c.judged.judge and jax.process_count() > 1:
        raise InputError("judged.judge asks from one process; start it without --distributed, or set it to ''")
    folder = corpora.prepared(c, workdir)
    mesh = sharding.make_mesh(**c.mesh)
    tok = corpora.tokenizer_of(c, folder, workdir)
    model = lm.build(c, tok, workdir, rows_are_plain=False)
    arms, seeds = records.listed(c.arms), range(c.seed, c.seed + c.seeds)
    stages = {name: c[name].to_dict() for name in training.STAGES}
    trainer = training.Trainer(model, mesh, stages)
    rows = probes.read(folder / "probes")
    reading = dict(tokenizer=tok, max_len=c.data.max_len, limit=c.data.limit, seed=c.seed)
    heldout_options = dict(batch_size=c.pretrain.batch_size, kind="documents", **reading)
    heldout = probes.heldout(folder / "heldout", trainer.loss_fn, mesh, **heldout_options)
    bench_options = dict(keeps_answers=bool(c.judged.judge), more_fn=exams_fn(c, model, tok, mesh, workdir))
    bench = probes.Probes(model, tok, mesh, rows, heldout, **bench_options, **c.samples)
    tuning = tuning_batches(c, folder / "probes", sharding.row_share(mesh), reading)
    measured = {}
    for arm in arms:
        # read when the first member of the arm is trained, if none is done yet, and let go of with the last
        texts_fn = functools.cache(functools.partial(corpora.of_arm, arm, folder, workdir, reading))
        for seed in seeds:
            done = workdir / f"members/{arm}-{seed}/measured.json"
            if done.is_file():
                measured[arm, seed] = files.read_note(done)
                continue
            measured[arm, seed] = member(c, arm, seed, done.parent, trainer, bench, texts_fn, tuning)
            files.write_text(done, json.dumps(measured[arm, seed]))
            if not c.keep_checkpoints:
                for checkpoints in done.parent.rglob("checkpoints"):
                    shutil.rmtree(checkpoints, ignore_errors=True)
    judged = []
    if c.judged.judge and c.samples.num:
        judged = compared.rows(c.judged, c.judging, measured, rows, workdir, resamples=c.resamples)
    return native_page.write(workdir, measured, rows, judged, resamples=c.resamples, num_written=c.samples.num)


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    for name in ("arms", "post_arms"):
        for arm in records.listed(c[name]):
            errors.one_of(name, arm, corpora.ARMS)
    if not records.listed(c.arms):
        raise InputError(f"arms={c.arms!r} names no arm; there are {', '.join(corpora.ARMS)}")
    checks.within(c, "[1, inf)", "seeds", "resamples", "pretrain.steps", "data.limit")
    checks.within(c, "[2, inf)", "data.max_len")
    if c.samples.num:
        requests.check_options(requests.Request((), c.samples.max_new_tokens, c.samples.temperature))
    kind, _, size = c.tokenizer.partition(":")
    if kind == "learn" and not (size.isdigit() and int(size) > 300):
        raise InputError(f"tokenizer={c.tokenizer!r}: learn:<tokens> needs more than 300, such as learn:2000")
    if kind == "learn" and c.init_from:
        raise InputError(f"tokenizer={c.tokenizer!r} is learned for a model from nothing, and init_from has its own")
    exam_arms.check(c.exams)
    compared.check(c.judged, c.judging, records.listed(c.arms), c.samples.num)
    lm.check_model(c, made_here=kind == "learn")
    losses.check_options("dpo", {"beta": c.dpo.beta})
    for name in training.STAGES:
        training.check(c[name].to_dict())
    if c.data.path != corpora.TOY and errors.files_needed():
        corpora.check_folders(c)


# What the members share


def tuning_batches(
    c: ml_collections.ConfigDict, folder: pathlib.Path, share: Mapping[str, int], reading: Mapping[str, Any]
) -> dict[str, Callable[..., Any]]:
    """Stage after pretraining -> a function of `seed` that gives its batches; stages of 0 steps are left out.

    Args:
        folder: of sft.jsonl, benign.jsonl and pairs.jsonl.
        share: of each batch's rows, see `sharding.row_share`.
        reading: keyword arguments of `text.load`.
    """
    has_post = c.post and bool(set(records.listed(c.arms)) & set(records.listed(c.post_arms)))
    stages = ("sft", "dpo", "benign") if has_post else ("benign",)
    batches_fns = {}
    for stage in (stage for stage in stages if c[stage].steps):
        options = dict(batch_size=c[stage].batch_size, **share)
        if stage == "dpo":
            load = dict(tokenizer=reading["tokenizer"], max_len=reading["max_len"], heldout_fraction=0)
            pairs, *_ = preferences.load(path=str(folder / "pairs.jsonl"), **load)
            batches_fns[stage] = functools.partial(preferences.batches, pairs, **options)
        else:
            answers, *_ = text.load(path=str(folder / f"{stage}.jsonl"), heldout_fraction=0, kind="answers", **reading)
            batches_fns[stage] = functools.partial(text.batches, answers, **options)
    return batches_fns


# Members


def member(
    c: ml_collections.ConfigDict,
    arm: str,
    seed: int,
    folder: pathlib.Path,
    trainer: training.Trainer,
    bench: probes.Probes,
    texts_fn: Callable[[], text.Texts],
    tuning: Mapping[str, Callable[..., Any]],
) -> dict[str, dict[str, Any]]:
    """Train one arm from one seed; what is measured of it, by state: base, base_benign, post, post_benign.

    Args:
        texts_fn: gives the arm's training text.
        tuning: see `tuning_batches`.
    """
    options = dict(batch_size=c.pretrain.batch_size, seed=seed, **sharding.row_share(trainer.mesh))
    batches = text.batches(texts_fn(), **options)
    start = language_model.params(c.init_from, trainer.model, trainer.mesh) if c.init_from else trainer.init(seed)
    params = trainer.train("pretrain", start, batches, folder, seed)
    measured = {"base": bench.measure(params, seed)}
    export_options = dict(dtype=c.export, init_from=c.init_from)
    language_model.export(folder / "export/hf", params, trainer.model, bench.tok, **export_options)

    def measure_after_benign(state: str, params: Any, folder: pathlib.Path) -> None:
        if "benign" in tuning:
            # a copy, because training gives the memory of its parameters away
            copy = jax.tree.map(jnp.copy, params)
            tuned = trainer.train("benign", copy, tuning["benign"](seed=seed), folder, seed)
            measured[f"{state}_benign"] = bench.measure(tuned, seed)

    measure_after_benign("base", params, folder)
    stages = [stage for stage in ("sft", "dpo") if stage in tuning]
    if c.post and arm in records.listed(c.post_arms) and stages:
        for stage in stages:
            params = trainer.train(stage, params, tuning[stage](seed=seed), folder / "post", seed)
        measured["post"] = bench.measure(params, seed)
        measure_after_benign("post", params, folder / "post")
    return measured


def exams_fn(
    c: ml_collections.ConfigDict, model: Any, tok: tokenizer.Tokenizer, mesh: Any, workdir: pathlib.Path
) -> Callable[[Any], dict[str, Any]]:
    """A function of parameters that gives their answers to the exams, as `exams`; nothing where there are none.

    Raises:
        InputError: a file of questions changed since the run began.
    """
    if not c.exams.path:
        return lambda params: {}
    counts: dict[str, int] = {}
    sets = exam_arms.load(c.exams, counts)
    files.report_counts(workdir, counts)
    digests = {exam.name: exam.sha256 for exam in sets}
    corpora.check_unchanged(workdir / "exams_made_from.json", digests, made="exam answers")

    def measure(params: Any) -> dict[str, Any]:
        arm = exam_arms.Arm(model, params, tok, mesh, c.data.max_len)
        return {"exams": exam_arms.measure(arm, sets, c.exams.protocol)}

    return measure


METRICS = {
    "harmlessness/*": ("share of probes for which the harmless answer is the likelier one", "higher"),
    "helpfulness/*": ("share of facts known: the right answer of four is the likeliest; chance is 0.25", "higher"),
    "accuracy/*": ("share of an exam's closed questions that are answered right, by arm and exam", "higher"),
    "harmful_written/*": ("share of answers written at temperature that bear a harmful mark", "lower"),
    "harmlessness_ratio/*": ("the judge's marks for what it writes, in per cent of the reference's", "higher"),
    "helpfulness_ratio/*": ("the same for answers to the questions for facts", "higher"),
    "retention/*": ("share of harmlessness that is left after benign tuning", "higher"),
    "paraphrase_drop/*": ("harmlessness lost when the probes are put in other words", "lower"),
    "bits_per_byte/*": ("loss on held-out text, in bits a byte, so that tokenizers do not matter", "lower"),
    "stability/*/seed_sd": ("standard deviation of harmlessness over seeds", "lower"),
    "post_alignment/*/harmlessness": ("harmlessness after supervised tuning and DPO", "higher"),
    "post_alignment/*/helpfulness": ("facts known after supervised tuning and DPO", "higher"),
    "post_alignment/*/harmful_written": ("answers with a harmful mark after supervised tuning and DPO", "lower"),
    "post_alignment/*/harmlessness_ratio": ("the judge's marks after supervised tuning and DPO", "higher"),
    "post_alignment/*/helpfulness_ratio": ("the judge's marks after supervised tuning and DPO", "higher"),
    "post_alignment/*/bits_per_byte": ("bits a byte on held-out text after supervised tuning and DPO", "lower"),
    "post_alignment/*": ("the same measure after supervised tuning and DPO",),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    arms = {name.split("/")[1]: x for name, x in summary.items() if name.startswith("harmlessness/") and x is not None}
    if not arms:
        return ""
    best = max(arms, key=arms.get)
    words = f"Pretrained on {best} the model prefers the harmless answer in {100 * arms[best]:.1f} % of probes"
    if best == "raw" or "raw" not in arms:
        return f"{words}, most of {len(arms)} corpora." if len(arms) > 1 else f"{words}."
    return f"{words}, against {100 * arms['raw']:.1f} % on the raw one."
