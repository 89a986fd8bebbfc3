"""What medical models know: accuracy on exams, metrics of open answers, Relaxed Perplexity, and how far they agree.

Paper:   Arias-Duart et al. 2025, arXiv:2502.06666 (CareQA and its suite)
Run:     python -m experiments.run --config experiments/careqa.py --config.data.path=CareQA_en.jsonl,CareQA_open.jsonl
         --config.models="('hf:DIR','run:DIR')"
Laptop:  python -m experiments.run --config experiments/careqa.py:laptop   (CPU, minutes; `tiny`: seconds)
Expect:  laptop, by the options' texts the toys answer 0.29, 0.23, 0.40, 0.79 and 0.94 of 48 questions right (naming one
         option always: 0.31; by letters none is above it), and their Relaxed Perplexity falls from 13.7 to 1.06
         (Spearman with accuracy 0.9); smol, 150 questions a set: no set's accuracy above the best single option's
Smol:    make models, then the same with careqa.py:smol and --config.data.path of your files

Five toys of growing training are asked 48 questions on invented remedies, closed and open, so that all metrics have
something true to show. A score's key has its protocol: letters (log-probability of the option's letter, as
lm-evaluation-harness asks), texts (of the option's text), chars and bytes (that by its length), generated and cot (what
the model writes), sc_cot and medprompt (a vote of several chains of thought). The formula of Relaxed Perplexity is a
reconstruction: alignment/evaluation/relaxed_perplexity.py.
"""

import hashlib
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from alignment.evaluation import multiple_choice, relaxed_perplexity
from alignment.models import bert, bleurt
from alignment.train import writers
from data import records
from data.texts import exams
from data.texts.exam_shapes import CHOICES, OPEN, Item
from data.texts.exams import Exam
from data.toys import remedies
from experiments.decoding import models
from experiments.evaluation import asking, services, stored, subjects, voting
from experiments.evaluation import rows as evaluation_rows
from experiments.launch import checks
from experiments.pages import careqa as page

SETTINGS = ("", "laptop", "smol", "tiny")
EMBEDDED = "synthetic:remedies"
LEAST = dict.fromkeys(("max_new_tokens", "rp.samples", "rp.stride", "bootstrap"), 1)
LEAST |= dict.fromkeys(("rp.n_max", "rp.limit", "rephrasing.wordings", "rephrasing.limit", "consistency.limit"), 0)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict(subjects.engine_settings(arg))
    c.seed = 0  # of everything that is drawn
    c.models = ("hf:Qwen/Qwen2.5-1.5B-Instruct",)  # hf:, run:, gguf:, endpoint:<name>, toy:<steps>
    c.endpoint = services.settings()
    c.data = dict(
        path="CareQA_en.jsonl,CareQA_en_open.jsonl",  # files with commas between; the summary's accuracy is the first's
        columns=dict(question="", answer=""),  # a file's own names; "": by its shape
        overrides="",  # a JSON file of id -> columns, for rows with a fault that you have looked at
        opened="",  # files of data.path (or their last names) that are asked as open questions as well
        style=config_dict.placeholder(str),  # how closed sets are asked: choices, plain, subject; None: by each set
        limit=config_dict.placeholder(int),  # questions of each file; None takes all
    )
    c.protocols = (multiple_choice.LETTERS,)  # letters, texts, chars, bytes, generated, cot, sc_cot, medprompt
    c.voted = voting.settings()  # of sc_cot and medprompt
    c.chat = False  # True: a question is a user's turn of the chat template, and no blank parts it from the answer
    c.compatible = False  # True: BLEU, ROUGE and words as the public tasks of the harness count them
    c.encoder = ""  # folder of a BERT-like encoder for BERTScore and MoverScore; "": they are left out
    c.bleurt = ""  # folder of BLEURT's weights as safetensors; "": it is not run
    c.radgraph = ""  # a file of RadGraph's annotations of references and answers; "": F1-RadGraph is left out
    c.judge = ""  # hf:, run:, gguf:, endpoint:<name>: who grades open answers from 1 to 5; "": nobody
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
    c.consistency = dict(
        samples=10, limit=20
    )  # draws for a question: of an option, and of answers to so many open ones
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
        c.consistency.update(samples=2, limit=1)
        c.bootstrap = 10
    elif arg == "laptop":
        c.models = subjects.TOYS
        c.rephrasing.limit = 24
        c.consistency.limit = 4
    elif arg == "smol":
        c.models = ("hf:models/smollm2",)
        c.data.path = "careqa_en_a.jsonl,medqa_4opt_val.jsonl,medmcqa_train_sample_first3000.jsonl,pqal_non_test.jsonl,"
        c.data.path += "mmlu_clinical_knowledge_val.jsonl"
        c.data.opened = "careqa_en_a.jsonl"
        c.data.limit = 150
        c.encoder = "models/minilm"
        c.max_new_tokens = 48
        c.rp.update(limit=16, n_max=64, variants=False)
        c.rephrasing.update(wordings=3, limit=8)
        c.consistency.update(samples=4, limit=8)
    return c


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither questions, weights nor devices to be seen."""
    checks.check_least(c, LEAST)
    subjects.check(c, (c.judge,) if c.judge else ())
    checks.check_names(c, "protocols", multiple_choice.PROTOCOLS, unique=False)
    served = [spec for spec in c.models if spec.startswith("endpoint:")]
    if served and not set(c.protocols) & set(multiple_choice.WRITTEN):
        raise InputError(
            f"models has {served[0]!r}, whose service gives no log-probabilities, and protocols={c.protocols!r} need "
            "them; add 'generated' or 'cot'"
        )
    voting.check(c)
    checks.check_unread(c, [get_config(arg) for arg in SETTINGS], _unread(c))
    errors.one_of("rp.aggregate", c.rp.aggregate, relaxed_perplexity.AGGREGATES)
    errors.within("(0, inf)", **{"rp.temperature": c.rp.temperature}, hint="; 1 is the metric's")
    exams.check_style(c.data.style)
    absent = absent_reports(c)
    if absent and len(absent) == len(paths(c)):
        raise InputError(f"data.path={c.data.path!r}: {exams.ACCESS}")
    for path in paths(c):
        if path != EMBEDDED and path not in absent:
            records.check(path)
    known = {name for path in paths(c) for name in (path, pathlib.PurePath(path).name)}
    if unknown := [path for path in records.listed(c.data.opened) if path not in known]:
        raise InputError(f"data.opened has {unknown[0]!r}, which data.path has not; name files of it")
    if c.rephrasing.wordings == 1 or c.rephrasing.wordings > len(asking.FRAMES):
        raise InputError(f"rephrasing.wordings={c.rephrasing.wordings} must be 0, or 2 to {len(asking.FRAMES)}")
    if c.consistency.samples == 1:
        raise InputError("consistency.samples=1 has nothing to agree with; 0 leaves it out, 10 is usual")
    if c.encoder:
        bert.check(c.encoder)
    if c.bleurt:
        bleurt.check(c.bleurt)
    if c.radgraph:
        records.check(c.radgraph)
    exams.read_overrides(c.data.overrides)
    models.check_room(c)


def _unread(c: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Names of settings that this config does not read, and why."""
    if not set(c.protocols) & set(multiple_choice.VOTED):
        yield "voted", f"protocols has none of {', '.join(multiple_choice.VOTED)}"
    for group, off in (("rp", "limit"), ("rephrasing", "wordings"), ("consistency", "samples")):
        if not c[group][off]:
            yield from ((f"{group}.{name}", f"{group}.{off}=0") for name in c[group] if name != off)
    yield from services.unread(c, (*c.models, c.judge))


def judge_config(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config in which the judge is the one model."""
    own = ml_collections.ConfigDict(c.to_dict(preserve_field_references=False))
    own.models = (c.judge,)
    return own


def paths(c: ml_collections.ConfigDict) -> list[str]:
    return [c.data.path] if pathlib.Path(c.data.path).exists() else records.listed(c.data.path)


def absent_reports(c: ml_collections.ConfigDict) -> list[str]:
    """Paths of MIMIC's reports of which there is no copy here: left out, and the page says how to get one."""
    return [path for path in paths(c) if errors.files_needed() and exams.lacks_mimic(path)]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    folder = pathlib.Path(workdir)
    sets = read(c, folder)
    graders = evaluation_rows.Graders(
        bert.load(c.encoder) if c.encoder else None,
        bleurt.load(c.bleurt) if c.bleurt else None,
        asking.read_annotations(c.radgraph) if c.radgraph else None,
    )
    log = writers.jsonl(str(folder))
    scores: list[dict[str, Any]] = []
    more: dict[str, Any] = {
        "curves": {},
        "said": {},
        "resilience": [],
        "consistency": [],
        "groups": [],
        "voted": [],
        "items": {},
    }
    solved = solved_questions(c, folder)
    for number, (name, open_fn) in enumerate(subjects.open_all(c, folder, is_chat=c.chat).items(), 1):
        # the model is bound to no name here, so that its weights go before the next one's are read
        rows = score(c, folder, open_fn(), name, sets, solved, graders, more)
        scores += rows
        log.write_scalars(number, page.logged(rows))
    log.close()
    if c.judge:
        scores += grades(c, folder, sets, more["said"])
    write_curves(folder, more["curves"])
    about = {"sources": dict(zip(subjects.names(c.models), c.models)), "aggregate": c.rp.aggregate}
    about |= {f"without_{name}": not c[name] for name in ("encoder", "bleurt", "radgraph")}
    about |= {"temperature": c.rp.temperature, "absent": absent_reports(c)}
    main = next((exam for exam in sets if not exam.is_open), sets[0])
    first = main.name, asking.protocol_of(main, c.protocols[0])
    return page.write(folder, scores, more, about, first=first, resamples=c.bootstrap, seed=c.seed)


def score(
    c: ml_collections.ConfigDict,
    folder: pathlib.Path,
    subject: Any,
    name: str,
    sets: Sequence[Exam],
    solved: Exam | None,
    graders: evaluation_rows.Graders,
    more: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows of scores of one model on all sets; curves, tables and what it said go to `more`."""

    def asker(exam: Exam) -> stored.Ask:
        made_from = {"weights": subject.digest, "questions": exam.digest, "chat": c.chat, "model": name}
        return stored.answers(folder, made_from | {"max_len": c.engine.max_len}, f"{name}, {exam.name}")

    voter = voting.Voter(subject, c, solved, graders.encoder, asker(solved) if solved else None)
    rows = []
    for exam in sets:
        if exam.is_open:
            rows += evaluation_rows.opened(c, subject, exam, asker(exam), more, graders)
        else:
            rows += evaluation_rows.closed(c, subject, exam, asker(exam), more, voter)
    if subject.num_cut:
        print(f"{name}: {subject.num_cut} prompts were longer than engine.max_len and lost their beginning", flush=True)
    return rows


def read(c: ml_collections.ConfigDict, folder: pathlib.Path) -> list[Exam]:
    """All sets, those of data.opened once more as open questions."""
    counts: dict[str, int] = {}
    overrides, absent = exams.read_overrides(c.data.overrides), absent_reports(c)
    out: list[Exam] = []
    for path in paths(c):
        if path == EMBEDDED:
            out += embedded(c.data.limit, counts)
            continue
        if path in absent:
            print(f"{path} is left out: {exams.ACCESS}", flush=True)
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
        is_opened = bool({path, pathlib.PurePath(path).name} & set(records.listed(c.data.opened)))
        out += [exam, exams.opened(exam)] if is_opened else [exam]
    for number, exam in enumerate(out):
        out[number], unfair = asking.with_fair_paraphrases(exam)
        if unfair:
            counts["paraphrases that give the answer away"] = unfair + counts.get(
                "paraphrases that give the answer away", 0
            )
    twice = [exam.name for i, exam in enumerate(out) if exam.name in {other.name for other in out[:i]}]
    if twice:
        raise InputError(f"data.path={c.data.path}: two sets are called {twice[0]!r}; rename one of the files")
    files.write_rows(folder / "tables/sets.jsonl", [set_row(exam) for exam in out])
    sizes = {exam.name: len(exam.items) for exam in out}
    for name, size in sizes.items():
        other = name.replace("_en", "_es")
        if c.data.limit is None and other != name and sizes.get(other, size) != size:
            raise InputError(f"{name} has {size} questions and {other} {sizes[other]}; the two are translations")
    files.report_counts(folder, counts)
    return out


def set_row(exam: Exam) -> dict[str, Any]:
    """What tells one set from another of the same name: its file's digest, and that of its questions' ids."""
    ids = hashlib.sha256("\n".join(item.id for item in exam.items).encode()).hexdigest()
    row = {"set": exam.name, "shape": exam.shape, "asked as": exam.style, "questions": len(exam.items)}
    return row | {"repeated": len(exam.repeated), "sha256": exam.sha256[:16], "ids": ids[:16]}


def solved_questions(c: ml_collections.ConfigDict, folder: pathlib.Path) -> Exam | None:
    """The questions of voted.examples; None where no protocol shows examples."""
    if not c.voted.examples:
        return None
    counts: dict[str, int] = {}
    bad = str(folder / "bad_examples.jsonl")
    exam = exams.load(c.voted.examples, limit=c.voted.limit, counts=counts, bad_records_path=bad)
    if exam.is_open:
        raise InputError(f"voted.examples={c.voted.examples!r} has open questions; examples need options")
    print(f"voted.examples: {len(exam.items)} questions of the shape {exam.shape}", flush=True)
    return exam


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


def grades(
    c: ml_collections.ConfigDict, folder: pathlib.Path, sets: Sequence[Exam], said: Mapping[tuple[str, str], list[str]]
) -> list[dict[str, Any]]:
    """Rows of the judge's mean grade of every model on every open set."""
    (open_fn,) = subjects.open_all(judge_config(c), folder, is_chat=True).values()
    judge, rows = open_fn(), []
    for (model, name), answers in said.items():
        (exam,) = (exam for exam in sets if exam.name == name)
        made_from = {"judge": judge.digest, "answers": answers, "questions": exam.digest}
        ask = stored.answers(folder, made_from, f"judge of {model}, {name}")
        got = ask("grades", lambda answers=answers, exam=exam: asking.graded(judge, answers, exam.items))
        values = [math.nan if grade is None else float(grade) for grade in got]
        rows.append({"model": model, "set": name, "protocol": "", "metric": "judge"} | page.corpus_row(values))
    return rows


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
