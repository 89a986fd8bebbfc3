"""GenARM: a frozen model is steered while it writes, by small reward models that score the next token.

Paper:   Xu et al. 2024, arXiv:2410.08193
Run:     python -m experiments.run --config experiments/genarm.py --config.data.path=helpful=a.jsonl,harmless=b.jsonl
         --config.init_from=hf:DIR
Laptop:  python -m experiments.run --config experiments/genarm.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, two opposed wishes, 100 held-out prompts, judged by their rules: reward models rank all held-out pairs
         (the longer answer: 0.01 and 0.99); guided answers beside the base's 0.905, beside DPO's 0.703; volume of the
         frontier 0.409, of rewarded soups 0.375, of best-of-8 0.381
         smol, 24 prompts: guided answers beside the base's 0.438, beside DPO's 0.521; volume of the frontier 0.316, of
         rewarded soups 0.248, by rewards that rank held-out pairs no better than chance
Smol:    make models, then the same with genarm.py:smol, and hh_harmless.jsonl and alpaca_eval.jsonl in this folder

Each objective has pairs of its own and a reward model trained on them, an ordinary decoder whose log-probabilities,
times a weight alpha, are added to the base's at every token. The weights are a request's, so one base and its reward
models trace a frontier without retraining. Beside it stand the base, DPO, rewarded soups of DPO models, best-of-N,
ARGS, proxy tuning and contrastive decoding, on the same prompts with the same draws. All but `base_greedy` and ARGS
draw at one temperature. What is measured never comes from a model that guided: rules, rewards fitted to other pairs, or
a language model that judges two answers in both orders.
"""

import functools
import pathlib
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh
from ml_collections import config_dict

from alignment import errors, files
from alignment.decoding import cache, requests
from alignment.errors import InputError
from alignment.preference import losses
from alignment.train import adapters, language_model, sharding
from data import records
from data.texts import objectives, preferences
from data.tokens import tokenizer
from experiments.decoding import models
from experiments.decoding.journal import Journal
from experiments.guidance import judging, latency, methods, scoring, training, writing
from experiments.guidance.training import ALL, BASE, SMALL, Objective, Trained
from experiments.guidance.writing import Models, Writer
from experiments.launch import checks, groups, lm, planning
from experiments.pages import genarm as page
from experiments.safety import judges

SETTINGS = ("", "laptop", "smol", "tiny")
LEAST = dict.fromkeys(("decoding.prompts", "decoding.max_new_tokens", "args.top_k", "args.prompts"), 1)
LEAST |= {"latency_tokens": 1, "data.limit": 4, "fit_pairs": 4, "best_of_n": 2, "points": 2, "shown": 0}
LEAST |= {"learned_tokens": 260}  # 256 bytes and a few


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.init_from = "hf:Qwen/Qwen2.5-1.5B-Instruct"  # the base: hf:<folder or id>, run:<workdir>, or "" for nothing
    c.tokenizer = ""  # "" takes that of init_from; a base from nothing gets one that is learned
    c.learned_tokens = 512  # of its vocabulary
    c.model = groups.decoder()
    c.compute = groups.compute()
    c.export = ""  # weights of a Hugging Face or peft folder beside each reward model; "" leaves none
    c.data = _data()
    c.templates = dict(  # texts with {prompt}; "": the tokenizer's chat template, or the plain prompt
        base="",
        reward="",
    )
    c.pretrain = dict(  # of models from nothing, on the pairs' own text
        steps=0,
        batch_size=64,
        max_len=1_024,
        peak_lr=3e-4,
        warmup_steps=100,
    )
    c.reward = training.stage(beta=0.05) | dict(
        init_from=config_dict.placeholder(str),  # None: the base's own weights; "": nothing, of reward.model's size
        model=groups.decoder(),
        adapter=groups.adapter(),
    )
    c.reward.betas = ()  # one for each objective, instead of reward.beta for all
    c.dpo = training.stage(beta=0.1) | dict(adapter=groups.adapter())
    c.alphas = ()  # weights of the reward models, a tuple with one for each objective; () takes `points` and `strength`
    c.allow_negative = False  # whether alphas may be below 0
    c.points = 5  # of a frontier from one objective to another
    c.strength = 1.0  # what the weights of a point add up to
    c.baselines = config_dict.placeholder(str)  # some of methods.BASELINES, with commas between; None: all that apply
    c.best_of_n = 16  # draws among which a reward of whole answers chooses
    c.args = dict(
        top_k=10,  # tokens that are scored at a step
        weight=1.0,  # of the reward beside the log-probability
        prompts=100,  # that are answered, at most
    )
    c.contrastive = 0.5  # weight that is taken off for the plain small model, and added to the base
    c.judge = config_dict.placeholder(
        str
    )  # rules, heldout, model, endpoint; None: rules of the embedded pairs, heldout
    c.judging = judges.settings(judging.TEMPLATE)  # of a model or an endpoint, which reads two answers in both orders
    c.judge_templates = ()  # one for each objective, in the files' order, instead of judging.template for all
    c.fit_pairs = 4_000  # at most, of each objective, that a reward of whole answers is fitted to
    c.measuring_fraction = 0.5  # of the training prompts, which the rewards that measure alone read (judge=heldout)
    c.decoding = dict(
        prompts=300,  # held-out ones, at most
        max_new_tokens=128,
        temperature=1.0,
        num_slots=16,  # answers written at the same time
        chunk=64,  # tokens of a prompt that are read at once
        num_steps=16,  # tokens of every answer between two looks of the host
    )
    c.latency_tokens = 128  # of an answer whose time is taken
    c.shown = 6  # prompts whose answers are on the page, token by token
    c.mesh = groups.mesh()
    if arg:
        {"tiny": _tiny, "laptop": _laptop, "smol": _smol}[arg](c)
    return c


def _data() -> dict[str, Any]:
    return dict(
        path="pairs.jsonl",  # see data/texts/objectives.py
        heldout_fraction=0.1,
        max_len=1_024,  # of prompt and answer, in filter_unit; longer pairs are dropped
        filter_unit="tokens",  # or chars, as the authors' code has it
        chat="auto",
        limit=config_dict.placeholder(int),  # pairs of each objective; None takes all
        columns=groups.columns("prompt", "chosen", "rejected", "output_1", "output_2", "preference"),
    )


def _small(c: ml_collections.ConfigDict) -> None:
    """Everything from nothing, on the embedded pairs."""
    groups.small_decoder(c)
    c.export = ""
    c.data.path = objectives.EMBEDDED
    c.data.max_len = 128


def _tiny(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.model.update(groups.TINY)
    c.data.limit = 64
    c.learned_tokens = 300
    c.data.heldout_fraction = 0.2
    for stage in (c.pretrain, c.reward, c.dpo):
        stage.update(dict(steps=2, batch_size=8, peak_lr=1e-3, warmup_steps=1))
    c.pretrain.max_len = 64
    c.points = 2
    c.best_of_n = 2
    c.args.update(dict(top_k=3, prompts=2))
    c.decoding.update(dict(prompts=4, max_new_tokens=6, num_slots=1, chunk=16, num_steps=4))
    c.latency_tokens = 4
    c.fit_pairs = 32


def _laptop(c: ml_collections.ConfigDict) -> None:
    _small(c)
    groups.laptop_decoder(c)
    c.reward.init_from = ""
    c.reward.model.update(num_layers=1, model_dim=64, num_heads=4, num_kv_heads=2, ffn_dim=192)
    c.data.limit = 1_500
    c.learned_tokens = 768
    c.pretrain.update(dict(steps=300, batch_size=16, max_len=128, peak_lr=3e-3, warmup_steps=20))
    c.reward.update(dict(steps=60, batch_size=32, beta=1.0, peak_lr=1e-3, warmup_steps=5))
    c.dpo.update(dict(steps=40, batch_size=32, beta=1.0, peak_lr=1e-4, warmup_steps=5))
    c.best_of_n = 8
    c.args.update(dict(weight=0.2, prompts=24))
    c.decoding.update(dict(prompts=100, max_new_tokens=40, chunk=32, num_steps=8))
    c.latency_tokens = 32


def _smol(c: ml_collections.ConfigDict) -> None:
    """Adapters of SmolLM2-135M-Instruct on HH's harmless pairs and AlpacaEval's; sized for two cores."""
    c.init_from = models.SMOL
    c.compute.update(dict(dtype="float32", remat="none"))
    c.data.path = "harmless=hh_harmless.jsonl,preferred=alpaca_eval.jsonl"
    c.data.limit = 330
    c.data.max_len = 160
    for stage, steps in ((c.reward, 16), (c.dpo, 8)):
        stage.update(dict(steps=steps, batch_size=4, warmup_steps=3))
        stage.adapter.rank = 16
    c.points = 3
    c.baselines = "base_greedy,soups"
    c.fit_pairs = 120
    c.decoding.update(dict(prompts=24, max_new_tokens=32, num_slots=8))
    c.latency_tokens = 32
    c.shown = 0  # texts of a safety set


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data, weights nor devices to be seen."""
    lm.check_model(c, made_here=training.learns_tokenizer(c))
    checks.check_least(c, LEAST)
    for name in ("reward", "dpo"):
        training.check_stage(c, name)
        adapters.Options(**c[name].adapter)
    _check_starts(c)
    places = set(objectives.sources(c.data.path).values())
    settings = {name: value for name, value in c.data.items() if name != "path"}
    checks.call(preferences.check, settings, path="")
    for name in ("base", "reward"):
        objectives.check_template(f"templates.{name}", c.templates[name])
    errors.one_of("data.filter_unit", c.data.filter_unit, objectives.UNITS)
    checks.within(c, "(0, 1)", "data.heldout_fraction", "measuring_fraction")
    for kind in baselines(c):
        errors.one_of("baselines", kind, methods.BASELINES)
        if kind in methods.SMALL and c.reward.init_from is None:
            raise InputError(
                f"baselines has {kind!r}, which takes off what a small model says, and the reward models begin as the "
                "base itself; set reward.init_from, or leave it out"
            )
    if c.judge is not None:
        errors.one_of("judge", c.judge, scoring.JUDGES)
    if c.judge == scoring.RULES and places != {objectives.EMBEDDED}:
        raise InputError(f"judge={c.judge!r} has rules for {objectives.EMBEDDED} alone; set judge={scoring.HELDOUT}")
    judging.check(c)
    methods.check_alphas([*c.alphas, (c.strength,)], allow_negative=c.allow_negative)
    for beta in c.reward.betas:
        losses.check_options("reference_free", {"beta": beta})
    if c.latency_tokens > c.decoding.max_new_tokens:
        raise InputError(
            f"latency_tokens={c.latency_tokens} is more than decoding.max_new_tokens={c.decoding.max_new_tokens}, the "
            "longest answer"
        )
    requests.check_options(requests.Request((), c.decoding.max_new_tokens, c.decoding.temperature))


def _check_starts(c: ml_collections.ConfigDict) -> None:
    """Refuse first weights of the reward models that cannot be."""
    if c.reward.init_from:
        language_model.check_init_from(c.reward.init_from)
        tokenizer.check(language_model.tokenizer_of(c.reward.init_from))
    is_from_nothing = not c.init_from or c.reward.init_from == ""
    if is_from_nothing and c.pretrain.steps < 1:
        raise InputError(f"pretrain.steps={c.pretrain.steps}, and a model from nothing has to learn to write; set some")


def baselines(c: ml_collections.ConfigDict) -> list[str]:
    """The methods that stand beside guided decoding; some need reward models that are small."""
    if c.baselines is not None:
        return records.listed(c.baselines)
    return [name for name in methods.BASELINES if name not in methods.SMALL or c.reward.init_from is not None]


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    return [training.plan(c, wanted, name, c.data.max_len) for name in ("reward", "dpo")]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    if jax.process_count() > 1:
        raise InputError("guided answers are written in one process: start it without --distributed")
    folder = pathlib.Path(workdir)
    counts: dict[str, int] = {}
    read = objectives.read(
        c.data.path,
        columns={ours: theirs for ours, theirs in c.data.columns.items() if theirs},
        limit=c.data.limit,
        max_chars=c.data.max_len if c.data.filter_unit == "chars" else None,
        seed=c.seed,
        counts=counts,
        bad_records_path=str(folder / "bad_records.jsonl"),
    )
    names = list(read)
    temperature = c.decoding.temperature
    grid = methods.grid(names, points=c.points, strength=c.strength, alphas=c.alphas, temperature=temperature)
    betas = betas_of(c, names)
    say_strengths(grid, betas)
    tok = training.load_tokenizer(c, read, folder)
    if c.reward.init_from:
        training.check_same_tokens(tok, tokenizer.load(language_model.tokenizer_of(c.reward.init_from)))
    fraction = c.measuring_fraction if judge_of(c) == scoring.HELDOUT else 0.0
    own = training.load_objectives(c, read, tok, folder, counts, measuring_fraction=fraction)
    files.report_counts(folder, counts)
    members, measuring = train(c, own, betas, tok, sharding.make_mesh(**c.mesh), folder)
    own = own[: len(names)]
    beside = methods.baselines(names, baselines(c), points=c.points, temperature=temperature)
    prompts = writing.prompts_of(own, c.decoding.prompts)
    writer = Writer(c, tok, members, prompts, names, [*beside, *grid], folder)
    answers = write(c, writer, folder)
    for method in (method for method in beside if method.kind == methods.BEST):
        answers[method.name] = writing.best_of_n(answers, method, members.rewards, members.base, prompts)
    answers = {name: rows for name, rows in answers.items() if not name.startswith(writing.SAMPLE)}
    judge = judge_of(c)
    seconds = latency.measure(writer, num_tokens=c.latency_tokens)
    with cache.Cache(folder / "verdicts.jsonl" if judge in scoring.ASKED else "") as verdicts:
        if judge == scoring.RULES:
            outcomes_fn = scoring.by_scores(scoring.by_rules(names, answers))
        elif judge == scoring.HELDOUT:
            outcomes_fn = scoring.by_scores(scoring.by_rewards(answers, members.base, measuring, prompts))
        else:
            judges = judging.judges_of(c, names, folder, verdicts)
            judge = ", ".join(dict.fromkeys(one.name for one in judges))
            outcomes_fn = scoring.by_judges(judges, answers)
        results = page.Results(names, [*beside, *grid], answers, outcomes_fn, members, own, measuring, judge)
        return page.write(folder, results, seconds, writer.pieces, num_shown=c.shown)


def judge_of(c: ml_collections.ConfigDict) -> str:
    is_embedded = set(objectives.sources(c.data.path).values()) == {objectives.EMBEDDED}
    return c.judge or (scoring.RULES if is_embedded else scoring.HELDOUT)


def betas_of(c: ml_collections.ConfigDict, names: list[str]) -> list[float]:
    """Beta of each objective's reward model."""
    if c.reward.betas and len(c.reward.betas) != len(names):
        raise InputError(f"reward.betas={c.reward.betas} and the objectives are {', '.join(names)}; give one for each")
    return list(c.reward.betas) or [c.reward.beta] * len(names)


def say_strengths(grid: list[methods.Method], betas: list[float]) -> None:
    """Print what the weights mean, because those of reward models of different betas do not compare."""
    methods.check_alphas([m.weights for m in grid], num_objectives=len(betas), allow_negative=True)
    for method in grid:
        parts = [
            f"alpha {alpha:g} of beta_r {beta:g} is 1/beta {alpha / beta:g}"
            for alpha, beta in zip(method.weights, betas)
        ]
        print(f"{method.name}: {'; '.join(parts)}", flush=True)


def train(
    c: ml_collections.ConfigDict,
    own: list[Objective],
    betas: list[float],
    tok: tokenizer.Tokenizer,
    mesh: Mesh,
    folder: pathlib.Path,
) -> tuple[Models, list[scoring.Measuring]]:
    """Every model of the run, and with judge=heldout what measures each objective.

    `own` ends with all pairs together where there are several objectives.
    """
    single, every = own[: len(betas)], own[-1]
    base = start_of(c, tok, [o.base for o in single], mesh, folder / BASE)
    start = base
    if c.reward.init_from is not None:
        reward = ml_collections.ConfigDict(dict(c.reward, compute=c.compute, export=c.export, seed=c.seed))
        reward.pretrain = c.pretrain
        start = start_of(reward, tok, [o.reward for o in single], mesh, folder / SMALL)
    guides = [
        training.tune(c, "reward", start, o.reward, tok, mesh, folder / "rewards" / o.name, beta=beta)
        for o, beta in zip(single, betas)
    ]
    wanted, each, dpo = baselines(c), [], None
    if {methods.DPO, methods.SOUP} & set(wanted):
        tune = lambda o: training.tune(c, "dpo", base, o.base, tok, mesh, folder / "dpo" / o.name, beta=c.dpo.beta)  # noqa: E731
        each = [tune(o) for o in single]
        dpo = tune(every) if methods.DPO in wanted and every.name == ALL else None
    chooses, measuring = [], []
    if {methods.BEST, methods.ARGS} & set(wanted):
        chooses = [scoring.fit(base, o.base[0], seed=c.seed, limit=c.fit_pairs) for o in single]
    if judge_of(c) == scoring.HELDOUT:
        measuring = [scoring.fit_measuring(base, o, seed=c.seed + 1, limit=c.fit_pairs) for o in single]
    here = functools.partial(writing.on_one_device, mesh=mesh)
    base_here = here(base)
    members = Models(
        base=base_here,
        guides=[here(guide) for guide in guides],
        plain_guide=base_here if start is base else here(start),
        dpo=None if dpo is None else here(dpo),
        dpo_each=[here(one) for one in each],
        rewards=chooses,
    )
    return members, measuring


def start_of(
    c: ml_collections.ConfigDict,
    tok: tokenizer.Tokenizer,
    splits: list[training.Splits],
    mesh: Mesh,
    folder: pathlib.Path,
) -> Trained:
    """A checkpoint's weights, or those of a model from nothing that has read the pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    model = lm.build(c, tok, folder, rows_are_plain=False)
    if not c.init_from:
        return training.from_nothing(c, model, tok, splits, mesh, folder)
    params = language_model.params(c.init_from, model, mesh)
    return Trained(model, params, c.init_from, own=params)


def write(c: ml_collections.ConfigDict, writer: Writer, folder: pathlib.Path) -> dict[str, dict[int, Any]]:
    """Every method's answers by the prompts' numbers, as generations.jsonl has them."""
    own = writer.models
    sources = [own.base, *own.guides, own.plain_guide, *own.dpo_each, *filter(None, [own.dpo])]
    made_from = {"weights": "-".join(language_model.digest(one.source) for one in sources)}
    made_from["prompts"] = writing.digest(writer.prompts, writer.written, c)
    journal = Journal(folder, made_from, writer.keys())
    writer.run(journal)
    answers: dict[str, dict[int, Any]] = {}
    for row in journal.end().values():
        answers.setdefault(row["method"], {})[row["uid"]] = row
    return answers


METRICS = page.METRICS
headline = page.headline
