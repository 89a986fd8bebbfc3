"""What an alignment run reads: attacks to train on and to test on, harmless prompts, questions; and its pairs."""

import dataclasses
import functools
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from alignment import files
from alignment.errors import InputError
from alignment.filtering.duplicates import near
from alignment.safety.verdicts import COMPLIANCE
from data import records
from data.texts import egida, pair_formats, pairing, styles, suites, unseen
from data.toys import guest_rules
from experiments.safety import ability, asking
from experiments.safety.asking import Prompt

EMBEDDED = "synthetic:guest_rules"
NUM_TEXTS = 64  # of the embedded world
TEMPLATE = "template"
SAFE_ANSWERS = guest_rules.REFUSALS
_ASIDE = ("unseen_topics", "unseen_styles", "topic_groups")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run asks.

    Attributes:
        train: what the target answers for its pairs.
        test: attacks that measure; `split` knows the cell of each.
        harmless: prompts that should be answered.
        benign: others of that kind, whose answers the model is to keep.
        questions, texts: see `ability.measure`.
    """

    train: Sequence[Prompt]
    test: Sequence[Prompt]
    harmless: Sequence[Prompt]
    benign: Sequence[Prompt]
    split: unseen.Split
    questions: Sequence[Mapping[str, Any]]
    texts: Sequence[str]

    def measuring(self) -> "Plan":
        """The plan without what only training needs."""
        return dataclasses.replace(self, train=(), benign=())

    def on_page(self) -> dict[str, str]:
        """Prompts by their ids, for samples."""
        return {prompt.case.id: prompt.text for prompt in (*self.test, *self.harmless)}


def gather(c: ml_collections.ConfigDict, folder: pathlib.Path, counts: dict[str, int]) -> Plan:
    """Read, clean, render and split.

    Args:
        c: of egida.py.
        counts: receives what was read, dropped and left out.
    """
    prompts = asking.read(
        c.data.path,
        embedded={EMBEDDED: guest_rules.requests},
        limit=c.data.limit,
        counts=counts,
        bad_records_path=str(folder / "bad_records.jsonl"),
        kind=c.data.kind,
        dedup=c.data.dedup,
    )
    origin = {_named(prompt).request: prompt for prompt in prompts}
    cases = attacks(prompts, c, counts)
    options = {name: value for name, value in c.split.items() if name not in _ASIDE}
    options |= {name: c.split[name] or None for name in ("unseen_topics", "unseen_styles")}
    if c.split.topic_groups:
        options["topic_groups"] = read_groups(c.split.topic_groups)
    split = unseen.split(cases, seed=c.seed, **options)
    counts["renderings of training requests in unseen styles"] = split.num_left_out
    whole = egida.grid(cases)
    if whole.num_styles > 1:
        counts["pairs of a request and a style without an attack"] = whole.missing
        counts["attacks beyond the first of their request and style"] = whole.repeated

    def drawn(side: Sequence[suites.Case], limit: int | None, what: str) -> list[Prompt]:
        taken = asking.some(side, limit, c.seed)
        counts[f"{what} prompts asked"] = len(taken)
        counts[f"{what} prompts left out"] = len(side) - len(taken)
        return [dataclasses.replace(origin[case.request], case=case) for case in taken]

    train = [] if c.pairs.path else drawn(split.train, c.data.train_limit, "training")
    test = drawn(split.test, c.data.test_limit, "test")
    names = ", ".join(split.unseen_topics) or "none", ", ".join(split.unseen_styles) or "none"
    print(f"unseen topics: {names[0]}; unseen styles: {names[1]}", flush=True)
    measured = harmless(c, folder, counts)
    return Plan(train, test, measured, benign(c, folder, measured, split, counts), split, *abilities(c, counts))


def read_groups(path: str) -> dict[str, str]:
    """Topic -> group of a JSON file.

    Raises:
        InputError: no such file, or one of another form.
    """
    groups = files.read_object(path, "split.topic_groups names a file of topics and their groups")
    if not all(isinstance(name, str) for name in groups.values()):
        raise InputError(f"split.topic_groups={path!r} must be a JSON object of topics and their groups")
    return groups


def attacks(prompts: Sequence[Prompt], c: ml_collections.ConfigDict, counts: dict[str, int]) -> Sequence[suites.Case]:
    """The harmful prompts without near duplicates, rendered in the config's styles."""
    cases = [_named(prompt) for prompt in prompts if prompt.case.kind == suites.HARMFUL]
    if len(cases) < len(prompts):
        counts["prompts that are not harmful, left out of the attacks"] = len(prompts) - len(cases)
    if c.data.near is not None:
        cases = suites.without_near_duplicates(cases, functools.partial(near.removed, threshold=c.data.near), counts)
    if not c.data.styles:
        return cases
    templates = styles.read_templates(c.data.templates) if c.data.templates else None
    return styles.styled(cases, c.data.styles, templates=templates, is_inert=templates is None)


def _named(prompt: Prompt) -> suites.Case:
    """The case with its context in its text, an id that no other data set has, and a topic.

    A request without a topic has its data set as one. A request without an id of its own, which safe answers could
    name, has that of its text.
    """
    case = prompt.case
    request = case.request if case.request not in ("", case.id) else egida.prompt_key(case.prompt)
    topics, name = case.topics or (prompt.dataset,), f"{prompt.dataset}/{case.id}"
    return dataclasses.replace(case, id=name, prompt=prompt.text, context="", request=request, topics=topics)


def harmless(c: ml_collections.ConfigDict, folder: pathlib.Path, counts: dict[str, int]) -> list[Prompt]:
    """The harmless prompts of `c.harmless.path`; others are counted and left out."""
    prompts = asking.read(
        c.harmless.path,
        embedded={EMBEDDED: guest_rules.harmless},
        counts=counts,
        bad_records_path=str(folder / "bad_harmless.jsonl"),
        kind=c.harmless.kind,
        columns=_renamed(c.harmless.columns),
    )
    out: list[Prompt] = []
    for name in dict.fromkeys(prompt.dataset for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.dataset == name and prompt.case.kind == suites.HARMLESS]
        out += asking.some(own, c.harmless.limit, c.seed if c.harmless.is_drawn else None)
    counts["harmless prompts asked"] = len(out)
    counts["prompts of these files left out, harmless or not"] = len(prompts) - len(out)
    return out


def _renamed(columns: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if theirs}


def benign(
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    measured: Sequence[Prompt],
    split: unseen.Split,
    counts: dict[str, int],
) -> list[Prompt]:
    """The prompts of `c.pairs.harmless`, without those that measure, and without unseen topics and styles."""
    if not c.pairs.harmless:
        return []
    prompts = asking.read(
        c.pairs.harmless,
        embedded={EMBEDDED: functools.partial(guest_rules.harmless, "train")},
        counts=counts,
        bad_records_path=str(folder / "bad_benign.jsonl"),
        kind=suites.HARMLESS,
        columns=_renamed(c.pairs.columns),
    )
    measured_texts, out = {prompt.text for prompt in measured}, []
    for prompt in prompts:
        case = prompt.case
        is_new = bool(set(case.topics) & set(split.unseen_topics)) or case.style in split.unseen_styles
        if case.kind == suites.HARMLESS and prompt.text not in measured_texts and not is_new:
            out.append(dataclasses.replace(prompt, dataset=f"{prompt.dataset} to keep"))
    out = list(asking.some(out, c.pairs.num_harmless, c.seed))
    counts["harmless prompts whose answers are to be kept"] = len(out)
    counts["prompts of that file left out"] = len(prompts) - len(out)
    return out


def abilities(
    c: ml_collections.ConfigDict, counts: dict[str, int]
) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
    """Questions with several answers, and texts; () where the config names none."""
    questions: Sequence[Mapping[str, Any]] = ()
    texts: Sequence[str] = ()
    if c.ability.questions == EMBEDDED:
        questions = guest_rules.questions()[: c.ability.num_questions]
    elif c.ability.questions:
        questions = ability.read_questions(c.ability.questions, c.ability.num_questions, counts)
    if c.ability.texts == EMBEDDED:
        texts = guest_rules.texts(c.ability.num_texts or NUM_TEXTS)
    elif c.ability.texts:
        texts = ability.read_texts(c.ability.texts, c.ability.num_texts, counts)
    return questions, texts


def pair_up(
    c: ml_collections.ConfigDict,
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    kept_rows: Sequence[Mapping[str, Any]],
    target_name: str,
    counts: dict[str, int],
) -> list[dict[str, Any]]:
    """The lines of pairs.jsonl: a sample of the target's own pairs, those of harmless prompts, and further ones.

    Args:
        rows, kept_rows: judged answers to `plan.train` and to `plan.benign`.
    """
    if c.pairs.path:
        tested = {prompt.case.request for prompt in plan.test}
        read = egida.load_pairs(c.pairs.path, counts=counts)
        pairs = [pair for pair in read if pair.uuid not in tested]
        counts["pairs of test requests, left out"] = len(read) - len(pairs)
    else:
        pairs = pairing.pair_up(
            [prompt.case for prompt in plan.train],
            [row["response"].strip() for row in rows],
            [row["verdict"] for row in rows],
            safe_answers(c, plan.train, counts),
            target_model=target_name,
            counts=counts,
        )
    if not pairs:
        raise InputError(
            f"no pair of an unsafe answer and a safe one is left of {len(rows):,} answers of the target; counts: "
            f"{counts}. It may be safe already; otherwise give more prompts, or safe answers to them"
        )
    out = [_line(pair) for pair in pairing.sampled(pairs, c.pairs.num, seed=c.seed)]
    counts["pairs beyond pairs.num"] = len(pairs) - len(out)
    return [*out, *reversed_pairs(c, plan, kept_rows, target_name, counts), *more(c, counts)]


def reversed_pairs(
    c: ml_collections.ConfigDict,
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    target_name: str,
    counts: dict[str, int],
) -> list[dict[str, Any]]:
    """Pairs the other way round: the target's own answer to a harmless prompt is chosen over a refusal."""
    out = []
    for prompt, row in zip(plan.benign, rows, strict=True):
        case, response = prompt.case, row["response"].strip()
        if row["label"] != COMPLIANCE:
            counts["harmless prompts that were not answered, not paired"] = 1 + counts.get(
                "harmless prompts that were not answered, not paired", 0
            )
            continue
        refusal = random.Random(f"refusal {c.seed}/{case.id}").choice(SAFE_ANSWERS)
        both = dict(chosen=response, rejected=refusal, target_model=target_name, chosen_model=target_name)
        out.append(_line(egida.Pair(case.id, case.prompt, style=case.style, topics=case.topics, **both)))
    return out


def _line(pair: egida.Pair) -> dict[str, Any]:
    return dataclasses.asdict(pair) | {"topics": list(pair.topics)}


def safe_answers(
    c: ml_collections.ConfigDict, prompts: Sequence[Prompt], counts: dict[str, int]
) -> Mapping[str, egida.SafeAnswer]:
    """A safe answer for each request: from a file, or a refusal of the template, drawn by the request's id."""
    if c.pairs.safe != TEMPLATE:
        return egida.best_answers(egida.load_answers(c.pairs.safe, counts=counts), preferred=tuple(c.pairs.preferred))
    out = {}
    for request in dict.fromkeys(prompt.case.request for prompt in prompts):
        text = random.Random(f"safe {c.seed}/{request}").choice(SAFE_ANSWERS)
        out[request] = egida.SafeAnswer(request, "", text, TEMPLATE)
    return out


def more(c: ml_collections.ConfigDict, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Pairs of a preference set, drawn by seed."""
    if not c.pairs.more:
        return []
    rows = records.read_counted(c.pairs.more, counts=counts)
    items = pair_formats.read(rows, counts=counts)
    pair_formats.check_pairs(items, c.pairs.more)
    num = len(items) if c.pairs.num_more is None else min(c.pairs.num_more, len(items))
    chosen = sorted(random.Random(f"more {c.seed}").sample(range(len(items)), num))
    return [pair_formats.row_of(items[i], f"more/{i}") for i in chosen]
