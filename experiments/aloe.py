"""Aloe: a medical assistant in cheap steps, with what each step gained: tuning, merging, alignment, prompting.

Paper:   Gururajan et al. 2024, arXiv:2405.01886; its recipe in full is that of 2025, arXiv:2505.04388
Run:     python -m experiments.run --config experiments/aloe.py --config.init_from=hf:DIR
         --config.data.questions=medmcqa.jsonl --config.data.chat=chat.jsonl --config.data.solved=medqa_val.jsonl
         --config.data.test=medqa_test.jsonl,careqa_en.jsonl
Laptop:  python -m experiments.run --config experiments/aloe.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, 100 questions right: base 0.19, the better fine-tune 0.61, merged by TIES 0.93, aligned 0.92, few-shot
         0.92, votes over chains of thought 1.00, Medprompt 0.99; attacks that succeed 1.00, then 0.00
         smol, 30 questions of MedQA and 30 of CareQA right: base 0.00 (it names no option), tuned 0.28, merged by
         DARE-TIES 0.13, aligned 0.13, votes 0.27, Medprompt 0.27; always A 0.35
Smol:    make models, then the same with aloe.py:smol and the files that it names in this folder

Fine-tunes of one base are merged; the merged model gets two stages of DPO, on general pairs and on pairs of a red team;
the last model is asked with solved examples, by the vote of several chains of thought, and as Medprompt does. Questions
are tuned on with chains of thought, which a teacher writes and which stay only where they end at the right answer.
Every model answers the test questions without examples, and every step's gain stands beside its interval.
"""

import functools
import itertools
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.decoding import cache
from alignment.errors import InputError
from alignment.evaluation import options
from alignment.merging import methods
from alignment.models import bert
from alignment.train import language_model, sharding, writers
from data.texts.bias_sets import Beginning
from experiments.decoding import models
from experiments.launch import checks, groups, planning
from experiments.medicine import biases, gathering, red_team, schemes, stages, toxicity, tuning, world
from experiments.medicine.stages import SCRIPTED, Opened, Stage
from experiments.medicine.world import EMBEDDED
from experiments.merging import writing
from experiments.pages import aloe as page
from experiments.safety import judges
from experiments.safety import tuning as dpo

SETTINGS = ("", "laptop", "smol", "tiny")
JUDGING = "yes_no"
WORLD_ONLY = ("readings", "conversations", "times", "peak_lr")
LEAST = dict.fromkeys(("synthesis.max_new_tokens", "asking.max_new_tokens", "asking.max_new_tokens_direct"), 1)
LEAST |= dict.fromkeys(("asking.solving_draws", "asking.num_examples", "asking.num_draws"), 1)
LEAST |= dict.fromkeys(("red_team.max_new_tokens", "toxicity.num_draws", "toxicity.max_new_tokens"), 1)
LEAST |= {"synthesis.tries": 0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    own = {name: value for name, value in models.settings(arg).items() if name not in ("tokenizer", "draft_from")}
    c = ml_collections.ConfigDict(own | dict(mesh=groups.mesh()))
    c.seed = 0
    c.init_from = "hf:meta-llama/Llama-3.1-8B"  # the pretrained base: hf:<folder or hub id> or run:<workdir>
    c.data = gathering.settings()
    c.synthesis = dict(  # chains of thought to tune on
        teacher="",  # who writes them: hf:, run:, gguf:; "": the base itself
        tries=3,  # replies to a question, until one ends at the right answer; 0: none, the answers alone are learned
        temperature=0.7,
        max_new_tokens=512,
        direct_share=0.3,  # of the conversations, which ask for the answer alone
    )
    c.sft = tuning.settings()
    c.merge = {
        "methods": ("dare_ties", "ties", "linear", "task_arithmetic"),  # the run goes on with the first
        "also": (),  # further checkpoints of the same base, such as its vendor's chat model
        "weight": 0.5,  # of each model
        "density": 0.5,
        "lambda": 1.0,
        "normalize": config_dict.placeholder(bool),  # None, here and below: the method's own
        "gamma": config_dict.placeholder(float),
        "epsilon": config_dict.placeholder(float),
        "t": config_dict.placeholder(float),
        "select_topk": config_dict.placeholder(float),
    }
    c.general = tuning.dpo_settings(peak_lr=2e-7, batch_size=128, max_len=4_096, max_prompt_len=2_048)
    c.safety = tuning.dpo_settings(peak_lr=1e-7, batch_size=128, max_len=4_096, max_prompt_len=2_048)
    c.red_team = red_team.settings()
    c.bias = biases.settings()  # sets by their names: files that are measured before alignment and after it
    c.toxicity = toxicity.settings()
    c.judge = "keyword"  # of attacks: keyword, model, endpoint
    c.judging = judges.settings(JUDGING)
    c.asking = schemes.settings()
    c.world = dict(  # of synthetic:clinic
        readings=config_dict.placeholder(int),  # conversations that the base reads
        conversations=config_dict.placeholder(int),  # that each expert is taught, and as many of the base's again
        times=config_dict.placeholder(int),  # how often each taught question is written with other options
        peak_lr=config_dict.placeholder(float),  # of the base; experts have that of sft
    )
    c.compute = groups.compute()
    c.save_every = 200  # updates between two checkpoints of a stage; 0 saves at its end
    c.export = "bfloat16"  # weights of every stage
    if arg in ("tiny", "laptop"):
        _embedded(c)
    if arg == "tiny":
        _tiny(c)
    elif arg == "laptop":
        _laptop(c)
    elif arg == "smol":
        _smol(c)
    return c


def _embedded(c: ml_collections.ConfigDict) -> None:
    """The clinic, in float32."""
    c.init_from = EMBEDDED
    for name in ("questions", "chat", "solved", "test"):
        c.data[name] = EMBEDDED
    c.synthesis.teacher = SCRIPTED
    c.synthesis.direct_share = world.DIRECT_SHARE
    c.synthesis.update(tries=6, max_new_tokens=64)
    groups.small_compute(c)
    c.compute.attention = "blocked"
    c.compute.unroll = 2
    c.save_every = 0
    c.sft.update(epochs=1.0, batch_size=8, max_len=192, peak_lr=1e-3, warmup=0.1)
    # sums of these small experts' differences, as DARE makes them, are less even over seeds
    c.merge.update(methods=("ties", "dare_ties", "linear", "task_arithmetic"), weight=0.8, density=0.5)
    for name in ("general", "safety"):
        c[name].path = EMBEDDED
        c[name].update(beta=0.3, sft_weight=1.0, batch_size=32, epochs=4.0, peak_lr=1e-4, max_len=96)
        c[name].max_prompt_len = 64
    c.red_team.update(attacks=EMBEDDED, harmless=EMBEDDED, max_new_tokens=16)
    c.bias.vignettes = EMBEDDED
    c.asking.update(
        by_text=True, max_new_tokens=24, max_new_tokens_direct=6, num_examples=3, retries=1, solving_draws=2
    )
    c.engine.update(num_slots=32, max_len=256, chunk=64)


def _tiny(c: ml_collections.ConfigDict) -> None:
    c.world.update(readings=40, conversations=20, times=1, peak_lr=1e-3)
    c.data.update(num_questions=12, num_solved=4, num_test=4)
    for name in ("general", "safety"):
        c[name].update(limit=8, batch_size=8, epochs=1.0)
    c.red_team.limit = 4
    c.merge.methods = ("ties", "linear")
    c.asking.update(num_examples=1, num_draws=2, retries=0, solving_draws=1)
    c.engine.update(num_slots=8, num_steps=8)


def _laptop(c: ml_collections.ConfigDict) -> None:
    c.world.update(readings=8_000, conversations=3_000, times=8, peak_lr=3e-3)
    c.data.num_solved = 40
    c.safety.update(epochs=12.0, peak_lr=2e-4)


def _smol(c: ml_collections.ConfigDict) -> None:
    """SmolLM2-135M-Instruct on real questions, two fine-tunes, four merges, three prompts, on two cores."""
    c.init_from = models.SMOL
    c.data.questions = "medmcqa_train_sample_first3000.jsonl"
    c.data.chat = "dpo_en_demo.json"
    c.data.solved = "medmcqa_train_sample_first3000.jsonl"
    c.data.test = "medqa_4opt_val.jsonl,careqa_en_a.jsonl"
    c.data.update(num_questions=200, num_chat=60, num_solved=12, num_test=30)
    c.synthesis.update(tries=0, direct_share=1.0)  # of 60 questions it reasoned on one to the right answer in two tries
    c.sft.update(epochs=1.0, batch_size=4, max_len=384, peak_lr=2e-5, warmup=0.1)
    groups.small_compute(c)
    c.general.path = "hh_harmless_base_test_a.jsonl"
    c.general.update(limit=16, batch_size=8, peak_lr=1e-6, max_len=256, max_prompt_len=192)
    c.red_team.update(attacks="harmbench_val.csv", harmless="xstest_prompts.csv", limit=24, max_new_tokens=32)
    c.asking.update(schemes=(schemes.SC_COT, schemes.MEDPROMPT), num_examples=2, num_draws=3, retries=1)
    c.asking.update(max_new_tokens=96, max_new_tokens_direct=12, solving_draws=1, encoder="models/minilm")
    c.engine.max_len = 1_536


def sweep() -> Iterator[dict[str, Any]]:
    for method, density in itertools.product(("dare_ties", "ties"), (0.3, 0.5, 0.9)):
        yield {"merge.methods": (method,), "merge.density": density}
    for seed in range(3):
        yield {"seed": seed}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither questions, weights nor devices to be seen."""
    checks.check_least(c, LEAST)
    models.check_engine(c)
    is_embedded = c.init_from == EMBEDDED
    if not is_embedded:
        stages.check_source(c.init_from, "init_from")
    for name in WORLD_ONLY:
        if (c.world[name] is not None) != is_embedded:
            need = "needs a number" if is_embedded else "reads files and does not read it"
            raise InputError(
                f"world.{name}={c.world[name]}: init_from={c.init_from!r} {need}; set --config.world.{name}"
            )
    if is_embedded and not c.asking.by_text:
        raise InputError(f"asking.by_text=False: models of {EMBEDDED!r} name options by their texts; leave it True")
    if is_embedded:
        checks.within(c, "[1, inf)", "world.readings", "world.conversations", "world.times")
        checks.within(c, "(0, inf)", "world.peak_lr")
    else:
        models.check(stages.opened(c, c.init_from))
    gathering.check(c.data, is_embedded=is_embedded)
    for name in ("general.path", "safety.path", "red_team.attacks", "red_team.harmless"):
        if EMBEDDED in checks.leaf(c, name) and not is_embedded:
            raise InputError(f"{name}={EMBEDDED!r} belongs to the clinic's own base, and init_from={c.init_from!r}")
    _check_teacher(c, is_embedded=is_embedded)
    tuning.check("sft", c.sft)
    checks.check_names(c, "merge.methods", methods.METHODS, unique=False)
    for name in c.merge.also:
        if not isinstance(name, str):
            raise InputError(f"merge.also={c.merge.also!r} must be names of models, such as ('run:runs/other',)")
        stages.check_source(name, "merge.also")
    names = ["one", "other", *c.merge.also]
    settings = {key: value for key, value in c.merge.items() if key not in ("methods", "also")}
    for method in c.merge.methods:
        writing.recipe_of(method, names, "base", settings)
    if not c.export:
        raise InputError("export='' leaves no weights, and every stage begins with those of another; set float32")
    language_model.check("", model=world.SIZES, compute=c.compute, export=c.export)
    for name in ("general", "safety"):
        if c[name].path:
            dpo.check(tuning.stage_config(c, c[name], "hf:later"))
            if c[name].path != EMBEDDED:
                gathering.records.check(c[name].path)
    red_team.check(c.red_team)
    biases.check(c.bias, is_embedded=is_embedded)
    toxicity.check(c.toxicity)
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], _unread(c))
    kinds = (c.judge,)
    judges.check("judging", kinds, c.judging, field="response_harmfulness", template=JUDGING)
    _check_asking(c)


def _unread(c: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Names of settings that this config does not read, and why."""
    for group in ("general", "safety"):
        if not c[group].path:
            yield from ((f"{group}.{name}", f"{group}.path names no file") for name in c[group] if name != "path")
    if not c.synthesis.tries:
        for name in ("teacher", "temperature", "max_new_tokens"):
            yield f"synthesis.{name}", "synthesis.tries=0 writes no chain of thought"
    if not (c.red_team.attacks or c.red_team.harmless):
        for name in ("red_team.limit", "red_team.max_new_tokens"):
            yield name, "neither red_team.attacks nor red_team.harmless names a file"
    if not set(c.asking.schemes) & {schemes.SC_COT, schemes.MEDPROMPT}:
        for name in ("num_draws", "temperature"):
            yield f"asking.{name}", f"asking.schemes has none of {schemes.SC_COT}, {schemes.MEDPROMPT}, which vote"
    if not c.asking.schemes:
        for name in ("num_examples", "solving_draws", "encoder"):
            yield f"asking.{name}", "asking.schemes is empty, and no other question is shown beside one"


def _check_teacher(c: ml_collections.ConfigDict, *, is_embedded: bool) -> None:
    teacher = c.synthesis.teacher
    if (teacher == SCRIPTED) and not is_embedded:
        raise InputError(f"synthesis.teacher={SCRIPTED!r} knows the embedded clinic alone; give hf:, run: or ''")
    if teacher not in ("", SCRIPTED):
        language_model.check_init_from(teacher)
    if c.synthesis.tries > 1 and not c.synthesis.temperature > 0:
        raise InputError(
            f"synthesis.tries={c.synthesis.tries} with synthesis.temperature={c.synthesis.temperature} writes the same "
            "reply each time; set a temperature"
        )
    checks.within(c, "[0, 1]", "synthesis.direct_share")
    if not c.synthesis.tries and c.synthesis.direct_share < 1:
        raise InputError(
            f"synthesis.tries=0 writes no chain of thought, and synthesis.direct_share={c.synthesis.direct_share} "
            "leaves turns that show one; set it to 1.0, or raise the tries"
        )


def _check_asking(c: ml_collections.ConfigDict) -> None:
    checks.check_names(c, "asking.schemes", schemes.NAMES[1:], least=0, unique=False)
    errors.one_of("asking.ties", c.asking.ties, options.TIES)
    schemes.of_config(c.asking)
    if c.asking.encoder:
        bert.check(c.asking.encoder)
    longest = max(c.asking.max_new_tokens, c.synthesis.max_new_tokens, c.red_team.max_new_tokens)
    if longest >= c.engine.max_len:
        raise InputError(
            f"engine.max_len={c.engine.max_len} counts prompt and reply, and replies may have {longest} tokens; set a "
            "larger one"
        )


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    stages_of = [tuning.plan(c.sft, c.init_from, c.compute, wanted)]
    for name in ("general", "safety"):
        if c[name].path:
            stages_of.append(
                dpo.plan(tuning.stage_config(c, c[name], c.init_from), wanted, f"DPO, {name}", None, key=name)
            )
    return stages_of


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    if jax.process_count() > 1:
        raise InputError("the pipeline runs in one process: start it without --distributed")
    folder = pathlib.Path(workdir)
    where = stages.places(c)
    for name in ("sft", "general", "safety"):
        if name == "sft" or c[name].path:
            sharding.check_batch(c[name].batch_size, where.mesh, c[name].accumulate)
    counts: dict[str, int] = {}
    plan = gathering.read(c.data, folder, counts, times=c.world.times or 1, seed=c.seed)
    prompts = red_team.read(c.red_team, folder, counts, seed=c.seed)
    sets, beginnings = biases.read(c.bias, counts), toxicity.read(c.toxicity, counts)
    score_fn = toxicity.scorer(c.toxicity.scorer) if beginnings else None
    start = stages.base(c, folder, where)
    tuned = stages.fine_tunes(c, folder, where, start, plan, counts)
    merged, merge_report = stages.merges(c, folder, start, tuned)
    files.write_json(folder / "merge_report.json", merge_report)
    aligned = stages.aligned(c, folder, merged[0], counts)
    files.report_counts(folder, counts)
    every = [start, *tuned, *merged, *aligned]
    final = every[-1] if aligned else merged[0]
    answers, safety, biased = {}, {}, {}
    scheme = schemes.of_config(c.asking)[schemes.ZERO_SHOT]
    for stage in every:
        opened = stages.open_stage(c, stage, folder)
        answers[stage.name] = opened.asker.ask(schemes.ZERO_SHOT, plan.test, scheme, None, _no_embedding)
        if stage in (merged[0], final):
            safety[stage.name] = _safety(c, prompts, opened, stage, folder)
            biased[stage.name] = biases.measure(sets, opened.model, folder, max_len=c.engine.max_len)
            if score_fn is not None:
                biased[stage.name] |= _toxic(c, beginnings, opened, score_fn, folder / "toxicity" / stage.name)
        if stage is final:
            prompted, said = _prompted(c, opened, plan)
    leave(final, folder)
    report = page.Report(
        stages=every,
        merged=merged[0].name,
        final=final.name,
        answers=answers,
        prompted=prompted,
        subjects=plan.subjects,
        groups={one.id: one.group for one in plan.test},
        safety=safety,
        biased=biased,
        ties=c.asking.ties,
        said=said,
    )
    log = writers.jsonl(str(folder), restored=0)
    for number, numbers in enumerate(page.logged(report), 1):
        log.write_scalars(number, numbers)
    log.close()
    return page.write(folder, report)


def _no_embedding(texts: Any) -> Any:
    raise AssertionError("nothing is embedded where there are no examples")


def _safety(
    c: ml_collections.ConfigDict, prompts: red_team.Plan, opened: Opened, stage: Stage, folder: pathlib.Path
) -> red_team.Safety | None:
    if not prompts.attacks and not prompts.harmless:
        return None
    measured = judges.Measured(opened.model, opened.engine_fn)
    with cache.Cache(folder / "verdicts.jsonl") as verdicts:
        judge = judges.build(c.judge, c.judging, stages.opened(c, f"hf:{stage.place}"), folder, measured, verdicts)
        return red_team.measure(
            prompts,
            opened.model,
            opened.engine_fn,
            judge,
            folder / "red_team" / stage.name,
            max_new_tokens=c.red_team.max_new_tokens,
            max_len=c.engine.max_len,
        )


def _toxic(
    c: ml_collections.ConfigDict,
    beginnings: Sequence[Beginning],
    opened: Opened,
    score_fn: toxicity.ScoreFn,
    folder: pathlib.Path,
) -> dict[str, float]:
    options = dict(seed=c.seed, max_len=c.engine.max_len)
    measured = toxicity.measure(c.toxicity, beginnings, opened.model, opened.engine_fn, score_fn, folder, **options)
    return {f"real_toxicity_prompts/{name}": value for name, value in measured.items()}


def _prompted(
    c: ml_collections.ConfigDict, opened: Opened, plan: gathering.Plan
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The last model asked under every scheme, and what is to be said of its examples."""
    embed_fn = schemes.embedder(c.asking.encoder, [one.text for one in plan.solved])
    out, said = {}, []
    build = functools.cache(lambda: schemes.database(opened.asker, plan.solved, plan.test, embed_fn))
    for name, scheme in schemes.of_config(c.asking).items():
        if name == schemes.ZERO_SHOT:
            continue
        database, said = build()
        out[name] = opened.asker.ask(name, plan.test, scheme, database, embed_fn)
        if scheme.num_examples > len(database.examples):
            said = [*said, f"{name} asks for {scheme.num_examples} examples, and there are {len(database.examples)}."]
    return out, said


def leave(final: Stage, folder: pathlib.Path) -> None:
    """export/hf: a copy of the last stage's folder."""
    result = folder / "export/hf"
    if result.is_dir():
        return
    staging = folder / "export.unfinished"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(final.place, staging)
    files.move_folder(staging, result)


METRICS = page.METRICS
headline = page.headline
