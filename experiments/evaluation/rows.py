"""Scores of one model on one set of questions, from what it is asked: the rows of careqa.py's tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from alignment.evaluation import multiple_choice, open_ended, relaxed_perplexity
from alignment.models import bert, bleurt
from data.texts import exams
from data.texts.exam_shapes import Item
from data.texts.exams import Exam
from experiments.evaluation import asking, stored, voting
from experiments.pages import careqa as page


class Graders(NamedTuple):
    """What compares answers with references by weights or annotations; None where a config names none."""

    encoder: bert.Encoder | None = None
    grader: bleurt.Scorer | None = None
    annotations: Mapping[str, Mapping[str, Any]] | None = None


def closed(
    c: ml_collections.ConfigDict,
    subject: Any,
    exam: Exam,
    ask: stored.Ask,
    more: dict[str, Any],
    voter: voting.Voter,
) -> list[dict[str, Any]]:
    """Rows of scores of one model on one closed set, by protocol."""
    items, rows = exam.items, []
    protocols = list(dict.fromkeys(asking.protocol_of(exam, protocol) for protocol in c.protocols))
    if not subject.has_logprobs:
        protocols = [protocol for protocol in protocols if protocol in multiple_choice.WRITTEN]
    for protocol in protocols:
        if not voting.can_be_asked(exam, protocol):
            print(f"{exam.name}: it has more options than there are letters, so {protocol} is left out", flush=True)
            continue
        if protocol in multiple_choice.VOTED:
            got = voter.closed(exam, protocol, ask)
            more["voted"].append(voting.summary_row(subject.name, exam.name, protocol, got["summary"]))
            rows.append(closed_row(subject.name, exam, protocol, got["chosen"], more["groups"]))
            continue
        length = c.max_new_tokens if protocol in multiple_choice.WRITTEN else 0
        got = ask(
            protocol, lambda p=protocol, n=length: asking.closed(subject, exam, items, p, n), max_new_tokens=length
        )
        rows.append(closed_row(subject.name, exam, protocol, got["chosen"], more["groups"]))
        if "nats" in got and c.consistency.samples and protocol == protocols[0]:
            drawn = asking.drawn_choices(got["nats"], c.consistency.samples, c.seed)
            more["consistency"].append(page.agreement_row(subject.name, exam.name, protocol, drawn))
    some = [item for item in items if item.paraphrases][: c.rephrasing.limit]
    if some and c.rephrasing.wordings and protocols[0] not in multiple_choice.WRITTEN:
        num = c.rephrasing.wordings
        chosen = ask(
            "rephrased",
            lambda: asking.rephrased_choices(subject, exam, some, protocols[0], num),
            num=num,
            limit=len(some),
            protocol=protocols[0],
        )
        golds = [item.gold or 0 for item in some]
        more["resilience"].append(page.rephrased_row(subject.name, exam.name, protocols[0], chosen, golds))
    return rows


def closed_row(
    model: str, exam: Exam, protocol: str, chosen: Sequence[int | None], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """The accuracy of one protocol beside its baselines; rows of categories and years go to `groups`."""
    letter, always = multiple_choice.one_letter([item.gold or 0 for item in exam.items])
    guessing = multiple_choice.guessing([len(item.options) for item in exam.items])
    results = [multiple_choice.Result(item.gold or 0, n, item.groups) for item, n in zip(exam.items, chosen)]
    key = {"model": model, "set": exam.name, "metric": "accuracy", "protocol": protocol}
    accuracy = multiple_choice.accuracy(results)
    row = key | {"value": accuracy.pop("accuracy")} | accuracy
    row |= {"baseline": always, "baseline_option": letter, "guessing": guessing}
    if exam.repeated:
        once = [result for i, result in enumerate(results) if i not in set(exam.repeated)]
        row["without_repeated"] = multiple_choice.accuracy(once)["accuracy"]
    for name in ("category", "year"):
        groups += [key | line for line in multiple_choice.by_group(results, name)]
    return row


def opened(
    c: ml_collections.ConfigDict, subject: Any, exam: Exam, ask: stored.Ask, more: dict[str, Any], graders: Graders
) -> list[dict[str, Any]]:
    """Rows of scores of one model on one open set: text metrics, perplexities, Relaxed Perplexity."""
    items, length = exam.items, c.max_new_tokens
    key = {"model": subject.name, "set": exam.name, "protocol": ""}
    said = ask("written", lambda: asking.written(subject, items, length), max_new_tokens=length)["said"]
    more["said"][subject.name, exam.name] = said
    values = asking.text_scores(said, items, *graders, compatible=c.compatible)
    foreign = open_ended.foreign_share(" ".join(item.answers[0] for item in items))
    if c.compatible and foreign > open_ended.FOREIGN:
        print(f"{exam.name}: WARNING: {100 * foreign:.0f} % of the letters are outside a to z, which this ROUGE drops")
    rows = [key | {"metric": name} | page.corpus_row(values[name]) for name in values]
    if subject.has_logprobs:
        got = ask("likelihoods", lambda: asking.likelihoods(subject, items))
        rows += [key | row for row in perplexities(got, c, items)]
        values[page.TOKENS] = token_perplexities(got)
        if c.rp.limit:
            made, values["relaxed_perplexity"] = relaxed_rows(c, subject, exam, ask, more, key)
            rows += made
    more["items"][subject.name, exam.name] = values
    more_rows = resilience(c, subject, exam, ask)
    for name in more_rows:
        more[name] += more_rows[name]
    return rows


def resilience(c: ml_collections.ConfigDict, subject: Any, exam: Exam, ask: stored.Ask) -> dict[str, list[Any]]:
    """How far ROUGE-L of answers moves between wordings (`resilience`) and between draws (`consistency`)."""
    out: dict[str, list[Any]] = {"resilience": [], "consistency": []}
    length = c.max_new_tokens
    some, wordings = exam.items[: c.rephrasing.limit], c.rephrasing.wordings
    if some and wordings:
        options = dict(num=wordings, limit=len(some), max_new_tokens=length)
        answers = ask("rephrased", lambda: asking.rephrased_answers(subject, some, wordings, length), **options)
        out["resilience"] += _spread(subject, exam, answers, some)
    some, draws = exam.items[: c.consistency.limit], c.consistency.samples
    if some and draws:
        options = dict(num=draws, limit=len(some), max_new_tokens=length, seed=c.seed)
        answers = ask("drawn", lambda: asking.drawn_answers(subject, some, draws, length, c.seed), **options)
        out["consistency"] += _spread(subject, exam, answers, some)
    return out


def _spread(
    subject: Any, exam: Exam, all_answers: Sequence[Sequence[str]], items: Sequence[Item]
) -> list[dict[str, Any]]:
    if not open_ended.is_installed():
        return []
    scores = [
        [open_ended.ngram_scores(answer, item.answers[0])["rougeL"] for answer in answers]
        for answers, item in zip(all_answers, items, strict=True)
    ]
    return [page.spread_row(subject.name, exam.name, "rougeL", scores)]


def relaxed_rows(
    c: ml_collections.ConfigDict,
    subject: Any,
    exam: Exam,
    ask: stored.Ask,
    more: dict[str, Any],
    key: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[float]]:
    """The row of Relaxed Perplexity, over the first questions that the model can read with all that is written.

    Returns:
        The row (none where the model can read no question), and a value of each question, NaN of those left out.
    """
    each = [math.nan] * len(exam.items)
    first = exam.items[: c.rp.limit]
    prompts, references = [exams.open_prompt(item) for item in first], [item.answers[0] for item in first]
    fits = subject.fitting(prompts, references, c.rp.n_max)
    if len(fits) < len(first):
        print(
            f"{subject.name}, {exam.name}: {len(first) - len(fits)} questions are too long for Relaxed Perplexity with "
            f"engine.max_len={c.engine.max_len}, and are left out of it",
            flush=True,
        )
    if not fits:
        return [], each
    some, rp = [first[i] for i in fits], dict(c.rp)
    stored_curves = ask("relaxed", lambda: asking.relaxed(subject, some, rp, c.seed), rp=rp, items=fits, seed=c.seed)
    curves = asking.curves_of(stored_curves)
    more["curves"][subject.name, exam.name] = curves
    name = "relaxed_perplexity" if c.rp.temperature == 1 else "relaxed_perplexity_tau_prefix"
    for i, curve in zip(fits, curves, strict=True):
        each[i] = curve.relaxed(c.rp.aggregate)
    whole = relaxed_perplexity.corpus([each[i] for i in fits], seed=c.seed)
    drawn = relaxed_perplexity.over_continuations(curves, c.rp.aggregate, seed=c.seed)
    copies = sum(references[i].casefold() in prompts[i].casefold() for i in fits)
    row = {
        "metric": name,
        "value": whole.pop("geometric_mean"),
        "left_out": len(first) - len(fits),
        "in_prompt": copies,
        "continuations": c.rp.samples,
        "low_by_draws": drawn[0] if drawn else None,
        "high_by_draws": drawn[1] if drawn else None,
    }
    return [{**key, **row, **whole}], each


def token_perplexities(got: Mapping[str, Any]) -> list[float]:
    """Perplexity by tokens of every reference behind its question; NaN of one without a token."""
    pairs = zip(got["conditional"], got["tokens"], strict=True)
    return [relaxed_perplexity.perplexity(nats, num) if num else math.nan for nats, num in pairs]


def perplexities(got: Mapping[str, Any], c: ml_collections.ConfigDict, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Rows of the perplexity family: after the question and alone, by words and bytes, and by tokens."""
    texts = [item.answers[0] for item in items]
    usable = [i for i, text in enumerate(texts) if text.strip()]
    rows = []
    for kind in ("conditional", "unconditional"):
        numbers = open_ended.perplexities(
            [got[kind][i] for i in usable], [texts[i] for i in usable], compatible=c.compatible
        )
        rows += [
            {"metric": f"{name}_{kind}", "value": value if math.isfinite(value) else None, "n": len(usable)}
            for name, value in numbers.items()
        ]
    each = token_perplexities(got)
    whole = relaxed_perplexity.corpus([each[i] for i in usable], seed=c.seed)
    return [*rows, {"metric": page.TOKENS, "value": whole.pop("geometric_mean")} | whole]
