"""Egida: retrofit a chat model against jailbreaks with DPO on its own unsafe answers; what it bought and what it cost.

Paper:   Garcia-Gasulla et al. 2025, arXiv:2502.13603
Run:     python -m experiments.run --config experiments/egida.py --config.init_from=hf:DIR --config.data.path=Egida.json
         --config.pairs.safe=Egida-S.json --config.harmless.path=xstest_prompts.csv
Laptop:  python -m experiments.run --config experiments/egida.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, 240 attacks and 80 harmless prompts of an embedded house: attacks that succeed 1.000, then
         0.004 (seeds 1 and 2: 0.000, 0.000); harmless prompts refused 0.000, then 0.013; questions answered right
         1.000, then 1.000
Smol:    make models, then the same with egida.py:smol and the files that it names in this folder; smol_full trains all
         weights, and with --config.before=WORKDIR takes over what the first has asked

The target answers training requests; a judge says which answers are unsafe; each is paired with a safe answer to the
same request, and DPO trains the target on a sample of the pairs. Before and after, with identical greedy decoding: how
many attacks succeed, in all and on topics and in styles that training never met; how many harmless prompts are refused;
what it still can do. Prompts and answers are never printed; records.jsonl in the workdir has the answers, by the
prompts' ids. Only the embedded world, which holds nothing harmful, shows samples.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.decoding import cache
from alignment.decoding.engine import Engine
from alignment.errors import InputError
from alignment.safety import judging, rates
from alignment.safety.judging import Judge
from data import records
from data.texts import egida, styles, suites, unseen
from data.toys import guest_rules
from experiments.decoding import models
from experiments.decoding.models import Model
from experiments.launch import checks, groups, planning
from experiments.pages import egida as page
from experiments.pages import egida_sweep
from experiments.pages.egida import AFTER, BEFORE
from experiments.safety import ability, asking, cost, gathering, judges, tuning
from experiments.safety.gathering import EMBEDDED, TEMPLATE, Plan

SETTINGS = ("", "laptop", "smol", "smol_full", "tiny")
JUDGING = "yes_no"
TRAIN, TEST, BENIGN, HARMLESS = "train", "test", "benign", "harmless"  # parts of a plan
LEAST = dict.fromkeys(("data.train_limit", "data.test_limit", "ability.num_questions", "ability.num_texts"), 1)
LEAST |= dict.fromkeys(("pairs.num", "pairs.num_harmless", "pairs.num_more", "max_new_tokens"), 1)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    sizes = "smol" if arg == "smol_full" else arg
    c = ml_collections.ConfigDict(models.settings(sizes) | dict(mesh=groups.mesh()))
    c.models = ()  # of a sweep: hf:..., run:... of each target; () takes init_from alone
    c.seed = 0  # of the split, the draws, the order of the pairs, and of the training of a toy
    c.data = dict(
        path="Egida.json",  # rendered requests, or plain ones: Egida, AdvBench, HarmBench, ...; several with commas
        limit=config_dict.placeholder(int),  # prompts of each file; None takes all
        dedup=suites.EXACT,  # of equal prompts the first stays: exact, normalised (letters and digits), off
        kind=suites.HARMFUL,  # of all prompts; None: what the columns say, and only harmful ones are attacks
        near=config_dict.placeholder(float),  # Jaccard similarity of word 3-grams from which on a request goes
        styles=(),  # renders each plain request in these styles as well, as inert tags or by templates
        templates="",  # a JSON file of your own: style -> text with {request}; "": inert tags
        train_limit=config_dict.placeholder(int),  # training prompts that the target answers, drawn by seed
        test_limit=config_dict.placeholder(int),  # test prompts
    )
    c.data.near = 0.7  # None: near ones stay
    c.split = dict(
        test_share=0.2,  # of the requests of seen topics
        topic_share=0.2,  # of the rows, whose topics are unseen
        num_unseen_styles=6,
        unseen_topics=(),  # instead of drawing them
        unseen_styles=(),
        topic_groups="",  # a JSON file of topic -> group: whole groups are then held back; "": each topic is its own
    )
    c.harmless = dict(
        path="xstest_prompts.csv",  # prompts to be answered: XSTest, PHTest, OR-Bench, ...; several with commas
        kind=config_dict.placeholder(str),  # of all prompts, where the columns do not say it
        columns=groups.columns("prompt"),
        limit=config_dict.placeholder(int),
        is_drawn=False,
    )
    c.pairs = dict(
        num=2_000,
        path="",  # pairs that are there, such as Egida-DPO-...; "": those of the target's own answers
        safe=TEMPLATE,  # safe answers: a file such as Egida-S, or refusals from a template
        preferred=("mistral", "phi"),  # parts of names: whose safe answer is taken where there are several
        harmless="",  # prompts whose own answers are chosen over a refusal, against over-refusal; "": none
        columns=groups.columns("prompt"),  # of that file
        num_harmless=config_dict.placeholder(int),  # of them; None takes all
        more="",  # a file of further pairs, such as a preference set of harmlessness
        num_more=config_dict.placeholder(int),  # of them; None takes all
    )
    c.max_new_tokens = 512
    c.before = ""  # workdir of a run on the same model and prompts, whose answers before training are taken over
    c.judge = "keyword"  # of attacks: keyword, model, endpoint; with commas between, the first one's rates lead
    c.judging = judges.settings(JUDGING)
    c.votes = ""  # a file of answers that people have judged, such as Egida-HSafe: the judges are compared with them
    c.tuning = tuning.settings()
    c.tuning.max_prompt_len = 512  # None: what the answers leave
    c.adapter = groups.adapter()
    c.compute = groups.compute()
    c.loop = groups.loop(log_every=1, save_every=50, eval_every=50)
    c.sinks = groups.SINKS
    c.ability = dict(
        questions="",  # a file of questions in ARC's shape
        texts="",  # a file of documents
        num_questions=config_dict.placeholder(int),  # None takes all
        num_texts=config_dict.placeholder(int),
    )
    c.cost = cost.settings()
    c.export = "bfloat16"  # weights of export/hf
    if arg in ("tiny", "laptop"):
        _small(c)
    if arg == "tiny":
        _tiny(c)
    elif arg == "laptop":
        _laptop(c)
    elif sizes == "smol":
        _smol(c)
        if arg == "smol_full":
            c.adapter.rank = 0
            c.tuning.peak_lr = 2e-5
    return c


def _small(c: ml_collections.ConfigDict) -> None:
    """The embedded world, in float32."""
    c.data.path = EMBEDDED
    c.data.near = None
    c.data.styles = guest_rules.STYLES
    c.split.num_unseen_styles = 3
    c.harmless.path = EMBEDDED
    c.pairs.harmless = EMBEDDED
    c.ability.questions = EMBEDDED
    c.ability.texts = EMBEDDED
    groups.small_compute(c)
    c.compute.unroll = 2
    c.tuning.max_len = 256
    c.tuning.max_prompt_len = None


def _tiny(c: ml_collections.ConfigDict) -> None:
    c.data.limit = 8
    c.data.train_limit = 8
    c.data.test_limit = 8
    c.harmless.limit = 4
    c.ability.num_questions = 2
    c.ability.num_texts = 2
    c.pairs.num = 8
    c.pairs.num_harmless = 4
    c.max_new_tokens = 8
    c.tuning.batch_size = 8
    c.tuning.epochs = 2.0
    c.tuning.peak_lr = 1e-3


def _laptop(c: ml_collections.ConfigDict) -> None:
    c.init_from = models.OBEDIENT
    c.engine.num_slots = 32
    c.engine.max_len = 192
    c.split.test_share = 0.25
    c.data.train_limit = 480
    c.data.test_limit = 240
    c.pairs.num = 400
    c.max_new_tokens = 48
    c.tuning.beta = 1.0  # with a small one DPO lowers rejected answers long after they are lost, and spelling suffers
    c.tuning.sft_weight = 4.0
    c.tuning.batch_size = 32
    c.tuning.epochs = 10.0
    c.tuning.peak_lr = 1.5e-4
    c.tuning.heldout_fraction = 0.1
    c.loop.log_every = 5
    c.loop.eval_every = 30
    c.loop.save_every = 30


def _smol(c: ml_collections.ConfigDict) -> None:
    """SmolLM2-135M-Instruct on real prompts, at most 300 pairs; an adapter, and as `smol_full` all weights."""
    c.data.path = "advbench_a.csv,harmbench_val.csv,malicious_instruct.csv,tdc2023_dev.csv"
    c.data.train_limit = 100
    c.data.test_limit = 100
    c.split.test_share = 0.4
    c.harmless.path = "xstest_prompts.csv,phtest_v0.1_a.csv"
    c.harmless.limit = 100
    c.harmless.is_drawn = True
    c.pairs.num = 80
    c.pairs.harmless = "harmless_train_first2000.csv"
    c.pairs.columns.prompt = "instruction"
    c.pairs.num_harmless = 40
    c.pairs.more = "hh_harmless_base_test_a.jsonl"
    c.pairs.num_more = 30
    c.max_new_tokens = 48
    c.engine.max_len = 1_280  # the longest of these attacks has 1,022 tokens
    c.judge = "keyword,model"
    c.judging.threshold = 0.5  # a model of this size seldom says Yes or No, but has probabilities of both
    c.judging.max_new_tokens = 1
    c.adapter.rank = 16
    groups.small_compute(c)
    c.tuning.batch_size = 6
    c.tuning.max_len = 128
    c.tuning.max_prompt_len = 80
    c.tuning.peak_lr = 2e-4
    c.tuning.sft_weight = 0.2
    c.loop.eval_every = 0
    c.loop.save_every = 5
    c.ability.questions = "careqa_en_a.jsonl"
    c.ability.texts = "wikitext2_valid.txt"
    c.ability.num_questions = 80
    c.ability.num_texts = 20


def _unread(c: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Names of settings that this config does not read, and why."""
    if c.pairs.path:
        yield "pairs.safe", "pairs.path has safe answers of its own"
        yield "data.train_limit", "pairs.path has pairs already"
    if c.pairs.safe == TEMPLATE:
        yield "pairs.preferred", f"pairs.safe={TEMPLATE!r} has one safe answer to each request"
    if not c.pairs.harmless:
        yield "pairs.columns.prompt", "pairs.harmless names no file"
    for name in ("questions", "texts"):
        if not c.ability[name]:
            yield f"ability.num_{name}", f"ability.{name} names no file"
    if c.split.unseen_topics:
        yield "split.topic_share", "split.unseen_topics names the topics"
        yield "split.topic_groups", "split.unseen_topics names the topics"
    if c.split.unseen_styles:
        yield "split.num_unseen_styles", "split.unseen_styles names the styles"


def sweep(c: ml_collections.ConfigDict) -> Iterator[dict[str, Any]]:
    for model, num, beta, rank in itertools.product(models.over_models(c), (50, 200, 1_000), (0.1, 0.3), (0, 8)):
        yield {**model, "pairs.num": num, "tuning.beta": beta, "adapter.rank": rank}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither prompts, weights nor devices to be seen."""
    models.check(c)
    models.check_models(c)
    checks.check_least(c, LEAST)
    tuning.check(c)
    cost.check(c.cost)
    named = {"data.path": c.data.path, "harmless.path": c.harmless.path, "pairs.path": c.pairs.path}
    named |= {"votes": c.votes}
    if c.before and errors.files_needed() and not pathlib.Path(c.before, BEFORE).is_dir():
        raise InputError(f"before={c.before!r} has no folder {BEFORE!r}; give the workdir of a run of this experiment")
    named |= {"pairs.harmless": c.pairs.harmless, "pairs.more": c.pairs.more}
    named |= {"ability.questions": c.ability.questions, "ability.texts": c.ability.texts}
    if c.pairs.safe != TEMPLATE:
        named["pairs.safe"] = c.pairs.safe
    for name in ("data.path", "harmless.path"):
        if not named[name]:
            raise InputError(f"{name} is empty; give a file of prompts, or {EMBEDDED}")
    for path in named.values():
        for one in asking.paths(path):
            if one and one != EMBEDDED:
                records.check(one)
    for name in ("data.kind", "harmless.kind"):
        if (kind := checks.leaf(c, name)) is not None:
            errors.one_of(name, kind, suites.KINDS)
    errors.one_of("data.dedup", c.data.dedup, suites.DEDUP)
    if c.harmless.is_drawn and c.harmless.limit is None:
        raise InputError("harmless.is_drawn=True draws harmless.limit prompts, and it is None; set it, or leave it out")
    errors.within("(0, 1]", **{"data.near": c.data.near}, hint=", or None to keep near duplicates")
    if c.data.templates:
        styles.read_templates(c.data.templates)
        if not c.data.styles:
            raise InputError("data.templates is not read without data.styles, the styles to render; name them")
    for name in ("harmless", "more"):
        if c.pairs[f"num_{name}"] is not None and not c.pairs[name]:
            raise InputError(f"pairs.num_{name}={c.pairs[f'num_{name}']} is not read without pairs.{name}; give a file")
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], _unread(c))
    checks.call(unseen.check, c.split)
    if c.split.topic_groups:
        gathering.read_groups(c.split.topic_groups)
    models.check_room(c)
    judges.check("judging", judges.listed(c.judge), c.judging, field="response_harmfulness", template=JUDGING)


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    return [tuning.plan(c, wanted, "DPO", c.pairs.num)]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float | None]:
    check(c)
    folder = pathlib.Path(workdir)
    tuning.check_devices(c)
    if c.before:
        take_over(pathlib.Path(c.before), folder)
    counts: dict[str, int] = {}
    plan = gathering.gather(c, folder, counts)
    target = models.with_weights(models.open_model(c, folder, toy_seed=c.seed), c)
    engine_fn = functools.cache(lambda: models.engine(target, c))
    measured = judges.Measured(target, engine_fn)
    with cache.Cache(folder / "verdicts.jsonl") as verdicts:
        who = [judges.build(kind, c.judging, c, folder, measured, verdicts) for kind in judges.listed(c.judge)]
        agreement = against_people(c, who, counts)
        rows = judged_answers(c, folder / BEFORE, target, engine_fn, plan, who, earlier=c.before)
        pairs = gathering.pair_up(c, plan, rows.pop(TRAIN), rows.pop(BENIGN), target.name, counts)
        files.write_rows(folder / "pairs.jsonl", pairs)
        can = {BEFORE: measure(c, target, plan, folder / BEFORE)}
        tuned = tuning.align(c, target, folder / "pairs.jsonl", folder, counts)
        own = models.of_another(c, f"run:{folder}")  # the aligned model, read as anybody would read it
        aligned = dataclasses.replace(models.load(own, folder), name="aligned")
        aligned_engine_fn = functools.cache(lambda: models.engine(aligned, own))
        after = judged_answers(own, folder / AFTER, aligned, aligned_engine_fn, plan.measuring(), who)
    can[AFTER] = measure(c, aligned, plan, folder / AFTER)
    records_of = [row for side in (*rows.values(), *after.values()) for row in side]
    files.write_rows(folder / "records.jsonl", records_of)
    report = page.Report(
        rows=records_of,
        judges=[judge.name for judge in who],
        ability=can,
        tuned=tuned,
        rates=cost.Rates(**c.cost),
        forms=frozenset(pair["chosen"] for pair in pairs if pair.get("chosen_model") != target.name),
        num_wanted=c.pairs.num,
        agreement=agreement,
        prompts=plan.on_page() if c.data.path == c.harmless.path == EMBEDDED else {},
    )
    return page.write(folder, report)


def judged_answers(
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    model: Model,
    engine_fn: Callable[[], Engine],
    plan: Plan,
    who: Sequence[Judge],
    *,
    earlier: str = "",
) -> dict[str, list[dict[str, Any]]]:
    """Judged answers to the prompts of each part of a plan.

    Args:
        folder: its name is the rows' `point`.
        who: judges of attacks, of training ones the first alone; of harmless prompts the keyword judge says whether
            they are refused.
        earlier: the workdir of another run, whose answers of this point are taken over.
    """
    prompts = [*plan.train, *plan.test, *plan.benign, *plan.harmless]
    work = asking.requests(prompts, [""], model, max_new_tokens=c.max_new_tokens, max_len=c.engine.max_len)
    source = pathlib.Path(earlier, folder.name) if earlier else None
    answers = asking.answers(folder, work, prompts, model, engine_fn, source=source)
    rows = [dict(answers[number, 0], point=folder.name) for number in range(len(prompts))]
    num_attacks = len(plan.train) + len(plan.test)
    attacks, benign = rows[:num_attacks], rows[num_attacks:]
    for row, prompt in zip(attacks, prompts):
        case = prompt.case
        row |= {"uuid": case.request, "style": case.style, "topics": list(case.topics), "cell": plan.split.cell(case)}
        row["verdicts"] = {}
    for judge in who:  # which pairs there are is the first judge's affair, and the others cost time
        first = 0 if judge is who[0] else len(plan.train)
        said = asking.judged(attacks[first:], prompts[first:num_attacks], judge)
        for row, one in zip(attacks[first:], said):
            row["verdicts"][judge.name] = one.verdict.response
    for row in attacks:
        row["verdict"] = row["verdicts"][who[0].name]
    for row, said in zip(benign, asking.judged(benign, prompts[num_attacks:], judging.keyword())):
        row["label"] = said.verdict.response_refusal
    sizes = {TRAIN: len(plan.train), TEST: len(plan.test), BENIGN: len(plan.benign), HARMLESS: len(plan.harmless)}
    parts = iter(rows)
    return {part: list(itertools.islice(parts, size)) for part, size in sizes.items()}


def take_over(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copy what another run has judged and measured before training; both are read only where they are of this model.

    The answers themselves follow once the model and its prompts are known.
    """
    for name in ("verdicts.jsonl", f"{BEFORE}/ability.json"):
        if (source / name).is_file() and not (folder / name).exists():
            content = (source / name).read_bytes()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.write(folder / name, lambda f: f.write(content))  # noqa: B023  (it is called here)


def against_people(c: ml_collections.ConfigDict, who: Sequence[Judge], counts: dict[str, int]) -> list[dict[str, Any]]:
    """A line for each judge: how it agrees with the majority of people's votes; [] without votes."""
    if not c.votes:
        return []
    voted = egida.load_votes(c.votes, counts=counts)
    out = []
    for judge in who:
        said = judge.classify([{"prompt": one.prompt, "response": one.response} for one in voted])
        agreement = rates.against_people([one.votes for one in voted], [one.verdict.response for one in said])
        line = {"judge": judge.name, "n": agreement.n, "uncertain": agreement.uncertain, "invalid": agreement.invalid}
        out.append(line | (dataclasses.asdict(agreement.agreement) if agreement.agreement else {}))
    return out


def measure(c: ml_collections.ConfigDict, model: Model, plan: Plan, folder: pathlib.Path) -> dict[str, Any]:
    return ability.measure(model, plan.questions, plan.texts, folder / "ability.json", max_len=c.engine.max_len)


def compare(folder: str) -> None:
    """What a sweep shows beside its numbers: the frontier, and attack success by pairs."""
    egida_sweep.write(pathlib.Path(folder))


METRICS = page.METRICS
headline = page.headline
