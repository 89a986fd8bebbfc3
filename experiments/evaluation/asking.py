"""Questions of an exam put to a model: what it chooses, what it writes, how likely it finds the reference.

Every function returns plain values that JSON can hold, since a run keeps them for a later start.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignment.errors import InputError
from alignment.evaluation import (
    consistency,
    extraction,
    multiple_choice,
    open_ended,
    radgraph,
    relaxed_perplexity,
    similarity,
)
from alignment.evaluation.multiple_choice import COT, GENERATED, LETTERS, TEXTS
from data import records
from data.texts import exams
from data.texts.exam_shapes import LETTERS as ALPHABET
from data.texts.exam_shapes import Item
from data.texts.exams import Exam
from experiments.evaluation.services import Sampling

ENDINGS = {  # by protocol: for options with letters, and for more options than there are letters
    GENERATED: (
        "Answer with the letter of the right option alone, as in: Answer: B",
        "Answer with the right option's name alone.",
    ),
    COT: (
        "Think step by step. End with the letter of the right option, as in: Answer: B",
        "Think step by step. End with a line that holds the right option's name alone.",
    ),
}
FRAMES = (  # of an open question, in place of the set's own instruction
    "{question}",
    "Please answer the following question.\n{question}",
    "Question: {question}",
    "Here is a question from medicine. Give a short answer.\n{question}",
    "{question}\nGive the answer in one sentence.",
    "Answer as an expert would.\n{question}",
)
GRADING = (
    "Grade an answer to a medical question against a reference, from 1 (wrong or unsafe) to 5 (all that matters is "
    "there and right). Other words for the same are as good.\n\nQuestion: {question}\n\nReference: {reference}\n\n"
    "Answer: {answer}\n\nWrite the grade alone, a number from 1 to 5."
)
GRADE_TOKENS = 8
TOP_P = 0.9  # of the draws of self-consistency


def protocol_of(exam: Exam, protocol: str) -> str:
    """The protocol under which a set is scored: one that has no letters is asked for the options' texts."""
    return TEXTS if protocol == LETTERS and not exams.has_letters(exam.style) else protocol


def options_nats(subject: Any, exam: Exam, items: Sequence[Item], *, by_letter: bool) -> list[list[float]]:
    """Log-probability of every option of every item, by its letter or its text."""
    pairs = []
    for item in items:
        prompt = subject.prompt(exams.prompt(exam, item, by_letter=by_letter))
        answers = ALPHABET[: len(item.options)] if by_letter else item.options
        pairs += [(prompt, f"{subject.delimiter}{answer}") for answer in answers]
    totals = iter(subject.nats(pairs).total_N.tolist())
    return [[next(totals) for _ in item.options] for item in items]


def closed(subject: Any, exam: Exam, items: Sequence[Item], protocol: str, max_new_tokens: int) -> dict[str, Any]:
    """`chosen`: the number of an option for each item, or None; and what it was chosen by, `nats` or `said`."""
    if protocol in multiple_choice.WRITTEN:
        prompts = [
            subject.prompt(f"{exams.written_prompt(exam, item)}{ENDINGS[protocol][len(item.options) > len(ALPHABET)]}")
            for item in items
        ]
        said = [answers[0] for answers in subject.write(prompts, Sampling(max_new_tokens))]
        named = [extraction.named(text, item.options) for text, item in zip(said, items)]
        return {"chosen": [one.option for one in named], "said": said, "status": [one.status for one in named]}
    nats = options_nats(subject, exam, items, by_letter=protocol == LETTERS)
    chosen = [multiple_choice.choose(totals, item.options, protocol) for totals, item in zip(nats, items)]
    return {"chosen": chosen, "nats": nats}


def written(subject: Any, items: Sequence[Item], max_new_tokens: int) -> dict[str, Any]:
    """The greedy answer to each open question, up to a blank line."""
    prompts = [subject.prompt(exams.open_prompt(item)) for item in items]
    stop = ("\n\n",)
    return {"said": [answers[0].strip() for answers in subject.write(prompts, Sampling(max_new_tokens, stop=stop))]}


def likelihoods(subject: Any, items: Sequence[Item]) -> dict[str, Any]:
    """Nats and tokens of the reference after its question, and its nats on its own."""
    pairs = [(subject.prompt(exams.open_prompt(item)), f"{subject.delimiter}{item.answers[0]}") for item in items]
    scores = subject.nats(pairs)
    alone = subject.rolling([item.answers[0] for item in items])
    return {
        "conditional": scores.total_N.tolist(),
        "tokens": scores.length_N.tolist(),
        "unconditional": np.asarray(alone).tolist(),
    }


def relaxed(subject: Any, items: Sequence[Item], rp: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Relaxed Perplexity's curves: `offsets`, and of each item `logps` [N,K] (None for -inf) and `length`."""
    curves = subject.curves(
        [exams.open_prompt(item) for item in items],
        [item.answers if rp["all_answers"] else item.answers[:1] for item in items],
        with_variants=rp["variants"],
        num_samples=rp["samples"],
        n_max=rp["n_max"],
        stride=rp["stride"],
        temperature=rp["temperature"],
        seed=seed,
    )
    return {
        "offsets": list(curves[0].offsets),
        "logps": [[[_plain(x) for x in row] for row in curve.logps_NK.tolist()] for curve in curves],
        "length": [curve.length for curve in curves],
    }


def curves_of(stored: Mapping[str, Any]) -> list[relaxed_perplexity.Curve]:
    """The curves that `relaxed` gave."""
    return [
        relaxed_perplexity.Curve(
            tuple(stored["offsets"]), np.array([[-math.inf if x is None else x for x in row] for row in logps]), length
        )
        for logps, length in zip(stored["logps"], stored["length"])
    ]


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rephrased_choices(
    subject: Any, exam: Exam, items: Sequence[Item], protocol: str, num: int
) -> list[list[int | None]]:
    """What is chosen under each of `num` wordings of a question: its own and its paraphrases; [N][R]."""
    out: list[list[int | None]] = [[] for _ in items]
    for r in range(num):
        prompts = [
            dataclasses.replace(item, question=(item.question, *item.paraphrases)[r])
            for item in items
            if len(item.paraphrases) >= r
        ]
        chosen = iter(closed(subject, exam, prompts, protocol, 0)["chosen"] if prompts else [])
        for answers, item in zip(out, items):
            if len(item.paraphrases) >= r:
                answers.append(next(chosen))
    return out


def rephrased_answers(subject: Any, items: Sequence[Item], num: int, max_new_tokens: int) -> list[list[str]]:
    """Greedy answers to `num` wordings: an item's paraphrases where it has enough of them, else FRAMES; [N][R]."""
    prompts = []
    for item in items:
        if len(item.paraphrases) >= num - 1:
            questions = (item.question, *item.paraphrases)[:num]
            prompts += [subject.prompt(q) for q in questions]
        else:
            text = f"{item.context}\n\n{item.question}" if item.context else item.question
            prompts += [subject.prompt(frame.format(question=text)) for frame in FRAMES[:num]]
    said = [a[0].strip() for a in subject.write(prompts, Sampling(max_new_tokens, stop=("\n\n",)))]
    return [said[i * num : (i + 1) * num] for i in range(len(items))]


def drawn_answers(subject: Any, items: Sequence[Item], num: int, max_new_tokens: int, seed: int) -> list[list[str]]:
    """`num` draws of an answer to each open question, at temperature 1 from the likeliest TOP_P; [N][R]."""
    prompts = [subject.prompt(exams.open_prompt(item)) for item in items]
    how = Sampling(max_new_tokens, temperature=1.0, top_p=TOP_P, num=num, seed=seed, stop=("\n\n",))
    return [[answer.strip() for answer in answers] for answers in subject.write(prompts, how)]


def with_fair_paraphrases(exam: Exam) -> tuple[Exam, int]:
    """The exam without paraphrases that give the right answer away, and their number."""
    items, num = [], 0
    for item in exam.items:
        gold = item.answers[0] if exam.is_open else item.options[item.gold or 0]
        fair = tuple(p for p in item.paraphrases if consistency.keeps_meaning(item.question, p, gold, gold))
        num += len(item.paraphrases) - len(fair)
        items.append(dataclasses.replace(item, paraphrases=fair))
    return dataclasses.replace(exam, items=tuple(items)), num


def drawn_choices(nats: Sequence[Sequence[float]], num: int, seed: int) -> list[list[int]]:
    """`num` draws of an option from the model's own probabilities of the options, of which TOP_P are in the draw."""
    rng = np.random.default_rng(seed)
    out = []
    for totals in nats:
        weights_C = np.exp(np.array(totals) - max(totals))
        weights_C /= weights_C.sum()
        order_C = np.argsort(-weights_C, kind="stable")
        before_C = np.cumsum(weights_C[order_C]) - weights_C[order_C]
        weights_C[order_C[before_C >= TOP_P]] = 0.0
        out.append(rng.choice(len(totals), size=num, p=weights_C / weights_C.sum()).tolist())
    return out


def text_scores(
    said: Sequence[str],
    items: Sequence[Item],
    encoder: Any | None,
    grader: Any | None = None,
    annotations: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    compatible: bool,
) -> dict[str, list[float]]:
    """Metric -> a value of each item, NaN where it is undefined; metrics without their library or weights are absent.

    Args:
        encoder: of `alignment.models.bert`.
        grader: of `alignment.models.bleurt`.
        annotations: of RadGraph, by the annotated text; an answer counts where it and its reference have one.
    """
    out: dict[str, list[float]] = {}
    references = [item.answers[0] for item in items]
    if open_ended.is_installed():
        rows = [
            open_ended.ngram_scores(a, b, compatible=compatible, least=exams.LEAST_LETTERS.get(item.task, 1))
            for a, b, item in zip(said, references, items)
        ]
        out |= {name: [row[name] for row in rows] for name in open_ended.NGRAM}
    if encoder is not None:
        out |= _vector_scores(said, references, encoder)
    if grader is not None:
        grades = grader.score(said, references).tolist()
        out["bleurt"] = [grade if text.strip() else math.nan for grade, text in zip(grades, said)]
    if annotations is not None:
        pairs = [[annotations.get(text.strip()) for text in both] for both in zip(said, references)]
        rows = [radgraph.f1(*both) if None not in both else dict.fromkeys(radgraph.LEVELS, math.nan) for both in pairs]
        out |= {f"radgraph_{level}": [row[level] for row in rows] for level in radgraph.LEVELS}
    return out


def read_annotations(path: str) -> dict[str, Mapping[str, Any]]:
    """RadGraph's annotations by their texts: records of `text`, as it was given to RadGraph, and `entities`.

    Raises:
        InputError: a record of another form, with its file and line.
    """
    out = {}
    for row in records.read_counted(path, counts={}):
        text = row.value.get("text")
        try:
            radgraph.stated(row.value)
        except InputError as e:
            raise InputError(f"{row.file}:{row.line}: {e}") from None
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{row.file}:{row.line}: an annotation needs its text, as it was given to RadGraph")
        out[text.strip()] = row.value
    return out


def graded(judge: Any, said: Sequence[str], items: Sequence[Item]) -> list[int | None]:
    """A judge's grade of each answer, 1 to 5; None for an empty answer, which is not shown, and where none is read."""
    wanted = [i for i, text in enumerate(said) if text.strip()]
    prompts = [
        judge.prompt(GRADING.format(question=items[i].question, reference=items[i].answers[0], answer=said[i]))
        for i in wanted
    ]
    out: list[int | None] = [None] * len(said)
    for i, answers in zip(wanted, judge.write(prompts, Sampling(GRADE_TOKENS)) if prompts else []):
        grades = re.findall(r"(?<![\d.])[1-5](?!\d|\.\d)", answers[0])
        out[i] = int(grades[0]) if grades else None
    return out


def _vector_scores(said: Sequence[str], references: Sequence[str], encoder: Any) -> dict[str, list[float]]:
    states = encoder.hidden([*said, *references], with_special=False)
    ids = [one[1:-1] for one in encoder.encode([*said, *references])]
    idf = similarity.inverse_frequencies(ids[len(said) :])
    unseen = math.log(len(said) + 1)  # of a token that no reference has
    weights = [[idf.get(token, unseen) for token in one] for one in ids]
    bert, mover = [], []
    for i in range(len(said)):
        j = len(said) + i
        bert.append(similarity.bert_score(states[i], states[j])["f1"])
        mover.append(similarity.mover_score(states[i], states[j], weights[i], weights[j]))
    return {"bertscore": bert, "moverscore": mover}
