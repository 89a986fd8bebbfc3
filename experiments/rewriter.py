"""Training the worker of native alignment: a model that rewrites texts under a code of conduct, or leaves them alone.

Paper:   Liang et al. 2024, arXiv:2412.03253 (96,000 pairs of an expert model, a worker of 4B parameters)
Run:     python -m experiments.run --config experiments/rewriter.py --config.data.path=rewrite_seed_data.json
Laptop:  python -m experiments.run --config experiments/rewriter.py:laptop      (CPU, minutes; `tiny`: seconds)
Expect:  laptop, held-out texts with harm: 0.96 of the rewritings pass all gates; texts without: 0.99 stay as they are;
         88 s on two cores of an AMD EPYC, Python 3.11, JAX 0.10.2, commit 736f392
"""

import functools
import pathlib
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np
from ml_collections import config_dict

from alignment import files
from alignment.decoding import cache
from alignment.errors import InputError
from alignment.filtering.rewriting import conduct, distance, gates, rewrite
from alignment.filtering.rules import language
from alignment.train import language_model, loop, optimizer, sharding
from data import records
from data.texts import rewrite_pairs, text
from data.tokens import tokenizer, word_bytes
from data.toys import notes
from experiments.filtering import worker
from experiments.launch import checks, groups, lm, planning
from experiments.report import pictures

SETTINGS = ("", "laptop", "tiny")
LEAST = dict.fromkeys(("steps", "num_words", "max_origin", "heldout.num"), 1)
LEAST |= {"rows.max_len": 2}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = config_dict.placeholder(int)  # None: as many as `epochs` need
    c.epochs = 2.0
    c.init_from = "hf:Qwen/Qwen1.5-4B-Chat"  # hf:<folder or hub id>, run:<workdir>, "" for nothing
    c.tokenizer = ""  # "": that of init_from; "words": frequent words of the pairs, the rest in bytes
    c.num_words = 768  # of the tokenizer "words"
    c.conduct = "en-neutral"  # a pack's name or the path of a YAML file
    c.prompt = "full"  # "full": code of conduct and wrapped text; "bare": the text alone
    c.model = groups.decoder()
    c.compute = groups.compute()
    c.data = dict(
        path="rewrite_seed_data.json",
        heldout_fraction=0.02,
        limit=config_dict.placeholder(int),  # records; None takes all
        columns=dict(origin="origin", rewritten="rewritten"),
    )
    c.identity_share = 0.3  # of the training pairs, texts that are to be left alone
    c.max_origin = 1_900  # tokens of an original; pairs of longer ones are left out
    c.rows = dict(
        max_len=4_096,  # tokens of a row
        packed=True,
    )
    c.batch_size = 128  # rows over all hosts
    c.accumulate = 1  # parts that a batch is taken in
    c.optimizer = dict(
        peak_lr=1e-5,
        schedule="cosine",
        weight_decay=0.0,
        clip_norm=1.0,
        b1=0.9,
        b2=0.95,
    )
    c.warmup = 0.03  # share of the steps
    c.loop = groups.loop()
    c.sinks = groups.SINKS
    c.mesh = groups.mesh()
    c.heldout = dict(
        num=256,  # held-out pairs rewritten at the end, half of them identity pairs
        batch_size=32,
    )
    c.export = "bfloat16"  # weights of the Hugging Face folder left in the workdir; "" leaves none
    if arg:
        small(c)
    if arg == "tiny":
        tiny(c)
    elif arg == "laptop":
        laptop(c)
    return c


def small(c: ml_collections.ConfigDict) -> None:
    """What `laptop` and `tiny` share."""
    groups.small_decoder(c)
    c.tokenizer = "words"
    c.prompt = "bare"
    c.data.path = "synthetic"
    c.data.heldout_fraction = 0.05


def tiny(c: ml_collections.ConfigDict) -> None:
    groups.tiny_decoder(c)
    c.data.heldout_fraction = 0.2
    c.rows.max_len = 256
    c.batch_size = 8
    c.optimizer.peak_lr = 1e-2
    c.heldout.num = 4
    c.heldout.batch_size = 4


def laptop(c: ml_collections.ConfigDict) -> None:
    c.steps = 1_000
    # A first layer that sees four tokens and a second that sees all: copying, hard for small models, is then learnt
    # in a few hundred steps, because what came just before a token is what the second layer looks it up by.
    c.model = dict(
        num_layers=2,
        model_dim=128,
        num_heads=4,
        num_kv_heads=4,
        ffn_dim=256,
        qk_norm=True,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=4,
        tie_embeddings=False,
    )
    c.compute.unroll = 2
    c.data.limit = 24_000
    c.data.heldout_fraction = 0.03
    c.rows.max_len = 128
    c.batch_size = 16
    c.optimizer.peak_lr = 3e-3
    c.loop.eval_every = 100


def sweep():
    for identity_share in (0.0, 0.3, 0.5):
        yield {"identity_share": identity_share}


def check(c: ml_collections.ConfigDict) -> None:
    """Refuse what needs neither data nor devices to be seen."""
    checks.check_least(c, LEAST)
    checks.within(c, "(0, inf)", "epochs")
    checks.within(c, "[0, 1]", "warmup")
    worker.check_prompt(c.prompt)
    conduct.load(c.conduct)
    rewrite_pairs.check(heldout_fraction=c.data.heldout_fraction, identity_share=c.identity_share)
    if c.data.path != "synthetic":
        records.check(c.data.path)
    if c.tokenizer == "words" and c.init_from:
        raise InputError(f"tokenizer='words' is made for a model from nothing; init_from={c.init_from!r} has its own")
    lm.check_model(c, made_here=c.tokenizer == "words")
    optimizer.adamw(**c.optimizer)
    loop.Pace(**c.loop)


def plan(c: ml_collections.ConfigDict, wanted: planning.Wanted) -> list[planning.Training]:
    """What the launcher's `--plan` compiles."""
    training = planning.rows(
        "training",
        wanted.network(c, rows_are_plain=not c.rows.packed),
        tx=optimizer.adamw(**c.optimizer),
        batch_size=c.batch_size,
        max_len=c.rows.max_len,
        steps=c.steps,
        accumulate=c.accumulate,
    )
    return [training]


def run(c: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    check(c)
    workdir = pathlib.Path(workdir)
    code = conduct.load(c.conduct)
    counts: dict[str, int] = {}
    pairs = without_remarks(read(c, workdir, counts), code, counts)
    train_pairs, heldout_pairs = rewrite_pairs.split(pairs, fraction=c.data.heldout_fraction, seed=c.seed)
    tok = tokenizer_of(c, train_pairs)
    identity = functools.partial(rewrite_pairs.with_identity, share=c.identity_share, seed=c.seed)
    train_pairs, heldout_pairs = (
        identity(fitting(some, tok, c.max_origin, counts)) for some in (train_pairs, heldout_pairs)
    )
    train, heldout = conversations(c, code, tok, train_pairs, heldout_pairs, counts)
    files.report_counts(workdir, counts)

    steps = c.steps or max(1, round(c.epochs * len(train) / c.batch_size))
    mesh = sharding.make_mesh(**c.mesh)
    sharding.check_batch(c.batch_size, mesh, c.accumulate)
    model, state, _, summary = lm.fit(
        c,
        tok,
        (train, heldout),
        mesh,
        workdir,
        rows_are_plain=not c.rows.packed,
        tx=optimizer.adamw(**c.optimizer, total_steps=steps, warmup_steps=max(1, round(c.warmup * steps))),
        steps=steps,
    )
    options = dict(prompt=c.prompt, batch_size=c.heldout.batch_size, max_prompt=c.rows.max_len)
    complete = worker.backend(model, state.params, tok, **options)
    examples = chosen(heldout_pairs, c.heldout.num)
    written = rewrite.rewrite(
        [{"text": pair.origin} for pair in examples],
        complete,
        code,
        cache.Cache(),
        count_tokens=lambda text: len(tok.encode(text)),
        batch_size=c.heldout.batch_size,
    )
    if c.data.path == "synthetic":  # its lists of words are in no language that could be identified
        models = {"safety": notes.safety}
    else:
        models = {"language": language.identify}
    summary |= judge(workdir, examples, written, models)
    language_model.export(workdir / "export/hf", state.params, model, tok, dtype=c.export, init_from=c.init_from)
    if c.export:
        files.write_text(workdir / "export/hf" / worker.FILE, worker.note(code, c.prompt))
    return summary


def read(c: ml_collections.ConfigDict, workdir: pathlib.Path, counts: dict[str, int]) -> list[rewrite_pairs.Pair]:
    if c.data.path == "synthetic":
        pairs = rewrite_pairs.synthetic(c.data.limit or 12_000, c.seed)
        counts["records"] = len(pairs)
        return pairs
    options = dict(columns=c.data.columns, limit=c.data.limit or 0, bad_path=str(workdir / "bad_records.jsonl"))
    return rewrite_pairs.read(c.data.path, counts=counts, **options)


def without_remarks(
    pairs: Sequence[rewrite_pairs.Pair], code: conduct.Conduct, counts: dict[str, int]
) -> list[rewrite_pairs.Pair]:
    """The pairs whose rewriting is the text alone; those with a model's remarks around it are counted in `counts`.

    Raises:
        InputError: no pair is left.
    """
    markers = gates.compiled(code.markers)
    clean = [pair for pair in pairs if not gates.scaffold(pair.origin, pair.rewritten, markers)]
    if len(clean) < len(pairs):
        counts["rewritings with a remark or mark of the model around them"] = len(pairs) - len(clean)
    if pairs and not clean:
        raise InputError(
            f"all {len(pairs)} rewritings hold a remark or a mark of the model, such as {pairs[0].rewritten[:80]!r}; "
            "a worker trained on them would write them too: strip them from the pairs"
        )
    return clean


def tokenizer_of(c: ml_collections.ConfigDict, pairs: Sequence[rewrite_pairs.Pair]) -> tokenizer.Tokenizer:
    if c.tokenizer != "words":
        return lm.load_tokenizer(c)
    with tempfile.TemporaryDirectory() as folder:
        texts = (f" {side}" for pair in pairs for side in (pair.origin, pair.rewritten))
        return word_bytes.build(texts, folder, num_words=c.num_words)


def fitting(
    pairs: Sequence[rewrite_pairs.Pair], tok: tokenizer.Tokenizer, max_origin: int, counts: dict[str, int]
) -> list[rewrite_pairs.Pair]:
    """The pairs whose original is not too long; the others are counted in `counts`."""
    lengths = [len(ids) for ids, _ in tok.encode_batch([pair.origin for pair in pairs])]
    short = [pair for pair, length in zip(pairs, lengths) if length <= max_origin]
    if len(short) < len(pairs):
        what = f"originals of more than {max_origin} tokens"
        counts[what] = counts.get(what, 0) + len(pairs) - len(short)
    return short


def conversations(
    c: ml_collections.ConfigDict,
    code: conduct.Conduct,
    tok: tokenizer.Tokenizer,
    train_pairs: Sequence[rewrite_pairs.Pair],
    heldout_pairs: Sequence[rewrite_pairs.Pair],
    counts: dict[str, int],
) -> tuple[text.Texts, text.Texts]:
    """The pairs as rows in which only the rewritten tokens count; a pair longer than a row is left out."""
    ask: Callable = worker.bare if c.prompt == "bare" else functools.partial(conduct.prompt, code)
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.jsonl" for name in ("train", "heldout")]
        for path, pairs in zip(paths, (train_pairs, heldout_pairs)):
            rewrite_pairs.write(path, pairs, ask)
        options = dict(kind="answers", truncation="drop", tokenizer=tok, seed=c.seed, **c.rows)
        train, heldout, of_texts = text.load(path=paths[0], heldout_path=paths[1], **options)
    counts |= {"conversations" if name == "records" else name: number for name, number in of_texts.items()}
    counts["identity pairs"] = sum(pair.origin == pair.rewritten for pair in [*train_pairs, *heldout_pairs])
    return train, heldout


def chosen(pairs: Sequence[rewrite_pairs.Pair], num: int) -> list[rewrite_pairs.Pair]:
    """`num` held-out pairs, half of them pairs to be left alone if there are as many."""
    edits, same = [], []
    for pair in dict.fromkeys(pairs):
        (same if pair.origin == pair.rewritten else edits).append(pair)
    num_same = min(len(same), max(num // 2, num - len(edits)))
    return edits[: num - num_same] + same[:num_same]


def judge(
    workdir: pathlib.Path,
    pairs: Sequence[rewrite_pairs.Pair],
    written: Sequence[str | None],
    models: Mapping[str, Callable],
) -> dict[str, float]:
    """Compare what the worker wrote with what it should have: tables, a figure; returns the summary's numbers.

    Args:
        models: measuring functions of `gates.check_all`.
    """
    verdicts = gates.check_all([pair.origin for pair in pairs], written, **models)
    rows = [_row(pair, answer, gate) for pair, answer, gate in zip(pairs, written, verdicts)]
    for row in rows:
        row["kind"] = row["kind"] or ("clean" if row["origin"] == row["wanted"] else "edited")
    kinds = sorted({row["kind"] for row in rows})
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    table = [{"kind": kind, "texts": len(some), **_means(some)} for kind, some in by_kind.items()]
    files.write_rows(workdir / "tables/heldout_by_kind.jsonl", table)
    failures = Counter(name for gate in verdicts for name in gate.failed)
    missing = Counter(name for gate in verdicts for name in gate.not_measured)
    names = sorted({*failures, *missing})
    checks = [{"check": name, "failed": failures[name], "not measured": missing[name]} for name in names]
    files.write_rows(workdir / "tables/gates.jsonl", checks)
    examples = [row for some in by_kind.values() for row in sorted(some, key=lambda row: row["exact"])[:4]]
    files.write_rows(workdir / "tables/rewritten.jsonl", examples)
    pictures.boxes(
        workdir / "figures/similarity.png",
        {kind: {"to what is wanted": [row["similarity"] for row in some]} for kind, some in by_kind.items()},
        label="edit similarity",
        caption="Edit similarity (1 - Levenshtein distance over the longer length, in characters) of what the worker "
        "wrote to what it should have written, by what was wrong with the text. An unanswered text counts as 0.",
    )
    is_clean = [row["origin"] == row["wanted"] for row in rows]
    clean, edits = ([row for row, same in zip(rows, is_clean) if same is kind] for kind in (True, False))
    summary = {"heldout/identity_rate": _means(clean)["exact"], "heldout/unanswered": written.count(None) / len(rows)}
    summary |= {f"heldout/edited/{name}": value for name, value in _means(edits).items()}
    return {name: value for name, value in summary.items() if np.isfinite(value)}


def _row(pair: rewrite_pairs.Pair, answer: str | None, gate: gates.Gate) -> dict:
    similarity = distance.similarity(answer or "", pair.rewritten)
    return {
        "kind": pair.planted,
        "origin": pair.origin,
        "written": answer or "",
        "wanted": pair.rewritten,
        "exact": float(answer == pair.rewritten),
        "similarity": float("nan") if similarity is None else similarity,
        "accepted": float(gate.accepted),
        "failed": ", ".join(gate.failed),
    }


def _means(rows: Sequence[dict]) -> dict[str, float]:
    """Shares of exact and of accepted answers, and mean similarity; not-a-numbers where there are no rows."""
    names = ("exact", "accepted", "similarity")
    return {name: float(np.nanmean([row[name] for row in rows])) if rows else float("nan") for name in names}


METRICS = {
    "identity_rate": ("share of clean texts that come back unchanged", "higher"),
    "unanswered": ("share of texts for which no complete answer was written", "lower"),
    "edited/exact": ("share of texts in need of an edit that are written exactly as wanted", "higher"),
    "edited/accepted": ("share of texts in need of an edit whose rewriting passes all gates", "higher"),
    "edited/similarity": ("edit similarity to what is wanted, 0 to 1, mean over those texts", "higher"),
}


def headline(summary: dict[str, float]) -> str:
    """The page's first sentence."""
    shares = {
        "of the held-out texts in need of an edit pass the gates once rewritten": "heldout/edited/accepted",
        "are written exactly as wanted": "heldout/edited/exact",
        "of clean texts come back unchanged": "heldout/identity_rate",
    }
    words = [f"{100 * summary[n]:.1f} % {what}" for what, n in shares.items() if summary.get(n) is not None]
    return f"{', '.join(words)}." if words else ""
