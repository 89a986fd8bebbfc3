"""A pretraining corpus from raw shards to clean ones: rules, duplicates, scores, rewriting under a code of conduct.

Paper:   Liang et al. 2024, Alignment at Pre-training! Towards Native Alignment for Arabic LLMs, arXiv:2412.03253; the
         router follows Maini et al. 2025, Safety Pretraining, arXiv:2504.16980
Run:     python -m experiments.run --config experiments/filter.py --config.inputs='raw/*.jsonl.gz' \
             --config.outputs=clean --config.scorers.safety.path=scorer/export --workdir runs/filter
Laptop:  python -m experiments.run --config experiments/filter.py:laptop   (CPU, a minute; `tiny`: seconds)
Array:   --config.shard_index=$SLURM_ARRAY_TASK_ID --config.shard_count=64 --workdir runs/filter/$SLURM_ARRAY_TASK_ID,
         all with one --config.outputs on a disk that all share
Expect:  laptop, a toy web of 4,000 pages: of the unsafe 0.91 and of the unfair 0.86 are rewritten or dropped, and none
         of the clean; 14 s on two cores of an AMD EPYC, Python 3.11, JAX 0.10.2, commit 736f392

Rewriting, not dropping, is the default: training on what is left after dropping alone raised attack success from 38.8
to 43.8 %, with rewriting it fell to 33.6 % (Safety Pretraining). The outputs:

    documents/   what goes on to training            decisions/   one row a document: action, rule, evidence
    removed/     what does not, by step, with why    attributes/  scores beside the text, by scorer
    errors/      records set aside: file, offset     manifest.jsonl, plan.json, stages/
"""

import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from alignment import errors, files
from alignment.errors import InputError
from data import records
from data.corpus import executors, shards, slices
from experiments.filtering import jobs, planning, toy
from experiments.filtering import settings as filter_settings
from experiments.filtering import stages as filter_stages
from experiments.filtering import tools as filter_tools
from experiments.pages import filter as filter_page
from experiments.report import progress

SETTINGS = ("", "laptop", "tiny")
TOO_MANY_BAD = 3  # exit code
TOKENS_PER_SECOND = (500, 2_000, 10_000)  # of a rewriter, per device, for the cost sheet
BYTES_PER_TOKEN = 4
POLL_SECONDS = 5.0
ALL_SLICES = ("band", "clusters", "paragraphs", "stand_in")  # stages whose tasks are not one a slice
REDOING = "redoing.json"  # in the workdir, while a run does stages again: a restart goes on with that


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.inputs = "raw/*.jsonl.gz"  # a file, folder or glob, several with commas between; toy.NAME makes a toy web
    c.outputs = ""  # folder of the clean shards; "" is clean/ in the workdir
    c.executor = "process"  # local, process or ray
    c.workers = config_dict.placeholder(int)  # processes or Ray tasks at once; None takes a core each
    c.ray = dict(
        address="",
        num_cpus=1.0,  # of a task
        num_gpus=0.0,
        resources="",  # "TPU=1,other=2"
        actors=False,
    )
    c.shard_index = 0  # this start's share of the slices, for array schedulers
    c.shard_count = 1
    c.redo = ()  # stages to do again, with those that build on them: ("score.safety",); settings may be others
    c.max_bad = 0.001  # share of records set aside above which the exit code is 3
    c.samples = 20  # documents shown an action
    c.compression = "zst"  # of the shards: zst, gz or ""
    c.slice_mb = 32.0  # what one task reads
    c.read = dict(
        source="",  # of all documents; "" takes the name of a file's folder
        max_document_mb=10.0,
        text_unit="paragraphs",  # of .txt files, or "line"
        columns=dict(text="text", id="id", url="url"),  # id="" makes ids of file name and offset
    )
    c.packs = ("en", "ar")  # languages kept: packs by name or by path of a YAML file
    c.language_model = ""  # a fastText identifier (.bin, .ftz); "": scripts, frequent words, py3langid
    c.chain = ("url", "mojibake", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii")
    c.rules = filter_settings.knobs()  # every argument of every rule; None leaves it to pack and rule, "off" to nobody
    c.rules.c4.terminal_punctuation = False  # as FineWeb: lines may end without a mark
    c.dedup = dict(
        exact=True,
        minhash=True,
        n_grams=5,
        num_buckets=14,
        hashes_per_bucket=8,
        unit="word",
        mode="fast",
    )
    c.paragraphs = dict(
        capacity=config_dict.placeholder(int),  # lines that a Bloom filter is made for; None leaves repeated lines in
        error=1e-3,
        min_words=8,
    )
    c.scorers = {name: filter_settings.scorer_group() for name in ("safety", "quality", "fluency", "judge")}
    c.scorers.safety.kind = "linear"  # kinds: filtering/scores/scorers.py
    c.skip = ()  # scorers to leave out; without the one that decides, the report says "not scored"
    c.router = dict(
        score="safety.level",  # decides
        keep_at=0,
        drop_at=4,
        synthesise=False,
        tag_probability=0.0,
    )
    c.rewriter = dict(
        backend="openai",  # openai, flax, cut (removes the sentences that match patterns), echo, none
        url="http://127.0.0.1:8000/v1",
        model="",  # openai: its name; flax: a folder; cut: a file of patterns, see filtering/scores/patterns.py
        api_key_env="OPENAI_API_KEY",
        concurrency=16,  # requests at once
        conduct="en-neutral",
        max_tokens=1_500,  # of a part of a text
        retries=3,
        timeout_seconds=120.0,
    )
    c.gates = dict(perplexity="")  # "fluency.score", of kind perplexity, for the 1.2x gate; "": not measured, and said
    c.planted = ""  # JSON lines of {"id", "planted", "asked"}: their recall and precision are reported
    c.toyweb = dict(  # where toy.NAME stands in the place of a path
        num=4_000,  # documents
        shards=4,  # files
        num_train=4_000,  # other documents, that its scorer is trained on
        steps=600,
    )
    if arg:
        small(c)
    if arg == "tiny":
        tiny(c)
    return c


def small(c: ml_collections.ConfigDict) -> None:
    """What `laptop` and `tiny` share: the toy web, its scorer, and its patterns of harm as the rewriter."""
    c.inputs = toy.NAME
    c.scorers.safety.path = toy.NAME
    c.rewriter.backend = "cut"
    c.rewriter.model = toy.NAME
    c.slice_mb = 1.0


def tiny(c: ml_collections.ConfigDict) -> None:
    c.toyweb.num = 200
    c.toyweb.shards = 2
    c.executor = "local"
    c.scorers.safety.kind = "patterns"  # instead of a scorer that must be trained


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither documents nor a service to be seen."""
    filter_settings.check_numbers(c)
    executors.share([], c.shard_index, c.shard_count)
    executors.check(c.executor)
    resources(c.ray.resources)
    if c.inputs != toy.NAME:
        records.check(c.inputs)
    if c.planted and not pathlib.Path(c.planted).is_file():
        raise InputError(f'planted={c.planted!r} is not there; give a file of JSON lines, or ""')
    for name, scorer in c.scorers.items():
        needs_file = scorer.kind in ("linear", "embedding", "fasttext") and name not in c.skip
        if needs_file and scorer.path not in ("", toy.NAME) and not pathlib.Path(scorer.path).exists():
            raise InputError(
                f"scorers.{name}.path={scorer.path!r} is not there; experiments/scorer.py leaves one in export/scorer"
            )
    if c.rewriter.backend == "flax":
        from alignment.models import huggingface  # imports JAX, which a filter of files never loads

        huggingface.check_source(c.rewriter.model)
    with tempfile.TemporaryDirectory() as folder:
        settings = filter_settings.of(toy.without_web(c, pathlib.Path(folder)))
        filter_tools.check(settings)
    for name in c.redo:
        errors.one_of("redo", name, list(stages(settings, [])))


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    filter_settings.check_numbers(c)
    c = toy.prepare(c, pathlib.Path(workdir))
    settings = filter_settings.of(c)
    filter_tools.check(settings)
    executors.share([], c.shard_index, c.shard_count)
    outputs = pathlib.Path(c.outputs or f"{workdir}/clean").absolute()  # a Ray worker may stand elsewhere
    pieces = planning.plan(
        c.inputs, outputs, pathlib.Path(workdir), slice_mb=c.slice_mb, read=settings["screen"]["read"]
    )
    warnings = planning.warnings(c.inputs, pieces, slice_mb=c.slice_mb)
    print("".join(f"  {line}\n" for line in warnings), end="", flush=True)
    job = jobs.Job(str(outputs), settings, filter_settings.hashes(settings, pieces), len(pieces))
    cost = cost_sheet(settings, pieces)
    files.write_rows(f"{workdir}/tables/cost.jsonl", cost)
    print("\n".join(f"  {row['what']:<56} {row['number']:>16,}" for row in cost), flush=True)
    redo(job, c, pathlib.Path(workdir))
    files.sweep(outputs)
    started, num_docs = time.monotonic(), 0
    options = dict(c.ray) | {"resources": resources(c.ray.resources), "executor": c.executor, "workers": c.workers or 0}
    with executors.opened(functools.partial(filter_stages.do, job), **options) as run_tasks:
        for stage, tasks in stages(settings, pieces).items():
            rows = through(job, run_tasks, stage, tasks, index=c.shard_index, count=c.shard_count)
            num_docs += sum(row["num_docs"] for row in rows) if stage == "screen" else 0
    seconds = time.monotonic() - started
    files.sweep(outputs)
    pathlib.Path(workdir, REDOING).unlink(missing_ok=True)
    write_manifest(outputs, job, pieces)
    speed = {"docs_per_second": num_docs / max(seconds, 1e-9), "seconds": seconds} if num_docs else {}
    return filter_page.write(
        pathlib.Path(workdir), job, max_bad=c.max_bad, speed=speed, warnings=warnings, planted=c.planted
    )


def has_more(c: ml_collections.ConfigDict, summary: dict[str, float | None]) -> bool:
    """Whether a finished run goes on: stages are to be done again, or a service left texts without an answer."""
    return bool(c.redo) or (c.rewriter.backend == "openai" and bool(summary.get("gate/no_answer")))


def exit_code(summary: dict[str, float | None]) -> tuple[int, str]:
    """3 where more records were set aside than `max_bad` allows, and a sentence about it."""
    share, max_bad = (summary.get(name) or 0 for name in ("bad_share", "max_bad"))
    if share <= max_bad:
        return 0, ""
    return TOO_MANY_BAD, (
        f"exit code {TOO_MANY_BAD}: {summary.get('bad_records') or 0:,.0f} records ({100 * share:.3g} %) were set "
        f"aside, more than max_bad={max_bad:g} allows; the outputs are complete without them. errors/ beside the "
        "documents names file, line and reason of each; --config.max_bad raises the limit"
    )


def stages(settings: Mapping[str, Any], pieces: Sequence[slices.Slice]) -> dict[str, Sequence[Any]]:
    """{stage: its tasks}, in the order in which they depend on each other."""
    num_bands = filter_settings.num_bands(settings["screen"])
    bands = [(name, band) for name, num in num_bands.items() for band in range(num)]
    lines = {"paragraphs": [settings["paragraphs"]]} if "paragraphs" in settings else {}
    scores = {f"score.{name}": pieces for name in settings["align"]["scorers"]}
    copies = {"fallen": pieces, "stand_in": [None]} if "stand_in" in settings else {}
    return {"screen": pieces, "band": bands, "clusters": [num_bands], **lines, **scores, **copies, "align": pieces}


def redo(job: jobs.Job, c: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Forget the tasks of this share that are to be done again: `c.redo`, and documents without an answer.

    Of a stage that was done under other settings all tasks go. A run that was stopped while it did stages again does
    not begin with them once more.
    """
    known = list(job.hashes)
    for name in c.redo:
        errors.one_of("redo", name, known)
    is_mine = functools.partial(_is_of_share, index=c.shard_index, count=c.shard_count)
    note, names = workdir / REDOING, sorted(c.redo)
    is_restart = note.exists() and json.loads(note.read_text("utf-8")) == names
    for name in c.redo:
        for stage in after(name, known) if name.startswith("score.") else known:
            shards.forget(job.outputs, stage, job.hashes[stage])
        for stage in () if is_restart else after(name, known):
            shards.forget(job.outputs, stage, "", which=is_mine)
    if names:
        files.write_json(note, names)
    if job.settings["align"]["rewriter"].get("backend") == "openai":
        unanswered = {index for index, row in _rows(job, "align") if row["tally"]["counters"].get("gate/no_answer")}
        shards.forget(job.outputs, "align", "", which=lambda index: index in unanswered and is_mine(index))


def after(name: str, stages: Sequence[str]) -> list[str]:
    """A stage, and the stages that build on what it writes."""
    later = stages[list(stages).index(name) :]
    others = [stage for stage in later[1:] if stage.startswith("score.")] if name.startswith("score.") else []
    return [stage for stage in later if stage not in others]


def _is_of_share(task: int, *, index: int, count: int) -> bool:
    return task % count == index


def _rows(job: jobs.Job, name: str) -> Iterator[tuple[int, dict]]:
    """The notes of a stage; none if it was done under other settings, which `finished` refuses later."""
    try:
        yield from shards.each_finished(job.outputs, name, job.hashes[name])
    except InputError:
        return


def through(
    job: jobs.Job, run_tasks: Callable, name: str, tasks: Sequence[Any], *, index: int, count: int
) -> list[dict]:
    """Run share `index` of `count` of a stage's tasks, then wait for the other shares; returns the rows made now."""
    done = finished(job, name)
    mine = executors.share(range(len(tasks)), index, count)
    todo = [i for i in mine if i not in done]
    sizes = [task.num_bytes if isinstance(task, slices.Slice) else 1 for task in tasks]
    bar = progress.Progress(name, sum(sizes[i] for i in todo))
    made = []
    for position, row in run_tasks([(name, i, tasks[i]) for i in todo]):
        made.append(row)
        bar.advance(sizes[todo[position]], row.get("num_docs", 0))
    if todo:
        bar.close()
    while count > 1 and len(finished(job, name)) < len(tasks):
        print(f"{name}: waiting for the other shares of {count}", flush=True)
        time.sleep(POLL_SECONDS)
    return made


def finished(job: jobs.Job, name: str) -> set[int]:
    """Tasks that a stage is through with, without their rows, of which there may be very many."""
    try:
        return {index for index, _ in shards.each_finished(job.outputs, name, job.hashes[name])}
    except InputError as e:
        raise InputError(f"{e}; where it may be replaced, --config.redo=\"('{name}',)\" does that") from e


def resources(text: str) -> dict[str, float]:
    """Ray's resources of a task, from 'TPU=1,other=2'."""
    try:
        return {name: float(number) for name, number in (part.split("=") for part in text.split(",") if part)}
    except ValueError:
        raise InputError(f"ray.resources={text!r}; give names and numbers such as 'TPU=1,other=2'") from None


def cost_sheet(settings: Mapping[str, Any], pieces: Sequence[slices.Slice]) -> list[dict]:
    """What the run will read and write and, if every document were rewritten, need of a rewriter; from bytes alone."""
    size = sum(piece.num_bytes for piece in pieces)
    tokens = size // BYTES_PER_TOKEN
    num_bands = sum(filter_settings.num_bands(settings["screen"]).values())
    rows = [
        ("files", len({piece.file for piece in pieces})),
        ("slices", len(pieces)),
        ("MB as they lie on disk", round(size / 2**20, 1)),
        (f"tokens, at {BYTES_PER_TOKEN} bytes each", tokens),
        ("bytes of keys a document, for duplicates", 12 * num_bands + 16),
    ]
    if settings["align"]["score"]:
        rows += [
            (f"device-hours if all is rewritten, at {rate:,} tokens/s", round(tokens / rate / 3600, 2))
            for rate in TOKENS_PER_SECOND
        ]
    return [{"what": what, "number": number} for what, number in rows]


def write_manifest(outputs: pathlib.Path, job: jobs.Job, pieces: Sequence[slices.Slice]) -> None:
    """One row a slice: where it lies, and what each stage made of it, with checksums."""

    def rows() -> Iterator[dict[str, Any]]:
        by_slice = [stage for stage in job.hashes if stage not in ALL_SLICES]
        notes = [shards.each_finished(outputs, stage, job.hashes[stage]) for stage in by_slice]
        for piece, *stage_notes in zip(pieces, *notes, strict=True):
            row = {"slice": piece.index, "file": piece.name, "start": piece.start, "stop": piece.stop}
            for stage, (_, note) in zip(by_slice, stage_notes, strict=True):
                row[stage] = {"config_hash": note["config_hash"], "outputs": note["outputs"]}
            yield row

    shards.write(outputs / "manifest.jsonl", rows())


METRICS = {
    "documents_left": ("documents left after each step of the funnel, in its order",),
    "docs_in": ("documents read",),
    "docs_kept": ("documents that go to training, rewritten ones among them",),
    "docs_rewritten": ("documents kept with a rewritten text",),
    "docs_dropped": ("documents dropped by a rule, as a duplicate or for their score",),
    "bad_records": ("records that could not be read and were set aside",),
    "bad_share": ("the same as a share of all records", "lower"),
    "max_bad": ("the share of bad records above which the run ends with exit code 3",),
    "bytes_out": ("size of the text that goes to training, in bytes of UTF-8 before compression",),
    "bytes_written": ("size of the files below documents/, in bytes on disk, with all columns and compressed",),
    "drop/*": ("documents dropped for this reason",),
    "gate/*": ("rewritten documents with this verdict of the gates",),
    "counter/*": ("how often this was counted while cleaning",),
    "planted/*/recall": ("share of the documents planted as this that were treated as they should be", "higher"),
    "planted/*/precision": ("share of the documents treated like this that should be", "higher"),
    "clean_rewritten": ("clean documents that were rewritten without need", "lower"),
    "identity_rate": ("share of the clean documents kept that come out unchanged", "higher"),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    total, num_kept = summary["docs_in"], summary["docs_kept"]
    words = f"{num_kept:,.0f} of {total:,.0f} documents go to training ({100 * num_kept / max(total, 1):.1f} %), "
    words += f"{summary['docs_rewritten']:,.0f} of them rewritten; {summary['docs_dropped']:,.0f} are dropped"
    reasons = {name.removeprefix("drop/"): n for name, n in summary.items() if name.startswith("drop/") and n}
    return f"{words}, most often for {max(reasons, key=reasons.get)}." if reasons else f"{words}."
