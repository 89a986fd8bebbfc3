"""What medical models know: accuracy on exams, metrics of open answers, Relaxed Perplexity, and how far they agree.

Paper:   Arias-Duart et al. 2025, arXiv:2502.06666 (CareQA and its suite)
Run:     python -m experiments.run --config experiments/careqa.py --config.data.path=CareQA_en.jsonl,CareQA_open.jsonl
         --config.models="('hf:DIR','run:DIR')"
Laptop:  python -m experiments.run --config experiments/careqa.py:laptop   (CPU, minutes; `tiny`: seconds)
Smol:    make models, then the same with careqa.py:smol and --config.data.path of your files

Five toys of growing training are asked 48 questions on invented remedies, closed and open, so that all metrics have
something true to show. A score's key has its protocol: letters (log-probability of the option's letter, as
lm-evaluation-harness asks), texts (of the option's text), chars and bytes (that by its length), generated and cot (what
the model writes). The formula of Relaxed Perplexity is a reconstruction: alignment/evaluation/relaxed_perplexity.py.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.evaluation import multiple_choice, open_ended, relaxed_perplexity
from alignment.models import bert
from alignment.train import writers
from data import records
from data.texts import exams
from data.texts.exam_shapes import CHOICES, OPEN, Item
from data.texts.exams import Exam
from data.toys import remedies
from experiments.evaluation import asking, stored, subjects
from experiments.launch import checks
from experiments.pages import careqa as page

SETTINGS = ("", "laptop", "smol", "tiny")
EMBEDDED = "synthetic:remedies"
LEAST = {
    "data.limit": (1, "None takes all questions"),
    "max_new_tokens": (1, ""),
    "rp.samples": (1, ""),
    "rp.n_max": (0, ""),
    "rp.stride": (1, ""),
    "rp.limit": (0, "0 leaves Relaxed Perplexity out"),
    "rephrasing.wordings": (0, "0 leaves it out"),
    "consistency.samples": (0, "0 leaves it out"),
    "bootstrap": (1, ""),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(subjects.engine_settings(arg))
    c.seed = 0  # of everything that is drawn
    c.models = ("hf:Qwen/Qwen2.5-1.5B-Instruct",)  # hf:, run:, gguf:, endpoint:<name>, toy:<steps>
    c.endpoint = subjects.settings()
    c.data = dict(
        path="CareQA_en.jsonl,CareQA_en_open.jsonl",  # files with commas between; the summary's accuracy is the first's
        columns=dict(question="", answer=""),  # a file's own names; "": by its shape
        overrides="",  # a JSON file of id -> columns, for rows with a fault that you have looked at
        opened="",  # closed files with commas between that are asked as open questions as well
        style=config_dict.placeholder(str),  # how closed sets are asked: choices, plain, subject; None: by each set
        limit=config_dict.placeholder(int),  # questions of each file; None takes all
    )
    c.protocols = (multiple_choice.LETTERS,)  # letters, texts, chars, bytes, generated, cot; the first is the default
    c.chat = False  # True: a question is a user's turn of the chat template, and no blank parts it from the answer
    c.compatible = False  # True: BLEU, ROUGE and words as the public tasks of the harness count them
    c.encoder = ""  # folder of a BERT-like encoder for BERTScore and MoverScore; "": they are left out
    c.max_new_tokens = 256  # of an open or a written answer
    c.rp = dict(
        limit=100,  # open questions of each set; 0: none
        samples=16,  # continuations of each
        n_max=128,  # tokens of one
        stride=8,
        temperature=1.0,  # of the continuations; another one is not the metric
        aggregate=relaxed_perplexity.MEAN,  # over offsets: mean, sum, best
        variants=True,  # the answer also without the blank and with the other case at its beginning
        all_answers=True,  # of several accepted answers all count; False: the first
    )
    c.rephrasing = dict(wordings=6, limit=50)  # of a question, its own among them; questions of each set
    c.consistency = dict(samples=10)  # draws of an option for each closed question
    c.bootstrap = 1_000  # resamples of a correlation
    if arg in ("tiny", "laptop"):
        c.data.path = EMBEDDED
        c.protocols = (multiple_choice.TEXTS, multiple_choice.LETTERS)
        c.max_new_tokens = 64
        c.rp.update(samples=8, n_max=32, limit=24)
    if arg == "tiny":
        c.models = ("random", "random")
        c.data.limit = 4
        c.max_new_tokens = 6
        c.engine.max_len = 320
        c.rp.update(samples=2, n_max=8, limit=2)
        c.rephrasing.update(wordings=2, limit=2)
        c.bootstrap = 10
    elif arg == "laptop":
        c.models = subjects.TOYS
        c.rephrasing.limit = 24
    elif arg == "smol":
        c.models = ("hf:models/smollm2",)
        c.data.path = "careqa_en_a.jsonl,medqa_4opt_val.jsonl,medmcqa_train_sample_first3000.jsonl,pqal_non_test.jsonl,"
        c.data.path += "mmlu_clinical_knowledge_val.jsonl"
        c.data.opened = "careqa_en_a.jsonl,pqal_non_test.jsonl"
        c.data.limit = 150
        c.encoder = "models/minilm"
        c.max_new_tokens = 48
        c.rp.update(limit=24, n_max=64, variants=False)
        c.rephrasing.update(wordings=3, limit=8)
    return c


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither questions, weights nor devices to be seen."""
    checks.check_least(c, LEAST)
    subjects.check(c)
    if not isinstance(c.protocols, tuple) or not c.protocols:
        raise InputError(f"protocols={c.protocols!r} must be a tuple, such as ('letters',)")
    for protocol in c.protocols:
        errors.one_of("protocols", protocol, multiple_choice.PROTOCOLS)
    services = [spec for spec in c.models if spec.startswith("endpoint:")]
    if services and not set(c.protocols) & set(multiple_choice.WRITTEN):
        raise InputError(
            f"models has {services[0]!r}, whose service gives no log-probabilities, and protocols={c.protocols!r} need "
            "them; add 'generated' or 'cot'"
        )
    errors.one_of("rp.aggregate", c.rp.aggregate, relaxed_perplexity.AGGREGATES)
    if not c.rp.temperature > 0:
        raise InputError(f"rp.temperature={c.rp.temperature} must be above 0; 1 is the metric's")
    exams.check_style(c.data.style)
    for path in paths(c):
        if path != EMBEDDED:
            records.check(path)
    if unknown := [path for path in listed(c.data.opened) if path not in paths(c)]:
        raise InputError(f"data.opened has {unknown[0]!r}, which data.path has not; name files of it")
    if c.rephrasing.wordings == 1 or c.rephrasing.wordings > len(asking.FRAMES):
        raise InputError(f"rephrasing.wordings={c.rephrasing.wordings} must be 0, or 2 to {len(asking.FRAMES)}")
    if c.consistency.samples == 1:
        raise InputError("consistency.samples=1 has nothing to agree with; 0 leaves it out, 10 is usual")
    if c.encoder:
        bert.check(c.encoder)
    if c.data.overrides and not pathlib.Path(c.data.overrides).is_file():
        raise InputError(f"data.overrides={c.data.overrides!r} is not a file")
    if c.max_new_tokens >= c.engine.max_len:
        raise InputError(
            f"max_new_tokens={c.max_new_tokens} leaves no room for a question in engine.max_len={c.engine.max_len}"
        )


def listed(path: str) -> list[str]:
    return [part.strip() for part in path.split(",") if part.strip()]


def paths(c: ml_collections.ConfigDict) -> list[str]:
    return [c.data.path] if pathlib.Path(c.data.path).exists() else listed(c.data.path)


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    sets = read(c, folder)
    encoder = bert.load(c.encoder) if c.encoder else None
    log = writers.jsonl(str(folder))
    scores: list[dict[str, Any]] = []
    more: dict[str, Any] = {"curves": {}, "resilience": [], "consistency": [], "groups": []}
    for number, (name, open_fn) in enumerate(subjects.open_all(c, folder, is_chat=c.chat).items(), 1):
        subject = open_fn()
        rows = []
        for exam in sets:
            made_from = {"weights": subject.digest, "questions": exam.digest, "chat": c.chat, "model": name}
            ask = stored.answers(folder, made_from | {"max_len": c.engine.max_len}, f"{name}, {exam.name}")
            if exam.is_open:
                rows += ask_open(c, subject, exam, ask, more, encoder)
            else:
                rows += ask_closed(c, subject, exam, ask, more)
        scores += rows
        if subject.num_cut:
            print(
                f"{name}: {subject.num_cut} prompts were longer than engine.max_len and lost their beginning",
                flush=True,
            )
        log.write_scalars(number, page.logged(rows))
        del subject  # before the next one's weights are read
    log.close()
    write_curves(folder, more["curves"])
    about = {"sources": dict(zip(subjects.names(c.models), c.models)), "aggregate": c.rp.aggregate}
    about |= {"without_encoder": not c.encoder, "temperature": c.rp.temperature}
    first = asking.protocol_of(sets[0], c.protocols[0])
    return page.write(folder, scores, more, about, first=(sets[0].name, first), resamples=c.bootstrap, seed=c.seed)


def read(c: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Exam]:
    """All sets, those of data.opened once more as open questions."""
    counts: dict[str, int] = {}
    overrides = json.loads(pathlib.Path(c.data.overrides).read_text()) if c.data.overrides else {}
    out: list[Exam] = []
    for path in paths(c):
        if path == EMBEDDED:
            out += embedded(c.data.limit, counts)
            continue
        exam = exams.load(
            path,
            columns=dict(c.data.columns),
            overrides=overrides,
            limit=c.data.limit,
            style=c.data.style,
            counts=counts,
            bad_records_path=str(folder / "bad_records.jsonl"),
        )
        print(f"{exam.name}: {len(exam.items)} questions of the shape {exam.shape}, asked as {exam.style}", flush=True)
        if exam.repeated:
            print(f"{exam.name}: WARNING: {len(exam.repeated)} questions occur again; scores stand with and without")
        out += [exam, exams.opened(exam)] if path in listed(c.data.opened) else [exam]
    twice = [exam.name for i, exam in enumerate(out) if exam.name in {other.name for other in out[:i]}]
    if twice:
        raise InputError(f"data.path={c.data.path}: two sets are called {twice[0]!r}; rename one of the files")
    files.report_counts(folder, counts)
    return out


def embedded(limit: int | None, counts: dict[str, int]) -> list[Exam]:
    """The exam on invented remedies, closed and open."""
    closed = [
        Item(
            row["id"],
            row["question"],
            tuple(row["options"].values()),
            "ABCD".index(row["correct_answer"]),
            category=row["category"],
            year=row["year"],
            paraphrases=tuple(row["paraphrases"]),
        )
        for row in remedies.closed()
    ]
    opened = [
        Item(row["id"], row["prompt"], answers=(row["reference"],), paraphrases=tuple(row["paraphrases"]))
        for row in remedies.open_questions()
    ]
    counts["records"] = counts.get("records", 0) + len(closed) + len(opened)
    if limit is not None and limit < len(closed):
        counts["records beyond data.limit"] = 2 * (len(closed) - limit)
    return [
        Exam("remedies", tuple(closed[:limit]), "embedded", CHOICES),
        Exam("remedies_open", tuple(opened[:limit]), "embedded", OPEN),
    ]


def ask_closed(
    c: ml_collections.ConfigDict, subject: Any, exam: Exam, ask: stored.Ask, more: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of scores of one model on one closed set, by protocol."""
    items, rows = exam.items, []
    protocols = list(dict.fromkeys(asking.protocol_of(exam, protocol) for protocol in c.protocols))
    if not subject.has_logprobs:
        protocols = [protocol for protocol in protocols if protocol in multiple_choice.WRITTEN]
    for protocol in protocols:
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


def ask_open(
    c: ml_collections.ConfigDict, subject: Any, exam: Exam, ask: stored.Ask, more: dict[str, Any], encoder: Any
) -> list[dict[str, Any]]:
    """Rows of scores of one model on one open set: text metrics, perplexities, Relaxed Perplexity."""
    items, length = exam.items, c.max_new_tokens
    key = {"model": subject.name, "set": exam.name, "protocol": ""}
    said = ask("written", lambda: asking.written(subject, items, length), max_new_tokens=length)["said"]
    values = asking.text_scores(said, items, encoder, compatible=c.compatible)
    rows = [key | {"metric": name} | page.corpus_row(values[name]) for name in values]
    if subject.has_logprobs:
        rows += [
            key | row for row in perplexities(ask("likelihoods", lambda: asking.likelihoods(subject, items)), c, items)
        ]
        some = items[: c.rp.limit]
        if some:
            rp = dict(c.rp)
            kept = ask("relaxed", lambda: asking.relaxed(subject, some, rp, c.seed), rp=rp, num=len(some), seed=c.seed)
            curves = asking.curves_of(kept)
            more["curves"][subject.name, exam.name] = curves
            name = "relaxed_perplexity" if c.rp.temperature == 1 else "relaxed_perplexity_tau_prefix"
            whole = relaxed_perplexity.corpus([curve.relaxed(c.rp.aggregate) for curve in curves], seed=c.seed)
            rows.append(key | {"metric": name, "value": whole.pop("geometric_mean")} | whole)
    some = items[: c.rephrasing.limit]
    if c.rephrasing.wordings and some:
        num = c.rephrasing.wordings
        answers = ask(
            "rephrased",
            lambda: asking.rephrased_answers(subject, some, num, length),
            num=num,
            limit=len(some),
            max_new_tokens=length,
        )
        if open_ended.is_installed():
            scores = [
                [open_ended.ngram_scores(a, i.answers[0])["rougeL"] for a in row] for row, i in zip(answers, some)
            ]
            more["resilience"].append(page.spread_row(subject.name, exam.name, "rougeL", scores))
    return rows


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
    each = [relaxed_perplexity.perplexity(got["conditional"][i], got["tokens"][i]) for i in usable]
    whole = relaxed_perplexity.corpus(each, seed=c.seed)
    return [*rows, {"metric": "perplexity", "value": whole.pop("geometric_mean")} | whole]


def write_curves(folder: pathlib.Path, curves: Mapping[tuple[str, str], Sequence[relaxed_perplexity.Curve]]) -> None:
    """rp_curves.npz: of each model and set the offsets, and the log-probabilities [items,N,K] and lengths."""
    arrays: dict[str, Any] = {}
    for (model, name), some in curves.items():
        arrays[f"{model}/{name}/offsets"] = np.array(some[0].offsets)
        arrays[f"{model}/{name}/logps"] = np.stack([curve.logps_NK for curve in some])
        arrays[f"{model}/{name}/lengths"] = np.array([curve.length for curve in some])
    if arrays:
        files.write(folder / "rp_curves.npz", lambda f: np.savez_compressed(f, **arrays))


METRICS = page.METRICS
headline = page.headline
