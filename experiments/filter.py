"""A pretraining corpus from raw shards to clean ones: rules, duplicates, scores, rewriting under a code of conduct.

Paper:   Liang et al. 2024, Alignment at Pre-training! Towards Native Alignment for Arabic LLMs, arXiv:2412.03253; the
         router follows Maini et al. 2025, Safety Pretraining, arXiv:2504.16980
Run:     python -m experiments.run --config experiments/filter.py --config.inputs='raw/*.jsonl.gz' \
             --config.outputs=clean --config.scorers.safety.path=scorer/export --workdir runs/filter
Laptop:  python -m experiments.run --config experiments/filter.py:laptop   (CPU, a minute; `tiny`: seconds)
Array:   --config.shard_index=$SLURM_ARRAY_TASK_ID --config.shard_count=64 --workdir runs/filter/$SLURM_ARRAY_TASK_ID,
         all with one --config.outputs on a disk that all share
Expect:  README.md holds the numbers of the runs we keep as reference, with hardware and commit

Rewriting, not dropping, is the default: training on what is left after dropping alone raised attack success from 38.8
to 43.8 %, with rewriting it fell to 33.6 % (Safety Pretraining). The outputs:

    documents/   what goes on to training            decisions/   one row a document: action, rule, evidence
    removed/     what does not, by step, with why    attributes/  scores beside the text, by scorer
    errors/      records set aside: file, offset     manifest.jsonl, plan.json, stages/
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Sequence

import ml_collections
import orjson

from alignment import files
from alignment.errors import InputError
from data.corpus import executors, shards, slices
from data.toys import toyweb
from experiments.filtering import stages as filter_stages
from experiments.filtering import tools as filter_tools
from experiments.filtering import toy_scorer
from experiments.pages import filter as filter_page
from experiments.report import progress

SETTINGS = ("", "laptop", "tiny")
TOO_MANY_BAD = 3  # exit code
TOKENS_PER_SECOND = (500, 2_000, 10_000)  # of a rewriter, per device, for the cost sheet
BYTES_PER_TOKEN = 4
POLL_SECONDS = 5.0


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.inputs = "raw/*.jsonl.gz"  # a file, folder or glob, several with commas between; "synthetic:toyweb"
    c.outputs = ""  # folder of the clean shards; "" is clean/ in the workdir
    c.executor = "process"  # local, process or ray
    c.workers = 0  # processes or Ray tasks at once; 0 takes a core each
    c.ray = dict(address="", num_cpus=1.0, num_gpus=0.0, resources="", actors=False)  # a task's; "TPU=1,other=2"
    c.shard_index, c.shard_count = 0, 1  # this start's share of the slices, for array schedulers
    c.redo = ()  # stages whose outputs of other settings may be replaced, such as ("score.safety",)
    c.max_bad = 0.001  # share of records set aside above which the exit code is 3
    c.samples = 20  # documents shown an action
    c.compression = "zst"  # of the shards: zst, gz or ""
    c.slice_mb = 32.0  # what one task reads
    c.read = dict(source="", max_document_mb=10.0, text_unit="paragraphs")  # "": the folder's name; of .txt, or "line"
    c.read.columns = dict(text="text", id="id", url="url")  # id="": made from file name and offset
    c.packs = ("en", "ar")  # languages kept: packs by name or by path of a YAML file
    c.language_model = ""  # a fastText identifier (.bin, .ftz); "": scripts, frequent words, py3langid
    c.chain = ("url", "mojibake", "language", "gopher_repetition", "gopher_quality", "c4", "fineweb", "pii")
    c.rules = filter_tools.knobs()  # every argument of every rule; "default" leaves it to the pack, or the rule
    c.rules.c4.terminal_punctuation = "False"  # as FineWeb: lines may end without a mark
    c.dedup = dict(exact=True, minhash=True, n_grams=5, num_buckets=14, hashes_per_bucket=8, unit="word", mode="fast")
    c.paragraphs = dict(capacity=0, error=1e-3, min_words=8)  # of a Bloom filter of lines; 0 lines: none is used
    c.scorers = {name: dict(filter_tools.SCORER) for name in ("safety", "quality", "fluency", "judge")}
    c.scorers.safety.kind = "linear"  # kinds: filtering/scores/scorers.py; off where there is no path (judge: url)
    c.skip = ()  # scorers to leave out; without the one that decides, the report says "not scored"
    c.router = dict(score="safety.level", keep_at=0, drop_at=4, synthesise=False, tag_probability=0.0)
    c.rewriter = dict(backend="openai", url="http://127.0.0.1:8000/v1", model="", api_key_env="OPENAI_API_KEY")
    c.rewriter.concurrency = 16  # requests at once; backends: openai, flax (model: a folder), echo, none
    c.rewriter.update(conduct="en-neutral", max_tokens=1_500, retries=3, timeout_seconds=120.0)  # tokens of a part
    c.gates = dict(perplexity="")  # "fluency.score", of kind perplexity, for the 1.2x gate; "": not measured, and said
    if arg:
        c.inputs = "synthetic:toyweb"
        c.toyweb = dict(num=4_000, shards=4, num_train=4_000, steps=600)  # documents; files; what the scorer sees
        c.scorers.safety.path = "toyweb"  # trained here, on another toy web
        c.rewriter.update(backend="toyweb")  # takes them out
        c.slice_mb = 1.0
    if arg == "tiny":
        c.toyweb.update(num=200, shards=2)
        c.executor = "local"
        c.scorers.safety.update(kind="toyweb", path="")  # reads the planted marks
    return c


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    workdir = pathlib.Path(workdir)
    filter_tools.check_numbers(c)
    settings = filter_tools.stage_settings(c)
    if settings.get("score.safety", {}).get("path") == "toyweb":
        path = str(workdir / "scorer/export")
        settings["score.safety"]["path"] = settings["align"]["safety"]["path"] = path
        if not pathlib.Path(path, "scorer.json").exists():
            toy_scorer.train(workdir / "scorer", path, seed=c.seed + 1, num=c.toyweb.num_train, steps=c.toyweb.steps)
    filter_tools.check(settings)
    executors.share([], c.shard_index, c.shard_count)
    outputs = pathlib.Path(c.outputs or workdir / "clean").absolute()  # a Ray worker may stand elsewhere
    pieces = plan(c, outputs, workdir)
    warnings = about_inputs(c, pieces)
    print("".join(f"  {line}\n" for line in warnings), end="", flush=True)
    job = filter_stages.Job(str(outputs), settings, hashes(settings, pieces), len(pieces))
    cost = cost_sheet(c, settings, pieces)
    files.write_rows(workdir / "tables/cost.jsonl", cost)
    print("\n".join(f"  {row['what']:<56} {row['number']:>16,}" for row in cost), flush=True)
    rerun(job, c.redo)
    files.sweep(outputs)
    started, fresh = time.monotonic(), 0
    options = dict(c.ray) | {"resources": resources(c.ray.resources), "executor": c.executor, "workers": c.workers}
    with executors.opened(functools.partial(filter_stages.do, job), **options) as run_tasks:
        for name, tasks in stages(settings, pieces).items():
            rows = through(c, job, run_tasks, name, tasks)
            fresh += sum(row["num_docs"] for row in rows) if name == "screen" else 0
    seconds = time.monotonic() - started
    files.sweep(outputs)
    write_manifest(outputs, job, pieces)
    summary = filter_page.write(c, workdir, settings, job, (fresh, seconds), warnings)
    if c.inputs == "synthetic:toyweb":
        truth = {row["id"]: row["metadata"]["planted"] for row in toy_documents(c)}
        summary |= filter_page.planted(workdir, truth, filter_page.decisions_of(job))
    return summary


def exit_code(summary: dict[str, float | None]) -> tuple[int, str]:
    """3 where more records were set aside than `max_bad`, and a sentence about it."""
    share, most = (summary.get(name) or 0 for name in ("bad_share", "max_bad"))
    if share <= most:
        return 0, ""
    return TOO_MANY_BAD, (
        f"exit code {TOO_MANY_BAD}: {summary.get('bad_records') or 0:,.0f} records ({100 * share:.3g} %) were set "
        f"aside, more than max_bad={most:g} allows; the outputs are complete without them. errors/ beside the "
        "documents names file, line and reason of each; --config.max_bad raises the limit"
    )


def plan(c, outputs: pathlib.Path, workdir: pathlib.Path) -> list[slices.Slice]:
    """The slices of the input, frozen with the first start: a changed input is refused, not half filtered anew."""
    inputs = c.inputs
    if inputs == "synthetic:toyweb":
        inputs = str(workdir / "toyweb")
        if not (outputs / "plan.json").exists():
            toyweb.write(inputs, toy_documents(c), shards=c.toyweb.shards)
    path = outputs / "plan.json"
    if path.exists():
        frozen = json.loads(path.read_text("utf-8"))
        pieces = [slices.Slice(**row) for row in frozen["slices"]]
        if frozen["inputs"] != inputs or frozen["slice_mb"] != c.slice_mb:
            raise InputError(
                f"{outputs} was planned for inputs={frozen['inputs']!r} in slices of {frozen['slice_mb']} MB, not for "
                f"{inputs!r} in {c.slice_mb} MB; choose another outputs folder, or remove this one"
            )
        slices.check(pieces)
        check_new_files(frozen, slices.files(inputs), outputs, workdir)
        return pieces
    if c.inputs != "synthetic:toyweb":
        check_own_files(slices.files(inputs), outputs, workdir)
    pieces = slices.plan(inputs, slice_bytes=int(c.slice_mb * 2**20))
    if not pieces:
        raise InputError(f"inputs={c.inputs!r}: all files are empty; there is nothing to filter")
    options = {"columns": dict(c.read.columns), "max_document_bytes": int(c.read.max_document_mb * 2**20)}
    slices.check_columns(pieces, text_unit=c.read.text_unit, **options)
    try:
        outputs.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"outputs={str(outputs)!r} cannot be made: {e.strerror}; choose a folder to write in") from e
    frozen = {"inputs": inputs, "slice_mb": c.slice_mb, "empty_files": slices.empty_files(inputs)}
    frozen["slices"] = [dataclasses.asdict(piece) for piece in pieces]
    with shards.whole_file(path) as sink:  # all shares of an array write it, and the same
        sink.write(orjson.dumps(frozen, option=orjson.OPT_INDENT_2))
    return pieces


def check_own_files(names: Sequence[str], outputs: pathlib.Path, workdir: pathlib.Path) -> None:
    """Refuse to filter what a run of the filter wrote: this one's folders, and others that lie in the input."""
    own = (outputs, workdir.absolute())
    for at in dict.fromkeys(folder for file in names for folder in pathlib.Path(file).parents):
        if at in own or ((at / "plan.json").exists() and (at / "done").is_dir()):
            raise InputError(
                f"inputs hold files of {at}, which a run of this filter wrote into; give --config.outputs and "
                "--workdir outside the input's folders, or inputs that leave theirs out"
            )


def check_new_files(frozen, files: Sequence[str], outputs: pathlib.Path, workdir: pathlib.Path) -> None:
    """Refuse files that were not there when the run was planned; its own do not count."""
    known = {row["file"] for row in frozen["slices"]} | set(frozen["empty_files"])
    own = (outputs, workdir.absolute())
    fresh = [f for f in files if f not in known and not any(at in pathlib.Path(f).parents for at in own)]
    if fresh:
        raise InputError(
            f"{len(fresh):,} files were added since this run was planned, such as {fresh[0]}; give other inputs and "
            "outputs for them, or start over with another outputs folder"
        )


def about_inputs(c, pieces) -> list[str]:
    """What of the input is not as a reader would think."""
    lines = []
    if left := slices.passed_over(c.inputs):
        lines.append(
            f"Warning: {len(left):,} files of plain text are not read, such as {left[0]}: a folder is read for JSONL "
            f"and parquet. To read them too: --config.inputs='{c.inputs},{pathlib.Path(left[0]).parent}/*.txt*'"
        )
    if len(pieces) > slices.MANY:
        lines.append(
            f"Warning: {len(pieces):,} slices of {c.slice_mb:g} MB; each is a task of every stage, with files of its "
            "own. Where files are not packed, a larger slice_mb makes fewer."
        )
    return lines


def toy_documents(c) -> list[dict]:
    return toyweb.documents(c.toyweb.num, seed=c.seed)


def stages(settings, pieces) -> dict[str, list]:
    """{stage: its tasks}, in the order in which they depend on each other."""
    num_bands = filter_tools.num_bands(settings)
    bands = [(name, band) for name, num in num_bands.items() for band in range(num)]
    lines = {"paragraphs": [settings["paragraphs"]]} if "paragraphs" in settings else {}
    scores = {f"score.{name}": pieces for name in settings["align"]["scorers"]}
    return {"screen": pieces, "band": bands, "clusters": [num_bands], **lines, **scores, "align": pieces}


def hashes(settings, pieces) -> dict[str, str]:
    """{stage: hash of its settings, the input, and the stages before it}."""

    def digest(*parts) -> str:
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    cut = [(piece.name, piece.start, piece.stop, piece.unit, piece.size) for piece in pieces]
    content = functools.partial(filter_tools.content_of, settings=settings)
    screened = digest(cut, content("screen"))
    found = {"screen": screened, "band": digest(screened, "band"), "clusters": digest(screened, "clusters")}
    text = found["clusters"]
    if "paragraphs" in settings:
        text = found["paragraphs"] = digest(text, settings["paragraphs"])
    scorers = [f"score.{name}" for name in settings["align"]["scorers"]]
    found |= {stage: digest(text, content(stage)) for stage in scorers}
    found["align"] = digest(text, [found[stage] for stage in scorers], content("align"))
    return found


def rerun(job, redo) -> None:
    """Forget stages that were done under other settings, where the config allows it, and those that build on them."""
    known = list(job.hashes)
    for name in redo:
        if name not in known:
            raise InputError(f"redo={name!r} is no stage of this run; it has {', '.join(known)}")
        for stage in known if not name.startswith("score.") else (name, "align"):
            shards.forget(job.outputs, stage, job.hashes[stage])


def through(c, job, run_tasks, name: str, tasks) -> list[dict]:
    """This start's share of a stage's tasks; then, in an array, a wait for the others'. Returns the rows made now."""
    done = finished(job, name)
    mine = executors.share(range(len(tasks)), c.shard_index, c.shard_count)
    todo = [i for i in mine if i not in done]
    sizes = [task.num_bytes if isinstance(task, slices.Slice) else 1 for task in tasks]
    bar = progress.Progress(name, sum(sizes[i] for i in todo))
    made = []
    for position, row in run_tasks([(name, i, tasks[i]) for i in todo]):
        made.append(row)
        bar.advance(sizes[todo[position]], row.get("num_docs", 0))
    if todo:
        bar.close()
    while c.shard_count > 1 and len(finished(job, name)) < len(tasks):
        print(f"{name}: waiting for the other shares of {c.shard_count}", flush=True)
        time.sleep(POLL_SECONDS)
    return made


def finished(job, name: str) -> set[int]:
    """Tasks that a stage is through with; rows are not held, since there may be very many."""
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


def cost_sheet(c, settings, pieces) -> list[dict]:
    """What the run will read, hold and, if every document were rewritten, ask of a rewriter; from bytes alone."""
    size = sum(piece.num_bytes for piece in pieces)
    tokens = size // BYTES_PER_TOKEN
    num_bands = sum(filter_tools.num_bands(settings).values())
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


def write_manifest(outputs: pathlib.Path, job, pieces) -> None:
    """One row a slice: where it lies, and what each stage made of it, with checksums."""

    def rows():
        by_slice = [stage for stage in job.hashes if stage not in ("band", "clusters", "paragraphs")]
        notes = [shards.each_finished(outputs, stage, job.hashes[stage]) for stage in by_slice]
        for piece, *found in zip(pieces, *notes, strict=True):
            row = {"slice": piece.index, "file": piece.name, "start": piece.start, "stop": piece.stop}
            for stage, (_, note) in zip(by_slice, found, strict=True):
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
    "bytes_out": ("size of the text that goes to training, in bytes",),
    "drop/*": ("documents dropped for this reason",),
    "gate/*": ("rewritten documents with this verdict of the gates",),
    "counter/*": ("how often this was counted while cleaning",),
    "planted/*/recall": ("share of the documents planted as this that were treated as they should be", "higher"),
    "planted/*/precision": ("share of the documents treated like this that should be", "higher"),
    "clean_rewritten": ("clean documents that were rewritten without need", "lower"),
    "identity_rate": ("share of the clean documents kept that come out unchanged", "higher"),
}


def headline(summary: dict[str, float | None]) -> str:
    """The page's first sentence."""
    total, kept = summary["docs_in"], summary["docs_kept"]
    words = f"{kept:,.0f} of {total:,.0f} documents go to training ({100 * kept / max(total, 1):.1f} %), "
    words += f"{summary['docs_rewritten']:,.0f} of them rewritten; {summary['docs_dropped']:,.0f} are dropped"
    reasons = {name.removeprefix("drop/"): n for name, n in summary.items() if name.startswith("drop/") and n}
    return f"{words}, most often for {max(reasons, key=reasons.get)}." if reasons else f"{words}."
